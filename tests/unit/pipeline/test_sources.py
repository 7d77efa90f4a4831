"""Sources of a run's items: errors there, and the end of what was pulled from."""

from __future__ import annotations

import asyncio
import collections
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from atasks.pipeline import PipelineError, flat_map, from_iterable, map, merge
from atasks.testing import until
from tests.unit.pipeline.kinds import consume


async def same(x: Any) -> Any:
    return x


class Broken:
    """An object that cannot be iterated, although it looks so."""

    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError("__iter__")


class AsyncBroken:
    def __aiter__(self) -> AsyncIterator[Any]:
        raise ZeroDivisionError("__aiter__")


def failing(after: int) -> Iterator[int]:
    yield from range(after)
    raise ZeroDivisionError("pulled")


async def endless() -> AsyncIterator[int]:
    for number in itertools.count():
        await asyncio.sleep(0.001)
        yield number


async def silent() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 0


def used() -> Any:
    run = range(3) | map(same)
    iter_ = aiter(run)
    del iter_
    return run


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "source", [lambda: failing(2), Broken, AsyncBroken, lambda: range(5) | map(lambda x: 1 / (x - 3))]
)
@pytest.mark.parametrize("other", [endless, silent, itertools.count])
async def test_a_merge_ends_with_the_first_error_of_a_source(source: Any, other: Any, how: str) -> None:
    before = others()
    for sources in ([source(), other()], [other(), source(), other()]):
        async with asyncio.timeout(30):
            with pytest.raises(ZeroDivisionError) as raised:
                await consume(merge(*sources) | map(same), how)
        position = len(sources) // 2 if len(sources) == 3 else 0
        assert f"in source {position} of a merge" in raised.value.__notes__
    await until(lambda: others() == before)


async def test_a_merge_of_a_used_run_is_an_error(how: str) -> None:
    before = others()
    closed: list[bool] = []

    async def source() -> AsyncIterator[int]:
        try:
            async for number in endless():
                yield number
        finally:
            closed.append(True)

    twice = range(3) | map(same)
    for sources in ([source(), used()], [used(), source()], [source(), twice, twice]):
        async with asyncio.timeout(30):
            with pytest.raises(PipelineError, match="used once"):
                await consume(merge(*sources), how)
    await until(lambda: others() == before)


@pytest.mark.parametrize("source", [Broken, AsyncBroken, used, lambda: from_iterable(Broken(), inline=True)])
async def test_what_cannot_be_begun_is_an_error_of_the_run(source: Any, how: str) -> None:
    before = others()
    async with asyncio.timeout(30):
        with pytest.raises((ZeroDivisionError, PipelineError)):
            await consume(source() | map(same), how)
        with pytest.raises((ZeroDivisionError, PipelineError)):
            await consume(merge(source()), how)
    await until(lambda: others() == before)


class Generating:
    """An object whose `__iter__` is a generator, which has to be closed as well."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __iter__(self) -> Iterator[int]:
        return generating(self.log)


def generating(log: list[str], pause: float = 0.0) -> Iterator[int]:
    try:
        for number in itertools.count():
            time.sleep(pause)
            yield number
    finally:
        time.sleep(0.1)
        log.append("closed")


@pytest.mark.parametrize("make", [generating, Generating, lambda log: generating(log, 0.01)])
@pytest.mark.parametrize("inline", [False, True])
async def test_aclose_waits_until_a_plain_generator_is_closed(make: Any, inline: bool) -> None:
    log: list[str] = []
    run = from_iterable(make(log), inline=inline) | map(same, workers=2, throttle=3)
    items = aiter(run)
    await anext(items)
    await run.aclose()
    assert log == ["closed"]


async def test_the_end_of_a_run_does_not_wait_for_ever_for_a_generator_that_blocks() -> None:
    gate, begun = threading.Event(), threading.Event()

    def blocking() -> Iterator[int]:
        yield 0
        begun.set()
        gate.wait(60)
        yield 1

    run = blocking() | map(same)
    items = aiter(run)
    await anext(items)
    await until(begun.is_set)
    async with asyncio.timeout(30):
        await run.aclose()
    assert not gate.is_set()
    gate.set()


@pytest.mark.parametrize("inline", [False, True])
async def test_what_a_generator_raises_on_its_end_is_reported(inline: bool) -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise ZeroDivisionError

    def children(x: int) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise ArithmeticError

    run = from_iterable(source(), inline=inline) | flat_map(children, inline=inline, throttle=1)
    items = aiter(run)
    await anext(items)
    await asyncio.sleep(0.05)
    await run.aclose()
    await until(lambda: len(reported) == 2)
    assert {type(error) for error in reported} == {ZeroDivisionError, ArithmeticError}


async def test_what_a_coroutine_raises_when_its_run_is_left_is_reported() -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    begun = asyncio.Event()

    async def work(x: int) -> int:
        try:
            if x:
                begun.set()
                await asyncio.Event().wait()
        finally:
            if x:
                raise ArithmeticError
        return x

    run = range(3) | map(work)
    items = aiter(run)
    assert await anext(items) == 0
    await begun.wait()
    await run.aclose()
    assert [type(error) for error in reported] == [ArithmeticError]


class Pandas:
    """Takes `|` for itself as pandas does, but for what has a higher priority."""

    __pandas_priority__ = 4000

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __or__(self, other: Any) -> Any:
        if getattr(other, "__pandas_priority__", 0) > self.__pandas_priority__:
            return NotImplemented
        raise AssertionError("it takes the pipeline for data")


async def test_containers_that_take_the_bar_for_their_own() -> None:
    numbers = dict.fromkeys(range(3), "x")
    expected = [0, 1, 2]
    own = (Pandas(), {0, 1, 2}, frozenset(range(3)), numbers, collections.UserDict(numbers).keys())
    for source in (*own, collections.Counter(range(3)), collections.OrderedDict(numbers)):
        made: Any = source
        assert await (made | map(same)) == expected
    assert await (numbers.values() | map(same)) == ["x"] * 3
    for view in (numbers.keys(), numbers.items()):
        with pytest.raises(TypeError, match=r"write from_iterable\(keys\) \| pipeline"):
            view | map(same)  # type: ignore[operator]
        assert len(await (from_iterable(view) | map(same))) == 3
    for wrong in (list, tuple, sum):
        with pytest.raises(TypeError, match="cannot be iterated"):
            wrong(map(same))
    for make in (from_iterable, merge):
        with pytest.raises(TypeError, match="no source of items: call it"):
            make(map(same))
