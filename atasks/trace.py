"""The module `atasks.trace` of atasks 0.0.x: the text of an exception that came through atasks."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, NoReturn

__all__ = ["format_trace"]

_GONE = frozenset(
    {"AtaskHop", "AtaskStackTooDeep", "AtaskTrace", "FrameInfo", "attach", "current", "get_trace", "push_hop"}
)


def format_trace(ex: BaseException) -> str:
    """The traceback of an exception, through every process that it came through."""
    return "".join(traceback.format_exception(ex))


if not TYPE_CHECKING:  # a checker would take any name for one that is here

    def __getattr__(name: str) -> NoReturn:
        """Refuse a name that was here, with today's way."""
        if name in _GONE:
            raise ImportError(
                f"atasks.trace.{name} was in atasks 0.0.3: an exception has the worker's traceback as its "
                "__cause__, and current_call() knows the ids of a call and of the one that made it"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
