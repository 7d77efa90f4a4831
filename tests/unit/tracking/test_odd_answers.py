"""Answers that make no sense: anybody who is asked may give one, and who asks reads none of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec import msgpack

from atasks.tracking import Histogram, TaskCounts
from atasks.tracking.fleet import MAX_QUEUES, Fleet
from atasks.tracking.queries import Calls, Events, WorkerInfo, decode_answer
from atasks.transport.loopback import LoopbackTransport

ODD = [math.nan, math.inf, -math.inf, 1e300, -1e17]


def worker(**changed: Any) -> dict[str, Any]:
    names = ("id", "host", "namespace", "version", "python", "codec", "transport")
    numbers = ("pid", "concurrency", "running", "parked", "waiting", "bad")
    said: dict[str, Any] = {"type": "worker", "queues": [], "draining": False, "tasks": []}
    said |= dict.fromkeys(names, "x") | dict.fromkeys(numbers, 1)
    return said | {"now": 1e9, "uptime": 1.0, "loop_lag": 0.0} | changed


def call(**changed: Any) -> dict[str, Any]:
    said = {"id": "c1", "task": "a.task", "worker": "w", "state": "running", "queue": "q", "age": 1.0}
    return {"type": "calls", "calls": [said | changed], "total": 1}


def event(**changed: Any) -> dict[str, Any]:
    return {
        "type": "events",
        "first": 0,
        "dropped": 0,
        "events": [{"kind": "ended", "at": 1e9, "id": "c1", "task": "a.task"} | changed],
    }


def counted(**changed: Any) -> dict[str, Any]:
    return worker(tasks=[{"task": "a.task", "run": {"sum": 1.0, "buckets": [1]} | changed}])


def test_answers_that_make_sense_are_read() -> None:
    kinds = [type(decode_answer(msgpack.encode(answer))) for answer in (worker(), call(), event(), counted())]
    assert kinds == [WorkerInfo, Calls, Events, WorkerInfo]
    skewed = decode_answer(msgpack.encode(call(age=-86_400.0, left=-3.0)))  # of a host whose clock is a day ahead
    assert isinstance(skewed, Calls)


@pytest.mark.parametrize("number", ODD, ids=str)
@pytest.mark.parametrize(
    ("answer", "field"),
    [
        *[(worker, field) for field in ("now", "uptime", "loop_lag")],
        *[(call, field) for field in ("age", "ran", "left")],
        *[(event, field) for field in ("at", "ran")],
        (counted, "sum"),
    ],
)
def test_times_that_no_calendar_has(answer: Any, field: str, number: float) -> None:
    assert decode_answer(msgpack.encode(answer(**{field: number}))) is None


@pytest.mark.parametrize("field", ["done", "total"])
def test_progress_that_is_no_number(field: str) -> None:
    assert decode_answer(msgpack.encode(event(**{field: math.nan}))) is None
    assert decode_answer(msgpack.encode(event(**{field: math.inf}))) is None
    assert isinstance(decode_answer(msgpack.encode(event(**{field: 1e300}))), Events)


def test_counts_below_zero() -> None:
    assert decode_answer(msgpack.encode(counted(buckets=[5, -5]))) is None


def test_counts_of_workers_with_more_buckets_are_added() -> None:
    """A worker of another version may have more of them."""
    few = TaskCounts("a.task", run=Histogram(1.0, [1, 2]))
    many = TaskCounts("a.task", run=Histogram(2.0, [1, 0, 3]))
    assert (few + many).run == (many + few).run == Histogram(3.0, [2, 2, 3])


class Asked(LoopbackTransport):
    """Keeps the names of the queues that it was asked about."""

    async def queue_states(self, queues: Any) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(queues, (0, 0))

    async def paused_queues(self, queues: Any) -> list[str]:
        return list(queues)


async def test_names_that_no_queue_has_are_not_looked_for() -> None:
    """Nor more than a thousand: each is a question to the broker."""
    fleet = Fleet(Asked("default"))
    odd = ["", "a b", "x" * 101, "\x1b[31m", "é"]
    assert await fleet.paused([*odd, "good"]) == ["good"]
    assert await fleet.queue_states([*odd, "good"]) == {"good": (0, 0)}
    many = [f"q{number}" for number in range(MAX_QUEUES + 5)]
    assert len(await fleet.paused(many)) == len(await fleet.queue_states(many)) == MAX_QUEUES
