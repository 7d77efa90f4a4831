"""Calls that wait to start: for a slot, and for a place in the pool of their executor."""

# Private attributes: `Worker._fill`: a spurious call of it must change nothing.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import atasks
from atasks import ATask, CallTimeout
from atasks.options import Executor
from atasks.router import get_router
from atasks.tasks import atask
from atasks.testing import PATIENCE, soon, until
from atasks.transport.loopback import LoopbackTransport
from atasks.worker.worker import Worker
from tests.unit.serving import happened, idle, serve


class Room:
    """An atask in a thread that stays inside until told to leave."""

    def __init__(self, namespace: str) -> None:
        self.inside: list[int] = []
        self.arrived = threading.Event()
        self.open = threading.Event()

        @atask(name="enter", namespace=namespace, executor="thread")
        def enter(who: int) -> int:
            self.inside.append(who)
            self.arrived.set()
            assert self.open.wait(PATIENCE)
            return who

        self.enter: ATask[[int], int] = enter


@pytest.fixture
def room(namespace: str) -> Iterator[Room]:
    room = Room(namespace)
    yield room
    room.open.set()


async def filled(room: Room, worker: Worker, waiting: int) -> list[asyncio.Task[int]]:
    """Calls of which one is inside, and the others wait for its place."""
    tasks = [asyncio.create_task(room.enter(who)) for who in range(1 + waiting)]
    await happened(room.arrived)
    await until(lambda: worker.unstarted == waiting)
    return tasks


async def test_calls_that_need_no_place_do_not_wait_behind_those_that_lack_one(namespace: str, room: Room) -> None:
    @atask(namespace=namespace)
    async def plain(n: int) -> int:
        return n + 1

    async with serve(namespace, concurrency=2, threads=1) as worker:
        tasks = await filled(room, worker, 20)
        assert worker.slots.free == 1, "what lacks a place holds no slot"
        assert await soon(asyncio.gather(*map(plain, range(50)))) == list(range(1, 51))
        assert (room.inside, worker.unstarted, worker.slots.free) == ([0], 20, 1)
        room.open.set()
        assert await soon(asyncio.gather(*tasks)) == list(range(21))
        assert room.inside == list(range(21)), "the oldest goes first"
        await until(lambda: idle(worker))


async def test_one_that_is_cancelled_or_too_late_never_starts(namespace: str, room: Room) -> None:
    async with serve(namespace, threads=1) as worker:
        tasks = await filled(room, worker, 2)
        with pytest.raises(CallTimeout):
            await soon(room.enter.options(timeout=0.05)(10))
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(tasks[1])
        await until(lambda: worker.unstarted == 1)
        room.open.set()
        assert [await soon(task) for task in (tasks[0], tasks[2])] == [0, 2]
        assert room.inside == [0, 2]
        await until(lambda: idle(worker))


async def test_a_drain_gives_back_what_waits_for_a_place(namespace: str, room: Room) -> None:
    async with atasks.connect("loopback:", namespace=namespace) as transport:
        assert isinstance(transport, LoopbackTransport)
        first = Worker(get_router(namespace), transport, threads=1)
        await first.start()
        tasks = await filled(room, first, 2)
        drain = asyncio.create_task(first.drain(PATIENCE))
        await until(lambda: first.held == 1)
        second = Worker(get_router(namespace), transport, threads=3)
        await second.start()
        await until(lambda: len(room.inside) == 3)
        room.open.set()
        assert await soon(asyncio.gather(*tasks)) == [0, 1, 2]
        await soon(drain)
        assert (first.started, second.started) == (1, 2)
        await second.drain(0)


async def test_children_first_and_then_the_oldest_whatever_they_run_in(namespace: str) -> None:
    """With one slot and enough places, it is the slot that they wait for."""
    order: list[int] = []
    gate = asyncio.Event()

    @atask(namespace=namespace)
    async def hold() -> None:
        await gate.wait()

    @atask(namespace=namespace)
    async def plain(number: int) -> None:
        order.append(number)

    @atask(namespace=namespace, executor="thread")
    def blocking(number: int) -> None:
        order.append(number)

    @atask(namespace=namespace)
    async def parent() -> None:
        await asyncio.gather(hold(), *(work(10 + number) for number, work in enumerate([blocking, plain])))

    async with serve(namespace, concurrency=1, threads=3) as worker:
        family = asyncio.create_task(parent())
        await until(lambda: worker.unstarted == 2)
        roots = [
            asyncio.create_task(work(number))
            for number, work in enumerate([plain, blocking, blocking, plain, blocking, plain])
        ]
        await until(lambda: worker.unstarted == 8)
        gate.set()
        await soon(asyncio.gather(family, *roots))
        assert order == [10, 11, 0, 1, 2, 3, 4, 5]


class Kept:
    """A delivery whose reply is kept."""

    def __init__(self) -> None:
        self.replied: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        assert name == "reply", f"the call was to be answered: {name}"
        return self.replied.set_result


async def test_a_last_attempt_waits_to_be_alone_and_for_a_place(namespace: str, room: Room) -> None:
    from atasks.wire import VERSION, Call

    @atask(namespace=namespace)
    async def plain() -> int:
        return 1

    async with serve(namespace, concurrency=3, threads=1) as worker:
        tasks = await filled(room, worker, 0)
        codec = worker.router.codec
        last = Kept()
        payload = await codec.encode(((7,), {}))
        worker.deliver(Call(VERSION, "last", "enter", payload, codec.name), last, alone=True)
        other = asyncio.create_task(plain())
        await until(lambda: worker.unstarted == 2)
        assert worker.alone
        worker.runs[1].patient_until = 0.0  # it waits no longer for others to end, but for a place it does
        worker._fill()
        assert (room.inside, worker.unstarted, worker.slots.free) == ([0], 2, 2)
        room.open.set()
        await soon(last.replied)
        assert await soon(asyncio.gather(*tasks, other)) == [0, 1]
        assert room.inside == [0, 7]
        await until(lambda: idle(worker))


@contextmanager
def noted(worker: Worker) -> Iterator[list[Executor]]:
    """The executors that the worker tells its transport to lack."""
    told: list[Executor] = []
    worker.transport.lacks_place = lambda _, executor: told.append(executor)  # type: ignore[method-assign]
    yield told
    del worker.transport.lacks_place


async def test_the_transport_is_told_of_calls_that_lack_a_place_and_of_no_others(
    namespace: str, room: Room
) -> None:
    gate = asyncio.Event()

    @atask(namespace=namespace)
    async def hold() -> None:
        await gate.wait()

    async with serve(namespace, concurrency=2, threads=2) as worker:
        with noted(worker) as told:
            inside = asyncio.create_task(room.enter(1))
            holding = asyncio.create_task(hold())
            await until(lambda: worker.slots.free == 0)
            late = asyncio.create_task(room.enter(2))
            await until(lambda: worker.unstarted == 1)
            assert told == [], "it lacks a slot, and there is a place"
            room.open.set()
            await soon(asyncio.gather(inside, late))
            assert told == []
            gate.set()
            await soon(holding)
    room.open.clear()
    room.arrived.clear()
    async with serve(namespace, concurrency=3, threads=1) as worker:
        with noted(worker) as told:
            tasks = await filled(room, worker, 1)
            assert told == ["thread"]
            room.open.set()
            await soon(asyncio.gather(*tasks))
        await until(lambda: idle(worker))
