"""Runs that failed and are run again, under the same handle. In memory and around a hub too."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from atasks import CallCancelled, CannotRetry, UnknownRun, UnknownTask, atask
from atasks.pipeline import attach, collect, filter, flat_map, fork, map, stage
from atasks.router import get_router
from atasks.testing import soon
from tests.amqp.conftest import Connect

made: Counter[tuple[str, Any]] = Counter()
"""Call -> the number of times that it was made."""
bad: set[Any] = set()
"""The items that fail: code that is mended has none."""


@pytest.fixture(autouse=True)
def forget() -> None:
    made.clear()
    bad.clear()


@atask
async def upto(n: int) -> list[int]:
    made["upto", n] += 1
    return list(range(n))


@atask
async def square(x: int) -> int:
    made["square", x] += 1
    return x * x


@atask
async def risky(x: int) -> int:
    made["risky", x] += 1
    if x in bad:
        raise ValueError(f"bad {x}")
    return x + 1


@atask
async def is_odd(x: int) -> bool:
    made["is_odd", x] += 1
    return x % 2 == 1


@atask
async def total(xs: list[int]) -> int:
    made["total", len(xs)] += 1
    if "total" in bad:
        raise ValueError("no total")
    return sum(xs)


@atask(delivery="at_most_once")
async def once(x: int) -> int:
    made["once", x] += 1
    if x in bad:
        raise ValueError(f"bad {x}")
    return x


@atask
async def forever(x: int) -> int:
    await asyncio.Event().wait()
    return x


async def fails(handle: Any, match: str = "bad") -> None:
    with pytest.raises(ValueError, match=match):
        await soon(handle)


async def test_a_run_goes_on_behind_the_last_stage_and_item_on_record(connect: Connect) -> None:
    pipeline = flat_map(upto) | map(square, workers=1) | map(risky, workers=1) | collect() | stage(total)
    async with connect():
        bad.update({25, "total"})
        handle = await soon(pipeline.submit(8))
        await fails(handle)
        noted = [("upto", 8), *(("square", x) for x in range(6)), *(("risky", x * x) for x in range(5))]
        assert {call: made[call] for call in noted} == dict.fromkeys(noted, 1)
        bad.remove(25)
        await soon(attach(handle.id).retry())
        await fails(handle, "no total")
        assert {call: made[call] for call in noted} == dict.fromkeys(noted, 1)
        assert made["risky", 25] == 2
        ended = made.copy()
        bad.clear()
        await soon(handle.retry())
        assert await soon(handle) == sum(x * x + 1 for x in range(8))
        assert await soon(attach(handle.dumps())) == sum(x * x + 1 for x in range(8))
        assert await soon(handle.step(1)) == [x * x for x in range(8)]
        assert made - ended == Counter({("total", 8): 1})
        with pytest.raises(CannotRetry, match="has ended well"):
            await handle.retry()


async def test_a_chain_of_single_items(connect: Connect) -> None:
    async with connect():
        bad.add(9)
        handle = await soon((stage(square) | stage(risky) | stage(square)).submit(3))
        for _ in range(2):  # as often as it fails
            await fails(handle)
            await soon(handle.retry())
        await fails(handle)
        bad.clear()
        await soon(handle.retry())
        assert await soon(handle) == 100
        assert (made["square", 3], made["risky", 9]) == (1, 4)


async def test_a_stage_that_runs_at_most_once_runs_once_more_at_who_retries_it(connect: Connect) -> None:
    async with connect():
        bad.add(2)
        handle = await soon((flat_map(upto) | map(once, workers=1) | map(square)).submit(4))
        await fails(handle)
        bad.clear()
        await soon(handle.retry())
        assert sorted(await soon(handle)) == [0, 1, 4, 9]
        assert [made["once", x] for x in range(4)] == [1, 1, 2, 1]


async def test_forks_and_filters(connect: Connect) -> None:
    pipeline = flat_map(upto) | filter(is_odd, workers=1) | fork(map(risky), map(square)) | collect()
    async with connect():
        bad.add(3)
        handle = await soon(pipeline.submit(6))
        await fails(handle)
        bad.clear()
        await soon(handle.retry())
        assert sorted(await soon(handle)) == sorted([x + 1 for x in (1, 3, 5)] + [x * x for x in (1, 3, 5)])
        assert [made["is_odd", x] for x in range(6)] == [1] * 6


async def test_dropped_items_have_another_chance_and_batches_are_made_anew(connect: Connect) -> None:
    pipeline = (
        flat_map(upto)
        | map(risky, workers=1, skip_errors=True)
        | map(square, workers=1)
        | collect(2)
        | map(total, workers=1)
    )
    async with connect():
        bad.update({1, "total"})
        handle = await soon(pipeline.submit(5))
        await fails(handle, "no total")
        bad.clear()
        await soon(handle.retry())
        assert [made["risky", x] for x in (0, 2)] == [1, 1]
        result = await soon(handle)
        # If the stage had ended, it had so without item 1: then that stays so.
        assert result in ([1 + 4, 9 + 16, 25], [1 + 9, 16 + 25])
        assert result == ([1 + 4, 9 + 16, 25] if made["risky", 1] == 2 else [1 + 9, 16 + 25])


async def test_what_did_not_fail_is_not_retried(connect: Connect) -> None:
    async with connect(keep_runs=60):
        handle = await soon(stage(forever).submit(1))
        with pytest.raises(CannotRetry, match="waits or runs still"):
            await handle.retry()
        await soon(handle.cancel())
        with pytest.raises(CallCancelled):
            await soon(handle)
        with pytest.raises(CannotRetry, match="was cancelled: submit it anew"):
            await handle.retry()
        with pytest.raises(UnknownRun):
            await attach("0" * 32 + ".3").retry()


async def test_of_those_who_retry_it_at_once_one_does(connect: Connect) -> None:
    async with connect():
        bad.add(5)
        handle = await soon((stage(risky) | stage(square)).submit(5))
        await fails(handle)
        bad.clear()
        answers = await asyncio.gather(*(attach(handle.id).retry() for _ in range(4)), return_exceptions=True)
        assert answers.count(None) == 1
        assert all(isinstance(answer, CannotRetry) for answer in answers if answer is not None)
        assert await soon(handle) == 36
        assert made["risky", 5] == 2


async def test_a_stage_that_is_no_longer_there(connect: Connect) -> None:
    """The atask of the stage was renamed, say: the run ends again, and says so; workers that know the atask make
    it end well."""
    renamed = atask(name="tests.renamed")(square.local)
    async with connect():
        bad.add(3)
        handle = await soon((stage(risky) | stage(renamed)).submit(3))
        await fails(handle)
        bad.clear()
        get_router("default").registry.unregister("tests.renamed")
        await soon(handle.retry())
        with pytest.raises(UnknownTask, match=r"tests\.renamed"):
            await soon(handle)
        assert await soon(handle.step(0)) == 4
        atask(name="tests.renamed")(square.local)
        await soon(handle.retry())
        assert await soon(handle) == 16
        assert made["risky", 3] == 2


async def test_steps_give_what_there_is_when_a_later_stage_fails(connect: Connect) -> None:
    pipeline = (
        flat_map(upto)
        | map(square, workers=1, throttle=3)
        | filter(is_odd, workers=1)
        | map(risky, workers=1)
        | map(square)
    )
    async with connect():
        bad.add(9 * 9)
        handle = await soon(pipeline.submit(30))
        await fails(handle)
        assert await soon(handle.step(0)) == list(range(30))
        squares = await soon(handle.step(1))
        assert squares == [x * x for x in range(len(squares))]
        assert 10 <= len(squares) < 30
        odd = await soon(attach(handle.id).step(2))
        assert odd == [x for x in squares if x % 2][: len(odd)]
        assert odd[:5] == [1, 9, 25, 49, 81]
        for number in (3, 4):  # the one that failed, and one behind it
            await fails(handle.step(number))
        await soon(handle.retry())
        await fails(handle)
        assert len(await soon(handle.step(1))) >= len(squares)
        bad.clear()
        await soon(handle.retry())
        assert len(await soon(handle)) == 15
        assert await soon(handle.step(1)) == [x * x for x in range(30)]


async def test_an_await_that_goes_on_over_a_retry(connect: Connect) -> None:
    """A waiter that began before the retry gets its result, if the run goes on by the time."""
    async with connect():
        bad.add(1)
        handle = await soon((stage(risky) | stage(square)).submit(1))
        await fails(handle)
        bad.clear()
        await soon(handle.retry())
        step = asyncio.ensure_future(handle.step(0))
        assert await soon(handle) == 4
        assert await soon(step) == 2
        assert await soon(handle.done())
