"""Schedules whose workers die, and brokers that restart."""

from __future__ import annotations

from collections import Counter

import pytest

import atasks
from atasks.testing import until
from tests.broker import Broker
from tests.faults.history import History
from tests.faults.scheduled import note
from tests.faults.workers import Fleet

SCHEDULED = "tests.faults.scheduled"


def ticks(history: History, key: str) -> Counter[str]:
    """The number of calls for each tick of a schedule. A call whose worker was killed before it could say that it
    had run may have run twice: that is one call."""
    return Counter(call_id.partition("~")[0] for call_id in {run.call_id for run in history.runs(key)})


@pytest.mark.usefixtures("connected")
async def test_each_tick_runs_once_whoever_dies(fleet: Fleet, history: History) -> None:
    fleet.start(3, module=SCHEDULED)
    for number, count in enumerate((5, 10, 15)):
        await until(lambda count=count: len(ticks(history, "beat")) >= count, f"{count} ticks")  # type: ignore[misc]
        fleet.workers[number].kill()  # the oldest one keeps the times
        fleet.start(module=SCHEDULED)
    await until(lambda: len(ticks(history, "beat")) >= 20, "20 ticks")
    assert set(ticks(history, "beat").values()) == {1}
    assert await atasks.unschedule("tests.faults.scheduled.beat")


@pytest.mark.usefixtures("connected")
async def test_a_schedule_outlives_every_process_and_the_broker(
    fleet: Fleet, history: History, node: Broker
) -> None:
    await atasks.schedule("notes", note, ["noted"], every=0.25, overlap="allow")
    node.restart()
    first = fleet.start_one(module=SCHEDULED)
    await until(lambda: len(ticks(history, "noted")) >= 3, "it is called")
    first.kill()
    (found, _) = await atasks.schedules()
    assert (found.name, found.defined) == ("notes", False)
    made = len(ticks(history, "noted"))
    fleet.start(module=SCHEDULED)
    await until(lambda: len(ticks(history, "noted")) >= made + 3, "it is called again")
    assert set(ticks(history, "noted").values()) == {1}
    node.restart()
    made = len(ticks(history, "noted"))
    await until(lambda: len(ticks(history, "noted")) >= made + 3, "it is called after a restart of the broker")
    assert set(ticks(history, "noted").values()) == {1}
    for name in ("notes", "tests.faults.scheduled.beat"):
        assert await atasks.unschedule(name)


@pytest.mark.usefixtures("connected")
async def test_the_times_are_kept_for_longer_than_the_broker_waits_for_an_acknowledgement(
    fleet: Fleet, history: History, node: Broker
) -> None:
    node.evaluate("application:set_env(rabbit, consumer_timeout, 3000).")
    fleet.start(2, module=SCHEDULED, consumer_timeout=3.0)
    await until(lambda: len(ticks(history, "beat")) >= 100, "25 s of ticks", 120)
    assert set(ticks(history, "beat").values()) == {1}
    assert await atasks.unschedule("tests.faults.scheduled.beat")
