"""The middleware around each call: connections to the database, the language, and the time zone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta, tzinfo
from datetime import timezone as fixed
from typing import Any, Final
from zoneinfo import ZoneInfo

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, _restore_context
from django.core.cache import caches
from django.db import close_old_connections, connections, reset_queries
from django.utils import timezone, translation

from atasks import Invocation, Middleware
from atasks.outlast import shield

__all__ = ["CallThread", "DjangoMiddleware"]

LANGUAGE: Final = "django-language"
ZONE: Final = "django-time-zone"

Proceed = Callable[[], Awaitable[Any]]

in_test: Executor | None = None
"""The thread of a test, in which blocking code runs; None: there is no test."""


class DjangoMiddleware(Middleware):
    """Does around a call what Django does around a request.

    Blocking code that a call reaches by `sync_to_async`, the ORM's asynchronous methods included, has a thread of
    its own for the call, and so connections of its own, which are closed when the call has ended. Functions of
    `executor="thread"` and `"process"` have the connections of their thread, of which those that are old or broken
    are closed before and after. Language and time zone are those of the caller.
    """

    async def call(self, call: Invocation, proceed: Proceed) -> Any:
        """Send language and time zone along."""
        _adopt_context()
        call.headers[LANGUAGE] = translation.get_language() or ""
        zone = _name(timezone.get_current_timezone())
        if zone is not None:
            call.headers[ZONE] = zone
        return await proceed()

    async def run(self, call: Invocation, proceed: Proceed) -> Any:
        """Run the call with a thread of its own for blocking code."""
        _activate(call)
        thread = CallThread()
        thread.enter()
        try:
            result = await proceed()
        except asyncio.CancelledError:
            thread.abandon()
            raise
        except BaseException:
            await thread.leave()
            raise
        if hasattr(type(result), "__aiter__"):
            return _items(thread, result)
        await thread.leave()
        return result

    def run_blocking(self, call: Invocation, proceed: Callable[[], Any]) -> Any:
        """Run a blocking function with connections that work."""
        if in_test is not None:
            return in_test.submit(contextvars.copy_context().run, _in_test, proceed).result()
        _adopt_context()
        close_old_connections()
        reset_queries()
        try:
            return proceed()
        finally:
            close_old_connections()
            caches.close_all()


def _in_test(proceed: Callable[[], Any]) -> Any:
    _adopt_context()
    return proceed()


def _adopt_context() -> None:
    """Let this thread see the language and the like of its context: asgiref hides what another thread has set."""
    _restore_context(contextvars.copy_context())


class CallThread(ThreadSensitiveContext):
    """The thread in which the blocking code of one call runs. It is started when the call needs it.

    As asgiref's own context, but that its end keeps no event loop waiting for a query that nobody awaits.
    """

    def enter(self) -> None:
        """Use it in the current context; in a test, the test's own thread in its place."""
        SyncToAsync.thread_sensitive_context.set(self)
        if in_test is not None:
            SyncToAsync.context_to_thread_executor[self] = in_test

    async def leave(self) -> None:
        """Close its connections, and end it."""
        closed = self.abandon()
        if closed is not None:
            await shield(closed)  # a cancellation would take it from the thread before it has begun

    def abandon(self) -> asyncio.Future[None] | None:
        """Have its connections closed and itself ended when it has done what it does. None: there is no thread."""
        executor = SyncToAsync.context_to_thread_executor.pop(self, None)
        if not isinstance(executor, ThreadPoolExecutor):
            return None
        closed = executor.submit(contextvars.copy_context().run, _close)
        executor.shutdown(wait=False)
        return asyncio.wrap_future(closed)


def _close() -> None:
    """Close what this thread has open: it ends."""
    connections.close_all()
    caches.close_all()


async def _items(thread: CallThread, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for item in stream:
            yield item
    except (asyncio.CancelledError, GeneratorExit):
        thread.abandon()
        raise
    except BaseException:
        await thread.leave()
        raise
    await thread.leave()


def _activate(call: Invocation) -> None:
    """Make the language and the time zone of the caller those of the run, as far as they are known here."""
    language = call.headers.get(LANGUAGE)
    if language == "":
        translation.deactivate_all()
    elif language is not None and translation.check_for_language(language):
        translation.activate(language)
    zone = _zone(call.headers.get(ZONE))
    if zone is not None:
        timezone.activate(zone)


def _name(zone: tzinfo) -> str | None:
    """The name of a time zone, or its seconds from UTC; None: it has neither."""
    key = getattr(zone, "key", None) or getattr(zone, "zone", None)  # `zone` is pytz's word
    if isinstance(key, str):
        return key
    offset = zone.utcoffset(None)
    return None if offset is None else f"{offset.total_seconds():+.0f}"


def _zone(name: str | None) -> tzinfo | None:
    """The time zone of that name; None: it is not known here."""
    if not name:
        return None
    try:
        return fixed(timedelta(seconds=int(name))) if name[0] in "+-" else ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # ZoneInfo looks for a file
        return None
