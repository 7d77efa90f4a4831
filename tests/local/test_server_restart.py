"""Servers, each with its hub, that end and come back while clients have calls in flight."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import atasks
from atasks import NoWorker, WorkerLost
from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.tasks import crash, echo, gated
from tests.local.fleet import Fleet
from tests.pace import keeping_pace

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("connected")]


@pytest.fixture
async def connected(fleet: Fleet, no_leaked_tasks: None) -> AsyncIterator[None]:
    await fleet.server(concurrency=200)
    async with atasks.connect(fleet.url):
        yield


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
async def test_calls_in_flight_survive_a_restart(
    fleet: Fleet, history: History, tmp_path: Path, how: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    (first,) = fleet.processes
    calls = history.start(500, gated, str(gate))
    await until(lambda: history.started() == 200, "all slots are in use")
    calls += history.start(100, echo)  # they wait behind the others
    first.signal(how)
    if how == signal.SIGTERM:
        gate.touch()  # what runs may finish
    await asyncio.to_thread(first.wait)
    gate.touch()
    await fleet.server(concurrency=200)
    await settled(asyncio.gather(*calls), "600 calls", 60)
    history.completed()
    history.check()
    attempts = {run.attempt for run in history.runs()}
    assert attempts == ({1, 2} if how == signal.SIGKILL else {1})


async def test_at_most_once_calls_end_promptly_when_the_server_dies(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    (first,) = fleet.processes
    calls = history.start(300, gated, str(tmp_path / "gate"), delivery="at_most_once")
    await until(lambda: history.started() == 200, "all slots are in use")
    first.kill()
    async with keeping_pace() as pace:
        await settled(asyncio.gather(*calls), "300 calls")
    assert pace.seconds < 5
    assert history.errors() == {"CallConnectionLost": 300}
    await fleet.server()
    assert len(history.runs()) == 200
    history.check()


async def test_at_most_once_calls_that_were_not_started_survive_a_drained_server(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    (first,) = fleet.processes
    calls = history.start(300, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() == 200, "all slots are in use")
    first.signal(signal.SIGTERM)
    gate.touch()
    await asyncio.to_thread(first.wait)
    await fleet.server()
    await settled(asyncio.gather(*calls), "300 calls")
    history.completed()
    history.check()


async def test_a_call_that_kills_the_server_takes_no_other_one_with_it(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    innocent = history.start(50, gated, str(gate))
    await until(lambda: history.started() == 50, "the innocent calls run")
    killer = asyncio.create_task(history.call(crash, "kill"))
    for number in range(3):
        await asyncio.to_thread(fleet.processes[-1].wait)
        if number == 1:
            gate.touch()
        await fleet.server()
    await settled(asyncio.gather(killer, *innocent), "51 calls", 60)
    error = killer.result().error
    assert isinstance(error, WorkerLost)
    assert error.attempts == 3
    assert [run.attempt for run in history.runs(killer.result().key)] == [1, 2, 3]
    assert history.errors() == {"value": 50, "WorkerLost": 1}
    history.check()


async def test_a_last_attempt_that_has_not_begun_is_not_lost_with_the_server(
    fleet: Fleet, history: History, tmp_path: Path
) -> None:
    """The call waits there to be alone, and the server is killed, with its hub."""
    gate = tmp_path / "gate"
    other = asyncio.create_task(history.call(gated, str(gate), key="other"))
    await until(lambda: len(history.runs("other")) == 1, "another call runs")
    call = asyncio.create_task(history.call(gated, str(gate), key="call", max_attempts=2))
    await until(lambda: len(history.runs("call")) == 1, "the first attempt runs")
    fleet.processes[-1].kill()
    await fleet.server()
    await until(lambda: len(history.runs("other")) == 2, "the other one runs again")
    await asyncio.sleep(0.2)  # the last attempt came with it, and would have begun by now
    fleet.processes[-1].kill()
    await fleet.server()
    gate.touch()
    await settled(asyncio.gather(call, other), "both calls", 60)
    history.completed()
    history.check()
    assert [run.attempt for run in history.runs("call")] == [1, 2]
    assert [run.attempt for run in history.runs("other")] == [1, 2, 3]


async def test_calls_made_while_there_is_no_server_wait_for_it(fleet: Fleet, history: History) -> None:
    (first,) = fleet.processes
    first.kill()
    calls = history.start(20, echo)
    with pytest.raises(atasks.CallTimeout):
        await settled(echo.options(timeout=0.3)("key", "nonce"), "a call with a deadline")
    with pytest.raises(NoWorker):
        await settled(echo.options(on_no_worker="error")("key", "nonce"), "a call that does not wait")
    await fleet.server()
    await settled(asyncio.gather(*calls), "20 calls")
    history.completed()
    history.check()


async def test_a_stale_socket_does_not_keep_the_next_server_from_starting(fleet: Fleet, history: History) -> None:
    for _ in range(3):
        fleet.processes[-1].kill()
        await fleet.server()
    await settled(asyncio.gather(*history.start(10, echo)), "10 calls")
    history.completed()
