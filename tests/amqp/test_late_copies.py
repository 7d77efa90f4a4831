"""Copies of an awaited call that resumes which begin when the call has ended: they make no step again."""

# Private attributes: `Calling._on_inbox`: a caller that is slow to read what has come cannot be had from outside.

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from atasks import MsgpackCodec, Worker, current_call, wire
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller.calling import Calling
from atasks.transport.backends.amqp.worker import attempts
from tests.amqp.journals import gone, journal_queue
from tests.amqp.peer import Peer
from tests.faults.proxy import Proxy

CALL, REPLY, CLAIM, GRANT = 1, 2, 11, 12
RUN = 1
"""`Call.orphan`."""


class Orders:
    """A call that resumes, and its one step. Its copies come to a worker that had no other one."""

    def __init__(self, site: Site, peer: Peer) -> None:
        MsgpackCodec(site.namespace)
        self.site, self.peer = site, peer
        self.charged: list[int] = []
        self.begun: list[str] = []
        """The id of each run."""
        self.halfway, self.go_on = asyncio.Event(), asyncio.Event()
        self.is_busy, self.rest = asyncio.Event(), asyncio.Event()

        @site.atask(name="charge", queue="steps")
        async def charge(n: int) -> int:
            self.charged.append(n)
            return n

        @site.atask(name="order", queue="orders", resume=True)
        async def order() -> int:
            self.begun.append(current_call().id or "")
            value = await charge(1)
            self.halfway.set()
            await self.go_on.wait()
            return value

        @site.atask(name="busy", queue="busy")
        async def busy() -> None:
            self.is_busy.set()
            await self.rest.wait()

        self.order, self.busy = order, busy

    @property
    def caller(self) -> AMQPTransport:
        assert isinstance(self.site.caller, AMQPTransport)
        return self.site.caller

    async def serve(self) -> Worker:
        """Serve the steps, and copies; return the worker of copies."""
        self.steps = await self.site.serve(queues=["steps"])
        return await self.site.serve(queues=["copies", "busy"], concurrency=1)

    async def forget_steps(self) -> None:
        """Have the steps served by a worker that does not remember those which were made."""
        await self.steps.drain(0)
        self.steps = await self.site.serve(queues=["steps"])

    async def send_copy(
        self, call_id: str, reply_to: str, attempt: int = 2, orphan: int = 0, ago: float = 60.0
    ) -> None:
        """Send a copy of a call that was sent so many seconds ago."""
        sent_ms = int((time.time() - ago) * 1000)
        call = [CALL, 1, call_id, "order", msgspec.msgpack.encode([[], {}]), "msgpack", None, sent_ms]
        message_id = call_id if attempt == 1 else f"{call_id}:copy"
        queue = self.peer.work_queue("copies")
        await self.peer.send([*call, attempt, 3, 0, orphan], queue=queue, message_id=message_id, reply_to=reply_to)

    async def begin_beside_copy(
        self, attempt: int, ago: float = 60.0
    ) -> tuple[Worker, asyncio.Task[int], asyncio.Task[None]]:
        """Have the call begin, and have its copy wait at another worker for the slot of a busy call. Return that
        worker, and both calls."""
        second = await self.serve()
        await self.site.serve(queues=["orders"])
        running = asyncio.create_task(self.order())
        await soon(self.halfway.wait())
        other = asyncio.create_task(self.busy())
        await soon(self.is_busy.wait())
        (call_id,) = self.begun
        await self.send_copy(call_id, self.caller.session.reply_queue, attempt, ago=ago)
        await until(lambda: second.holds(call_id), "its caller lets the copy start")
        return second, running, other


class Inbox:
    """The messages that come to one caller."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.caller: AMQPTransport | None = None
        self.claims: list[wire.Claim] = []
        self.held: list[Any] | None = None
        """The messages that it has not read; None: it reads each at once."""
        self._read = Calling._on_inbox
        monkeypatch.setattr(Calling, "_on_inbox", lambda calling, message: self._on_message(calling, message))

    def _on_message(self, calling: Calling, message: Any) -> None:
        if self.caller is None or calling is not self.caller.calling:
            self._read(calling, message)
            return
        self.claims += [item for item in wire.decode(message.body, 2**20) if isinstance(item, wire.Claim)]
        if self.held is None:
            self._read(calling, message)
        else:
            self.held.append(message)

    def release(self) -> None:
        """Read what has come, in its order."""
        assert self.caller is not None
        held, self.held = self.held or [], None
        for message in held:
            self._read(self.caller.calling, message)


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Inbox:
    return Inbox(monkeypatch)


@pytest.fixture
def orders(site: Site, peer: Peer) -> Orders:
    return Orders(site, peer)


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[Proxy]:
    """A proxy between the caller and the broker."""
    proxy = Proxy(amqp_url)
    yield proxy
    proxy.close()


@pytest.fixture
def cut_off(proxy: Proxy, amqp_url: str, prefix: str, amqp_leaks: None) -> Iterator[Site]:
    """A site whose caller, and nobody else, may be cut off from the broker."""
    urls = iter([proxy.url()])
    site = Site(lambda namespace: AMQPTransport(next(urls, amqp_url), namespace, prefix=prefix))
    yield site
    site.close()


@pytest.mark.parametrize("attempt", [1, 2], ids=["sent again", "another attempt"])
@pytest.mark.parametrize("reads", [True, False], ids=["reply read", "reply not read"])
async def test_a_copy_that_begins_when_the_call_has_ended_makes_no_step(
    orders: Orders, inbox: Inbox, attempt: int, reads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller has let it start before, and another call had the slot meanwhile."""
    caplog.set_level(logging.INFO, "atasks.worker")
    async with orders.site.open(serve=False):
        inbox.caller = orders.caller
        second, running, other = await orders.begin_beside_copy(attempt)
        (call_id,) = orders.begun
        before = len(inbox.claims)
        inbox.held = None if reads else []
        orders.go_on.set()
        await orders.forget_steps()
        await soon(gone(orders.site, journal_queue(orders.site, call_id)))
        orders.rest.set()
        await until(lambda: len(orders.begun) == 2, "the copy begins")
        await until(lambda: len(inbox.claims) > before or len(orders.charged) > 1, "its caller is asked")
        assert orders.charged == [1]
        inbox.release()
        assert await soon(running) == 1
        await soon(other)
        await until(lambda: not second.held, "the copy ends")
        assert orders.charged == [1]
        assert f"order, call {call_id}, has ended elsewhere" in caplog.text
        assert "goes on at another worker" not in caplog.text
        await soon(gone(orders.site, journal_queue(orders.site, call_id)))


