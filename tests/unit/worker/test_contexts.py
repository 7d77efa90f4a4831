"""The context of a call has the call, and so its payload: nothing that outlives the call may keep that context."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

import atasks
from atasks import Invocation, Limit, Middleware, Transport, use, wire
from atasks.options import TaskOptions
from atasks.tasks import atask
from atasks.testing import until
from atasks.worker.held_call import HeldCall
from atasks.worker.worker import Worker

HOUR = 3600.0


@pytest.fixture
async def worker(namespace: str) -> AsyncIterator[Worker]:
    async with atasks.serve("loopback:", namespace=namespace, concurrency=1) as worker:
        yield worker


def kept(worker: Worker) -> list[HeldCall]:
    """The calls of this worker that are in memory, whoever keeps them."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is HeldCall and each.worker is worker]


class Passing(Middleware):
    """Does nothing, in the time of the call."""

    async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
        return await proceed()


def below(number: int) -> range:
    return range(number)


async def test_no_ended_call_is_kept_for_a_deadline_of_another_one(worker: Worker, namespace: str) -> None:
    """asyncio keeps a timer that was cancelled, with its context, while others come before it."""

    @atask(namespace=namespace, timeout=HOUR)
    async def inner() -> None: ...

    @atask(namespace=namespace)
    async def outer() -> None:
        await inner()

    async with asyncio.timeout(HOUR / 2):  # a timer that comes before those
        await outer()
        await asyncio.gather(inner(), inner(), inner())
        await until(lambda: not kept(worker), "nobody keeps a call")


async def test_no_ended_call_is_kept_for_what_it_began(worker: Worker, namespace: str) -> None:
    @atask(namespace=namespace)
    async def inner() -> None: ...

    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        yield 1

    @atask(namespace=namespace)
    async def submits() -> None:
        await inner.submit()

    @atask(namespace=namespace)
    async def reads() -> None:
        assert [number async for number in numbers()] == [1]

    blocking = atask(executor="process", namespace=namespace)(below)
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [submits, reads, partial(blocking, 3)]
    for call in calls:
        await call()
        await until(lambda: not kept(worker), f"nobody keeps a call of {call}")


@pytest.mark.parametrize("over", ["loopback", "unix"])
async def test_no_ended_call_is_kept_for_what_is_to_come_later(over: str, namespace: str, tmp_path: Path) -> None:
    """Looking for a call that another one awaits, the beginning of a submitted one, the end of the time that a
    middleware has, and that of a record, and the next token of a rate come later."""

    @atask(namespace=namespace)
    async def inner() -> None: ...

    @atask(namespace=namespace)
    async def awaits() -> None:
        await inner()

    @atask(namespace=namespace)
    async def submits() -> None:
        await inner.options(delay=HOUR).submit()

    @atask(namespace=namespace)
    async def awaits_for_an_hour() -> None:
        await inner.options(timeout=HOUR)()

    @atask(namespace=namespace)
    async def awaits_a_record() -> None:
        await (await inner.submit())

    @atask(namespace=namespace, limit=Limit("rate", per_second=1 / HOUR, period=HOUR, namespace=namespace))
    async def rated() -> None: ...

    @atask(namespace=namespace)
    async def gives_up() -> None:
        await rated()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await rated()

    url = "loopback:" if over == "loopback" else f"unix://{tmp_path}/hub"
    async with atasks.serve(url, namespace=namespace, concurrency=2) as worker, asyncio.timeout(HOUR / 2):
        await awaits()
        use(Passing(), namespace)
        for call in (awaits, submits, awaits_for_an_hour, awaits_a_record, gives_up):
            await call()
            await until(lambda: not kept(worker), f"nobody keeps a call of {call.name}", within=5)


async def test_no_ended_call_is_kept_for_the_deadline_of_a_transport_of_ones_own() -> None:
    class Call:
        """Stands for the payload, which the context of a call has."""

    class Answering(Transport):
        async def send_request(self, task_name: str, request: bytes) -> bytes:
            (call,) = wire.decode(request)
            assert isinstance(call, wire.Call)
            return wire.encode([wire.Reply(wire.VERSION, call.id, wire.Status.VALUE, b"")])

    transport = Answering()
    held: ContextVar[object] = ContextVar("call")

    async def calls() -> ref[Call]:
        held.set(call := Call())
        made = wire.Call(wire.VERSION, "1", "t", b"", "msgpack", timeout_ms=int(HOUR * 1000))
        await transport.request(made, TaskOptions())
        return ref(call)

    async with asyncio.timeout(HOUR / 2):
        of_call = await asyncio.create_task(calls())
        await until(lambda: of_call() is None, "nobody keeps the call", within=5)
