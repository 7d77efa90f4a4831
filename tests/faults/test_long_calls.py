"""Calls that run for longer than the broker waits for an acknowledgement: it counts, and closes channels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from tests.broker import BrokerError, PrivateNode
from tests.brokers.private_node import find_sbin
from tests.faults.history import History, settled
from tests.faults.tasks import echo, gated
from tests.faults.workers import Fleet, WorkerProcess

LIMIT = 8.0
"""Seconds for which the broker of this module waits for an acknowledgement; it looks every second."""
ENDED = "PRECONDITION_FAILED - delivery acknowledgement"
"""The words with which the broker says that it waited for too long."""


@pytest.fixture(scope="module")
def impatient_node() -> Iterator[PrivateNode]:
    """A node of its own: the limit is one of the whole node."""
    sbin = find_sbin()
    if sbin is None:
        raise BrokerError("the limit is set on a private node: install rabbitmq-server")
    node = PrivateNode(sbin)
    node.start()
    yield node
    node.close()


@pytest.fixture
def node(impatient_node: PrivateNode) -> PrivateNode:
    """The impatient broker, in place of the one of the other tests."""
    limit(impatient_node, LIMIT, look=1.0)
    return impatient_node


def limit(node: PrivateNode, seconds: float, look: float) -> None:
    """Set for how long channels that are opened from now on wait for an acknowledgement, and how often they
    look."""
    for name, value in (("consumer_timeout", seconds), ("channel_tick_interval", look)):
        node.ctl("eval", f"application:set_env(rabbit, {name}, {value * 1000:.0f}).")


async def _leased(fleet: Fleet, count: int, seconds: float) -> None:
    """Return when as many calls are held by leases, and none by the message it came by."""

    def held() -> tuple[int, int]:
        queues = fleet.broker.queues()
        names = (f"{fleet.prefix}.l.", f"{fleet.prefix}.q.")
        leases, work = (sum(item.messages for item in queues if item.name.startswith(name)) for name in names)
        return leases, work

    await until(lambda: held() == (count, 0), f"{count} calls are held by leases", seconds)


async def _run_past_the_limit(
    worker: WorkerProcess, fleet: Fleet, history: History, gate: Path, seconds: float
) -> None:
    """Long calls run for as long, beside short ones; everything runs once, and the connection stays."""
    calls = history.start(8, gated, str(gate)) + history.start(4, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 12, "the long calls run")
    over = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < over:
        await history.call(echo)
        await asyncio.sleep(0.2)
    gate.touch()
    await settled(asyncio.gather(*calls), "long calls")
    history.completed()
    history.check()
    assert len(history.runs()) == len(history.made)
    assert "connection to RabbitMQ" not in worker.output
    await fleet.quiet()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.usefixtures("connected")
async def test_calls_that_run_past_the_brokers_limit_run_once(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    worker = fleet.start_one(consumer_timeout=LIMIT, queue_type=queue_type)
    await _run_past_the_limit(worker, fleet, history, tmp_path / "gate", 2.5 * LIMIT)


@pytest.mark.timeout(300)
async def test_a_limit_of_a_minute(
    node: PrivateNode, fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    """The broker looks as often as it does by itself."""
    limit(node, 60, look=60)
    worker = fleet.start_one(consumer_timeout=60)
    async with atasks.connect(node.url, prefix=prefix):
        await _run_past_the_limit(worker, fleet, history, tmp_path / "gate", 125)


@pytest.mark.usefixtures("connected")
async def test_a_worker_that_knows_of_no_limit_is_interrupted_and_runs_a_call_once(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    worker = fleet.start_one()
    calls = history.start(5, gated, str(gate)) + history.start(5, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 10, "the calls run")
    await until(lambda: ENDED in worker.output, "the broker has waited for too long", 60)
    await until(lambda: " is restored" in worker.output, "the worker is back", 60)
    gate.touch()
    await settled(asyncio.gather(*calls), "calls that were delivered again")
    history.completed()
    history.check()
    assert len(history.runs()) == 10
    await fleet.quiet()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.usefixtures("connected")
async def test_leases_of_a_killed_worker_go_to_another_one(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    victim = fleet.start_one(consumer_timeout=LIMIT, queue_type=queue_type)
    calls = history.start(8, gated, str(gate)) + history.start(4, gated, str(gate), delivery="at_most_once")
    last = history.start(2, gated, str(gate), max_attempts=1)
    await until(lambda: history.started() == 14, "the victim runs all of them")
    await _leased(fleet, 14, 5 * LIMIT)
    fleet.start_one(consumer_timeout=LIMIT, queue_type=queue_type)
    victim.kill()
    await until(lambda: history.started() == 22, "those that may run again do")
    gate.touch()
    await settled(asyncio.gather(*calls, *last), "calls whose lease has ended")
    history.check()
    assert history.errors() == {"value": 8, "WorkerLost": 6}
    assert [item.delivery for item in history.awaits if item.error is None] == ["at_least_once"] * 8
    assert sorted(run.attempt for run in history.runs()) == [1] * 14 + [2] * 8
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_leases_of_a_killed_worker_wait_for_the_next_one(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    victim = fleet.start_one(consumer_timeout=LIMIT)
    calls = history.start(8, gated, str(gate))
    await until(lambda: history.started() == 8, "the victim runs all of them")
    await _leased(fleet, 8, 5 * LIMIT)
    victim.kill()
    gate.touch()
    await asyncio.to_thread(fleet.start, consumer_timeout=LIMIT)
    await settled(asyncio.gather(*calls), "calls whose lease has ended")
    history.completed()
    history.check()
    assert sorted(run.attempt for run in history.runs()) == [1] * 8 + [2] * 8
    await fleet.quiet()
