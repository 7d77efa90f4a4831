"""Event loops with a task factory of the program: one that begins tasks at once, and one of an older signature."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

import atasks
from atasks.pipeline import filter, map
from atasks.tasks import atask
from atasks.testing import soon, until
from tests.unit.serving import idle, serve

Factory = Callable[..., Any]


def without_context(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], *, name: str | None = None
) -> asyncio.Task[Any]:
    """Python 3.14 hands the name to the factory, which earlier ones set themselves."""
    return asyncio.Task(coroutine, loop=loop, name=name)


def with_anything(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=loop, **options)


FACTORIES: dict[str, Factory] = {"without context": without_context, "with anything": with_anything}
if sys.version_info >= (3, 12):
    FACTORIES["eager"] = asyncio.eager_task_factory


@pytest.fixture(params=list(FACTORIES))
def factory(request: pytest.FixtureRequest) -> Factory:
    return FACTORIES[request.param]


@contextlib.contextmanager
def tasks_made_by(factory: Factory) -> Iterator[None]:
    """No fixture: pytest-asyncio gives its tasks a context."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        yield
    finally:
        loop.set_task_factory(None)


@pytest.mark.parametrize("depth", [1, 120, 2000])
async def test_a_chain_of_calls(factory: Factory, namespace: str, depth: int) -> None:
    @atask(namespace=namespace)
    async def chain(n: int) -> int:
        return 0 if n == 0 else 1 + await chain(n - 1)

    with tasks_made_by(factory):
        async with serve(namespace, concurrency=1) as worker:
            assert await soon(chain(depth)) == depth
            await until(lambda: idle(worker))


async def test_trees_streams_and_pipelines(factory: Factory, namespace: str) -> None:
    @atask(namespace=namespace)
    async def fib(n: int) -> int:
        if n < 2:
            return n
        return sum(await asyncio.gather(fib(n - 1), asyncio.create_task(fib(n - 2))))

    @atask(namespace=namespace)
    async def numbers(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @atask(namespace=namespace, executor="thread")
    def fib_in_thread(n: int) -> int:
        return fib.sync(n)

    def is_even(n: int) -> bool:
        return n % 2 == 0

    with tasks_made_by(factory):
        async with serve(namespace, concurrency=2) as worker:
            assert await soon(fib(9)) == 34
            assert await soon(fib_in_thread(7)) == 13
            assert [number async for number in numbers(200)] == list(range(200))
            found = await soon(_all(numbers(10) | map(fib, workers=3) | filter(is_even)))
            assert sorted(found) == [0, 2, 8, 34]
            async for number in numbers(1000) | map(fib, workers=3):
                if number:
                    break
            with pytest.raises(atasks.CallTimeout):
                await fib.options(timeout=0.01)(40)
            calls = [asyncio.create_task(fib(30)) for _ in range(3)]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            for ended in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError)
            await until(lambda: idle(worker))


async def _all(pipeline: Any) -> Any:
    return await pipeline
