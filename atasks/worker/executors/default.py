"""The default executor of an event loop in which a worker serves: what `asyncio.to_thread` runs functions in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from atasks.current import serving
from atasks.worker.held_call import HeldCall

__all__ = ["DefaultExecutor"]

_Job = tuple[HeldCall, "Future[Any]", Callable[[], Any]]


class DefaultExecutor(ThreadPoolExecutor):
    """The default executor of asyncio, except that the functions of calls run in threads of their own.

    These are daemons, and `shutdown` does not wait for them: a thread cannot be stopped, and one that a call has
    left behind must not keep a worker, or the program that serves, from ending.
    """

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")  # as asyncio's own
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started: list[threading.Thread] = []
        self._lock_calls = threading.Lock()
        self.running: dict[threading.Thread, HeldCall] = {}
        """The calls whose functions run now."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        run = serving.get()
        if run is None:
            return super().submit(function, *args, **kwargs)
        future: Future[Any] = Future()
        with self._lock_calls:
            if self._shutdown:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._jobs.put((run, future, lambda: function(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._started) < self._max_workers:
                name = f"asyncio-call_{len(self._started)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._started.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock_calls:
            for _ in self._started:
                self._jobs.put(None)
            self._started.clear()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _work(self) -> None:
        thread = threading.current_thread()
        while (job := self._jobs.get()) is not None:
            self.running[thread], future, function = job
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    del self.running[thread]  # first, because a callback of the result may look at once
                    future.set_exception(error)
                    del error
                else:
                    del self.running[thread]
                    future.set_result(result)
                    del result
            else:
                del self.running[thread]
            del job, future, function
            self._idle.release()
