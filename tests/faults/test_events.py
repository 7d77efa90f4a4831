"""Events whose workers die, or are not there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from tests.broker import Broker
from tests.faults.history import History
from tests.faults.listeners import told
from tests.faults.proxy import Proxy
from tests.faults.workers import Fleet

QUEUE_TYPES = ["classic", "quorum"]
LISTENERS = "tests.faults.listeners"


def _ended(history: History) -> set[str]:
    return {run.key for run in history.runs() if run.ending == "end"}


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_an_event_of_a_killed_worker_is_handled_by_another(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    victim = fleet.start_one(module=LISTENERS, concurrency=3, queue_type=queue_type)
    for number in range(3):
        await told(f"{number}", str(gate))
    await until(lambda: history.started() == 3, "the victim handles them")
    fleet.start(module=LISTENERS, queue_type=queue_type)
    victim.kill()
    await until(lambda: history.started() == 6, "the other worker handles them")
    gate.touch()
    await fleet.quiet()
    assert sorted((run.key, run.attempt) for run in history.runs()) == [
        (f"{number}", attempt) for number in range(3) for attempt in (1, 2)
    ]
    assert len({run.call_id for run in history.runs()}) == 3
    assert [queue.messages for queue in fleet.queues() if queue.name.endswith(".dead")] == [0]


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_events_survive_the_broker_while_no_worker_is_there(
    fleet: Fleet, history: History, node: Broker, tmp_path: Path, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    fleet.start_one(module=LISTENERS, queue_type=queue_type).stop()
    for number in range(20):
        await told(f"{number}", str(gate))
    node.restart()
    await told("after", str(gate))
    assert history.started() == 0
    fleet.start(module=LISTENERS, queue_type=queue_type)
    await until(lambda: len(_ended(history)) == 21, "they are handled")
    await fleet.quiet()


async def test_events_are_published_over_cuts_of_the_connection(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, tmp_path: Path, no_leaked_tasks: None
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    fleet.start(module=LISTENERS)
    async with atasks.connect(proxy.url(), prefix=prefix):
        await told("first", str(gate))
        for number in range(5):
            publishing = [asyncio.ensure_future(told(f"{number}-{n}", str(gate))) for n in range(20)]
            await asyncio.sleep(0)
            proxy.drop()
            async with asyncio.timeout(30):
                await asyncio.gather(*publishing)
    await until(lambda: len(_ended(history)) == 101, "each is handled")
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_an_event_that_kills_its_workers_goes_to_the_dead_queue(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    await _deaths(fleet, history, str(tmp_path / "gate"))
    await until(
        lambda: [queue.messages for queue in fleet.queues() if queue.name.endswith(".dead")] == [1],
        "it is in the dead queue",
    )


async def _deaths(fleet: Fleet, history: History, gate: str) -> None:
    """Kill the worker of each attempt."""
    for attempt in (1, 2, 3):
        worker = fleet.start_one(module=LISTENERS)
        if attempt == 1:
            await told("poison", gate)
        await until(lambda attempt=attempt: history.started() == attempt, f"attempt {attempt}")  # type: ignore[misc]
        worker.kill()
    fleet.start(module=LISTENERS)
