"""Calls that make calls, deeper and wider than all slots, and how calls spread over workers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path

import pytest

from atasks import TooManyParked
from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.tasks import chain, fan, fib, gated
from tests.faults.workers import Fleet


@pytest.mark.usefixtures("connected")
async def test_recursion_in_one_slot(fleet: Fleet, history: History) -> None:
    worker = fleet.start_one(concurrency=1)
    assert await settled(fib(12), "fib(12) in one slot", 60) == 144
    assert await settled(chain(500), "a chain of 500 calls", 60) == 500
    assert await settled(fan(2000), "a fan of 2 000 calls", 60) == sum(range(2000))
    assert history.peaks() == {worker.pid: 1}
    await fleet.quiet()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("connected")
async def test_8361_calls_within_one_another_in_one_slot(fleet: Fleet, history: History) -> None:
    worker = fleet.start_one(concurrency=1)
    assert await settled(fib(18), "fib(18) in one slot", 500) == 2584
    assert history.peaks() == {worker.pid: 1}
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_recursion_over_several_workers(fleet: Fleet, history: History) -> None:
    workers = fleet.start(3, concurrency=2)
    values = await settled(asyncio.gather(fib(11), fib(12), chain(100), fan(500)), "four trees of calls", 60)
    assert values == [89, 144, 100, sum(range(500))]
    peaks = history.peaks()
    assert set(peaks) == {worker.pid for worker in workers}
    assert max(peaks.values()) <= 2
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_recursion_survives_a_worker_that_dies(fleet: Fleet) -> None:
    victim = fleet.start_one(concurrency=2)
    fleet.start_one(concurrency=2)
    tree = asyncio.create_task(fan(800))
    await until(lambda: any(queue.messages for queue in fleet.queues()), "the tree grows")
    victim.kill()
    assert await settled(tree, "a tree that lost a worker", 60) == sum(range(800))
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_long_calls_spread_evenly_and_keep_to_their_slots(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    workers = fleet.start(2, concurrency=4)
    calls = history.start(24, gated, str(gate))
    await until(lambda: history.started() == 8, "all slots in use")
    assert Counter(run.pid for run in history.runs()) == {worker.pid: 4 for worker in workers}
    gate.touch()
    await settled(asyncio.gather(*calls), "24 calls")
    assert history.peaks() == {worker.pid: 4 for worker in workers}
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_late_worker_takes_what_waits(fleet: Fleet, history: History, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = fleet.start_one(concurrency=4)
    calls = history.start(8, gated, str(gate))
    await until(lambda: history.started() == 4, "the first worker is full")
    second = await asyncio.to_thread(fleet.start_one, concurrency=4)
    await until(lambda: history.started() == 8, "what waited runs at the second one")
    assert Counter(run.pid for run in history.runs()) == {first.pid: 4, second.pid: 4}
    gate.touch()
    await settled(asyncio.gather(*calls), "8 calls")
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_too_many_parked_calls_are_refused_and_none_hangs(fleet: Fleet) -> None:
    fleet.start_one(concurrency=2, max_parked=100)
    assert await settled(chain(100), "a chain within the bound") == 100
    with pytest.raises(TooManyParked):
        await settled(chain(101), "a chain past the bound")
    with pytest.raises(TooManyParked):
        await settled(chain(3 * 101), "a chain far past the bound")
    assert await settled(fib(8), "calls afterwards") == 21
    assert math.isfinite(await settled(fan(50), "a fan within the bound"))
    await fleet.quiet()
