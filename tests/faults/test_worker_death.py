"""Workers that die with calls in hand."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.faults.history import History, settled
from tests.faults.poison import poison
from tests.faults.tasks import echo, gated, parent
from tests.faults.workers import Fleet
from tests.waiting import DEADLINE

QUEUE_TYPES = ["classic", "quorum"]


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_calls_of_a_killed_worker_complete_at_another(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    victim = fleet.start_one(concurrency=10, queue_type=queue_type)
    calls = history.start(40, gated, str(gate))
    await until(lambda: history.started() == 10, "the victim has all slots in use")
    fleet.start(concurrency=100, queue_type=queue_type)
    await until(lambda: history.started() == 40, "the others run at the second worker")
    victim.kill()
    await until(lambda: history.started() == 50, "the victim's calls run again")
    gate.touch()
    await settled(asyncio.gather(*calls), "40 calls")
    history.completed()
    history.check()
    await fleet.quiet()
    attempts = sorted(run.attempt for run in history.runs())
    assert attempts == [1] * 40 + [2] * 10


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_calls_that_have_ended_do_not_run_again_with_those_that_shared_their_message(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    gate, ended = tmp_path / "gate", tmp_path / "ended"
    ended.touch()
    victim = fleet.start_one(queue_type=queue_type)
    parked = history.start(4, parent, str(gate), batch=8)
    done = history.start(4, parent, str(ended), batch=8)
    await settled(asyncio.gather(*done), "calls of the message that end")
    await until(lambda: history.started() == 8, "all have begun")
    victim.kill()
    fleet.start(queue_type=queue_type)
    await until(lambda: history.started() >= 12, "what has not ended runs again")
    gate.touch()
    await settled(asyncio.gather(*parked), "calls of the message that were parked")
    history.completed()
    history.check()
    attempts = Counter(run.attempt for ended in history.awaits for run in history.runs(ended.key))
    assert attempts == {1: 8, 2: 4}


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_at_most_once_calls_of_a_killed_worker_end_promptly(
    fleet: Fleet, history: History, tmp_path: Path, queue_type: str
) -> None:
    gate = tmp_path / "gate"
    victim = fleet.start_one(concurrency=10, queue_type=queue_type)
    calls = history.start(10, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 10, "the victim runs all of them")
    fleet.start(queue_type=queue_type)
    victim.kill()
    killed = time.monotonic()
    await settled(asyncio.gather(*calls), "at-most-once calls of a dead worker", 5)
    assert time.monotonic() - killed < 5
    assert history.errors() == {"WorkerLost": 10}
    history.check()
    await fleet.quiet()


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_the_end_of_a_call_whose_worker_was_killed_says_where_it_ran(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    """The worker that finds out does not know, and the caller has been told."""
    monkeypatch.setattr(OverdueCalls, "patience", 0.5)
    monkeypatch.setattr(OverdueCalls, "pause", 0.1)
    victim = fleet.start_one()
    async with atasks.connect(fleet.broker.url, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        calls = history.start(1, gated, str(tmp_path / "gate"), delivery=delivery, max_attempts=1)
        await until(lambda: any(item.ran_at for item in transport.session.pendings.values()), "it is known")
        fleet.start()
        victim.kill()
        await settled(asyncio.gather(*calls), "the call of a dead worker", 20)
    (error,) = (item.error for item in history.awaits)
    assert isinstance(error, atasks.WorkerLost)
    assert error.waited_for == "run"
    assert error.worker
    assert error.ran is not None
    assert re.search(rf"; when last seen, it ran at worker {re.escape(error.worker)} for \d+\.\d s$", str(error))
    await fleet.quiet()


@pytest.mark.parametrize(
    ("how", "queue_type"),
    [("kill", "classic"), ("kill", "quorum"), ("exit", "classic"), ("segfault", "quorum")],
)
@pytest.mark.usefixtures("connected")
async def test_a_call_that_kills_every_worker_takes_no_other_one_with_it(
    fleet: Fleet, history: History, tmp_path: Path, how: str, queue_type: str
) -> None:
    options = {"concurrency": 30, "queue_type": queue_type}
    fleet.start(2, **options)

    async def replace() -> None:
        fleet.start_one(wait=False, **options)

    await poison(history, tmp_path / "gate", how, fleet.workers, replace, DEADLINE)
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_calls_that_wait_while_no_worker_lives_complete_at_the_next_one(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    victim = fleet.start_one(concurrency=5)
    calls = history.start(20, gated, str(gate))
    await until(lambda: history.started() == 5, "the victim is busy")
    victim.kill()
    more = history.start(20, echo)
    gate.touch()
    await asyncio.to_thread(fleet.start)
    await settled(asyncio.gather(*calls, *more), "40 calls")
    history.completed()
    history.check()
    await fleet.quiet()
