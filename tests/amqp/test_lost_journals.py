"""Calls that resume, and whose journals are gone: they have expired, or were lost with their node."""

# Private attributes: `AMQPJournals._has`: the moment between two links cannot be met from outside.

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from atasks import current_call, serve
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport, journals
from atasks.transport.backends.amqp.broker.errors import NoAnswer
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.worker import kept_calls
from atasks.transport.journals import journal_name
from tests.amqp.conftest import NewTransport

KEEP: float = 1.5
"""Seconds for which journals are kept here."""


class Calls:
    """A call that resumes, and makes two steps on another queue: behind each it waits until it may go on."""

    def __init__(self, new_transport: NewTransport) -> None:
        self.site = site = Site(partial(new_transport, keep_runs=KEEP))
        self.steps: list[int] = []
        self.parents: list[str] = []
        self.gate, self.go_on, self.end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.end.set()

        @site.atask(queue="steps")
        async def step(n: int) -> int:
            self.steps.append(n)
            await self.gate.wait()
            return n

        @site.atask(resume=True)
        async def parent() -> list[int]:
            self.parents.append(current_call().id or "")
            first = await step(1)
            await self.go_on.wait()
            second = await step(2)
            await self.end.wait()
            return [first, second]

        self.parent = parent

    @property
    def queue(self) -> str:
        """The queue of the journal."""
        return self.transport.session.topology.kept(journal_name(self.parents[0], True))

    @property
    def transport(self) -> AMQPTransport:
        assert isinstance(self.site.caller, AMQPTransport)
        return self.site.caller

    async def messages(self) -> int | None:
        """The messages in the journal; None: it is not there."""
        assert self.transport.session.link is not None
        state = await self.transport.session.link.queue_state(self.queue)
        return None if state is None else state[0]

    async def noted(self) -> None:
        """Return when the journal has the reply of the first step."""
        async with asyncio.timeout(60):
            while await self.messages() != 2:
                await asyncio.sleep(0.02)


async def test_a_journal_does_not_expire_while_a_worker_has_its_call(new_transport: NewTransport) -> None:
    calls = Calls(new_transport)
    site = calls.site
    async with site.open(serve=False):
        steps = await site.serve(queues=["steps"])
        first = await site.serve(queues=["default"])
        running = asyncio.create_task(calls.parent())
        await until(lambda: calls.steps, "the first step")
        await asyncio.sleep(3 * KEEP)  # a look at it meanwhile would be a use
        assert await calls.messages() == 2
        await steps.drain(0)  # which remembers that call
        await site.serve(queues=["steps"])
        await site.serve(queues=["default"])
        await first.drain(0)
        calls.go_on.set()
        assert await soon(running) == [1, 2]
        assert len(calls.parents) == 2
        assert calls.steps == [1, 2], "the second run has found the first step"
    site.close()


async def test_a_call_whose_journal_expired_while_it_waited_begins_anew(new_transport: NewTransport) -> None:
    calls = Calls(new_transport)
    site = calls.site
    async with site.open(serve=False):
        steps = await site.serve(queues=["steps"])
        first = await site.serve(queues=["default"])
        running = asyncio.create_task(calls.parent())
        await until(lambda: calls.steps, "the first step")
        await calls.noted()
        await first.drain(0)
        await asyncio.sleep(KEEP)  # a look at it would be a use
        while await calls.messages() is not None:
            await asyncio.sleep(2 * KEEP)
        await steps.drain(0)  # which remembers that call
        await site.serve(queues=["steps"])
        calls.go_on.set()
        await site.serve(queues=["default"])
        assert await soon(running) == [1, 2]
        assert calls.steps == [1, 1, 2]
    site.close()


