"""Calls on their way from the queue beside a work queue into that: a move that is given up leaves none in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks.testing import soon
from atasks.transport.backends.amqp.broker import outbox as outboxes
from atasks.transport.backends.amqp.broker.early_calls import move_early_calls
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outbox import Outbox
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.questions import guard
from atasks.transport.backends.amqp.broker.topology import Topology
from tests.amqp.conftest import NewTransport

SLOW = 0.2
"""Seconds that the confirm takes."""


async def test_a_move_that_is_given_up(new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has left for the work queue, and no confirm has come yet."""
    async with _a_call_waits(new_transport) as (link, outbox, topology):
        put = outbox.put

        def leave_and_give_up(message: Outgoing) -> None:
            loop, confirmed = asyncio.get_running_loop(), message.confirmed
            monkeypatch.setattr(type(message), "confirmed", lambda _: loop.call_later(SLOW, confirmed))
            put(message)
            moving.cancel()

        monkeypatch.setattr(outbox, "put", leave_and_give_up)
        moving = asyncio.create_task(move_early_calls(link, outbox, topology, "q"))
        await soon(asyncio.wait((moving,)))
        assert moving.cancelled()
        await soon(outbox.flushed())
        channel = await link.open_channel()
        found = [await guard(channel.basic_get(name)) for name in (topology.early("q"), topology.work("q"))]
        assert [isinstance(each.delivery, Basic.GetOk) for each in found] == [False, True]


async def test_large_calls_leave_when_there_is_room(
    new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two hundred of them would be in memory at once, and replies would wait behind all."""
    async with _a_call_waits(new_transport, b"large", count=20) as (link, outbox, topology):
        monkeypatch.setattr(outboxes, "MAX_BYTES", len(b"large"))
        put, found, loop = outbox.put, [], asyncio.get_running_loop()

        def leave(message: Outgoing) -> None:
            outbox.grew(-message.size)
            put(message)

        def note(message: Outgoing) -> None:
            found.append(outbox.room() is None)
            outbox.grew(message.size)
            loop.call_later(SLOW / 10, leave, message)

        monkeypatch.setattr(outbox, "put", note)
        await soon(move_early_calls(link, outbox, topology, "q"))
        assert found == [True] * 20
        assert await link.queue_state(topology.work("q")) == (20, 0)


@pytest.mark.parametrize("same", [False, True], ids=["an id each", "one id"])
async def test_a_work_queue_that_is_deleted_meanwhile_costs_no_call(
    new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The broker tells of a message that it returns by the id alone. One that comes back to the early queue may be
    there again before it is confirmed."""
    bodies = [b"%d" % number for number in range(40)]
    async with _a_call_waits(new_transport) as (link, outbox, topology):
        early, work = topology.early("q"), topology.work("q")
        for number, body in enumerate(bodies):
            properties = Basic.Properties(message_id="one" if same else f"call-{number}", delivery_mode=2)
            outbox.put(Outgoing(body, early, properties))
        await soon(outbox.flushed())
        declare = link.declare_queue

        async def delete_and_declare(name: str, arguments: FieldTable) -> tuple[int, int]:
            await link.delete_queue(work)
            return await declare(name, arguments)

        monkeypatch.setattr(link, "declare_queue", delete_and_declare)
        await soon(move_early_calls(link, outbox, topology, "q", lambda: True))
        channel = await link.open_channel()
        found: list[bytes] = []
        while isinstance((message := await guard(channel.basic_get(early))).delivery, Basic.GetOk):
            found.append(message.body)
        assert sorted(found) == sorted([b"", *bodies])


async def test_calls_of_one_id_for_two_queues_are_told_apart(
    new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls for "q" come back, since it is deleted meanwhile, and those for "other" do not."""
    bodies = [b"%d" % number for number in range(20)]
    async with _a_call_waits(new_transport, count=0) as (link, outbox, topology):
        early, work, other = topology.early("q"), topology.work("q"), topology.work("other")
        await link.declare_queue(topology.early("other"), topology.early_arguments())
        await link.declare_queue(other, topology.work_arguments())
        for body in bodies:
            for queue in ("q", "other"):
                properties = Basic.Properties(message_id="one", delivery_mode=2)
                outbox.put(Outgoing(body, topology.early(queue), properties))
                await soon(outbox.flushed())
        declare = link.declare_queue

        async def delete_and_declare(name: str, arguments: FieldTable) -> tuple[int, int]:
            if name == early:
                await link.delete_queue(work)
            return await declare(name, arguments)

        monkeypatch.setattr(link, "declare_queue", delete_and_declare)
        moves = [move_early_calls(link, outbox, topology, queue, lambda: True) for queue in ("q", "other")]
        await soon(asyncio.gather(*moves))
        for name in (early, other):
            channel = await link.open_channel()
            found: list[bytes] = []
            while isinstance((message := await guard(channel.basic_get(name))).delivery, Basic.GetOk):
                found.append(message.body)
            assert sorted(found) == sorted(bodies), name


@asynccontextmanager
async def _a_call_waits(
    new_transport: NewTransport, body: bytes = b"", count: int = 1
) -> AsyncIterator[tuple[Link, Outbox, Topology]]:
    """Some lie in the queue beside a work queue, which is there."""
    transport = new_transport("early")
    await transport.connect()
    session, link = transport.session, transport.session.link
    assert link is not None
    topology, outbox = session.topology, session.outbox
    early, work = topology.early("q"), topology.work("q")
    await link.declare_queue(early, topology.early_arguments())
    await link.declare_queue(work, topology.work_arguments())
    for number in range(count):
        outbox.put(Outgoing(body, early, Basic.Properties(message_id=f"call-{number}")))
    await soon(outbox.flushed())
    yield link, outbox, topology
    await transport.disconnect()
