"""Events, as far as they are seen at the broker only."""

from __future__ import annotations

import asyncio
import logging

import pytest

from atasks import Retry, RetryAfter, current_call, event, wire
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.wire import Call
from tests.amqp.peer import Peer
from tests.amqp.test_dead_messages import count, steering


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


async def test_an_event_is_handled_again_when_it_is_put_back_from_the_dead_queue(site: Site) -> None:
    keys: list[str | None] = []
    bad = True

    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="billing")
    async def bill(order: int) -> None:
        keys.append(current_call().key)
        if bad:
            raise ValueError

    async with site.open():
        await soon(paid(7))
        fleet = steering(site.caller)
        for failures in (1, 2):
            await count(fleet, 1)
            assert len(keys) == failures
            bad = failures == 1
            async with fleet.dead_letters() as dead:
                assert await soon(dead.retry(dead.messages)) == {}
            await until(lambda number=failures + 1: len(keys) == number, "the event is handled again")
        assert len(set(keys)) == 1, "it is the same event"
        await count(fleet, 0)


async def test_an_event_goes_to_the_dead_queue_after_its_tries(site: Site, peer: Peer) -> None:
    tries: list[int | None] = []

    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="billing", retry=Retry(on=(OSError,), attempts=2, wait=0.001, jitter=0.0))
    async def bill(order: int) -> None:
        tries.append(current_call().try_)
        raise OSError

    async with site.open():
        dead = await peer.dead_letters()
        await soon(paid(7))
        (call,) = wire.decode((await soon(dead.get())).body)
        assert isinstance(call, Call)
        assert (call.task, tries) == (bill.name, [1, 2])


async def test_a_worker_that_leaves_in_a_pause_gives_the_event_and_its_tries_to_another(site: Site) -> None:
    tries: list[tuple[str, int | None]] = []

    @event(name="paid", namespace=site.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="billing", retry=Retry(on=(OSError,), attempts=3, wait=0.001, jitter=0.0))
    async def bill(order: int) -> None:
        call = current_call()
        tries.append((call.state, call.try_))
        if call.try_ == 1:
            raise OSError
        if call.try_ == 2 and call.state == "first":
            raise RetryAfter(200)

    async with site.open(state="first"):
        await soon(paid(7))
        await until(lambda: site.worker.parked == 1 and len(tries) == 2)
        await site.serve(state="second")
        await soon(site.worker.drain(0))
        await until(lambda: len(tries) == 3)
    assert tries == [("first", 1), ("first", 2), ("second", 2)]


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
