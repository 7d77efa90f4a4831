"""Rule 6: the function of a join is called once per worker, with the stream, whatever kind of function it is."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from atasks.pipeline import PipelineError, Stage, map, stage
from atasks.testing import until
from tests.unit.pipeline.kinds import consume


def total(items: Iterator[int]) -> int:
    return sum(items)


async def async_total(items: AsyncIterator[int]) -> int:
    return sum([item async for item in items])


def halves(items: Iterator[int]) -> Iterator[float]:
    for item in items:
        yield item / 2


async def async_halves(items: AsyncIterator[int]) -> AsyncIterator[float]:
    async for item in items:
        yield item / 2


@pytest.mark.parametrize("function", [total, async_total])
async def test_a_join_gets_the_stream(how: str, function: Any) -> None:
    assert await consume(range(100) | map(int) | stage(function, join=True), how) == [4950]


@pytest.mark.parametrize("function", [halves, async_halves])
async def test_a_join_that_branches_streams(how: str, function: Any) -> None:
    run = range(100) | map(int) | stage(function, join=True, branch=True) | map(int)
    assert sorted(await consume(run, how)) == sorted(x // 2 for x in range(100))
    items = aiter(itertools.count() | stage(function, join=True, branch=True))
    assert await anext(items) == 0
    await items.aclose()


@pytest.mark.parametrize("function", [total, async_total])
async def test_it_is_called_once_per_worker(how: str, function: Any) -> None:
    totals = await consume(range(100) | map(int) | stage(function, join=True, workers=3), how)
    assert len(totals) == 3
    assert sum(totals) == 4950


async def test_a_sync_join_runs_in_a_thread_and_an_async_one_in_the_loop() -> None:
    def where(items: Iterator[int]) -> str:
        assert list(items) == [0]
        return threading.current_thread().name

    async def here(items: AsyncIterator[int]) -> str:
        assert [item async for item in items] == [0]
        return threading.current_thread().name

    assert await (range(1) | stage(where, join=True)) == ["atasks-where-0"]
    assert await (range(1) | stage(here, join=True)) == [threading.current_thread().name]


async def first(items: AsyncIterator[int]) -> int:
    return await anext(items)


def sync_first(items: Iterator[int]) -> int:
    return next(items)


@pytest.mark.parametrize("function", [first, sync_first])
async def test_a_join_that_returns_early_ends_upstream(how: str, function: Any) -> None:
    ended: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            ended.append(True)

    run = source() | map(lambda x: x + 1, workers=4) | stage(function, join=True)
    async with asyncio.timeout(60):
        (found,) = await consume(run, how)
    assert found >= 1
    await until(lambda: ended == [True])


async def test_upstream_goes_on_while_one_of_the_workers_does() -> None:
    async def some(items: AsyncIterator[int]) -> list[int]:
        taken = []
        async for item in items:
            taken.append(item)
            if item == 0:
                break
        return taken

    lists = await (range(50) | map(int) | stage(some, join=True, workers=2))
    assert sorted(itertools.chain(*lists)) == list(range(50))


@pytest.mark.parametrize("function", [total, async_total])
async def test_an_error_of_the_stream_is_raised_in_the_join(function: Any) -> None:
    def fail(x: int) -> int:
        if x == 5:
            raise ZeroDivisionError
        return x

    with pytest.raises(ZeroDivisionError) as raised:
        await (range(50) | map(fail) | stage(function, join=True))
    assert raised.value.__notes__ == ["in stage 'fail', at item (5,)"]


async def test_an_error_that_the_join_swallows_is_not_lost() -> None:
    def fail(x: int) -> int:
        raise ZeroDivisionError

    async def careless(items: AsyncIterator[int]) -> str:
        try:
            return str([item async for item in items])
        except ZeroDivisionError:
            return "nothing"

    got = []
    with pytest.raises(ZeroDivisionError):
        async for item in range(5) | map(fail) | stage(careless, join=True):
            got += [item]
    assert got == ["nothing"]


class First(Stage):
    """The first item, when what is behind it has failed and has ended."""

    name = "first"

    def __init__(self, ended: threading.Event) -> None:
        self.ended = ended

    async def run(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield await anext(stream)
        await until(self.ended.is_set)


@pytest.mark.parametrize("failing", ["source", "stage"])
@pytest.mark.parametrize("join", ["coroutine", "generator", "thread", "generator in a thread", "own stage"])
async def test_an_error_that_a_join_has_not_come_to_is_not_raised(join: str, failing: str, how: str) -> None:
    ended = threading.Event()

    async def source() -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
            if failing == "source":
                raise ZeroDivisionError
        finally:
            ended.set()

    def fail(x: int) -> int:
        if x == 2 and failing == "stage":
            raise ZeroDivisionError
        return x

    async def coroutine(items: AsyncIterator[int]) -> int:
        item = await anext(items)
        await until(ended.is_set)
        return item

    async def generator(items: AsyncIterator[int]) -> AsyncIterator[int]:
        yield await coroutine(items)

    def thread(items: Iterator[int]) -> int:
        item = next(items)
        assert ended.wait(60)
        return item

    def thread_generator(items: Iterator[int]) -> Iterator[int]:
        yield thread(items)

    joins: dict[str, Any] = {
        "coroutine": stage(coroutine, join=True),
        "generator": stage(generator, join=True, branch=True),
        "thread": stage(thread, join=True),
        "generator in a thread": stage(thread_generator, join=True, branch=True),
        "own stage": First(ended),
    }
    async with asyncio.timeout(60):
        assert await consume(source() | map(fail, inline=True) | joins[join] | map(int), how) == [0]


async def test_its_own_error_names_the_last_item() -> None:
    async def fail(items: AsyncIterator[int]) -> None:
        async for item in items:
            if item == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        await (range(5) | stage(fail, join=True))
    assert raised.value.__notes__ == ["in stage 'fail', at item (3,)"]


async def test_one_worker_that_joins_makes_one_value_of_a_call() -> None:
    count = stage(range, branch=True) | stage(total, join=True)
    assert await count(10) == 45
    assert await (count | map(str))(10) == "45"
    with pytest.raises(PipelineError, match="several"):
        await (stage(range, branch=True) | stage(halves, join=True, branch=True))(10).one()
