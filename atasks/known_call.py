"""Which call a task or a coroutine awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import CoroutineType
from typing import Any, Literal

from msgspec import Struct

from atasks.caller.encoding import carried_context
from atasks.middleware import AroundCalls, Invocation
from atasks.router import Router
from atasks.wire import Call

__all__ = ["KnownCall", "call_of"]


class KnownCall(Struct, frozen=True):
    """A call, as the program knows it that awaits it."""

    id: str
    """The id of the call."""
    name: str
    """The name of its atask, on the wire."""
    state: Literal["preparing", "sent", "failed"]
    """`preparing`: its request is not handed over yet; `sent`: it is, and no answer has come; `failed`: it has
    ended in an exception."""


def call_of(awaited: asyncio.Future[Any] | Coroutine[Any, Any, Any]) -> KnownCall | None:
    """The call that a task awaits, or a coroutine that has begun: `call_of(asyncio.create_task(add(1, 2)))`.

    Args:
        awaited: A task, or a coroutine.

    Returns:
        The outermost call if a middleware makes others. A task that has ended in the exception of a call gives
        that call. None: it awaits no call, or not yet, or it has ended otherwise.

    Raises:
        TypeError: It is anything else.
    """
    if isinstance(awaited, asyncio.Task):
        if awaited.done():
            return _failed(awaited)
        coroutine: Any = awaited.get_coro()
    elif isinstance(awaited, CoroutineType):
        coroutine = awaited
    else:
        raise TypeError(f"call_of() takes a task or a coroutine, not {type(awaited).__name__}")
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and frame.f_code in _PLACES:
            found = frame.f_locals.get("call")
            if isinstance(found, Invocation):
                return KnownCall(found.id, found.name, _state(coroutine.cr_await))
            if isinstance(found, Call):
                return KnownCall(found.id, found.task, _state(coroutine))
        coroutine = getattr(coroutine, "cr_await", None)
    return None


_PLACES = {Router.send_request.__code__, AroundCalls.around.__code__}
"""The code objects whose local variable `call` is the call that is awaited."""


def _state(coroutine: Any) -> Literal["preparing", "sent"]:
    """Tell whether the request was handed over, by what the coroutine awaits in the end."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        awaited = getattr(coroutine, "cr_await", None)
        if frame is not None and frame.f_code is Router.send_request.__code__ and "call" in frame.f_locals:
            return "preparing" if getattr(awaited, "cr_code", None) is carried_context.__code__ else "sent"
        coroutine = awaited
    return "preparing"


def _failed(task: asyncio.Task[Any]) -> KnownCall | None:
    error = None if task.cancelled() else task.exception()
    call_id = getattr(error, "call_id", None)
    name = getattr(task.get_coro(), "__qualname__", "")
    return KnownCall(call_id, name, "failed") if isinstance(call_id, str) else None