async def test_a_journal_that_is_lost_while_its_call_waits_for_a_step_costs_that_step_and_no_more(
    new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of the step takes the call that made it for one that has ended, and ends the step. It was sent
    again and again, and never begun."""
    monkeypatch.setattr(kept_calls, "JOURNAL_PAUSE", 0.2)
    calls = Calls(new_transport)
    calls.gate.clear()
    site = calls.site
    async with site.open(serve=False):
        steps = await site.serve(queues=["steps"])
        await site.serve(queues=["default"])
        running = asyncio.create_task(calls.parent())
        await until(lambda: calls.steps, "the first step runs")
        assert calls.transport.session.link is not None
        await calls.transport.session.link.delete_queue(calls.queue)
        await until(lambda: not steps.held, "the step is ended")
        calls.gate.set()
        calls.go_on.set()
        assert await soon(running) == [1, 2]
        assert calls.steps == [1, 1, 2]
        assert len(calls.parents) == 1
        while await calls.messages() is not None:
            await asyncio.sleep(0.05)
    site.close()


async def test_a_journal_that_is_lost_between_two_steps_is_declared_again(new_transport: NewTransport) -> None:
    """The next run finds all that is done from then on."""
    calls = Calls(new_transport)
    site = calls.site
    async with site.open(serve=False):
        steps = await site.serve(queues=["steps"])
        first = await site.serve(queues=["default"])
        running = asyncio.create_task(calls.parent())
        await until(lambda: calls.steps, "the first step")
        await calls.noted()
        transport = first.transport
        assert isinstance(transport, AMQPTransport)
        assert transport.session.link is not None
        await transport.session.link.delete_queue(calls.queue)
        transport.session.link.lose("its node is gone")
        while await calls.messages() != 0:
            await asyncio.sleep(0.05)
        calls.end.clear()
        calls.go_on.set()
        await until(lambda: calls.steps == [1, 2] and not steps.held, "the second step has ended")
        await asyncio.sleep(0.3)  # its reply is safe
        await steps.drain(0)  # which remembers both calls
        await site.serve(queues=["steps"])
        await site.serve(queues=["default"])
        await first.drain(0)
        calls.end.set()
        assert await soon(running) == [1, 2]
        assert calls.steps == [1, 2, 1]
    site.close()


class DownNode:
    """A node that has the journals, while it is down."""

    def __init__(self, link: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_down = True
        self.asked = asyncio.Event()
        for name in ("declare_queue", "delete_queue"):
            monkeypatch.setattr(link, name, partial(self._ask, getattr(link, name)))

    async def _ask(self, ask: Any, queue: str, *args: Any, **options: Any) -> Any:
        if self.is_down and ".run." in queue:
            self.asked.set()
            raise ChannelNotFoundEntity(
                f"NOT_FOUND - home node of durable queue '{queue}' is down or inaccessible"
            )
        return await ask(queue, *args, **options)


async def test_a_journal_whose_call_ends_while_its_node_is_down_goes_when_the_node_is_back(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever saw to it after a cut declared it once more, and kept it and its lock."""
    async with serve(amqp_url, prefix=prefix, keep_runs=KEEP) as worker:
        transport: Any = worker.transport
        link, topology = transport.session.link, transport.session.topology
        await transport.journals.open("dropped", "call")
        node = DownNode(link, monkeypatch)
        transport.journals.attach()  # there is another link
        await soon(node.asked.wait())
        transport.journals.drop("dropped")
        await transport.journals.flushed()
        node.is_down = False
        async with asyncio.timeout(60):
            while await link.queue_state(topology.kept("dropped")) is not None:  # which is a use: it stays
                await asyncio.sleep(0.1)
            while await link.queue_state(topology.lock("dropped")) is not None:
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.6)  # the pause between two tries
        assert await link.queue_state(topology.kept("dropped")) is None


async def test_a_call_that_waits_for_the_node_of_its_journal_goes_on_over_the_next_link(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call was taken for one that another worker has, as it did not come again before there was a link."""
    connect = Link.open

    async def connect_later(*args: Any) -> Link:
        await asyncio.sleep(1.5)
        return await connect(*args)

    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        first = transport.session.link
        monkeypatch.setattr(journals, "HERE_SECONDS", 0.5)
        monkeypatch.setattr(journals, "DOWN_PAUSES", (0.5, 0.5))
        monkeypatch.setattr(Link, "open", connect_later)
        monkeypatch.setattr(transport.journals, "_has", lambda call_id: transport.session.link is not None)
        node = DownNode(first, monkeypatch)
        opening = asyncio.create_task(transport.journals.open("waits", "call"))
        await soon(node.asked.wait())
        await asyncio.sleep(0.1)  # in the pause between two tries
        first.lose("cut")
        entries = await soon(opening)
        assert not entries.replies
        assert transport.session.link is not first
        transport.journals.drop("waits")


async def test_nodes_that_do_not_answer_for_journals_keep_few_questions_waiting(
    amqp_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such question takes a channel for its 15 seconds: nothing else could be declared."""
    async with serve(amqp_url, prefix=prefix) as worker:
        transport: Any = worker.transport
        asked: list[str] = []
        waiting: set[str] = set()
        most = 0

        async def silent(queue: str, *_: object, **__: object) -> None:
            nonlocal most
            if queue in asked:
                waiting.add(queue)
            most = max(most, len(waiting))
            asked.append(queue)
            await asyncio.sleep(0.05)
            waiting.discard(queue)
            raise NoAnswer("the broker gave no answer")

        monkeypatch.setattr(transport.session.link, "declare_queue", silent)
        monkeypatch.setattr(journals, "DOWN_PAUSES", (0.01, 0.01))
        opening = [asyncio.create_task(transport.journals.open(f"j{number}", "call")) for number in range(12)]
        await until(lambda: len(asked) > 60, "they are asked for again and again")
        for task in opening:
            task.cancel()
        await asyncio.wait(opening)
        assert len(set(asked)) == 12
        assert most == 2
