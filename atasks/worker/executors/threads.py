"""Blocking functions in threads.

A thread is no task: it cannot be cancelled. So a call that is cancelled, or times out, ends at once, and its
thread keeps the worker's slot until the function has returned. The awaits that the function makes by `.sync` are
cancelled meanwhile, and raise `CancelledError` in the thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import logging
import queue
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from atasks import forks
from atasks.current import calling_thread
from atasks.errors import TooManyParked
from atasks.wire import describe
from atasks.worker.held_call import HeldCall, Reason
from atasks.worker.slots import Slots

__all__ = ["ThreadCall", "ThreadPool"]

logger = logging.getLogger("atasks.worker")

T = TypeVar("T")

MAX_PARKED: Final = 1000
"""Threads of one worker that may wait in `.sync`."""

_Job = Callable[[], bool]


class State(enum.Enum):
    """The state of a function in a thread."""

    RUNNING = enum.auto()
    ABANDONED = enum.auto()
    """The function runs, and nobody awaits it."""
    ENDED = enum.auto()


class ThreadCall:
    """A call in a thread."""

    def __init__(self, threads: ThreadPool, run: HeldCall) -> None:
        self.threads = threads
        self.run = run
        self.loop = run.loop
        self.state = State.RUNNING
        self.returned: asyncio.Future[bool] = self.loop.create_future()
        """Result: True if the function returned, False if it raised."""
        self.value: Any = None
        """The value that the function returned, or the exception that it raised."""
        self.has_place = True
        self.awaits: set[asyncio.Task[Any]] = set()
        """The tasks in which the function waits for other calls."""
        self._slots = 0

    @property
    def has_ended(self) -> bool:
        """The function has returned or raised."""
        return self.state is State.ENDED

    def is_over(self) -> bool:
        """Return True if nobody awaits the function any more."""
        return self.state is not State.RUNNING

    async def wait_for(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await what `make` returns on behalf of the thread, which leaves its place to another one meanwhile."""
        if self.state is State.ABANDONED:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        if not self.awaits:
            self.threads.leave(self)
        self.awaits.add(task)
        try:
            return await make()
        finally:
            self.awaits.discard(task)
            if not self.awaits:
                await self.threads.come_back(self)

    def abandon(self) -> None:
        """Nobody awaits the function any more: it keeps its place and the worker's slot until it has returned."""
        if self.state is not State.RUNNING:
            return
        self.state = State.ABANDONED
        run = self.run
        self._slots, run.slots = run.slots, 0
        for task in self.awaits:
            task.cancel()
        level = logging.WARNING if run.reason is Reason.DRAINED else logging.INFO
        logger.log(
            level, "%s goes on in its thread, which cannot be stopped: its result is dropped", describe(run.call)
        )

    def end(self, returned: bool, value: Any) -> None:
        """The function has returned or raised."""
        if self.state is State.ABANDONED and isinstance(value, Exception) and not returned:
            logger.error(
                "%s raised in its thread after its await had ended, so no caller gets the exception",
                describe(self.run.call),
                exc_info=value,
            )
        self.state = State.ENDED
        if not self.returned.done():
            self.value = value
            self.returned.set_result(returned)
        if self._slots and not self.threads.closed:
            self.run.worker.slots.give(self._slots)


class ThreadPool:
    """Threads for the functions of one worker: at most as many run one at any time as there are `places`.

    One that waits in `.sync` does not count, so that functions which wait for functions cannot deadlock. The
    threads are daemons: a function that never returns does not keep the program from ending.
    """

    def __init__(self, places: Slots) -> None:
        self.size = places.size
        self.closed = False
        self._places = places
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = 0
        self._parked = 0

    async def call(self, run: HeldCall, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the function in a thread; returns what it returns, and raises what it raises.

        The place of the run becomes the place of the thread. If cancelled, the function goes on in its thread.
        """
        call = ThreadCall(self, run)
        run.place = None
        context = contextvars.copy_context()
        context.run(calling_thread.set, call)
        self._submit(_job(call, context, function, args, kwargs))
        try:
            returned = await call.returned
        except asyncio.CancelledError:
            call.abandon()
            raise
        value, call.value = call.value, None  # the thread's frames know the call: no circle may stay
        if returned:
            return value
        try:
            raise value
        finally:
            del value

    def leave(self, call: ThreadCall) -> None:
        """The function of this call begins to wait. Raises TooManyParked past the bound."""
        if self._parked >= MAX_PARKED:
            raise TooManyParked(
                f"{call.run.call.task} may not await another call: {self._parked} threads of this worker wait for "
                "calls, the most that may; make it a coroutine function, which needs no thread while it waits"
            )
        self._parked += 1
        if call.has_place:
            call.has_place = False
            self._places.give()

    async def come_back(self, call: ThreadCall) -> None:
        """All that it waited for has ended: take a place, ahead of new functions. An abandoned one needs none."""
        self._parked -= 1
        if not call.is_over():
            await self._places.retake()
            if call.is_over() or call.awaits or call.has_place:
                self._places.give()  # meanwhile the function has ended, waits again, or has another place
            else:
                call.has_place = True

    def close(self) -> None:
        """End the threads, but those that run a function: they end with it."""
        self.closed = True
        for _ in range(self._idle):
            self._jobs.put(None)
        self._idle = 0

    def _submit(self, job: _Job) -> None:
        if self._idle:
            self._idle -= 1
        else:
            threading.Thread(target=_work, args=(self._jobs,), name="atasks-thread", daemon=True).start()
        self._jobs.put(job)

    def finished(self, call: ThreadCall, returned: bool, value: Any) -> None:
        """The function of this call has ended; its thread waits for another one."""
        if self.closed or self._idle >= self.size:
            self._jobs.put(None)
        else:
            self._idle += 1
        if call.has_place:
            self._places.give()
        call.end(returned, value)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None and job():
        del job  # or it would keep arguments and results alive until the next one


def _job(call: ThreadCall, context: Context, function: Callable[..., Any], args: Any, kwargs: Any) -> _Job:
    def job() -> bool:
        nonlocal args, kwargs
        try:
            returned, value = True, context.run(function, *args, **kwargs)
        except BaseException as error:
            returned, value = False, error
        del args, kwargs
        if call.run.worker.is_forked:  # this thread is all that there is of the child
            forks.leave(None if returned else value)
        try:
            call.loop.call_soon_threadsafe(call.threads.finished, call, returned, value)
        except RuntimeError:  # the event loop is closed: nobody is left to hear of it, or to end this thread
            return False
        del value  # an exception leads to this frame
        return not call.threads.closed  # else the loop may end before it tells this thread to

    return job
