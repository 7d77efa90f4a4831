"""Cancellation: whose it is, and beginning and ending things in spite of that of anyio, which repeats itself; and
tasks that outlive what begins them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Within", "apart", "begin", "ends_at", "is_cancelled", "outlast", "shield"]

T = TypeVar("T")


def is_cancelled() -> bool:
    """Return True if somebody has cancelled the running task: else a CancelledError comes from what it awaits."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def shield(awaitable: Awaitable[T]) -> asyncio.Future[T]:
    """`asyncio.shield`, but that an exception which comes when this is cancelled is not logged, because others may
    await it: from Python 3.14 on asyncio logs it as an error. A task that nobody awaits tells of its exception
    when it is collected, as ever."""
    inner = asyncio.ensure_future(awaitable)
    if inner.done():
        return inner
    outer: asyncio.Future[T] = inner.get_loop().create_future()

    def pass_on(inner: asyncio.Future[T]) -> None:
        if outer.done():  # both have ended in one turn
            _ = inner.cancelled() or inner.exception()
        elif inner.cancelled():
            outer.cancel()
        elif (error := inner.exception()) is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    inner.add_done_callback(pass_on)
    outer.add_done_callback(lambda _: inner.remove_done_callback(pass_on))  # what is shielded may live for long
    return outer


def apart(coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task of that name that may outlive the call which begins it. Its context is empty, because that of a call
    keeps the payload, and of a call nothing but carried variables travels.

    It is made without the task factory of the event loop, which may know of no `context`, or begin it at once:
    then the chain of calls would become one of stack frames, and a call would end before its `task` is known."""
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), name=name, context=Context())


def ends_at(scope: asyncio.Timeout, when: float | None) -> None:
    """Have the block of an `asyncio.timeout(None)` end at this time of the event loop; None: never.

    asyncio keeps a timer with its context until its time has come, also if it is cancelled, and the context of a
    call keeps the payload: this timer has an empty one."""
    Context().run(scope.reschedule, when)


class Within:
    """`asyncio.timeout`, for so many seconds, whose timer keeps no call. Raises TimeoutError if the block takes
    longer. No generator: where a loop ends inside the block, there would be another one to close."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        ends_at(self._scope, asyncio.get_running_loop().time() + self._seconds)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._scope.__aexit__(kind, error, traceback)


async def outlast(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in a task of its own to its end, and return or raise what it does. It must end by itself.

    However often this is cancelled meanwhile, the CancelledError is raised when it has ended, and not before.
    """
    task, cancelled = await _to_its_end(coroutine, lambda task: None)
    if cancelled is not None and (task.cancelled() or task.exception() is None):
        raise cancelled
    return task.result()


async def begin(
    coroutine: Coroutine[Any, Any, None],
    undo: Callable[[], Coroutine[Any, Any, None]],
    cancel: Callable[[asyncio.Task[None]], object] = asyncio.Task.cancel,
) -> None:
    """Run it in a task of its own, which is cancelled once, by `cancel`, however often this is: it can clean up.

    If it ends well all the same, `undo` is run to its end before the CancelledError is raised.
    """
    task, cancelled = await _to_its_end(coroutine, cancel)
    if cancelled is not None:
        if not task.cancelled() and task.exception() is None:
            await outlast(undo())
        raise cancelled
    task.result()


async def _to_its_end(
    coroutine: Coroutine[Any, Any, T], cancel: Callable[[asyncio.Task[T]], object]
) -> tuple[asyncio.Task[T], asyncio.CancelledError | None]:
    """A task that has run it and is done, and with what this was cancelled meanwhile."""
    task = asyncio.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            if cancelled is None:
                cancel(task)
            cancelled = error
    return task, cancelled
