"""The connection that calls open where nothing is connected: `connect_lazily`."""

# Private attributes: `Router._connected`: how many connections calls have opened is seen nowhere else.

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import atasks
import atasks.tracking
from atasks import (
    ConnectFailed,
    InvalidURL,
    LazyConnection,
    Limit,
    NotConnected,
    NotSupported,
    PayloadTooLarge,
    atask,
    current_call,
    event,
    get_router,
)
from atasks.definitions import ATask
from atasks.testing import soon, until

Add = ATask[[int, int], int]


@pytest.fixture
def add(namespace: str) -> Add:
    @atask(namespace=namespace)
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    return add


@pytest.fixture
def lazy(namespace: str) -> Iterator[LazyConnection]:
    connection = atasks.connect_lazily("loopback:", namespace=namespace)
    yield connection
    connection.close()


def in_thread(function: Callable[[], Any]) -> Any:
    """The result of the function in a thread without an event loop."""
    return asyncio.run(asyncio.to_thread(function))


def test_threads_and_event_loops_share_one_connection(add: Add, lazy: LazyConnection) -> None:
    assert lazy.transport is None, "nothing was called yet"
    assert add.sync(1, 2) == 3
    opened = lazy.transport
    assert asyncio.run(add(2, 3)) == 5
    assert asyncio.run(add(3, 4)) == 7
    assert in_thread(lambda: add.sync(4, 5)) == 9
    assert lazy.transport is opened


async def test_calls_at_once_open_it_once(add: Add, lazy: LazyConnection) -> None:
    calls = [asyncio.to_thread(add.sync, n, n) for n in range(10)]
    assert await soon(asyncio.gather(*calls, *(add(n, n) for n in range(10)))) == [*range(0, 20, 2)] * 2
    assert len(get_router(lazy.namespace)._connected[lazy.loop]) == 1


async def test_an_await_in_another_event_loop_is_as_any_other(add: Add, lazy: LazyConnection) -> None:
    variable = atasks.carry(ContextVar[str](lazy.namespace))
    ended = threading.Event()

    @atask(namespace=lazy.namespace)
    async def fail() -> None:
        raise KeyError(variable.get())

    @atask(namespace=lazy.namespace)
    async def nap() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    variable.set("carried")
    with pytest.raises(KeyError, match="carried"):
        await soon(fail())
    with pytest.raises(atasks.CallTimeout):
        await soon(nap.options(timeout=0.05)())
    assert await asyncio.to_thread(ended.wait, 10)
    ended.clear()
    task = asyncio.create_task(nap())
    await until(lambda: current_runs(lazy) > 0, "the run")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 10), "cancelling the await has cancelled the run"


def current_runs(lazy: LazyConnection) -> int:
    return sum(
        counts.running for counts in atasks.tracking.snapshot().workers if counts.namespace == lazy.namespace
    )


async def test_submitted_calls_and_their_handles(add: Add, lazy: LazyConnection) -> None:
    handle = await soon(add.submit(1, 2))
    assert await soon(handle) == 3
    assert await soon(handle.done())
    sync = await asyncio.to_thread(add.submit.sync, 2, 3)
    assert await soon(sync) == 5
    assert await asyncio.to_thread(handle.sync) == 3
    waits = await soon(add.options(delay=50).submit(1, 1))
    await soon(waits.cancel())
    with pytest.raises(atasks.CallCancelled):
        await soon(waits)


