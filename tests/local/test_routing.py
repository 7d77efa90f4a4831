"""Which worker gets which call, and when."""

# Private attributes: `Hub._calls` holds the call, `LocalTransport._link` is what breaks, and `SocketLink._write`
# sees every frame.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import atasks
from atasks import Router, UnknownTask, Worker
from atasks.caller.encoding import new_call
from atasks.testing import Site, soon, until
from atasks.transport.backends.local import LocalTransport
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import Message
from atasks.wire import VERSION, Cancel, Reply
from tests.using import using


@pytest.fixture
async def site(host: Host, path: str) -> AsyncIterator[Site]:
    """A caller and workers, each with a connection of its own."""
    site = Site(lambda namespace: LocalTransport(path, namespace, hub=False))
    yield site
    site.close()


async def test_urgent_calls_go_first_and_then_those_made_by_calls(site: Site) -> None:
    order: list[str] = []
    gate, running = asyncio.Event(), asyncio.Event()

    @site.atask
    async def note(name: str) -> None:
        order.append(name)

    @site.atask
    async def parent() -> None:
        running.set()
        await gate.wait()
        await note("child")

    async with site.open(concurrency=1):
        calls = [asyncio.create_task(parent())]
        await soon(running.wait())
        for name, priority in (("first", 0), ("second", 0), ("soon", 1), ("urgent", 3)):
            calls.append(asyncio.create_task(note.options(priority=priority)(name)))
            await asyncio.sleep(0)
        await soon(site.worker.transport.flush())
        gate.set()
        await soon(asyncio.gather(*calls))
        assert order == ["urgent", "soon", "child", "first", "second"]


async def test_long_calls_spread_evenly(site: Site) -> None:
    gate = asyncio.Event()

    @site.atask
    async def work() -> None:
        await gate.wait()

    async with site.open(concurrency=10):
        for _ in range(3):
            await site.serve(concurrency=10)
        calls = [asyncio.create_task(work()) for _ in range(20)]
        await until(lambda: sum(worker.held for worker in site.workers) >= 20)
        assert [worker.held for worker in site.workers] == [5] * 4
        gate.set()
        await soon(asyncio.gather(*calls))


async def test_a_worker_is_handed_no_more_than_it_has_slots_for(site: Site) -> None:
    gate = asyncio.Event()

    @site.atask
    async def work() -> None:
        await gate.wait()

    async with site.open(concurrency=3):
        calls = [asyncio.create_task(work()) for _ in range(10)]
        await until(lambda: site.worker.held >= 3)
        await soon(site.worker.transport.flush())
        assert (site.worker.held, site.worker.unstarted) == (3, 0)
        second = await site.serve(concurrency=100)
        await until(lambda: second.held >= 7)
        gate.set()
        await soon(asyncio.gather(*calls))


async def test_a_worker_serves_several_queues_in_turn(site: Site) -> None:
    @site.atask
    async def work(n: int) -> int:
        return n

    async with site.open(serve=False):
        await site.serve(concurrency=1, queues=["a", "b", "c"])
        calls = [asyncio.create_task(work.options(queue=queue)(n)) for n in range(20) for queue in "abc"]
        assert await soon(asyncio.gather(*calls)) == [n for n in range(20) for _ in "abc"]


async def test_a_call_finds_the_worker_that_knows_its_atask(site: Site, path: str) -> None:
    """Two programs serve one queue, and each has atasks that the other lacks."""

    @site.atask
    async def known() -> str:
        return "found"

    async with site.open(serve=False):
        others = []
        for _ in range(3):  # three that know nothing, and the fourth does
            stranger = Router(f"{site.namespace}-other")
            transport = site.new_transport()
            await transport.connect()
            worker = Worker(stranger, transport)
            await worker.start(["default"])
            others.append((worker, transport))
        await site.serve(concurrency=1)
        assert await soon(asyncio.gather(*(known() for _ in range(50)))) == ["found"] * 50
        with pytest.raises(UnknownTask, match="no_such_thing"):
            await soon(site.router.send_request("no_such_thing"))
        for worker, transport in others:
            await worker.drain(0)
            await transport.disconnect()
    atasks.namespaces.namespaces.unregister(f"{site.namespace}-other")


async def test_unstarted_calls_go_to_whoever_has_slots(site: Site) -> None:
    """Calls that were handed out while others were parked wait when these resume, and need not."""
    gate, release = asyncio.Event(), asyncio.Event()
    entered = asyncio.Queue[str]()

    @site.atask(queue="child")
    async def child() -> None:
        await gate.wait()

    @site.atask(queue="parent")
    async def parent() -> None:
        await child()
        entered.put_nowait("parent")
        await release.wait()

    @site.atask(queue="parent")
    async def other() -> None:
        entered.put_nowait("other")

    async with site.open(serve=False):
        await site.serve(queues=["child"])
        await site.serve(concurrency=1, queues=["parent"])
        calls = [asyncio.create_task(parent()) for _ in range(5)]
        await until(lambda: site.workers[1].parked >= 5)
        gate.set()
        assert await soon(entered.get()) == "parent"  # it holds the only slot
        calls.append(asyncio.create_task(other()))
        await site.serve(concurrency=1, queues=["parent"])
        assert await soon(entered.get()) == "other"
        release.set()
        await soon(asyncio.gather(*calls))


