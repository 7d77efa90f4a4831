"""Rule 3: however the consumer leaves, everything of the run ends, and leaving does not wait."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from atasks.pipeline import collect, drain, flat_map, from_iterable, map, merge, ordered, stage
from atasks.testing import until
from tests.busy import calm
from tests.unit.pipeline.kinds import Kind, consume


def identity(x: Any) -> Any:
    return x


def others() -> set[asyncio.Task[Any]]:
    """The tasks of this loop, but for that of the test."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def test_nothing_runs_before_it_is_used(how: str) -> None:
    started: list[int] = []
    unused = range(3) | map(started.append)
    assert started == []
    assert others() == set()
    await consume(unused, how)
    assert sorted(started) == [0, 1, 2]


async def test_break_ends_everything(kind: Kind) -> None:
    before = others()
    async for item in itertools.count() | kind.stage(identity, workers=3) | map(str, throttle=1) | ordered():
        assert item == "0"
        break
    await until(lambda: others() == before)


async def test_break_from_a_for_loop_ends_everything() -> None:
    pulled: list[int] = []

    def source() -> Iterator[int]:
        try:
            for number in itertools.count():
                pulled.append(number)
                yield number
        finally:
            pulled.append(-1)

    def leave() -> None:
        for _ in source() | map(identity, workers=3):
            break

    await asyncio.to_thread(leave)
    await until(lambda: pulled[-1] == -1)


async def test_an_exception_in_the_body_ends_everything(kind: Kind) -> None:
    before = others()
    with pytest.raises(ZeroDivisionError):
        async for _ in itertools.count() | kind.stage(identity, workers=3):
            raise ZeroDivisionError
    await until(lambda: others() == before)


async def test_a_run_that_is_forgotten_ends(kind: Kind) -> None:
    before = others()
    items = aiter(itertools.count() | kind.stage(identity, workers=3))
    await anext(items)
    del items
    gc.collect()
    await until(lambda: others() == before)


