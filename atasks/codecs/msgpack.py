"""MessagePack, typed by the annotations of atasks."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Iterator
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

import msgspec

from atasks.codecs import objects, sizes
from atasks.codecs.base import Codec
from atasks.errors import DecodeError, EncodeError
from atasks.functions import declaring, passes_on, signature_of

__all__ = ["MsgpackCodec"]


class MsgpackCodec(Codec):
    """MessagePack through msgspec: no code in the data, and any language can read it.

    Arguments arrive as the types that the atask's parameters are annotated with, and results as the type of its
    return annotation: dataclasses, `msgspec.Struct`s, named tuples, typed dicts, enums, datetimes, UUIDs,
    decimals, sets, and constraints (`Annotated[int, msgspec.Meta(ge=0)]`). What does not conform is a
    `DecodeError` that names the parameter. Where there is no annotation plain data arrives: dicts, lists, strings,
    numbers, bytes, aware datetimes. The values of exceptions arrive as plain data too.

    An exception arrives with its class if that is an `Exception` of a module that is loaded here, and as a
    `RemoteError` otherwise; nothing is imported for it.

    Whoever can write to the broker, or to the socket, can call atasks, and cannot run other code here.

    Args:
        namespace: The namespace whose codec it becomes.
        exceptions: Classes of exceptions that may arrive, besides Python's own. None: those of all loaded modules.
    """

    name = "msgpack"

    def __init__(self, namespace: str = "default", *, exceptions: Iterable[type[Exception]] | None = None) -> None:
        super().__init__(namespace)
        self._exceptions: dict[tuple[str, str], type[Exception]] | None = None
        if exceptions is not None:
            self._exceptions = {objects.importable_name(cls) or objects.class_name(cls): cls for cls in exceptions}
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_cannot_encode)
        self._signatures: WeakKeyDictionary[Callable[..., Any], _Signature] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:  # for the processes of a worker
        exceptions = None if self._exceptions is None else list(self._exceptions.values())
        return functools.partial(type(self), exceptions=exceptions), (self.namespace,)

    async def encode(self, obj: Any) -> bytes:
        try:
            return self._encoder.encode(obj)
        except EncodeError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = "a string with lone surrogates" if isinstance(error, UnicodeEncodeError) else str(error)
            raise EncodeError(f"MessagePack cannot hold a value in this {type(obj).__name__}: {reason}") from None

    async def decode(self, content: bytes) -> Any:
        sizes.check_part(content)
        if len(content) > sizes.LARGE:
            with sizes.uncollected():
                return _read_anything(content)
        return _read_anything(content)

    async def decode_arguments(self, content: bytes, function: Callable[..., Any]) -> tuple[Any, Any]:
        if sizes.check(content):
            with sizes.uncollected():
                return self._signature(function).arguments(content)
        return self._signature(function).arguments(content)

    async def decode_result(self, content: bytes, function: Callable[..., Any]) -> Any:
        if sizes.check(content):
            with sizes.uncollected():
                return self._signature(function).result(content)
        return self._signature(function).result(content)

    def name_exception(self, cls: type) -> tuple[str, str] | None:
        for names, known in (self._exceptions or {}).items():
            if known is cls:
                return names
        return super().name_exception(cls)

    def find_exception(self, module: str, qualname: str) -> Any:
        if self._exceptions is not None and module != "builtins":
            return self._exceptions[module, qualname]
        return super().find_exception(module, qualname)

    def _signature(self, function: Callable[..., Any]) -> _Signature:
        signature = self._signatures.get(function)
        if signature is None:
            signature = self._signatures[function] = _Signature(function)
        return signature


_ADVICE = (
    "annotate it with what msgspec knows (numbers, str, bytes, list, dict, dataclasses, msgspec.Struct, datetime, "
    "UUID, Enum...), leave the annotation out, or construct a CloudpickleCodec on both sides"
)

_Read = Callable[[Any], Any]

_outer = msgspec.msgpack.Decoder(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]])
_halves = msgspec.msgpack.Decoder(tuple[msgspec.Raw, msgspec.Raw])


class _Signature:
    """The types of the arguments and of the result of one function. It does not keep the function alive.

    An annotation that is of no use is complained of only when a value arrives for it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.task = _name(function)
        self.positional: list[_Read] = []
        self.more: _Read = _read_anything
        self.named: dict[str, _Read] = {}
        self.others: _Read = _read_anything
        self.ways: list[_Positional] = []
        """The meanings that positional arguments may have below a decorator that adds some, the likeliest
        first."""
        scope = _Scope(function)
        signature = signature_of(declaring(function))
        parameters = list(signature.parameters.values())
        if passes_on(function):
            parameters = parameters[parameters[:1] != [] and parameters[0].name in ("self", "cls") :]
            usable = [parameter for parameter in parameters if _is_usable(parameter.annotation, scope)]
            if len(usable) < len(parameters):
                self.ways.append(_Positional(usable, scope, self.task))
            parameters = [
                parameter if parameter in usable else parameter.replace(annotation=Any) for parameter in parameters
            ]
            self.ways.append(_Positional(parameters, scope, self.task))
        for parameter in parameters:
            read = _reader_of(parameter.annotation, scope, f"argument {parameter.name!r} of {self.task}")
            match parameter.kind:
                case parameter.POSITIONAL_ONLY:
                    self.positional.append(read)
                case parameter.POSITIONAL_OR_KEYWORD:
                    self.positional.append(read)
                    self.named[parameter.name] = read
                case parameter.VAR_POSITIONAL:
                    self.more = read
                case parameter.KEYWORD_ONLY:
                    self.named[parameter.name] = read
                case _:
                    fields = _typed_dict(parameter.annotation, scope)
                    for name, hint in fields.items():
                        self.named[name] = _reader_of(hint, scope, f"argument {name!r} of {self.task}")
                    self.others = _read_anything if fields else read
        self.result = _reader_of(signature.return_annotation, scope, f"the result of {self.task}", _awaited)

    def arguments(self, content: bytes) -> tuple[list[Any], dict[str, Any]]:
        try:
            if len(content) > sizes.MAX_ARGUMENTS:
                sizes.check_arguments(*_halves.decode(content))
            args, kwargs = _outer.decode(content)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DecodeError(f"these are not the arguments of a call of {self.task}: {error}") from None
        if self.ways:
            values = self._positional(args, kwargs)
        else:
            values = cast("list[Any]", args)
            count = len(self.positional)
            for index, raw in enumerate(args):
                values[index] = self.positional[index](raw) if index < count else self.more(raw)
        named: dict[str, Any] = kwargs
        for name, raw in kwargs.items():
            named[name] = self.named.get(name, self.others)(raw)
        return values, named

    def _positional(self, args: list[msgspec.Raw], kwargs: Collection[str]) -> list[Any]:
        refusal: DecodeError | None = None
        for way in self.ways:
            try:
                return [
                    read(raw) for read, raw in zip(way.readers(len(args), kwargs, self.more), args, strict=False)
                ]
            except DecodeError as error:
                refusal = refusal or error
        assert refusal is not None, "there is one way at least"
        raise refusal


