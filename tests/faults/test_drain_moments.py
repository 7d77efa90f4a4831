"""Workers that are told to end at the worst moments: replies unconfirmed, connection cut, calls parked."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atasks
from tests.broker import Broker
from tests.faults.history import History, settled, until
from tests.faults.proxy import Proxy
from tests.faults.tasks import chain, echo, fan, gated
from tests.faults.workers import Fleet

LEAVING = 40.0
"""Seconds: a worker that cannot reach its broker gives up sending, cancelling and closing one after the other."""


@pytest.fixture
async def connected(node: Broker, prefix: str, cleanup: None, no_leaked_tasks: None) -> AsyncIterator[None]:
    async with atasks.connect(node.url, prefix=prefix):
        yield


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


@pytest.mark.parametrize("comes_back", [True, False])
@pytest.mark.usefixtures("connected")
async def test_a_signal_while_the_connection_is_cut(
    fleet: Fleet, history: History, second_proxy: Proxy, tmp_path: Path, comes_back: bool
) -> None:
    gate = tmp_path / "gate"
    leaving = fleet.start_one(url=second_proxy.url(), concurrency=50)
    calls = history.start(30, gated, str(gate)) + history.start(10, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 40, "all of them run")
    second_proxy.refuse()
    second_proxy.drop()
    await until(lambda: "cannot reconnect yet" in leaving.output, "the worker is cut off")
    leaving.signal(signal.SIGTERM)
    if comes_back:
        second_proxy.resume()
        await until(lambda: "connection restored" in leaving.output, "the worker is back")
    gate.touch()
    if not comes_back:
        await until(lambda: not leaving.running, "the leaving worker has ended", LEAVING)
        await asyncio.to_thread(fleet.start)
    await settled(asyncio.gather(*calls), "calls of a worker that was cut off and left", LEAVING)
    await until(lambda: not leaving.running, "the leaving worker has ended", LEAVING)
    assert await asyncio.to_thread(leaving.wait) == 0
    if comes_back:  # its acknowledgements are void, so others may run at-least-once calls again, for nobody
        history.completed()
        await asyncio.to_thread(fleet.start)
    else:
        assert history.errors() == {"value": 30, "WorkerLost": 10}
    await fleet.quiet()
    history.check()


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
