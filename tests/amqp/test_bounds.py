"""Bounds of the cost of one message for whoever receives it."""

# Private attributes: `RecordReader._read`: only the client library and the broker see each read.

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from atasks import MsgpackCodec
from atasks.testing import Site, soon, until
from atasks.testing.site import PATIENCE
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.record_reader import RecordReader
from atasks.transport.backends.amqp.worker.stored_replies import LATER
from atasks.wire import Status
from tests.amqp.peer import Peer

CALL, REPLY, _, ASK = range(1, 5)
CLAIM = 11
VALUE, DECODE_ERROR = 0, 7
encode = msgspec.msgpack.encode


def call(id: str, size: int) -> list[Any]:
    return [CALL, 1, id, "make", encode([[size], {}]), "msgpack"]


@pytest.fixture
def make_site(site: Site) -> Site:
    """A site with an atask that makes a text of a size."""
    MsgpackCodec(site.namespace)

    @site.atask(name="make")
    async def make(size: int) -> str:
        return "x" * size

    return site


async def _make(site: Site, size: int) -> int:
    item = site.router.registry.get("make")
    assert item is not None
    return len(await soon(item.task(size)))


async def test_a_question_that_names_one_call_many_times_is_answered_once(make_site: Site, peer: Peer) -> None:
    async with make_site.open():
        await peer.send(call("an-id", 1_000_000))
        await peer.answer()
        key = f"worker:{make_site.worker.id}"
        for count in (300, 1000):
            await peer.control(encode([[ASK, 1, ["an-id"] * count]]), key, reply_to=peer.replies.name)
            assert [fields[:3] for fields in await peer.answer()] == [[REPLY, 1, "an-id"]]
        counted = make_site.worker.bad_messages
        await peer.control(encode([[ASK, 1, ["an-id"] * 1001]]), key, reply_to=peer.replies.name)
        await until(lambda: make_site.worker.bad_messages == counted + 1)
        assert await _make(make_site, 5) == 5
        assert peer.unread.empty()


async def test_replies_that_are_asked_for_leave_in_bounded_messages(make_site: Site, peer: Peer) -> None:
    async with make_site.open():
        names = [f"id-{n}" for n in range(200)]
        for name in names:
            await peer.send(call(name, 20_000))
        assert len(await peer.answers(200)) == 200
        key = f"worker:{make_site.worker.id}"
        await peer.control(encode([[ASK, 1, names]]), key, reply_to=peer.replies.name)
        found: set[str] = set()
        while len(found) < 200:
            message = await soon(peer.unread.get())
            assert len(message.body) < 100_000
            found |= {fields[2] for fields in msgspec.msgpack.decode(message.body) if fields[0] == REPLY}
        assert found == set(names)


async def test_a_message_over_the_limit_is_answered_unread(make_site: Site, peer: Peer) -> None:
    async with make_site.open():
        transport = make_site.worker.transport
        assert isinstance(transport, AMQPTransport)
        transport.session.max_message = 10_000
        dead = await peer.dead_letters()
        large = [*call("an-id", 1), None, 0, 1, 3, 0, 0, None, None, None, 0, {"context": bytes(10_000)}]
        await peer.send(large, message_id="an-id")
        ((tag, _, call_id, status, payload, *_),) = await peer.answer()
        assert (tag, call_id, status) == (REPLY, "an-id", DECODE_ERROR)
        assert "at most 10000 are read" in msgspec.msgpack.decode(payload)[0]
        await peer.send(large, message_id="\N{GRINNING FACE}")
        assert (await soon(dead.get())).body == encode([large])
        assert await _make(make_site, 5) == 5


@pytest.mark.parametrize("worker", ["\N{GRINNING FACE}" * 64, "w" * 65, "a\nb", ""])
async def test_a_claim_of_an_odd_worker_leaves_confirms_in_step(make_site: Site, peer: Peer, worker: str) -> None:
    requests = await peer.declare_work_queue("default")
    async with make_site.open(serve=False):
        waiting = asyncio.create_task(_make(make_site, 1))
        request = await soon(requests.get())
        ((_, _, call_id, *_),) = msgspec.msgpack.decode(request.body)
        for _ in range(3):
            await peer.send([CLAIM, 1, call_id, 2, "a copy", worker], queue=request.reply_to)
        await peer.send([REPLY, 1, call_id, VALUE, encode("x"), "msgpack"], queue=request.reply_to)
        assert await soon(waiting) == 1
        transport = make_site.caller
        assert isinstance(transport, AMQPTransport)
        link = transport.session.link
        more = [asyncio.create_task(_make(make_site, 1)) for _ in range(20)]
        await until(lambda: sum(pending.confirmed for pending in transport.session.pendings.values()) == 20)
        await soon(transport.session.outbox.flushed())
        for task in more:
            task.cancel()
        await asyncio.wait(more)
        assert transport.session.link is link


