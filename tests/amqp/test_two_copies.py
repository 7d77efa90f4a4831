"""Calls of which the broker has two copies: one of them runs."""

# Private attributes: `KeptCalls._has_ended`: the moment of a look over which a link is lost cannot be met from
# outside.

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from atasks import MsgpackCodec, Worker, current_call, sleep
from atasks.testing import Site, soon, until
from atasks.tracking.counters import RECEIVED
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.worker import kept_calls
from atasks.transport.backends.amqp.worker.kept_calls import KeptCalls
from atasks.wire import Call, Reply
from tests.amqp.journals import empty, gone, holds, journal_address, journal_queue, messages_in
from tests.amqp.peer import Peer

CALL = 1


class TwoCopies:
    """A call, made by one that resumes, of which the broker has two copies. `resume`: it resumes itself."""

    def __init__(self, site: Site, peer: Peer, resume: bool = True) -> None:
        MsgpackCodec(site.namespace)
        self.site, self.peer = site, peer
        self.numbers = itertools.count()
        self.made: list[int] = []
        self.inner_ids: list[str] = []
        self.halfway: list[asyncio.Event] = []
        """Set by the test: the run goes on."""

        @site.atask(name="step", queue="steps")
        async def step(n: int) -> int:
            self.made.append(n)
            return n

        @site.atask(name="inner", queue="inner", resume=resume)
        async def inner() -> int:
            self.inner_ids.append(current_call().id or "")
            first = await step(1)
            gate = asyncio.Event()
            self.halfway.append(gate)
            await gate.wait()
            return first + await step(2)

        @site.atask(name="outer", queue="outer", resume=True)
        async def outer() -> int:
            value = await inner()
            self.inner_ended.set()
            await self.end.wait()
            return value

        @site.atask(name="busy", queue="busy")
        async def busy() -> None:
            self.is_busy.set()
            await self.rest.wait()

        self.busy, self.is_busy, self.rest = busy, asyncio.Event(), asyncio.Event()
        self.outer, self.inner_ended, self.end = outer, asyncio.Event(), asyncio.Event()

    async def begin(self) -> tuple[Worker, asyncio.Task[int]]:
        """Serve, and make the calls. Return the worker of the inner call, and the await of the outer one, when the
        inner one has made its first step."""
        await self.site.serve(queues=["outer", "steps"])
        worker = await self.site.serve(queues=["inner"])
        running = asyncio.create_task(self.outer())
        await until(lambda: self.halfway, "the call has made its first step")
        return worker, running

    async def send_copy_to(self, worker: Worker, attempt: int = 2, sent_ms: int = 0) -> None:
        """Have this worker be given a copy of its own; others that are given one take it for one of theirs."""
        (call_id,) = set(self.inner_ids)
        for _ in range(10):
            if not worker.holds(call_id):
                await self.send_copy(attempt, sent_ms)
                await sleep(0.2)
        assert worker.holds(call_id)

    def outer_id(self) -> str:
        """The id of the call that makes the call."""
        (outer,) = (run.call for each in self.site.workers for run in each.runs if run.call.task == "outer")
        return outer.id

    def journal(self) -> str:
        """The queue of its journal."""
        return journal_queue(self.site, self.outer_id())

    async def send_copy(self, attempt: int = 2, sent_ms: int = 0) -> None:
        """Send a copy of the inner call to its queue."""
        (call_id,) = set(self.inner_ids)
        copy = [CALL, 1, call_id, "inner", msgspec.msgpack.encode([[], {}]), "msgpack", None, sent_ms]
        copy += [attempt, 3, 0, 1]
        reply_to = journal_address(self.site, self.outer_id())
        properties = {"message_id": f"copy{next(self.numbers)}", "reply_to": reply_to}
        await self.peer.send(copy, queue=self.peer.work_queue("inner"), **properties)


@pytest.mark.parametrize("waits", ["for the other run", "for a slot"])
async def test_one_of_two_copies_of_a_call_runs_and_the_other_one_repeats_no_step(
    site: Site, peer: Peer, waits: str
) -> None:
    copies = TwoCopies(site, peer)
    async with site.open(serve=False):
        _, running = await copies.begin()
        second = await site.serve(queues=["inner", "busy"], concurrency=1)
        other = asyncio.create_task(copies.busy()) if waits == "for a slot" else None
        await (sleep(0) if other is None else soon(copies.is_busy.wait()))
        await copies.send_copy_to(second)
        await sleep(0.3)
        assert len(copies.halfway) == 1, "the second copy waits until it is known how the first one ends"
        copies.halfway[0].set()
        await soon(copies.inner_ended.wait())
        await soon(gone(site, journal_queue(site, copies.inner_ids[0])))
        copies.rest.set()
        await (sleep(0) if other is None else soon(other))
        await until(lambda: not second.held, "the second copy has ended")
        assert copies.made == [1, 2]
        copies.end.set()
        assert await soon(running) == 3
        await soon(gone(site, journal_queue(site, copies.inner_ids[0])))


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_copy_of_a_step_that_waits_for_a_slot_does_not_begin_when_the_step_has_ended(
    site: Site, peer: Peer, attempt: int
) -> None:
    """The copy was sent again, or is another attempt: the step had not ended when it came."""
    copies = TwoCopies(site, peer, resume=False)
    async with site.open(serve=False):
        _, running = await copies.begin()
        second = await site.serve(queues=["inner", "busy"], concurrency=1)
        other = asyncio.create_task(copies.busy())
        await soon(copies.is_busy.wait())
        await copies.send_copy_to(second, attempt)
        copies.halfway[0].set()
        await soon(copies.inner_ended.wait())
        await sleep(0.5)  # its reply is safe
        copies.rest.set()
        await soon(other)
        await until(lambda: not second.held, "the copy is dropped")
        assert len(copies.inner_ids) == 1
        copies.end.set()
        assert await soon(running) == 3


