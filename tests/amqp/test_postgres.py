"""Records in PostgreSQL: the tables, who believes them, and what keeps a password from being seen."""

# Private attributes: `StoredRecords._session`, `_sender` and `_broker`: one more is made of the same parts,
# whose sender dies.

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import atasks
from atasks import (
    AccessRefused,
    ConnectFailed,
    InvalidURL,
    Retry,
    Transport,
    UnknownRun,
    atask,
    schedule,
    unschedule,
)
from atasks.options import TaskOptions
from atasks.pipeline import collect, flat_map, map, stage
from atasks.router import get_router
from atasks.submitted.submit import unique_id
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.stored import StoredRecords
from atasks.transport.backends.amqp.worker import kept_calls
from atasks.transport.records.postgres.database import Database
from atasks.transport.records.postgres.rows import Ended, New
from atasks.wire import Call
from tests.broker import Broker
from tests.brokers.postgres import PASSWORD, Postgres
from tests.keys import KeyFiles, caller_first

pytestmark = pytest.mark.usefixtures("amqp_leaks")

Connect = Callable[..., Any]


@atask
async def double(x: int) -> int:
    return 2 * x


@atask
async def upto(n: int) -> list[int]:
    return list(range(n))


@atask
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture
def options(prefix: str, postgres_url: str) -> dict[str, Any]:
    return {"prefix": prefix, "records": postgres_url}


@pytest.fixture
def new_database(prefix: str, postgres_url: str) -> Iterator[Callable[[], Any]]:
    """Opens the records of this test's prefix."""

    @asynccontextmanager
    async def opened(url: str = postgres_url) -> AsyncIterator[Database]:
        database = Database(url, prefix, "default", 10.0)
        await database.open()
        try:
            yield database
        finally:
            await database.close("the test has ended")

    return opened


def new(call_id: str, **changes: Any) -> New:
    return New(call_id, None, "task", "default", 60_000, 0, True, b"request")._replace(**changes)


# -- the tables


async def test_many_that_come_first_make_the_tables_once(postgres: Postgres, new_database: Connect) -> None:
    schema = f"first_{uuid.uuid4().hex}"
    postgres.query(f"CREATE SCHEMA {schema}")
    url = f"{postgres.url}?options={quote(f'-csearch_path={schema}')}"
    async with AsyncExitStack() as stack:
        databases = await soon(asyncio.gather(*(stack.enter_async_context(new_database(url)) for _ in range(6))))
        await soon(databases[0].begin(new("a")))
        assert await soon(databases[5].read("a")) is not None
    assert postgres.query(f"SELECT version FROM {schema}.atasks_schema") == [(1,)]
    postgres.query(f"UPDATE {schema}.atasks_schema SET version = 99")
    with pytest.raises(ConnectFailed, match="update atasks"):
        async with new_database(url):
            pass
    postgres.query(f"DROP SCHEMA {schema} CASCADE")


