"""`connect` and `serve` as blocks: over which of several transports an await goes, in which task and context."""

# Private attributes: `Router._connected`: a connection that was forgotten is seen nowhere else.

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Any

import pytest

import atasks
from atasks import NotConnected, get_router
from atasks.blocks import innermost
from atasks.definitions import ATask
from atasks.tasks import atask
from atasks.testing import soon
from tests.unit.serving import locating

Connect = Callable[[], Any]


@pytest.fixture
def where(namespace: str) -> ATask[[], int]:
    """Tells over which transport it was called."""
    return locating(namespace)


@pytest.fixture
def connect(namespace: str) -> Connect:
    return lambda: atasks.connect("loopback:", namespace=namespace)


async def test_concurrent_blocks_do_not_mix(where: ATask[[], int], connect: Connect) -> None:
    async def handler(number: int) -> None:
        async with connect() as transport:
            for _ in range(number + 3):
                assert await where() == id(transport)
                await asyncio.sleep(0)
                found = await asyncio.gather(where(), where(), asyncio.create_task(where()))
                assert found == [id(transport)] * 3

    await asyncio.gather(*(handler(number) for number in range(10)))
    async with connect() as outer:
        await asyncio.gather(*(handler(number) for number in range(10)), soon(where()))
        assert await where() == id(outer)


async def test_tasks_without_a_block_use_the_oldest_of_the_loop(where: ATask[[], int], connect: Connect) -> None:
    go = asyncio.Queue[None]()

    async def elsewhere() -> list[Any]:
        found: list[Any] = []
        for _ in range(4):
            await go.get()
            try:
                found.append(await where())
            except NotConnected:
                found.append(None)
            done.put_nowait(None)
        return found

    done = asyncio.Queue[None]()
    task = asyncio.create_task(elsewhere())  # before there was any block

    async def ask() -> None:
        go.put_nowait(None)
        await soon(done.get())

    await ask()
    async with connect() as outer:
        async with connect():
            await ask()
        await ask()
    await ask()
    assert await task == [None, id(outer), id(outer), None]


async def test_a_task_that_outlives_its_block(where: ATask[[], int], connect: Connect) -> None:
    """The task goes over to the block around it; not to one that somebody else entered meanwhile."""
    left = asyncio.Event()

    async def late() -> int:
        await left.wait()
        return await where()

    async with connect() as outer:
        async with connect():
            inside = asyncio.create_task(late())
        left.set()
        assert await inside == id(outer)

    left.clear()
    enter_other, leave_other = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        await enter_other.wait()
        async with connect():
            await leave_other.wait()

    stranger = asyncio.create_task(other())
    async with connect():
        orphan = asyncio.create_task(late())
        enter_other.set()
        await asyncio.sleep(0)
    left.set()
    with pytest.raises(NotConnected):
        await orphan
    leave_other.set()
    await stranger


async def test_a_connection_that_is_made_anew_elsewhere_is_used(where: ATask[[], int], connect: Connect) -> None:
    """A task that manages the connection of all others may leave it and enter another one."""
    stack = contextlib.AsyncExitStack()
    first = await stack.enter_async_context(connect())
    again = asyncio.Event()

    async def user() -> tuple[int, int]:
        before = await where()
        await again.wait()
        return before, await where()

    async def manage() -> Any:
        await stack.aclose()
        return await stack.enter_async_context(connect())

    using = asyncio.create_task(user())
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    second = await asyncio.create_task(manage())
    again.set()
    assert await using == (id(first), id(second))
    assert await where() == id(second)
    await asyncio.create_task(stack.aclose())
    with pytest.raises(NotConnected):
        await where()


async def test_connections_may_end_in_any_order(where: ATask[[], int], connect: Connect) -> None:
    first, second, third = connect(), connect(), connect()
    one, two, three = [await manager.__aenter__() for manager in (first, second, third)]
    assert await where() == id(three)
    await second.__aexit__(None, None, None)
    assert await where() == id(three)
    await third.__aexit__(None, None, None)
    assert await where() == id(one) != id(two)
    await first.__aexit__(None, None, None)
    with pytest.raises(NotConnected):
        await where()


async def test_blocks_that_are_left_by_other_tasks(where: ATask[[], int], connect: Connect) -> None:
    async def leave(manager: Any) -> None:
        await manager.__aexit__(None, None, None)

    outer, inner = connect(), connect()
    one = await outer.__aenter__()
    two = await inner.__aenter__()
    assert await where() == id(two)
    await asyncio.create_task(leave(inner))
    assert await where() == id(one)
    await copy_context().run(asyncio.create_task, leave(outer))
    with pytest.raises(NotConnected):
        await where()
    for _ in range(100):  # what this context holds of them does not grow
        manager = connect()
        await manager.__aenter__()
        await asyncio.create_task(leave(manager))
    held = innermost.get()
    assert held is not None
    assert held.transport is None
    assert held.outer is None
    async with connect() as again:
        assert await where() == id(again)


