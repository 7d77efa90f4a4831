"""The places in the code that the tasks of a call are at: their coroutines, and what each waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from atasks.current import serving
from atasks.tracking.queries import Chain

if TYPE_CHECKING:
    from atasks.worker.held_call import HeldCall

__all__ = ["chains"]

MAX_FRAMES: Final = 64
MAX_TASKS: Final = 100
_ROOT: Final = __file__.rpartition("tracking")[0]
INNER: Final = tuple(_ROOT + part for part in ("worker/", "caller/", "transport/", "router.py"))
"""Files whose frames are not shown: a call is between them."""


def chains(run: HeldCall) -> list[Chain]:
    """The tasks of a call that runs, its own first; those of others that it has started follow, where Python tells
    (3.12 and newer), or where the first one waits for them. Its variables are not shown."""
    if run.task is None:
        return []
    seen: set[asyncio.Task[Any]] = set()
    found = [_chain(run.task, seen)]
    others = (task for task in asyncio.all_tasks(run.loop) if _serves(task) is run)
    found += [_chain(task, seen) for task in others if task not in seen and len(seen) < MAX_TASKS]
    return found


def _chain(task: asyncio.Task[Any], seen: set[asyncio.Task[Any]]) -> Chain:
    seen.add(task)
    frames: list[str] = []
    step: Any = task.get_coro()
    while step is not None and len(frames) < MAX_FRAMES:
        frame, inner = _step(step)
        if frame is not None and not frame.f_code.co_filename.startswith(INNER):
            frames.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        step = inner
    waiter: Any = getattr(task, "_fut_waiter", None)
    children = [_chain(child, seen) for child in _children(waiter) if child not in seen and len(seen) < MAX_TASKS]
    return Chain(_title(task), frames, _name(waiter), children)


def _title(task: asyncio.Task[Any]) -> str:
    """The name of a task; with that of its coroutine, which is the atask of a call, where nobody has named it."""
    name = task.get_name()
    coroutine: str = getattr(task.get_coro(), "__qualname__", "")
    return f"{name} of {coroutine}" if coroutine and name.startswith("Task-") else name


def _step(awaitable: Any) -> tuple[Any, Any]:
    """The frame of something that is awaited, and what it awaits itself."""
    for kind in ("cr", "gi", "ag"):
        if hasattr(awaitable, f"{kind}_frame"):
            inner = getattr(awaitable, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
            return getattr(awaitable, f"{kind}_frame"), inner
    return None, None


def _children(waiter: Any) -> list[asyncio.Task[Any]]:
    """The tasks that a future stands for."""
    if isinstance(waiter, asyncio.Task):
        return [waiter]
    found = getattr(waiter, "_children", ())
    return [child for child in found if isinstance(child, asyncio.Task)]


def _name(waiter: Any) -> str:
    if waiter is None:
        return "its turn in the event loop"
    if isinstance(waiter, asyncio.Task):
        return f"task {_title(waiter)}"
    return "several tasks" if getattr(waiter, "_children", ()) else "a future"


def _serves(task: asyncio.Task[Any]) -> HeldCall | None:
    get: Callable[[], Any] | None = getattr(task, "get_context", None)  # Python 3.12
    return None if get is None else get().get(serving)