async def test_a_caller_that_goes_has_its_calls_cancelled_unless_they_run_for_nobody(site: Site) -> None:
    started, ended = asyncio.Queue[str](), asyncio.Queue[str]()
    gate = asyncio.Event()

    @site.atask
    async def work(name: str) -> None:
        started.put_nowait(name)
        try:
            await gate.wait()
            ended.put_nowait(f"{name} ran")
        except asyncio.CancelledError:
            ended.put_nowait(f"{name} cancelled")
            raise

    async with site.open(concurrency=2):
        async with using(site.new_transport()):
            kinds = {"a": "cancel", "b": "run", "c": "cancel", "d": "run"}
            calls = [asyncio.create_task(work.options(orphan=kind)(name)) for name, kind in kinds.items()]
            assert [await soon(started.get()), await soon(started.get())] == ["a", "b"]
        await asyncio.wait(calls)
        assert await soon(ended.get()) == "a cancelled"
        assert await soon(started.get()) == "d"  # c was dropped
        gate.set()
        assert {await soon(ended.get()), await soon(ended.get())} == {"b ran", "d ran"}
        assert {type(call.exception()) for call in calls} == {atasks.CallConnectionLost}


@pytest.mark.parametrize(
    ("own", "attempt", "last"), [(3, 19, False), (3, 20, True), (30, 20, False), (30, 30, True)]
)
async def test_a_call_does_not_get_as_many_attempts_as_it_asks_for(
    host: Host, site: Site, own: int, attempt: int, last: bool
) -> None:
    """Twenty at most, or what the definition of the atask says: then it runs alone."""
    gate = asyncio.Event()

    @site.atask(name="wait", max_attempts=own)
    async def wait() -> None:
        await gate.wait()

    async with site.open():
        codec = site.router.codec
        payload = bytes(await codec.encode(((), {})))
        call = new_call("wait", payload, wait.task_options, site.caller, codec, None)
        call.attempt, call.max_attempts = attempt, 10**6
        waiting = asyncio.create_task(site.caller.request(call, wait.task_options))
        await until(lambda: site.worker.held)
        (entry,) = host.hub._calls.values()
        assert entry.alone == last
        gate.set()
        await soon(waiting)


async def test_a_call_is_awaited_again_while_its_cancelled_run_ends(site: Site) -> None:
    """The caller has lost its connection and not the hub: the worker is told to cancel the call, and then to run
    it, while it cleans up."""
    cleaning, cleaned = asyncio.Event(), asyncio.Event()
    runs = 0

    @site.atask
    async def work() -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await cleaned.wait()
        return "done"

    async with site.open():
        call = asyncio.create_task(work())
        await until(lambda: runs, "it runs")
        _lose_connection(site.caller)
        await soon(cleaning.wait())
        run = site.worker.runs[0]
        await until(lambda: len(run.deliveries) == 2, "it is sent again")
        cleaned.set()
        assert await soon(call) == "done"
        assert runs == 2


async def test_a_cancel_for_a_call_that_has_ended_does_not_hold_for_the_next_one(site: Site, host: Host) -> None:
    """The hub may tell a worker that a call is not awaited when its reply is on its way. If the caller has lost
    its connection it sends the call again."""
    runs: list[str] = []

    @site.atask
    async def work() -> str:
        runs.append(str(atasks.current_call().id))
        if len(runs) == 1:
            await asyncio.Event().wait()
        return "done"

    async with site.open():
        call = asyncio.create_task(work())
        await until(lambda: runs, "it runs")
        (worker,) = (peer for peer in host.hub.peers if peer.worker_id)
        worker.link.send(Cancel(VERSION, ["an-id"]))  # not in hand there
        await soon(site.worker.transport.flush())
        assert "an-id" not in site.worker.withdrawn
        call.cancel()
        await asyncio.wait([call])


def _lose_connection(transport: object) -> None:
    assert isinstance(transport, LocalTransport)
    link = transport._link
    assert isinstance(link, SocketLink)
    assert link.transport is not None
    link.transport.abort()


async def test_calls_that_a_worker_makes_and_runs_cost_a_message_each_way(
    site: Site, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[list[Message]] = []
    write = SocketLink._write

    def note(link: SocketLink, messages: list[Message]) -> None:
        frames.append(messages)
        write(link, messages)

    @site.atask
    async def child(n: int) -> int:
        return n

    @site.atask
    async def parent(n: int) -> list[int]:
        return [await child(number) for number in range(n)]

    async with site.open(concurrency=1):
        assert await soon(parent(1)) == [0]
        await soon(site.worker.transport.flush())
        monkeypatch.setattr(SocketLink, "_write", note)
        assert await soon(parent(50)) == list(range(50))
        await soon(site.worker.transport.flush())
        replies = [message for frame in frames for message in frame if isinstance(message, Reply)]
        assert len(replies) == 2  # that of the parent, to the hub and on to its caller
        assert len(frames) < 3 * 50
        assert len(host.hub._calls) == 0
        assert site.worker.held == 0
