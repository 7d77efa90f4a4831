"""The memory that a MessagePack document would take, estimated before it is decoded."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Final

import msgspec

from atasks.errors import DecodeError

__all__ = [
    "LARGE",
    "MAX_ARGUMENTS",
    "MAX_MEMORY",
    "check",
    "check_arguments",
    "check_part",
    "together",
    "uncollected",
]

MAX_MEMORY: Final = 512 * 2**20
"""Bytes that the arrays, maps and short texts of one document may take, apart from what is in them."""
MAX_TOGETHER: Final = 128 * 2**20
"""Such bytes of all values of an exception and those that it refers to, and of all context variables of a call."""
MAX_ARGUMENTS: Final = 1_000_000
"""Positional arguments of a call, and named ones: each is an object before it is decoded."""
LARGE: Final = 2**18
"""Bytes of a document from which on a collection of garbage among its objects would take longer than to make
them."""
_EACH: Final = 72
"""Bytes of an empty list, dict or short text, and of the reference to it."""

_SUSPECTS: Final = bytes([*range(0x80, 0xA4), *range(0xDC, 0xE0)])
"""First bytes of arrays, maps and texts of up to three bytes; other bytes may look like them."""
_OTHERS: Final = (
    rb"(?:[\x00-\x7f\xc0\xc2\xc3\xe0-\xff]|[\xcc\xd0].|[\xcd\xd1\xd4].{2}|\xd5.{3}|[\xca\xce\xd2].{4}|\xd6.{5}"
    rb"|[\xcb\xcf\xd3].{8}|\xd7.{9}|\xd8.{17}|"
    + b"|".join(b"\\x%02x.{%d}" % (0xA0 + length, length) for length in range(4, 32))
    + rb")++"
)
_ARRAYS: Final = rb"(?:[\x80-\x9f]|[\xdc\xde].{2}|[\xdd\xdf].{4}){1,65536}+"
_TEXTS: Final = rb"(?:\xa0|\xa1.|\xa2.{2}|\xa3.{3}){1,65536}+"
MAX_GUESSED: Final = 10_000
"""Arrays, maps and short texts that a part of a message may seem to have, before they are counted."""
MAX_STEPS: Final = 100_000
"""Turns from one kind of bytes to another that are followed, in a fraction of a second; more are a bomb."""
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes of the length of binary data, extensions and texts."""
_EXTENSIONS: Final = frozenset({0xC7, 0xC8, 0xC9})


def check(content: bytes) -> bool:
    """Return True if the document is large enough for `uncollected`. Raise DecodeError if its arrays, maps and
    short texts would take more than `MAX_MEMORY`.

    A document of a few megabytes costs nothing; a large one is looked through where its bytes could be so many.
    """
    if len(content) <= LARGE:
        return False
    if len(content) * _EACH <= MAX_MEMORY:
        return True
    if (len(content) - len(content.translate(None, _SUSPECTS))) * _EACH <= MAX_MEMORY:
        return True
    if _count(content, MAX_MEMORY // _EACH) * _EACH > MAX_MEMORY:
        raise _too_much(content, MAX_MEMORY)
    return True


def _too_much(content: bytes, most: int) -> DecodeError:
    return DecodeError(
        f"a payload of {len(content)} bytes would take more than {most} bytes of memory, in small "
        "arrays, maps and texts: pass a reference instead"
    )


_left: ContextVar[list[int] | None] = ContextVar("atasks_left", default=None)
"""The memory that is left for the documents of a message."""


@contextmanager
def together() -> Iterator[None]:
    """Have the documents that are checked by `check_part` in this block share `MAX_TOGETHER`: they come in one
    message, and are kept until all of them are decoded."""
    token = _left.set([MAX_TOGETHER])
    try:
        yield
    finally:
        _left.reset(token)


def check_part(content: bytes) -> None:
    """Do what `check` does, for a document that may be one of many."""
    left = _left.get()
    if left is None:
        check(content)
        return
    count = len(content) - len(content.translate(None, _SUSPECTS))
    if count > MAX_GUESSED:
        count = _count(content, left[0] // _EACH)
    if count * _EACH > left[0]:
        raise _too_much(content, left[0])
    left[0] -= count * _EACH


_uncollecting: Final = threading.Lock()
_blocks = 0
"""Blocks of `uncollected` that threads are in."""
_collects = False
"""True if garbage was collected before the first of them was entered."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage in this block, which makes many objects that are kept: each collection would look through
    all of them, while every call waits. The last thread to leave such a block has garbage collected again."""
    global _blocks, _collects
    with _uncollecting:
        if not _blocks:
            _collects = gc.isenabled()
            gc.disable()
        _blocks += 1
    try:
        yield
    finally:
        with _uncollecting:
            _blocks -= 1
            if _collects and not _blocks:
                gc.enable()


def check_arguments(*arguments: msgspec.Raw) -> None:
    """Raise DecodeError if the positional or the named arguments of a call say that they are too many."""
    count = max(_length(memoryview(each)) for each in arguments)
    if count > MAX_ARGUMENTS:
        raise DecodeError(f"a call with {count} arguments: at most {MAX_ARGUMENTS} are taken; pass a list instead")


def _length(data: memoryview) -> int:
    """The number of elements that an array or a map says it has; 0 for other things."""
    first = data[0]
    if 0x80 <= first <= 0x9F:
        return first & 0x0F
    return int.from_bytes(data[1 : 3 if first in (0xDC, 0xDE) else 5]) if 0xDC <= first <= 0xDF else 0


def _count(content: bytes, most: int) -> int:
    """Count arrays, maps and short texts, roughly; stops counting above `most`.

    What is no MessagePack is left to the decoder.
    """
    sizes = _sizes()
    at, end, count = 0, len(content), 0
    for _ in range(MAX_STEPS):
        start = at
        for pattern, size in sizes:
            found = pattern.match(content, at)
            if found is not None:
                length = found.end() - at
                count += 1 if length <= 5 and size else int(length * size)
                at = found.end()
        if at < end and content[at] in _LENGTHS:
            width = _LENGTHS[content[at]]
            at += 1 + width + int.from_bytes(content[at + 1 : at + 1 + width]) + (content[at] in _EXTENSIONS)
        if at == start or at >= end or count > most:
            return count
    return most + 1


@cache
def _sizes() -> list[tuple[re.Pattern[bytes], float]]:
    """The patterns of what follows each other, with the objects for each byte. Few programs need them: to compile
    them takes longer than to import this module."""
    return [(re.compile(kind, re.DOTALL), size) for kind, size in ((_OTHERS, 0.0), (_ARRAYS, 1.0), (_TEXTS, 0.5))]
