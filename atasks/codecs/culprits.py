"""Finds the part of a value that a codec does not take."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Iterator
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any, Final

import msgspec

from atasks.codecs import bound, objects
from atasks.codecs.base import Codec, ends_here
from atasks.errors import EncodeError
from atasks.functions import signature_of

__all__ = ["blame", "brief", "part", "unencodable", "unencodable_arguments"]

MAX_DEPTH: Final = 50
"""Steps from the value to its part that are followed."""
MAX_SEEN: Final = 10_000
"""Objects that are looked at to find one."""
MAX_KEY: Final = 40
"""Characters of a key that a message shows."""

_Parts = list[tuple[str, Any]]


async def part(codec: Codec, value: Any) -> tuple[str, Any]:
    """The path from a value to the part of it that cannot be encoded, as in `[3].lock`, and that part itself.

    The path is empty where that is the value as a whole.
    """
    path = ""
    seen = {id(value)}
    for _ in range(MAX_DEPTH):
        if bound.reason(type(value)) is not None or not (codec.carries_types or _is_plain(value)):
            break
        found = await _first(codec, [pair for pair in _parts(value) if id(pair[1]) not in seen])
        if found is None:
            break
        label, value = found
        seen.add(id(value))
        path += label
    return path, value


def complaint(subject: str, value: Any, codec: Codec, error: BaseException) -> EncodeError:
    """The error for what cannot be encoded. It names types, and no values."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    why = f": {_text(error)}" if isinstance(error, EncodeError) else f" ({brief(error)})"
    return EncodeError(f"{subject} ({module}{kind.__qualname__}) cannot be encoded by {codec.name}{why}")


async def unencodable(subject: str, value: Any, codec: Codec, error: BaseException) -> EncodeError:
    """The error for a value that cannot be encoded, which names the part of it that is the reason."""
    path, culprit = _located(value, error) or await part(codec, value)
    return complaint(f"{subject} at {path}" if path else subject, culprit, codec, error)


async def unencodable_arguments(
    task: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], codec: Codec, error: BaseException
) -> EncodeError:
    """The error for the arguments of a call, which names the argument and the part of it that is the reason, as in
    `orders[3].lock`."""
    for name, value in _named(function, args, kwargs):
        if (place := _located(value, error)) is not None:
            return complaint(f"argument {name}{place[0]} of {task}", place[1], codec, error)
    found = await _first(codec, _named(function, args, kwargs))
    if found is None:  # each alone can be encoded
        return complaint(f"an argument of {task}", (args, kwargs), codec, error)
    path, culprit = await part(codec, found[1])
    return complaint(f"argument {found[0]}{path} of {task}", culprit, codec, error)


def blame(error: Exception, culprit: object) -> None:
    """Note with an exception which object it is about."""
    with contextlib.suppress(Exception):  # a class of the user's
        error._atasks_culprit = culprit  # type: ignore[attr-defined]


def _located(value: Any, error: BaseException) -> tuple[str, Any] | None:
    """The path from a value to the object that an error was noted to be about, and that object.

    Nothing is encoded for it: an object that is asked twice how it is pickled may answer twice.
    """
    culprit = getattr(error, "_atasks_culprit", None)
    if culprit is None:
        return None
    waiting: deque[tuple[str, Any, int]] = deque([("", value, 0)])
    seen: dict[int, Any] = {}
    while waiting and len(seen) < MAX_SEEN:
        path, found, depth = waiting.popleft()
        if found is culprit:
            return path, found
        if id(found) not in seen and depth < MAX_DEPTH:
            seen[id(found)] = found
            waiting.extend((path + label, item, depth + 1) for label, item in _parts(found))
    return None


def brief(error: BaseException) -> str:
    """A third party's error in one line, without the values that it may quote at length."""
    text, name = _text(error), objects.class_name(type(error))[1]
    return f"{name}: {text}" if text else name


def _text(error: BaseException) -> str:
    try:
        text = "".join([str(error)])  # str() may return an instance of a subclass of str, with methods of its own
    except BaseException:  # nothing here awaits, so only the exception itself can have raised this
        return ""
    return text.split("\n", 1)[0][:300].encode("utf-8", "backslashreplace").decode()


async def _first(codec: Codec, parts: _Parts) -> tuple[str, Any] | None:
    """The first part that cannot be encoded. It is searched by halves, since there may be a million."""
    low, high = 0, len(parts)
    while high - low > 1:
        middle = (low + high) // 2
        if await _takes(codec, [value for _, value in parts[low:middle]]):
            low = middle
        else:
            high = middle
    if low == high or await _takes(codec, parts[low][1]):
        return None
    return parts[low]


async def _takes(codec: Codec, value: Any) -> bool:
    try:
        await codec.encode(value)
    except BaseException as error:
        if ends_here(error):
            raise
        return False
    return True


def _named(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Parts:
    """The arguments by the names of their parameters."""
    names: list[str] = []
    more = "args"
    try:
        parameters = signature_of(function).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            more = parameter.name
    named = [names[index] if index < len(names) else f"{more}[{index - len(names)}]" for index in range(len(args))]
    return [*zip(named, args, strict=True), *kwargs.items()]


def _is_plain(value: Any) -> bool:
    """Return True if a codec that knows no classes may take the value apart."""
    kinds = (dict, list, tuple, set, frozenset, msgspec.Struct)
    return isinstance(value, kinds) or dataclasses.is_dataclass(value)


def _parts(value: Any) -> _Parts:
    """Return the parts of a value, as far as they have names."""
    try:
        return list(_walk(value))
    except Exception:  # a method of a user's class raises
        return []


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{_key(key)}]", item
    elif isinstance(value, tuple) and (names := getattr(value, "_fields", None)) is not None:
        yield from zip([f".{name}" for name in names], value, strict=True)
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("[...]", item) for item in value)
    if isinstance(value, functools.partial):
        yield from ((f".{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, FunctionType):
        yield from _surroundings(value)
    elif not isinstance(value, type):
        yield from ((f".{name}", item) for name, item in _attributes(value))


def _surroundings(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the objects that a function takes along when it travels by value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".<closure>.{name}", cell.cell_contents
        except ValueError:  # it is empty
            continue
    for position, item in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{position}]", item
    for name, item in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", item
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f".<globals>.{name}", function.__globals__[name]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        yield from own.items()
    for base in type(value).__mro__:
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType):
                try:
                    yield name, member.__get__(value)
                except AttributeError:  # it is not set
                    continue


def _key(key: object) -> str:
    """A key as a message may show it: a short word or a number, which is no payload."""
    if type(key) is int or (type(key) is str and key.isidentifier() and len(key) <= MAX_KEY):
        return repr(key)
    return "..."
