"""The state behind the page: what it makes of events, in whatever order and number they come."""

# Private attributes: `Picture._removed` is made smaller: the real one would need very many events.

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from atasks.tracking import BOUNDS, Histogram, TaskCounts
from atasks.web import picture
from atasks.web.picture import Picture


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def event(kind: str, number: int = 1, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "id": f"call{number}", "task": "app.pay", "worker": "ann", "queue": "default"} | more


def test_a_call_is_shown_in_the_state_that_its_last_event_left(clock: Clock) -> None:
    shown = Picture(clock)
    states = []
    for kind in ("sent", "received", "started", "parked", "resumed", "given_back"):
        shown.take(event(kind, time=clock.now))
        states.append(shown.snapshot()["calls"][0]["state"])
    assert states == ["waiting", "waiting", "running", "parked", "running", "waiting"]
    shown.take(event("started", time=1001.0))
    shown.take(event("ended", status="value", time=1003.0))
    whole = shown.snapshot()
    assert whole["calls"] == []
    assert whole["spans"][0] | {"from": 1001.0, "to": 1003.0, "status": "value"} == whole["spans"][0]


def test_equal_failures_are_one_row_and_the_latest_comes_first(clock: Clock) -> None:
    shown = Picture(clock)
    trace = 'Traceback\n  File "a.py", line 3, in pay\nValueError: {}'
    for number in range(3):
        shown.take(event("ended", number, status="error", type="ValueError", traceback=trace.format(number)))
    shown.take(event("lost", 9, task="app.mail"))
    rows = shown.snapshot()["failures"]
    assert [(row["task"], row["type"], row["count"]) for row in rows] == [
        ("app.mail", "lost", 1),
        ("app.pay", "ValueError", 3),
    ]
    assert rows[1]["traceback"].endswith("ValueError: 2")


def test_what_is_wrong_now_is_named(clock: Clock) -> None:
    shown = Picture(clock)
    shown.connected = True
    assert shown.snapshot()["wrong"] == []
    shown.count(
        {"app.pay": TaskCounts("app.pay", ended={"value": 60}, run=Histogram(6.0, [0] * 17 + [60] + [0] * 10))}
    )
    shown.take(event("started", 100, time=clock.now))
    shown.queues = [
        {"queue": "mail", "ready": 3, "consumers": 0},
        {"queue": "held", "ready": 0, "consumers": 1},
    ]
    clock.now += 30.0
    texts = [item["text"] for item in shown.snapshot()["wrong"]]
    assert texts == [
        "queue mail has 3 waiting calls and no worker",
        "worker ann has been silent for 30 s",
        "app.pay has run for 30.0 s; 99 of 100 end within 1.0 s",
    ]
    clock.now += 100.0
    assert shown.snapshot()["workers"] == []


