"""MessagePack arrays, read element by element: for those that a decoder of the whole refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

__all__ = ["UNREADABLE", "elements", "length", "read_each", "scalar"]

T = TypeVar("T")

UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""The errors of a decoder, whatever the bytes are."""
MAX_FIELDS: Final = 64
"""Elements of an array that is looked at because it cannot be read."""

_scalar: msgspec.msgpack.Decoder[int | str] = msgspec.msgpack.Decoder(int | str)
_elements: msgspec.msgpack.Decoder[list[Raw]] = msgspec.msgpack.Decoder(list[Raw])


def length(data: bytes | memoryview) -> int:
    """Return the number of elements that the MessagePack array at this place says it has; 0 if there is no
    array. The elements may be missing."""
    first = data[0] if data else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first in (0xDC, 0xDD):
        return int.from_bytes(data[1 : 3 if first == 0xDC else 5], "big")
    return 0


def read_each(
    body: bytes | memoryview, read: Callable[[Raw], T], refuse: Callable[[Raw, Exception], None]
) -> list[T]:
    """Return what `read` makes of each element of an array; `refuse` gets those that it cannot read, with its
    error. Raises one of `UNREADABLE` if the body is no array, and what `refuse` raises."""
    found: list[T] = []
    for piece in _elements.decode(body):
        try:
            found.append(read(piece))
        except UNREADABLE as error:
            refuse(piece, error)
    return found


def elements(array: Raw | memoryview) -> list[Raw]:
    """Return the elements of an array, none if they are too many or cannot be told apart."""
    if length(memoryview(array)) > MAX_FIELDS:
        return []
    try:
        return _elements.decode(array)
    except UNREADABLE:
        return []


def scalar(content: Raw) -> int | str | None:
    """Return one element by itself; None if it is neither a number nor a text."""
    try:
        return _scalar.decode(content)
    except UNREADABLE:
        return None
