"""Cases for transports with several workers: blocking functions for which a worker has no place."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atasks import CallTimeout, Transport, current_call
from atasks.testing import PATIENCE, Site, soon, until


def stay(folder: str) -> int:
    """Note its process, and stay until told to go."""
    (Path(folder) / str(os.getpid())).touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.005)
    return os.getpid()


class Room:
    """An atask in a thread that stays inside until told to go."""

    def __init__(self, site: Site) -> None:
        self.inside: list[tuple[Any, str, int | None]] = []
        self.open = threading.Event()

        @site.atask(name="enter", executor="thread")
        def enter(who: Any) -> Any:
            call = current_call()
            self.inside.append((who, call.state, call.attempt))
            assert self.open.wait(PATIENCE)
            return who

        self.enter = enter


class PlaceCases:
    """A transport that has several workers: `new_transport` makes one for each."""

    @pytest.fixture
    def new_transport(self) -> Callable[[str], Transport]:
        """To be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def site(self, new_transport: Callable[[str], Transport]) -> Iterator[Site]:
        site = Site(new_transport)
        yield site
        site.close()

    @pytest.fixture
    def room(self, site: Site) -> Iterator[Room]:
        room = Room(site)
        yield room
        room.open.set()

    async def test_each_worker_has_as_many_as_it_has_places_and_others_do_not_wait_behind_them(
        self, site: Site, room: Room
    ) -> None:
        @site.atask
        async def plain(n: int) -> int:
            return n + 1

        async with site.open(serve=False):
            for name in "ab":
                await site.serve(concurrency=10, threads=1, state=name)
            tasks = [asyncio.create_task(room.enter(number)) for number in range(6)]
            await until(lambda: len(room.inside) == 2)
            assert await soon(asyncio.gather(*map(plain, range(50)))) == list(range(1, 51))
            await until(lambda: all((worker.held, worker.unstarted) == (1, 0) for worker in site.workers))
            assert {state for _, state, _ in room.inside} == {"a", "b"}
            await site.serve(concurrency=10, threads=3, state="c")
            await until(lambda: len(room.inside) == 5)
            room.open.set()
            assert await soon(asyncio.gather(*tasks)) == list(range(6))
            assert sorted(who for who, _, _ in room.inside) == list(range(6))
            assert {attempt for _, _, attempt in room.inside} == {1}

    async def test_processes(self, site: Site, tmp_path: Path) -> None:
        task = site.atask(stay, executor="process")

        @site.atask
        async def plain(n: int) -> int:
            return n

        async with site.open(serve=False):
            for _ in range(2):
                await site.serve(processes=1)
            tasks = [asyncio.create_task(task(str(tmp_path))) for _ in range(4)]
            await until(lambda: len(list(tmp_path.iterdir())) == 2)
            await until(lambda: all((worker.held, worker.unstarted) == (1, 0) for worker in site.workers))
            assert await soon(asyncio.gather(*map(plain, range(20)))) == list(range(20))
            (tmp_path / "go").touch()
            assert len(set(await soon(asyncio.gather(*tasks)))) == 2

    async def test_the_oldest_goes_first(self, site: Site, room: Room) -> None:
        async with site.open(serve=False):
            await site.serve(threads=1)
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(room.enter.options(batch=False)(number)))
                await asyncio.sleep(0)
            await until(lambda: room.inside)
            room.open.set()
            assert await soon(asyncio.gather(*tasks)) == list(range(10))
            order = [who for who, _, _ in room.inside]
            assert order == list(range(10)), order

    @pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
    async def test_those_that_wait_can_be_cancelled_and_have_deadlines(
        self, delivery: Any, site: Site, room: Room
    ) -> None:
        enter = room.enter.options(delivery=delivery)
        async with site.open(serve=False):
            await site.serve(threads=1)
            first = asyncio.create_task(enter("first"))
            await until(lambda: room.inside)
            cancelled = asyncio.create_task(enter("cancelled"))
            with pytest.raises(CallTimeout):
                await soon(enter.options(timeout=0.1)("late"))
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(cancelled)
            last = asyncio.create_task(enter("last"))
            room.open.set()
            assert await soon(asyncio.gather(first, last)) == ["first", "last"]
            assert [(who, attempt) for who, _, attempt in room.inside] == [("first", 1), ("last", 1)]

    async def test_a_drain_keeps_none_of_those_that_wait(self, site: Site, room: Room) -> None:
        async with site.open(serve=False):
            first = await site.serve(threads=1, state="first")
            tasks = [asyncio.create_task(room.enter(number)) for number in range(5)]
            await until(lambda: room.inside)
            drain = asyncio.create_task(first.drain())
            await site.serve(threads=4, state="second")
            await until(lambda: len(room.inside) == 5)
            room.open.set()
            assert await soon(asyncio.gather(*tasks)) == list(range(5))
            await soon(drain)
            states = [(state, attempt) for _, state, attempt in room.inside]
            assert sorted(states) == [("first", 1)] + [("second", 1)] * 4

    async def test_places_that_parked_threads_leave_are_used(self, site: Site) -> None:
        @site.atask(executor="thread")
        def fib(n: int) -> int:
            return n if n < 2 else fib.sync(n - 1) + fib.sync(n - 2)

        async with site.open(serve=False):
            for _ in range(2):
                await site.serve(concurrency=4, threads=2)
            assert await soon(fib(7)) == 13

    async def test_several_queues_share_a_place(self, site: Site) -> None:
        ran: list[int] = []

        @site.atask(executor="thread")
        def work(number: int) -> int:
            ran.append(number)
            return number

        async with site.open(serve=False):
            await site.serve(threads=1, queues=["a", "b", "c"])
            tasks = [asyncio.create_task(work.options(queue="abc"[n % 3])(n)) for n in range(30)]
            assert await soon(asyncio.gather(*tasks)) == list(range(30))
            assert sorted(ran) == list(range(30))