class _Positional:
    """The positional parameters that the arguments of a call may be for."""

    def __init__(self, parameters: list[inspect.Parameter], scope: _Scope, task: str) -> None:
        positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
        self._required = [parameter.name for parameter in positional if parameter.default is parameter.empty]
        self._readers = [
            _reader_of(parameter.annotation, scope, f"argument {parameter.name!r} of {task}")
            for parameter in positional
        ]

    def readers(self, count: int, kwargs: Collection[str], more: _Read) -> Iterator[_Read]:
        """Those for so many arguments. Values that are missing are put in front of them by the decorator."""
        missing = sum(name not in kwargs for name in self._required[count:])
        return chain(self._readers[missing:], repeat(more))


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _is_usable(annotation: Any, scope: _Scope) -> bool:
    try:
        info = msgspec.inspect.type_info(scope.resolve(annotation))
    except Exception:  # resolving evaluates the user's text
        return False
    kinds = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return all(not isinstance(kind, msgspec.inspect.CustomType) or kind.cls is object for kind in kinds)


def _cannot_encode(value: Any) -> Any:
    kind = type(value)
    raise EncodeError(
        f"MsgpackCodec cannot encode an object of type {kind.__module__}.{kind.__qualname__}: pass plain data, a "
        "dataclass or a msgspec.Struct instead, or construct a CloudpickleCodec on both sides"
    )


