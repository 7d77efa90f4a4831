"""Records in PostgreSQL, while the database, workers and connections come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import RecordsUnavailable
from atasks.testing import soon, until
from atasks.transport.records.postgres.database import Database
from atasks.transport.records.postgres.rows import Ended, New
from tests.broker import Broker
from tests.brokers.postgres import OwnPostgres, Postgres, own
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.resuming import row
from tests.faults.submitters import chained
from tests.faults.tasks import passed
from tests.faults.workers import Fleet, WorkerProcess

CALLS = 20
STAGES = 3


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    database = own()
    yield database
    database.close()


@pytest.fixture
def database(own_postgres: OwnPostgres) -> OwnPostgres:
    """A running database that the test may stop and kill."""
    own_postgres.start()
    return own_postgres


@pytest.fixture
async def connected(
    node: Broker, prefix: str, database: OwnPostgres, cleanup: None, no_leaked_tasks: None
) -> AsyncIterator[None]:
    async with atasks.connect(node.url, prefix=prefix, records=database.url):
        yield


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    path = tmp_path / "gates"
    path.mkdir()
    return path


async def _start(fleet: Fleet, database: Postgres, **options: Any) -> WorkerProcess:
    return await asyncio.to_thread(fleet.start_one, records=database.url, **options)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_database_that_goes_away_and_comes_back_loses_nothing(
    fleet: Fleet, database: OwnPostgres, gates: Path, history: History, connected: None, how: str
) -> None:
    await _start(fleet, database)
    handles = [await soon(passed.submit(str(gates), number, [])) for number in range(CALLS)]
    waiting = [asyncio.ensure_future(_value(handle)) for handle in handles[: CALLS // 2]]
    unique = await soon(passed.options(unique="mine", keep=0).submit(str(gates), 0, []))
    await until(lambda: all(history.runs(f"stage-{number}") for number in range(CALLS)), "all calls run")
    await asyncio.to_thread(database.kill if how == "kill" else database.stop)
    for number in range(CALLS):  # they end while there is no database
        (gates / str(number)).touch()
    ended = lambda: all(run.ending for number in range(CALLS) for run in history.runs(f"stage-{number}"))  # noqa: E731
    await until(ended, "all calls have ended")
    assert not any(task.done() for task in waiting)
    await asyncio.to_thread(database.start)
    results = await settled(asyncio.gather(*map(_value, handles)), "the results")
    assert results == [[number] for number in range(CALLS)]
    assert await settled(asyncio.gather(*waiting), "those who waited before") == results[: CALLS // 2]
    assert [len(history.runs(f"stage-{number}")) for number in range(1, CALLS)] == [1] * (CALLS - 1)
    await until(lambda: fleet.workers[0].running, "the worker lives")
    await fleet.quiet()  # each was acknowledged
    again = await settled(passed.options(unique="mine", keep=0).submit(str(gates), 0, []), "another submission")
    assert (again.new, again != unique) == (True, True)


async def test_calls_begin_while_the_database_is_away(
    fleet: Fleet, database: OwnPostgres, gates: Path, history: History, connected: None
) -> None:
    await _start(fleet, database)
    handles = [await soon(passed.options(delay=1.5).submit(str(gates), number, [])) for number in range(3)]
    await asyncio.to_thread(database.kill)
    for number in range(3):
        (gates / str(number)).touch()
    assert not history.runs()
    await until(lambda: len(history.runs()) == 3, "all of them run")
    await asyncio.to_thread(database.start)
    assert await settled(asyncio.gather(*map(_value, handles)), "the results") == [[0], [1], [2]]


async def test_database_dies_between_the_run_and_its_reply(
    fleet: Fleet, database: OwnPostgres, gates: Path, history: History, connected: None
) -> None:
    """The worker dies too, with the reply that it could not write: the call runs again."""
    victim = await _start(fleet, database)
    handle = await soon(passed.submit(str(gates), 0, []))
    await until(lambda: history.runs("stage-0"), "the call runs")
    await asyncio.to_thread(database.kill)
    (gates / "0").touch()
    await until(lambda: history.runs("stage-0")[0].ending, "the call ends")
    victim.kill()
    await asyncio.to_thread(database.start)
    await _start(fleet, database)
    assert await settled(handle, "the result") == [0]
    assert len(history.runs("stage-0")) == 2
    await fleet.quiet()


async def test_a_submitted_call_that_resumes_survives_its_workers_and_the_database(
    node: Broker,
    prefix: str,
    fleet: Fleet,
    database: OwnPostgres,
    gates: Path,
    history: History,
    connected: None,
) -> None:
    """The run's record is in the database, and its journal at the broker."""
    opened = [str(gates / f"{number}") for number in range(3)]
    await _start(fleet, database, module="tests.faults.resuming")
    handle = await soon(row.submit("kept", opened))
    for number, gate in enumerate(opened):
        await until(lambda number=number: history.runs(f"kept-{number}"), f"step {number}")  # type: ignore[misc]
        await asyncio.sleep(0.3)  # it has ended, and its reply is safe
        if number == 1:
            await asyncio.to_thread(database.kill)
        fleet.workers[-1].kill()
        if number == 1:
            await asyncio.to_thread(database.start)
        await _start(fleet, database, module="tests.faults.resuming")
        Path(gate).touch()
    pids = [worker.pid for worker in fleet.workers[:3]]
    assert await settled(handle, "the result") == [pid for pid in pids for _ in range(2)]
    assert [len(history.runs(f"kept-{number}")) for number in range(3)] == [1, 1, 1]
    names = lambda: [queue.name for queue in node.queues() if queue.name.startswith(f"{prefix}.run.")]  # noqa: E731
    await until(lambda: not names(), "the journal is dropped")