@pytest.mark.parametrize("name", ["a\nforged line", "\N{GRINNING FACE}", "\x1b[2J", "a\x00"])
async def test_an_id_that_is_not_printable_is_dead_lettered(make_site: Site, peer: Peer, name: str) -> None:
    async with make_site.open():
        dead = await peer.dead_letters()
        await peer.send(call(name, 1))
        assert (await soon(dead.get())).body == encode([call(name, 1)])
        await peer.send(call(name, 1), call("good", 1))
        ((_, _, call_id, status, *_),) = await peer.answer()
        assert (call_id, status) == ("good", VALUE)


@pytest.mark.parametrize("name", ["nope\nforged line", "\x1b[2Jnope", "nope\u2028forged line"])
async def test_the_name_of_an_atask_forges_no_line_of_a_log(
    make_site: Site, peer: Peer, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.DEBUG, "atasks")
    async with make_site.open():
        for codec in ("msgpack", name):
            await peer.send([CALL, 1, f"an-id-{len(codec)}", name, encode([[1], {}]), codec])
            ((_, _, _, status, *_),) = await peer.answer()
            assert status == Status.UNKNOWN_TASK
        lines = [record.getMessage() for record in caplog.records if record.name == "atasks.call"]
        assert len(lines) == 2
        assert all(line.isprintable() for line in lines)
        assert all("nope" in line for line in lines)


async def test_calls_of_unknown_atasks_ask_the_broker_for_other_workers_together(
    make_site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asked twice, and waited 0.1 s in the window of its worker; good calls waited behind them."""
    asked: list[str] = []
    real = Link.queue_state

    async def queue_state(link: Link, name: str) -> tuple[int, int] | None:
        asked.append(name)
        return await real(link, name)

    monkeypatch.setattr(Link, "queue_state", queue_state)
    async with make_site.open(concurrency=5):
        asked.clear()
        unknown = [[CALL, 1, f"id-{number}", "nothing", encode([[1], {}]), "msgpack"] for number in range(2000)]
        for start in range(0, len(unknown), 500):
            await peer.send(*unknown[start : start + 500])
        found = await peer.answers(2000)
        assert {fields[3] for fields in found} == {Status.UNKNOWN_TASK}
        assert await _make(make_site, 5) == 5
        assert asked.count(make_site.worker.transport.session.topology.solo("default")) < 100


async def test_a_link_that_is_lost_over_a_look_for_other_workers_ends_no_call(
    make_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker gives the call to a worker again, which may have its atask."""
    real = Link.queue_state

    async def queue_state(link: Link, name: str) -> tuple[int, int] | None:
        if name == make_site.worker.transport.session.topology.solo("default"):
            monkeypatch.undo()
            make_site.atask(name="late")(_late)
            link.lose("cut")
        return await real(link, name)

    async with make_site.open():
        monkeypatch.setattr(Link, "queue_state", queue_state)
        assert await soon(make_site.router.send_request("late", 3)) == 3


async def _late(n: int) -> int:
    return n


async def test_calls_for_a_database_that_is_not_known_wait_elsewhere(make_site: Site, peer: Peer) -> None:
    """And not in the window of a worker, for a second each time: good calls waited behind 3 000 of them for a
    minute, for as long as these were there."""
    async with make_site.open(concurrency=5):
        for number in range(300):
            await peer.send(call(f"id-{number}", 1), reply_to=f"{peer.prefix}.stored")
        transport = make_site.worker.transport
        assert isinstance(transport, AMQPTransport)
        link, level = transport.session.link, transport.session.topology.delay(LATER.bit_length() - 1)
        assert link is not None
        async with asyncio.timeout(PATIENCE):
            while await link.queue_state(level) != (300, 0):
                await asyncio.sleep(0.05)
        assert make_site.worker.bad_messages == 0
        assert await _make(make_site, 5) == 5


async def test_a_journal_is_read_once_for_the_calls_that_come_meanwhile(
    make_site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that may have ended had the whole journal read, whatever was in it."""
    reads: list[str] = []
    real = RecordReader._read

    async def read(reader: RecordReader, link: Link, name: str, *others: Any) -> Any:
        reads.append(name)
        return await real(reader, link, name, *others)

    monkeypatch.setattr(RecordReader, "_read", read)
    async with make_site.open(concurrency=200):
        topology = make_site.worker.transport.session.topology
        journal, lock = topology.kept("a-journal"), topology.lock("a-journal")
        queue = await peer.channel.declare_queue(journal, durable=True, arguments=topology.kept_arguments(60_000))
        await peer.channel.declare_queue(lock, exclusive=True)
        replies = await peer.consume(lock)
        for number in range(100):
            await peer.publish(bytes(10_000), journal, message_id=f"junk-{number}")
        again = [[*call(f"id-{number}", 1), None, 0, 2, 3] for number in range(100)]
        await asyncio.gather(*(peer.send(fields, reply_to=lock) for fields in again))
        answered: set[str] = set()
        while len(answered) < 100:
            message = await soon(replies.get())
            answered |= {fields[2] for fields in msgspec.msgpack.decode(message.body) if fields[0] == REPLY}
        assert len(reads) < 50
        assert await _make(make_site, 5) == 5
        await queue.delete(if_unused=False, if_empty=False)
