"""Bounds of the cost of one process for the hub, and for the others around it."""

# Private attributes: `SocketLink._room`: how often it is copied is seen nowhere else. `Hub._journals`,
# `Hub._limits`, `Hub._schedules`, `Hub._events`, `Hub._queues`: nothing else counts what they keep.

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import uuid
from types import SimpleNamespace

import pytest
from msgspec import structs

from atasks import (
    MsgpackCodec,
    QueueFull,
    atask,
    schedule,
    schedules,
    serve,
    wire,
)
from atasks.testing import until
from atasks.transport import refusals
from atasks.transport.backends.local.frames import encode
from atasks.transport.backends.local.hub import events, queues, reception
from atasks.transport.backends.local.hub import listener as hosting
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import (
    PROTOCOL,
    Answer,
    Begin,
    Deliver,
    Hello,
    JournalFound,
    NoneServes,
    Note,
    OpenJournal,
    Outcome,
    Ping,
    Pong,
    QueueState,
    ReadTable,
    Refused,
    Request,
    Serve,
    Slots,
    Stand,
    Steer,
    Swap,
    Table,
    TakeToken,
    There,
    TokenTaken,
    Welcome,
    Where,
)
from atasks.transport.limits import memory
from atasks.transport.subscription import Subscription
from atasks.wire import VERSION, Credit, Item, Reply, Status
from tests.faults.history import settled
from tests.local.around_hub import call, of, process
from tests.local.test_conversation import arrive, frame, link


async def test_a_large_frame_is_copied_a_few_times_only() -> None:
    """Whatever pieces it comes in: each growth of the room is a copy of all that has come."""
    here, received = link()
    data = frame(encode([Request("q", call("x", bytes(40 * 2**20)))]))
    rooms = set()
    for start in range(0, len(data), 50_000):
        arrive(here, data[start : start + 50_000])
        rooms.add(id(here._room))
    assert len(received) == 1
    assert len(rooms) <= 6


async def test_a_process_has_a_while_to_say_hello(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reception, "HELLO_SECONDS", 1.0)
    async with process(path, namespace=None) as (silent, _), process(path) as (polite, received):
        await settled(silent.ended, "it is disconnected")
        await asyncio.sleep(0.3)
        polite.send(Request("nowhere", call("polite"), wait=False))
        await until(lambda: len(received) == 2, "the other one is answered")
    assert any("without a Hello" in record.message for record in caplog.records if record.levelno == logging.ERROR)


async def test_the_first_frame_is_a_small_one(host: Host, path: str) -> None:
    async with process(path, namespace=None) as (here, _):
        assert here.transport is not None
        here.transport.write((10 * 2**20).to_bytes(4, "big") + bytes(1000))
        await settled(here.ended, "it is disconnected")
    async with process(path) as (here, received):
        here.send(Request("nowhere", call("x", bytes(10 * 2**20)), wait=False))
        await until(lambda: len(received) == 2, "a large frame that follows is taken")


async def test_half_sent_frames_share_a_bound(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "MAX_HALF_SENT", 40 * 2**20)
    beginning = (30 * 2**20).to_bytes(4, "big") + bytes(20 * 2**20)
    async with process(path) as (first, _), process(path) as (second, _), process(path) as (third, received):
        assert first.transport is not None
        assert second.transport is not None
        first.transport.write(beginning)
        await until(lambda: host.half_sent > 20 * 2**20, "the first one has room")
        second.transport.write(beginning)
        await settled(second.ended, "the second one is disconnected")
        third.send(Request("nowhere", call("third"), wait=False))
        await until(lambda: len(received) == 2, "the others go on")
        first.abort()
        await until(lambda: host.half_sent == 0, "the room is free again")
        third.send(Request("nowhere", call("large", bytes(30 * 2**20)), wait=False))
        await until(lambda: len(received) == 3, "there is room again")


