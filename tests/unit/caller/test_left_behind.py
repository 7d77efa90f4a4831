"""Calls and streams whose caller has left: what they raise is logged, and nobody waits for them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

import atasks
from atasks.tasks import atask
from atasks.testing import soon, until
from tests.unit.serving import happened, idle, serve


def errors(caplog: pytest.LogCaptureFixture) -> list[tuple[str, type[BaseException] | None]]:
    """The logged errors: the message without the call's id, and the exception."""
    return [
        (record.getMessage().split(",")[0], record.exc_info[0] if record.exc_info else None)
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_what_a_call_raises_when_it_was_cancelled(
    namespace: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    begun = asyncio.Event()

    @atask(namespace=namespace, name="work")
    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("the commit failed")

    async with serve(namespace) as worker:
        seconds = 1.0 if how == "timed out" else None  # time enough to begin
        call = asyncio.create_task(work.options(timeout=seconds)())
        await soon(begun.wait())
        if how == "cancelled":
            call.cancel()
        await asyncio.wait([call])
        await until(lambda: idle(worker))
    assert errors(caplog) == [("task 'work'", LookupError)]


async def test_what_a_stream_raises_when_it_was_left(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    @atask(namespace=namespace, name="numbers")
    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(1000):
                yield number
        finally:
            raise LookupError("the commit failed")

    async with serve(namespace) as worker:
        async for number in numbers():
            if number == 3:
                break
        await until(lambda: idle(worker))
    assert errors(caplog) == [("task 'numbers'", LookupError)]


async def test_what_a_thread_raises_when_nobody_awaits_it(
    namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun, end = threading.Event(), threading.Event()

    @atask(namespace=namespace, name="work", executor="thread")
    def work() -> None:
        begun.set()
        end.wait(30)
        raise LookupError("the commit failed")

    async with serve(namespace) as worker:
        call = asyncio.create_task(work())
        await happened(begun)
        call.cancel()
        await asyncio.wait([call])
        end.set()
        await until(lambda: idle(worker))
    assert errors(caplog) == [("task 'work'", LookupError)]


async def test_what_a_caller_hears_is_not_logged(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    @atask(namespace=namespace)
    async def work() -> None:
        raise LookupError("as ever")

    async with serve(namespace):
        with pytest.raises(LookupError):
            await work()
    assert errors(caplog) == []


@pytest.mark.parametrize("window", [1, 64])
async def test_a_stream_that_was_left_by_break_and_is_still_bound_keeps_no_worker(
    namespace: str, window: int
) -> None:
    closed: list[str] = []

    @atask(namespace=namespace)
    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            for number in range(10**9):
                yield number
        finally:
            closed.append(name)

    async def read(stream: AsyncIterator[int]) -> None:
        async for number in stream:
            if number == 3:
                break

    began = asyncio.get_running_loop().time()
    async with atasks.serve("loopback:", namespace=namespace, grace=30):
        mine, others = (numbers.options(window=window)(name) for name in ("mine", "others"))
        await read(mine)
        await asyncio.create_task(read(others))
    assert asyncio.get_running_loop().time() - began < 10
    assert sorted(closed) == ["mine", "others"]
    with pytest.raises(atasks.CallError):
        while True:
            await anext(mine)


async def test_a_stream_that_another_task_reads_ends_within_the_grace(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        for number in range(30):
            yield number

    async def read(begun: asyncio.Event) -> list[int]:
        found = []
        async for number in numbers.options(window=2)():
            found.append(number)
            begun.set()
            await asyncio.sleep(0.02)
        return found

    begun = asyncio.Event()
    async with atasks.serve("loopback:", namespace=namespace, grace=30):
        reading = asyncio.create_task(read(begun))
        await begun.wait()
    assert await reading == list(range(30))


async def test_a_paused_stream_yields_nothing_past_its_timeout(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        for number in range(10**9):
            yield number

    async with serve(namespace):
        for pause in (1.05, 1.1, 1.3):
            stream = numbers.options(timeout=1.0)()
            assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
            await asyncio.sleep(pause)
            with pytest.raises(atasks.CallTimeout):
                await soon(anext(stream))
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


async def test_a_stream_is_read_in_the_event_loop_in_which_it_began(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    async def elsewhere(stream: atasks.RemoteStream[int]) -> str:
        with pytest.raises(RuntimeError) as caught:
            await anext(stream)
        return str(caught.value)

    async with serve(namespace, concurrency=1) as worker:
        for window in (1, 64):
            stream = numbers.options(window=window)()
            assert await anext(stream) == 0
            message = await soon(asyncio.to_thread(asyncio.run, elsewhere(stream)))
            assert "was begun in another event loop" in message
            assert await anext(stream) == 1
            await soon(asyncio.to_thread(asyncio.run, stream.aclose()))
            await until(lambda: idle(worker))
