"""Tells values that plain pickle takes as they are from those that a pickler has to look at."""

from __future__ import annotations

import copyreg
import sys
from typing import Any, Final

__all__ = ["PROTOCOL", "is_data", "is_still"]

PROTOCOL: Final = 5
"""That of pickles between processes of one version of Python."""
_SCALARS: Final = frozenset({bytearray, str, int, float, bool, type(None)})
_DATA: Final = _SCALARS | {bytes}
LARGE: Final = 64 * 2**10
"""Bytes of a value that pickle hands on without a copy, to a file."""
MAX_STILL: Final = 64
MAX_STILL_DEPTH: Final = 4
"""Items of a container, and containers in containers, that are looked at: to look at more would cost a copy."""
NUMBERS: Final = frozenset("biufcSUmM")
BUILTIN_TYPES: Final = 24
"""The kinds of NumPy's items that are neither objects nor have parts, and how many types of them are its own."""


def is_data(obj: object) -> bool:
    """Return True for bytes, texts and numbers, and for arguments of a call that are all of that kind: they
    refer to nothing, and pickle's fast way is the right one. Not so for large bytes, of which it makes a copy that
    is larger still, and then a smaller one."""
    if type(obj) is not tuple:
        return type(obj) in _SCALARS or (type(obj) is bytes and len(obj) < LARGE)
    if len(obj) != 2:
        return False
    args, kwargs = obj
    if type(args) is not tuple or type(kwargs) is not dict:
        return False
    for value in args:  # most calls have one or two: `all` and `map` would cost more
        if type(value) not in _SCALARS and not (type(value) is bytes and len(value) < LARGE):
            return False
    return not kwargs or _DATA.issuperset(map(type, kwargs.values()))


def is_still(obj: Any, depth: int = 0) -> bool:
    """Return True if pickling the object runs no code of others: it is an array of numbers, or data, or a
    container with a few of those."""
    kind = type(obj)
    if kind in _DATA:
        return True
    if kind is tuple or kind is list or kind is dict:
        few = len(obj) <= MAX_STILL and depth < MAX_STILL_DEPTH
        if kind is dict:
            return few and all(type(key) in _DATA for key in obj) and is_still([*obj.values()], depth)
        return few and all(is_still(item, depth + 1) for item in obj)
    numpy = sys.modules.get("numpy")
    if numpy is None or kind is not numpy.ndarray or kind in copyreg.dispatch_table:
        return False
    items = obj.dtype
    return items.kind in NUMBERS and items.num < BUILTIN_TYPES and items.metadata is None