@pytest.mark.parametrize("orphan", [0, 1])
async def test_the_id_of_a_call_in_hand_belongs_to_who_sent_it(host: Host, path: str, orphan: int) -> None:
    async with (
        process(path) as (owner, owned),
        process(path) as (stranger, refused),
        process(path) as (worker, delivered),
    ):
        owner.send(Request("q", call("the-id", b"owner", orphan)))
        await until(lambda: len(host.hub) == 1, "it waits")
        stranger.send(Request("q", call("the-id", b"stranger", orphan)))
        stranger.send(Begin(7, "q", call("the-id", b"stranger", orphan), 0, True, 60_000))
        await until(lambda: of(refused, Reply) and of(refused, Answer), "the stranger is told")
        (refusal,), (answer,) = of(refused, Reply), of(refused, Answer)
        assert isinstance(refusal, Reply)
        assert isinstance(answer, Answer)
        assert refusal.status == Status.FAILED
        assert "another" in wire.ending(refusal).message
        assert answer.outcome == Outcome.BAD
        worker.send(Serve("worker", ["q"]))
        worker.send(Slots(5, 0))
        await until(lambda: of(delivered, Deliver), "it is handed out")
        (handed,) = of(delivered, Deliver)
        assert isinstance(handed, Deliver)
        assert handed.call.payload == b"owner"
        worker.send(Reply(VERSION, "the-id", Status.VALUE, b"result", "pickle", "worker"))
        await until(lambda: of(owned, Reply), "its owner has the result")
    assert len(of(refused, Reply)) == 1