async def test_generators_that_hold_a_block(where: ATask[[], int], connect: Connect) -> None:
    async def answers() -> AsyncIterator[bool]:
        async with connect() as transport:
            for _ in range(3):
                yield await where() == id(transport)

    async def ask(source: AsyncIterator[bool]) -> bool:
        return await anext(source)

    async with connect() as outer:
        async with contextlib.aclosing(answers()) as source:
            assert await asyncio.create_task(ask(source))
            assert await where() == id(outer), "it was entered in the context of the other task"
        left = answers()
        assert await anext(left)
        await asyncio.create_task(left.aclose())  # type: ignore[attr-defined]
        assert await where() == id(outer)
        async for right in answers():
            assert right
        assert await where() == id(outer)


@pytest.fixture
async def connected(connect: Connect) -> AsyncIterator[Any]:
    async with connect() as transport:
        yield transport


@pytest.fixture
async def connected_again(connected: Any, connect: Connect) -> AsyncIterator[Any]:
    async with connect() as transport:
        yield transport


async def test_fixtures(where: ATask[[], int], connected: Any) -> None:
    assert await where() == id(connected)


async def test_nested_fixtures(where: ATask[[], int], connected: Any, connected_again: Any) -> None:
    assert await where() == id(connected_again)


async def test_a_block_inside_a_served_call(where: ATask[[], int], connect: Connect, namespace: str) -> None:
    @atask(namespace=namespace)
    async def work() -> tuple[int, bool, list[bool], int]:
        before = await where()
        async with connect() as own:
            inside = [await where() == id(own), await asyncio.create_task(where()) == id(own)]
            parked = await soon(where()) == id(own)
        return before, parked, inside, await where()

    async with atasks.serve("loopback:", namespace=namespace, concurrency=1, grace=0) as worker:
        served = id(worker.transport)
        assert await work() == (served, True, [True, True], served)
        async with connect():  # of the caller: it is not the call's
            call = work()
        assert await call == (served, True, [True, True], served)
        assert worker.slots.free == 1


async def test_several_namespaces(where: ATask[[], int], connect: Connect, namespace: str) -> None:
    other = f"{namespace}-other"
    there = locating(other)

    def connect_other() -> Any:
        return atasks.connect(namespace=other)

    async with connect() as one:
        async with connect_other() as two:
            async with connect() as three:
                assert (await where(), await there()) == (id(three), id(two))
            assert (await where(), await there()) == (id(one), id(two))
        assert await where() == id(one)
        with pytest.raises(NotConnected):
            await there()


async def test_threads(where: ATask[[], int], connect: Connect) -> None:
    def with_a_loop_of_its_own() -> list[Any]:
        async def main() -> list[Any]:
            found: list[Any] = []
            with contextlib.suppress(NotConnected):
                found.append(await where())  # what this context holds is of another loop
            async with connect() as own:
                found.append(await where() == id(own))
            return found

        return asyncio.run(main())

    loop = asyncio.get_running_loop()
    async with connect() as outer:
        assert await asyncio.to_thread(with_a_loop_of_its_own) == [True]
        assert await asyncio.to_thread(where.sync) == id(outer)  # in the loop of the block
        assert await loop.run_in_executor(None, with_a_loop_of_its_own) == [True]
        async with connect() as inner:
            assert await loop.run_in_executor(None, where.sync) == id(outer)  # it copies no context
            assert await asyncio.to_thread(where.sync) == id(inner)
            assert await loop.run_in_executor(None, copy_context().run, where.sync) == id(inner)


async def test_callbacks(where: ATask[[], int], connect: Connect) -> None:
    loop = asyncio.get_running_loop()
    tasks = asyncio.Queue[asyncio.Task[int]]()

    def call() -> None:
        tasks.put_nowait(asyncio.ensure_future(where()))  # type: ignore[arg-type]

    async def answer() -> int:
        return await (await soon(tasks.get()))

    async with connect() as outer, connect() as inner:
        loop.call_soon(call)
        assert await answer() == id(inner)
        loop.call_soon(call, context=innermost_of(outer))
        assert await answer() == id(outer)
        await asyncio.to_thread(loop.call_soon_threadsafe, call)
        assert await answer() == id(inner)


def innermost_of(transport: Any) -> Any:
    """A context in the block of this transport."""
    context = copy_context()
    block = context[innermost]
    while block is not None and block.transport is not transport:
        block = block.outer
    context.run(innermost.set, block)
    return context


async def test_a_stream_goes_on_over_the_transport_that_it_began_with(connect: Connect, namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        for number in range(6):
            yield number

    async with connect():
        stream = numbers()
        assert await anext(stream) == 0
        async with connect():
            assert [await anext(stream), await anext(stream)] == [1, 2]
        assert [number async for number in stream] == [3, 4, 5]


async def test_what_ends_leaves_nothing(where: ATask[[], int], connect: Connect, namespace: str) -> None:
    async def cancelled(reached: asyncio.Event) -> None:
        async with connect():
            reached.set()
            await asyncio.Event().wait()

    reached = asyncio.Event()
    task = asyncio.create_task(cancelled(reached))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    assert get_router(namespace)._connected == {}
    assert innermost.get() is None
