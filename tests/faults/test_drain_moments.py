"""Workers that are told to end at the worst moments: replies unconfirmed, connection cut, calls parked."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import chain, echo, fan, gated
from tests.faults.workers import Fleet, WorkerProcess

LEAVING = 40.0
"""Seconds: a worker that cannot reach its broker gives up sending, cancelling and closing one after the other."""


@pytest.mark.usefixtures("connected")
async def test_a_signal_while_replies_are_not_confirmed(
    fleet: Fleet, history: History, second_proxy: Proxy
) -> None:
    leaving = fleet.start_one(url=second_proxy.url(), concurrency=200)
    await history.call(echo)
    await fleet.quiet()
    second_proxy.mute("to_client", "publish")
    calls = history.start(50, echo) + history.start(50, echo, delivery="at_most_once")
    await settled(asyncio.gather(*calls), "replies that are not confirmed")
    history.completed()
    leaving.signal(signal.SIGTERM)
    await asyncio.to_thread(fleet.start)
    await until(lambda: not leaving.running, "the leaving worker has ended", LEAVING)
    assert await asyncio.to_thread(leaving.wait) == 0
    await fleet.quiet()
    history.check()
    once = [run for item in history.awaits if item.delivery == "at_most_once" for run in history.runs(item.key)]
    assert len(once) == 50


@pytest.mark.usefixtures("connected")
async def test_a_signal_while_the_connection_is_cut(
    fleet: Fleet, history: History, second_proxy: Proxy, tmp_path: Path
) -> None:
    """The connection does not come back: what it runs is for other workers."""
    gate = tmp_path / "gate"
    leaving = fleet.start_one(url=second_proxy.url(), concurrency=50)
    calls = history.start(30, gated, str(gate)) + history.start(10, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 40, "all of them run")
    await _cut_off(leaving, second_proxy)
    leaving.signal(signal.SIGTERM)
    gate.touch()
    await until(lambda: not leaving.running, "the leaving worker has ended", LEAVING)
    assert await asyncio.to_thread(leaving.wait) == 0
    await asyncio.to_thread(fleet.start)
    await settled(asyncio.gather(*calls), "calls of a worker that was cut off and left")
    assert history.errors() == {"value": 30, "WorkerLost": 10}
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_connection_that_is_restored_while_its_worker_drains(
    fleet: Fleet, history: History, second_proxy: Proxy, tmp_path: Path
) -> None:
    """Replies leave, and nothing more is taken."""
    gate, last_gate = tmp_path / "gate", tmp_path / "last gate"
    leaving = fleet.start_one(url=second_proxy.url(), concurrency=50)
    calls = history.start(30, gated, str(gate)) + history.start(10, gated, str(gate), delivery="at_most_once")
    (last,) = history.start(1, gated, str(last_gate))
    await until(lambda: history.started() == 41, "all of them run")
    await _cut_off(leaving, second_proxy)
    leaving.signal(signal.SIGTERM)
    second_proxy.resume()
    await until(lambda: " is restored" in leaving.output, "the worker is back")
    gate.touch()
    await settled(asyncio.gather(*calls), "calls of a worker that drains")
    more = history.start(20, echo, batch=False)
    await until(lambda: sum(queue.messages for queue in fleet.queues()) == 61, "they wait at the broker")
    assert sum(queue.consumers for queue in fleet.queues()) == 0
    last_gate.touch()
    await settled(last, "the last call of a worker that drains")
    assert await asyncio.to_thread(leaving.wait) == 0
    assert len(history.runs()) == 41
    await asyncio.to_thread(fleet.start)  # it may run again what was not acknowledged, for nobody
    await settled(asyncio.gather(*more), "calls that waited")
    history.completed()
    await fleet.quiet()
    history.check()


async def _cut_off(worker: WorkerProcess, proxy: Proxy) -> None:
    proxy.refuse()
    proxy.drop()
    await until(lambda: "cannot be restored yet" in worker.output, "the worker is cut off")


@pytest.mark.parametrize("others", [1, 0])
@pytest.mark.usefixtures("connected")
async def test_a_signal_while_calls_are_parked(
    fleet: Fleet, history: History, tmp_path: Path, others: int
) -> None:
    """With another worker the parked calls go there; the last worker goes on until its trees are complete."""
    gate = tmp_path / "gate"
    leaving, *_ = fleet.start(1 + others, concurrency=2)
    trees = [asyncio.create_task(tree) for tree in (chain(60), fan(300), chain(50))]
    calls = history.start(6, gated, str(gate))
    await until(lambda: history.started() >= 2, "a slot of the leaving worker is in use")
    leaving.signal(signal.SIGTERM)
    gate.touch()
    values = await settled(asyncio.gather(*trees), "trees of a worker that leaves", 60)
    assert values == [60, sum(range(300)), 50]
    assert await asyncio.to_thread(leaving.wait) == 0
    if not others:
        await asyncio.to_thread(fleet.start)
    await settled(asyncio.gather(*calls), "calls beside the trees")
    history.completed()
    history.check()
    await fleet.quiet()
