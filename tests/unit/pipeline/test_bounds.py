"""Rule 4: how far a run is ahead of its consumer, exactly."""

from __future__ import annotations

import asyncio
import itertools
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from atasks.pipeline import filter, flat_map, fork, map, merge, stage
from atasks.pipeline.flow.channel import Channel
from atasks.pipeline.flow.crew import FunctionCrew
from atasks.pipeline.flow.engine import Engine
from atasks.testing import until
from tests.unit.pipeline.kinds import Kind


class Calls:
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, x: Any) -> Any:
        with self._lock:
            self.count += 1
        return x


class Pulled:
    """An endless source that counts what is pulled."""

    def __init__(self) -> None:
        self.count = 0

    def sync(self) -> Iterator[int]:
        for number in itertools.count():
            self.count += 1
            yield number

    async def asynchronous(self) -> AsyncIterator[int]:
        for number in self.sync():
            yield number


async def settled(counts: Any) -> list[int]:
    """Wait until the counts have not changed for a while, and return them: the run has gone as far as it may."""
    last, same = counts(), 0
    async with asyncio.timeout(60):
        while same < 15:
            await asyncio.sleep(0.01)
            now = counts()
            last, same = now, same + 1 if now == last else 0
    return list(last)


class Taker:
    """Takes items one by one, and pauses in between."""

    def __init__(self, run: Any) -> None:
        self._items = aiter(run)

    async def take(self) -> None:
        await anext(self._items)

    async def close(self) -> None:
        await self._items.aclose()


