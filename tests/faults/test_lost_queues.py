"""Queues that are deleted, purged, full or blocked, with calls in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.tasks import echo, gated
from tests.faults.workers import Fleet


@pytest.fixture
def curious(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process asks after calls that are pending for a second, not for thirty."""
    monkeypatch.setattr(OverdueCalls, "patience", 1.0)
    monkeypatch.setattr(OverdueCalls, "pause", 0.2)


def _work(fleet: Fleet, prefix: str) -> int:
    """Messages in the work queue; 0 if there is none."""
    return sum(queue.messages for queue in fleet.queues() if queue.name == f"{prefix}.q.default.default")


async def _full_queue(fleet: Fleet, history: History, prefix: str, gate: Path) -> list[asyncio.Task[object]]:
    """Calls of which one runs, and the others wait in the work queue."""
    fleet.start_one(concurrency=1)
    calls = history.start(80, gated, str(gate)) + history.start(20, gated, str(gate), delivery="at_most_once")
    await until(lambda: _work(fleet, prefix) == 100 and history.started() == 1, "the calls are at the broker")
    return calls


def _check(history: History, *, lost: int) -> None:
    """At-least-once calls complete; as many of the others are lost."""
    history.check()
    errors = [item for item in history.awaits if item.error is not None]
    assert {item.delivery for item in errors} <= {"at_most_once"}, errors[0]
    assert {type(item.error) for item in errors} <= {atasks.CallConnectionLost}, errors[0]
    assert None not in {item.error.waited_for for item in errors}, "each says where the call was"  # type: ignore[union-attr]
    assert len(errors) == lost


@pytest.mark.parametrize("command", ["queue_delete", "queue_purge"])
@pytest.mark.usefixtures("connected", "curious")
async def test_a_work_queue_that_is_deleted_or_purged(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path, command: str
) -> None:
    gate = tmp_path / "gate"
    calls = await _full_queue(fleet, history, prefix, gate)
    with node.channel() as channel:
        getattr(channel, command)(f"{prefix}.q.default.default")
    await until(lambda: len(history.awaits) == 20, "the at-most-once calls are given up")
    gate.touch()
    await settled(asyncio.gather(*calls), "calls of a queue that lost them")
    _check(history, lost=20)
    assert len(history.runs()) == 80
    await fleet.quiet()