async def test_what_has_expired_is_deleted_in_rounds(
    postgres: Postgres, new_database: Connect, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atasks.transport.records.postgres.database.CLEAN_SECONDS", 0.05)
    monkeypatch.setattr("atasks.transport.records.postgres.database.CLEAN_AT_ONCE", 10)
    async with new_database() as database:
        names = [f"{number:x}" for number in range(60)]
        await soon(asyncio.gather(*(database.begin(new(name)) for name in (*names, "kept"))))
        postgres.query(f"UPDATE atasks_runs SET expires = now() WHERE prefix = '{prefix}' AND id <> 'kept'")
        assert await soon(database.read("0")) is None
        assert not await soon(database.end(Ended("1", 0, "w", b"reply")))
        database.clean()
        count = f"SELECT count(*) FROM atasks_runs WHERE prefix = '{prefix}'"
        await until(lambda: postgres.query(count) == [(1,)])
        assert await soon(database.read("kept")) is not None


async def test_one_order_that_is_refused_costs_the_others_nothing(new_database: Connect) -> None:
    async with new_database() as database:
        orders = [database.begin(new(f"{number}", task="\0" if number == 3 else "t")) for number in range(6)]
        found = await soon(asyncio.gather(*orders, return_exceptions=True))
    assert [type(item).__name__ for item in found] == ["Held"] * 3 + ["RecordsUnavailable"] + ["Held"] * 2


# -- fleets


async def test_a_run_of_a_pipeline(
    amqp_url: str, options: dict[str, Any], postgres: Postgres, prefix: str
) -> None:
    async with atasks.serve(amqp_url, **options) as worker:
        handle = await soon((flat_map(upto) | map(double) | collect() | stage(total)).submit(4))
        assert await soon(handle.step(2)) == [0, 2, 4, 6]
        assert await soon(handle) == 12
        records = worker.transport.records
        assert isinstance(records, StoredRecords)
        await soon(records.drop(handle.id))
        with pytest.raises(UnknownRun):
            await soon(handle)
    assert postgres.query(f"SELECT count(*) FROM atasks_notes WHERE prefix = '{prefix}'") == [(0,)]


async def test_calls_with_a_retry_are_listed_by_the_names_of_their_atasks(
    amqp_url: str, options: dict[str, Any]
) -> None:
    retried = double.options(retry=Retry(on=(OSError,)))
    async with atasks.serve(amqp_url, **options) as worker:
        assert await soon(await soon(retried.submit(1))) == 2
        await soon(schedule("listed", retried, [2], every=0.2))
        records = worker.transport.records
        assert records is not None

        async def listed() -> list[str]:
            return [info.task for info in await records.history(task=double.name)]

        while len(found := await soon(listed())) < 2:
            await asyncio.sleep(0.05)
        assert set(found) == {double.name}
        await soon(unschedule("listed"))


async def test_a_fleet_that_changes_to_a_database_keeps_what_it_has(
    amqp_url: str, prefix: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with atasks.connect(amqp_url, prefix=prefix, records=""):
        old = await soon(double.submit(1))
        run = await soon((flat_map(upto) | map(double) | collect() | stage(total)).submit(3))
        other = await soon(double.submit(3))
    async with (
        atasks.serve(amqp_url, prefix=prefix, records="", concurrency=5),  # it knows no database
        atasks.connect(amqp_url, **options),
    ):
        assert await soon(old) == 2
        assert await soon(run) == 6
        fresh = await soon(double.submit(5))
        await until(lambda: "this worker knows none" in caplog.text)
        assert not await soon(fresh.done())
        async with atasks.serve(amqp_url, **options):
            assert await soon(fresh) == 10
        assert await soon(other) == 6


async def test_a_submitter_that_died_before_it_sent_its_call(
    amqp_url: str, options: dict[str, Any], new_database: Connect
) -> None:
    """The next submission of its key sends the call."""
    async with atasks.serve(amqp_url, **options) as worker:
        router, records = get_router(), worker.transport.records
        assert isinstance(records, StoredRecords)
        call = await router.request_to_keep("x", (), TaskOptions(orphan="run"), worker.transport)
        call.task, call.payload = double.name, await router.encode_arguments(double.name, (21,), {})
        call.id = unique_id(double.name, "key")

        class Died(Exception):
            pass

        async def die(*_: Any, **__: Any) -> None:
            raise Died

        dropped: list[str] = []
        dead = StoredRecords(records.database, records._session, records._sender, records._broker)
        dead._sender = type("Dead", (), {"hand_over": staticmethod(die)})()  # type: ignore[assignment]
        dead.database = type("Alive", (), {"begin": records.database.begin, "drop_soon": dropped.append})()  # type: ignore[assignment]
        with pytest.raises(Died):
            await soon(dead.begin(call, TaskOptions()))
        assert dropped == [call.id]
        handle = await soon(double.options(unique="key").submit(1))
        assert (handle.id, handle.new) == (call.id, False)
        assert await soon(handle) == 42


# -- trust


async def test_forged_rows_are_not_believed(
    amqp_url: str, prefix: str, postgres: Postgres, tmp_path: Path
) -> None:
    keys = KeyFiles(tmp_path, shop="", other="")
    ran: list[int] = []

    def sealed(namespace: str) -> Transport:
        return next_transport(namespace)

    next_transport = caller_first(amqp_url, prefix, keys, "shop", records=postgres.url)
    site = Site(sealed)

    @site.atask
    async def work(x: int) -> int:
        ran.append(x)
        return x

    where = f"WHERE prefix = '{prefix}'"
    async with site.open(serve=False):
        first = await soon(work.submit(1))
        second = await soon(work.submit(2))
        third = await soon(work.submit(3))
        # Somebody who can write there says that they have ended: with the reply of nobody, and of another one.
        postgres.query(f"UPDATE atasks_runs SET ended = now(), status = 0, reply = '\\x9190' {where}")
        assert not await soon(first.done())
        postgres.query(f"UPDATE atasks_runs SET ended = NULL, reply = NULL {where} AND id <> '{third.id}'")
        await site.serve()
        assert await soon(second) == 2
        assert await soon(first) == 1
        await until(lambda: sorted(ran) == [1, 2, 3])  # the mark of an end was not believed before it began
        other = f"(SELECT reply FROM atasks_runs {where} AND id = '{second.id}')"
        postgres.query(f"UPDATE atasks_runs SET reply = {other} {where}")
        assert not await soon(first.done())
        assert await soon(second) == 2
        postgres.query(
            f"UPDATE atasks_runs SET request = (SELECT request FROM atasks_runs {where} AND id = '{second.id}') "
            f"{where} AND id = '{first.id}'"
        )
        with pytest.raises(UnknownRun):
            await soon(first.done())
    site.close()


# -- the password


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cr3t@host:port/db",
        "postgresql://user:s3cr3t@x@host/db",
        "postgresql://user:s3/cr3t@host/db",
        "postgresql://user:s3cr3t@host/db?nonsense=s3cr3t",
        "mysql://user:s3cr3t@host/db",
        "user:s3cr3t@host",
        "postgresql://user:s3cr3t@ho st/\0",
        "postgresql://user:s3cr3t#@host/",
        " postgresql://user:s3cr3t#@host/",
        "mysql:///user:s3cr3t?@host/",
        "postgresql://user:s3cr3t%ff@host/",
        f"postgresql://user:s3cr3t@host,{'h' * 64}/",
        "postgresql://user:s3cr3t@a..b/",
    ],
)
def test_no_error_over_a_url_has_its_password(amqp_url: str, prefix: str, url: str) -> None:
    with pytest.raises(InvalidURL, match=r"records|URL") as raised:
        AMQPTransport(amqp_url, prefix=prefix, records=url)
    error: BaseException | None = raised.value
    assert error is not None
    assert "cr3t" not in f"{error} {error!r} {error.__cause__}"