@pytest.mark.parametrize("begins", ["before the standstill is noticed", "after"])
async def test_a_step_that_came_just_now_does_not_begin_if_it_ended_elsewhere_while_its_worker_stood_still(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """The broker takes a worker that stands still for dead, and the worker hears of that later than it goes on."""
    if begins != "after":
        monkeypatch.setattr(KeptCalls, "doubt", lambda _: None)
    copies = TwoCopies(site, peer, resume=False)
    async with site.open(serve=False):
        _, running = await copies.begin()
        second = await site.serve(queues=["inner", "busy"], concurrency=1)
        other = asyncio.create_task(copies.busy())
        await soon(copies.is_busy.wait())
        await copies.send_copy_to(second, attempt=1, sent_ms=int(time.time() * 1000))
        copies.halfway[0].set()
        await soon(copies.inner_ended.wait())
        await sleep(0.5)  # its reply is safe
        asyncio.get_running_loop().call_soon(time.sleep, 2.5)
        copies.rest.set()
        await soon(other)
        await until(lambda: not second.held or len(copies.inner_ids) > 1, "the copy is dropped, or begins")
        assert len(copies.inner_ids) == 1
        copies.end.set()
        assert await soon(running) == 3


async def test_a_step_that_is_read_after_a_standstill_does_not_begin_if_it_has_ended_elsewhere(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket may have had more meanwhile than is read at once."""
    monkeypatch.setattr(kept_calls, "DOUBT_SECONDS", 60.0)  # for a slow machine
    noticed, doubt = asyncio.Event(), KeptCalls.doubt
    copies = TwoCopies(site, peer, resume=False)
    async with site.open(serve=False):
        first, running = await copies.begin()
        copies.halfway[0].set()
        await soon(copies.inner_ended.wait())
        await sleep(0.5)  # its reply is safe
        await first.drain(0)
        second = await site.serve(queues=["inner"])
        transport = second.transport
        assert isinstance(transport, AMQPTransport)
        assert transport.serving is not None
        kept = transport.serving.kept
        monkeypatch.setattr(KeptCalls, "doubt", lambda each: (doubt(each), each is kept and noticed.set()))
        asyncio.get_running_loop().call_soon(time.sleep, 2.5)
        await soon(noticed.wait())
        received = second.counters.row("inner")
        await copies.send_copy(attempt=1, sent_ms=int(time.time() * 1000))
        await until(lambda: received[RECEIVED], "the copy comes")
        await until(lambda: not second.held or len(copies.inner_ids) > 1, "the copy is dropped, or begins")
        assert len(copies.inner_ids) == 1
        copies.end.set()
        assert await soon(running) == 3


@dataclass
class Looks:
    """The ids of the calls that are looked for in their second attempt; the first looks fail."""

    fail: int = 0
    over: int = 0
    ids: list[str] = field(default_factory=list)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks, has_ended = Looks(), KeptCalls._has_ended

    async def look(self: KeptCalls, call: Call, *args: Any, **options: Any) -> bool | Reply:
        if call.attempt > 1:
            looks.ids.append(call.id)
            if len(looks.ids) <= looks.fail:
                raise ConnectionError("the link is lost")
        try:
            return await has_ended(self, call, *args, **options)
        finally:
            looks.over += call.attempt > 1

    monkeypatch.setattr(KeptCalls, "_has_ended", look)
    return looks


async def test_a_copy_of_a_step_is_looked_for_again_if_the_link_was_lost_over_the_first_look(
    site: Site, peer: Peer, looks: Looks
) -> None:
    copies, looks.fail = TwoCopies(site, peer, resume=False), 1
    async with site.open(serve=False):
        first, running = await copies.begin()
        copies.halfway[0].set()
        await soon(copies.inner_ended.wait())
        (call_id,) = copies.inner_ids
        await first.drain(0)
        second = await site.serve(queues=["inner"])
        await copies.send_copy()
        await until(lambda: len(looks.ids) == 2 and not second.held, "the copy is dropped")
        assert copies.inner_ids == [call_id]
        copies.end.set()
        assert await soon(running) == 3


async def test_a_copy_of_a_step_is_looked_for_again_if_its_worker_stood_still_over_the_look(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was right when it came."""
    copies, has_ended, answers = TwoCopies(site, peer, resume=False), KeptCalls._has_ended, list[Any]()
    standing = asyncio.Event()

    async def look(self: KeptCalls, call: Call, *args: Any, **options: Any) -> Any:
        answers.append(await has_ended(self, call, *args, **options))
        if standing.is_set():
            standing.clear()
            copies.halfway[0].set()
            await soon(copies.inner_ended.wait())
            await sleep(1.2)
            return answers[0]
        return answers[-1]

    async with site.open(serve=False):
        _, running = await copies.begin()
        second = await site.serve(queues=["inner", "busy"], concurrency=1)
        other = asyncio.create_task(copies.busy())
        await soon(copies.is_busy.wait())
        await copies.send_copy_to(second)
        monkeypatch.setattr(KeptCalls, "_has_ended", look)
        standing.set()
        copies.rest.set()
        await soon(other)
        await until(lambda: not second.held or len(copies.inner_ids) > 1, "the copy is dropped, or begins")
        assert answers[0] is False
        assert len(copies.inner_ids) == 1
        copies.end.set()
        assert await soon(running) == 3


async def test_a_copy_of_a_submitted_call_is_looked_for_again_if_the_link_was_lost_over_the_first_look(
    site: Site, peer: Peer, looks: Looks
) -> None:
    MsgpackCodec(site.namespace)
    looks.fail = 1
    begun: list[str] = []

    @site.atask(name="kept", queue="inner")
    async def kept() -> int:
        begun.append(current_call().id or "")
        return 5

    async with site.open(serve=False):
        first = await site.serve(queues=["inner"])
        handle = await kept.submit()
        assert await soon(handle) == 5
        await first.drain(0)
        second = await site.serve(queues=["inner"])
        transport = second.transport
        assert isinstance(transport, AMQPTransport)
        copy = [CALL, 1, handle.id, "kept", msgspec.msgpack.encode([[], {}]), "msgpack", None, 0, 2, 3, 0, 1]
        kept_in = transport.session.topology.kept(handle.id)
        await peer.send(copy, queue=peer.work_queue("inner"), message_id="copy", reply_to=kept_in)
        await until(lambda: len(looks.ids) == 2 and not second.held, "the copy is dropped")
        assert begun == [handle.id]


async def test_a_copy_of_a_step_does_not_begin_when_the_journal_knows_nothing_of_it(
    site: Site, peer: Peer, looks: Looks
) -> None:
    copies = TwoCopies(site, peer, resume=False)
    async with site.open(serve=False):
        first, running = await copies.begin()
        copies.halfway[0].set()
        await soon(copies.inner_ended.wait())
        await sleep(0.2)
        await empty(site, copies.journal())
        await first.drain(0)
        second = await site.serve(queues=["inner"])
        await copies.send_copy()
        await until(lambda: looks.over, "it is looked for")
        await sleep(0.3)
        assert not second.held
        assert len(copies.inner_ids) == 1
        copies.end.set()
        assert await soon(running) == 3


async def test_a_copy_of_which_the_journal_knows_nothing_leaves_what_the_run_of_the_call_needs(
    site: Site, peer: Peer, looks: Looks
) -> None:
    copies = TwoCopies(site, peer)
    copies.end.set()
    async with site.open(serve=False):
        _, running = await copies.begin()
        own = journal_queue(site, copies.inner_ids[0])
        await soon(holds(site, own, 2))
        await empty(site, copies.journal())
        await site.serve(queues=["inner"])
        while not looks.over:
            await copies.send_copy()
            await sleep(0.3)
        assert await messages_in(site, own) == 2
        copies.halfway[0].set()
        assert await soon(running) == 3


async def test_a_step_is_made_again_when_the_journal_knows_nothing_of_it(site: Site, peer: Peer) -> None:
    """The worker that has the step is gone, and the next one takes it for ended, until it is noted again."""
    copies = TwoCopies(site, peer, resume=False)
    copies.end.set()
    async with site.open(serve=False):
        first, running = await copies.begin()
        await empty(site, copies.journal())
        await first.drain(0)
        await site.serve(queues=["inner"])
        await until(lambda: len(copies.halfway) == 2, "it is sent again", 25)
        copies.halfway[1].set()
        assert await soon(running) == 3
        assert len(set(copies.inner_ids)) == 1


async def test_a_copy_that_waits_for_a_run_goes_on_when_its_worker_is_gone(site: Site, peer: Peer) -> None:
    copies = TwoCopies(site, peer)
    async with site.open(serve=False):
        first, running = await copies.begin()
        second = await site.serve(queues=["inner"])
        await copies.send_copy_to(second)
        await sleep(0.3)
        assert len(copies.halfway) == 1
        transport = first.transport
        assert isinstance(transport, AMQPTransport)
        await first.drain(0)  # which gives its own copy back
        await until(lambda: len(copies.halfway) == 2, "the copy goes on")
        copies.halfway[1].set()
        copies.end.set()
        assert await soon(running) == 3
        assert copies.made == [1, 2]
        await until(lambda: not second.held, "both copies have ended")
        await soon(gone(site, journal_queue(site, copies.inner_ids[0])))
