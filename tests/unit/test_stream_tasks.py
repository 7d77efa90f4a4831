"""Atasks of async generator functions."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import pickle
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

import atasks
from atasks import ATask, NotConnected, NotSupported, RemoteStream, Router, StreamTask, atask


@atask(namespace="tests-streams")
async def module_level(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


class Shelf:
    @atask(namespace="tests-streams")
    @staticmethod
    async def above(n: int) -> AsyncIterator[int]:
        yield n

    @staticmethod
    @atask(namespace="tests-streams", window=3)
    async def below(n: int) -> AsyncIterator[int]:
        yield n


@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction.*:DeprecationWarning")  # asyncio's, from 3.14 on
def test_it_looks_like_an_async_generator_function() -> None:
    for task in (module_level, module_level.options(window=2), Shelf.above, Shelf.below):
        assert isinstance(task, StreamTask)
        assert not isinstance(task, ATask)
        anything: Any = task
        assert inspect.isasyncgenfunction(anything)
        assert not inspect.iscoroutinefunction(anything)
        assert not asyncio.iscoroutinefunction(anything)
        assert str(inspect.signature(task)) == "(n: 'int') -> 'AsyncIterator[int]'"


def test_it_pickles_as_a_reference() -> None:
    assert pickle.loads(pickle.dumps(module_level)) is module_level
    view = pickle.loads(pickle.dumps(module_level.options(window=7)))
    assert isinstance(view, StreamTask)
    assert view.task_options == module_level.options(window=7).task_options


def test_wrong_arguments_are_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match=r"module_level\(\) missing 1 required positional argument: 'n'"):
        module_level()  # type: ignore[call-arg]


def test_a_stream_cannot_outlive_its_caller(namespace: str) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ValueError, match="orphan='run' is not for a stream"):
        atask(numbers, namespace=namespace, orphan="run")
    with pytest.raises(ValueError, match="orphan='run' is not for a stream"):
        module_level.options(orphan="run")


async def test_partials_are_streams(namespace: str) -> None:
    async def numbers(first: int, n: int) -> AsyncIterator[int]:
        for number in range(first, first + n):
            yield number

    task = atask(functools.partial(numbers, 5), name="numbers", namespace=namespace)
    assert isinstance(task, StreamTask)
    async with atasks.connect(namespace=namespace):
        assert [number async for number in task(3)] == [5, 6, 7]


async def test_it_needs_a_transport_when_it_begins(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        yield 1

    stream = numbers()
    assert repr(stream) == f"<remote stream {numbers.name!r}>"
    with pytest.raises(NotConnected, match="connect"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_minimal_transport_refuses(namespace: str) -> None:
    class Minimal(atasks.Transport):
        async def connect(self) -> None: ...

        async def disconnect(self) -> None: ...

        async def send_request(self, name: str, content: bytes) -> bytes:
            raise AssertionError("nothing is to be sent")

    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        yield 1

    Minimal(namespace)
    with pytest.raises(NotSupported, match="Minimal moves no streams"):
        await anext(numbers())


async def test_a_router_may_override_streams(namespace: str) -> None:
    class Doubling(Router):
        def stream(self, name: str, /, *args: Any, **kwargs: Any) -> RemoteStream[Any]:
            return super().stream(name, *[2 * arg for arg in args], **kwargs)

    Doubling(namespace)

    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    async with atasks.connect(namespace=namespace):
        assert [number async for number in numbers(2)] == [0, 1, 2, 3]


async def test_a_stream_ends_with_its_transport(namespace: str) -> None:
    @atask(namespace=namespace, window=4)
    async def numbers() -> AsyncIterator[int]:
        for number in range(1000):
            yield number

    stream = numbers()
    async with atasks.connect(namespace=namespace):
        assert await anext(stream) == 0
    items = []
    with pytest.raises(atasks.CallConnectionLost, match="disconnected"):
        async for item in stream:
            items.append(item)  # noqa: PERF401  # those that arrived come first
    assert items == list(range(1, 1 + len(items)))
    assert len(items) <= 4


async def test_memory_is_flat_over_many_items(namespace: str) -> None:
    @atask(namespace=namespace)
    async def blocks(n: int) -> AsyncIterator[bytes]:
        for _ in range(n):
            yield bytes(200)

    async def read(n: int) -> int:
        count = 0
        async for _ in blocks(n):
            count += 1
        gc.collect()
        return count

    async with atasks.connect(namespace=namespace):
        assert await read(10_000) == 10_000
        before = psutil.Process().memory_info().rss
        assert await read(200_000) == 200_000
        assert psutil.Process().memory_info().rss - before < 20 * 2**20  # they have 40 MB


def test_a_stream_that_outlives_its_event_loop_is_silent(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        while True:
            yield 1

    kept: list[RemoteStream[int]] = []

    async def begin() -> None:
        async with atasks.connect(namespace=namespace):
            kept.append(numbers())
            await anext(kept[0])

    asyncio.run(begin())
    kept.clear()
    gc.collect()
