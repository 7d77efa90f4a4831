"""When schedules are due, and what is made of it, by a clock that the test sets."""

# Private attributes: `LoopbackTransport._worker`: the ticker of a second worker is made by hand.

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import AsyncIterator, Collection
from datetime import datetime
from functools import partial
from itertools import pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import atasks
from atasks import NotSupported, atask, current_call, schedule, schedules
from atasks.submitted.schedules import Clock, Ticker
from atasks.testing import soon
from atasks.timing import Timing
from atasks.transport.contract import Transport

BERLIN = ZoneInfo("Europe/Berlin")


def moment(text: str, tz: ZoneInfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=tz, fold=fold).timestamp()


def ticks(timing: Timing, begin: float, count: int) -> list[str]:
    found = timing.ticks(begin)
    return [datetime.fromtimestamp(next(found), BERLIN).isoformat() for _ in range(count)]


# -- times


def test_cron_in_a_time_zone() -> None:
    timing = Timing("0 9 * * 1-5", tz="Europe/Berlin")
    assert ticks(timing, moment("2026-11-27T09:00"), 2) == [
        "2026-11-30T09:00:00+01:00",
        "2026-12-01T09:00:00+01:00",
    ]


def test_an_hour_that_is_skipped() -> None:
    begin = moment("2026-03-28T12:00")
    assert ticks(Timing("30 2 * * *", tz="Europe/Berlin"), begin, 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]
    assert ticks(Timing("*/30 * * * *", tz="Europe/Berlin"), moment("2026-03-29T01:00"), 3) == [
        "2026-03-29T01:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-29T03:30:00+02:00",
    ]
    assert ticks(Timing("*/20 2 * * *", tz="Europe/Berlin"), begin, 1) == ["2026-03-30T02:00:00+02:00"]


def test_an_hour_that_comes_twice() -> None:
    begin = moment("2026-10-24T12:00")
    assert ticks(Timing("30 2 * * *", tz="Europe/Berlin"), begin, 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    assert ticks(Timing("*/30 * * * *", tz="Europe/Berlin"), moment("2026-10-25T01:45"), 5) == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]
    assert ticks(Timing("*/20 2 * * *", tz="Europe/Berlin"), begin, 6)[-1] == "2026-10-25T02:40:00+01:00"
    # looked for from inside of the second of both
    assert ticks(Timing("30 2 * * *", tz="Europe/Berlin"), moment("2026-10-25T02:10", fold=1), 1) == [
        "2026-10-26T02:30:00+01:00"
    ]


CHANGES = [
    ("Australia/Lord_Howe", "2026-04-05T02:00"),  # by half an hour
    ("Australia/Lord_Howe", "2026-10-04T02:00"),
    ("America/Santiago", "2026-09-06T00:00"),  # no midnight
    ("America/Santiago", "2026-04-04T23:00"),
    ("Europe/Berlin", "2026-10-25T02:00"),
    ("America/Caracas", "2016-05-01T02:30"),  # for good
]


@pytest.mark.parametrize(("zone", "change"), CHANGES)
@pytest.mark.parametrize(
    ("every", "minutes", "hours", "weekdays"),
    [
        ("*/10 2 * * *", range(0, 60, 10), [2], range(7)),
        ("0 */2 * * *", [0], range(0, 24, 2), range(7)),
        ("0 */6 * * *", [0], range(0, 24, 6), range(7)),
        ("*/5 0 * * *", range(0, 60, 5), [0], range(7)),
        ("*/20 0 * * 0", range(0, 60, 20), [0], [0]),
        ("*/30 23 * * 6", range(0, 60, 30), [23], [6]),
        ("15 * * * *", [15], range(24), range(7)),
    ],
)
def test_expressions_that_go_on_have_the_ticks_of_a_clock(
    every: str, minutes: Collection[int], hours: Collection[int], weekdays: Collection[int], zone: str, change: str
) -> None:
    """A clock is looked at each minute."""
    tz = ZoneInfo(zone)
    middle = datetime.fromisoformat(change).replace(tzinfo=tz).timestamp()
    begin, end = middle - 26 * 3600, middle + 26 * 3600
    expected = []
    for minute in range(int(begin) + 60, int(end), 60):
        clock = datetime.fromtimestamp(minute, tz)
        if clock.minute in minutes and clock.hour in hours and clock.isoweekday() % 7 in weekdays:
            expected.append(float(minute))
    timing = Timing(every, tz=zone)
    assert list(takewhile(lambda tick: tick < end, timing.ticks(begin))) == expected
    for tick, following in pairwise(expected):
        assert timing.after(tick) == timing.after(tick + 0.5) == timing.after(following - 0.5) == following