async def test_a_call_of_which_its_caller_did_not_hear_that_it_was_sent_makes_no_step_twice(
    cut_off: Site, proxy: Proxy, amqp_url: str, prefix: str
) -> None:
    """The caller lost its connection before the broker could confirm the call, and sent it again at once: both
    messages are of the first attempt, and of now."""
    site = cut_off
    async with Peer.connect(amqp_url, prefix, site.namespace) as peer:
        orders = Orders(site, peer)
        async with site.open(serve=False):
            orders.steps = await site.serve(queues=["steps"])
            first = await site.serve(queues=["orders"])
            await asyncio.sleep(0.3)  # calls that were sent before the worker listened are asked for in any case
            proxy.mute("to_client")
            running = asyncio.create_task(orders.order())
            await soon(orders.halfway.wait())
            draining = asyncio.create_task(first.drain(60))
            second = await site.serve(queues=["orders", "busy"], concurrency=1)
            await peer.send(
                [CALL, 1, "other", "busy", msgspec.msgpack.encode([[], {}]), "msgpack"],
                queue=peer.work_queue("busy"),
            )
            await soon(orders.is_busy.wait())
            proxy.drop()
            (call_id,) = orders.begun
            await until(lambda: second.holds(call_id), "it is sent again")
            orders.go_on.set()
            assert await soon(running) == 1
            await soon(draining)
            await orders.forget_steps()
            await soon(gone(site, journal_queue(site, call_id)))
            orders.rest.set()
            await until(lambda: not second.held, "the second message is settled")
            assert orders.charged == [1]


async def test_a_call_that_waited_at_its_worker_while_it_ended_elsewhere_makes_no_step(
    orders: Orders, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that came at once may be the first message of one that was sent again."""
    monkeypatch.setattr(attempts, "AGAIN_SECONDS", 0.2)
    async with orders.site.open(serve=False):
        inbox.caller = orders.caller
        second, running, other = await orders.begin_beside_copy(attempt=1, ago=0)
        (call_id,) = orders.begun
        await asyncio.sleep(0.3)
        orders.go_on.set()
        assert await soon(running) == 1
        await orders.forget_steps()
        await soon(gone(orders.site, journal_queue(orders.site, call_id)))
        orders.rest.set()
        await soon(other)
        await until(lambda: not second.held, "the copy ends")
        assert orders.charged == [1]


async def test_a_copy_whose_call_is_awaited_goes_on(orders: Orders, inbox: Inbox) -> None:
    orders.go_on.set()
    async with orders.site.open(serve=False):
        inbox.caller = orders.caller
        await orders.serve()
        running = asyncio.create_task(orders.order())
        await until(lambda: orders.caller.session.pendings, "it is sent")
        (call_id,) = orders.caller.session.pendings
        await orders.send_copy(call_id, orders.caller.session.reply_queue)
        assert await soon(running) == 1
        assert [claim.copy for claim in inbox.claims] == [f"{call_id}:copy"] * 2
        assert orders.charged == [1]


async def test_nobody_is_asked_for_a_first_attempt(orders: Orders, inbox: Inbox) -> None:
    orders.go_on.set()
    async with orders.site.open(serve=False):
        inbox.caller = orders.caller
        await orders.serve()
        await orders.site.serve(queues=["orders"])
        await asyncio.sleep(0.3)  # calls that were sent before the worker listened are asked for in any case
        assert await soon(orders.order()) == 1
        assert inbox.claims == []


@pytest.mark.parametrize("answer", ["it is over", "one of an older caller", "none", "its queue is gone"])
async def test_a_copy_makes_its_steps_unless_its_caller_says_that_it_is_over(
    orders: Orders, peer: Peer, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(attempts.Attempts, "patience", 1.5)
    orders.go_on.set()
    async with orders.site.open(serve=False):
        second = await orders.serve()
        inbox = await peer.channel.declare_queue(exclusive=True)
        unread = await peer.consume(inbox.name)

        async def claimed() -> list[Any]:
            (claim,) = msgspec.msgpack.decode((await soon(unread.get())).body)
            assert claim[:5] == [CLAIM, 1, "call", 2, "call:copy"]
            return [GRANT, 1, "call", "call:copy"]

        async def say(grant: list[Any]) -> None:
            await peer.control(msgspec.msgpack.encode([grant]), f"worker:{second.id}")

        await orders.send_copy("call", inbox.name, orphan=RUN)
        await say([*await claimed(), True])
        grant = await claimed()
        if answer == "it is over":
            await say([*grant, False, False, 0, int(time.time() * 1000), True])
        elif answer == "one of an older caller":
            await say([*grant, False])
        elif answer == "its queue is gone":
            await inbox.delete(if_unused=False)
        await until(lambda: orders.begun and not second.held, "it ends", 20)
        assert orders.charged == ([] if answer == "it is over" else [1])
        await soon(gone(orders.site, journal_queue(orders.site, "call")))
