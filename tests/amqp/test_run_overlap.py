"""Stages of a run on the workers that hand on many items: they run at once. In memory and around a hub too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atasks import atask
from atasks.pipeline import collect, filter, flat_map, fork, map, ordered, stage
from atasks.testing import soon, until
from tests.amqp.conftest import Connect

released = asyncio.Event()
begun: list[Any] = []
flying = 0


@pytest.fixture(autouse=True)
def forget() -> None:
    global released, flying
    released = asyncio.Event()
    begun.clear()
    flying = 0


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@atask
async def held_at_last(x: int) -> int:
    """The last of ten is released by the first one at the next stage."""
    begun.append(("held", x))
    if x == 9:
        await released.wait()
    return x


@atask
async def releases(x: int) -> int:
    released.set()
    return x * x


@atask
async def is_odd(x: int) -> bool:
    return x % 2 == 1


@atask
async def stuck(x: int) -> int:
    begun.append(("stuck", x))
    await asyncio.Event().wait()
    return x


@atask
async def quick(x: int) -> int:
    begun.append(("quick", x))
    return x


@atask
async def waits(x: int) -> int:
    global flying
    flying += 1
    begun.append(("waits", x))
    try:
        if x:
            await asyncio.Event().wait()
        return x
    finally:
        flying -= 1


@atask
async def fails(x: int) -> int:
    while flying < 4:
        await asyncio.sleep(0.01)
    raise KeyError(x)


@atask
async def twice(x: int) -> list[int]:
    return [x, x]


@atask
async def total(xs: list[int]) -> int:
    return sum(xs)


@atask(delivery="at_most_once")
async def once(x: int) -> int:
    released.set()
    return x


async def test_an_item_is_at_the_second_stage_while_another_is_at_the_first(connect: Connect) -> None:
    async with connect():
        handle = await soon((flat_map(upto) | map(held_at_last, workers=10) | map(releases)).submit(10))
        assert await soon(handle) == [x * x for x in range(10)]  # with a barrier between them it would hang


@pytest.mark.parametrize("workers", [1, 3, 20])
async def test_order_filters_branches_and_batches_are_as_they_are_here(connect: Connect, workers: int) -> None:
    pipeline = (
        flat_map(upto)
        | map(quick, workers=workers)
        | filter(is_odd, workers=workers)
        | flat_map(twice, workers=workers)
        | ordered(4)
        | collect(3)
        | map(total, workers=workers)
        | collect()
    )
    async with connect():
        handle = await soon(pipeline.submit(12))
        assert await soon(handle) == [1 + 1 + 3, 3 + 5 + 5, 7 + 7 + 9, 9 + 11 + 11]
        assert await soon(handle.step(2)) == [1, 3, 5, 7, 9, 11]
        assert await soon(handle.step(3)) == [1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11]
        assert await soon(handle.step(6)) == [5, 13, 23, 31]


async def test_a_step_can_be_read_while_those_behind_it_run(connect: Connect) -> None:
    async with connect():
        handle = await soon((flat_map(upto) | map(quick) | map(stuck, workers=10)).submit(10))
        assert await soon(handle.step(1)) == list(range(10))
        assert not await handle.done()
        await handle.cancel()


async def test_a_stage_is_only_so_far_ahead_of_the_next_one(connect: Connect) -> None:
    async with connect():
        pipeline = flat_map(upto) | map(quick, workers=2, throttle=3) | map(stuck, workers=4)
        handle = await soon(pipeline.submit(100))
        await until(lambda: len(begun) >= 4 + 4)
        await asyncio.sleep(0.3)  # in which it could go too far
        at = [name for name, _ in begun]
        assert at.count("stuck") == 4
        assert 4 <= at.count("quick") <= 4 + 3 + 2
        await handle.cancel()


async def test_a_failure_ends_the_calls_of_the_stages_before_it(connect: Connect) -> None:
    async with connect():
        handle = await soon((flat_map(upto) | map(waits, workers=5) | map(fails)).submit(5))
        for attempt in (handle, handle.step(2)):
            with pytest.raises(KeyError):
                await soon(attempt)
        assert await soon(handle.step(1)) == [0]  # what it gave until then
        await until(lambda: not flying)


async def test_what_must_not_begin_twice_waits_for_what_is_before_it(connect: Connect) -> None:
    async with connect():
        pipeline = flat_map(upto) | map(quick, workers=10) | map(once) | map(quick)
        assert await soon(await soon(pipeline.submit(10))) == list(range(10))
        handle = await soon((flat_map(upto) | map(held_at_last, workers=10) | map(once)).submit(10))
        released.clear()
        await until(lambda: len([each for each in begun if each[0] == "held"]) >= 10)
        await asyncio.sleep(0.2)  # in which an item could go on
        assert not released.is_set()
        released.set()
        assert await soon(handle) == list(range(10))


async def test_forks_and_what_follows_them(connect: Connect) -> None:
    async with connect():
        forked: Any = fork(map(quick), map(releases))
        pipeline = flat_map(upto) | map(quick) | forked | map(quick) | collect() | stage(total)
        assert await soon(await soon(pipeline.submit(5))) == sum(range(5)) + sum(x * x for x in range(5))
