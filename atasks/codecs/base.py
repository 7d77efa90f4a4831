"""The contract of a codec: objects to bytes and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from atasks.checks import validate_name
from atasks.codecs import objects
from atasks.codecs.pieces import Pieces
from atasks.errors import EncodeError
from atasks.namespaces import namespaces

__all__ = ["Codec", "as_bytes", "ends_here", "taken"]

_WHOLE = frozenset({"encode", "decode", "decode_arguments", "decode_result"})
"""Methods that know of bytes alone: who overrides one of them is given bytes."""
_RELATED = _WHOLE | {"pieces"}


class Codec:
    """Objects to bytes and back, for one namespace.

    A subclass needs `encode` and `decode` only. Constructing a codec makes it the codec of its namespace; both
    sides of a call need the same one, and a mismatch is a `DecodeError` that names both.

    A call's arguments are encoded as `(args, kwargs)`, a tuple and a dict; a codec may return them as lists.
    """

    name: str = ""
    """The name of this codec in envelopes: the name of its class unless it says otherwise."""

    carries_types: bool = False
    """True where `encode` takes classes by value or by reference, as pickles do: exceptions are then rebuilt
    through the codec too, and not only by importing their class."""

    compresses: bool = False
    """True where what is encoded may be much smaller than what it is made of. Otherwise the large parts of an
    exception that would not travel are left behind unencoded."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        names: Any = next(each for base in cls.__mro__ if (each := base.__dict__.keys() & _RELATED))
        if "pieces" not in names:  # else what overrides it, here or in a class to mix in, were not asked
            cls.pieces = Codec.pieces  # type: ignore[method-assign]

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = namespace
        validate_name(self.name, "the name of a codec")
        namespaces.register(namespace, codec=self)

    async def encode(self, obj: Any) -> bytes:
        """Turn an object into bytes.

        Args:
            obj: `(args, kwargs)` of a call, or a result, or an item of a stream.

        Returns:
            The bytes, of the type bytes.

        Raises:
            Exception: Any. It reaches the caller as an `EncodeError`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no encode()")

    async def decode(self, content: bytes) -> Any:
        """Turn bytes into the object that `encode` was given.

        Args:
            content: What `encode` returned, maybe in another process.

        Returns:
            The object.

        Raises:
            Exception: Any. It reaches the caller as a `DecodeError`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decode()")

    def pieces(self, obj: Any) -> Awaitable[bytes | Pieces]:
        """Encode for a transport that moves pieces: `encode`, unless the codec knows better."""
        return self.encode(obj)

    def name_exception(self, cls: type) -> tuple[str, str] | None:
        """Module and qualified name by which the other side finds the class of an exception; None: it cannot."""
        return objects.importable_name(cls)

    def find_exception(self, module: str, qualname: str) -> Any:
        """Return the class that `name_exception` named, or raise any exception. A codec that carries no types
        runs no code for it: it finds classes of modules that are loaded, and nothing else."""
        return objects.find(module, qualname) if self.carries_types else objects.loaded(module, qualname)

    # These two return the coroutine of `decode`: a coroutine of their own would cost time in every call.

    def decode_arguments(self, content: bytes, function: Callable[..., Any]) -> Awaitable[tuple[Any, Any]]:
        """`(args, kwargs)` for `function`: a codec with types reads them from its annotations."""
        return self.decode(content)

    def decode_result(self, content: bytes, function: Callable[..., Any]) -> Awaitable[Any]:
        """Decode the result of `function`: a codec with types reads them from the function's annotations."""
        return self.decode(content)


def as_bytes(data: Any, codec: Codec, keep: Callable[[Pieces], bytes | Pieces] = bytes) -> bytes:
    """Return what `encode` or `pieces` returned, as bytes, or as pieces if `keep` makes pieces of them: they have
    a length, and `decode` takes them. Raises EncodeError if that is nothing of the kind."""
    if type(data) is bytes:
        return data
    if type(data) is Pieces:
        return cast("bytes", keep(data))
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise EncodeError(f"{type(codec).__name__}.encode returned {type(data).__name__} instead of bytes")


def taken(payload: bytes, codec: Codec) -> bytes:
    """Return a payload as this codec decodes it: bytes, or pieces or a view where the codec knows of pieces."""
    if type(payload) is bytes or type(codec).pieces is not Codec.pieces:
        return payload
    return bytes(payload)


def ends_here(error: BaseException) -> bool:
    """Return True if an exception out of a codec is meant for this task or program, and does not come of the
    content: pickles may raise anything at all."""
    import asyncio  # for an error only: a process of a stage does without it

    from atasks.outlast import is_cancelled

    kind = type(error)  # `isinstance` would ask the exception, whose class may make anything of that
    if issubclass(kind, asyncio.CancelledError):
        return asyncio._get_running_loop() is not None and is_cancelled()
    if issubclass(kind, GeneratorExit):
        return asyncio._get_running_loop() is None  # the garbage collector closes this coroutine
    return issubclass(kind, KeyboardInterrupt)
