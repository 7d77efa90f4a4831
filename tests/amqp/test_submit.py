"""Submitted calls at the broker: which queues they cost, how they wait there, and how long."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

import atasks
from atasks import atask
from atasks.connection import use
from atasks.errors import CallConnectionLost, UnknownRun, WorkerLost
from atasks.options import MAX_DELAY, TaskOptions
from atasks.submitted.submit import unique_id
from atasks.testing import soon, until
from atasks.transport.backends.amqp import records
from atasks.transport.backends.amqp.broker.delays import LEVELS, due_key, level_of, ticks_of
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.caller.delays import DelayedCalls
from atasks.transport.backends.amqp.caller.early_calls import EarlyCalls
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from atasks.transport.backends.amqp.caller.presence import WorkerPresence
from atasks.transport.backends.amqp.records import AMQPRecords
from atasks.transport.backends.amqp.transport import AMQPTransport
from atasks.transport.pending import Pending
from atasks.transport.records.contract import Record
from atasks.wire import Call
from tests.broker import Broker

pytestmark = pytest.mark.usefixtures("amqp_leaks")


@atask(keep=0)
async def add_up(numbers: list[int], x: int) -> None:
    numbers.append(x)


@atask(keep=0)
async def began() -> None:
    moments.append(time.time())


moments: list[float] = []


def _queues(broker: Broker, prefix: str) -> set[str]:
    return {queue.name for queue in broker.queues() if queue.name.startswith(f"{prefix}.")}


async def test_a_thousand_submissions_that_keep_nothing_cost_no_queue(
    controllable_broker: Broker, prefix: str
) -> None:
    url = controllable_broker.url
    async with atasks.serve(url, prefix=prefix), atasks.connect(url, prefix=prefix):
        before = await asyncio.to_thread(_queues, controllable_broker, prefix)
        since = time.monotonic()
        await soon(asyncio.gather(*(add_up.submit([], x) for x in range(1000))))
        assert time.monotonic() - since < 20  # it takes 0.2 s
        assert await asyncio.to_thread(_queues, controllable_broker, prefix) == before


async def test_early_calls_leave_no_queue(controllable_broker: Broker, prefix: str) -> None:
    url = controllable_broker.url
    async with atasks.connect(url, prefix=prefix):
        await soon(asyncio.gather(*(began.submit() for _ in range(300))))
    early = f"{prefix}.q.default.default.early"
    assert early in await asyncio.to_thread(_queues, controllable_broker, prefix)
    moments.clear()
    async with atasks.serve(url, prefix=prefix):

        async def moved() -> None:
            while len(moments) < 300 or early in await asyncio.to_thread(_queues, controllable_broker, prefix):
                await asyncio.sleep(0.05)

        await soon(moved())
    assert len(moments) == 300


@pytest.mark.parametrize(("submissions", "options"), [(EarlyCalls, {}), (DelayedCalls, {"delay": 60})])
async def test_a_call_waits_once_although_the_broker_is_slow_to_bind(
    submissions: Any, options: Any, amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of new workers from when its reply queue is bound, and sends then what was returned before:
    another copy of a call that is on its way to where it waits would run too, at another worker."""
    bind, take = WorkerPresence.bind, submissions.take
    taken: list[str] = []
    begun = asyncio.Event()

    async def slow(presence: WorkerPresence, queue: str, link: Link) -> None:
        await begun.wait()
        await bind(presence, queue, link)

    def counted(its: Any, pending: Pending, kind: Any, **anew: bool) -> None:
        taken.append(pending.call.id)
        take(its, pending, kind, **anew)
        begun.set()

    monkeypatch.setattr(WorkerPresence, "bind", slow)
    monkeypatch.setattr(submissions, "take", counted)
    async with atasks.connect(amqp_url, prefix=prefix) as transport:
        for _ in range(2):  # a copy of the first one leaves before the second one
            await soon(began.options(**options).submit())
        assert isinstance(transport, AMQPTransport)
        assert transport.calling.presence.listening == {"default"}
    assert len(taken) == len(set(taken)) == 2