async def test_no_error_and_no_log_has_the_password(
    amqp_url: str, prefix: str, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = postgres.url.replace(PASSWORD, "wr0ng%2Fsecret")
    with pytest.raises(AccessRefused, match="password authentication failed") as raised:
        async with atasks.connect(amqp_url, prefix=prefix, records=wrong):
            pass
    away = postgres.url.replace(f":{postgres.url.rpartition(':')[2]}", ":1/postgres")
    with pytest.raises(ConnectFailed, match="127") as other:
        async with atasks.connect(amqp_url, prefix=prefix, records=away):
            pass
    async with atasks.connect(amqp_url, prefix=prefix, records=postgres.url) as transport:
        shown = f"{transport!r} {vars(transport.records)!r} {raised.value!r} {other.value!r} {caplog.text}"
    assert PASSWORD not in shown
    assert "wr0ng" not in shown


# -- calls that resume


@atask(resume=True)
async def resumed(x: int) -> int:
    return await noted(x) + await noted(x + 1)


@atask
async def noted(x: int) -> int:
    ran.append(x)
    return 2 * x


ran: list[int] = []


@pytest.mark.parametrize("kept", [True, False])
async def test_the_journal_of_a_submitted_call_goes_with_its_reply(
    controllable_broker: Broker, options: dict[str, Any], prefix: str, kept: bool
) -> None:
    url = controllable_broker.url
    async with atasks.serve(url, **options):
        before = await asyncio.to_thread(_queues, controllable_broker, prefix)
        ran.clear()
        handle = await soon(resumed.options(keep=None if kept else 0).submit(1))
        if kept:
            assert await soon(handle) == 6
        await until(lambda: len(ran) == 2)

        async def gone() -> None:
            while await asyncio.to_thread(_queues, controllable_broker, prefix) != before:
                await asyncio.sleep(0.05)

        await soon(gone())


def _queues(broker: Broker, prefix: str) -> set[str]:
    return {queue.name for queue in broker.queues() if queue.name.startswith(f"{prefix}.")}


async def test_a_call_that_was_not_delivered_before_waits_for_no_database(
    amqp_url: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look when the call comes, and the one right before it begins, wait for no database that is away."""
    looks: list[bool] = []
    monkeypatch.setattr(kept_calls, "FRESH_SECONDS", -1.0)
    async with atasks.serve(amqp_url, **options) as worker, atasks.connect(amqp_url, **options):
        transport: Any = worker.transport

        async def has_ended(_: object, call: Call, *, patient: bool) -> bool:
            looks.append(patient)
            return False

        # That of all links: a busy machine may lose one.
        monkeypatch.setattr(type(transport.serving.station.store), "has_ended", has_ended)
        assert await soon(await double.options(delay=1.0).submit(4)) == 8
    assert len(looks) >= 2
    assert not any(looks)
