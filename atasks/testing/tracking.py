"""Cases for questions to workers about themselves and their calls, and for orders to them."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from atasks import Limit
from atasks.errors import CallCancelled
from atasks.testing.cases import Cases
from atasks.testing.site import PATIENCE, Site, soon, until
from atasks.tracking.fleet import Fleet, FleetCalls
from atasks.tracking.waits import cycles
from atasks.transport.call_transport import CallTransport

__all__ = ["TrackingCases"]

WAIT = 5.0
"""Seconds that answers are waited for: nothing waits so long where all workers answer."""


def fleet_of(site: Site) -> Fleet:
    """Return the fleet that asks the workers of the site, over the caller's transport."""
    assert isinstance(site.caller, CallTransport)
    return Fleet(site.caller, WAIT, len(site.workers))


async def until_calls(fleet: Fleet, holds: Callable[[FleetCalls], object], **filters: Any) -> FleetCalls:
    """The calls, as soon as they are as wanted."""
    async with asyncio.timeout(PATIENCE):
        while not holds(found := await fleet.calls(**filters)):
            pass
    return found


class TrackingCases(Cases):
    """For transports that move questions to workers."""

    async def test_workers_say_who_they_are(self, site: Site) -> None:
        @site.atask
        async def echo(n: int) -> int:
            return n

        async with site.open():
            fleet = fleet_of(site)
            await soon(echo(1))
            pongs = await fleet.ping(expect=1)
            assert list(pongs) == [site.worker.id]
            assert pongs[site.worker.id].pid == os.getpid()
            (info,) = await fleet.workers(worker=site.worker.id)
            assert (info.id, info.namespace, info.codec) == (
                site.worker.id,
                site.namespace,
                site.router.codec.name,
            )
            assert (info.running, info.parked, info.waiting, info.draining) == (0, 0, 0, False)
            (counts,) = info.tasks
            assert (counts.task, counts.ended) == (echo.name, {"value": 1})

    async def test_only_who_is_meant_answers(self, site: Site) -> None:
        @site.atask
        async def nothing() -> None: ...

        async with site.open():
            fleet = fleet_of(site)
            assert isinstance(site.caller, CallTransport)
            nobody = Fleet(site.caller, 0.05)
            assert await nobody.ping(worker="somebody-else") == {}
            assert await nobody.ping(queue="another-queue") == {}
            (served,) = (await fleet.ping(queue="default", expect=1)).values()
            assert served.queues == ["default"]

    async def test_a_tree_of_calls(self, site: Site) -> None:
        gate = asyncio.Event()

        @site.atask
        async def leaf() -> str:
            await gate.wait()
            return "leaf"

        @site.atask
        async def middle() -> str:
            return await leaf()

        @site.atask
        async def top() -> str:
            return await middle()

        async with site.open():
            fleet = fleet_of(site)
            call = asyncio.create_task(top())
            found = await until_calls(
                fleet, lambda found: sum(item.state == "running" for item in found.calls) == 1
            )
            by_task = {item.task: item for item in found.calls}
            first, second, third = by_task[top.name], by_task[middle.name], by_task[leaf.name]
            assert [item.state for item in (first, second, third)] == ["parked", "parked", "running"]
            assert [item.parent for item in (first, second, third)] == [None, first.id, second.id]
            assert {item.root for item in (first, second, third)} == {first.id}
            assert [item.id for item in first.awaits] == [second.id]
            assert [item.id for item in second.awaits] == [third.id]
            assert third.awaits == []
            assert found.queued == []
            assert {item.worker for item in found.calls} == {site.worker.id}
            assert [item.task for item in (await fleet.calls(task=leaf.name)).calls] == [leaf.name]
            for task, state in ((leaf.name, ""), ("", "waiting")):  # one that runs waits in no queue
                assert (await fleet.calls(task=task, state=state)).queued == []
            gate.set()
            assert await soon(call) == "leaf"

    async def test_a_deadlock_of_limits(self, site: Site) -> None:
        first = Limit("first", at_once=1, namespace=site.namespace)
        second = Limit("second", at_once=1, namespace=site.namespace, key=lambda name: name)
        holding: list[str] = []

        async def turn(name: str) -> None:
            holding.append(name)
            await until(lambda: len(holding) == 2, "both hold one")

        @site.atask(limit=first)
        async def one() -> None:
            await turn("one")
            await inner_two("ann")

        @site.atask(limit=second)
        async def inner_two(name: str) -> None: ...

        @site.atask
        async def two() -> None:
            async with second.of("ann"):
                await turn("two")
                await inner_one()

        @site.atask(limit=first)
        async def inner_one() -> None: ...

        @site.atask(limit=first)
        async def waiting() -> None:
            """Waits for the same limit, and nobody waits for it."""

        async with site.open():
            fleet = fleet_of(site)
            calls = [asyncio.create_task(task()) for task in (one, two)]
            await until(lambda: len(holding) == 2)
            calls.append(asyncio.create_task(waiting()))

            def stuck(found: FleetCalls) -> bool:
                return sum(len(call.wants) for call in found.calls) == 3

            found = await until_calls(fleet, stuck)
            names = {call.id: call.task.rpartition(".")[2] for call in found.calls}
            (circle,) = cycles(found.calls)
            waits = {names[wait.call]: (names[wait.awaits], wait.limit.partition(":")[0]) for wait in circle}
            assert waits == {
                "one": ("inner_two", ""),
                "inner_two": ("two", "second"),
                "two": ("inner_one", ""),
                "inner_one": ("one", "first"),
            }
            assert "ann" not in repr(found.calls)
            (oldest,) = [call.id for call in found.calls if names[call.id] == "one"]
            await fleet.cancel([oldest])
            await soon(asyncio.wait(calls))
            assert [call.exception() is None for call in calls] == [False, True, True]

    async def test_calls_are_found_by_what_they_are(self, site: Site) -> None:
        gate = asyncio.Event()

        @site.atask(name="shop.buy")
        async def buy() -> None:
            await gate.wait()

        @site.atask(name="shop.sell")
        async def sell() -> None:
            await gate.wait()

        async with site.open():
            fleet = fleet_of(site)
            calls = [asyncio.create_task(task.options(timeout=600)()) for task in (buy, buy, sell)]
            found = await until_calls(fleet, lambda found: len(found.calls) == 3, state="running")
            assert all(590 < (item.left or 0) <= 600 for item in found.calls)
            found = await until_calls(fleet, lambda found: found.calls, task="*.sell")
            assert [item.task for item in found.calls] == ["shop.sell"]
            found = await until_calls(fleet, lambda found: found.calls, limit=1)
            assert (len(found.calls), found.left_out) == (1, 2)
            assert (await fleet.calls(older=600)).calls == []
            assert (await fleet.calls(state="parked")).calls == []
            gate.set()
            await soon(asyncio.gather(*calls))

    async def test_a_call_is_somewhere_in_its_code(self, site: Site) -> None:
        gate = asyncio.Event()

        async def inner_step() -> None:
            await gate.wait()

        @site.atask
        async def work() -> None:
            await asyncio.gather(inner_step(), inner_step())

        async with site.open():
            fleet = fleet_of(site)
            call = asyncio.create_task(work())
            found = await until_calls(fleet, lambda found: found.calls, state="running")
            stack = await fleet.stack(found.calls[0].id)
            assert stack is not None
            chain = stack.chains[0]
            assert chain.frames[-1].endswith(" in work")
            assert [child.frames[0].rpartition(" ")[2] for child in chain.children] == ["inner_step"] * 2
            gate.set()
            await soon(call)
            assert await fleet.stack(stack.id) is None

    async def test_cancelled_by_somebody_else(self, site: Site) -> None:
        cancelled = asyncio.Event()

        @site.atask
        async def child() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        @site.atask
        async def parent() -> None:
            await child()

        async with site.open():
            fleet = fleet_of(site)
            call = asyncio.create_task(parent())
            found = await until_calls(fleet, lambda found: "running" in [item.state for item in found.calls])
            (held,) = [item for item in found.calls if item.task == parent.name]
            assert await fleet.cancel([held.id]) == [held.id]
            with pytest.raises(CallCancelled):
                await soon(call)
            await soon(cancelled.wait())

    async def test_cancelled_by_somebody_else_before_it_starts(self, site: Site) -> None:
        gate = asyncio.Event()

        @site.atask
        async def hold() -> None:
            await gate.wait()

        async with site.open(concurrency=1):
            fleet = fleet_of(site)
            first = asyncio.create_task(hold())
            await until_calls(fleet, lambda found: found.calls, state="running")
            second = asyncio.create_task(hold())
            await asyncio.sleep(0)
            running = await _running(fleet)
            (waiting,) = [item.call.id for item in site.caller.pendings() if item.call.id != running]
            await fleet.cancel([waiting])
            gate.set()
            with pytest.raises(CallCancelled):
                await soon(second)
            await soon(first)

    async def test_what_happens_is_told_while_somebody_watches(self, site: Site) -> None:
        @site.atask
        async def child(n: int) -> int:
            if n == 0:
                raise LookupError("no child")
            return n

        @site.atask
        async def parent(n: int) -> int:
            return await child(n)

        async with site.open():
            fleet = fleet_of(site)
            assert site.worker.watching is None
            watching = fleet.watch()
            first = asyncio.ensure_future(anext(watching))
            await until(lambda: site.worker.watching is not None, "the worker is watched")
            assert await soon(parent(1)) == 1
            with pytest.raises(LookupError):
                await soon(parent(0))
            found = [await soon(first)]
            while [heard.event.kind for heard in found].count("ended") < 4:
                found.append(await soon(anext(watching)))
            await watching.aclose()
            await until(lambda: site.worker.watching is None, "nobody watches")
            assert {heard.worker for heard in found} == {site.worker.id}
        assert sum(heard.missed for heard in found) == 0
        events = [heard.event for heard in found]
        of_parent, of_child = (
            [event for event in events if event.task == task.name and event.root == events[0].root]
            for task in (parent, child)
        )
        kinds = [event.kind for event in of_parent if event.kind != "sent"]
        assert kinds == ["received", "started", "parked", "resumed", "ended"]
        assert [event.kind for event in of_child] == ["sent", "received", "started", "ended"]
        assert {event.parent for event in of_child} == {of_parent[0].id}
        assert of_child[-1].status == "value"
        failed = [event for event in events if event.kind == "ended" and event.status == "raised"]
        assert {event.error for event in failed} == {"LookupError"}
        assert any("no child" in event.traceback for event in failed)

    async def test_trees_are_told_of_whole_or_not_at_all(self, site: Site) -> None:
        @site.atask
        async def child() -> None: ...

        @site.atask
        async def parent() -> None:
            await child()

        async with site.open():
            fleet = fleet_of(site)
            watching = fleet.watch(["started", "ended", "worker"], sample=0.5)
            first = asyncio.ensure_future(anext(watching))
            await until(lambda: site.worker.watching is not None, "the worker is watched")
            await soon(asyncio.gather(*(parent() for _ in range(64))))
            site.worker.watching.state("done")  # type: ignore[union-attr]  # it is watched
            found = [await soon(first)]
            while found[-1].event.kind != "worker":
                found.append(await soon(anext(watching)))
            await watching.aclose()
        trees = Counter(heard.event.root for heard in found[:-1])
        assert 0 < len(trees) < 64
        assert set(trees.values()) == {4}

    async def test_who_does_not_read_keeps_nobody_up(self, site: Site) -> None:
        @site.atask
        async def echo(n: int) -> int:
            return n

        async with site.open():
            watching = fleet_of(site).watch(["ended"], limit=10)
            first = asyncio.ensure_future(anext(watching))
            await until(lambda: site.worker.watching is not None, "the worker is watched")
            assert await soon(asyncio.gather(*map(echo, range(300)))) == list(range(300))
            counts, more = [(await soon(first)).missed], 0
            while len(counts) + sum(counts) < 300:  # what was missed is told with the next event
                await soon(echo(more))
                more += 1
                counts.append((await soon(anext(watching))).missed)
            await watching.aclose()
        assert sum(counts) > 0
        assert len(counts) + sum(counts) <= 300 + more


async def _running(fleet: Fleet) -> str:
    found = await until_calls(fleet, lambda found: found.calls, state="running")
    return found.calls[0].id
