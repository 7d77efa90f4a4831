"""What of events is seen at the broker only."""

from __future__ import annotations

import asyncio
import logging

import pytest

from atasks import event, wire
from atasks.testing import Site, soon
from atasks.transport.backends.amqp import AMQPTransport
from atasks.wire import Call
from tests.amqp.peer import Peer


async def test_what_a_handler_fails_at_goes_to_the_dead_queue(
    site: Site, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="billing")
    async def bill(order: int) -> None:
        raise ValueError(f"order {order} is unknown")

    async with site.open():
        dead = await peer.dead_letters()
        with caplog.at_level(logging.WARNING):
            await soon(paid(7))
            letter = await soon(dead.get())
        (call,) = wire.decode(letter.body)
        assert isinstance(call, Call)
        assert call.task == bill.name
        assert str(letter.headers["x-first-death-queue"]).endswith(".events:paid:billing")
        assert "order 7 is unknown" in caplog.text


async def test_what_is_no_event_goes_to_the_dead_queue(site: Site, peer: Peer) -> None:
    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    heard: asyncio.Queue[int] = asyncio.Queue()

    @paid.on(group="billing")
    async def bill(order: int) -> None:
        heard.put_nowait(order)

    async with site.open():
        transport = site.caller
        assert isinstance(transport, AMQPTransport)
        dead = await peer.dead_letters()
        topology = transport.session.topology
        await peer.publish(b"\x93", topology.work("events:paid:billing"), reply_to=topology.events)
        assert (await soon(dead.get())).body == b"\x93"
        await soon(paid(1))
        assert await soon(heard.get()) == 1
