"""The event loop for threads that have none: runs that are iterated with `for` execute there."""

from __future__ import annotations

import asyncio
import os
import threading

from atasks.sync import connected_loop

__all__ = ["background_loop", "refuse_in_loop"]

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """Inside an `atasks.connect_sync` its loop, so that atasks can be stages; else one of this process's own,
    started now if there is none. Its thread is a daemon."""
    global _loop
    connected = connected_loop()
    if connected is not None:
        return connected
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="atasks-background", daemon=True).start()
        return _loop


def refuse_in_loop() -> None:
    """Raise a RuntimeError in a thread with a running event loop: blocking would stop all that runs there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("this thread has a running event loop, which this would block: write `async for`, or await")


def _after_fork() -> None:
    """A child has the loop of its parent, but not the thread that runs it."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
