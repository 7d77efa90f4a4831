"""Cases for the ways in which remote streams end, from either side."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atasks import (
    CallCancelled,
    CallError,
    CallTimeout,
    EncodeError,
    NotSupported,
    NoWorker,
    PayloadTooLarge,
    RemoteTraceback,
    TooManyParked,
    UnknownTask,
)
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon
from atasks.testing.streams import moves_streams, read

__all__ = ["StreamEndingCases"]


class StreamEndingCases(Cases):
    """Items first, then how the stream ended; and whoever leaves a stream closes its generator."""

    async def test_exception_comes_after_the_items(self, site: Site) -> None:
        @site.atask
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number
            raise LookupError("no more", n)

        async with site.open():
            if not await moves_streams(site):
                return
            for count in (0, 5, 200):
                items: list[int] = []
                stream = numbers(count)
                with pytest.raises(LookupError) as caught:
                    await read(stream, items)
                assert items == list(range(count))
                assert type(caught.value) is LookupError
                assert caught.value.args == ("no more", count)
                assert isinstance(caught.value.__cause__, RemoteTraceback)
                assert "numbers" in str(caught.value.__cause__)
                with pytest.raises(StopAsyncIteration):  # as a local generator: it is over
                    await soon(anext(stream))

    async def test_leaving_the_loop_closes_the_generator(self, site: Site) -> None:
        closed = asyncio.Queue[str]()

        @site.atask(window=4)
        async def numbers(how: str) -> AsyncIterator[int]:
            try:
                for number in range(1_000_000):
                    yield number
            finally:
                await asyncio.sleep(0)  # a generator that is closed may clean up with awaits
                closed.put_nowait(how)

        async def leave(how: str) -> None:
            async for number in numbers(how):
                if number == 10:
                    match how:
                        case "break":
                            break
                        case "return":
                            return
                        case "raise":
                            raise ZeroDivisionError

        async with site.open():
            if not await moves_streams(site):
                return
            for how in ("break", "return", "raise"):
                try:
                    await soon(leave(how))
                except ZeroDivisionError as error:
                    del error
                assert await soon(closed.get()) == how
            stream = numbers("aclose")
            assert await soon(anext(stream)) == 0
            await stream.aclose()
            await stream.aclose()
            assert await soon(closed.get()) == "aclose"
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            async with numbers("with") as entered:
                assert await soon(anext(entered)) == 0
            assert await soon(closed.get()) == "with"

    async def test_stream_that_is_thrown_away_closes_the_generator(self, site: Site) -> None:
        closed = asyncio.Event()

        @site.atask
        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(1_000_000):
                    yield number
            finally:
                closed.set()

        async with site.open():
            if not await moves_streams(site):
                return
            stream = numbers()
            assert await soon(anext(stream)) == 0
            circle: list[Any] = [stream]
            circle.append(circle)  # freed by the collector only
            del stream, circle
            gc.collect()
            await soon(closed.wait())

    async def test_cancelling_the_consumer_closes_the_generator(self, site: Site) -> None:
        waiting, ended = asyncio.Event(), asyncio.Queue[str]()

        @site.atask
        async def inner() -> None:
            try:
                waiting.set()
                await asyncio.Event().wait()
            finally:
                ended.put_nowait("inner")

        @site.atask
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
                await inner()
            finally:
                ended.put_nowait("numbers")

        @site.atask
        async def outer() -> int:
            try:
                return len([number async for number in numbers()])
            finally:
                ended.put_nowait("outer")

        async with site.open(concurrency=1):
            if not await moves_streams(site):
                return
            task = asyncio.create_task(outer())
            await soon(waiting.wait())
            task.cancel()
            await asyncio.wait([task], timeout=30)
            assert task.cancelled()
            assert {await soon(ended.get()) for _ in range(3)} == {"inner", "numbers", "outer"}

    async def test_timeout_is_for_the_whole_stream(self, site: Site) -> None:
        closed = asyncio.Event()

        @site.atask(timeout=1.5, window=10)  # time enough to start
        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(1_000_000):
                    yield number
            finally:
                closed.set()

        async def read_slowly(stream: AsyncIterator[int]) -> None:
            async for _ in stream:
                await asyncio.sleep(0.01)

        async with site.open():
            if not await moves_streams(site):
                return
            stream = numbers()
            assert await soon(anext(stream)) == 0
            with pytest.raises(CallTimeout, match="numbers"):
                await soon(read_slowly(stream))
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await soon(closed.wait())

    async def test_stream_that_has_ended_in_time_does_not_time_out(self, site: Site) -> None:
        @site.atask(timeout=2)
        async def numbers() -> AsyncIterator[int]:
            for number in range(3):
                yield number

        async with site.open():
            if not await moves_streams(site):
                return
            items = []
            async with asyncio.timeout(30):
                async for number in numbers():
                    items.append(number)
                    await asyncio.sleep(0.8)
            assert items == [0, 1, 2]

    async def test_stream_has_no_more_time_than_the_call_that_reads_it(self, site: Site) -> None:
        closed = asyncio.Event()

        @site.atask
        async def forever() -> AsyncIterator[int]:
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                closed.set()

        @site.atask
        async def read() -> None:
            async for _ in forever():
                pass

        async with site.open():
            if not await moves_streams(site):
                return
            with pytest.raises(CallTimeout, match="read"):
                await soon(read.options(timeout=2)())
            await soon(closed.wait())

    async def test_items_that_cannot_be_sent(self, site: Site) -> None:
        closed = asyncio.Queue[str]()

        @site.atask
        async def values(how: str, size: int) -> AsyncIterator[Any]:
            try:
                yield "first"
                yield bytes(size) if how == "large" else sys._getframe()
                yield "third"
            finally:
                closed.put_nowait(how)

        async with site.open():
            if not await moves_streams(site):
                return
            for how, error in (("large", PayloadTooLarge), ("frame", EncodeError)):
                stream = values(how, site.caller.max_payload)
                assert await soon(anext(stream)) == "first"
                with pytest.raises(error, match=r"item 1 of .*values"):
                    await soon(anext(stream))
                assert await soon(closed.get()) == how

    async def test_stream_cancelled_at_the_worker(self, site: Site) -> None:
        @site.atask
        async def leave() -> AsyncIterator[int]:
            yield 1
            raise asyncio.CancelledError

        async with site.open():
            if not await moves_streams(site):
                return
            stream = leave()
            assert await soon(anext(stream)) == 1
            with pytest.raises(CallCancelled, match="leave"):
                await soon(anext(stream))

    async def test_generator_that_suppresses_its_cancellation_is_stopped(self, site: Site) -> None:
        stubborn, closed = asyncio.Event(), asyncio.Event()

        @site.atask(window=5)
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 0
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    stubborn.set()
                for number in range(1_000_000):
                    yield number
            finally:
                closed.set()

        async with site.open(concurrency=1):
            if not await moves_streams(site):
                return
            async with numbers() as stream:
                assert await soon(anext(stream)) == 0
            await soon(stubborn.wait())
            await soon(closed.wait())

    async def test_one_reader_at_a_time(self, site: Site) -> None:
        @site.atask
        async def forever() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        async with site.open():
            if not await moves_streams(site):
                return
            stream = forever()
            assert await soon(anext(stream)) == 1
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(stream)
            with pytest.raises(RuntimeError, match="another task"):
                await stream.aclose()
            reader.cancel()
            await asyncio.wait([reader], timeout=30)
            assert reader.cancelled()

    async def test_each_side_must_take_it_for_a_stream(self, site: Site) -> None:
        @site.atask(name="numbers")
        async def numbers() -> AsyncIterator[int]:
            yield 1

        @site.atask(name="number")
        async def number() -> int:
            return 1

        async with site.open():
            if not await moves_streams(site):
                return
            assert await soon(anext(site.router.stream("numbers"))) == 1
            with pytest.raises(CallError, match="numbers is a stream"):
                await soon(site.router.send_request("numbers"))
            with pytest.raises(CallError, match="number is not a stream"):
                await soon(anext(site.router.stream("number")))
            with pytest.raises(UnknownTask, match=r"'nombers'.*'numbers'"):
                await soon(anext(site.router.stream("nombers")))

    async def test_stream_without_a_worker(self, site: Site) -> None:
        @site.atask
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        async with site.open(serve=False):
            if not await moves_streams(site):
                return
            refused = NoWorker if "no_worker" in site.caller.supports else NotSupported
            with pytest.raises(refused):
                await soon(anext(numbers.options(on_no_worker="error")(3)))
            stream = numbers(3)
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            await site.serve()
            assert await soon(first) == 0
            assert [number async for number in stream] == [1, 2]

    async def test_at_most_once_stream(self, site: Site) -> None:
        @site.atask(delivery="at_most_once")
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        async with site.open():
            if not await moves_streams(site):
                return
            if "at_most_once" in site.caller.supports:
                assert [number async for number in numbers(100)] == list(range(100))
            else:
                with pytest.raises(NotSupported, match="at-most-once"):
                    await soon(anext(numbers(1)))

    async def test_too_many_parked_streams(self, site: Site) -> None:
        @site.atask(window=4)
        async def numbers() -> AsyncIterator[int]:
            for number in range(10):
                yield number

        async with site.open(max_parked=1):
            if not await moves_streams(site):
                return
            first, second = numbers(), numbers()
            # The whole window left before it arrived, and half of it must be taken before there is room again.
            assert await soon(anext(first)) == 0
            with pytest.raises(TooManyParked):
                await read(second, [])
            assert [number async for number in first] == list(range(1, 10))

    async def test_worker_with_a_stream_in_hand_is_drained(self, site: Site) -> None:
        @site.atask(window=2)
        async def numbers(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        async with site.open():
            if not await moves_streams(site):
                return
            stream = numbers(50)
            assert await soon(anext(stream)) == 0
            draining = asyncio.create_task(site.worker.drain(grace=30))
            await asyncio.sleep(0)
            assert [number async for number in stream] == list(range(1, 50))
            await soon(draining)
