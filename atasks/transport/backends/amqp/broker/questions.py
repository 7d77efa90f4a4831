"""Asking the broker over any channel: in bounded time, and whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from atasks.outlast import Within, apart, is_cancelled, outlast, shield
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, NoAnswer

__all__ = [
    "answered",
    "close_channel",
    "close_quietly",
    "guard",
    "named",
    "refused_with_reason",
    "shielded",
    "together",
]

T = TypeVar("T")

SETTLE_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 15.0


@asynccontextmanager
async def refused_with_reason(channel: Channel) -> AsyncIterator[None]:
    """Raise the broker's reason where it has closed the channel over something whose answer nobody awaited: the
    client library says of what is sent next only that the channel is closed."""
    try:
        yield
    except ChannelInvalidStateError as error:
        closing = channel.closing
        await asyncio.wait((closing,), timeout=SETTLE_SECONDS)
        reason = closing.exception() if closing.done() and not closing.cancelled() else None
        if isinstance(reason, AMQPError):
            raise reason from error
        raise


async def close_channel(channel: Channel) -> None:
    """Close it, also if the await is cancelled: the client library would close it a second time then, and the
    broker closes the connection over that. Raises one of `CLIENT_ERRORS`."""
    await guard(shielded(channel.close()))


async def close_quietly(channel: Channel) -> None:
    """Close it as `close_channel` does, whether or not the connection is there still."""
    with suppress(*CLIENT_ERRORS):
        await close_channel(channel)


def shielded(operation: Awaitable[T]) -> Awaitable[T]:
    """An operation that goes on when its await is cancelled: a cancelled one would close its channel. Nobody need
    come to await it. The client library's timers have its context, which is not that of a call."""
    if inspect.iscoroutine(operation):
        task: asyncio.Future[T] = apart(operation, "atasks question")
    else:
        task = asyncio.ensure_future(operation)
    outer = shield(task)
    for future in (task, outer):
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look
    return outer


async def together(*operations: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await several operations, which wait for the broker at the same time, and return what they do. Raises the
    error of the one that fails first, when all of them have ended: the others are cancelled."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            if not task.cancelling():  # a second time would cut short how it ends
                task.cancel()
        await outlast(asyncio.wait(tasks))
        raise


async def guard(operation: Awaitable[T]) -> T:
    """Await an operation of the client library, for a bounded time: a broker that comes up may leave a declaration
    without an answer. Raises one of `CLIENT_ERRORS`."""
    try:
        async with Within(ANSWER_SECONDS):
            return await named(operation)
    except TimeoutError as error:
        raise NoAnswer(f"the broker gave no answer within {ANSWER_SECONDS:g} s") from error


@asynccontextmanager
async def answered(question: str, seconds: float) -> AsyncIterator[None]:
    """Ask the broker something inside the block, which may take so many seconds. Raises NoAnswer, with the
    question, if it takes longer."""
    try:
        async with Within(min(seconds, ANSWER_SECONDS)):
            yield
    except TimeoutError as error:
        raise NoAnswer(f"the broker does not answer who wants to {question}") from error


async def named(operation: Awaitable[T]) -> T:
    """Await an operation of the client library. Its nameless ways to say that the connection is gone, a
    `CancelledError` while nobody cancelled the running task and an error of no class of its own, become a
    ConnectionError.

    A cancellation that comes meanwhile is raised, also where the library makes another error of it, or none, as it
    does while a channel closes: whoever waits for a task that was cancelled would wait for ever."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        result = await operation
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise ConnectionError("the connection to the broker was lost") from error
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        if type(error) not in (Exception, RuntimeError):
            raise
        raise ConnectionError("the connection to the broker was lost") from error
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
