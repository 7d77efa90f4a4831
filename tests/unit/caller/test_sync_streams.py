"""Remote streams in code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import atasks
from atasks import CallTimeout, NotConnected, pipeline
from atasks.definitions import StreamTask
from atasks.pipeline import from_iterable
from atasks.tasks import atask
from atasks.testing import PATIENCE, soon, until
from tests.unit.serving import idle, serve


@pytest.fixture
def closed() -> threading.Event:
    """Set when the generator at the worker has ended."""
    return threading.Event()


@pytest.fixture
def numbers(namespace: str, closed: threading.Event) -> StreamTask[[int], int]:
    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        try:
            for number in range(n):
                yield number
            if n == 13:
                raise KeyError(n)
        finally:
            closed.set()

    return numbers


def test_items_come_in_order_and_end(numbers: StreamTask[[int], int], namespace: str) -> None:
    with atasks.connect_sync(namespace=namespace):
        stream = numbers.sync(200)
        assert list(stream) == list(range(200))
        assert list(stream) == []


def test_an_exception_comes_after_the_items(numbers: StreamTask[[int], int], namespace: str) -> None:
    seen = []
    with atasks.connect_sync(namespace=namespace), pytest.raises(KeyError):
        for number in numbers.sync(13):
            seen.append(number)  # noqa: PERF402
    assert seen == list(range(13))


@pytest.mark.parametrize("how", ["break", "close", "with"])
def test_leaving_it_closes_the_generator(
    how: str, numbers: StreamTask[[int], int], namespace: str, closed: threading.Event
) -> None:
    with atasks.connect_sync(namespace=namespace):
        if how == "break":
            for _ in numbers.sync(1_000_000):
                break
        elif how == "close":
            stream = numbers.sync(1_000_000)
            assert next(stream) == 0
            stream.close()
            assert list(stream) == []
        else:
            with numbers.sync(1_000_000) as stream:
                assert next(stream) == 0
        assert closed.wait(PATIENCE)


def test_it_begins_at_the_first_item(numbers: StreamTask[[int], int], namespace: str) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        numbers.sync()  # type: ignore[call-arg]  # that is the point
    stream = numbers.sync(3)
    with pytest.raises(NotConnected, match=r"atasks\.connect_sync"):
        next(stream)
    with atasks.connect_sync(namespace=namespace):
        assert list(stream) == [0, 1, 2]


async def test_where_an_event_loop_runs(numbers: StreamTask[[int], int]) -> None:
    with pytest.raises(RuntimeError, match=r"blocks, and an event loop runs .* `async for` over the atask"):
        next(numbers.sync(3))


def test_a_deadline_holds(namespace: str) -> None:
    @atask(namespace=namespace)
    async def never() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    with atasks.connect_sync(namespace=namespace), pytest.raises(CallTimeout):
        list(never.options(timeout=0.1).sync())


async def test_a_function_in_a_thread_reads_streams_over_its_workers_connection(
    numbers: StreamTask[[int], int], namespace: str, closed: threading.Event
) -> None:
    @atask(namespace=namespace, executor="thread")
    def total(n: int) -> int:
        return sum(numbers.sync(n))

    @atask(namespace=namespace, executor="thread")
    def first() -> int:
        return next(numbers.sync(1_000_000))

    async with serve(namespace, concurrency=1, threads=1) as worker:
        assert await soon(total(300)) == 44850
        closed.clear()
        assert await soon(first()) == 0
        await until(closed.is_set)
        await until(lambda: idle(worker))


def test_atasks_are_stages_of_pipelines_that_are_iterated_by_a_plain_for(namespace: str) -> None:
    @atask(namespace=namespace)
    async def double(n: int) -> int:
        return 2 * n

    with atasks.connect_sync(namespace=namespace):
        assert list(from_iterable(range(20)) | pipeline.map(double, workers=4) | pipeline.ordered()) == [
            2 * n for n in range(20)
        ]


def test_two_threads_on_one_stream(namespace: str) -> None:
    asked, go = threading.Event(), threading.Event()

    @atask(namespace=namespace)
    async def slow() -> AsyncIterator[int]:
        asked.set()
        await asyncio.to_thread(go.wait, 30)
        yield 1

    with atasks.connect_sync(namespace=namespace):
        stream = slow.sync()
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(next, stream)
            assert asked.wait(30)
            with pytest.raises(RuntimeError, match=r"next\(\): this stream is being read by another thread"):
                next(stream)
            with pytest.raises(RuntimeError, match=r"close\(\): this stream is being read by another thread"):
                stream.close()
            with pytest.raises(LookupError), stream:  # what leaving it raises does not hide this
                raise LookupError
            go.set()
            assert reading.result() == 1
        assert list(stream) == []


def test_closing_it_after_the_connection_hides_nothing(numbers: StreamTask[[int], int], namespace: str) -> None:
    with atasks.connect_sync(namespace=namespace):
        stream = numbers.sync(10**6)
        assert next(stream) == 0
    stream.close()
    stream.close()
    with pytest.raises(LookupError), stream:
        raise LookupError
    with pytest.raises(NotConnected):
        next(stream)
    never = numbers.sync(3)
    never.close()
    with pytest.raises(LookupError), numbers.sync(3):
        raise LookupError


async def test_it_is_read_where_it_began(numbers: StreamTask[[int], int], namespace: str) -> None:
    """Begun by a thread in the block of one event loop, it is read on by a thread in no block, or another one."""
    loop = asyncio.get_running_loop()
    async with atasks.connect(namespace=namespace):
        stream = numbers.sync(4)
        assert await asyncio.to_thread(next, stream) == 0
        assert await loop.run_in_executor(None, next, stream) == 1

        def read_on() -> list[int]:
            with atasks.connect_sync(namespace=namespace):
                return list(stream)

        assert await asyncio.to_thread(read_on) == [2, 3]
