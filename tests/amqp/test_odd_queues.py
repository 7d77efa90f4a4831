"""Messages of strangers in the queues that hold no requests: they cost no call, no worker and no other message."""

# Private attributes: `schedules._decoded`: what reads a table that anybody may have written.

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from msgspec import msgpack

import atasks
from atasks import Limit, atask
from atasks.errors import QueueMismatch
from atasks.submitted import schedules
from atasks.submitted.submit import unique_id
from atasks.testing import soon, until
from atasks.transport.backends.amqp.transport import AMQPTransport
from tests.amqp.peer import Peer
from tests.pace import keeping_pace

pytestmark = pytest.mark.usefixtures("amqp_leaks")


@atask
async def number(value: int) -> int:
    return value


@atask(keep=0)
async def note(value: int) -> None:
    noted.append(value)


noted: list[int] = []

SCHEDULE: dict[str, Any] = {
    "name": "odd",
    "task": note.name,
    "every": 0.2,
    "tz": "UTC",
    "catch_up": False,
    "overlap": "allow",
    "defined": False,
    "since": 1_700_000_000.0,
    "payload": b"",
    "codec": "cloudpickle",
    "options": {},
}
ODD: dict[str, Any] = {
    "a period that floods": SCHEDULE | {"every": 1e-300},
    "no cron expression": SCHEDULE | {"every": "* * * * * * * *"},
    "a cron expression that takes a second to read": SCHEDULE | {"every": f"{','.join(['1'] * 200_000)} * * * *"},
    "no time zone": SCHEDULE | {"tz": "../../etc/passwd"},
    "a time that is none": SCHEDULE | {"since": float("nan")},
    "a time that dates do not reach": SCHEDULE | {"since": 1e300, "every": "* * * * *"},
    "unknown options": SCHEDULE | {"options": {"executor": "process"}},
    "options that make no sense": SCHEDULE | {"options": {"queue": "\n", "max_attempts": -5}},
    "an id that is none": SCHEDULE | {"last": 1_700_000_000.0, "last_id": "x" * 500, "overlap": "skip"},
    "names that are too long": SCHEDULE | {"options": {"queue": "q" * 100}, "name": "n" * 1000},
    "no schedule": 5,
}


async def _publish(peer: Peer, queue: str, *bodies: bytes, **properties: Any) -> None:
    for body in bodies:
        await peer.channel.default_exchange.publish(Message(body, **properties), queue, mandatory=True)


@pytest.mark.parametrize("name", ODD)
async def test_a_schedule_that_makes_no_sense_costs_the_others_nothing(
    amqp_url: str, prefix: str, name: str
) -> None:
    noted.clear()
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        await atasks.schedule("good", note, [1], every=0.2)
        await until(lambda: len(noted) >= 2)
        (good,) = await atasks.schedules()
        table = msgpack.encode([good, ODD[name]])
        await _publish(peer, f"{prefix}.schedules.default", msgpack.encode((1000, table)))
        await soon(_known(peer, f"{prefix}.schedules.default"))
        count = len(noted)
        await atasks.schedule("another", note, [2], every=0.2)
        await until(lambda: 2 in noted and len(noted) > count + 4 and 1 in noted[count + 2 :])
        assert {item.name for item in await atasks.schedules()} - {"n" * 1000} == {"good", "another"}
        assert await soon(number(3)) == 3


async def _known(peer: Peer, queue: str) -> None:
    """Return when the broker has the message in its queue, or has handed it out."""
    await peer.channel.get_queue(queue)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"junk",
        b"\x91" * 3000,
        msgpack.encode((2**53 - 1, b"junk")),
        msgpack.encode((2**64 - 1, b"\x90")),
        msgpack.encode((-1, b"\x90")),
        msgpack.encode((1000, b"\x91" * 3000)),
        msgpack.encode((1000, b"\xdd\xff\xff\xff\xff")),
    ],
    ids=["empty", "junk", "deep", "the last version", "past it", "before all", "deep within", "a bomb"],
)
async def test_a_table_that_is_none_can_be_replaced(amqp_url: str, prefix: str, body: bytes) -> None:
    noted.clear()
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        await atasks.schedule("good", note, [1], every=0.2)
        await until(lambda: noted)
        await _publish(peer, f"{prefix}.schedules.default", body)
        await soon(atasks.schedule("another", note, [2], every=0.2))
        await soon(atasks.schedule("third", note, [3], every=0.2))
        await until(lambda: {2, 3} <= set(noted))
        assert {"another", "third"} <= {item.name for item in await soon(atasks.schedules())}
        assert await soon(number(3)) == 3