async def test_what_the_hub_refuses_fills_no_log(
    host: Host, path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it comes: the log has a line at once, and then one a minute at most, which counts the rest."""

    def lines() -> list[str]:
        return [text for text in caplog.messages if text.startswith("the hub refused what processes sent")]

    async def told(number: int) -> None:
        await until(lambda: len(of(refused, Reply)) == number, "the stranger is told")

    now = time.monotonic()
    monkeypatch.setattr(refusals, "time", SimpleNamespace(monotonic=lambda: now))
    forged = Request("q", call("the-id", b"stranger"))
    async with process(path) as (owner, _), process(path) as (stranger, refused):
        owner.send(Request("q", call("the-id", b"owner")))
        await until(lambda: len(host.hub) == 1, "it waits")
        stranger.send(forged)
        await told(1)
        now += 59
        for _ in range(298):
            stranger.send(forged)
        await told(299)
        assert len(lines()) == 1
        now += 1
        stranger.send(forged)
        await told(300)
    assert len(lines()) == 2
    assert ": 1 calls under the id of another one (the-id by process " in lines()[0]
    assert ": 299 calls under the id of another one (the-id by process " in lines()[1]


async def test_a_process_that_connects_again_awaits_its_calls_again(host: Host, path: str) -> None:
    """Those with `orphan="run"`, which went on; a process of another namespace does not get them."""
    async with process(path) as (worker, _):
        async with process(path) as (owner, _):
            owner.send(Request("q", call("the-id", orphan=1)))
            await until(lambda: len(host.hub) == 1, "it waits")
        async with process(path, namespace="other") as (other, refused), process(path) as (again, owned):
            other.send(Request("q", call("the-id", orphan=1)))
            await until(lambda: of(refused, Reply), "the other one is refused")
            again.send(Request("q", call("the-id", orphan=1)))
            worker.send(Serve("worker", ["q"]))
            worker.send(Slots(5, 0))
            await until(lambda: len(host.hub) == 1, "it is one call")
            worker.send(Reply(VERSION, "the-id", Status.VALUE, b"result", "pickle", "worker"))
            await until(lambda: of(owned, Reply), "its owner has the result")


async def test_a_submission_that_comes_twice_is_one(host: Host, path: str) -> None:
    """The submitter may have lost the answer. What waits is counted once: a call behind it is handed out."""
    submission = call("the-id", orphan=1)
    async with process(path) as (owner, told), process(path) as (worker, delivered):
        for number in (1, 2, 3):
            owner.send(Begin(number, "q", submission, 0, True, 60_000))
        await until(lambda: len(of(told, Answer)) == 3, "all are answered")
        assert {answer.outcome for answer in of(told, Answer) if isinstance(answer, Answer)} == {Outcome.DONE}
        worker.send(Serve("worker", ["q"]))
        worker.send(Slots(5, 0))
        await until(lambda: of(delivered, Deliver), "it is handed out")
        owner.send(Begin(4, "q", submission, 0, True, 60_000))  # it runs
        owner.send(Request("q", call("another")))
        await until(
            lambda: len(of(delivered, Deliver)) == 2, "the other one is handed out, although nothing ended"
        )
        worker.send(Reply(VERSION, "the-id", Status.VALUE, b"result", "pickle", "worker"))
        worker.send(Reply(VERSION, "another", Status.VALUE, b"result", "pickle", "worker"))
        await until(lambda: of(told, Reply), "both have ended")
        owner.send(Begin(5, "q", submission, 0, True, 60_000))  # its record is kept
        await until(lambda: len(of(told, Answer)) == 5, "that is answered too")
        assert len(host.hub) == 0
    assert len(of(delivered, Deliver)) == 2


async def test_a_call_passes_those_that_wait_for_another_worker(host: Host, path: str) -> None:
    """One that only a busy worker may have must not keep others from a worker that is idle: nothing else would
    wake that one."""
    for_other = call("for-the-other")
    for_other.seen = ["idle"]
    async with (
        process(path) as (caller, _),
        process(path) as (idle, delivered),
        process(path) as (busy, _),
    ):
        busy.send(Serve("busy", ["q"]))
        busy.send(Slots(0, 0))
        idle.send(Serve("idle", ["q"]))
        idle.send(Slots(5, 0))
        await until(
            lambda: (
                sorted((peer.worker_id, peer.room) for peer in host.hub.peers if peer.worker_id)
                == [("busy", 0), ("idle", 5)]
            ),
            "all are there",
        )
        caller.send(Request("q", for_other))
        caller.send(Request("q", call("for-anybody")))
        await until(lambda: of(delivered, Deliver), "the idle worker has one")
        (handed,) = of(delivered, Deliver)
        assert isinstance(handed, Deliver)
        assert handed.call.id == "for-anybody"


@pytest.mark.parametrize(
    "numbers",
    [(0, 10**12, 1.0), (2**63, 0, 0.0), (0, 5, float("nan")), (-1, 0, 0.0), (0, 5, -1.0), (0, 5, 1e300)],
    ids=str,
)
async def test_a_limit_that_makes_no_sense_costs_the_hub_nothing(
    host: Host, path: str, numbers: tuple[int, int, float]
) -> None:
    """Such a limit would have a place in memory for each of its tokens."""
    async with process(path) as (here, received):
        here.send(TakeToken(1, "odd", None, *numbers))
        here.send(TakeToken(2, "x" * 61, None, 1, 0, 0.0))
        here.send(TakeToken(3, "good", None, 1, 0, 0.0))
        await until(lambda: len(of(received, TokenTaken)) == 3, "all are answered")
        answers = {item.number: item.refusal for item in of(received, TokenTaken) if isinstance(item, TokenTaken)}
        assert answers[3] == ""
        assert answers[1].startswith("request refused: ")
        assert answers[2].startswith("request refused: ")
        assert not of(received, Answer), "numbers of tokens are none of the records"


async def test_limits_are_bounded(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_KEYS", 3)
    async with process(path) as (here, received):
        for number in range(6):
            here.send(TakeToken(number, f"limit-{number}", None, 1, 0, 0.0))
            here.send(TakeToken(10 + number, "with-keys", f"key-{number}", 1, 0, 0.0))
        await until(lambda: len(of(received, TokenTaken)) == 12, "all are answered")
        refused = {
            item.number for item in of(received, TokenTaken) if isinstance(item, TokenTaken) and item.refusal
        }
        assert refused == {3, 4, 5, 13, 14, 15}


async def test_limits_that_were_refused_or_left_leave_nothing_behind(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process that leaves is looked for in what is kept."""
    monkeypatch.setattr(memory, "MAX_KEYS", 3)
    for number in range(20):
        async with process(path, namespace=f"namespace-{number}") as (here, received):
            for other in range(10):
                here.send(TakeToken(other, f"limit-{number}-{other}", None, 1, 0, 0.0))
            await until(lambda: len(of(received, TokenTaken)) == 10, "all are answered")
    await until(lambda: not host.hub.peers, "all are gone")
    async with process(path, namespace="another") as (here, received):
        here.send(TakeToken(1, "limit", None, 1, 0, 0.0))
        await until(lambda: of(received, TokenTaken), "it is answered")
        assert host.hub._limits.size == (1, 1)


async def test_tables_of_schedules_share_a_bound(path: str, no_leaked_tasks: None) -> None:
    """Those of all namespaces, names included; one that is taken away makes room."""
    host = await Host.open(path, keep_bytes=5000)
    first, large = b"\x91" + bytes(2000), b"\x91" + bytes(4000)
    async with process(path, namespace="first") as (one, told), process(path, namespace="second") as (two, heard):
        one.send(Swap(1, b"", first))
        await until(lambda: of(told, Answer), "it is answered")
        two.send(Swap(1, b"", large))
        await until(lambda: of(heard, Answer), "it is answered")
        assert (of(told, Answer), of(heard, Answer)) == ([Answer(1, Outcome.DONE)], [Answer(1, Outcome.NO_ROOM)])
        two.send(ReadTable(2))
        await until(lambda: of(heard, Table), "it is answered")
        assert of(heard, Table) == [Table(2, b"")]
        one.send(Swap(2, first, b""))
        await until(lambda: len(of(told, Answer)) == 2, "it is answered")
        two.send(Swap(3, b"", large))
        await until(lambda: len(of(heard, Answer)) == 2, "it is answered")
        assert of(heard, Answer)[-1] == Answer(3, Outcome.DONE)
    for number in range(100):
        async with process(path, namespace=f"namespace-{number}") as (here, received):
            here.send(Stand(True))
            here.send(ReadTable(1))
            await until(lambda: of(received, Table), "it is answered")
    await until(lambda: not host.hub.peers, "all are gone")
    assert host.hub._schedules.size <= 5000
    await host.close()


async def test_a_table_for_which_there_is_no_room_is_refused(path: str) -> None:
    """The schedule that was to be made is not, and who made it is told."""
    url, namespace = f"unix://{path}", f"tables-{uuid.uuid4().hex[:8]}"
    MsgpackCodec(namespace)

    @atask(namespace=namespace)
    async def echo(value: str) -> str:
        return value

    async with serve(url, namespace=namespace, keep_bytes=5000):
        await schedule("small", echo, ["x"], every=3600.0)
        with pytest.raises(QueueFull, match="keep_bytes"):
            await schedule("large", echo, ["x" * 10_000], every=3600.0)
        assert [item.name for item in await schedules(namespace=namespace)] == ["small"]


async def test_a_call_that_is_not_taken_leaves_no_queue_behind(host: Host, path: str) -> None:
    """Nor does one that is known already and names another queue."""
    async with process(path) as (here, received):
        here.send(Request("q", call("the-id")))
        for number in range(10):
            here.send(Request(f"queue-{number}", call("the-id")))
            here.send(Begin(number, f"begun-{number}", call("the-id"), 0, True, 60_000))
            here.send(Request(f"unserved-{number}", call("another"), wait=False))
        await until(lambda: len(of(received, NoneServes)) == 10, "all are answered")
        assert len(host.hub._queues) == 1


def unsent(host: Host) -> int:
    """Bytes that wait at the hub for processes that do not read."""
    links = [peer.link for peer in host.hub.peers]
    return sum(link.unsent for link in links if isinstance(link, SocketLink))


async def test_items_for_a_process_that_does_not_read_are_bounded(host: Host, path: str) -> None:
    """A worker sends what nobody has asked for. One that keeps to the window reaches the caller as it reads."""
    async with process(path) as (owner, owned), process(path) as (worker, delivered):
        assert owner.transport is not None
        worker.send(Serve("worker", ["q"]))
        worker.send(Slots(5, 0))
        stream = call("the-stream")
        stream.credit = 4
        owner.send(Request("q", stream))
        await until(lambda: of(delivered, Deliver), "it is handed out")
        owner.transport.pause_reading()
        for number in range(400):
            worker.send(Item(VERSION, "the-stream", number, [bytes(100_000)], "pickle", "worker"), 100_000)
            worker.send(Item(VERSION, "the-stream", number + 1, [], "pickle", "worker"))
            await until(lambda: not worker.clogged, "the hub reads")
        worker.send(Ping(1))
        await until(lambda: of(delivered, Pong), "the hub has read all")
        assert unsent(host) < 3 * 2**20
        owner.transport.resume_reading()
        arrived = [bytes(100_000)]
        await until(
            lambda: [item.payloads for item in of(owned, Item)].count(arrived) > stream.credit,
            "more than the window arrives, so that it parts with its worker",
        )
        owner.send(Credit(VERSION, "the-stream", 4, 400_000))
        worker.send(Item(VERSION, "the-stream", 4, [b"next"], "pickle", "worker"))
        await until(lambda: any(item.payloads == [b"next"] for item in of(owned, Item)), "the next one comes")
        owner.send(Credit(VERSION, "the-stream", 5, 400_004, None, 64))
        await until(lambda: len(of(delivered, Credit)) == 2, "the window is wider")
        for number in range(5, 69):
            worker.send(Item(VERSION, "the-stream", number, [b"more"], "pickle", "worker"))
        await until(lambda: [item.payloads for item in of(owned, Item)].count([b"more"]) == 64, "all of it comes")


async def test_the_question_of_a_later_worker_reaches_a_consumer_that_had_much(host: Host, path: str) -> None:
    """The items of the worker before count no more, and the stream does not go on without an answer."""
    async with process(path) as (owner, owned), process(path) as (later, delivered):
        async with process(path) as (worker, handed):
            worker.send(Serve("worker", ["q"]))
            worker.send(Slots(5, 0))
            owner.send(Request("q", call("the-stream")))
            await until(lambda: of(handed, Deliver), "it is handed out")
            worker.send(Item(VERSION, "the-stream", 0, [bytes(3 * 2**20)], "pickle", "worker"), 3 * 2**20)
            await until(lambda: of(owned, Item), "a large item comes")
        owner.send(Credit(VERSION, "the-stream", 1, 3 * 2**20))  # nobody runs the stream just now
        later.send(Serve("later", ["q"]))
        later.send(Slots(5, 0))
        await until(lambda: of(delivered, Deliver), "it is handed out again")
        later.send(Item(VERSION, "the-stream", 0, [], "pickle", "later", 2))
        await until(lambda: len(of(owned, Item)) == 2, "the consumer is asked where it is")


async def test_answers_for_a_process_that_does_not_read_are_bounded(
    host: Host, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small question may have a large answer."""
    monkeypatch.setattr(hosting, "MAX_UNREAD", 4 * 2**20)
    async with process(path) as (here, received), process(path) as (other, heard):
        assert here.transport is not None
        here.send(Swap(0, b"", b"\x91" + bytes(2**20)))
        await until(lambda: of(received, Answer), "it is answered")
        here.transport.pause_reading()
        for number in range(200):
            here.send(ReadTable(number))
            await asyncio.sleep(0)
        other.send(Ping(1))
        await until(lambda: of(heard, Pong), "others are answered")
        await asyncio.sleep(0.2)
        assert unsent(host) < 20 * 2**20
        async with process(path) as (dies, _):
            assert dies.transport is not None
            dies.transport.pause_reading()
            for number in range(50):
                dies.send(ReadTable(number))
                await asyncio.sleep(0)
            await until(lambda: len(host.hub.peers) == 3, "it is there")
        await until(lambda: len(host.hub.peers) == 2, "its end is noticed")
        here.transport.resume_reading()
        await until(lambda: len(of(received, Table)) == 200, "what was asked is answered in the end")


async def test_large_answers_to_one_frame_wait_until_they_are_read(host: Host, path: str) -> None:
    """A frame of a few kilobytes may ask for gigabytes: a table, or a journal, again and again."""
    async with process(path) as (here, received), process(path) as (other, heard):
        assert here.transport is not None
        here.send(Swap(0, b"", b"\x91" + bytes(2**20)))
        here.send(OpenJournal(1, "journal", "owner"))
        here.send(Note(2, "journal", Reply(VERSION, "step", Status.VALUE, bytes(2**20))))
        await until(lambda: len(of(received, Answer)) == 2, "there are both")
        here.transport.pause_reading()
        questions = [(ReadTable(n), OpenJournal(n, "journal", "owner")) for n in range(300)]
        here.transport.write(frame(encode([*itertools.chain(*questions)])))
        other.send(Ping(1))
        await until(lambda: of(heard, Pong), "others are answered")
        assert unsent(host) < 20 * 2**20
        here.transport.resume_reading()
        await until(lambda: len(of(received, Table)) == 300, "all are answered in the end")
        await until(lambda: len(of(received, JournalFound)) == 301, "all are answered in the end")


async def test_questions_of_a_process_that_does_not_read_are_bounded(host: Host, path: str) -> None:
    """However small they are, and although nothing is sent that waits to be read."""
    async with process(path) as (here, received), process(path) as (other, heard):
        assert here.transport is not None
        here.send(Swap(0, b"", b"\x91" + bytes(4 * 2**20)))
        await until(lambda: of(received, Answer), "it is answered")
        here.transport.pause_reading()
        questions = frame(encode([ReadTable(number) for number in range(500)]))
        for _ in range(200):
            here.transport.write(questions)
        other.send(Ping(1))
        await until(lambda: of(heard, Pong), "others are answered")
        await until(lambda: max(len(peer.unread) for peer in host.hub.peers) > 1000, "some have arrived")
        await asyncio.sleep(0.3)
        assert max(len(peer.unread) for peer in host.hub.peers) < 20_000
        here.transport.resume_reading()
        await until(lambda: len(of(received, Table)) > 20, "they are answered in the end")


async def test_a_call_that_is_asked_for_many_times_is_answered_for_once(host: Host, path: str) -> None:
    async with process(path) as (here, received):
        here.send(Request("q", call("the-id")))
        here.send(Where(["the-id"] * 10_000 + ["another"]))
        await until(lambda: of(received, There), "it is answered")
        here.send(Ping(1))
        await until(lambda: of(received, Pong), "all was sent")
        assert len(of(received, There)) == 1


async def test_credits_for_a_worker_that_does_not_read_are_bounded(host: Host, path: str) -> None:
    """Each makes up for those before it, so the latest one of each stream is enough."""
    stream = call("the-stream")
    stream.credit = 10
    async with process(path) as (consumer, told), process(path) as (worker, delivered):
        assert worker.transport is not None
        worker.send(Serve("worker", ["q"]))
        worker.send(Slots(5, 0))
        consumer.send(Request("q", stream))
        await until(lambda: of(delivered, Deliver), "it runs")
        worker.transport.pause_reading()
        for number in range(100_000):
            consumer.send(Credit(VERSION, "the-stream", number, number, 7 if number == 90_000 else None))
            if number % 10_000 == 0:
                await asyncio.sleep(0)
        async with process(path) as (other, heard):
            other.send(Ping(1))
            await until(lambda: of(heard, Pong), "others are answered")
        consumer.send(Steer(1, "q", "look"))
        await until(lambda: of(told, QueueState), "all of them are there")
        assert unsent(host) < 2 * 2**20
        worker.transport.resume_reading()
        await until(lambda: of(delivered, Credit) and of(delivered, Credit)[-1].items == 99_999, "it has the last")  # type: ignore[attr-defined]
        assert of(delivered, Credit)[-1].again == 7, "what it has to send again is not forgotten"  # type: ignore[attr-defined]


async def test_groups_of_events_are_bounded(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is kept for good: its worker may come again."""
    monkeypatch.setattr(events, "MAX_GROUPS", 3)
    async with process(path) as (here, received):
        for number in range(10):
            name = f"group-{number}"
            here.send(Serve("worker", [name], subscriptions=[Subscription(f"event-{number}", "a.task", name)]))
        again = Subscription("event-0", "a.task", "group-0", max_attempts=1)
        here.send(Serve("worker", ["group-0"], subscriptions=[again]))
        here.send(Steer(1, "group-0", "look"))
        await until(lambda: of(received, QueueState), "it is answered")
        found = [host.hub._events.handlers("default", f"event-{number}") for number in range(10)]
    assert [len(each) for each in found] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert found[0] == [("group-0", again, "")]


async def test_a_namespace_is_none_that_no_program_could_have(host: Host, path: str) -> None:
    """A hub keeps things by the name of their namespace, so that is bounded."""
    async with process(path, namespace=None) as (here, received):
        here.send(Hello(PROTOCOL, "x" * 1025, os.getpid()))
        await settled(here.ended, "it is disconnected")
    assert of(received, Refused)
    assert not of(received, Welcome)


async def test_frames_that_are_none_are_logged_once(
    host: Host, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        async with process(path) as (here, _received):
            assert here.transport is not None
            here.transport.write(frame(b"no list"))
            await settled(here.ended, "it is disconnected")
    assert len([record for record in caplog.records if "no list of messages" in record.message]) == 1


async def test_paused_queues_are_bounded(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is kept until somebody resumes it, whether there is such a queue or not."""
    monkeypatch.setattr(queues, "MAX_PAUSED", 3)
    async with process(path) as (here, received):
        for number in range(6):
            here.send(Steer(number, f"queue-{number}", "pause"))
        here.send(Steer(6, "queue-0", "resume"))
        here.send(Steer(7, "queue-5", "pause"))
        await until(lambda: len(of(received, QueueState)) == 8, "all are answered")
        paused = [item.number for item in of(received, QueueState) if isinstance(item, QueueState) and item.paused]
        assert paused == [0, 1, 2, 7]


async def test_journals_share_a_bound(path: str, no_leaked_tasks: None) -> None:
    """Their names count, and the ids of calls that were sent, as what was given does."""
    host = await Host.open(path, keep_bytes=5000)
    async with process(path) as (here, received):
        for number in range(100):
            here.send(OpenJournal(number, f"journal-{number}", f"owner-{number}"))
        for number in range(100):
            here.send(Request("nowhere", call(f"call-{number}"), wait=True, journal="journal-0"))
        here.send(Note(100, "journal-0", Reply(VERSION, "step", Status.VALUE, b"")))
        here.send(Note(101, "journal-99", Reply(VERSION, "step", Status.VALUE, b"")))
        await until(lambda: len(of(received, Answer)) == 2, "both are answered")
        assert [item.outcome for item in of(received, Answer) if isinstance(item, Answer)] == [Outcome.NO_ROOM] * 2
        assert len(of(received, JournalFound)) == 100
        assert len(host.hub._journals) < 20
        here.send(OpenJournal(102, "journal-0", "owner-0"))
        await until(lambda: len(of(received, JournalFound)) == 101, "it is answered")
    await host.close()


async def test_ids_and_workers_are_printable(host: Host, path: str) -> None:
    """They stand in logs: those of a record, an event and a worker too."""
    async with process(path) as (here, received), process(path) as (worker, delivered):
        here.send(Begin(1, "q", call("a\nforged line"), 0, True, 60_000))
        here.send(Begin(3, "q", structs.replace(call("child"), parent="a\nforged line"), 0, True, 60_000))
        here.send(Begin(4, "q", structs.replace(call("child"), root="a\nforged line"), 0, True, 60_000))
        for name in ("a\nforged line", "w" * 65, "\N{GRINNING FACE}"):
            worker.send(Serve(name, ["q"]))
            worker.send(Slots(5, 0))
        here.send(Begin(2, "q", call("good"), 0, True, 60_000))
        await until(lambda: len(of(received, Answer)) == 4, "all are answered")
        assert [(item.number, item.outcome) for item in of(received, Answer) if isinstance(item, Answer)] == [
            (2, Outcome.DONE),
            (1, Outcome.BAD),
            (3, Outcome.BAD),
            (4, Outcome.BAD),
        ]
        assert not of(delivered, Deliver), "nobody serves"
