"""Calling an atask: which arguments it takes, how they travel, and what asyncio makes of the call."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import atasks
from atasks.definitions import ATask
from atasks.tasks import atask


@pytest.fixture
async def connected(namespace: str) -> AsyncIterator[None]:
    async with atasks.connect("loopback:", namespace=namespace):
        yield


def signatures() -> list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    async def two(a: int, b: int = 2) -> None: ...

    async def none() -> None: ...

    async def strict(a: int, /, b: int, *, c: int, d: int = 4) -> None: ...

    async def many(a: int, *rest: int, key: int) -> None: ...

    async def unusual(self: int, name: int, function: int, check: int) -> None: ...

    return [
        (two, (), {}),
        (two, (1, 2, 3), {}),
        (two, (1,), {"a": 1}),
        (two, (1,), {"c": 1}),
        (two, (1, 2), {"b": 2}),
        (none, (1,), {}),
        (none, (), {"x": 1}),
        (strict, (1, 2), {}),
        (strict, (), {"a": 1, "b": 2, "c": 3}),
        (strict, (1, 2, 3), {"c": 3}),
        (strict, (1, 2), {"c": 3, "e": 5}),
        (many, (1, 2, 3), {}),
        (many, (), {"key": 1}),
        (unusual, (), {}),
        (unusual, (1, 2), {"names": 1}),
    ]


@pytest.mark.parametrize(("function", "args", "kwargs"), signatures())
async def test_wrong_arguments_are_pythons_own_error_at_the_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], namespace: str
) -> None:
    task = atask(function, namespace=namespace)
    with pytest.raises(TypeError) as expected:
        function(*args, **kwargs)
    with pytest.raises(TypeError) as caught:  # nothing is connected: it comes before anything is sent
        task(*args, **kwargs)
    assert str(caught.value) == str(expected.value)


async def test_arguments_travel_as_they_were_written(namespace: str) -> None:
    sent: list[Any] = []

    class Watching(atasks.PickleCodec):
        async def encode(self, obj: Any) -> bytes:
            sent.append(obj)
            return await super().encode(obj)

    Watching(namespace)

    @atask(namespace=namespace)
    async def f(a: int, b: int = 2, *rest: int, c: int = 3, **more: int) -> Any:
        return (a, b, rest, c, more)

    async with atasks.connect("loopback:", namespace=namespace):
        assert await f(1) == (1, 2, (), 3, {})
        assert await f(b=5, a=1) == (1, 5, (), 3, {})
        assert await f(1, 2, 3, c=4, name=5, self=6) == (1, 2, (3,), 4, {"name": 5, "self": 6})
    assert sent[::2] == [
        ((1,), {}),
        ((), {"b": 5, "a": 1}),
        ((1, 2, 3), {"c": 4, "name": 5, "self": 6}),
    ]


async def test_defaults_are_the_workers(namespace: str) -> None:
    """They are not sent: an object that is a default stays one object, and need not be encoded."""
    marker = object()

    @atask(namespace=namespace)
    async def is_marker(value: object = marker) -> bool:
        return value is marker

    async with atasks.connect("loopback:", namespace=namespace):
        assert await is_marker()
        assert not await is_marker(object())


async def test_parameters_of_any_name(namespace: str) -> None:
    @atask(namespace=namespace)
    async def f(name: int, options: int, function: int, self: int, task: int, call: int) -> list[int]:
        return [name, options, function, self, task, call]

    async with atasks.connect("loopback:", namespace=namespace):
        assert await f(name=1, options=2, function=3, self=4, task=5, call=6) == [1, 2, 3, 4, 5, 6]
        assert await f(1, 2, 3, 4, 5, 6) == [1, 2, 3, 4, 5, 6]


async def test_plain_functions(namespace: str) -> None:
    calls: list[str] = []

    @atask(namespace=namespace)
    def value(n: int) -> int:
        calls.append("value")
        return n + 1

    @atask(namespace=namespace)
    def future(n: int) -> asyncio.Future[int]:
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(result.set_result, n + 3)
        return result

    @atask(namespace=namespace)
    def task(n: int) -> Awaitable[int]:
        async def later() -> int:
            await asyncio.sleep(0)
            return n + 4

        return asyncio.ensure_future(later())

    @atask(namespace=namespace)
    def other(n: int) -> Awaitable[int]:
        return value(n)

    async with atasks.connect("loopback:", namespace=namespace):
        assert await value(1) == 2
        assert await future(1) == 4
        assert await task(1) == 5
        assert await other(1) == 2
        assert calls == ["value", "value"]


async def test_callables_that_are_not_functions(namespace: str) -> None:
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        async def __call__(self, m: int) -> int:
            return self.n + m

    async def add3(a: int, b: int, c: int) -> int:
        return a + b + c

    adder = atask(Adder(5), namespace=namespace, name="adder")
    partial = atask(functools.partial(add3, 1, c=3), namespace=namespace, name="partial")
    length = atask(len, namespace=namespace)
    assert length.name == "builtins.len"
    async with atasks.connect("loopback:", namespace=namespace):
        assert await adder(1) == 6
        assert await partial(2) == 6
        assert await length([1, 2]) == 2
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
            partial()
    assert all(map(inspect.iscoroutinefunction, (adder, partial, length)))


async def test_what_asyncio_composes(add: ATask[..., int], connected: None) -> None:
    coroutine = add(1, 2)
    assert asyncio.iscoroutine(coroutine)
    assert inspect.iscoroutine(coroutine)
    assert await asyncio.create_task(coroutine) == 3
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(add(n)) for n in range(3)]
    assert [task.result() for task in tasks] == [10, 11, 12]
    assert await asyncio.gather(add(1), add(2), add(a=3, b=4)) == [11, 12, 7]
    async with asyncio.timeout(60):
        assert await asyncio.wait_for(add(1), 10) == 11
    assert {await done for done in asyncio.as_completed([add(1), add(2)])} == {11, 12}
    assert await asyncio.shield(add(1)) == 11
    assert await asyncio.ensure_future(add(1)) == 11


async def test_a_call_that_is_never_awaited_does_nothing(namespace: str) -> None:
    ran: list[int] = []

    @atask(namespace=namespace)
    async def note() -> None:
        ran.append(1)

    async with atasks.connect("loopback:", namespace=namespace):
        coroutine = note()
        await asyncio.sleep(0)
        coroutine.close()
        await note()
    assert ran == [1]


async def test_timeouts_of_asyncio(namespace: str) -> None:
    cancelled = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with atasks.connect("loopback:", namespace=namespace):
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await forever()
        assert not isinstance(caught.value, atasks.CallTimeout)
        await asyncio.wait_for(cancelled.wait(), 5)
