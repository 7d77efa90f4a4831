"""The guard of an event loop: `sys.exit()` in a task that a call has started does not end it.

asyncio lets a SystemExit and a KeyboardInterrupt out of `run_forever`, past all that runs there. In the task of a
call the worker catches them. In a task or a callback that the call has started nobody does, and the loop would
end, with all other calls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from atasks.current import serving
from atasks.event_loop import run_only
from atasks.wire import describe
from atasks.worker.executors.default import DefaultExecutor

if TYPE_CHECKING:
    from types import TracebackType

    from atasks.worker.held_call import HeldCall
    from atasks.worker.worker import Worker

__all__ = ["LoopGuard"]

logger = logging.getLogger("atasks.worker")


_ATTRIBUTE: Final = "_atasks_guard"
DRIVERS: Final = ("run_forever", "run_until_complete")
"""The functions that call `_run_once`, turn after turn. Programs that nest event loops replace these."""


class LoopGuard:
    """Keeps an event loop running while workers serve in it, and tells when it is torn down.

    What leaves a task or a callback of a call is logged, and raised where that is awaited, as any exception is.
    What leaves the program's own ends the loop as ever; and loops that are not asyncio's own (uvloop) always end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Any = loop
        self._workers = 0
        self._run_once: Any = None
        self._stays = False
        """True if one call of `_guarded` may make all turns: nothing but asyncio's own `run_forever` calls it."""

    @classmethod
    def enter(cls, loop: asyncio.AbstractEventLoop) -> LoopGuard:
        """The guard of this event loop, for one worker more, until its `leave`."""
        # An attribute, because a dictionary of loops would keep them alive.
        guard: LoopGuard | None = getattr(loop, _ATTRIBUTE, None)
        if guard is None:
            guard = cls(loop)
            setattr(loop, _ATTRIBUTE, guard)
        guard._workers += 1
        if guard._workers == 1:
            guard._begin()
        return guard

    def leave(self) -> None:
        """One worker less."""
        self._workers -= 1
        if not self._workers:
            self._canary.cancel()
            if self._run_once is not None:
                del self._loop._run_once
            delattr(self._loop, _ATTRIBUTE)

    @property
    def is_torn_down(self) -> bool:
        """Return True if all tasks of the event loop were cancelled, as `asyncio.run` does when it ends."""
        return self._canary.done() or self._canary.cancelling() > 0

    def threads_of(self, worker: Worker) -> list[tuple[threading.Thread, HeldCall]]:
        """Those that run functions of calls of this worker, as `asyncio.to_thread` has it."""
        executor = getattr(self._loop, "_default_executor", None)
        if not isinstance(executor, DefaultExecutor):
            return []
        return [(thread, run) for thread, run in list(executor.running.items()) if run.worker is worker]

    def _begin(self) -> None:
        forever = _wait(self._loop.create_future())
        self._canary = asyncio.Task(forever, loop=self._loop, name="atasks canary")
        self._canary._log_destroy_pending = False  # type: ignore[attr-defined]  # a loop may just be closed
        if isinstance(self._loop, asyncio.BaseEventLoop):
            if self._loop._default_executor is None:  # type: ignore[attr-defined]
                self._loop.set_default_executor(DefaultExecutor())
            self._run_once = self._loop._run_once  # type: ignore[attr-defined]
            self._stays = all(
                getattr(type(self._loop), name) is getattr(asyncio.BaseEventLoop, name) for name in DRIVERS
            )
            self._loop._run_once = self._guarded  # type: ignore[attr-defined]

    def _guarded(self) -> None:
        """One turn of the event loop, or all until it stops or the last worker leaves: a turn more costs no call
        then. What an exception has left undone in a turn is done in the next one."""
        loop, run_once = self._loop, self._run_once
        while True:
            try:
                run_once()
            except (SystemExit, KeyboardInterrupt) as error:
                run = _run_of(error.__traceback__)
                if run is None:
                    raise
                logger.error(
                    "%s raised %s in a task or a callback that it had started: the worker goes on",
                    describe(run.call),
                    type(error).__name__,
                    exc_info=error,
                )
            if loop._stopping or not (self._stays and self._workers):
                return


async def _wait(future: asyncio.Future[None]) -> None:
    await future


def _run_of(traceback: TracebackType | None) -> HeldCall | None:
    """The call to which the callback belongs whose exception has left a turn of the event loop."""
    # The frames are those of `_guarded`, of asyncio's `_run_once`, and of what its `handle` has called: it may be
    # `run_only`, which has a handle of its own.
    turn = None if traceback is None else traceback.tb_next
    if turn is None or turn.tb_next is None:
        return None
    handle = turn.tb_frame.f_locals.get("handle")
    last = turn
    while last.tb_next is not None:
        last = last.tb_next
        if last.tb_frame.f_code is run_only.__code__:
            handle = last.tb_frame.f_locals["handle"]
    if last.tb_frame.f_code.co_name == "_on_sigint":  # of asyncio.Runner: the second Ctrl-C
        return None
    return handle._context.get(serving) if isinstance(handle, asyncio.Handle) else None  # type: ignore[attr-defined]
