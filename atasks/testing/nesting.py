"""Calls that await calls, and slots."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atasks import TooManyParked
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["NestingCases"]


class NestingCases(Cases):
    """However deep and wide calls are nested, one slot is enough, and no more than there are is ever used."""

    async def test_recursion_in_one_slot(self, site: Site) -> None:
        @site.atask
        async def fib(n: int) -> int:
            if n < 2:
                return n
            return sum(await asyncio.gather(fib(n - 1), fib(n - 2)))

        async with site.open(concurrency=1):
            assert await soon(fib(10)) == 55

    async def test_chain_in_one_slot(self, site: Site) -> None:
        @site.atask
        async def depth(n: int) -> int:
            return 0 if n == 0 else 1 + await depth(n - 1)

        async with site.open(concurrency=1):
            assert await soon(depth(100)) == 100

    async def test_many_children_in_one_slot(self, site: Site) -> None:
        @site.atask
        async def child(n: int) -> int:
            return n

        @site.atask
        async def parent() -> list[int]:
            return await asyncio.gather(*(child(n) for n in range(200)))

        async with site.open(concurrency=1):
            assert await soon(parent()) == list(range(200))

    async def test_all_slots_are_used(self, site: Site) -> None:
        barrier = asyncio.Barrier(3)

        @site.atask
        async def meet() -> None:
            await barrier.wait()  # returns only when three run at once

        async with site.open(concurrency=3):
            await soon(asyncio.gather(*(meet() for _ in range(30))))
            assert barrier.n_waiting == 0

    async def test_no_more_calls_run_than_there_are_slots(self, site: Site) -> None:
        running = most = 0

        def enter() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)

        async def work() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        @site.atask
        async def inner() -> None:
            nonlocal running
            enter()
            await work()
            running -= 1

        @site.atask
        async def outer() -> None:
            nonlocal running
            enter()
            await work()
            running -= 1
            await inner()
            enter()
            await work()
            running -= 1

        async with site.open(concurrency=3):
            await soon(asyncio.gather(*(outer() for _ in range(30))))
            assert running == 0
            assert 1 <= most <= 3

    async def test_too_many_parked(self, site: Site) -> None:
        ran = []

        @site.atask
        async def leaf() -> None:
            ran.append("leaf")

        @site.atask
        async def middle() -> str:
            try:
                await leaf()
            except TooManyParked as error:
                return str(error)
            return "no error"

        @site.atask
        async def outer() -> str:
            return await middle()

        async with site.open(max_parked=1):
            assert "max_parked" in await soon(outer())
            assert ran == []

    async def test_too_many_parked_reaches_the_caller(self, site: Site) -> None:
        @site.atask
        async def nest(n: int) -> int:
            return 0 if n == 0 else 1 + await nest(n - 1)

        async with site.open(max_parked=3):
            assert await soon(nest(3)) == 3
            with pytest.raises(TooManyParked, match="3 parked calls"):
                await soon(nest(4))
            assert await soon(nest(3)) == 3

    async def test_child_failures_are_the_parents_to_handle(self, site: Site) -> None:
        @site.atask
        async def child(n: int) -> int:
            if n % 2:
                raise ValueError(n)
            return n

        @site.atask
        async def parent() -> list[Any]:
            found = await asyncio.gather(*(child(n) for n in range(4)), return_exceptions=True)
            return [item.args if isinstance(item, ValueError) else item for item in found]

        async with site.open(concurrency=1):
            assert await soon(parent()) == [0, (1,), 2, (3,)]

    async def test_task_left_running_by_a_call(self, site: Site) -> None:
        """A task that a call started and did not wait for can make calls after the call has ended."""
        gate = asyncio.Event()
        left: list[asyncio.Task[int]] = []

        @site.atask
        async def child() -> int:
            return 7

        @site.atask
        async def parent() -> None:
            async def later() -> int:
                await gate.wait()
                return await child()

            left.append(asyncio.create_task(later()))

        async with site.open(concurrency=1):
            await soon(parent())
            gate.set()
            assert await soon(left[0]) == 7
