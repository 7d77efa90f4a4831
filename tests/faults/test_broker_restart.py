"""A broker that restarts, or loses power, with calls in flight."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.tasks import echo, gated, work
from tests.faults.workers import Fleet

CALLS = 400
ONCE = 100


@contextlib.asynccontextmanager
async def _down(node: Broker, how: str) -> AsyncIterator[None]:
    """The broker is down inside the block, and up after it."""
    if how == "kill":
        # RabbitMQ 3.10 writes what it knows of a new quorum queue to disk within five seconds, and if it is killed
        # before that, the queue never has a leader again. That is not what is tested here.
        await asyncio.to_thread(node.ctl, "eval", "[dets:sync(Table) || Table <- dets:all()].")
        await asyncio.to_thread(node.kill)
    else:
        await asyncio.to_thread(node.ctl, "stop_app")
    try:
        yield
    finally:
        if how == "kill":
            await asyncio.to_thread(node.start)
        else:
            await asyncio.to_thread(node.ctl, "start_app")


def _check(history: History) -> None:
    history.check()
    for item in history.awaits:
        if item.delivery == "at_least_once":
            assert item.error is None, item
        else:
            known = (type(None), atasks.WorkerLost, atasks.CallConnectionLost)
            assert isinstance(item.error, known), item


@pytest.mark.parametrize(("how", "queue_type"), [("stop_app", "quorum"), ("kill", "classic"), ("kill", "quorum")])
@pytest.mark.usefixtures("connected")
async def test_calls_in_flight_survive_a_restart(
    fleet: Fleet, history: History, node: Broker, tmp_path: Path, how: str, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    fleet.start(2, concurrency=100, queue_type=queue_type)
    calls = history.start(CALLS, gated, str(gate)) + history.start(ONCE, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() >= 200, "all slots in use")
    async with _down(node, how):
        gate.touch()  # the runs end while the broker is down: their replies wait at the workers
        calls += history.start(50, echo)
        calls += history.start(10, echo, delivery="at_most_once")
        await until(lambda: all(run.ending for run in history.runs()), "what ran has ended")
    await settled(asyncio.gather(*calls), "calls in flight over a restart", 60)
    _check(history)
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_calls_that_move_while_the_broker_goes_down(fleet: Fleet, history: History, node: Broker) -> None:
    dice = random.Random(11)
    fleet.start(2, concurrency=20)
    calls = []
    for number in range(CALLS + ONCE):
        delivery = "at_most_once" if number % 5 == 0 else "at_least_once"
        calls += history.start(1, work, dice.random() / 5, delivery=delivery)
    await until(lambda: len(history.awaits) >= 100, "calls come and go")
    async with _down(node, "stop_app"):
        pass
    await settled(asyncio.gather(*calls), "calls on the move over a restart", 60)
    _check(history)
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_calls_without_a_worker_survive_a_power_failure(
    fleet: Fleet, history: History, node: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverdueCalls, "patience", 1.0)  # this process asks soon for those that were not durable
    monkeypatch.setattr(OverdueCalls, "pause", 0.2)
    gate = tmp_path / "gate"
    victim = fleet.start_one(concurrency=1)
    calls = history.start(200, gated, str(gate)) + history.start(50, gated, str(gate), delivery="at_most_once")
    calls += history.start(50, gated, str(gate), durable=False)
    await until(lambda: history.started() == 1, "the worker is busy")
    await until(lambda: sum(queue.messages for queue in fleet.queues()) == 300, "the rest is at the broker")
    victim.kill()
    async with _down(node, "kill"):
        gate.touch()
    await asyncio.to_thread(fleet.start)
    await settled(asyncio.gather(*calls), "calls that waited at the broker", 60)
    _check(history)
    await fleet.quiet()
