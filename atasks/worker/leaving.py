"""Leaving a process in time, whatever its threads do.

Python waits for threads when a process ends: those of every ThreadPoolExecutor, and others that are no daemons. A
thread cannot be stopped, so a worker that has drained would stay for as long as one runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from concurrent.futures import thread as pools
from types import FrameType
from typing import Final

__all__ = ["EXIT_SECONDS", "leave_if_blocked", "leave_within", "place_of"]

logger = logging.getLogger("atasks.worker")

EXIT_SECONDS: Final = 1.0
"""Seconds that the threads of a worker process get to end after its drain and its grace."""

BLOCKED_SECONDS: Final = 5.0
"""Seconds past the grace for which a call may block the event loop before the process ends without it."""


def leave_if_blocked(loop: asyncio.AbstractEventLoop, seconds: float, code: int) -> None:
    """End this process with this code where a call blocks the running event loop when these seconds are over:
    nothing can be cancelled then. Logs where the loop is blocked."""
    arguments = (loop, seconds, threading.current_thread(), code)
    threading.Thread(target=_watch, args=arguments, name="atasks blocked", daemon=True).start()


def leave_within(seconds: float, code: int) -> None:
    """End this process in so many seconds with this code, unless it has ended by then: log what runs still."""
    threading.Thread(target=_leave, args=(seconds, code), name="atasks leaving", daemon=True).start()


def place_of(thread: threading.Thread) -> str:
    """The line that this thread is at, for the log; empty if it has ended, or waits for something to do."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None or _is_idle(frame):
        return ""
    place = traceback.extract_stack(frame)[-1]
    return f"{place.filename}:{place.lineno} in {place.name}"


def _watch(loop: asyncio.AbstractEventLoop, seconds: float, runs: threading.Thread, code: int) -> None:
    time.sleep(seconds)
    turned = threading.Event()
    turned.set()
    while turned.wait(BLOCKED_SECONDS):
        time.sleep(EXIT_SECONDS)
        turned = threading.Event()
        try:
            loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # closed: the process ends by itself
            return
    logger.error("the event loop is blocked at %s: this process ends without what it runs", place_of(runs))
    _leave(0.0, code)


def _leave(seconds: float, code: int) -> None:
    time.sleep(seconds)
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread() and (place := place_of(thread)):
            logger.warning("thread %r runs still, at %s: this process ends without it", thread.name, place)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):  # None, broken or closed
            stream.flush()
    os._exit(code)


def _is_idle(frame: FrameType) -> bool:
    """Return True for a pool's thread that waits for work, and for asyncio's own that waits for a pool."""
    if frame.f_code is pools._worker.__code__:
        return True
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_code.co_name == "_do_shutdown" and outer.f_globals.get("__name__") == "asyncio.base_events":
            return True
        outer = outer.f_back
    return False
