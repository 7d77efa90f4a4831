"""Blocking functions in threads that call other atasks: parked meanwhile, and reached by cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from atasks import TooManyParked, current_call
from atasks.tasks import atask
from atasks.testing import soon, until
from atasks.worker.executors import threads
from tests.unit.serving import happened, idle, serve


async def test_functions_that_wait_for_functions_need_one_thread_to_run(namespace: str) -> None:
    @atask(namespace=namespace, executor="thread")
    def fib(n: int) -> int:
        return n if n < 2 else fib.sync(n - 1) + fib.sync(n - 2)

    async with serve(namespace, concurrency=1, threads=1) as worker:
        assert await soon(fib(9)) == 34
        await until(lambda: idle(worker))


async def test_a_nested_call_knows_its_parent_and_has_the_time_that_is_left(namespace: str) -> None:
    @atask(namespace=namespace)
    async def child() -> tuple[Any, ...]:
        call = current_call()
        return call.parent_id, call.root_id, call.deadline

    @atask(namespace=namespace, executor="thread")
    def parent() -> tuple[Any, ...]:
        call = current_call()
        return (call.id, call.root_id, call.deadline), child.options(timeout=1000).sync()

    async with serve(namespace, concurrency=1):
        (call_id, root, deadline), below = await soon(parent.options(timeout=60)())
    assert below[:2] == (call_id, root)
    assert abs(below[2] - deadline) < 10


async def test_cancellation_reaches_what_the_function_waits_for(namespace: str) -> None:
    began, cleaned, seen = asyncio.Event(), asyncio.Event(), []
    done = threading.Event()

    @atask(namespace=namespace)
    async def child() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    @atask(namespace=namespace, executor="thread")
    def parent() -> None:
        try:
            child.sync()
        except asyncio.CancelledError:
            seen.append("cancelled")
            try:
                child.sync()  # a call that nobody awaits makes no calls
            except asyncio.CancelledError:
                seen.append("again")
            raise
        finally:
            done.set()

    async with serve(namespace, concurrency=2, threads=1) as worker:
        task = asyncio.create_task(parent())
        await soon(began.wait())
        assert worker.parked == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        await soon(cleaned.wait())
        await happened(done)
        await until(lambda: idle(worker))
    assert seen == ["cancelled", "again"]


async def test_threads_of_the_function_itself_may_call_with_its_context(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    @atask(namespace=namespace, executor="thread")
    def parent() -> list[int]:
        results: dict[int, int] = {}

        def call(n: int) -> None:
            for _ in range(10):
                results[n] = double.sync(n)

        own = [threading.Thread(target=contextvars.copy_context().run, args=(call, n)) for n in range(4)]
        for thread in own:
            thread.start()
        call(4)
        for thread in own:
            thread.join()
        return [results[n] for n in range(5)]

    async with serve(namespace, concurrency=1, threads=1) as worker:
        assert await soon(parent()) == [0, 2, 4, 6, 8]
        await until(lambda: idle(worker))


async def test_more_threads_than_may_wait_is_an_error(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_PARKED", 5)

    @atask(namespace=namespace, executor="thread")
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + depth.sync(n - 1)

    async with serve(namespace, concurrency=1, threads=1) as worker:
        assert await soon(depth(5)) == 5
        with pytest.raises(TooManyParked, match="5 threads of this worker wait for calls"):
            await soon(depth(6))
        await until(lambda: idle(worker))
