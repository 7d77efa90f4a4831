"""Counters of worker processes, as the process reads them that has started these: in memory that both share."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import atasks
from atasks import tracking
from atasks.testing import until
from tests.faults.history import settled
from tests.local.jobs import NAMESPACE, crash, echo, hold


def running() -> list[int]:
    return sorted(item.running for item in tracking.snapshot().workers if item.namespace == NAMESPACE)


async def test_a_program_sums_what_its_worker_processes_count(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with atasks.local(workers=2, namespace=NAMESPACE, concurrency=1):
        earlier = tracking.snapshot().tasks().get(echo.name, tracking.TaskCounts(echo.name))
        calls = [asyncio.create_task(hold(str(tmp_path / "mark"), str(gate))) for _ in range(2)]
        await until(lambda: running() == [1, 1], "each process runs one call")
        gate.touch()
        await settled(asyncio.gather(*calls), "both calls")
        assert await settled(asyncio.gather(*map(echo, range(20))), "20 calls") == list(range(20))
        await until(lambda: running() == [0, 0], "nothing runs")
        counted = tracking.snapshot().tasks()[echo.name]
        assert counted.ended["value"] - earlier.ended.get("value", 0) == 20
        assert counted.run.count - earlier.run.count == 20


async def test_what_a_process_counted_that_died_is_not_lost() -> None:
    async with atasks.local(workers=1, namespace=NAMESPACE, concurrency=1):
        before = tracking.snapshot().tasks()
        await settled(echo(1), "a call")
        try:
            await settled(crash.options(max_attempts=1)(), "a call that kills its worker")
        except atasks.WorkerLost:
            pass
        else:
            raise AssertionError("its worker lives")
        await settled(echo(2), "a call of the next process")
        counted = tracking.snapshot().tasks()
        earlier = {name: before.get(name, tracking.TaskCounts(name)) for name in (echo.name, crash.name)}
        assert counted[echo.name].ended["value"] - earlier[echo.name].ended.get("value", 0) == 2
        assert counted[crash.name].started - earlier[crash.name].started == 1


async def test_what_was_counted_outlives_the_block_that_has_counted_it() -> None:
    async with atasks.local(workers=1, namespace=NAMESPACE):
        await settled(echo(1), "a call")
    counted = tracking.snapshot().tasks()[echo.name].ended["value"]
    gc.collect()
    assert tracking.snapshot().tasks()[echo.name].ended["value"] == counted
    async with atasks.serve("loopback:", namespace=NAMESPACE):
        await settled(echo(2), "a call in this process")
    gc.collect()
    assert tracking.snapshot().tasks()[echo.name].ended["value"] == counted + 1