class SyncTaker:
    """Take items one by one with `for`, in a thread."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._items: Any = None

    async def take(self) -> None:
        if self._items is None:
            self._items = await asyncio.to_thread(iter, self._run)
        await asyncio.to_thread(next, self._items)

    async def close(self) -> None:
        await asyncio.to_thread(self._items.close)


@pytest.mark.parametrize("source", ["sync", "asynchronous"])
@pytest.mark.parametrize(("workers", "throttle"), [(1, 1), (1, 64), (3, 2), (20, 5)])
async def test_calls_and_pulls_are_bounded(kind: Kind, source: str, how: str, workers: int, throttle: int) -> None:
    pulled, first, last = Pulled(), Calls(), Calls()
    run = (
        getattr(pulled, source)()
        | kind.stage(first.__call__, workers=workers, throttle=throttle)
        | kind.stage(last.__call__, workers=workers, throttle=throttle)
    )
    taker = SyncTaker(run) if how == "for" else Taker(run)
    for taken in range(1, 4):
        await taker.take()
        await until(lambda: last.count >= taken + throttle)  # noqa: B023 - it goes as far as it may
        pulls, firsts, lasts = await settled(lambda: [pulled.count, first.count, last.count])
        assert lasts <= taken + throttle + workers
        assert firsts <= lasts + throttle + workers
        assert pulls <= firsts + 1
    await taker.close()


async def test_twenty_workers_are_twenty(kind: Kind) -> None:
    running, most = 0, 0
    together = asyncio.Barrier(20)

    async def work(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await together.wait()
        await asyncio.sleep(0)
        running -= 1
        return x

    # What a plain function returns is awaited here, so that it counts even where its call takes no time.
    assert await (range(100) | kind.stage(work, workers=20)) == list(range(100))
    assert most == 20


async def test_twenty_threads_are_twenty() -> None:
    gate = threading.Barrier(20)
    assert await (range(40) | map(lambda x: gate.wait(60) >= 0, workers=20)) == [True] * 40


async def test_without_a_bound_all_run_at_once() -> None:
    together = asyncio.Barrier(500)

    async def work(x: int) -> int:
        await together.wait()
        return x

    assert await (range(500) | map(work, workers=None)) == list(range(500))


async def test_atasks_have_64_workers_unless_told_otherwise(namespace: str) -> None:
    import atasks

    kind = Kind("atask", namespace)
    together = asyncio.Barrier(64)
    running = 0

    async def work(x: int) -> int:
        nonlocal running
        running += 1
        assert running <= 64
        await together.wait()
        running -= 1
        return x

    async with atasks.connect("loopback:", namespace=namespace):
        assert await (range(128) | kind.stage(work)) == list(range(128))


async def test_dropped_items_count_as_taken() -> None:
    pulled, calls = Pulled(), Calls()

    def keep(x: int) -> bool:
        calls(x)
        return x % 10 == 9

    run = pulled.sync() | filter(keep, throttle=2)
    items = aiter(run)
    assert await anext(items) == 9
    (count, pulls) = await settled(lambda: [calls.count, pulled.count])
    assert count <= 10 * (1 + 2 + 1)
    assert pulls <= count + 1
    await items.aclose()


async def test_a_branch_does_not_run_ahead(kind: Kind) -> None:
    yielded = Calls()

    def numbers(start: int) -> Iterator[int]:
        for number in itertools.count(start) if kind.name != "atask" else range(5):
            yield yielded(number)

    items = aiter([0] | kind.stage(numbers, branch=True, throttle=3))
    for number in range(4):
        assert await anext(items) == number
    (count,) = await settled(lambda: [yielded.count])
    assert count <= 4 + 3 + 1
    await items.aclose()


async def test_throttle_0_is_no_bound() -> None:
    calls = Calls()
    items = aiter(range(5000) | map(calls.__call__, inline=True, throttle=0))
    await anext(items)
    assert await settled(lambda: [calls.count]) == [5000]
    await items.aclose()


async def test_the_loop_stays_alive_without_a_bound() -> None:
    async def work(x: int) -> int:
        return x

    items = aiter(itertools.count() | map(work, throttle=0) | map(work, throttle=0))
    await anext(items)
    for _ in range(20):
        await asyncio.sleep(0)
    await items.aclose()


async def test_a_merge_pulls_one_of_each() -> None:
    one, other, calls = Pulled(), Pulled(), Calls()
    run = merge(one.sync(), other.asynchronous()) | map(calls.__call__, throttle=1)
    items = aiter(run)
    await anext(items)
    count, *pulls = await settled(lambda: [calls.count, one.count, other.count])
    assert count <= 1 + 1 + 1
    assert sum(pulls) <= count + 2
    await items.aclose()


async def test_a_fork_goes_at_the_pace_of_the_slowest() -> None:
    pulled, quick = Pulled(), Calls()
    gate = asyncio.Event()

    async def slow(x: int) -> int:
        await gate.wait()
        return x

    items = aiter(pulled.sync() | fork(stage(quick.__call__, inline=True), map(slow)))
    await anext(items)
    count, pulls = await settled(lambda: [quick.count, pulled.count])
    assert count <= 3
    assert pulls <= count + 2
    gate.set()
    await items.aclose()


async def test_flat_map_of_many_workers_is_bounded() -> None:
    calls, pulled = Calls(), Pulled()

    def twice(x: int) -> list[int]:
        calls(x)
        return [x, x]

    items = aiter(pulled.sync() | flat_map(twice, workers=4, throttle=2))
    await anext(items)
    count, pulls = await settled(lambda: [calls.count, pulled.count])
    assert count <= 1 + 2 + 4
    assert pulls <= count + 1
    await items.aclose()


async def test_a_wide_fan_out_needs_little_memory() -> None:
    async def work(x: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(1000)

    async def consume(items: int) -> int:
        count = 0
        async for _ in range(items) | map(work, workers=500):
            count += 1
        return count

    assert await consume(2000) == 2000
    tracemalloc.start()
    try:
        assert await consume(10_000) == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000, "far from the 10 MB that the results have"


async def one_of(x: int) -> int:
    return x


async def many_of(x: int) -> AsyncIterator[int]:
    yield x


@pytest.mark.parametrize("pipeline", [map(one_of, workers=1), flat_map(many_of, workers=1)])
async def test_items_that_are_lent_keep_their_room(pipeline: Any) -> None:
    """A stage that sends items to a process ahead has borrowed them, and may give them back."""
    engine, inlet, outlet = Engine(), Channel(100), Channel(4)
    inlet.add_producer(lambda: None)
    engine.outlet = outlet
    for number in range(2):
        await inlet.put(((number,), number))
    engine.add(FunctionCrew(engine, pipeline.stages[0], inlet, outlet, ()))
    await until(lambda: len(outlet.items) == 2)
    lent = outlet.lend(3)
    assert len(lent) == 2
    for number in range(2, 12):
        await inlet.put(((number,), number))
    await settled(lambda: [len(outlet.items)])
    assert [value for _, value in outlet.items] == [2, 3]
    outlet.settle(1, lent[1:])
    await settled(lambda: [len(outlet.items)])
    assert [value for _, value in outlet.items] == [1, 2, 3, 4]
    await engine.aclose()
