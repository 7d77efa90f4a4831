"""The option `timeout`: the time that the function takes for an item, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from atasks.pipeline import after, each, filter, flat_map, group, map, ordered, stage
from tests.unit.pipeline.kinds import KINDS, Kind, consume

TIMED = [kind for kind in KINDS if kind != "inline"]

SHORT = 0.05
LONG = 60


def stuck_at_two(x: int) -> Any:
    """Waits for ever, if it is awaited."""
    return asyncio.Event().wait() if x == 2 else x


def test_a_function_on_the_event_loop_has_no_timeout() -> None:
    for make in (map, filter, flat_map, each, after, stage):
        with pytest.raises(ValueError, match="cannot interrupt it"):
            make(stuck_at_two, inline=True, timeout=1)
    with pytest.raises(ValueError, match="cannot interrupt it"):
        group(stage(stuck_at_two, inline=True), str, timeout=1)
    assert group(stage(stuck_at_two, inline=True), str)


@pytest.mark.parametrize("kind", TIMED, indirect=True)
async def test_an_item_over_its_timeout_is_a_timeout_error(kind: Kind, how: str) -> None:
    step = kind.stage(stuck_at_two, workers=1, timeout=1)
    with pytest.raises(TimeoutError, match=r"'stuck_at_two' took longer than its timeout of 1 s") as raised:
        await consume(range(5) | step, how)
    assert raised.value.__notes__[-1] == "in stage 'stuck_at_two', at item (2,)"


@pytest.mark.parametrize("kind", TIMED, indirect=True)
async def test_it_is_dropped_with_skip_errors(kind: Kind, how: str) -> None:
    run = range(5) | kind.stage(stuck_at_two, workers=2, timeout=1, skip_errors=True) | ordered()
    assert await consume(run, how) == [0, 1, 3, 4]


async def test_a_thread_that_takes_too_long_is_replaced() -> None:
    gate = threading.Event()

    def block(x: int) -> int:
        if x == 2:
            gate.wait(LONG)
        return x

    try:
        assert await (range(5) | map(block, timeout=1, skip_errors=True)) == [0, 1, 3, 4]
    finally:
        gate.set()


async def test_a_timeout_error_of_the_function_is_its_own() -> None:
    own = TimeoutError("own")

    async def fail(x: int) -> None:
        raise own

    with pytest.raises(TimeoutError) as raised:
        await (range(5) | map(fail, timeout=LONG))
    assert raised.value is own


async def test_waiting_to_emit_is_not_counted() -> None:
    async def numbers(x: int) -> AsyncIterator[int]:
        for number in range(5):
            yield number

    def plain_numbers(x: int) -> Iterator[int]:
        yield from range(5)

    for function in (numbers, plain_numbers):
        items = aiter(range(1) | flat_map(function, timeout=1, throttle=1))
        assert await anext(items) == 0
        await asyncio.sleep(1.2)
        assert [item async for item in items] == [1, 2, 3, 4]


async def test_a_branch_over_its_timeout(how: str) -> None:
    async def slow(x: int) -> AsyncIterator[int]:
        yield x
        if x == 1:
            await asyncio.Event().wait()
        yield x

    with pytest.raises(TimeoutError) as raised:
        await consume(range(5) | flat_map(slow, timeout=1), how)
    assert raised.value.__notes__ == ["in stage 'slow', at item (1,)"]
    run = range(3) | flat_map(slow, timeout=SHORT * 10, skip_errors=True) | ordered()
    assert await consume(run, how) == [0, 0, 1, 2, 2]
