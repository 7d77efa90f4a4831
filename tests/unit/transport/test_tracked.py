"""Objects of calls that the garbage collector looks at: each one costs every call in flight again and again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from weakref import ref

import pytest

import atasks
from atasks import CallTimeout
from atasks.options import TaskOptions
from atasks.tasks import atask
from atasks.testing import until
from atasks.transport.loopback import LoopbackTransport
from atasks.wire import VERSION, Call

WIDE = 500


async def tracked(call: Callable[[], Awaitable[object]]) -> float:
    """The objects for each of so many tasks that await this, once all of them wait."""
    before = len(gc.get_objects())
    tasks = [asyncio.ensure_future(call()) for _ in range(WIDE)]
    await asyncio.sleep(0.0)
    gc.collect()  # which finds that a tuple refers to nothing that it looks at
    found = len(gc.get_objects()) - before
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return found / WIDE


async def test_a_call_in_flight_adds_few_objects_to_its_task_and_future(namespace: str) -> None:
    """One coroutine at the caller, and the worker's `HeldCall`."""

    @atask(namespace=namespace)
    async def hang() -> None:
        await asyncio.Event().wait()

    async def bare() -> None:
        await asyncio.get_running_loop().create_future()

    async with atasks.serve("loopback:", namespace=namespace, concurrency=1):
        await tracked(hang)  # what is made once
        assert await tracked(hang) - await tracked(bare) < 2.2


async def test_an_await_that_failed_leaves_nothing_to_the_garbage_collector() -> None:
    transport = LoopbackTransport()
    await transport.connect()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(CallTimeout) as caught:  # nothing serves
            await transport.request(Call(VERSION, "1", "t", b"", "pickle", timeout_ms=10), TaskOptions())
        of_error = ref(caught.value)
        del caught
        await until(lambda: of_error() is None, "nobody keeps the error", within=5)
    finally:
        gc.enable()
        await transport.disconnect()