async def test_submissions_in_a_row_ask_the_broker_for_no_queue(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    state, declare = Link.queue_state, Link.declare_queue

    async def counted_state(link: Link, name: str) -> tuple[int, int] | None:
        asked.append(name)
        return await state(link, name)

    async def counted_declare(link: Link, name: str, *arguments: Any) -> None:
        asked.append(name)
        await declare(link, name, *arguments)

    monkeypatch.setattr(Link, "queue_state", counted_state)
    monkeypatch.setattr(Link, "declare_queue", counted_declare)
    moments.clear()
    since = time.monotonic()
    async with atasks.connect(amqp_url, prefix=prefix):
        for _ in range(100):
            await soon(began.submit())
        assert len(asked) < 20 + (time.monotonic() - since) / 0.02  # they were 400, in half a second
        async with atasks.serve(amqp_url, prefix=prefix):
            await until(lambda: len(moments) == 100)
            asked.clear()
            since = time.monotonic()
            for _ in range(100):
                await soon(began.submit())
            assert len(asked) < 20 + (time.monotonic() - since) / 0.02
            await until(lambda: len(moments) == 200)
    assert "could not be moved" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "ticks", "level"),
    [(0, 0, -1), (-5, 0, -1), (0.01, 1, 0), (0.1, 1, 0), (0.11, 2, 1), (3.2, 32, 5), (MAX_DELAY, 51_840_000, 25)],
)
def test_ticks(seconds: float, ticks: int, level: int) -> None:
    assert ticks_of(seconds) == ticks
    assert level_of(ticks) == level < LEVELS
    *digits, name = due_key(ticks, "a.#.b").split(".")
    assert int("".join(digits), 2) == ticks
    assert len(digits) == LEVELS
    assert name.isalnum()
    assert len(due_key(ticks, "q" * 255)) < 255


# -- submitters that die before the request is sent


@atask
async def note(what: str) -> str:
    noted.append(what)
    return what


@atask
async def note_behind_gate(what: str) -> str:
    noted.append(what)
    await gate.wait()
    return what


noted: list[str] = []
gate = asyncio.Event()


