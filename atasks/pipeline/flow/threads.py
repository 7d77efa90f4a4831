"""Threads that belong to a stage's workers, one each."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Outcome", "Thread", "attempt", "drop", "report_failure"]

Outcome = tuple[bool, Any]
"""Success, and the value: True and the result, or False and the exception. A future cannot hold every
exception."""

_Job = tuple[asyncio.Future[Outcome], Callable[..., Any], tuple[Any, ...]]


class Thread:
    """Runs one function after the other for the event loop that it was made in; it starts with the first one.

    It is a daemon: a function that never returns keeps no program from ending.
    """

    def __init__(self, name: str, variables: contextvars.Context | None = None) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context() if variables is None else variables
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = False
        self._pending = 0
        self._alone = False
        """True once the loop has closed: results reach nobody, but every job that was submitted still has its
        turn."""

    @property
    def busy(self) -> bool:
        """The thread runs something, be it given up or not."""
        return self._pending > 0

    def variables(self) -> contextvars.Context:
        """A copy of the context variables as the functions that were run here have left them."""
        return self._context.copy()

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function in the thread; returns or raises what it does. If this is cancelled, the function
        runs on and its result is dropped."""
        future = self.submit(function, *args)
        try:
            returned, value = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                drop(future.result())  # the result came while the task was being cancelled
            raise
        if returned:
            return value
        try:
            raise value
        finally:
            del value  # no cycle through this frame

    def submit(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Outcome]:
        """Run the function after those that were submitted before."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._pending += 1
        if not self._started:
            self._started = True
            threading.Thread(target=self._context.run, args=(self._run,), name=self._name, daemon=True).start()
        self._jobs.put((future, function, args))
        return future

    def close(self) -> None:
        """End after what was submitted."""
        if self._started:
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            future, function, args = job
            outcome = attempt(function, *args)
            del job, function, args
            try:
                self._loop.call_soon_threadsafe(self._settle, future, outcome)
            except RuntimeError:
                self._alone = True
            del future, outcome

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get(block=not self._alone)
        except queue.Empty:
            return None

    def _settle(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        self._pending -= 1
        if not future.done():
            future.set_result(outcome)
        else:
            drop(outcome)


def report_failure(future: asyncio.Future[Outcome], message: str) -> None:
    """Tell the event loop's exception handler if a function that was submitted raises: nobody waits for it."""

    def report(future: asyncio.Future[Outcome]) -> None:
        if not future.cancelled() and not future.result()[0]:
            future.get_loop().call_exception_handler({"message": message, "exception": future.result()[1]})

    future.add_done_callback(report)


def attempt(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call the function, and return what it returns or raises."""
    try:
        return True, function(*args)
    except BaseException as error:
        return False, error


def drop(outcome: Outcome) -> None:
    """Nobody gets it: a coroutine will not be awaited, and should not complain of that."""
    if inspect.iscoroutine(outcome[1]):
        outcome[1].close()