@pytest.mark.parametrize("how", ["async for", "for"])
async def test_a_run_that_the_garbage_collector_finds_ends(
    kind: Kind, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    async def lose() -> None:
        """Lose the run in a cycle, as an exception does whose traceback leads to itself."""
        run = source() | kind.stage(identity, throttle=1) | map(identity, throttle=1)
        cycle: dict[str, Any] = {}
        cycle["itself"] = cycle
        if how == "for":
            cycle["items"] = await asyncio.to_thread(iter, run)
            await asyncio.to_thread(next, cycle["items"])
        else:
            cycle["items"] = aiter(run)
            await anext(cycle["items"])

    before = others()
    gc.disable()  # it finds the run when all its workers wait for room, or for a while no longer
    try:
        await lose()
        await asyncio.sleep(0.1)
    finally:
        gc.enable()
    gc.collect()
    await until(lambda: others() == before)
    await until(closed.is_set)
    gc.collect()
    assert calm(caplog.records) == [], "and nobody was told of tasks that were torn apart"


async def test_aclose_waits_for_the_end_and_may_be_repeated() -> None:
    before = others()
    run = itertools.count() | map(identity, workers=3)
    async for _ in run:
        await run.aclose()
        assert others() == before
    await run.aclose()


async def test_async_with_closes() -> None:
    before = others()
    async with itertools.count() | map(identity, workers=3) as run:
        items = aiter(run)
        assert await anext(items) in range(3)
    assert others() == before
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_a_run_that_was_closed_never_begins() -> None:
    run = range(3) | map(identity)
    await run.aclose()
    with pytest.raises(RuntimeError, match="used once"):
        await run


@pytest.mark.parametrize("how", ["await", "async for", "drain"])
async def test_cancelling_the_consumer_returns_at_once(kind: Kind, how: str) -> None:
    before = others()
    running = threading.Event()

    def work(x: int) -> Any:
        running.set()
        return asyncio.Event().wait()

    run: Any = itertools.count() | kind.stage(work, workers=5) | map(str, throttle=1)
    task = asyncio.ensure_future(drain(run) if how == "drain" else consume(run, how))
    await until(running.is_set)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    await until(lambda: others() == before)


async def test_closing_does_not_wait_for_a_throttled_put(kind: Kind) -> None:
    calls: list[int] = []
    run = itertools.count() | kind.stage(calls.append, workers=2, throttle=1) | map(identity, throttle=1)
    items = aiter(run)
    await anext(items)
    await until(lambda: len(calls) >= 5)
    async with asyncio.timeout(30):
        await items.aclose()


async def test_a_running_thread_is_abandoned() -> None:
    gate, running = threading.Event(), threading.Event()

    def block(x: int) -> int:
        running.set()
        gate.wait(60)
        return x

    task = asyncio.ensure_future(consume(range(3) | map(block), "await"))
    await until(running.is_set)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    assert not gate.is_set()
    gate.set()


async def test_a_timeout_around_the_consumer_works() -> None:
    async def never(x: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await (range(3) | map(never, workers=3))


async def test_sources_are_closed(how: str) -> None:
    begun: list[str] = []
    ended: list[str] = []

    def source() -> Iterator[int]:
        begun.append("sync")
        try:
            yield from itertools.count()
        finally:
            ended.append("sync")

    async def asource() -> AsyncIterator[int]:
        begun.append("async")
        try:
            for number in itertools.count():
                yield number
        finally:
            await asyncio.sleep(0)
            ended.append("async")

    def fail(x: int) -> int:
        if x == 5:
            raise ZeroDivisionError
        return x

    merged = merge(source(), asource())
    sources = (source(), asource(), from_iterable(source(), inline=True), merged)
    for run in [items | map(fail) for items in sources]:
        with pytest.raises(ZeroDivisionError):
            await consume(run, how)
    # Of the merged ones, one may give five items before the other begins: that one has nothing to end.
    await until(lambda: sorted(ended) == sorted(begun))
    assert sorted(begun) in [["async"] * several + ["sync"] * many for several, many in ((1, 3), (2, 2), (2, 3))]


async def test_generators_of_branches_are_closed(kind: Kind) -> None:
    ended: list[int] = []

    def numbers(x: int) -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ended.append(x)

    async for _ in range(1) | kind.stage(numbers, branch=True, throttle=1):
        break
    await until(lambda: ended == [0])


async def test_a_consumer_that_leaves_a_join_is_not_waited_for() -> None:
    before = others()

    def total(items: Iterator[int]) -> Iterator[int]:
        yield next(items)
        yield sum(items)

    async for item in itertools.count() | stage(total, join=True, branch=True):
        assert item == 0
        break
    await until(lambda: others() == before)


async def test_a_nested_pipeline_ends_with_the_outer_one() -> None:
    before = others()
    inner = flat_map(itertools.count) | map(identity, workers=2)
    async for _ in range(3) | stage(inner, branch=True, workers=2):
        break
    await until(lambda: others() == before)


async def test_drain_runs_to_the_end_and_ends_all_at_the_first_error() -> None:
    before = others()
    seen: list[int] = []
    await drain(range(3) | map(seen.append), range(3) | map(seen.append))
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]

    def fail(x: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await drain(itertools.count() | map(identity), range(3) | map(fail))
    assert others() == before


async def test_the_end_of_the_loop_ends_the_run() -> None:
    def program() -> list[str]:
        ended: list[str] = []

        async def work(x: int) -> int:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("work")
            return x

        async def main() -> None:
            items = aiter(range(3) | map(work))
            asyncio.get_running_loop().forgotten = asyncio.ensure_future(anext(items))  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)

        asyncio.run(main())
        return ended

    assert await asyncio.to_thread(program) == ["work"]


async def test_collect_of_an_abandoned_stream_ends() -> None:
    before = others()
    task = asyncio.ensure_future(consume(itertools.count() | map(identity) | collect(), "await"))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert others() == before
