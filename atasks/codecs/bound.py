"""Objects that belong to one process, although a pickle would make a copy of them without a word."""

from __future__ import annotations

import enum
import io
from typing import Final

__all__ = ["reason"]

_LOOPS: Final = frozenset({"asyncio", "_asyncio", "anyio", "trio", "janus"})
"""Packages whose objects belong to an event loop; not so their exceptions, enumerations and paths."""


def reason(kind: type) -> str | None:
    """Why objects of the class cannot be themselves in another process; None for those that can, or whose pickling
    decides.

    A lock whose copy is another lock, a queue whose copy stays empty, an open text file that would arrive as what
    it held. Subclasses count.
    """
    if issubclass(kind, io.TextIOWrapper):
        return "an open file stays where it is; pass its path, or what is in it"
    if issubclass(kind, (BaseException, enum.Enum, type)) or hasattr(kind, "__fspath__"):
        return None
    if any(_package(base) in _LOOPS for base in kind.__mro__):
        return "it belongs to the event loop of this process, and a copy elsewhere would be another one"
    return None


def _package(kind: type) -> str:
    module: object = kind.__module__  # a class may set `__module__` to anything
    return module.partition(".")[0] if isinstance(module, str) else ""