async def test_streams(lazy: LazyConnection) -> None:
    closed = threading.Event()

    @atask(namespace=lazy.namespace)
    async def numbers(count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
            raise KeyError("end")
        finally:
            closed.set()

    count = 0
    with pytest.raises(KeyError, match="end"):
        async for number in numbers(100):
            assert number == count
            count += 1
    assert count == 100
    closed.clear()
    async for number in numbers(10**9):
        if number == 3:
            break
    assert await asyncio.to_thread(closed.wait, 10), "leaving the loop has closed the generator"
    stream = numbers(2)
    await soon(anext(stream))
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert await asyncio.to_thread(lambda: next(iter(numbers.sync(5)))) == 0


async def test_middlewares_see_calls_and_streams_once(add: Add, lazy: LazyConnection) -> None:
    class Noting(atasks.Middleware):
        async def call(self, call: atasks.Invocation, proceed: Callable[[], Any]) -> Any:
            noted.append(call.queue)
            return await proceed()

    @atask(namespace=lazy.namespace)
    async def numbers() -> AsyncIterator[int]:
        yield 1

    noted: list[str] = []
    atasks.use(Noting(), lazy.namespace)
    assert await soon(add(1, 2)) == 3
    assert [number async for number in numbers()] == [1]
    assert await soon(await soon(add.submit(1, 2))) == 3
    assert noted == ["default"] * 3


async def test_reports_come_to_whoever_watches_from_another_event_loop(lazy: LazyConnection) -> None:
    @atask(namespace=lazy.namespace)
    async def count(n: int) -> int:
        for number in range(n):
            current_call().report(number + 1, n)
            await asyncio.sleep(0.15)
        return n

    async with count.watch(3) as call:
        heard = [report.done async for report in call.progress()]
        assert await soon(call) == 3
    assert heard == sorted(heard)
    assert heard[-1] == 3
    handle = await soon(count.submit(1))
    with pytest.raises(NotSupported, match="connection of this event loop"):
        async for _ in handle.progress():
            pass
    assert await soon(handle) == 1


async def test_events_limits_and_schedules(add: Add, lazy: LazyConnection) -> None:
    heard = threading.Event()

    @event(namespace=lazy.namespace)
    async def paid(order: int) -> None: ...

    @paid.on(group="bill")
    async def bill(order: int) -> None:
        heard.set()

    await soon(paid(7))
    assert await asyncio.to_thread(heard.wait, 60)
    limit = Limit("lazy", at_once=1, namespace=lazy.namespace)
    for _ in range(3):  # each gives its token back
        async with asyncio.timeout(60), limit:
            pass
    await atasks.schedule("hourly", add, (1, 2), every=3600.0)
    assert [found.name for found in await atasks.schedules(namespace=lazy.namespace)] == ["hourly"]


async def test_what_is_too_large_is_refused(
    add: Add, lazy: LazyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await soon(add(1, 2)) == 3
    monkeypatch.setattr(lazy.transport, "max_payload", 10)
    with pytest.raises(PayloadTooLarge, match="bytes, over the limit of 10"):
        await soon(add(10**30, 2))
    with pytest.raises(PayloadTooLarge, match="bytes, over the limit of 10"):
        await soon(add.submit(10**30, 2))


async def test_blocks_and_runs_come_before_it(add: Add, lazy: LazyConnection) -> None:
    @atask(namespace=lazy.namespace, executor="thread")
    def outer() -> tuple[int, bool]:
        return add.sync(1, 2), current_call().id is not None

    async with atasks.connect("loopback:", namespace=lazy.namespace):
        assert await soon(add(1, 2)) == 3
        assert await soon(outer()) == (3, True)
        assert await asyncio.to_thread(add.sync, 2, 3) == 5
        assert lazy.transport is None
    await soon(add(1, 2))
    assert lazy.transport is not None


async def test_a_connection_that_fails_is_tried_again_by_the_next_call(add: Add, namespace: str) -> None:
    lazy = atasks.connect_lazily("amqp://127.0.0.1:1/", namespace=namespace, timeout=5)
    for _ in range(2):
        with pytest.raises(ConnectFailed):
            await soon(add(1, 2))
    with pytest.raises(ConnectFailed):
        await asyncio.to_thread(add.sync, 1, 2)
    await asyncio.to_thread(lazy.close)
    later = atasks.connect_lazily("loopback:", namespace=namespace)
    assert await soon(add(1, 2)) == 3
    await asyncio.to_thread(later.close)
    assert later.transport is None
    assert await soon(add(1, 2)) == 3, "it is opened again"
    await asyncio.to_thread(later.close)


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("nowhere", {}, InvalidURL),
        ("redis://localhost/", {}, InvalidURL),
        ("loopback:", {"prefxi": "a"}, TypeError),
        ("amqp://localhost/", {"workers": 2}, TypeError),
        (5, {}, TypeError),
    ],
)
def test_nonsense_is_refused_at_once(url: Any, options: Any, error: type[Exception], namespace: str) -> None:
    with pytest.raises(error):
        atasks.connect_lazily(url, namespace=namespace, **options)


