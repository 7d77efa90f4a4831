"""Records: what is kept of calls that nobody awaits, by the broker, in PostgreSQL and in memory."""

from __future__ import annotations

import asyncio

import pytest

import atasks
from atasks import NoWorker, UnknownRun
from atasks.options import TaskOptions
from atasks.testing import soon
from atasks.transport.records.contract import Records
from atasks.wire import VERSION, Reply, Status
from tests.amqp.conftest import Connect, Meeting, connecting
from tests.amqp.records import ended, new_call, records_of, step, value

MANY = 300


@pytest.fixture(params=["amqp", "postgres", "loopback", "local"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return connecting(request, request.param)


async def test_a_kept_call_ends_in_a_record_that_can_be_read_again_and_again(connect: Connect) -> None:
    async with connect() as transport:
        records = records_of(transport)
        call = await new_call("double", 21)
        await records.begin(call, TaskOptions())
        assert await value(await soon(records.wait(call.id, ended, steps=False))) == 42
        for _ in range(3):
            record = await soon(records.read(call.id))
            assert await value(record) == 42
            assert record.call.task == call.task


async def test_readers_at_the_same_time_all_read_everything(connect: Connect) -> None:
    async with connect() as transport:
        records = records_of(transport)
        call = await new_call("never", 1)
        await records.begin(call, TaskOptions())
        for number in range(5):
            await records.add(call.id, step(call, number))
        found = await soon(asyncio.gather(*(records.read(call.id) for _ in range(20))))
        assert all(len(record.replies) == 5 for record in found)


async def test_a_record_of_many_replies_is_read_whole_and_in_order(connect: Connect) -> None:
    async with connect() as transport:
        records = records_of(transport)
        call = await new_call("never", 1)
        await records.begin(call, TaskOptions())
        await soon(asyncio.gather(*(records.add(call.id, step(call, number)) for number in range(MANY))))
        for _ in range(2):
            record = await soon(records.read(call.id))
            assert list(record.replies) == [f"{call.id}.{number}" for number in range(MANY)]


async def test_the_first_reply_of_an_id_counts(connect: Connect) -> None:
    async with connect() as transport:
        records = records_of(transport)
        call = await new_call("never", 1)
        await records.begin(call, TaskOptions())
        for payload in (b"first", b"second"):
            await records.add(call.id, Reply(VERSION, call.id, Status.VALUE, payload, "none"))
        record = await soon(records.read(call.id))
        assert record.ending is not None
        assert record.ending.payload == b"first"


async def test_who_waits_is_told_of_a_step_and_of_the_end(connect: Connect) -> None:
    async with connect() as transport:
        records = records_of(transport)
        call = await new_call("never", 1)
        await records.begin(call, TaskOptions())
        wanted = f"{call.id}.1"
        for_step = asyncio.create_task(records.wait(call.id, lambda record: wanted in record.replies, steps=True))
        for_end = [asyncio.create_task(records.wait(call.id, ended, steps=False)) for _ in range(3)]
        await records.add(call.id, step(call, 0))
        await asyncio.sleep(0)
        assert not for_step.done()
        await records.add(call.id, step(call, 1))
        assert len((await soon(for_step)).replies) == 2
        assert not any(task.done() for task in for_end)
        await records.add(call.id, Reply(VERSION, call.id, Status.VALUE, b"end", "none"))
        for record in await soon(asyncio.gather(*for_end)):
            assert record.ending is not None


async def test_a_record_expires_when_it_was_not_used_for_its_time(connect: Connect) -> None:
    async with connect(keep_runs=1.0) as transport:
        records = records_of(transport)
        call = await new_call("double", 4)
        await records.begin(call, TaskOptions())
        await soon(records.wait(call.id, ended, steps=False))
        gone = asyncio.create_task(_until_gone(records, call.id))
        with pytest.raises(UnknownRun, match="expired"):
            await soon(gone)


async def _until_gone(records: Records, call_id: str) -> None:
    while True:
        await asyncio.sleep(1.5)  # longer than it is kept: asking sooner would keep it
        await records.read(call_id)


async def test_waiting_keeps_a_record(connect: Connect) -> None:
    async with connect(keep_runs=1.0) as transport:
        records = records_of(transport)
        call = await new_call("never", 4)
        await records.begin(call, TaskOptions())
        waiting = asyncio.create_task(records.wait(call.id, ended, steps=False))
        finished, _ = await asyncio.wait([waiting], timeout=3)
        assert not finished
        await records.add(call.id, Reply(VERSION, call.id, Status.VALUE, b"end", "none"))
        assert (await soon(waiting)).ending is not None


async def test_what_was_never_begun_is_unknown(connect: Connect) -> None:
    async with connect() as transport:
        records = records_of(transport)
        for attempt in (
            records.read("nothing-1"),
            records.touch("nothing-1"),
            records.add("nothing-1", Reply(VERSION, "nothing-1", Status.VALUE, b"")),
            records.wait("nothing-1", ended, steps=True),
        ):
            with pytest.raises(UnknownRun, match="nothing-1"):
                await soon(attempt)


async def test_beginning_without_a_worker_fails_if_it_is_to(meeting: Meeting) -> None:
    url, options = meeting
    async with atasks.connect(url, **options) as transport:
        call = await new_call("double", 4)
        with pytest.raises(NoWorker):
            await soon(records_of(transport).begin(call, TaskOptions(on_no_worker="error")))


@pytest.mark.usefixtures("amqp_leaks")
async def test_beginning_needs_no_worker(amqp_url: str, prefix: str) -> None:
    async with atasks.connect(amqp_url, prefix=prefix) as transport:
        records = records_of(transport)
        call = await new_call("double", 4)
        await soon(records.begin(call, TaskOptions()))
    async with atasks.serve(amqp_url, prefix=prefix) as worker:
        records = records_of(worker.transport)
        assert await value(await soon(records.wait(call.id, ended, steps=False))) == 8