@pytest.mark.parametrize("every", [0.1, 1, 7.3, 30.0, 86_400])
def test_ticks_of_a_period_are_the_same_for_all(every: float) -> None:
    timing = Timing(every)
    found = timing.ticks(1_790_000_000.0)
    first = [next(found) for _ in range(5)]
    assert [round(after - before, 5) for before, after in pairwise(first)] == [every] * 4
    assert timing.after(first[0] - every / 3) == first[0]
    assert timing.after(first[2]) == first[3]


@pytest.mark.parametrize("every", [0.1, 0.3, 7.3, 3600.5, 86_400])
def test_a_tick_comes_once_however_near_one_looks(every: float) -> None:
    """`1796046320.1 / 0.1` is a little less than the number of this tick, and was taken for the one before."""
    timing = Timing(every)
    begin = int(1_796_046_000 / every)
    for number in range(begin, begin + 1000):
        tick = round(number * every, 6)
        assert timing.after(tick) == round((number + 1) * every, 6)
        assert timing.after(math.nextafter(tick, 0.0)) == tick


@pytest.mark.parametrize("every", ["* * * * * *", "* * * *", "@daily", "0 25 * * *", "0 0 30 2 *", ""])
def test_what_is_no_cron_expression(every: str) -> None:
    with pytest.raises(ValueError, match="five fields"):
        Timing(every)


def test_a_cron_expression_is_short() -> None:
    """Each look at the table of schedules reads it, which takes a second for one of 200 000 minutes."""
    assert Timing(f"{','.join(map(str, range(60)))} * * * *").after(0.0) == 60.0
    assert Timing("* * * * *".ljust(1000)).after(0.0) == 60.0
    with pytest.raises(ValueError, match="1001 characters: at most 1000"):
        Timing("* * * * *".ljust(1001))


def test_cron_without_cronsim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(NotSupported, match="pip install"):
        Timing("* * * * *")
    assert Timing(5.0).after(12.0) == 15.0


# -- what is made of it


class Watch(Clock):
    """A clock that stands until the test sets it."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._waiting: list[asyncio.Event] = []
        self.looks = asyncio.Semaphore(0)
        """Released whenever a ticker has done all that is due, and waits."""

    def now(self) -> float:
        return self._now

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        self._waiting.append(event)
        self.looks.release()
        await event.wait()
        self._waiting.remove(event)

    def set(self, now: float) -> None:
        """Set it, and have those who wait look."""
        self._now = now
        for event in self._waiting:
            event.set()


NOW = moment("2026-11-28T12:00:10")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch(NOW)
    monkeypatch.setattr("atasks.submitted.schedules.Ticker", partial(Ticker, clock=watch))
    monkeypatch.setattr("atasks.scheduling.Clock", lambda: watch)
    return watch


class Diary:
    """When its atask was called, by the watch."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.made: list[str] = []
        self.ended = asyncio.Event()
        self.ended.set()

    async def at(self, now: float) -> list[str]:
        """Set the watch; the calls so far, when all that is due by then was made, and has ended."""
        while not self.watch.looks.locked():
            await self.watch.looks.acquire()
        self.watch.set(now)
        await soon(self.watch.looks.acquire())
        for _ in range(20):  # a submitted call is run by tasks of its own
            await asyncio.sleep(0)
        return self.made


@pytest.fixture
async def diary(watch: Watch, connected: Transport) -> Diary:
    return Diary(watch)


@pytest.fixture
async def connected(watch: Watch, namespace: str) -> AsyncIterator[Transport]:
    async with atasks.connect("loopback:", namespace=namespace) as transport:
        await soon(watch.looks.acquire())
        yield transport


@pytest.fixture
def namespace() -> str:
    return f"schedules-{id(object()):x}"


@pytest.fixture
def task(diary: Diary, namespace: str) -> atasks.ATask[[], None]:
    @atask(name="task", namespace=namespace)
    async def task() -> None:
        diary.made.append(datetime.fromtimestamp(diary.watch.now(), BERLIN).strftime("%H:%M:%S"))
        assert current_call().id is not None
        await diary.ended.wait()

    return task


