"""Calls that resume, over a broker: their journals, and messages by hand that have to do with them."""

# Private attributes: `AMQPTransport._records` and its `_watches`: nobody else knows which keys the reply queue
# is bound by.

from __future__ import annotations

import asyncio

import msgspec
import pytest

from atasks import ATask, MsgpackCodec, NoWorker, current_call, sleep
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.journals import journal_name
from tests.amqp.peer import Peer

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

        self.plain: ATask[[], int] = plain
        self.parent: ATask[[], int] = parent


def _journal(site: Site, parent: str) -> str:
    """The queue of the journal of a call."""
    transport = site.worker.transport
    assert isinstance(transport, AMQPTransport)
    return transport.session.topology.kept(journal_name(parent, True))


async def _messages(site: Site, queue: str) -> int | None:
    """The messages in a queue; None: it is not there."""
    transport = site.worker.transport
    assert isinstance(transport, AMQPTransport)
    assert transport.session.link is not None
    state = await transport.session.link.queue_state(queue)
    return None if state is None else state[0]


async def _gone(site: Site, queue: str) -> None:
    """Return when the queue is not there any more."""
    while await _messages(site, queue) is not None:
        await asyncio.sleep(0.01)


async def test_a_journal_is_there_from_the_first_step_until_the_reply_is_safe(site: Site) -> None:
    calls = Calls(site)
    async with site.open():
        for task, messages in ((calls.plain, None), (calls.parent, 2)):
            calls.go_on.clear()
            calls.made_step.clear()
            running = asyncio.create_task(task())
            await soon(calls.made_step.wait())
            queue = _journal(site, calls.parents[-1])
            assert await _messages(site, queue) == messages  # that the call is sent, and its reply
            calls.go_on.set()
            await soon(running)
            await soon(_gone(site, queue))


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
        queue = _journal(site, parent)
        payload = msgspec.msgpack.encode([[7], {}])
        await site.serve()  # this worker does not remember that call
        await site.worker.drain(0)  # and the caller of both of them goes on there
        await until(lambda: len(calls.parents) == 2, "the call goes on at the other worker")
        again = [CALL, 1, child, "step", payload, "msgpack", None, 0, 2, 3, 0, 1]
        answers = await peer.listen(f"{queue}:steps")
        await peer.send(again, reply_to=f"{queue}:steps")
        ((tag, _, call_id, status, *_),) = msgspec.msgpack.decode((await soon(answers.get())).body)
        assert (tag, call_id, status) == (REPLY, child, VALUE)
        assert calls.made == [child], "the journal says that it has ended"
        calls.go_on.set()
        assert await soon(running) == 7
        site.workers.remove(site.worker)
        await soon(_gone(site, queue))
        await peer.send(again, reply_to=f"{queue}:steps")
        await sleep(0.3)
        assert calls.made == [child], "nobody is to have its reply"


async def test_a_journal_that_somebody_reads_just_then_is_not_taken_for_an_empty_one(site: Site) -> None:
    """A worker that is given a call of it once more reads it, too: all its messages are with that reader."""
    calls = Calls(site)
    async with site.open():
        running = asyncio.create_task(calls.parent())
        await soon(calls.made_step.wait())
        queue = _journal(site, calls.parents[0])
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
        await soon(_gone(site, queue))


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
        queue = _journal(site, parent)
        # It dies before it can drop it.
        monkeypatch.setattr(journals, "finish", lambda name, call_id: journals.leave(name))
        if ending == "returned":
            calls.go_on.set()
            assert await soon(running) == 7
        else:
            running.cancel()
            await asyncio.wait([running])
        await site.serve()  # this worker does not remember that call
        await site.worker.drain(0)
        site.workers.remove(site.worker)
        assert await _messages(site, queue) == 2
        payload = msgspec.msgpack.encode([[], {}])
        again = [CALL, 1, parent, "parent", payload, "msgpack", None, 0, 2, 3, 0, 0]
        await peer.send(again, message_id=f"{parent}:1", reply_to=caller.session.reply_queue)
        await soon(_gone(site, queue))
        assert calls.parents == [parent]


async def test_a_reply_that_comes_after_the_journal_was_read_is_found(site: Site) -> None:
    """The call runs on when the worker of its caller drains, and ends before the next run asks for it."""
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
        await first.drain(1)  # nobody who could be asked remembers the call
        await site.serve(queues=["children"])
        go_on.set()
        assert await soon(running) == 6
        assert len(runs) == 2
        assert len(made) == 1


async def test_a_journal_is_opened_again_over_the_next_link_and_leaves_nothing(site: Site) -> None:
    """Steps that ask while it is opened again share that, and its binding is made once."""
    MsgpackCodec(site.namespace)
    cut = asyncio.Event()

    @site.atask(name="step")
    async def step(n: int) -> int:
        return n

    @site.atask(name="parent", resume=True)
    async def parent() -> list[int]:
        first = await step(0)
        await cut.wait()
        return [first, *await asyncio.gather(*(step(n) for n in range(1, 6)))]

    async with site.open():
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        running = asyncio.create_task(parent())
        await until(lambda: transport._records._watches, "the journal is open")
        await sleep(0.1)
        assert transport.session.link is not None
        transport.session.link.lose("cut")
        await until(
            lambda: transport.journals is not None and transport.journals.generation, "there is another link"
        )
        cut.set()
        assert await soon(running) == [0, 1, 2, 3, 4, 5]
        await until(lambda: not transport._records._watches, "nothing is followed any more")
