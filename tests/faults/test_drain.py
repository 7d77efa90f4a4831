"""Workers that are told to end, and callers that are gone."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.tasks import gated
from tests.faults.workers import Fleet


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.usefixtures("connected")
async def test_a_worker_that_drains_charges_nobody(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    leaving, staying = fleet.start(2, concurrency=50, queue_type=queue_type)
    calls = history.start(80, gated, str(gate)) + history.start(40, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 100, "all slots in use")
    leaving.signal(signal.SIGTERM)
    for _ in range(3):  # a quorum queue may say for a moment that it has no consumers
        await until(
            lambda: sum(queue.consumers for queue in fleet.queues()) <= 2, "the leaving worker takes no more"
        )
        await asyncio.sleep(0.2)
    assert leaving.running
    gate.touch()
    await settled(asyncio.gather(*calls), "120 calls over a drain")
    assert await asyncio.to_thread(leaving.wait) == 0
    history.completed()
    history.check()
    assert {run.attempt for run in history.runs()} == {1}
    assert len(history.runs()) == 120
    assert sum(run.pid == leaving.pid for run in history.runs()) == 50
    assert staying.running
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_runs_past_the_grace_are_given_back(fleet: Fleet, history: History, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    leaving = fleet.start_one(concurrency=50, grace=0.2)
    calls = history.start(30, gated, str(gate)) + history.start(10, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 40, "all of them run")
    await asyncio.to_thread(fleet.start, concurrency=50)
    assert await asyncio.to_thread(leaving.stop) == 0
    await until(lambda: history.started() == 70, "the at-least-once ones run elsewhere")
    gate.touch()
    await settled(asyncio.gather(*calls), "calls that were given back")
    assert history.errors() == {"value": 30, "WorkerLost": 10}
    assert {run.attempt for run in history.runs()} == {1}
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_second_signal_ends_at_once(fleet: Fleet, history: History, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    leaving = fleet.start_one(concurrency=10)
    calls = history.start(10, gated, str(gate))
    await until(lambda: history.started() == 10, "all of them run")
    leaving.signal(signal.SIGTERM)
    await until(lambda: not sum(queue.consumers for queue in fleet.queues()), "it drains")
    leaving.signal(signal.SIGTERM)
    assert await asyncio.to_thread(leaving.wait) == 130
    await asyncio.to_thread(fleet.start)
    gate.touch()
    await settled(asyncio.gather(*calls), "calls of a worker that left at once")
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_worker_that_was_stopped_and_goes_on(fleet: Fleet, history: History, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (frozen,) = fleet.start(url=f"{fleet.broker.url}?heartbeat=1", concurrency=20)
    calls = history.start(20, gated, str(gate)) + history.start(20, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 20, "all slots in use")
    frozen.signal(signal.SIGSTOP)
    try:
        await asyncio.to_thread(fleet.start, concurrency=100)
        await until(
            lambda: sum(queue.consumers for queue in fleet.queues()) == 2, "the broker gave the frozen worker up"
        )
        gate.touch()
        await settled(asyncio.gather(*calls), "calls of a frozen worker")
    finally:
        frozen.signal(signal.SIGCONT)
    history.check()
    assert set(history.errors()) <= {"value", "WorkerLost"}
    await until(lambda: sum(queue.consumers for queue in fleet.queues()) == 4, "it is back")
    await fleet.quiet()