async def test_each_tick_is_made_once(diary: Diary, task: atasks.ATask[[], None]) -> None:
    await schedule("minutes", task, every="* * * * *")
    assert await diary.at(NOW + 49) == []
    assert await diary.at(NOW + 50) == ["12:01:00"]
    assert await diary.at(NOW + 60) == ["12:01:00"]
    assert await diary.at(NOW + 111) == ["12:01:00", "12:02:01"]
    (found,) = await schedules(namespace=task.namespace)
    assert found.last == moment("2026-11-28T12:02:00")


async def test_missed_ticks(diary: Diary, task: atasks.ATask[[], None], caplog: pytest.LogCaptureFixture) -> None:
    await schedule("hours", task, every="0 * * * *", tz="Europe/Berlin")
    with caplog.at_level(logging.WARNING):
        assert await diary.at(moment("2026-11-28T18:30")) == []
    assert await diary.at(moment("2026-11-28T19:00:30")) == ["19:00:30"]  # late by less than a minute


async def test_missed_ticks_are_made_later(diary: Diary, task: atasks.ATask[[], None]) -> None:
    await schedule("hours", task, every="0 * * * *", catch_up=True, overlap="allow")
    assert await diary.at(moment("2026-11-28T15:30")) == ["15:30:00"] * 3
    await schedule("seconds", task, every=1.0, catch_up=True, overlap="allow")
    assert len(await diary.at(moment("2026-11-28T15:40"))) == 3 + 100


async def test_a_clock_that_jumps(diary: Diary, task: atasks.ATask[[], None]) -> None:
    await schedule("minutes", task, every=60.0)
    assert await diary.at(NOW + 50) == ["12:01:00"]
    assert await diary.at(NOW - 600) == ["12:01:00"]  # back by eleven minutes: no tick is made twice
    assert await diary.at(NOW + 50) == ["12:01:00"]
    assert await diary.at(NOW + 111) == ["12:01:00", "12:02:01"]
    assert await diary.at(NOW + 7 * 24 * 3600 + 30) == ["12:01:00", "12:02:01", "12:00:40"]  # a week later
    assert len(await diary.at(NOW + 111)) == 3  # that was wrong
    assert len(await diary.at(NOW + 171)) == 4  # a last tick that is a week ahead says nothing


async def test_two_workers_that_both_keep_the_times(
    diary: Diary, task: atasks.ATask[[], None], connected: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connected.schedules
    assert store is not None
    monkeypatch.setattr(type(store), "leads", lambda self, look: True)
    worker = connected._worker  # type: ignore[attr-defined]
    other = asyncio.create_task(Ticker(worker.router, connected, store, diary.watch).run())
    await soon(diary.watch.looks.acquire())
    await schedule("minutes", task, every="* * * * *")
    for minute in (1, 2, 3):
        assert len(await diary.at(NOW + 60 * minute)) == minute
    other.cancel()
    await asyncio.wait([other])


async def test_a_tick_waits_for_no_call_that_goes_on(diary: Diary, task: atasks.ATask[[], None]) -> None:
    await schedule("minutes", task, every="* * * * *")
    diary.ended.clear()
    assert len(await diary.at(NOW + 60)) == 1
    assert len(await diary.at(NOW + 120)) == 1
    diary.ended.set()
    assert len(await diary.at(NOW + 121)) == 1
    assert len(await diary.at(NOW + 180)) == 2


async def test_a_drain_lets_a_turn_end(
    diary: Diary, task: atasks.ATask[[], None], connected: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is half submitted would count as one that goes on, and hold up those after it."""
    records = connected.records
    assert records is not None
    begin, begun, go_on = records.begin, asyncio.Event(), asyncio.Event()
    submitted: list[str] = []

    async def slow(*args: Any, **kwargs: Any) -> str:
        begun.set()
        await go_on.wait()
        submitted.append(await begin(*args, **kwargs))
        return submitted[-1]

    monkeypatch.setattr(records, "begin", slow)
    await schedule("minutes", task, every="* * * * *")
    diary.watch.set(NOW + 60)
    await soon(begun.wait())
    worker = connected._worker  # type: ignore[attr-defined]
    drain = asyncio.create_task(worker.drain(0.0))
    await asyncio.sleep(0.05)
    assert not drain.done()
    go_on.set()
    await soon(drain)
    (found,) = await schedules(namespace=task.namespace)
    assert [found.last_id] == submitted
