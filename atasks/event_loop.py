"""Turns of the event loop: what else is to run in this one, and what need not wait for the next one."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Ready", "ends_turn", "ready_in", "run_only"]

Ready = deque[asyncio.Handle]
"""The callbacks of an event loop that are to run, those of this turn before those of the next one."""


def ready_in(loop: asyncio.AbstractEventLoop) -> Ready | None:
    """The callbacks that are to run in this loop; None: it is none of asyncio's own, and does not show them."""
    return getattr(loop, "_ready", None)


def ends_turn() -> bool:
    """Return True if this is a step of a task, and nothing else is to run in this turn of the event loop. False
    where that cannot be seen: other loops than asyncio's own do not show it, and a task factory may begin tasks
    within this step. A callback may have many messages to deal with."""
    loop = asyncio.get_running_loop()
    ready = ready_in(loop)
    alone = ready is not None and not ready and loop.get_task_factory() is None
    return alone and asyncio.current_task(loop) is not None


def run_only(ready: Ready) -> None:
    """Run the only callback that is to run in the next turn, in this one: each turn costs a call of the system,
    and what asyncio does around it. Only for the last callback of a turn, which has nothing left to do: asyncio
    has counted those that it runs in this turn, and would miss another one."""
    handle = ready.popleft()
    if not handle.cancelled():
        handle._run()
