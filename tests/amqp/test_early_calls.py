"""Two movers of the calls that were submitted before their work queue was there, at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractQueue

import atasks
from atasks import atask
from atasks.testing import soon, until
from atasks.transport.backends.amqp.broker import early_calls
from atasks.transport.backends.amqp.broker.early_calls import move_early_calls
from atasks.transport.backends.amqp.broker.outbox import Outbox
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.transport import AMQPTransport
from tests.amqp.peer import Peer

pytestmark = pytest.mark.usefixtures("amqp_leaks")


begun: list[int] = []
release = asyncio.Event()


@atask(delivery="at_most_once")
async def once() -> int:
    begun.append(1)
    await release.wait()
    return 1


@atask
async def idle() -> None: ...


class SlowOutbox:
    """Keeps the first message until the test says what became of it."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.kept: list[Outgoing] = []

    def put(self, message: Outgoing) -> None:
        if self.kept:
            self.outbox.put(message)
        else:
            self.kept.append(message)

    def room(self) -> None:
        """There is always some."""


@asynccontextmanager
async def _two_movers(
    amqp_url: str, prefix: str
) -> AsyncIterator[tuple[AMQPTransport, AMQPTransport, Peer, AbstractQueue, AbstractQueue]]:
    """Two transports, a peer, the work queue, and the early queue, in which a call waits."""
    async with (
        atasks.connect(amqp_url, prefix=prefix) as first,
        atasks.connect(amqp_url, prefix=prefix) as second,
        Peer.connect(amqp_url, prefix, "default") as peer,
    ):
        assert isinstance(first, AMQPTransport)
        assert isinstance(second, AMQPTransport)
        work, early = await _queues(first, peer)
        await peer.channel.default_exchange.publish(Message(b"a call"), early.name)
        yield first, second, peer, work, early


@pytest.mark.parametrize("movers", [1, 2])
async def test_a_call_that_the_work_queue_refuses_once_gets_there(amqp_url: str, prefix: str, movers: int) -> None:
    async with _two_movers(amqp_url, prefix) as (first, second, peer, work, early):
        outbox = SlowOutbox(first.session.outbox)
        moves = [asyncio.create_task(_move(first, outbox))]
        await until(lambda: outbox.kept)
        if movers == 2:
            moves.append(asyncio.create_task(_move(second, second.session.outbox)))
            await asyncio.wait(moves[1:], timeout=1.0)
        outbox.kept[0].refused()
        await soon(asyncio.gather(*moves))
        message = await work.get(fail=False)
        assert message is not None, "it is lost, or waits for a worker that is there"
        assert message.body == b"a call"
        assert not message.headers, "nobody takes it for one that may be there twice"
        assert await work.get(fail=False) is None, "it is there once"
        with pytest.raises(Exception, match="NOT_FOUND"):
            await peer.channel.get_queue(early.name)
        async with Peer.connect(amqp_url, prefix, "default") as other:
            await other.channel.queue_delete(work.name)


async def test_a_mover_that_ends_while_it_asks_for_the_lock_leaves_it_to_others(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _two_movers(amqp_url, prefix) as (first, second, _, work, _):
        link = first.session.link
        assert link is not None
        lock = link.lock

        async def give_up_and_lock(name: str) -> bool:
            asyncio.get_running_loop().call_soon(moving.cancel)
            return await lock(name)

        monkeypatch.setattr(link, "lock", give_up_and_lock)
        moving = asyncio.create_task(_move(first, first.session.outbox))
        await soon(asyncio.wait((moving,)))
        assert moving.cancelled()
        await soon(_move(second, second.session.outbox))
        message = await work.get(fail=False)
        assert message is not None, "nobody can move it while the one that is connected has the lock"
        await work.delete()


async def test_a_mover_that_stops_waits_for_no_other_of_its_link(amqp_url: str, prefix: str) -> None:
    async with (
        atasks.connect(amqp_url, prefix=prefix) as transport,
        Peer.connect(amqp_url, prefix, "default") as peer,
    ):
        assert isinstance(transport, AMQPTransport)
        session = transport.session
        work, early = await _queues(transport, peer)
        await peer.channel.default_exchange.publish(Message(b"a call"), early.name)
        outbox = SlowOutbox(session.outbox)
        moving = asyncio.create_task(_move(transport, outbox))
        await until(lambda: outbox.kept)
        assert session.link is not None
        await soon(move_early_calls(session.link, session.outbox, session.topology, "default", lambda: True))
        assert not moving.done()
        outbox.kept[0].refused()
        await soon(moving)
        assert await work.get(fail=False) is not None
        await work.delete()


async def test_a_call_that_its_mover_left_in_both_queues_runs_once(amqp_url: str, prefix: str) -> None:
    """A mover dies when the work queue has the call, and before the early queue hears of that."""
    begun.clear()
    release.clear()
    async with atasks.connect(amqp_url, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        handle = await once.submit()
        async with Peer.connect(amqp_url, prefix, "default") as mover:
            work, early = await _queues(transport, mover)
            message = await early.get()
            await mover.channel.default_exchange.publish(message, work.name)
        async with (
            atasks.serve(amqp_url, prefix=prefix, concurrency=1),
            atasks.serve(amqp_url, prefix=prefix, concurrency=1),
            Peer.connect(amqp_url, prefix, "default") as peer,
        ):
            await until(lambda: begun)
            with pytest.raises(Exception, match="NOT_FOUND"):
                while True:
                    await peer.channel.get_queue(early.name)
                    await asyncio.sleep(0.05)
            await soon(idle())
            release.set()
            assert await soon(handle) == 1
    assert begun == [1]


async def test_a_queue_in_the_place_of_the_lock_is_told_of(
    amqp_url: str, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not exclusive stays until somebody deletes it, and nobody can move the calls until then."""
    monkeypatch.setattr(early_calls, "TELL_SECONDS", 0.0)
    async with _two_movers(amqp_url, prefix) as (first, _, peer, work, _):
        lock = f"{prefix}.run.default.early:default"
        await peer.channel.declare_queue(lock, durable=True)
        moving = asyncio.create_task(_move(first, first.session.outbox))
        await until(lambda: lock in caplog.text)
        await peer.channel.queue_delete(lock)
        await soon(moving)
        assert caplog.text.count(lock) == 1
        assert await work.get(fail=False) is not None
        await work.delete()


async def _queues(transport: AMQPTransport, peer: Peer) -> tuple[AbstractQueue, AbstractQueue]:
    """Declare the work queue and the one beside it."""
    topology = transport.session.topology
    return (
        await peer.channel.declare_queue(
            topology.work("default"), durable=True, arguments=topology.work_arguments()
        ),
        await peer.channel.declare_queue(
            topology.early("default"), durable=True, arguments=topology.early_arguments()
        ),
    )


async def _move(transport: AMQPTransport, outbox: Any) -> None:
    link = transport.session.link
    assert link is not None
    await move_early_calls(link, cast("Outbox", outbox), transport.session.topology, "default")
