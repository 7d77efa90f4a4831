"""The threads and processes of one worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from atasks.executors.processes import Processes
from atasks.executors.threads import Threads

if TYPE_CHECKING:
    from atasks.run import Run
    from atasks.tasks import BaseTask
    from atasks.wire import Reply

__all__ = ["Pools"]

MAX_DEFAULT_THREADS: Final = 100


class Pools:
    """What a worker runs blocking functions in. Threads and processes are started when calls need them.

    `threads` bounds the functions that run in threads (None: as many as calls run at once, at most 100), and
    `processes` those in processes (None: one for each processor, as far as calls may run at once).
    """

    def __init__(self, threads: int | None, processes: int | None, concurrency: int) -> None:
        self.threads = Threads(threads if threads is not None else min(concurrency, MAX_DEFAULT_THREADS))
        self.processes = Processes(processes if processes is not None else min(concurrency, _processors()))

    async def in_thread(self, run: Run, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What the function returns, or raises, in a thread."""
        return await self.threads.call(run, function, args, kwargs)

    async def in_process(self, run: Run, task: BaseTask[..., Any]) -> Reply:
        """The reply of a process that ran the call, or lost it."""
        return await self.processes.serve(run, task)

    async def close(self) -> None:
        """End the processes, and the threads but those that run a function still."""
        self.threads.close()
        await self.processes.close()


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