def _cannot_decode(kind: Any, value: Any) -> Any:
    if kind is object:
        return value
    raise NotImplementedError(getattr(kind, "__qualname__", None) or repr(kind))


def _reader(hint: Any, what: str) -> _Read:
    """A function that reads a value of that type, and whose `DecodeError` says what is wrong with `what`."""
    decode = msgspec.msgpack.Decoder(Any if hint is object else hint, dec_hook=_cannot_decode).decode

    def read(raw: Any) -> Any:
        try:
            return decode(raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DecodeError(f"{what}: {error}") from None
        except NotImplementedError as error:
            raise DecodeError(f"{what}: MsgpackCodec cannot make {error}: {_ADVICE}") from None

    return read


_read_anything = _reader(Any, "the value")


def _reader_of(
    annotation: Any, scope: _Scope, what: str, change: Callable[[Any], Any] = lambda hint: hint
) -> _Read:
    """A reader for an annotation; for one that is of no use, a function that complains of it."""
    try:
        return _reader(change(scope.resolve(annotation)), what)
    except Exception as error:  # resolving evaluates the user's text
        reason, unknown = str(error), isinstance(error, NameError)
    shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    if unknown:
        message = f"{what}: its annotation {shown} cannot be resolved ({reason}): define it at module level"
    else:
        message = f"{what}: its annotation {shown} cannot be used by MsgpackCodec ({reason}): {_ADVICE}"

    def complain(raw: Any) -> Any:
        raise DecodeError(message)

    return complain


class _Scope:
    """The scope in which the names in the annotations of a function are looked up."""

    def __init__(self, function: Callable[..., Any]) -> None:
        inner: Any = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        inner = inspect.unwrap(inner)
        if not inspect.isroutine(inner):
            inner = type(inner).__call__  # an object that can be called
        try:
            self.closure = dict(inspect.getclosurevars(inner).nonlocals)
        except (TypeError, ValueError):  # not written in Python
            self.closure = {}
        self.module = getattr(inner, "__globals__", {})
        self.parameters = getattr(inner, "__type_params__", ())

    def resolve(self, annotation: Any) -> Any:
        """The type that an annotation means, `from __future__ import annotations` or not."""
        if annotation is inspect.Parameter.empty:
            return Any
        holder = SimpleNamespace(__annotations__={"it": annotation}, __type_params__=self.parameters)
        hint = typing.get_type_hints(holder, self.module, self.closure or None, include_extras=True)["it"]
        unbound = isinstance(hint, typing.ParamSpecArgs | typing.ParamSpecKwargs)
        return Any if unbound or hint in (typing.NoReturn, typing.Never) else hint


def _typed_dict(annotation: Any, scope: _Scope) -> dict[str, Any]:
    """The types of the keys of `**options: Unpack[Options]`; empty for other annotations."""
    try:
        hint = scope.resolve(annotation)
    except NameError:
        return {}
    return typing.get_type_hints(typing.get_args(hint)[0]) if typing.get_origin(hint) is typing.Unpack else {}


def _awaited(hint: Any) -> Any:
    """Return the type that an await of the value gives, if a value of that type is awaited: T for `Awaitable[T]`,
    `asyncio.Future[T]`.

    For an async generator function it is the type of an item.
    """
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, type):
        if issubclass(origin, Awaitable):
            return (typing.get_args(hint) or (Any,))[-1]
        if issubclass(origin, AsyncIterable):
            return (typing.get_args(hint) or (Any,))[0]
    return hint


def _name(function: Callable[..., Any]) -> str:
    """Return the name of the function in messages: its module and qualified name, as for an atask."""
    from atasks.modules import MAIN_NAMES, main_name

    module = getattr(function, "__module__", None) or "?"
    if module in MAIN_NAMES:
        module = main_name() or "__main__"
    qualname: str = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{qualname.replace('<locals>.', '')}"
