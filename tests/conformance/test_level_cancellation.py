"""Level cancellation, as trio has it and anyio brings it to asyncio: a cancelled scope cancels what is in it again
in every turn of the event loop."""

# Private attributes: `Slots._resuming`: who waits for a slot is seen nowhere else.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest

from atasks import CallTimeout
from atasks.testing import Site, soon, until
from atasks.testing.cases import Cases
from tests.conformance.transports import OverAMQP, OverLocal, OverLocalHub, OverLoopback
from tests.using import using


class LevelCases(Cases):
    """Nothing is lost by it: no slot, no connection, no call of somebody else."""

    async def test_a_call_that_waits_for_its_slot(self, site: Site) -> None:
        scopes: list[anyio.CancelScope] = []
        begun = asyncio.Event()

        @site.atask
        async def never() -> None:
            await asyncio.Event().wait()

        @site.atask
        async def quick() -> None:
            pass

        @site.atask
        async def outer() -> float:
            begun.set()
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                while True:
                    with suppress(CallTimeout):  # sooner or later the other call has the slot when it passes
                        await never.options(timeout=0.2)()
            assert scope.cancelled_caught
            return loop.time()

        @site.atask(priority=3)
        async def busy() -> float:
            waiting = site.worker.slots._resuming
            await until(lambda: len(waiting) == 1, "the other call waits for the slot that this one has")
            scopes[0].cancel()
            for _ in range(5000):
                await asyncio.sleep(0)
            assert len(waiting) <= 2, "it waits once, however often it is cancelled"
            return loop.time()

        loop = asyncio.get_running_loop()
        async with site.open(concurrency=1):
            first = asyncio.create_task(outer())
            await soon(begun.wait())
            second = asyncio.create_task(busy())
            left, freed = await soon(asyncio.gather(first, second))
            assert left >= freed, "it goes on with a slot, as everything that runs"
            await soon(quick())
            await until(lambda: not site.worker.held)
            assert (site.worker.slots.free, site.worker.parked) == (1, 0)

    async def test_scopes_at_any_moment(self, site: Site) -> None:
        @site.atask
        async def inner(n: int) -> int:
            await asyncio.sleep(0.001 * (n % 7))
            return n

        @site.atask
        async def outer(n: int) -> int:
            done = 0
            for patience in (0.0, 0.001, 0.01, 0.05):
                with anyio.move_on_after(patience):
                    await inner(n)
                    async with anyio.create_task_group() as group:
                        for _ in range(3):
                            group.start_soon(inner, n)
                    done += 1
            return done

        async with site.open(concurrency=2):
            found = await soon(asyncio.gather(*(outer(n) for n in range(30))))
            assert set(found) <= set(range(5))
            assert await soon(inner(5)) == 5
            worker = site.worker
            await until(lambda: not worker.held)
            assert (worker.slots.free, worker.parked) == (2, 0)

    async def test_a_stream_that_is_read_in_a_scope(self, site: Site) -> None:
        closed = asyncio.Event()

        @site.atask
        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(10**9):
                    yield number
                    await asyncio.sleep(0.001)
            finally:
                closed.set()

        @site.atask
        async def count() -> int:
            seen = 0
            with anyio.CancelScope() as scope:
                async for _ in numbers():
                    if not seen:
                        scope.deadline = anyio.current_time() + 0.3
                    seen += 1
            return seen

        async with site.open(concurrency=1):
            assert await soon(count()) > 0
            await soon(closed.wait())
            await until(lambda: not site.worker.held)
            assert (site.worker.slots.free, site.worker.parked) == (1, 0)

    @pytest.mark.parametrize("patience", [0.0, 0.001, 0.005, 0.02, 0.2])
    async def test_connections_that_are_begun_and_left_in_a_scope(
        self, site: Site, patience: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A busy machine takes longer to remove a queue that was just declared, which goes by itself otherwise.
        monkeypatch.setattr("atasks.transport.backends.amqp.connection.UNDO_SECONDS", 30.0)
        before = asyncio.all_tasks()
        with anyio.move_on_after(patience):
            async with using(site.new_transport()):
                await asyncio.Event().wait()
        await until(lambda: asyncio.all_tasks() == before)


class TestLoopback(OverLoopback, LevelCases):
    pass


class TestLocal(OverLocal, LevelCases):
    pass


class TestLocalHub(OverLocalHub, LevelCases):
    pass


class TestAMQP(OverAMQP, LevelCases):
    pass
