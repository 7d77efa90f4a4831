"""Callers that die, or are away for long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.faults.callers import CallerProcess
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import gated, leaf
from tests.faults.workers import Fleet

PATIENCE = 1.0
"""Seconds for which a caller may be away in these tests; otherwise 30."""


@pytest.mark.parametrize("orphan", ["cancel", "run"])
async def test_the_runs_of_a_dead_caller_are_cancelled_unless_told_otherwise(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path, orphan: str
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=10, caller_patience=PATIENCE)
    caller = CallerProcess(history.path, fleet.broker.url, prefix, 20, gate, orphan=orphan)
    try:
        await until(lambda: history.started() == 10, "all slots in use")
        await until(lambda: sum(queue.messages for queue in fleet.queues()) == 20, "the calls are at the broker")
        caller.kill()
        if orphan == "run":
            await asyncio.sleep(3 * PATIENCE)  # nothing is to happen
            gate.touch()
        await fleet.quiet()
        endings = {run.ending for run in history.runs()}
        assert endings == {"cancelled" if orphan == "cancel" else "end"}
        assert orphan == "cancel" or len(history.runs()) == 20
    finally:
        caller.close()


async def test_runs_of_a_dead_caller_that_hold_all_slots_are_cancelled_sooner(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=10)
    caller = CallerProcess(history.path, fleet.broker.url, prefix, 10, gate)
    try:
        await until(lambda: history.started() == 10, "all slots in use")
        caller.kill()
        async with atasks.connect(fleet.broker.url, prefix=prefix):
            await settled(leaf(1), "a call that waits for a slot", 20)
    finally:
        caller.close()


async def test_a_caller_that_was_cut_off_gets_its_results(
    fleet: Fleet, history: History, prefix: str, proxy: Proxy, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=20)
    caller = CallerProcess(history.path, proxy.url(), prefix, 20, gate)
    try:
        await until(lambda: history.started() == 20, "the calls run")
        proxy.refuse()
        proxy.drop()
        gate.touch()
        await fleet.quiet()  # everything was replied to, and the caller was not there
        assert caller.running
        proxy.resume()
        assert await asyncio.to_thread(caller.wait) == 0, caller.output
    finally:
        caller.close()


async def test_a_caller_that_was_given_up_sends_again_when_it_is_back(
    fleet: Fleet, history: History, prefix: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverdueCalls, "patience", 1.0)
    monkeypatch.setattr(OverdueCalls, "pause", 0.2)
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=10, caller_patience=PATIENCE)
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = history.start(10, gated, str(gate))
        calls += history.start(10, gated, str(gate), delivery="at_most_once")
        await until(lambda: history.started() == 10, "all slots in use")
        proxy.refuse()
        proxy.drop()
        await fleet.quiet()  # runs were cancelled, and what was not started was not wanted either
        gate.touch()
        proxy.resume()
        await settled(asyncio.gather(*calls), "calls of a caller that was given up")
    history.check()
    for item in history.awaits:
        assert isinstance(
            item.error, type(None) if item.delivery == "at_least_once" else (type(None), atasks.CallConnectionLost)
        ), item
    await fleet.quiet()