async def test_worker_dies_between_the_reply_and_its_acknowledgement(
    node: Broker, fleet: Fleet, database: OwnPostgres, gates: Path, history: History, connected: None
) -> None:
    """The call is delivered again, and does not run: its record says that it has ended."""
    proxy = Proxy(node.url)
    try:
        victim = await _start(fleet, database, url=proxy.url())
        handle = await soon(passed.submit(str(gates), 0, []))
        await until(lambda: history.runs("stage-0"), "the call runs")
        proxy.mute("to_broker")  # no acknowledgement arrives
        (gates / "0").touch()
        assert await settled(handle, "the result") == [0]
        victim.kill()
    finally:
        proxy.close()
    await _start(fleet, database)
    await fleet.quiet()
    assert len(history.runs("stage-0")) == 1


async def test_a_commit_of_which_nobody_hears_counts_once(database: OwnPostgres, prefix: str) -> None:
    """The connection is lost when the statement has arrived, and before its answer has."""
    proxy = Proxy(database.url)
    records = Database(proxy.url(), prefix, "default", 10.0)
    await records.open()
    try:
        new = New("a~1", "a", "task", "q", 60_000, 0, True, b"request")
        for order in (lambda: records.begin(new), lambda: records.end(Ended("a~1", 0, "w", b"reply"))):
            accepted = proxy.accepted
            proxy.mute("to_client")
            doing = asyncio.ensure_future(order())
            await until(lambda: proxy.swallowed("to_client"), "the answer is lost")
            proxy.drop()
            assert await settled(doing, "the order")
            assert proxy.accepted > accepted
        found = await soon(records.read("a~1"))
        assert found is not None
        assert (found.request, found.reply) == (b"request", b"reply")
        assert not await soon(records.end(Ended("b", 0, "w", b"reply")))
    finally:
        await records.close("the test has ended")
        proxy.close()


async def test_a_database_that_freezes_is_left(database: OwnPostgres, prefix: str) -> None:
    """Nobody answers, and no connection is lost."""
    records = Database(database.url, prefix, "default", 0.5)
    await records.open()
    database.freeze(True)
    try:
        with pytest.raises(RecordsUnavailable, match=r"was away for 0\.5 s"):
            await soon(records.begin(New("a", None, "task", "q", 60_000, 0, True, b"request")))
    finally:
        database.freeze(False)
    assert await soon(records.end(Ended("a", 0, "w", b"reply"))) in (True, False)
    await records.close("the test has ended")


async def test_submissions_while_the_database_is_away(
    fleet: Fleet, node: Broker, prefix: str, database: OwnPostgres, gates: Path, history: History
) -> None:
    for number in range(3):
        (gates / str(number)).touch()
    await _start(fleet, database)
    async with atasks.connect(node.url, prefix=prefix, records=database.url, timeout=1.0):
        await asyncio.to_thread(database.kill)
        with pytest.raises(RecordsUnavailable, match=r"postgresql://…@127\.0\.0\.1") as raised:
            await soon(passed.submit(str(gates), 0, []))
        assert "a-secret" not in str(raised.value)
        await soon(passed.options(keep=0).submit(str(gates), 1, []))  # it needs no record
        await until(lambda: history.runs("stage-1"), "the call without a record runs")
        submitting = asyncio.ensure_future(_submitted(passed.options(unique="mine"), str(gates), 2, []))
        await asyncio.to_thread(database.start)
        assert await settled(await settled(submitting, "the submission"), "the result") == [2]
        assert not history.runs("stage-0")
    assert "a-secret" not in fleet.logs()


async def test_a_run_of_a_pipeline_survives_workers_and_the_database(
    fleet: Fleet, database: OwnPostgres, gates: Path, history: History, connected: None
) -> None:
    victim = await _start(fleet, database)
    handle = await soon(chained(str(gates), STAGES).submit([]))
    ending = asyncio.ensure_future(_value(handle))
    for number in range(STAGES):
        await until(lambda: history.runs(f"stage-{number}"), f"stage {number} runs")  # noqa: B023
        if number == 1:
            await asyncio.to_thread(database.kill)
            await asyncio.to_thread(database.start)
        else:
            victim.kill()
            victim = await _start(fleet, database)
        (gates / str(number)).touch()
    assert await settled(ending, "the result") == [0, 1, 2]
    assert await settled(handle.step(1), "a step") == [0, 1]


async def _value(handle: Any) -> Any:
    return await handle


async def _submitted(task: Any, *args: Any) -> Any:
    """Submit it, again where the database is not back in time."""
    while True:
        try:
            return await task.submit(*args)
        except RecordsUnavailable:
            continue
