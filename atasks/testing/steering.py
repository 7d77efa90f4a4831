"""Cases for queues that are paused, resumed and purged."""

from __future__ import annotations

import asyncio

import pytest

from atasks import CallCancelled, CallTimeout, NotSupported, NoWorker
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon, until
from atasks.testing.tracking import fleet_of
from atasks.tracking.fleet import Fleet
from atasks.transport.call_transport import CallTransport
from atasks.transport.loopback import LoopbackTransport

__all__ = ["SteeringCases"]


class SteeringCases(Cases):
    """For transports of which others may pause and purge queues, and for those that say that they cannot."""

    async def test_a_paused_queue(self, site: Site) -> None:
        ran: list[int] = []
        gate = asyncio.Event()

        @site.atask(queue="other")
        async def elsewhere() -> str:
            return "elsewhere"

        @site.atask(queue="steered")
        async def work(n: int) -> int:
            ran.append(n)
            return n

        @site.atask(queue="steered")
        async def long() -> str:
            await gate.wait()
            return await elsewhere()

        async with site.open(concurrency=2):
            fleet = fleet_of(site)
            assert isinstance(site.caller, CallTransport)
            if isinstance(site.caller, LoopbackTransport):
                for order in (fleet.pause, fleet.resume, fleet.purge):
                    with pytest.raises(NotSupported, match="no queue that others could"):
                        await order("steered")
                assert await fleet.paused(["steered"]) == []
                return
            for order in (fleet.pause, fleet.resume, fleet.purge):
                for name in ("", "a b", "*", "\ud800", "x" * 101):  # no queue has such a name
                    with pytest.raises(ValueError, match="queue"):
                        await order(name)
            running = asyncio.create_task(long())
            await until(lambda: site.worker.started == 1)
            assert await fleet.pause("steered") == [site.worker.id]
            patient = Fleet(
                site.caller, 60.0, len(site.workers)
            )  # and yet waits for nobody who serves others only
            assert await soon(patient.pause("steered")) == [site.worker.id]  # again does no harm
            assert await fleet.paused(["default", "steered"]) == ["steered"]
            waiting = [asyncio.create_task(work(n)) for n in range(5)]
            with pytest.raises(NoWorker, match="'steered' is paused: resume it"):
                await soon(work.options(on_no_worker="error")(9))
            with pytest.raises(CallTimeout, match="which is paused") as late:
                await soon(work.options(timeout=1.0)(9))
            assert late.value.waited_for == "resume"
            gate.set()
            assert await soon(running) == "elsewhere"  # what had begun ends, and calls what others serve
            workers = [site.worker]
            if not site.shares_transport:
                workers.append(await site.serve())  # one that comes later
                fleet = fleet_of(site)
            assert await soon(elsewhere()) == "elsewhere"
            assert ran == []
            assert await fleet.resume("steered") == sorted(worker.id for worker in workers)
            assert await soon(asyncio.gather(*waiting)) == list(range(5))
            # One with a short deadline that has passed may begin at a worker that was not there yet.
            assert sorted(n for n in ran if n != 9) == list(range(5))
            assert await fleet.paused(["steered"]) == []

    async def test_a_purged_queue(self, site: Site) -> None:
        ran: list[int] = []

        @site.atask(queue="steered")
        async def work(n: int) -> None:
            ran.append(n)

        async with site.open():
            fleet = fleet_of(site)
            if isinstance(site.caller, LoopbackTransport):
                return
            first = await fleet.purge("steered")
            assert (first.calls, first.known) == (0, True)
            assert not (await fleet.purge("steerd")).known
            await fleet.pause("steered")
            awaited = [asyncio.create_task(work(n)) for n in range(3)]
            handle = await soon(work.submit(9))
            unkept = work.options(unique="this", keep=0)
            assert (await soon(unkept.submit(9))).new
            found = 0
            async with asyncio.timeout(30):
                while found < 5:
                    found += (await fleet.purge("steered")).calls
            for call in awaited:
                with pytest.raises(CallCancelled, match="was purged from queue 'steered'"):
                    await soon(call)
            with pytest.raises(CallCancelled, match="was purged"):
                await soon(handle)
            assert (await soon(unkept.submit(10))).new
            await fleet.resume("steered")
            await until(lambda: ran == [10])  # what came later runs
            await site.check_quiet()
