"""`.sync` in threads of a program whose connection is in an event loop, as views of a web framework are."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest

import atasks
from atasks import NotConnected
from atasks.caller import background
from atasks.definitions import ATask, StreamTask
from atasks.tasks import atask
from atasks.testing import soon
from tests.unit.serving import locating, serve


@pytest.fixture
def add(namespace: str) -> ATask[[int, int], int]:
    @atask(namespace=namespace)
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    return add


@pytest.fixture
def numbers(namespace: str) -> StreamTask[[int], int]:
    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    return numbers


async def in_another_context(function: Callable[..., Any], *args: Any) -> Any:
    """Run the function in a thread, as a server does for a request: its task was not started in the lifespan's
    block."""
    task = asyncio.get_running_loop().create_task(
        anyio.to_thread.run_sync(function, *args), context=contextvars.Context()
    )
    return await soon(task)


async def in_an_executor(function: Callable[..., Any], *args: Any) -> Any:
    return await soon(asyncio.get_running_loop().run_in_executor(None, function, *args))


WAYS = {
    "to_thread": asyncio.to_thread,
    "anyio": anyio.to_thread.run_sync,
    "request": in_another_context,
    "executor": in_an_executor,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", ["connect", "serve"])
async def test_a_thread_calls_over_the_connection_of_the_event_loop(
    way: str, block: str, namespace: str, add: ATask[[int, int], int], numbers: StreamTask[[int], int]
) -> None:
    opened: Any = serve(namespace) if block == "serve" else atasks.connect("loopback:", namespace=namespace)
    async with opened:
        assert await WAYS[way](add.sync, 1, 2) == 3
        assert await WAYS[way](lambda: list(numbers.sync(3))) == [0, 1, 2]


@pytest.mark.parametrize("way", WAYS)
async def test_in_a_served_call(way: str, namespace: str, add: ATask[[int, int], int]) -> None:
    @atask(namespace=namespace)
    async def outer() -> int:
        total: int = await WAYS[way](add.sync, 1, 2)
        return total

    async with serve(namespace, concurrency=2):
        assert await soon(outer()) == 3


async def test_many_threads_at_once(namespace: str, add: ATask[[int, int], int]) -> None:
    async with serve(namespace, concurrency=2):
        sums = await soon(asyncio.gather(*(in_another_context(add.sync, n, n) for n in range(30))))
    assert sums == [2 * n for n in range(30)]


async def test_the_oldest_connection_and_before_it_that_of_connect_sync(namespace: str) -> None:
    where = locating(namespace)
    async with atasks.connect("loopback:", namespace=namespace) as first:
        async with atasks.connect("loopback:", namespace=namespace):
            assert await in_an_executor(where.sync) == id(first)

            def connected() -> tuple[int, int, int]:
                with atasks.connect_sync("loopback:", namespace=namespace) as own, ThreadPoolExecutor(1) as pool:
                    return id(own), where.sync(), pool.submit(where.sync).result()

            own, mine, others = await in_an_executor(connected)
            assert own == mine == others
        assert await in_an_executor(where.sync) == id(first)


async def test_a_cancelled_await_leaves_the_thread_to_end(namespace: str) -> None:
    began, ended = asyncio.Event(), threading.Event()

    @atask(namespace=namespace)
    async def wait() -> None:
        began.set()
        await asyncio.Event().wait()

    def view() -> None:
        with pytest.raises(atasks.CallConnectionLost):
            wait.sync()
        ended.set()

    async with serve(namespace):
        waiting = asyncio.ensure_future(in_an_executor(view))
        await soon(began.wait())
    await soon(waiting)
    assert ended.is_set()


@pytest.mark.parametrize("begun", [False, True])
def test_an_event_loop_that_waits_for_the_thread(
    begun: bool, namespace: str, add: ATask[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(background, "STUCK_SECONDS", 0.3)
    monkeypatch.setattr(background, "CANCEL_PATIENCE", 0.1)

    @atask(namespace=namespace)
    async def slow() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with atasks.connect("loopback:", namespace=namespace):
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(slow.sync) if begun else pool.submit(add.sync, 1, 2)
                if begun:
                    await asyncio.sleep(0.1)
                with pytest.raises(RuntimeError, match="waits for a thread, and the call of this thread waits"):
                    future.result()

    asyncio.run(main())


def test_an_event_loop_that_computes_is_waited_for(
    namespace: str, add: ATask[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(background, "STUCK_SECONDS", 0.1)

    async def main() -> int:
        async with atasks.connect("loopback:", namespace=namespace):
            call = asyncio.create_task(in_an_executor(add.sync, 1, 2))
            await asyncio.sleep(0)
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                pass
            result: int = await call
            return result

    assert asyncio.run(main()) == 3


def test_another_event_loop_is_told_of_the_one_that_is_connected(
    namespace: str, add: ATask[[int, int], int]
) -> None:
    async def call() -> int:
        return await add(1, 2)

    async def main() -> None:
        async with atasks.connect("loopback:", namespace=namespace):
            with pytest.raises(NotConnected, match=r"another one has: await there, or call `\.sync`"):
                await asyncio.to_thread(asyncio.run, call())

    asyncio.run(main())


def test_nothing_is_advised_where_the_connection_has_ended(namespace: str, add: ATask[[int, int], int]) -> None:
    async def main() -> None:
        async with atasks.connect("loopback:", namespace=namespace):
            assert await in_an_executor(add.sync, 1, 2) == 3

    asyncio.run(main())
    with pytest.raises(NotConnected, match=r"enter `with atasks.connect_sync\(\"amqp://"):
        add.sync(1, 2)


async def test_a_forked_process_has_no_part_in_it(namespace: str, add: ATask[[int, int], int]) -> None:
    async with atasks.connect("loopback:", namespace=namespace):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = ""
            try:
                thread = threading.Thread(target=lambda: os.write(write, told(add).encode()))
                thread.start()
                thread.join(60)
            finally:
                os._exit(0)
        os.close(write)
        said = await asyncio.to_thread(os.read, read, 1000)
        os.close(read)
        await asyncio.to_thread(os.waitpid, pid, 0)
    assert b"connections do not survive a fork" in said


def told(add: ATask[[int, int], int]) -> str:
    try:
        return str(add.sync(1, 2))
    except BaseException as error:
        return repr(error)
