"""One connection of a process, opened by the first call that finds none: `atasks.connect_lazily`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, Unpack

from atasks.caller.background import Background, enter_background, run_in
from atasks.connection import connect
from atasks.namespaces import namespaces
from atasks.options import ConnectOptions, validate_queue
from atasks.outlast import shield
from atasks.router import get_router
from atasks.schemes import check_options
from atasks.transport.bridge import Bridge
from atasks.transport.contract import Transport

__all__ = ["LazyConnection", "connect_lazily"]

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, T]]


def connect_lazily(
    url: str | Sequence[str] = "loopback:", *, namespace: str = "default", **options: Unpack[ConnectOptions]
) -> LazyConnection:
    """Let calls of the namespace connect by themselves, from now on, and return the connection, which is not open.

    The first call that is made where nothing is connected opens it, in whatever thread or event loop; it serves
    all such calls of the process, and is closed when the program ends: awaits in any event loop, `.sync` in any
    thread, `submit.soon`. `connect` and `serve` blocks come before it, and so does the worker inside a call. A
    process that is forked opens one of its own. Saying it again replaces what was said before.

    Args:
        url: As for `connect`.
        namespace: The namespace whose calls use it.
        **options: Those of `connect`.

    Returns:
        The connection; its `close()` closes it, until the next call.

    Raises:
        InvalidURL: The URL names no transport. At once; what connecting raises, the calls raise, and the next one
            tries again.
        TypeError: An option is unknown, or this transport cannot honour it.
    """
    validate_queue(namespace, "namespace")
    check_options(url, options)
    get_router(namespace)
    lazy = LazyConnection(url, namespace, options)
    namespaces.register(namespace, lazy=lazy)
    return lazy


class LazyConnection:
    """The connection of a process that calls use where nothing else is connected."""

    def __init__(self, url: str | Sequence[str], namespace: str, options: ConnectOptions) -> None:
        self.url = url
        self.namespace = namespace
        self.options = options
        self._bridge = Bridge(self, namespace, options.get("queue", "default"))
        self._place: _Place | None = None

    @property
    def bridge(self) -> Transport:
        """The transport for event loops that have none."""
        return self._bridge

    @property
    def transport(self) -> Transport | None:
        """The transport, while it is open in this process; None: it is not."""
        place = self._place
        return None if place is None or place.pid != os.getpid() else place.transport

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop in which it is opened, in a thread of its own, started now if there was none."""
        return self._here().background.loop

    async def forward(self, make: Make[T]) -> T:
        """Run the coroutine of `make` in the connection's event loop, once it is open; returns and raises as it
        does, and raises what connecting raises. Cancelling this cancels it."""
        loop = self.loop
        if loop is asyncio.get_running_loop():
            return await self.within(make)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.within(make), loop))

    def handed_over(self) -> None:
        """Called when a call was handed over to it that nobody waits for. Does nothing here."""

    async def enter(self) -> tuple[AbstractAsyncContextManager[Any], Transport]:
        """Connect, and return the block, which is entered, and its transport. Raises what connecting raises."""
        manager = connect(self.url, namespace=self.namespace, **self.options)
        return manager, await manager.__aenter__()

    def run(self, make: Make[T]) -> T:
        """Run it so for a thread, which waits."""
        return run_in(self.loop, lambda: self.within(make))

    async def within(self, make: Make[T]) -> T:
        """Run it so in the connection's own event loop."""
        await self._here().open(self)
        return await make()

    def close(self) -> None:
        """Close it, from a thread without an event loop. Does nothing if it is not open; the next call opens it
        again."""
        with _lock:
            place, self._place = self._place, None
        if place is not None and place.pid == os.getpid():
            run_in(place.background.loop, place.close)
            place.background.leave()

    def _here(self) -> _Place:
        with _lock:
            place = self._place
            if place is None or place.pid != os.getpid():  # the parent's event loop does not run in its child
                place = self._place = _Place(enter_background())
            return place


class _Place:
    """The connection in one process."""

    def __init__(self, background: Background) -> None:
        self.pid = os.getpid()
        self.background = background
        self.transport: Transport | None = None
        self._manager: AbstractAsyncContextManager[Any] | None = None
        self._opening: asyncio.Task[None] | None = None

    async def open(self, lazy: LazyConnection) -> None:
        """Return when it is open. Raises what connecting raises."""
        if self.transport is not None and self.transport.usable(asyncio.get_running_loop()):
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(lazy), name="atasks connecting")
        await shield(self._opening)

    async def _open(self, lazy: LazyConnection) -> None:
        await self.close()  # a connection that was lost for good
        self._manager, self.transport = await lazy.enter()
        self.background.open.append(self._manager)

    async def close(self) -> None:
        """Close what is open."""
        manager, self._manager, self.transport = self._manager, None, None
        if manager is not None and self.background.take_back(manager):
            await manager.__aexit__(None, None, None)


_lock = threading.Lock()


def _after_fork() -> None:
    """A lock that another thread of the parent held would stay locked."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
