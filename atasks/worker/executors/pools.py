"""The threads and processes of one worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from atasks.checks import validate_count
from atasks.worker.slots import Slots

if TYPE_CHECKING:
    from atasks.definitions import BaseTask
    from atasks.options import Executor
    from atasks.wire import Reply
    from atasks.worker.executors.processes import ProcessPool
    from atasks.worker.executors.threads import ThreadPool
    from atasks.worker.held_call import HeldCall

__all__ = ["Executors"]

MAX_DEFAULT_THREADS: Final = 100


class Executors:
    """The thread pool and the process pool of a worker, for blocking functions. Both start when calls need them.

    `threads` bounds the functions that run in threads (None: as many as calls run at once, at most 100), and
    `processes` those in processes (None: one for each processor, as far as calls may run at once). A call takes a
    *place* in its pool when it starts; `on_free` is called when places have become free.
    """

    def __init__(
        self,
        threads: int | None,
        processes: int | None,
        concurrency: int,
        on_free: Callable[[], None],
        process_setup: str | None = None,
    ) -> None:
        if threads is not None:
            validate_count("threads", threads)
        if processes is not None:
            validate_count("processes", processes)
        if process_setup is not None:
            from atasks.process_setup import check

            check(process_setup)
        self._process_setup = process_setup
        self._on_free = on_free
        self._closed = False
        self.places: dict[Executor, Slots] = {
            "thread": Slots(min(concurrency, MAX_DEFAULT_THREADS) if threads is None else threads, self._freed),
            "process": Slots(min(concurrency, _processors()) if processes is None else processes, self._freed),
        }

    @cached_property
    def threads(self) -> ThreadPool:
        """The threads. Their code is imported with the first one."""
        from atasks.worker.executors.threads import ThreadPool

        return ThreadPool(self.places["thread"])

    @cached_property
    def processes(self) -> ProcessPool:
        """The processes. Their code is imported with the first one."""
        from atasks.worker.executors.processes import ProcessPool

        return ProcessPool(self.places["process"].size, self._process_setup)

    def has_place(self, executor: Executor | None) -> bool:
        """Return True if a function could start in that executor now; on the event loop it always could."""
        return executor is None or self.places[executor].free > 0

    async def in_thread(self, run: HeldCall, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the function in a thread, for a run that has a place; returns and raises as the function does."""
        return await self.threads.call(run, function, args, kwargs)

    async def in_process(self, run: HeldCall, task: BaseTask[..., Any]) -> Reply:
        """The reply of a process that ran the call, or lost it. The run has a place."""
        return await self.processes.serve(run, task)

    async def close(self) -> None:
        """End the processes, and the threads but those that run a function still."""
        self._closed = True
        if "threads" in vars(self):
            self.threads.close()
        if "processes" in vars(self):
            await self.processes.close()

    def _freed(self) -> None:
        if not self._closed:
            self._on_free()


def _processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