# -- without waiting


async def test_calls_that_are_submitted_soon(add: Add, lazy: LazyConnection) -> None:
    ran: list[int] = []

    @atask(namespace=lazy.namespace)
    async def note(number: int) -> None:
        ran.append(number)

    note.submit.soon(1)
    await asyncio.to_thread(note.submit.soon, 2)
    await asyncio.to_thread(asyncio.run, _soon(note, 3))
    async with atasks.connect("loopback:", namespace=lazy.namespace):
        note.submit.soon(4)
        await until(lambda: 4 in ran, "the call in the block")
    await until(lambda: sorted(ran) == [1, 2, 3, 4], "all of them")
    with pytest.raises(TypeError, match="missing"):
        note.submit.soon()  # type: ignore[call-arg]


async def _soon(task: ATask[[int], None], number: int) -> None:
    task.submit.soon(number)  # this event loop ends at once, and the call is not lost with it


async def test_one_that_cannot_be_submitted_is_logged_once(
    lazy: LazyConnection, caplog: pytest.LogCaptureFixture
) -> None:
    @atask(namespace=lazy.namespace)
    async def note(it: Any) -> None: ...

    with caplog.at_level(logging.ERROR):
        note.submit.soon(threading.Lock())
        await until(lambda: caplog.records, "the line")
        await soon(note(1))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"a submitted call of {note.name} was not sent, and will not run (EncodeError"
    )


def test_without_a_connection_nothing_is_handed_over(add: Add) -> None:
    with pytest.raises(NotConnected, match="connect_sync"):
        add.submit.soon(1, 2)


def test_a_connection_that_is_left_waits_for_what_was_handed_over(namespace: str) -> None:
    ran: list[int] = []

    @atask(namespace=namespace)
    async def note(number: int) -> None:
        ran.append(number)

    class Slow(atasks.Middleware):
        async def call(self, call: atasks.Invocation, proceed: Callable[[], Any]) -> Any:
            await asyncio.sleep(0.1)
            handle = await proceed()
            safe.append(handle.id)
            return handle

    safe: list[str] = []
    atasks.use(Slow(), namespace)
    with atasks.connect_sync("loopback:", namespace=namespace):
        note.submit.soon(1)
    assert len(safe) == 1


def test_on_commit_needs_a_framework(add: Add, lazy: LazyConnection) -> None:
    with pytest.raises(NotSupported, match=r"atasks\.contrib\.django"):
        add.on_commit(1, 2)
    with pytest.raises(TypeError, match="missing"):
        add.on_commit(1)  # type: ignore[call-arg]


# -- processes


def test_a_forked_process_connects_itself(script: Callable[..., str]) -> None:
    out = script(
        """
        import asyncio, os, warnings
        import atasks

        warnings.simplefilter("ignore")  # of forks with threads

        @atasks.atask
        async def pid() -> int:
            return os.getpid()

        atasks.connect_lazily("loopback:")
        assert pid.sync() == os.getpid()
        child = os.fork()
        if not child:
            assert pid.sync() == os.getpid() == asyncio.run(pid())
            print("child", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert pid.sync() == os.getpid()
        print("parent")
        """
    )
    assert out.split() == ["child", "parent"]
