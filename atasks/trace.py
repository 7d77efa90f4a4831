"""The module `atasks.trace` of atasks 0.0.x: the text of an exception that came through atasks."""

from __future__ import annotations

import traceback

__all__ = ["format_trace"]


def format_trace(ex: BaseException) -> str:
    """The traceback of an exception, through every process that it came through."""
    return "".join(traceback.format_exception(ex))
