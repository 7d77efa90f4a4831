"""A caller and workers for one test case, in a namespace of their own."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, ParamSpec, TypeVar, Unpack, overload

from atasks.codecs import Codec
from atasks.connection import use
from atasks.definitions import ATask, StreamTask
from atasks.namespaces import namespaces
from atasks.options import DecorationOptions
from atasks.router import Router, get_router
from atasks.tasks import AtaskDecorator, atask
from atasks.transport.contract import Transport
from atasks.worker.worker import Worker

__all__ = ["PATIENCE", "Site", "soon", "until"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

PATIENCE: Final = 120.0
"""Seconds after which something that a case waits for is taken to hang: machines may be busy."""


async def until(condition: Callable[[], object], what: str = "", within: float = PATIENCE) -> None:
    """Return when the condition holds; for changes that no event announces.

    `what` says what the case waits for, and `within` for how many seconds. An AssertionError repeats both if they
    pass in vain. The event loop goes on meanwhile.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"after {within:g} s still not: {what or condition}"
        await asyncio.sleep(0.005)


async def soon(awaitable: Awaitable[T]) -> T:
    """Await it, and fail the case if it hangs."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


class Site:
    """Registers atasks in a namespace of its own, and runs a caller and workers for them.

    Guarantees: `open` ends by checking that nothing is left behind: no pending call at the caller, and no call in
    hand, parked or waiting at a worker, whose slots and places in pools are all free.
    """

    def __init__(self, new_transport: Callable[[str], Transport], *, shared: bool = False) -> None:
        self.namespace = f"case-{uuid.uuid4().hex}"
        self.workers: list[Worker] = []
        self._new_transport = new_transport
        self.shares_transport = shared
        """True if one transport is both the caller's and the worker's."""
        self._caller: Transport | None = None
        self._stack: AsyncExitStack | None = None

    @property
    def router(self) -> Router:
        """The router of the namespace."""
        return get_router(self.namespace)

    @property
    def caller(self) -> Transport:
        """The caller's transport."""
        assert self._caller is not None, "open() the site first"
        return self._caller

    @property
    def worker(self) -> Worker:
        """The first worker."""
        return self.workers[0]

    @overload
    def atask(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> ATask[P, R]: ...
    @overload
    def atask(  # type: ignore[overload-overlap]  # as those of `atasks.atask`
        self, function: Callable[P, AsyncIterator[T]], /
    ) -> StreamTask[P, T]: ...
    @overload
    def atask(self, function: Callable[P, Awaitable[R]], /) -> ATask[P, R]: ...
    @overload
    def atask(self, function: Callable[P, R], /) -> ATask[P, R]: ...
    @overload
    def atask(
        self, function: None = None, /, *, name: str | None = None, **options: Unpack[DecorationOptions]
    ) -> AtaskDecorator: ...
    def atask(self, function: Any = None, /, **options: Any) -> Any:
        """`@atask`, in this site's namespace."""
        return atask(function, namespace=self.namespace, **options)

    @asynccontextmanager
    async def open(
        self, *, serve: bool = True, concurrency: int = 100, max_parked: int = 50_000, state: Any = None
    ) -> AsyncIterator[Site]:
        """Connect the caller, and serve with one worker unless told not to."""
        async with AsyncExitStack() as stack:
            self._stack = stack
            self._caller = self.new_transport()
            await use(stack, self._caller)
            if serve:
                await self.serve(concurrency=concurrency, max_parked=max_parked, state=state)
            yield self
            await self.check_quiet()
        self.workers.clear()

    def new_transport(self) -> Transport:
        """One more transport, not connected; it does not become the one that is registered in the namespace."""
        registered = getattr(namespaces.get(self.namespace), "transport", None)
        try:
            return self._new_transport(self.namespace)
        finally:
            namespaces.register(self.namespace, transport=registered)

    async def serve(
        self,
        *,
        concurrency: int = 100,
        max_parked: int = 50_000,
        threads: int | None = None,
        processes: int | None = None,
        state: Any = None,
        codec: Codec | None = None,
        queues: Sequence[str] | None = None,
    ) -> Worker:
        """Start one more worker, which drains when the site closes; `codec`: another one than the caller's."""
        assert self._stack is not None, "open() the site first"
        transport = self.caller
        if not self.shares_transport:
            transport = self.new_transport()
            await transport.connect()
            self._stack.push_async_callback(transport.disconnect)
        router = self.router if codec is None else _other_router(self.router, codec)
        worker = Worker(
            router,
            transport,
            concurrency=concurrency,
            max_parked=max_parked,
            threads=threads,
            processes=processes,
            state=state,
        )
        await worker.start(queues)
        self._stack.push_async_callback(worker.drain, 0)
        self.workers.append(worker)
        return worker

    @property
    def awaited(self) -> list[str]:
        """The names of the calls that are awaited, or are about to be submitted, everywhere."""
        transports = [self.caller, *(worker.transport for worker in self.workers)]
        return [call for transport in transports for call in _pending(transport)]

    async def check_quiet(self) -> None:
        """Fail unless every call is over, everywhere."""
        awaited = self.awaited
        assert not awaited, f"calls that are still awaited: {awaited}"
        for worker in self.workers:
            await worker.until_empty(PATIENCE)
            assert (worker.held, worker.parked, worker.unstarted) == (0, 0, 0)
            assert worker.slots.free == worker.concurrency, "a slot was not given back, or given back twice"
            for places in worker.pools.places.values():
                assert places.free == places.size, "a place was not given back, or given back twice"

    def close(self) -> None:
        """Forget the namespace."""
        namespaces.unregister(self.namespace)


def _pending(transport: Transport) -> list[str]:
    return [pending.call.task for pending in transport.pendings()]


def _other_router(router: Router, codec: Codec) -> Router:
    """A router of the same atasks with another codec, which does not become the namespace's."""

    class OtherRouter(Router):
        @property
        def codec(self) -> Codec:
            return codec

    try:
        return OtherRouter(router.namespace)
    finally:
        namespaces.register(router.namespace, router=router)
