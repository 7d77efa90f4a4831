"""Support for tests: calls run in the thread and the database connection of the test.

    class OrderTests(AtasksMixin, TestCase):
        def test_send(self):
            self.assertEqual(send.sync(order.pk), "sent")

Inside of a transaction, as `TestCase` has one around each test, calls see what the test has written, and the other
way round.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import Context
from typing import Any, Final, TypeVar

from asgiref.sync import SyncToAsync, sync_to_async

from atasks import Transport, Worker, serve
from atasks.blocks import settle
from atasks.caller.background import attend
from atasks.contrib.django import middleware
from atasks.contrib.django.settings import read
from atasks.lazy import LazyConnection
from atasks.namespaces import namespace_item, namespaces

__all__ = ["AtasksMixin", "calls_in_test", "finish_calls"]

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, T]]

PATIENCE: Final = 10.0
"""Seconds for which the end of a test waits for calls that it has submitted."""


@contextmanager
def calls_in_test() -> Iterator[None]:
    """Inside this block calls of all namespaces of ATASKS run in this process, and use this thread's database
    connection.

    They run as over `loopback:`, through the codec and all else. Their functions run on an event loop; whatever of
    them is blocking, the ORM's asynchronous methods and functions with an executor included, runs in the thread
    that has entered the block, while it waits for a call. A call that this thread submits without an event loop
    has ended when `submit.sync`, `submit.soon` or the commit returns.

    Guarantees: nothing of it runs any more when the block ends, and it leaves no connection to the database open.
    """
    thread = TestThread()
    given = [namespace for namespace in read() if not namespace.problems]
    former = {namespace.name: namespace_item(namespace.name).lazy for namespace in given}
    connections = [InTest(namespace.name, thread) for namespace in given]
    processes = [task for name in former for task in _tasks(name) if task.executor == "process"]
    ident = threading.get_ident()
    for connection in connections:
        namespaces.register(connection.namespace, lazy=connection)
    for task in processes:
        task.executor = "thread"  # another process would use another database
    middleware.in_test = thread
    attend[ident] = lambda: _Ended(thread)
    try:
        yield
    finally:
        for connection in connections:
            connection.finish()
            connection.close()
        del attend[ident]
        middleware.in_test = None
        for task in processes:
            task.executor = "process"
        for name, lazy in former.items():
            namespaces.register(name, lazy=lazy)


def _tasks(namespace: str) -> list[Any]:
    return [item.task for item in namespace_item(namespace).registry.items.values()]


class AtasksMixin:
    """Has the tests of a class, and its `setUpTestData`, call atasks in their own thread and connection.

    It comes before Django's class: `class OrderTests(AtasksMixin, TestCase)`. See `calls_in_test`.
    """

    @classmethod
    def setUpClass(cls) -> None:
        cls.enterClassContext(calls_in_test())  # type: ignore[attr-defined]  # of unittest.TestCase
        super().setUpClass()  # type: ignore[misc]

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.addCleanup(finish_calls)  # type: ignore[attr-defined]


def finish_calls() -> None:
    """Return when the calls that were submitted in this test have ended, or after 10 s."""
    for namespace in read():
        lazy = namespace_item(namespace.name).lazy
        if isinstance(lazy, InTest):
            lazy.finish()


class TestThread(Executor):
    """Runs what blocks in the thread of a test, while that waits for a call."""

    __test__ = False  # pytest would take it for tests

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        """Event loops in which a test, or a view, awaits a call."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have the thread run the function."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            notes = vars(SyncToAsync.threadlocal)  # asgiref's, of the event loop that this thread works for
            before = dict(notes)
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
            finally:
                notes.clear()
                notes.update(before)

        self._work.put(run)
        if loops := self.loops:  # asgiref knows the thread that waits for this event loop
            Context().run(asyncio.run_coroutine_threadsafe, sync_to_async(self._drain)(), loops[-1])
        return future

    def work(self, ended: threading.Event, seconds: float | None) -> bool:
        """Run what is submitted until the event is set, or for so many seconds; True: it is set."""
        until = None if seconds is None else time.monotonic() + seconds
        while not ended.is_set():
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                run = self._work.get(timeout=left)
            except queue.Empty:
                break
            if run is not None:
                run()
        return ended.is_set()

    def _drain(self) -> None:
        """Run what waits, in the thread."""
        while True:
            try:
                run = self._work.get_nowait()
            except queue.Empty:
                return
            if run is not None:
                run()

    def wake(self) -> None:
        """Have the thread look at its event."""
        self._work.put(None)


class _Ended(threading.Event):
    """The end of a call for which the thread of a test waits."""

    def __init__(self, thread: TestThread) -> None:
        super().__init__()
        self._thread = thread

    def set(self) -> None:
        super().set()
        self._thread.wake()

    def wait(self, timeout: float | None = None) -> bool:
        return self._thread.work(self, timeout)


class InTest(LazyConnection):
    """The connection of a test: a worker in the background, whose blocking code runs in the test's thread."""

    def __init__(self, namespace: str, thread: TestThread) -> None:
        super().__init__("loopback:", namespace, {})
        self._thread = thread
        self._owner = threading.get_ident()
        self._worker: Worker | None = None
        self._depth = 0

    async def enter(self) -> tuple[AbstractAsyncContextManager[Any], Transport]:
        """Begin to serve, and return the block and its transport."""
        manager = serve("loopback:", namespace=self.namespace, grace=0)
        self._worker = await manager.__aenter__()
        return manager, self._worker.transport

    async def forward(self, make: Make[T]) -> T:
        """Run it, and let the test's thread work meanwhile, by way of this event loop."""
        loop = asyncio.get_running_loop()
        self._thread.loops.append(loop)
        try:
            return await super().forward(make)
        finally:
            self._thread.loops.remove(loop)

    def run(self, make: Make[T]) -> T:
        """Run it; in the test's own code, return when what it has submitted has ended too."""
        if threading.get_ident() != self._owner:
            return super().run(make)
        self._depth += 1
        try:
            result = super().run(make)
        finally:
            self._depth -= 1
        self.finish()
        return result

    def handed_over(self) -> None:
        """Return when what was submitted has ended."""
        if threading.get_ident() == self._owner and asyncio._get_running_loop() is None:
            self.finish()

    def finish(self) -> None:
        """Return when all calls have ended, or after 10 s. Does nothing within a call."""
        if self._place is None or self._depth:
            return
        self._depth += 1
        try:
            super().run(self._idle)
        finally:
            self._depth -= 1

    async def _idle(self) -> None:
        await settle()
        until = time.monotonic() + PATIENCE
        while self._worker is not None and self._worker.held and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # a worker tells nobody
