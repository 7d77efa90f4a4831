"""Calls that resume, over a broker: their journals, and messages by hand that have to do with them."""

# Private attributes: `AMQPTransport._after_reply`: the moment between two confirms cannot be met from outside.
# `KeptCalls._has_ended` and `_is_known_to_have_ended`: nor can that of a look over which a link is lost.

from __future__ import annotations

import asyncio
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pika.exceptions import ChannelClosedByBroker

from atasks import ATask, MsgpackCodec, NoWorker, current_call, serve, sleep
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.link import Link
from tests.amqp.journals import (
    bodies_in,
    gone,
    has_spares,
    holds,
    journal_address,
    journal_queue,
    left_of_journals,
    messages_in,
)
from tests.amqp.peer import Peer
from tests.broker import Broker

CALL, REPLY, VALUE = 1, 2, 0


class Calls:
    """A call that resumes, and one that it makes; it ends when it is told to."""

    def __init__(self, site: Site) -> None:
        MsgpackCodec(site.namespace)
        self.made: list[str] = []
        self.parents: list[str] = []
        self.made_step = asyncio.Event()
        self.go_on = asyncio.Event()

        @site.atask(name="step")
        async def step(n: int) -> int:
            self.made.append(current_call().id or "")
            return n

        @site.atask(name="plain", resume=True)
        async def plain() -> int:
            return await ended(0)

        @site.atask(name="parent", resume=True)
        async def parent() -> int:
            return await ended(await step(7))

        async def ended(value: int) -> int:
            self.parents.append(current_call().id or "")
            self.made_step.set()
            await self.go_on.wait()
            return value

        self.step: ATask[[int], int] = step
        self.plain: ATask[[], int] = plain
        self.parent: ATask[[], int] = parent


async def test_a_journal_is_there_from_the_first_step_until_the_reply_is_safe(site: Site) -> None:
    calls = Calls(site)
    async with site.open():
        for task, messages in ((calls.plain, None), (calls.parent, 2)):
            calls.go_on.clear()
            calls.made_step.clear()
            running = asyncio.create_task(task())
            await soon(calls.made_step.wait())
            queue = journal_queue(site, calls.parents[-1])
            await soon(holds(site, queue, messages))  # that the call is sent, and its reply
            calls.go_on.set()
            await soon(running)
            await soon(gone(site, queue))


async def test_a_call_that_needs_a_worker_now_says_that_there_is_none(site: Site) -> None:
    calls = Calls(site)

    @site.atask(name="there", queue="left")
    async def there() -> int:
        return 1

    @site.atask(name="outer", resume=True)
    async def outer() -> int:
        return await there.options(on_no_worker="error")()

    async with site.open(serve=False):
        await site.serve(queues=["left"])
        await site.workers.pop().drain(0)  # its queue is left, with nobody at it
        await site.serve(queues=["default"])
        with pytest.raises(NoWorker):
            await soon(outer())
        assert calls.made == []


async def test_a_call_that_has_ended_is_answered_when_its_message_comes_again(site: Site, peer: Peer) -> None:
    calls = Calls(site)
    async with site.open():
        running = asyncio.create_task(calls.parent())
        await soon(calls.made_step.wait())
        (child,), (parent,) = calls.made, calls.parents
        queue, address = journal_queue(site, parent), journal_address(site, parent)
        payload = msgspec.msgpack.encode([[7], {}])
        await site.serve()  # this worker does not remember that call
        await site.worker.drain(0)  # and the caller of both of them goes on there
        await until(lambda: len(calls.parents) == 2, "the call goes on at the other worker")
        again = [CALL, 1, child, "step", payload, "msgpack", None, 0, 2, 3, 0, 1]
        await soon(holds(site, queue, 2))  # the note that the call is sent, and its reply
        await peer.send(again, reply_to=address)
        await soon(holds(site, queue, 3))
        ((tag, _, call_id, status, *_),) = msgspec.msgpack.decode((await bodies_in(site, queue))[-1])
        assert (tag, call_id, status) == (REPLY, child, VALUE)
        assert calls.made == [child], "the journal says that it has ended"
        calls.go_on.set()
        assert await soon(running) == 7
        site.workers.remove(site.worker)
        await soon(gone(site, queue))
        await peer.send(again, reply_to=address)
        await sleep(0.3)
        assert calls.made == [child], "nobody is to have its reply"