def test_nothing_grows_without_bound(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bound in (("LIVE", 50), ("FAILURES", 10), ("TASKS", 5), ("WORKERS", 7)):
        monkeypatch.setattr(picture, name, bound)
    shown = Picture(clock)
    for number in range(300):
        shown.take(event("started", number, task=f"app.task{number}", worker=f"worker{number}"))
    whole = shown.snapshot()
    assert (len(whole["calls"]), whole["unshown"], len(whole["workers"])) == (50, 250, 7)
    shown.count({f"app.task{number}": TaskCounts("") for number in range(300)})
    for number in range(300):
        shown.take(event("ended", number, status="error", type=f"Error{number}"))
    whole = shown.snapshot()
    assert (whole["calls"], len(whole["failures"]), len(whole["tasks"])) == ([], 10, 5)


def test_megabytes_of_a_worker_do_not_go_to_each_browser(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second: whoever sends one message would have a thousand of them sent."""
    monkeypatch.setattr(picture, "COUNTED", 7)
    shown, long = Picture(clock), "x" * 2**20
    texts = dict.fromkeys(
        ("task", "root", "parent", "queue", "worker", "note", "type", "status", "traceback"), long
    )
    shown.take(event("started", 1, **texts))
    shown.inspected([event("started", 2, **texts, awaits=long)], shown.version)
    shown.take(event("ended", 3, **texts))
    shown.take({"kind": "worker", "worker": "ann", "host": long, "queues": [long] * 1000})
    shown.take(event("started", 4, id=long))
    shown.inspected([event("started", 5, id=long)], shown.version)
    shown.count({f"{number}{long}": TaskCounts("", started=number) for number in range(50)})
    whole = shown.snapshot()
    assert len(json.dumps(whole)) < 100_000
    assert {call["id"] for call in whole["calls"]} == {"call1", "call2"}
    assert sorted(task["started"] for task in whole["tasks"]) == list(range(43, 50))


def test_figures_come_from_the_counters(clock: Clock) -> None:
    shown = Picture(clock)
    run = Histogram(8.0, [0] * 10 + [90] + [0] * 9 + [10] + [0] * 7)
    shown.count({"app.pay": TaskCounts("app.pay", started=10, ended={"value": 10})})
    clock.now += 5.0
    counts = TaskCounts("app.pay", started=110, ended={"value": 100, "raised": 9, "cancelled": 1}, run=run)
    shown.count({"app.pay": counts, "app.mail": TaskCounts("app.mail", ended={"value": 5})})
    first, second = shown.snapshot()["tasks"]
    assert (first["task"], first["rate"], first["ended"], first["failed"]) == ("app.pay", 20.0, 110, 9)
    assert (second["task"], second["rate"], second["failed"]) == ("app.mail", 1.0, 0)
    assert (first["p50"], first["p95"]) == (BOUNDS[10], BOUNDS[20])


def test_changes_added_up_are_the_whole_picture(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever events come, a viewer that adds up changes sees what one that asks for everything sees."""
    monkeypatch.setattr(picture, "REMOVED", 40)
    for seed in range(30):
        chance = random.Random(seed)
        shown = Picture(clock)
        shown._removed = type(shown._removed)(maxlen=40)  # made before the smaller bound
        seen: dict[str, Any] = {}
        version = 0
        for _ in range(60):
            for _ in range(chance.choice((0, 1, 5, 60))):
                kind = chance.choice(("sent", "received", "started", "parked", "report", "ended", "lost", "odd"))
                shown.take(event(kind, chance.randrange(30), status=chance.choice(("value", "error")), done=1))
            update = json.loads(json.dumps(shown.changes(version)))
            if update["full"]:
                seen.clear()
            for identity in update["removed"]:
                seen.pop(identity, None)
            seen.update({call["id"]: call for call in update["calls"]})
            version = update["version"]
            assert seen == {call["id"]: call for call in shown.snapshot()["calls"]}, seed


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"kind": None},
        {"kind": "started"},
        {"kind": "started", "id": 7},
        {"kind": "ended", "id": "x"},
        {"kind": "?", "id": "y"},
    ],
)
def test_an_odd_event_changes_no_call(clock: Clock, odd: dict[str, Any]) -> None:
    shown = Picture(clock)
    shown.take(odd)
    assert shown.snapshot()["calls"] == []


def test_calls_that_a_worker_no_longer_holds_are_forgotten(clock: Clock) -> None:
    shown = Picture(clock)
    shown.take(event("started", 1, time=990.0))
    shown.take(event("started", 2, time=999.5))
    shown.take(event("started", 3, time=990.0, worker="bob"))
    shown.inspected(
        [{"id": "call4", "task": "app.mail", "worker": "ann", "state": "parked", "age": 30.0}], shown.version
    )
    shown.only("ann", ["call4"], asked=999.0)
    assert {call["id"] for call in shown.snapshot()["calls"]} == {"call2", "call3", "call4"}


def test_an_answer_that_events_have_overtaken_brings_no_call_back(clock: Clock) -> None:
    """Workers are asked for a second: what has happened meanwhile counts."""
    shown = Picture(clock)
    for number in (1, 2, 3):
        shown.take(event("started", number))
    asked = shown.version
    shown.take(event("ended", 1, status="value"))
    shown.take(event("parked", 2))
    shown.take(event("ended", 5, status="value"))
    told = [
        {"id": f"call{number}", "task": "app.add", "worker": "ann", "state": "running"} for number in range(1, 6)
    ]
    shown.inspected(told, asked)
    states = {row["id"]: row["state"] for row in shown.snapshot()["calls"]}
    assert states == {"call2": "parked", "call3": "running", "call4": "running"}
