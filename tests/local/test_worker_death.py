"""Workers around a hub that die, stop or drain with calls in hand. The hub is in the process of the test."""

# Private attributes: `Hub._calls`: a call that waits at the hub is seen nowhere else.

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atasks
from atasks import Progress, atask
from atasks.testing import until
from atasks.transport.backends.local.hub.listener import Host
from tests.faults.history import History, settled
from tests.faults.poison import poison
from tests.faults.tasks import chain, echo, fib, gated, reporting, work
from tests.local.fleet import Fleet
from tests.pace import keeping_pace
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("connected")]

LONG = 600.0
"""Seconds within which a busy machine has started the next worker."""


@pytest.fixture
async def connected(host: Host, path: str) -> AsyncIterator[None]:
    async with atasks.connect(f"unix://{path}"):
        yield


async def test_calls_of_a_killed_worker_complete_at_another(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    victim = await fleet.worker(concurrency=10)
    calls = history.start(40, gated, str(gate))
    await until(lambda: history.started() == 10, "the victim has all slots in use")
    await fleet.worker(concurrency=100)
    await until(lambda: history.started() == 40, "the others run at the second worker")
    victim.kill()
    await until(lambda: history.started() == 50, "the victim's calls run again")
    gate.touch()
    await settled(asyncio.gather(*calls), "40 calls")
    history.completed()
    history.check()
    assert sorted(run.attempt for run in history.runs()) == [1] * 40 + [2] * 10


async def test_progress_begins_anew_where_a_worker_died(fleet: Fleet, history: History, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    victim = await fleet.worker()
    got: list[Progress] = []
    async with asyncio.timeout(DEADLINE), reporting.watch(str(gate)) as call:
        async for progress in call.progress():
            got.append(progress)
            if progress == Progress(1, 2, attempt=1):
                await fleet.worker()
                victim.kill()
            elif progress.attempt == 2:
                gate.touch()
        assert await call == 2
    assert got[:2] == [Progress(1, 2, attempt=1), Progress(1, 2, attempt=2)]
    assert got[-1] == Progress(2, 2, attempt=2)


async def test_at_most_once_calls_of_a_killed_worker_end_promptly(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    victim = await fleet.worker(concurrency=10)
    calls = history.start(30, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 10, "the victim runs as many as it has slots")
    victim.kill()
    async with keeping_pace() as pace:
        await until(lambda: history.errors() == {"WorkerLost": 10}, "those that it ran have ended")
    assert pace.seconds < 5
    gate.touch()
    await fleet.worker()
    await settled(asyncio.gather(*calls), "30 calls")
    assert history.errors() == {"WorkerLost": 10, "value": 20}
    history.check()


@pytest.mark.parametrize("how", ["kill", "exit", "segfault"])
async def test_a_call_that_kills_every_worker_takes_no_other_one_with_it(
    fleet: Fleet, history: History, tmp_path: Path, how: str
) -> None:
    await fleet.start(2, concurrency=30)

    async def replace() -> None:
        await fleet.start(concurrency=30, wait=False)

    await poison(history, tmp_path / "gate", how, fleet.processes, replace, DEADLINE * 2)


async def test_a_last_attempt_that_has_not_begun_is_not_lost_with_its_worker(
    fleet: Fleet, host: Host, history: History, tmp_path: Path
) -> None:
    """The call waits to be alone there, and another call kills the worker first, twice. Once begun, it is lost."""

    def waits() -> bool:
        entries = host.hub._calls.values()
        return any(entry.alone and entry.worker is not None and not entry.begun for entry in entries)

    gate, other_gate = tmp_path / "gate", tmp_path / "other"
    dying = await fleet.worker(concurrency=1)
    call = asyncio.create_task(history.call(gated, str(gate), key="call", max_attempts=2))
    await until(lambda: len(history.runs("call")) == 1, "the first attempt runs")
    others = []
    for number in range(2):
        worker = await fleet.worker(alone_patience=LONG)
        others += history.start(1, gated, str(other_gate), max_attempts=9)
        await until(lambda: history.started() == 1 + len(others), "another call runs beside it")  # noqa: B023
        dying.kill()
        await until(waits, f"the last attempt waits for other calls to end, {number}")
        dying = worker
    last = await fleet.worker()
    dying.kill()
    other_gate.touch()
    await settled(asyncio.gather(*others), "the other calls")
    await until(lambda: len(history.runs("call")) == 2, "the last attempt runs")
    last.kill()
    ended = await settled(call, "a call that has begun its last attempt")
    assert isinstance(ended.error, atasks.WorkerLost)
    assert ended.error.attempts == 2
    history.check()
    assert [run.attempt for run in history.runs("call")] == [1, 2]


def note(log: str, attempt: int) -> None:
    with Path(log).open("a") as file:
        file.write(f"{attempt}\n")


@atask(orphan="run")
async def noted(attempt: int, log: str) -> int:
    note(log, attempt)
    return attempt


@atask
async def dies_with_its_reply(log: str) -> int:
    attempt = await noted(atasks.current_call().attempt, log)
    if attempt < 3:
        os._exit(1)
    return attempt


async def test_what_runs_on_without_its_caller_is_over_before_its_caller_has_the_reply(tmp_path: Path) -> None:
    """Although both run in one process, which dies as soon as the caller goes on."""
    log = tmp_path / "log"
    async with atasks.local(workers=1, concurrency=2, modules=[__name__]):
        assert await asyncio.wait_for(dies_with_its_reply(str(log)), DEADLINE) == 3
        await noted(4, str(log))  # behind those that would run again
    assert log.read_text().split() == ["1", "2", "3", "4"]


async def test_recursion_survives_a_worker_that_dies(fleet: Fleet, history: History) -> None:
    victim, _ = await fleet.start(2, concurrency=1)
    call = asyncio.create_task(fib(14))
    await until(lambda: len(history.peaks()) == 2, "both workers run parts of it")
    victim.kill()
    assert await settled(call, "fib(14)", 60) == 377
    assert set(history.peaks().values()) == {1}


async def test_recursion_needs_one_slot(fleet: Fleet, history: History) -> None:
    await fleet.worker(concurrency=1)
    assert await settled(chain(300), "300 calls in one another", 60) == 300
    assert await settled(fib(13), "fib(13)", 60) == 233
    assert set(history.peaks().values()) == {1}


async def test_a_worker_that_drains_finishes_what_runs_and_charges_nobody(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = await fleet.worker(concurrency=5)
    calls = history.start(20, gated, str(gate))
    await until(lambda: history.started() == 5, "all slots are in use")
    first.signal(signal.SIGTERM)
    await fleet.worker(concurrency=100)
    await until(lambda: history.started() == 20, "the others run at the second worker")
    gate.touch()
    assert await asyncio.to_thread(first.wait) == 0
    await settled(asyncio.gather(*calls), "20 calls")
    history.completed()
    history.check()
    assert {run.attempt for run in history.runs()} == {1}


async def test_runs_past_the_grace_are_given_back(fleet: Fleet, history: History, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = await fleet.worker(grace=0.2)
    calls = [*history.start(5, gated, str(gate)), *history.start(5, gated, str(gate), delivery="at_most_once")]
    await until(lambda: history.started() == 10, "it runs them")
    assert await asyncio.to_thread(first.stop) == 0
    gate.touch()
    await fleet.worker()
    await settled(asyncio.gather(*calls), "10 calls")
    assert history.errors() == {"value": 5, "WorkerLost": 5}
    history.check()
    assert {run.attempt for run in history.runs()} == {1}


async def test_a_worker_that_stops_holds_up_nobody_else(fleet: Fleet, history: History) -> None:
    stopped = await fleet.worker(concurrency=5)
    held = history.start(5, work, 0.01)
    stopped.signal(signal.SIGSTOP)
    await fleet.worker(concurrency=5)
    others = history.start(500, echo)
    await until(lambda: sum(task.done() for task in others) >= 490, "nearly all others have ended")
    stopped.signal(signal.SIGCONT)
    await settled(asyncio.gather(*held, *others), "505 calls")
    history.completed()
    history.check()
    assert {run.attempt for run in history.runs()} == {1}


async def test_a_worker_whose_hub_is_gone_ends(fleet: Fleet, host: Host, history: History, tmp_path: Path) -> None:
    worker = await fleet.worker()
    calls = history.start(3, gated, str(tmp_path / "gate"))
    await until(lambda: history.started() == 3, "it runs them")
    await host.close()
    await asyncio.to_thread(worker.wait)
    assert [run.ending for run in history.runs()] == ["cancelled"] * 3
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
