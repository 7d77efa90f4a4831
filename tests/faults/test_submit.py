"""Submitted calls, while submitters, workers and the broker come and go."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

import atasks
from atasks import WorkerLost, attach
from atasks.testing import soon, until
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.processes import Process
from tests.faults.tasks import crash, passed
from tests.faults.workers import Fleet


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    path = tmp_path / "gates"
    path.mkdir()
    return path


async def test_a_call_outlives_its_submitter_and_any_process_reads_it(
    fleet: Fleet, node: Broker, prefix: str, gates: Path, connected: None
) -> None:
    options = json.dumps({"prefix": prefix})
    submitter = Process("tests.faults.submitters", node.url, options, str(gates), "0")  # no worker is there yet
    try:
        assert await asyncio.to_thread(submitter.wait) == 0, submitter.output
        handle = attach(submitter.output.strip())
    finally:
        submitter.close()
    assert not await soon(handle.done())
    fleet.start(1)
    (gates / "0").touch()
    for _ in range(2):
        assert await settled(handle, "the result") == [0]


async def test_a_killed_worker_costs_a_call_nothing_but_time(
    fleet: Fleet, gates: Path, history: History, connected: None
) -> None:
    (victim,) = fleet.start(1)
    handle = await passed.submit(str(gates), 0, [])
    unheard = await passed.options(keep=0).submit(str(gates), 1, [])
    unique = passed.options(keep=0, unique="mine")
    assert (await unique.submit(str(gates), 2, [])).new
    for number in range(3):
        await until(lambda number=number: history.runs(f"stage-{number}"), f"call {number} runs")  # type: ignore[misc]
    victim.kill()
    fleet.start(1)
    for number in range(3):
        await until(lambda number=number: len(history.runs(f"stage-{number}")) == 2, f"call {number} runs again")  # type: ignore[misc]
    assert not (await unique.submit(str(gates), 2, [])).new
    for number in range(3):
        (gates / str(number)).touch()
    assert await settled(handle, "the result") == [0]
    while not (await unique.submit(str(gates), 2, [])).new:
        await asyncio.sleep(0.05)
    with pytest.raises(atasks.UnknownRun):
        await unheard


async def test_a_call_that_kills_its_workers_ends(fleet: Fleet, connected: None) -> None:
    fleet.start(3)
    handle = await crash.options(max_attempts=2).submit("killer", "", "kill")
    with pytest.raises(WorkerLost):
        await settled(handle, "the end of a call that kills its workers")


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_submitted_calls_survive_the_broker(
    fleet: Fleet, node: Broker, prefix: str, gates: Path, history: History, connected: None, how: str
) -> None:
    handle = await passed.submit(str(gates), 0, [])  # no worker has declared the queue
    unheard = await passed.options(keep=0).submit(str(gates), 1, [])
    unique = await passed.options(unique="mine").submit(str(gates), 2, [])
    delay = 30.0
    due = time.monotonic() + delay
    delayed = await passed.options(delay=delay).submit(str(gates), 3, [])
    assert not unheard.id.startswith(unique.id)
    await asyncio.to_thread(node.kill if how == "kill" else node.stop)
    await asyncio.to_thread(node.start)
    again = await settled(passed.options(unique="mine").submit(str(gates), 2, []), "a submission of a taken key")
    assert again == unique
    for number in range(4):
        (gates / str(number)).touch()
    fleet.start(1)
    assert await settled(handle, "the result") == [0]
    assert await settled(unique, "the result of the other") == [2]
    await until(lambda: history.runs("stage-1"), "the call without a record runs")
    assert await settled(delayed, "the result of the delayed one", 2 * delay) == [3]
    assert history.runs("stage-3")[0].began >= due
