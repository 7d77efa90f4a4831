"""Calls that resume around a hub, whose journals the hub has in its memory."""

# Private attributes: `Hub._journals`: what a hub keeps is seen nowhere else.

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import atasks
from atasks import Diverged
from atasks.testing import soon, until
from atasks.transport.backends.local.hub.listener import Host
from tests.faults.history import History
from tests.faults.resuming import fanned, row
from tests.faults.rolled_before import strict, versioned
from tests.local.fleet import Fleet

pytestmark = pytest.mark.timeout(180)


async def test_new_code_ends_a_strict_call_before_its_first_new_step_and_leaves_nothing(
    host: Host, fleet: Fleet, history: History, tmp_path: Path
) -> None:
    before = await fleet.worker(module="tests.faults.rolled_before")
    async with atasks.connect(fleet.url):
        task = asyncio.create_task(strict("key", str(tmp_path / "gate")))
        await until(lambda: [run.ending for run in history.runs("key-second")] == ["end"], "both steps are done")
        before.kill()
        await fleet.worker(module="tests.faults.rolled_after")
        with pytest.raises(Diverged, match=r"strict called tests.faults.resuming.step, which .* \(2 left\)"):
            await soon(task)
        assert [len(history.runs(f"key-{name}")) for name in ("first", "second", "new")] == [1, 1, 0]
        await until(lambda: len(host.hub._journals) == 0, "the journal is dropped")


async def test_a_hub_that_is_killed_takes_its_journals_along_and_no_call(
    fleet: Fleet, history: History, tmp_path: Path, no_leaked_tasks: None
) -> None:
    gate = tmp_path / "gate"
    server = await fleet.server(module="tests.faults.resuming", queues=["other"])
    worker = await fleet.worker(module="tests.faults.resuming")
    async with atasks.connect(fleet.url):
        tasks = [asyncio.create_task(row(f"key{n}", ["", str(gate)])) for n in range(5)]
        runs_once = asyncio.create_task(fanned("once", "default", [str(gate)], "at_most_once"))
        begun = ["once-0", *(f"key{n}-1" for n in range(5))]
        await until(lambda: all(map(history.runs, begun)), "all steps")
        server.kill()
        assert await asyncio.to_thread(worker.wait) == 1
        await fleet.server(module="tests.faults.resuming", queues=["other"])
        again = await fleet.worker(module="tests.faults.resuming")
        gate.touch()
        assert await soon(asyncio.gather(*tasks, runs_once)) == [*[[again.pid] * 4] * 5, [again.pid]]
    assert len(history.runs("once-0")) == 2
    for n in range(5):
        assert [run.attempt for run in history.runs(f"key{n}")] == [1, 2]
        assert [run.ending for i in range(2) for run in history.runs(f"key{n}-{i}")] == ["end"] * 4


async def test_the_journal_of_another_version_goes_with_its_call(
    host: Host, fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    before = await fleet.worker(module="tests.faults.rolled_before")
    async with atasks.connect(fleet.url):
        task = asyncio.create_task(versioned("key", str(gate)))
        await until(lambda: [run.ending for run in history.runs("key-second")] == ["end"], "both steps are done")
        before.kill()
        await fleet.worker(module="tests.faults.rolled_after")
        gate.touch()
        assert await soon(task) == ["new", "second"]
        assert [len(history.runs(f"key-{name}")) for name in ("first", "second", "new")] == [1, 2, 1]
        await until(lambda: len(host.hub._journals) == 0, "both journals are dropped")
