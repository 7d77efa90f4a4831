"""Calls on their way from the queue beside a work queue into that: a move that is given up leaves none in both."""

from __future__ import annotations

import asyncio

import pytest
from pamqp.commands import Basic

from atasks.testing import soon
from atasks.transport.backends.amqp.broker.early_calls import move_early_calls
from atasks.transport.backends.amqp.broker.link import guard
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from tests.amqp.conftest import NewTransport

SLOW = 0.2
"""Seconds that the confirm takes."""


async def test_a_move_that_is_given_up(new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has left for the work queue, and no confirm has come yet."""
    transport = new_transport("early")
    await transport.connect()
    session, link = transport.session, transport.session.link
    assert link is not None
    topology, outbox = session.topology, session.outbox
    early, work = topology.early("q"), topology.work("q")
    await link.declare_queue(early, topology.early_arguments())
    await link.declare_queue(work, topology.work_arguments())
    properties = Basic.Properties(message_id="one")
    outbox.put(Outgoing(b"", early, properties))
    await soon(outbox.flushed())
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
    found = [await guard(channel.basic_get(name)) for name in (early, work)]
    assert [isinstance(each.delivery, Basic.GetOk) for each in found] == [False, True]
    await transport.disconnect()
