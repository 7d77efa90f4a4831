"""Types of decorated functions. Checked by `make lint`; never run."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnusedFunction=false, reportUnusedVariable=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, assert_type

from atasks import (
    ATask,
    Handle,
    Progress,
    RemoteStream,
    StreamTask,
    SyncStream,
    SyncWatchedCall,
    Transport,
    WatchedCall,
    atask,
    connect_sync,
    event,
)

T = TypeVar("T")


# -- bare, with options, as a function


@atask
async def add(a: int, b: int = 0) -> int:
    return a + b


@atask(name="renamed", namespace="math", timeout=5, queue="gpu", delivery="at_most_once", max_attempts=1)
async def scale(values: list[float], *, by: float) -> list[float]:
    return [value * by for value in values]


@atask()
async def nothing() -> None: ...


async def plain(text: str) -> bytes:
    return text.encode()


encode = atask(plain)
encode_again = atask(plain, name="again", priority=3)


# -- plain functions: awaiting gives what they return, or what that gives when it is awaited


@atask
def value(n: int) -> str:
    return str(n)


@atask(timeout=1)
def value_with_options(n: int) -> str:
    return str(n)


@atask
def future(n: int) -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@atask
def awaitable(n: int) -> Awaitable[str]:
    return future(n)


@atask
def coroutine(n: int) -> Coroutine[None, None, str]:
    return value(n)


class Shelf:
    @atask
    @staticmethod
    async def above(n: int) -> int:
        return n

    @staticmethod
    @atask
    async def below(n: int) -> int:
        return n

    @staticmethod
    @atask(timeout=5)
    async def below_with_options(n: int) -> int:
        return n


@atask
async def generic(items: list[T]) -> T:
    return items[0]


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


@atask
async def keyword_only(*numbers: int, flag: bool = False, **more: str) -> Box[int]:
    return Box(sum(numbers))


async def results() -> None:
    assert_type(await add(1), int)
    assert_type(await add(1, b=2), int)
    assert_type(await scale([1.0], by=2), list[float])
    assert_type(await nothing(), None)
    assert_type(await encode("text"), bytes)
    assert_type(await encode_again(text="text"), bytes)

    assert_type(await value(1), str)
    assert_type(await value_with_options(1), str)
    assert_type(await future(1), str)
    assert_type(await awaitable(1), str)
    assert_type(await coroutine(1), str)

    assert_type(await Shelf.above(1), int)
    assert_type(await Shelf().above(1), int)
    assert_type(await Shelf.below(1), int)
    assert_type(await Shelf().below_with_options(1), int)

    assert_type(await generic(["text"]), str)
    assert_type((await keyword_only(1, 2, flag=True, name="x")).content, int)


async def objects() -> None:
    pending: Coroutine[Any, Any, int] = add(1)
    assert_type(await pending, int)
    assert_type(add.name, str)
    assert_type(add.namespace, str)
    task: ATask[[str], bytes] = encode
    function: Callable[[int], Awaitable[str]] = value
    strict: Callable[[str], Coroutine[Any, Any, bytes]] = encode.options(timeout=1)
    assert_type(await function(1), str)
    assert_type(await task("text"), bytes)
    assert_type(await strict("text"), bytes)
    assert_type(await add.local(1, 2), int)
    assert_type(await encode.options(queue="other").local("text"), bytes)


async def composed() -> None:
    assert_type(await asyncio.gather(add(1), value(2), encode("text")), tuple[int, str, bytes])
    assert_type(await asyncio.gather(*(add(n) for n in range(3))), list[int])
    assert_type(asyncio.create_task(add(1)), asyncio.Task[int])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scale([1.0], by=2))
    assert_type(task.result(), list[float])
    assert_type(await asyncio.wait_for(add(1), timeout=1), int)
    assert_type([await done for done in asyncio.as_completed([add(1), add(2)])], list[int])


@atask(executor="thread")
def blocking(n: int) -> str:
    return str(n)


@atask(executor="process", queue="cpu")
def computing(n: int, *, rounds: int = 1) -> bytes:
    return bytes(n * rounds)


async def executors() -> None:
    assert_type(await blocking(1), str)
    assert_type(await computing(1, rounds=2), bytes)


@atask
async def counting(n: int) -> AsyncIterator[int]:
    yield n


def synchronous_streams() -> None:
    assert_type(counting.sync(3), SyncStream[int])
    assert_type(list(counting.options(timeout=1).sync(n=3)), list[int])
    with counting.sync(1) as stream:
        assert_type(next(stream), int)


async def watched_calls() -> None:
    assert_type(computing.watch(1, rounds=2), WatchedCall[bytes])
    assert_type(blocking.options(timeout=1).watch.sync(1), SyncWatchedCall[str])
    with blocking.watch.sync(1) as call:
        assert_type(list(call.progress()), list[Progress])
        assert_type(call.result(), str)


async def handles() -> None:
    handle = await computing.submit(1, rounds=2)
    assert_type(await handle, bytes)
    assert_type(await handle.done(), bool)
    assert_type([progress async for progress in handle.progress()], list[Progress])
    await handle.cancel()
    await handle.retry()
    print(await handle.step(0), await handle.step(number=1))


def synchronous_handles() -> None:
    handle = computing.submit.sync(1, rounds=2)
    assert_type(handle, Handle[bytes])
    assert_type(handle.sync(), bytes)
    assert_type(handle.done.sync(), bool)
    assert_type(list(handle.progress.sync()), list[Progress])
    handle.cancel.sync()
    handle.retry.sync()
    print(handle.step.sync(0), handle.step.sync(number=1))


def synchronous_callers() -> None:
    with connect_sync("loopback:") as transport:
        assert_type(transport, Transport)
        assert_type(add.sync(1, b=2), int)
        assert_type(encode.sync("text"), bytes)
        assert_type(value.sync(1), str)
        assert_type(future.sync(1), str)
        assert_type(nothing.sync(), None)
        assert_type(Shelf.below.sync(1), int)
        assert_type(computing.options(timeout=1).sync(1, rounds=2), bytes)
    function: Callable[[int], str] = blocking.sync
    assert_type(function(1), str)


async def apply(task: ATask[[int], T] | Callable[[int], Awaitable[T]]) -> T:
    return await task(1)


async def as_arguments() -> None:
    assert_type(await apply(value), str)
    assert_type(await apply(Shelf.below), int)


# -- streams


@atask
async def numbers(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@atask(window=10, replayable=True)
async def words(text: str, *, upper: bool = False) -> AsyncGenerator[str, None]:
    for word in text.split():
        yield word.upper() if upper else word


class Lines:
    @staticmethod
    @atask
    async def below(n: int) -> AsyncIterator[bytes]:
        yield bytes(n)


async def streams() -> None:
    task: StreamTask[[int], int] = numbers
    assert_type(task(3), RemoteStream[int])
    assert_type(numbers(3), RemoteStream[int])
    assert_type([number async for number in numbers(3)], list[int])
    async for word in words("a b", upper=True):
        assert_type(word, str)
    async with numbers.options(window=2)(n=3) as stream:
        assert_type(await anext(stream), int)
        await stream.aclose()
    assert_type([line async for line in Lines.below(3)], list[bytes])
    async for number in numbers.local(3):
        assert_type(number, int)
    iterator: AsyncIterator[str] = words("text")
    print(iterator)


# -- events


@event
async def paid(order: int, *, late: bool = False) -> None: ...


@event(name="shop.sent", namespace="shop")
async def sent(order: int) -> None: ...


@paid.on(group="billing", timeout=60)
async def bill(order: int, *, late: bool = False) -> str:
    return f"{order} {late}"


@sent.on()
def note(order: int) -> None: ...


@sent.on
async def count(order: int) -> int:
    return order


async def events() -> None:
    assert_type(await count(1), int)
    assert_type(await paid(1, late=True), None)
    assert_type(sent.sync(1), None)
    assert_type(await bill(1), str)
    assert_type(await note(1), None)