class Stall:
    """Keeps the next submission from sending its request, once its record is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        send = AMQPTransport.hand_over

        async def hand_over(transport: AMQPTransport, call: Call, options: TaskOptions, **more: Any) -> None:
            if not self.reached.is_set():
                self.reached.set()
                await asyncio.Event().wait()
            await send(transport, call, options, **more)

        monkeypatch.setattr(AMQPTransport, "hand_over", hand_over)


@pytest.fixture
def quick_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OverdueCalls, "patience", 0.2)
    monkeypatch.setattr(OverdueCalls, "pause", 0.1)


@pytest.mark.usefixtures("quick_questions")
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_the_next_submission_of_a_key_sends_the_call(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    """Nobody awaits it. One that may run at most once ends instead: who knows whether it was sent?"""
    noted.clear()
    async with atasks.serve(amqp_url, prefix=prefix), atasks.connect(amqp_url, prefix=prefix):
        once = note.options(unique="once", delivery=delivery)  # type: ignore[arg-type]
        stall = Stall(monkeypatch)
        submission = asyncio.create_task(once.submit("first"))
        await soon(stall.reached.wait())
        submission.cancel()
        await asyncio.wait([submission])
        handle = await soon(once.submit("second"))
        assert not handle.new
        while not await soon(handle.done()):
            await asyncio.sleep(0.05)
        if delivery == "at_least_once":
            assert noted == ["first"]
        else:
            with pytest.raises(WorkerLost, match="cannot be known"):
                await soon(handle)
            assert noted == []


@pytest.mark.parametrize("kept_ms", [86_400_000, 77_000], ids=["same keep", "another keep"])
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_the_key_of_a_submitter_that_died_before_it_wrote_is_taken_over(
    amqp_url: str, prefix: str, delivery: str, kept_ms: int
) -> None:
    """Those who submit at the same time afterwards agree on one call."""
    noted.clear()
    async with atasks.serve(amqp_url, prefix=prefix):
        once = note.options(unique="once", delivery=delivery)  # type: ignore[arg-type]
        async with AsyncExitStack() as stack:
            submitter = AMQPTransport(amqp_url, "default", prefix=prefix)
            await use(stack, submitter)
            link, topology = submitter.session.link, submitter.session.topology
            assert link is not None
            call_id = unique_id(note.name, "once")
            await link.declare_queue(topology.unique(call_id), topology.unique_arguments(0.0))
            channel = await link.open_channel(confirms=True)
            await channel.basic_publish(call_id.encode(), routing_key=topology.unique(call_id))
            await link.declare_queue(topology.kept(call_id), topology.kept_arguments(kept_ms))
        handles = await soon(asyncio.gather(*(once.submit(f"{number}") for number in range(5))))
        assert len({handle.id for handle in handles}) == 1
        assert sum(handle.new for handle in handles) == 1
        result = await soon(handles[0])
        assert noted == [result]
        assert not (await soon(once.submit("later"))).new


async def test_a_record_that_is_written_right_after_the_last_look_for_it_tells_its_id(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted.clear()
    read, looks = AMQPRecords.read, 0

    async def read_too_early(self: AMQPRecords, call_id: str, *, any_generation: bool = False) -> Record:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise UnknownRun("nothing is in it yet")
        return await read(self, call_id, any_generation=any_generation)

    async with atasks.serve(amqp_url, prefix=prefix), atasks.connect(amqp_url, prefix=prefix):
        once = note.options(unique="once")
        first = await soon(once.submit("first"))
        monkeypatch.setattr("atasks.transport.backends.amqp.records.HOLDER_SECONDS", 0.0)
        monkeypatch.setattr(AMQPRecords, "read", read_too_early)
        second = await soon(once.submit("second"))
        assert (second.id, second.new) == (first.id, False)


async def test_a_record_that_another_submitter_deletes_before_it_is_bound_is_declared_again(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare, deleted = Link.declare_queue, []

    async def declare_late(self: Link, name: str, *args: Any, **options: Any) -> tuple[int, int]:
        if name.startswith(f"{prefix}.run.") and not deleted:
            deleted.append(name)
            await declare(self, name, *args, **options)
            await self.delete_queue(name)
            raise ChannelNotFoundEntity(f"NOT_FOUND - no queue '{name}' in vhost '/'")
        return await declare(self, name, *args, **options)

    async with atasks.serve(amqp_url, prefix=prefix), atasks.connect(amqp_url, prefix=prefix):
        monkeypatch.setattr(Link, "declare_queue", declare_late)
        handle = await soon(note.options(unique="once").submit("value"))
        assert deleted
        assert await soon(handle) == "value"


async def test_a_key_is_not_taken_from_a_call_that_waits_without_a_record(amqp_url: str, prefix: str) -> None:
    noted.clear()
    async with atasks.connect(amqp_url, prefix=prefix):
        first = await soon(note.options(unique="once", keep=0).submit("first"))
        second = await soon(note.options(unique="once").submit("second"))
        assert (first.new, second.new) == (True, False)
        async with atasks.serve(amqp_url, prefix=prefix):
            await until(lambda: noted == ["first"])


async def test_a_call_that_waits_for_longer_than_its_record_is_kept_keeps_its_key(
    amqp_url: str, prefix: str
) -> None:
    noted.clear()
    async with atasks.connect(amqp_url, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        assert transport.records is not None
        once = note.options(unique="once")
        first = await soon(once.submit("first"))
        await soon(transport.records.drop(first.id))  # as if it had expired
        assert not (await soon(once.submit("second"))).new
        async with atasks.serve(amqp_url, prefix=prefix):
            await until(lambda: noted == ["first"])
            while not (third := await soon(once.submit("third"))).new:  # the key is free when it has ended
                await asyncio.sleep(0.05)
            assert await soon(third) == "third"


async def test_a_call_that_runs_for_longer_than_its_record_is_kept_keeps_its_key(
    amqp_url: str, prefix: str
) -> None:
    gate.clear()
    noted.clear()
    async with atasks.serve(amqp_url, prefix=prefix) as worker:
        assert isinstance(worker.transport, AMQPTransport)
        assert worker.transport.records is not None
        once = note_behind_gate.options(unique="once")
        first = await soon(once.submit("first"))
        await until(lambda: noted == ["first"])
        await soon(worker.transport.records.drop(first.id))  # as if it had expired
        assert not (await soon(once.submit("second"))).new
        gate.set()
        while not (third := await soon(once.submit("third"))).new:  # the key is free when it has ended
            await asyncio.sleep(0.05)
        assert await soon(third) == "third"
        assert noted == ["first", "third"]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_submission_that_ends_while_it_looks_whose_a_key_is_leaves_the_key(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """The call that had the key has ended. Its record goes one day, and nobody else is to have the key then."""
    noted.clear()
    looks = asyncio.Event()

    async def look(*_: Any, **__: Any) -> Record:
        looks.set()
        if cancelled:
            await asyncio.Event().wait()
        raise CallConnectionLost("the record cannot be read")

    async with atasks.serve(amqp_url, prefix=prefix) as worker:
        assert isinstance(worker.transport, AMQPTransport)
        link, topology = worker.transport.session.link, worker.transport.session.topology
        assert link is not None
        mark = topology.unique(unique_id(note.name, "once"))
        once = note.options(unique="once")
        await soon(await once.submit("first"))
        while await link.queue_state(mark) is not None:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(AMQPRecords, "read", look)
        other = asyncio.create_task(soon(once.submit("second")))
        await soon(looks.wait())
        if cancelled:
            other.cancel()
        with pytest.raises((asyncio.CancelledError, CallConnectionLost)):
            await soon(other)
        assert await link.queue_state(mark) is None


async def test_a_late_submission_that_cannot_read_the_record_leaves_it_to_whoever_wrote_first(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: Any, **__: Any) -> Record:
        raise CallConnectionLost("the record cannot be read")

    async with atasks.serve(amqp_url, prefix=prefix) as worker:
        assert isinstance(worker.transport, AMQPTransport)
        link, topology = worker.transport.session.link, worker.transport.session.topology
        assert link is not None
        with monkeypatch.context() as patch:
            patch.setattr(records, "HOLDER_SECONDS", 0.0)
            patch.setattr(AMQPRecords, "read", read)
            with pytest.raises(CallConnectionLost):
                await soon(note.options(unique="late").submit("late"))
        assert await link.queue_state(topology.kept(unique_id(note.name, "late"))) is not None


@pytest.mark.usefixtures("quick_questions")
async def test_a_submission_that_fails_leaves_no_record(
    controllable_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = controllable_broker.url

    async def fail(*_: object, **__: object) -> None:
        raise atasks.QueueFull("full")

    async with atasks.connect(url, prefix=prefix):
        before = await asyncio.to_thread(_queues, controllable_broker, prefix)
        with monkeypatch.context() as patch:
            patch.setattr(AMQPTransport, "hand_over", fail)
            for options in ({}, {"unique": "mine"}):
                with pytest.raises(atasks.QueueFull):
                    await soon(note.options(**options).submit("first"))
        assert await asyncio.to_thread(_queues, controllable_broker, prefix) == before
        assert (await soon(note.options(unique="mine").submit("second"))).new


@pytest.mark.usefixtures("quick_questions")
async def test_a_schedule_goes_on_after_a_tick_that_was_never_sent(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's record is there, and the process that opened it is gone: that call must not count as one that
    goes on."""
    noted.clear()
    async with atasks.connect(amqp_url, prefix=prefix):
        async with atasks.serve(amqp_url, prefix=prefix) as leader:
            await soon(atasks.schedule("notes", note, ["tick"], every=2.0))
            await until(lambda: bool(noted))
            stall = Stall(monkeypatch)
            await soon(stall.reached.wait())
            await soon(leader.drain(0.0))
            noted.clear()
        async with atasks.serve(amqp_url, prefix=prefix):
            await until(lambda: len(noted) > 2)
            await soon(atasks.unschedule("notes"))
