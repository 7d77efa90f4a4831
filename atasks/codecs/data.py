"""Tells values that plain pickle takes as they are from those that a pickler has to look at."""

from __future__ import annotations

from typing import Final

__all__ = ["PROTOCOL", "is_data"]

PROTOCOL: Final = 5
"""That of pickles between processes of one version of Python."""
_SCALARS: Final = frozenset({bytearray, str, int, float, bool, type(None)})
_DATA: Final = _SCALARS | {bytes}
LARGE: Final = 64 * 2**10
"""Bytes of a value that pickle hands on without a copy, to a file."""


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
