"""Counters of workers and callers: what they count, and that counting costs a plain call no function call."""

from __future__ import annotations

import asyncio
import bisect
import cProfile
import math
import mmap
import pstats
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import tracking
from atasks.tasks import atask
from atasks.testing import until
from atasks.tracking.counters import (
    BUSY,
    ENDED,
    RECEIVED,
    ROWS,
    TABLE_SIZE,
    WAIT,
    Counters,
    Table,
)
from atasks.tracking.snapshots import BOUNDS, CallerCounts, Histogram, TaskCounts, WorkerCounts, read
from tests.unit.serving import serve


def of_worker(namespace: str) -> WorkerCounts:
    (found,) = [worker for worker in tracking.snapshot().workers if worker.namespace == namespace]
    return found


def of_caller(namespace: str) -> CallerCounts:
    (found,) = [caller for caller in tracking.snapshot().callers if caller.namespace == namespace]
    return found


def by_task(counts: WorkerCounts | CallerCounts) -> dict[str, TaskCounts]:
    return {item.task: item for item in counts.tasks}


async def test_what_a_worker_and_a_caller_count(namespace: str) -> None:
    gate = asyncio.Event()

    @atask(namespace=namespace, name="double")
    async def double(n: int) -> int:
        return 2 * n

    @atask(namespace=namespace, name="fails")
    async def fails() -> None:
        raise LookupError("nothing")

    @atask(namespace=namespace, name="waits")
    async def waits() -> None:
        await gate.wait()

    @atask(namespace=namespace, name="parent")
    async def parent() -> None:
        await waits()

    @atask(namespace=namespace, name="items")
    async def items(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    async with serve(namespace, concurrency=2):
        assert [await double(n) for n in range(3)] == [0, 2, 4]
        with pytest.raises(LookupError):
            await fails()
        assert [item async for item in items(3)] == [0, 1, 2]
        with pytest.raises(atasks.UnknownTask):
            await atasks.get_router(namespace).send_request("nobody")
        tasks = [asyncio.create_task(parent()), asyncio.create_task(waits()), asyncio.create_task(waits())]
        await until(lambda: of_worker(namespace).parked == 1 and of_worker(namespace).waiting == 1)
        busy = of_worker(namespace)
        assert (busy.running, busy.parked, busy.waiting, busy.slots) == (2, 1, 1, 2)
        assert of_caller(namespace).pending == 4
        tasks[1].cancel()
        await until(lambda: of_worker(namespace).waiting == 0)
        gate.set()
        await asyncio.wait(tasks)
        await until(lambda: of_worker(namespace).running == 0)
        counts, sent = of_worker(namespace), of_caller(namespace)
    assert (counts.running, counts.parked, counts.waiting, counts.bad) == (0, 0, 0, 0)
    found = by_task(counts)
    assert found["double"].ended == {"value": 3}
    assert (found["double"].received, found["double"].started) == (3, 3)
    assert (found["double"].wait.count, found["double"].run.count) == (3, 3)
    assert found["fails"].ended == {"raised": 1}
    assert found["items"].ended == {"value": 1}
    assert found["waits"].ended == {"value": 2, "withdrawn": 1}
    assert found["(unknown)"].ended == {"unknown_task": 1}
    assert (found["(unknown)"].started, found["(unknown)"].refused) == (0, 1)
    assert {name: item.ended for name, item in by_task(sent).items()} == {
        "double": {"value": 3},
        "fails": {"raised": 1},
        "items": {"value": 1},
        "nobody": {"unknown_task": 1},
        "parent": {"value": 1},
        "waits": {"value": 2, "withdrawn": 1},
    }
    assert sent.pending == 0
    assert [item for item in tracking.snapshot().workers if item.namespace == namespace] == []


async def test_deadlines_and_lost_connections_are_told_apart(namespace: str) -> None:
    @atask(namespace=namespace, name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    async with serve(namespace):
        with pytest.raises(atasks.CallTimeout):
            await forever.options(timeout=0.01)()
        left = asyncio.create_task(forever())
        await until(lambda: of_worker(namespace).running == 1)
    with pytest.raises(atasks.CallConnectionLost):
        await left
    (item,) = of_caller(namespace).tasks
    assert (item.received, item.ended) == (2, {"timed_out": 1, "connection_lost": 1})


async def test_what_a_caller_counted_outlives_its_transport(namespace: str) -> None:
    @atask(namespace=namespace, name="one")
    async def one() -> int:
        return 1

    for number in range(1, 4):
        async with serve(namespace):
            await one()
        (item,) = of_caller(namespace).tasks
        assert item.ended == {"value": number}


async def test_a_plain_call_makes_no_function_call_more(namespace: str) -> None:
    @atask(namespace=namespace, name="one")
    async def one() -> int:
        return 1

    async with serve(namespace):
        await one()
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(100):
            await one()
        profile.disable()
    calls = {(Path(file).name, name): found[0] for (file, _, name), found in _stats(profile).items()}
    ours = {place: number for place, number in calls.items() if place[0] in ("counters.py", "snapshots.py")}
    assert ours == {}
    assert calls[("router.py", "send_request")] >= 100


def _stats(profile: cProfile.Profile) -> dict[tuple[str, int, str], tuple[int, ...]]:
    stats: Any = pstats.Stats(profile)
    found: dict[tuple[str, int, str], tuple[int, ...]] = stats.stats
    return found


def test_rows_in_shared_memory_are_read_by_another_table() -> None:
    memory = mmap.mmap(-1, TABLE_SIZE)
    table = Table(memoryview(memory))
    first, second = Counters("w1", "shop", table), Counters("w2", "shop", table)
    first.row("add")[RECEIVED] += 3
    first.row("add")[WAIT] += 2
    first.row("add")[ENDED] += 1
    first.own[BUSY] += 1
    second.row("add")[RECEIVED] += 1
    found = read(Table(memoryview(memory)))
    assert [(worker.id, worker.namespace, worker.running, worker.waiting) for worker in found] == [
        ("w1", "shop", 1, 1),
        ("w2", "shop", 0, 1),
    ]
    assert found[0].tasks[0].ended == {"value": 1}
    assert table.busy == 1


def test_a_full_table_counts_the_rest_together() -> None:
    memory = mmap.mmap(-1, TABLE_SIZE)
    counters = Counters("w", "shop", Table(memoryview(memory)))
    for number in range(ROWS + 10):
        counters.row(f"task {number}")[RECEIVED] += 1
    (worker,) = read(counters.table)
    assert len(worker.tasks) == ROWS - 1
    assert sum(item.received for item in worker.tasks) == ROWS + 10
    assert worker.tasks[-1].task == "(others)"


def test_names_of_any_number_take_no_memory_of_any_size() -> None:
    counters = Counters("", "shop")
    for number in range(3000):
        counters.row(f"task {number}")[RECEIVED] += 1
    assert len(counters.rows) <= 1001
    assert counters.row("(others)")[RECEIVED] == 2000


def test_histograms_add_up_and_have_quantiles() -> None:
    buckets = [0] * (len(BOUNDS) + 1)
    assert Histogram().quantile(0.5) is None
    fast, slow = Histogram(0.5, list(buckets)), Histogram(9.0, list(buckets))
    fast.buckets[10] = 99
    slow.buckets[20] = 1
    both = fast + slow
    assert both.count == 100
    assert both.sum == 9.5
    assert both.quantile(0.5) == BOUNDS[10]
    assert both.quantile(0.999) == BOUNDS[20]


@pytest.mark.parametrize("times", [[0.7], [3.0, 600.0], [0.001, 0.002, 5.0, 5.1, 5.2], [4e-7], [1e6]])
def test_a_quantile_is_no_longer_than_the_times_allow(times: list[float]) -> None:
    """One call of 600 s has no p50 of 1074 s, which its worker may not have existed for."""
    buckets = [0] * (len(BOUNDS) + 1)
    for seconds in times:
        buckets[bisect.bisect_left(BOUNDS, seconds)] += 1
    counted = Histogram(sum(times), buckets)
    for share in (0.0, 0.01, 0.5, 0.95, 0.99, 1.0):
        exact = sorted(times)[max(math.ceil(share * len(times)), 1) - 1]
        bound = counted.quantile(share)
        assert bound is not None
        assert exact <= bound * (1 + 1e-9)
        assert bound <= max(2 * exact, BOUNDS[0])
    assert counted.quantile(1.0) <= sum(times)  # type: ignore[operator]
