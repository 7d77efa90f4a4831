"""The first calls of a run that resumes, which are held until its journal is open."""

# Private attributes: `AMQPTransport._is_first`: that a journal is asked for a little later cannot be seen from
# outside.

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

import atasks
from atasks import NotConnected, Retry, UnknownRun, current_call, serve
from atasks.testing import Site, soon, until
from atasks.tracking.counters import ENDED, RECEIVED
from atasks.transport.backends.amqp.journals import AMQPJournals
from atasks.transport.backends.amqp.transport import AMQPTransport
from atasks.transport.journals import Elsewhere, Entries, journal_name
from atasks.wire import VERSION, Reply, Status
from tests.amqp.journals import gone, has_spares, journal_queue

AGAIN = Retry(on=ConnectionError, wait=0.0, jitter=0.0)


class Openings:
    """Openings of journals, each of which waits at a gate, and raises what is put there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.errors: list[Exception] = []
        is_open = AMQPJournals.open

        async def opened(journals: AMQPJournals, name: str, owner: str) -> Entries:
            self.begun.append(name)
            await self.gate.wait()
            if self.errors:
                raise self.errors.pop()
            return await is_open(journals, name, owner)

        monkeypatch.setattr(AMQPJournals, "open", opened)


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Openings:
    return Openings(monkeypatch)


class Fan:
    """A call that resumes and makes calls side by side."""

    def __init__(self, site: Site) -> None:
        self.ran: list[int] = []
        self.branches: list[asyncio.Task[int]] = []
        self.id = ""
        self.sent: set[str] = set()
        """The calls of which the journal says that they were sent."""

        @site.atask(name="step")
        async def step(n: int) -> int:
            self.ran.append(n)
            return n

        @site.atask(name="fan", resume=True)
        async def fan(count: int) -> list[Any]:
            self.id = current_call().id or ""
            self.branches = [asyncio.create_task(step(n)) for n in range(count)]
            values = await asyncio.gather(*self.branches, return_exceptions=True)
            journals = site.worker.transport.journals
            assert isinstance(journals, AMQPJournals)
            with suppress(UnknownRun):
                self.sent = (await journals.entries(journal_name(self.id, True))).sent
            return values

        self.step = step
        self.fan = fan


async def test_branches_that_are_cancelled_before_the_journal_is_open_are_not_called(
    site: Site, openings: Openings
) -> None:
    fan = Fan(site)
    async with site.open():
        call = asyncio.create_task(fan.fan(5))
        await until(lambda: openings.begun and len(fan.branches) == 5)
        fan.branches[1].cancel()
        fan.branches[3].cancel()
        await until(lambda: fan.branches[3].done())
        openings.gate.set()
        found = await soon(call)
        assert [found[n] for n in (0, 2, 4)] == [0, 2, 4]
        assert sorted(fan.ran) == [0, 2, 4]
        assert len(openings.begun) == 1
        row = site.worker.transport.counters.row("step")
        assert (row[RECEIVED], row[ENDED + Status.VALUE]) == (3, 3)
        assert len(fan.sent) == 3
        await soon(gone(site, journal_queue(site, fan.id)))


@pytest.mark.parametrize("kind", ["call", "call with a retry", "once"])
async def test_a_step_that_is_cancelled_before_the_journal_is_open_is_not_new_to_the_next_run(
    site: Site, openings: Openings, kind: str
) -> None:
    """The code has not changed: with `strict` too, where the next run awaits that step before all others."""

    @site.atask
    async def step(name: str) -> str:
        return name

    async def first() -> str:
        if kind == "once":
            return await atasks.once(str, "first")
        return await (step.options(retry=AGAIN) if kind == "call with a retry" else step)("first")

    @site.atask(resume="strict", retry=AGAIN)
    async def parent() -> list[str]:
        found = []
        branch = asyncio.create_task(first())
        if current_call().try_ == 1:
            await until(lambda: openings.begun)
            branch.cancel()
            await asyncio.wait([branch])
            openings.gate.set()
        else:
            found.append(await branch)
        found += [await step("second"), await step("third")]
        if current_call().try_ == 1:
            raise ConnectionError("interrupted")
        return found

    async with site.open():
        assert await soon(parent()) == ["first", "second", "third"]


async def test_each_branch_is_told_that_the_journal_cannot_be_opened(site: Site, openings: Openings) -> None:
    fan = Fan(site)
    openings.errors.append(NotConnected("no journal"))
    openings.gate.set()
    async with site.open():
        found = await soon(fan.fan(3))
        assert [type(error) for error in found] == [NotConnected] * 3
        assert fan.ran == []
        assert await soon(fan.fan(3)) == [0, 1, 2]  # the next one is opened


async def test_a_run_ends_whose_call_is_elsewhere_when_its_journal_is_asked_for(
    site: Site, openings: Openings
) -> None:
    fan = Fan(site)
    openings.errors.append(Elsewhere("call"))
    openings.gate.set()
    async with site.open():
        call = asyncio.create_task(fan.fan(3))
        await until(lambda: openings.begun and not site.worker.runs)
        assert [branch.cancelled() for branch in fan.branches] == [True] * 3
        assert (fan.ran, len(openings.begun)) == ([], 1)
        call.cancel()
        await asyncio.wait([call])


async def test_a_link_that_is_lost_while_the_journal_is_opened_has_each_branch_called_once(
    site: Site, openings: Openings
) -> None:
    fan = Fan(site)
    async with site.open():
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        call = asyncio.create_task(fan.fan(3))
        await until(lambda: openings.begun and len(fan.branches) == 3)
        link = transport.session.link
        assert link is not None
        link.lose("cut")
        await until(lambda: transport.session.link not in (None, link))
        openings.gate.set()
        assert await soon(call) == [0, 1, 2]
        assert sorted(fan.ran) == [0, 1, 2]


async def test_a_deadline_of_a_branch_counts_from_when_it_is_called(site: Site, openings: Openings) -> None:
    """A call that is not sent has no time of its own, as behind an open journal."""
    fan = Fan(site)

    @site.atask(resume=True)
    async def parent() -> list[int]:
        return await asyncio.gather(*(fan.step.options(timeout=2.0)(n) for n in range(3)))

    async with site.open():
        call = asyncio.create_task(parent())
        await until(lambda: openings.begun)
        await asyncio.sleep(2.2)
        openings.gate.set()
        assert await soon(call) == [0, 1, 2]


async def test_a_worker_that_drains_while_the_journal_is_opened_leaves_the_branches_to_the_next_run(
    site: Site, openings: Openings
) -> None:
    fan = Fan(site)
    async with site.open():
        call = asyncio.create_task(fan.fan(3))
        await until(lambda: openings.begun and len(fan.branches) == 3)
        await site.worker.drain(0.0)
        openings.gate.set()
        assert fan.ran == []
        assert [branch.cancelled() for branch in fan.branches] == [True] * 3
        call.cancel()
        await asyncio.wait([call])


@pytest.mark.parametrize("end", ["drop", "leave"])
async def test_a_journal_that_is_declared_while_another_run_has_its_lock(
    amqp_url: str, prefix: str, end: str
) -> None:
    """That run lets it go just then: the one that has declared it does not take what it finds for a first run."""
    async with serve(amqp_url, prefix=prefix) as one, serve(amqp_url, prefix=prefix) as other:
        here, there = one.transport, other.transport
        assert isinstance(here, AMQPTransport)
        assert isinstance(there, AMQPTransport)
        topology, link = here.session.topology, here.session.link
        assert link is not None
        await there.journals.open("before", "call")  # there are channels for declarations
        there.journals.drop("before")
        await there.journals.flushed()
        await has_spares(there)
        await here.journals.open("name", "call")
        if end == "drop":
            await link.delete_queue(topology.kept("name"))
        else:
            await here.journals.add("name", Reply(VERSION, "step", Status.VALUE, b"1"))
        there.journals.hasten("name", "call")
        opening = asyncio.ensure_future(there.journals.open("name", "call"))
        while await link.queue_state(topology.kept("name")) is None:  # it is declared, whoever has the lock
            await asyncio.sleep(0.01)
        here.journals.leave("name")
        if end == "drop":
            with pytest.raises(Elsewhere):
                await soon(opening)
            await there.journals.flushed()
            assert await link.queue_state(topology.kept("name")) is None
        else:
            assert list((await soon(opening)).replies) == ["step"]
            there.journals.drop("name")
        await there.journals.flushed()
        assert await link.queue_state(topology.lock("name")) is None


async def test_a_call_that_comes_again_may_have_been_begun_elsewhere(site: Site) -> None:
    """So its journal is not declared before the lock is taken."""
    first: list[bool] = []

    @site.atask(resume=True)
    async def parent() -> None:
        transport = site.worker.transport
        assert isinstance(transport, AMQPTransport)
        first.append(transport._is_first(current_call().id or ""))
        if len(first) == 1:
            link = transport.session.link
            assert link is not None
            link.lose("cut")
            await until(lambda: transport.session.link not in (None, link))
            await until(lambda: not transport._is_first(current_call().id or ""))

    async with site.open():
        await soon(parent())
        await until(lambda: not site.worker.runs)
        assert first[0]
        assert not any(first[1:])
