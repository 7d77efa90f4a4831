"""Ids of calls, as the program sees them that awaits: `call_of`, `call_id`, and the names of pending tasks."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from atasks import (
    CallError,
    CallTimeout,
    Invocation,
    Middleware,
    NotConnected,
    Router,
    atask,
    call_of,
    connect,
    current_call,
    use,
)
from atasks.testing import soon


class Slotted(Exception):
    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Numbered(Exception):
    def __init__(self, call_id: str) -> None:
        super().__init__(call_id)
        self.call_id = call_id


@pytest.mark.parametrize("around", [False, True])
async def test_the_call_of_a_task(namespace: str, around: bool) -> None:
    ids: list[str | None] = []
    began, gate = asyncio.Event(), asyncio.Event()

    @atask(namespace=namespace)
    async def wait(fail: bool) -> None:
        ids.append(current_call().id)
        began.set()
        await gate.wait()
        if fail:
            raise KeyError

    class Slow(Middleware):
        async def call(self, call: Invocation, proceed: Callable[[], Awaitable[Any]]) -> Any:
            await asyncio.sleep(0)
            return await proceed()

    if around:
        use(Slow(), namespace)

    async def inside() -> None:
        await wait(False)

    async with connect("loopback:", namespace=namespace):
        tasks: list[asyncio.Task[None]] = []
        for coroutine in (wait(False), wait(True), inside()):
            assert call_of(coroutine) is None, "it has not begun"
            task: asyncio.Task[None] = asyncio.create_task(coroutine)  # type: ignore[arg-type]
            assert call_of(task) is None
            tasks.append(task)
            await soon(began.wait())
            began.clear()
            known = call_of(task)
            assert known == call_of(coroutine)
            assert known is not None
            assert (known.id, known.name, known.state) == (ids[-1], wait.name, "sent")
        gate.set()
        await soon(asyncio.wait(tasks))
        assert call_of(tasks[0]) is None
        failed = call_of(tasks[1])
        assert failed is not None
        assert (failed.id, failed.name, failed.state) == (ids[1], wait.name, "failed")
        assert isinstance(tasks[1].exception(), KeyError)
    other: list[Any] = [wait, 1, asyncio.get_running_loop().create_future()]
    for wrong in other:
        with pytest.raises(TypeError, match="a task or a coroutine"):
            call_of(wrong)


async def test_exceptions_have_the_id_of_their_call(namespace: str) -> None:
    ids: dict[str, str | None] = {}

    @atask(namespace=namespace)
    async def fail(how: str) -> None:
        ids["fail"] = current_call().id
        if how == "slotted":
            raise Slotted
        if how == "numbered":
            raise Numbered("mine")
        if how == "wait":
            await asyncio.Event().wait()
        raise KeyError

    @atask(namespace=namespace)
    async def outer() -> None:
        ids["outer"] = current_call().id
        await fail("")

    @atask(namespace=namespace)
    async def stream() -> AsyncIterator[int]:
        ids["fail"] = current_call().id
        yield 1
        raise KeyError

    async with connect("loopback:", namespace=namespace):
        for coroutine, kind in (
            (fail(""), KeyError),
            (outer(), KeyError),
            (fail.options(timeout=1.0)("wait"), CallTimeout),  # time enough to begin
        ):
            with pytest.raises(kind) as caught:
                await soon(coroutine)
            assert caught.value.call_id == ids["fail"]
        with pytest.raises(Slotted):
            await soon(fail("slotted"))
        with pytest.raises(Numbered) as numbered:
            await soon(fail("numbered"))
        assert numbered.value.call_id == "mine"
        with pytest.raises(KeyError) as caught:
            async for _ in stream():
                pass
        assert caught.value.call_id == ids["fail"]
    assert CallError().call_id is None
    with pytest.raises(NotConnected):
        await fail("")


async def test_exceptions_of_streams_and_of_submitted_calls_have_the_id_too(namespace: str) -> None:
    ids: dict[str, str | None] = {}

    @atask(namespace=namespace)
    async def wait(name: str) -> None:
        ids[name] = current_call().id
        await asyncio.Event().wait()

    @atask(namespace=namespace)
    async def items() -> AsyncIterator[int]:
        ids["items"] = current_call().id
        yield 1
        await asyncio.Event().wait()

    async with connect("loopback:", namespace=namespace):
        with pytest.raises(CallTimeout) as caught:
            async for _ in items.options(timeout=0.5)():
                pass
        assert caught.value.call_id == ids["items"]
        handle = await wait.options(timeout=0.5).submit("submitted")
        with pytest.raises(CallTimeout) as caught:
            await soon(handle)
        assert caught.value.call_id == ids["submitted"]


async def test_pending_calls_are_named(namespace: str) -> None:
    began = asyncio.Event()

    @atask(namespace=namespace, name="shop.sell")
    async def sell(fail: bool = True) -> None:
        began.set()
        if fail:
            raise KeyError
        await asyncio.Event().wait()

    async with connect("loopback:", namespace=namespace):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sell()
            gc.collect()
        assert [str(warning.message) for warning in caught] == ["coroutine 'shop.sell' was never awaited"]
        task = asyncio.create_task(sell(False))  # type: ignore[arg-type]
        await soon(began.wait())
        assert "coro=<shop.sell() running at " in repr(task)
        assert task in asyncio.all_tasks()
        task.cancel()
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        failed = asyncio.create_task(sell())  # type: ignore[arg-type]
        await soon(asyncio.wait([failed]))
        del failed
        gc.collect()
        assert "coro=<shop.sell() done" in repr(told[0]["future"])


async def test_a_router_may_return_any_awaitable(namespace: str) -> None:
    class Own(Router):
        def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
            future = asyncio.get_running_loop().create_future()
            future.set_result(7)
            return future

    Own(namespace)

    @atask(namespace=namespace)
    async def nothing() -> int:
        return 1

    assert await nothing() == 7