async def test_what_lies_beside_a_table_is_taken_away(
    amqp_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would be read again at every look, all of it at once."""
    noted.clear()
    caplog.set_level(logging.ERROR)
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        await atasks.schedule("good", note, [1], every=0.2)
        await until(lambda: noted)
        table = f"{prefix}.schedules.default"
        bodies = [b"junk", msgpack.encode((0, b"\x90")), b"\x91" * 3000] * 40
        await _publish(peer, table, *bodies)
        await soon(schedules_are(["good"]))
        count = len(noted)
        await until(lambda: len(noted) > count + 4)
        await atasks.unschedule("good")  # who keeps the times reads it no more, and has it no more
        await soon(_holds(peer, table, 1))
        assert await soon(number(3)) == 3
    complaints = [record for record in caplog.records if "no table of schedules" in record.message]
    assert len(complaints) <= 1


async def test_the_only_message_that_is_no_table_stays(amqp_url: str, prefix: str) -> None:
    """The first message may be one of a later version of atasks, or under a key that is not known here yet. What
    came after it goes."""
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        table = f"{prefix}.schedules.default"
        arguments: Any = {"x-queue-type": "classic", "x-single-active-consumer": True}
        queue = await peer.channel.declare_queue(table, durable=True, arguments=arguments)
        await _publish(peer, table, b"of a later version", *[b"junk"] * 40)
        assert await soon(atasks.schedules()) == []
        await soon(_holds(peer, table, 1))
        left = await queue.get()
        assert left is not None
        assert left.body == b"of a later version"
        await left.ack()
        await queue.delete()


async def schedules_are(names: list[str]) -> None:
    """Return when they are so: read again and again."""
    while [item.name for item in await atasks.schedules()] != names:
        await asyncio.sleep(0.1)


async def _holds(peer: Peer, queue: str, count: int) -> None:
    """Return when the queue has so many messages that nobody has."""
    while (await peer.channel.declare_queue(queue, passive=True)).declaration_result.message_count != count:
        await asyncio.sleep(0.1)


async def test_a_schedule_of_a_year_ago_is_looked_at_in_no_time(amqp_url: str, prefix: str) -> None:
    noted.clear()
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        await atasks.schedule("good", note, [1], every=0.2)
        await until(lambda: noted)
        (good,) = await atasks.schedules()
        old = SCHEDULE | {"every": "* * * * *", "catch_up": True, "since": 0.0, "payload": good.payload}
        table = msgpack.encode([good, old])
        await _publish(peer, f"{prefix}.schedules.default", msgpack.encode((1000, table)))
        await atasks.schedule("another", note, [2], every=0.2)
        slowest = 0.0
        async with keeping_pace() as pace:
            while pace.seconds < 3:
                since = pace.seconds
                await number(1)
                slowest = max(slowest, pace.seconds - since)
        assert slowest < 2
        await until(lambda: len(noted) > 100)


async def test_what_lies_before_a_work_queue_is_moved_whatever_it_is(
    amqp_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    noted.clear()
    async with Peer.connect(amqp_url, prefix, "default") as peer:
        async with atasks.connect(amqp_url, prefix=prefix):
            await note.submit(1)
            early = f"{peer.work_queue()}.early"
            for body in (b"", b"junk", b"\x91" * 3000):
                await _publish(peer, early, body)
                await _publish(peer, early, body, user_id="guest", headers={"CC": ["x"], "n": 5}, priority=255)
            await note.submit(2)
        async with atasks.serve(amqp_url, prefix=prefix):
            dead = await peer.dead_letters()
            await until(lambda: sorted(noted) == [1, 2])
            for _ in range(6):
                await soon(dead.get())
            with pytest.raises(Exception, match="NOT_FOUND"):
                while True:
                    await peer.channel.get_queue(early)
                    await asyncio.sleep(0.05)


OTHERS: dict[str, Any] = {
    "quorum": {"durable": True, "arguments": {"x-queue-type": "quorum"}},
    "stream": {"durable": True, "arguments": {"x-queue-type": "stream"}},
    "exclusive": {"exclusive": True},
    "with another length": {"durable": True, "arguments": {"x-max-length": 5}},
}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_queue_of_others_in_the_place_of_an_early_one(
    amqp_url: str, prefix: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ closes the connection of who gets a message from a stream, or deletes a quorum queue if it is
    empty: so such a queue would cost each worker one connection after the other."""
    noted.clear()
    async with Peer.connect(amqp_url, prefix, "default") as peer:
        early = await peer.channel.declare_queue(f"{peer.work_queue()}.early", **OTHERS[name])
        await _publish(peer, early.name, b"junk")
        async with atasks.serve(amqp_url, prefix=prefix) as worker:
            assert isinstance(worker.transport, AMQPTransport)
            link = worker.transport.session.link
            await until(lambda: "calls that wait for queue 'default' could not be moved to it" in caplog.text)
            assert early.name in caplog.text, "a person sees which queue"
            assert await soon(number(3)) == 3
            assert worker.transport.session.link is link
        await early.delete(if_unused=False, if_empty=False)


@pytest.mark.parametrize("arguments", [{}, {"x-expires": 60_000}, {"x-expires": 77_777}], ids=str)
async def test_a_queue_of_another_type_in_the_place_of_a_record(
    amqp_url: str, prefix: str, arguments: dict[str, Any]
) -> None:
    """An empty record of another time is deleted by the next one that submits with the `unique` key. The broker
    would close the connection over this queue, again and again."""
    quorum = {"x-queue-type": "quorum", **arguments}
    async with atasks.serve(amqp_url, prefix=prefix) as worker, Peer.connect(amqp_url, prefix, "default") as peer:
        assert isinstance(worker.transport, AMQPTransport)
        session = worker.transport.session
        link, name = session.link, session.topology.kept(unique_id(number.name, "a-key"))
        queue = await peer.channel.declare_queue(name, durable=True, arguments=quorum)
        with pytest.raises(QueueMismatch, match="delete the queue"):
            await soon(number.options(unique="a-key", keep=60).submit(1))
        assert session.link is link
        await queue.delete(if_unused=False, if_empty=False)
        assert await soon(await soon(number.options(unique="a-key", keep=60).submit(2))) == 2


async def test_a_message_in_the_definition_of_a_limit_is_taken_away(amqp_url: str, prefix: str) -> None:
    """Unacknowledged it would have the broker close the channel, half an hour later, and so on for ever."""
    limit = Limit("bank", at_once=2)
    async with atasks.serve(amqp_url, prefix=prefix), Peer.connect(amqp_url, prefix, "default") as peer:
        async with limit:
            await _publish(peer, f"{prefix}.limit.default.bank", b"", b"junk")
            queue = await peer.channel.get_queue(f"{prefix}.limit.default.bank")
            await until(lambda: queue.declaration_result.message_count == 0)
        async with limit, limit:
            assert await soon(number(3)) == 3
    async with Peer.connect(amqp_url, prefix, "default") as peer:
        queue = await peer.channel.get_queue(f"{prefix}.limit.default.bank")
        assert queue.declaration_result.message_count == 0, "they were acknowledged"


@pytest.mark.parametrize("written", [False, True], ids=["empty", "with a message"])
async def test_a_stream_in_the_place_of_the_schedules_is_told_of(
    amqp_url: str, prefix: str, written: bool
) -> None:
    """A stream keeps what is acknowledged, so nobody would ever have the table alone."""
    async with Peer.connect(amqp_url, prefix, "default") as peer, atasks.connect(amqp_url, prefix=prefix):
        name = f"{prefix}.schedules.default"
        queue = await peer.channel.declare_queue(name, durable=True, arguments={"x-queue-type": "stream"})
        if written:
            await _publish(peer, name, b"junk")
        for _ in range(2):
            with pytest.raises(QueueMismatch, match=r"schedules\.default"):
                await soon(atasks.schedule("a-name", number, [1], every=30))
            with pytest.raises(QueueMismatch, match=r"schedules\.default"):
                await soon(atasks.schedules())
        await queue.delete(if_unused=False, if_empty=False)
        await soon(atasks.schedule("a-name", number, [1], every=30))
        assert [item.name for item in await soon(atasks.schedules())] == ["a-name"]
        await soon(atasks.unschedule("a-name"))


async def _keep(message: AbstractIncomingMessage) -> None: ...


@pytest.mark.parametrize("there", [False, True], ids=["gone", "there again"])
async def test_schedules_that_are_deleted_while_their_turn_is_waited_for_are_declared_anew(
    amqp_url: str, prefix: str, there: bool
) -> None:
    name = f"{prefix}.schedules.default"
    async with Peer.connect(amqp_url, prefix, "default") as peer, atasks.connect(amqp_url, prefix=prefix):
        await soon(atasks.schedule("first", number, [1], every=30))
        queue = await peer.channel.get_queue(name)
        arguments: Any = {"x-queue-type": "classic", "x-single-active-consumer": True}
        await queue.consume(_keep)  # and nobody else has it
        waiting = [
            asyncio.create_task(atasks.schedule("second", number, [2], every=30)),
            asyncio.create_task(atasks.schedules()),
        ]
        while (await peer.channel.declare_queue(name, passive=True)).declaration_result.consumer_count < 3:
            await asyncio.sleep(0.05)
        await queue.delete(if_unused=False, if_empty=False)
        if there:
            await peer.channel.declare_queue(name, durable=True, arguments=arguments)
        await soon(asyncio.gather(*waiting))
        assert [item.name for item in await soon(atasks.schedules())] == ["second"]
        await soon(atasks.unschedule("second"))


def test_a_schedule_says_what_is_wrong_with_it() -> None:
    for entry in ODD.values():
        found = schedules._decoded(msgpack.encode([SCHEDULE, entry]))
        assert "odd" in [item.name for item in found]


def test_the_log_says_once_what_is_wrong_with_the_table(caplog: pytest.LogCaptureFixture) -> None:
    """A leader reads it at every tick."""
    good, odd = msgpack.encode([SCHEDULE]), msgpack.encode([SCHEDULE, {"name": "odd"}])
    schedules._decoded(good)
    for content in (odd, odd, good, odd):
        assert [item.name for item in schedules._decoded(content)] == [SCHEDULE["name"]]
    assert len([text for text in caplog.messages if text.startswith("schedules in the table cannot be used")]) == 2
