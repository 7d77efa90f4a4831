"""One execution of a pipeline in one event loop: its tasks, and their end."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from atasks.pipeline.flow.channel import Channel, Inlet

if TYPE_CHECKING:
    from atasks.pipeline.flow.crew import Crew

__all__ = ["Engine"]

T = TypeVar("T")

_running: set[Engine] = set()
"""Those that have tasks, which asyncio does not hold. So what the garbage collector finds of a run is its
consumer, and that ends the run; tasks that it found would be torn apart."""


class Engine:
    """The tasks of a run. `outlet` is where its results come out, once it is set."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.outlet: Inlet | None = None
        self.closed = False
        self.crews: list[Crew] = []
        """One per stage, in order: for whoever watches."""
        self._tasks: set[asyncio.Future[Any]] = set()
        """The tasks that `aclose` waits for."""
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        """The futures that other threads wait for. They cannot rely on a loop that may close."""

    def add(self, crew: Crew) -> None:
        """Start a stage."""
        self.crews.append(crew)
        crew.start()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `aclose` waits for."""
        # Not made by the loop's task factory: an eager one would begin the task before this engine knows of it.
        task = asyncio.Task(coroutine, loop=self.loop)
        self._wait_for(task)
        return task

    def outlast(self, future: asyncio.Future[Any], seconds: float | None) -> None:
        """Have `aclose` wait for something that is no task, for so many seconds at most."""
        ended = self.loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        timer = None if seconds is None else self.loop.call_later(seconds, end)
        if timer is not None:
            ended.add_done_callback(lambda _: timer.cancel())
        future.add_done_callback(lambda _: end())
        self._wait_for(ended)

    def fail(self, error: BaseException) -> None:
        """End with this error, behind what has come out: nothing that is on its way goes on."""
        assert isinstance(self.outlet, Channel), "a stage puts its items into one"
        self.outlet.fail(error)

    def abort(self) -> None:
        """End everything at once; returns before it has ended. By the loop's thread only, once or more often."""
        if not self.closed:
            self.closed = True
            if self.outlet is not None:
                self.outlet.stop()
            for future in list(self._waiting):
                future.cancel()

    async def aclose(self) -> None:
        """End everything, and wait until it has: tasks, processes, and threads that do not run a function."""
        self.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call it in the event loop, from any thread. After the loop has closed it is not called."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return

    def run_from_thread(self, function: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the event loop, from another thread. It is cancelled when the run ends."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)

        async def run() -> None:
            try:
                future.set_result(await function())
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        def end(task: asyncio.Task[None], future: concurrent.futures.Future[T]) -> None:
            if future.cancelled():
                self.call_soon(task.cancel)

        def start() -> None:
            if self.closed:
                future.cancel()
            else:
                task = self.spawn(run())
                future.add_done_callback(partial(end, task))

        try:
            self.loop.call_soon_threadsafe(start)
        except RuntimeError:
            future.cancel()
        if self.closed:  # the engine may have closed since the loop's thread looked
            future.cancel()
        return future

    def report(self, error: BaseException, message: str) -> None:
        """Tell the event loop's exception handler of an error that no consumer can be given."""
        self.loop.call_exception_handler({"message": message, "exception": error})

    def _wait_for(self, task: asyncio.Future[Any]) -> None:
        if not self._tasks:
            _running.add(self)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            _running.discard(self)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self.report(error, "a task of a pipeline raised")