async def test_a_journal_that_somebody_reads_just_then_is_not_taken_for_an_empty_one(site: Site) -> None:
    """A worker that is given a call of it once more reads it, too: all its messages are with that reader."""
    calls = Calls(site)
    async with site.open():
        running = asyncio.create_task(calls.parent())
        await soon(calls.made_step.wait())
        queue = journal_queue(site, calls.parents[0])
        assert isinstance(site.caller, AMQPTransport)
        assert site.caller.session.link is not None
        reader = await site.caller.session.link.open_channel()
        read: asyncio.Queue[object] = asyncio.Queue()
        await reader.basic_consume(queue, read.put)
        await soon(read.get())
        await soon(read.get())
        await site.serve()
        await site.worker.drain(0)
        site.workers.remove(site.worker)
        await until(lambda: not read.empty(), "the next run wants to read it, too")
        await reader.close()
        calls.go_on.set()
        assert await soon(running) == 7
        assert len(calls.parents) == 2
        assert len(calls.made) == 1, "the step is found"
        await soon(gone(site, queue))


@pytest.mark.parametrize("ending", ["returned", "cancelled"])
async def test_a_journal_that_a_dead_worker_has_left_goes_when_its_call_comes_again(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    calls = Calls(site)
    async with site.open():
        running = asyncio.create_task(calls.parent())
        await soon(calls.made_step.wait())
        (parent,), caller, journals = calls.parents, site.caller, site.worker.transport.journals
        assert isinstance(caller, AMQPTransport)
        assert journals is not None
        queue = journal_queue(site, parent)
        # It dies before it can drop it.
        monkeypatch.setattr(journals, "finish", lambda name, *_: journals.leave(name))
        if ending == "returned":
            calls.go_on.set()
            assert await soon(running) == 7
        else:
            running.cancel()
            await asyncio.wait([running])
        await site.serve()  # this worker does not remember that call
        await site.worker.drain(0)
        site.workers.remove(site.worker)
        assert await messages_in(site, queue) == 2
        payload = msgspec.msgpack.encode([[], {}])
        again = [CALL, 1, parent, "parent", payload, "msgpack", None, 0, 2, 3, 0, 0]
        await peer.send(again, message_id=f"{parent}:1", reply_to=caller.session.reply_queue)
        await soon(gone(site, queue))
        assert calls.parents == [parent]


@pytest.mark.parametrize("served", [True, False], ids=["asked again", "heard"])
async def test_a_reply_that_comes_after_the_journal_was_read_is_found(site: Site, served: bool) -> None:
    """The call runs on when the worker of its caller drains, and ends before the next run asks for it. If nobody
    serves such calls any more, the run has heard the reply when it came, or has it never."""
    MsgpackCodec(site.namespace)
    gate, read, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    made: list[str] = []
    runs: list[str] = []

    @site.atask(name="slow", queue="children")
    async def slow() -> int:
        made.append(current_call().id or "")
        await gate.wait()
        return 5

    @site.atask(name="quick", queue="children")
    async def quick() -> int:
        return 1

    @site.atask(name="outer", resume=True)
    async def outer() -> int:
        runs.append(current_call().id or "")
        first = await quick()  # the journal is read here
        if len(runs) > 1:
            read.set()
            await go_on.wait()
        return first + await slow()

    async with site.open(serve=False):
        first = await site.serve(queues=["children"])
        parent = await site.serve(queues=["default"])
        running = asyncio.create_task(outer())
        await until(lambda: made, "the call runs")
        await site.serve(queues=["default"])
        await parent.drain(0)
        await soon(read.wait())
        gate.set()
        await until(lambda: first.finished(made[0]), "the call has ended")
        await first.drain(1)
        await first.transport.disconnect()  # nobody who could be asked remembers the call
        if served:
            await site.serve(queues=["children"])
        go_on.set()
        assert await soon(running) == 6
        assert len(runs) == 2
        assert len(made) == 1


async def test_a_journal_is_opened_again_over_the_next_link_and_leaves_nothing(
    controllable_broker: Broker, prefix: str
) -> None:
    """Steps that ask while it is opened again share that. In the end no lock and no journal is at the broker."""
    site = Site(lambda namespace: AMQPTransport(controllable_broker.url, namespace, prefix=prefix))
    MsgpackCodec(site.namespace)
    begun, cut = asyncio.Event(), asyncio.Event()

    left = partial(left_of_journals, controllable_broker, prefix)

    @site.atask(name="step")
    async def step(n: int) -> int:
        return n

    @site.atask(name="parent", resume=True)
    async def parent() -> list[int]:
        first = await step(0)
        begun.set()
        await cut.wait()
        return [first, *await asyncio.gather(*(step(n) for n in range(1, 6)))]

    async with site.open():
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        running = asyncio.create_task(parent())
        await soon(begun.wait())
        found = await asyncio.to_thread(left)
        assert len(found) == 2, found
        assert transport.session.link is not None
        transport.session.link.lose("cut")
        await until(
            lambda: transport.journals is not None and transport.journals.generation, "there is another link"
        )
        cut.set()
        assert await soon(running) == [0, 1, 2, 3, 4, 5]
        while await asyncio.to_thread(left):
            await sleep(0.2)
    site.close()
    await asyncio.to_thread(controllable_broker.clear, prefix)


async def test_a_call_that_comes_again_before_its_first_reply_is_safe_ends_its_journal(
    amqp_url: str, prefix: str
) -> None:
    """The first reply belongs to a link that was lost, so that its journal is left to whoever has the call now."""
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        done: list[tuple[str, bool]] = []
        transport._after_reply("call", lambda alone: done.append(("first reply", alone)))
        transport._after_reply("call", lambda alone: done.append(("second reply", alone)))
        replies = transport.serving.replies
        replies.conclude("call", SimpleNamespace(in_hand=False))
        assert done == [("first reply", False)]
        replies.conclude("call", SimpleNamespace(in_hand=True))
        assert done == [("first reply", False), ("second reply", True)]
        assert not replies.afterwards


async def test_a_look_over_which_the_link_is_lost_is_repeated_over_the_next_one(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that comes back begins no call that has ended elsewhere, whatever happens to its connection."""
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        kept = transport.serving.kept
        links: list[Any] = []

        async def has_ended(*_: object, **__: object) -> bool:
            links.append(transport.session.link)
            if len(links) == 1:
                links[0].lose("cut off")
                raise ConnectionResetError("cut off")
            return True

        monkeypatch.setattr(kept, "_has_ended", has_ended)
        assert await soon(kept._is_known_to_have_ended(None, None, again=True))
        assert len(links) == 2
        assert links[0] is not links[1]


@pytest.mark.parametrize("end", ["drop", "leave"])
async def test_a_journal_whose_work_ends_while_it_is_opened_again_is_let_go(
    amqp_url: str, prefix: str, end: str
) -> None:
    """The journal was declared after it had been dropped, and its lock was held as long as the worker lived."""
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        journals, link, topology = transport.journals, transport.session.link, transport.session.topology
        kept = []
        for number in range(30):
            name = f"{end}{number}"
            await journals.open(name, "call")
            journals.attach()  # there is another link
            await asyncio.sleep(number * 0.0002)
            getattr(journals, end)(name)
            await journals.flushed()
            assert await link.queue_state(topology.lock(name)) is None, number
            kept.append(await link.queue_state(topology.kept(name)) is not None)
            await link.delete_queue(topology.kept(name))
        assert kept == [end == "leave"] * 30


async def test_a_journal_is_dropped_when_its_first_opening_was_cancelled(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        journals, link, topology = transport.journals, transport.session.link, transport.session.topology
        declare, declaring, declared = link.declare_queue, asyncio.Event(), asyncio.Event()

        async def declare_later(*args: Any, **options: Any) -> Any:
            declaring.set()
            await asyncio.sleep(0.2)
            try:
                return await declare(*args, **options)
            finally:
                declared.set()

        monkeypatch.setattr(link, "declare_queue", declare_later)
        opening = asyncio.create_task(journals.open("cancelled", "call"))
        await soon(declaring.wait())
        opening.cancel()
        journals.drop("cancelled")
        await asyncio.wait([opening])
        await soon(declared.wait())
        await journals.flushed()
        for name in (topology.kept("cancelled"), topology.lock("cancelled")):
            while await link.queue_state(name) is not None:  # the test's own deadline ends it
                await asyncio.sleep(0.05)


async def test_a_journal_that_is_dropped_without_a_link_waits_for_none_and_goes_over_the_next_one(
    controllable_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, may_connect = Link.open, asyncio.Event()

    async def connect_later(*args: Any) -> Link:
        await may_connect.wait()
        return await connect(*args)

    def is_there() -> bool:
        return any(queue.name.startswith(f"{prefix}.run.") for queue in controllable_broker.queues())

    async with serve(controllable_broker.url, prefix=prefix) as worker:
        transport: Any = worker.transport
        await transport.journals.open("dropped", "call")
        assert await asyncio.to_thread(is_there)
        monkeypatch.setattr(Link, "open", connect_later)
        transport.session.link.lose("cut")
        await until(lambda: transport.session.link is None, "the link is lost")
        transport.journals.drop("dropped")
        async with asyncio.timeout(30):
            await transport.journals.flushed()
        may_connect.set()
        while await asyncio.to_thread(is_there):
            await asyncio.sleep(0.1)
    await asyncio.to_thread(controllable_broker.clear, prefix)


async def test_a_journal_is_asked_for_before_the_other_branches_of_its_run_go_on(
    site: Site, amqp_url: str
) -> None:
    """The broker declares it while those have work to do."""
    calls, found = Calls(site), []

    def is_there(queue: str) -> bool:
        with Broker(amqp_url).channel() as channel:
            try:
                channel.queue_declare(queue, passive=True)
            except ChannelClosedByBroker:
                return False
        return True

    async def other_branch() -> None:
        queue, until = journal_queue(site, current_call().id or ""), time.monotonic() + 1
        while not is_there(queue) and time.monotonic() < until:  # the event loop has no turn meanwhile
            time.sleep(0.01)  # noqa: ASYNC251 - that is the point
        found.append(is_there(queue))

    @site.atask(name="fan", resume=True)
    async def fan() -> int:
        value, _ = await asyncio.gather(calls.step(1), other_branch())
        return value

    async with site.open():
        transport: Any = site.worker.transport
        for _ in range(10):
            await transport.session.link.queue_state(transport.session.reply_queue)
            assert await soon(fan()) == 1
            if found[-1]:  # else the channel that this has left was in use, or frames waited to leave
                break
        assert found[-1]


@pytest.mark.parametrize("end", ["drop", "leave"])
async def test_a_journal_that_is_asked_for_and_not_opened_is_let_go(amqp_url: str, prefix: str, end: str) -> None:
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        journals, link, topology = transport.journals, transport.session.link, transport.session.topology
        await journals.open("before", "call")  # there are channels for declarations
        journals.drop("before")
        await journals.flushed()
        await has_spares(transport)
        journals.hasten("name", "call")
        getattr(journals, end)("name")
        await journals.flushed()
        assert await link.queue_state(topology.lock("name")) is None
        assert (await link.queue_state(topology.kept("name")) is None) == (end == "drop")
        await link.delete_queue(topology.kept("name"))


async def test_a_journal_that_is_asked_for_over_a_link_that_is_lost_is_opened_over_the_next_one(
    amqp_url: str, prefix: str
) -> None:
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        journals, topology = transport.journals, transport.session.topology
        await journals.open("before", "call")
        journals.drop("before")
        await journals.flushed()
        await has_spares(transport)
        journals.hasten("name", "call")
        transport.session.link.lose("cut")
        assert (await soon(journals.open("name", "call"))).replies == {}
        assert await transport.session.link.queue_state(topology.kept("name")) == (0, 0)
        assert await transport.session.link.queue_state(topology.lock("name")) is not None
        journals.drop("name")
        await journals.flushed()
        assert await transport.session.link.queue_state(topology.kept("name")) is None
