"""Remote streams: their items, the window, and the slots."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atasks import NotSupported, current_call
from atasks.testing.cases import Cases
from atasks.testing.site import PATIENCE, Site, soon
from atasks.wire import STREAM_BYTES

__all__ = ["StreamCases", "moves_streams", "read", "settle"]


async def moves_streams(site: Site) -> bool:
    """Return True if the caller's transport moves streams; if it does not, check that it says so."""
    if "streams" in site.caller.supports:
        return True

    @site.atask
    async def refused() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(NotSupported, match="streams"):
        await soon(anext(refused()))
    return False


async def read(stream: AsyncIterator[Any], into: list[Any]) -> None:
    """Append every item to a list, in time."""
    async with asyncio.timeout(PATIENCE):
        async for item in stream:
            into.append(item)  # noqa: PERF401  # what came before an exception counts


async def settle(values: list[Any]) -> int:
    """Return the number of values once no more come: those that can come do so within a fraction of the time
    waited."""
    count = -1
    while count != len(values):
        count = len(values)
        await asyncio.sleep(0.3)
    return count


class StreamCases(Cases):
    """Items come in order, each once, and the worker runs at most a window ahead."""

    async def test_items_come_in_order(self, site: Site) -> None:
        @site.atask
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        async with site.open():
            if not await moves_streams(site):
                return
            for count in (0, 1, 63, 64, 65, 1000):
                assert await soon(_all(numbers(count))) == list(range(count))
            assert await soon(_all(numbers.options(window=1)(20))) == list(range(20))
            assert await soon(_all(numbers.options(window=1000)(3000))) == list(range(3000))
            assert [item async for item in numbers.local(3)] == [0, 1, 2]
            kinds: list[Any] = [numbers, numbers.options(window=1)]
            assert [inspect.isasyncgenfunction(kind) for kind in kinds] == [True, True]
            assert [inspect.iscoroutinefunction(kind) for kind in kinds] == [False, False]

    async def test_items_of_a_slow_generator_come_as_they_are_yielded(self, site: Site) -> None:
        gate = asyncio.Semaphore(0)

        @site.atask
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number
                await gate.acquire()

        async with site.open():
            if not await moves_streams(site):
                return
            stream = numbers(5)
            for expected in range(5):
                assert await soon(anext(stream)) == expected
                gate.release()
            with pytest.raises(StopAsyncIteration):
                await soon(anext(stream))

    async def test_any_value_is_an_item(self, site: Site) -> None:
        values = [None, 0, "", b"", [1, {"a": None}], "ü" * 1000]

        @site.atask
        async def echo(items: list[Any]) -> AsyncIterator[Any]:
            for item in items:
                yield item

        async with site.open():
            if not await moves_streams(site):
                return
            assert await soon(_all(echo(values))) == values

    async def test_nothing_runs_before_the_first_item_is_asked_for(self, site: Site) -> None:
        started = []

        @site.atask
        async def numbers(n: int) -> AsyncIterator[int]:
            started.append(n)
            yield n

        async with site.open():
            if not await moves_streams(site):
                return
            with pytest.raises(TypeError, match="argument"):
                numbers()  # type: ignore[call-arg]
            closed, begun = numbers(1), numbers(2)
            await closed.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(closed)
            assert await soon(anext(begun)) == 2
            assert started == [2]
            await begun.aclose()

    async def test_paused_consumer_stops_the_producer_within_the_window(self, site: Site) -> None:
        yielded: list[int] = []

        @site.atask(window=10)
        async def numbers() -> AsyncIterator[int]:
            for number in range(1000):
                yielded.append(number)
                yield number

        async with site.open():
            if not await moves_streams(site):
                return
            async with numbers() as stream:
                for taken in range(1, 40):
                    assert await soon(anext(stream)) == taken - 1
                    if taken % 13 == 0:
                        # The one that is counted before it is yielded is the one that waits for room.
                        assert taken <= await settle(yielded) <= taken + 10 + 1
            assert await settle(yielded) < 60

    async def test_a_window_that_is_not_given_grows_for_a_fast_consumer(self, site: Site) -> None:
        yielded: list[int] = []

        @site.atask
        async def numbers() -> AsyncIterator[int]:
            for number in range(20_000):
                yielded.append(number)
                yield number

        async with site.open():
            if not await moves_streams(site):
                return
            async with numbers() as stream:
                assert await soon(anext(stream)) == 0
                assert await settle(yielded) <= 1 + 64 + 1
                for number in range(1, 10_000):
                    assert await soon(anext(stream)) == number
                assert 10_000 + 64 < await settle(yielded) <= 10_000 + 1024 + 1

    async def test_window_counts_bytes_too(self, site: Site) -> None:
        yielded: list[int] = []

        @site.atask(window=1000)
        async def blocks(size: int) -> AsyncIterator[bytes]:
            for number in range(100):
                yielded.append(number)
                yield bytes(size)

        async with site.open():
            if not await moves_streams(site):
                return
            size = STREAM_BYTES // 4
            stream = blocks(size)
            for taken in (1, 2, 3):
                assert len(await soon(anext(stream))) == size
                assert taken <= await settle(yielded) <= taken + 5
            await stream.aclose()

    async def test_items_larger_than_the_window(self, site: Site) -> None:
        @site.atask
        async def blocks(sizes: list[int]) -> AsyncIterator[bytes]:
            for number, size in enumerate(sizes):
                yield bytes([number]) * size

        async with site.open():
            if not await moves_streams(site):
                return
            sizes = [1, 3 * STREAM_BYTES, 10, STREAM_BYTES, 2 * STREAM_BYTES, 5]
            items = await soon(_all(blocks(sizes)))
            assert items == [bytes([number]) * size for number, size in enumerate(sizes)]

    async def test_many_streams_at_once(self, site: Site) -> None:
        @site.atask
        async def numbers(first: int, n: int) -> AsyncIterator[int]:
            for number in range(first, first + n):
                yield number
                if number % 7 == 0:
                    await asyncio.sleep(0)

        async with site.open(concurrency=5):
            if not await moves_streams(site):
                return
            streams = [_all(numbers.options(window=1 + n % 20)(1000 * n, 150)) for n in range(60)]
            found = await soon(asyncio.gather(*streams))
            assert found == [list(range(1000 * n, 1000 * n + 150)) for n in range(60)]

    async def test_paused_producers_hold_no_slot(self, site: Site) -> None:
        @site.atask(window=2)
        async def numbers() -> AsyncIterator[int]:
            for number in range(6):
                yield number

        @site.atask
        async def double(n: int) -> int:
            return 2 * n

        async with site.open(concurrency=1):
            if not await moves_streams(site):
                return
            streams = [numbers() for _ in range(5)]
            assert [await soon(anext(stream)) for stream in streams] == [0] * 5
            assert await soon(double(4)) == 8
            assert await soon(asyncio.gather(*map(_all, streams))) == [[1, 2, 3, 4, 5]] * 5

    async def test_stream_consumed_by_an_atask_in_the_only_slot(self, site: Site) -> None:
        @site.atask
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                await asyncio.sleep(0)
                yield number

        @site.atask
        async def total(n: int) -> int:
            found = 0
            async for number in numbers.options(window=3)(n):
                found += number
            return found

        async with site.open(concurrency=1):
            if not await moves_streams(site):
                return
            assert await soon(asyncio.gather(*(total(n) for n in range(20)))) == [
                n * (n - 1) // 2 for n in range(20)
            ]

    async def test_streams_of_streams_in_one_slot(self, site: Site) -> None:
        @site.atask(window=4)
        async def countdown(n: int) -> AsyncIterator[int]:
            yield n
            if n:
                async for number in countdown(n - 1):
                    yield number

        async with site.open(concurrency=1):
            if not await moves_streams(site):
                return
            assert await soon(_all(countdown(20))) == list(range(20, -1, -1))

    async def test_atasks_awaited_by_a_stream_in_one_slot(self, site: Site) -> None:
        @site.atask
        async def square(n: int) -> int:
            return n * n

        @site.atask
        async def squares(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield await square(number)

        async with site.open(concurrency=1):
            if not await moves_streams(site):
                return
            assert await soon(_all(squares(10))) == [n * n for n in range(10)]

    async def test_stream_knows_its_call(self, site: Site) -> None:
        @site.atask
        async def known() -> AsyncIterator[tuple[str | None, str | None, int | None]]:
            for _ in range(2):
                call = current_call()
                yield call.id, call.parent_id, call.attempt

        @site.atask
        async def outer() -> tuple[str | None, list[Any]]:
            return current_call().id, await _all(known())

        async with site.open():
            if not await moves_streams(site):
                return
            (mine, mine_again), (parent, (its, its_again)) = await soon(_all(known())), await soon(outer())
            assert tuple(mine) == tuple(mine_again)
            assert tuple(mine)[1:] == (None, 1)
            assert tuple(its) == tuple(its_again)
            assert tuple(its)[1:] == (parent, 1)
            assert len({mine[0], its[0], parent}) == 3


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]