@pytest.mark.usefixtures("connected", "curious")
async def test_calls_that_wait_or_run_for_long_are_not_taken_for_lost(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    calls = await _full_queue(fleet, history, prefix, gate)
    await asyncio.sleep(3 * OverdueCalls.patience)  # nothing is to happen
    assert not history.awaits
    gate.touch()
    await settled(asyncio.gather(*calls), "calls that waited for long")
    history.completed()
    history.check()
    assert len(history.runs()) == 100
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_reply_queue_that_is_deleted(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=50)
    calls = history.start(80, gated, str(gate)) + history.start(20, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 50, "all slots in use")
    with node.channel() as channel:
        for queue in node.queues():
            if queue.name.startswith(f"{prefix}.r."):
                channel.queue_delete(queue.name)
    gate.touch()
    await settled(asyncio.gather(*calls), "calls whose reply queue was deleted")
    history.check()
    for item in history.awaits:
        assert item.error is None or item.delivery == "at_most_once", item
    assert set(history.errors()) <= {"value", "CallConnectionLost"}
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_consumer_that_the_broker_cancels(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=10)
    calls = history.start(20, gated, str(gate))
    await until(lambda: history.started() == 10, "all slots in use")
    with node.channel() as channel:
        channel.queue_delete(f"{prefix}.q.default.default.solo")
    await until(lambda: sum(queue.consumers for queue in fleet.queues()) == 2, "both queues are consumed again")
    gate.touch()
    await settled(asyncio.gather(*calls), "calls of a worker whose consumer was cancelled")
    history.completed()
    history.check()
    assert len(history.runs()) == 20
    await fleet.quiet()


@pytest.fixture
def alarm(node: Broker) -> Iterator[None]:
    """Ends the memory alarm that the test raised."""
    yield
    node.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.usefixtures("connected", "alarm")
async def test_a_memory_alarm_is_a_pause(fleet: Fleet, history: History, node: Broker, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=50)
    calls = history.start(50, gated, str(gate))
    await until(lambda: history.started() == 50, "all slots in use")
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.00001")
    calls += history.start(50, echo) + history.start(50, echo, delivery="at_most_once")
    gate.touch()  # the replies wait as well

    def blocked() -> int:
        return node.ctl("list_connections", "--silent", "state").split().count("blocked")

    while await asyncio.to_thread(blocked) < 2:
        await asyncio.sleep(0.1)
    assert not history.awaits
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
    await settled(asyncio.gather(*calls), "calls after an alarm")
    history.completed()
    history.check()
    assert len(history.runs()) == 150
    await fleet.quiet()


@pytest.mark.usefixtures("connected", "alarm")
async def test_who_starts_in_a_memory_alarm_drains_what_raised_it(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path
) -> None:
    """A worker runs what is there; its replies, and the calls of who connects, wait for the end of the alarm."""
    gate = tmp_path / "gate"
    gate.touch()
    fleet.start_one().stop()  # there is a queue from now on
    calls = history.start(
        20, gated, str(gate), orphan="run"
    )  # nobody could be asked whether they are awaited still
    await until(lambda: _work(fleet, prefix) == 20, "the calls are at the broker")
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.000001")
    worker = fleet.start_one()
    await until(lambda: history.started() == 20, "all of them have run")
    assert "this worker serves all the same" in worker.output
    async with atasks.connect(node.url, prefix=prefix):
        late = history.start(5, echo)
        done, _ = await asyncio.wait(calls + late, timeout=0.5)
        assert not done
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
        await settled(asyncio.gather(*calls, *late), "calls after an alarm")
    history.completed()
    history.check()
    assert len(history.runs()) == 25
    await fleet.quiet()


@pytest.fixture
def short_queue(node: Broker, prefix: str) -> Iterator[None]:
    """A policy: work queues take ten calls, and refuse what comes then."""
    pattern = f"^{prefix}\\.q\\."
    rules = json.dumps({"max-length": 10, "overflow": "reject-publish"})
    node.ctl("set_policy", "--apply-to", "queues", prefix, pattern, rules)
    yield
    node.ctl("clear_policy", prefix)


@pytest.mark.usefixtures("short_queue", "connected")
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_a_full_queue_refuses(fleet: Fleet, history: History, tmp_path: Path, queue_type: str) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=1, queue_type=queue_type)
    calls = history.start(1, gated, str(gate))
    await until(lambda: history.started() == 1, "the slot is in use")
    while not history.awaits:  # a quorum queue takes more than its limit before it says so
        assert len(calls) < 500, "the broker refuses nothing"
        calls += history.start(10, gated, str(gate), batch=False)
        await asyncio.wait(calls, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
    gate.touch()
    await settled(asyncio.gather(*calls), "calls to a full queue")
    errors = history.errors()
    assert set(errors) == {"value", "QueueFull"}
    assert errors["value"] >= 11
    assert len(history.runs()) == errors["value"]
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("seconds", [1.0, 5.0])
async def test_a_queue_that_refuses_and_is_not_full_is_waited_for(
    fleet: Fleet,
    node: Broker,
    prefix: str,
    history: History,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
) -> None:
    """The queue refuses messages, as one that has lost its leader does: here one that may have no call ready."""
    fleet.start_one()
    rules = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    node.ctl("set_policy", "--apply-to", "queues", prefix, f"^{prefix}\\.q\\.", rules)
    try:
        calls = history.start(30, echo)
        once = history.start(3, echo, delivery="at_most_once")
        timed = history.start(3, echo, timeout=0.5)
        await asyncio.sleep(seconds)
        ended = await settled(asyncio.gather(*once, *timed), "calls that need not wait")
        assert [type(each.error).__name__ for each in ended] == ["CallConnectionLost"] * 3 + ["CallTimeout"] * 3
        assert [each.error.waited_for for each in ended] == ["connection"] * 6
        assert not any(call.done() for call in calls)
    finally:
        node.ctl("clear_policy", prefix)
    await settled(asyncio.gather(*calls), "calls to a queue that takes them again")
    assert history.errors()["value"] == 30
    assert caplog.text.count("refuses calls, and is not full") == 1
    history.check()
    await fleet.quiet()
