"""`connect` and `serve`: a transport for the running event loop, by URL."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from atasks.blocks import Block
from atasks.errors import InvalidURL, closest
from atasks.namespaces import namespaces
from atasks.router import get_router
from atasks.transport.base import Transport, get_transport
from atasks.worker import Worker

__all__ = ["connect", "serve"]

TRANSPORTS: Final = {
    "loopback": "atasks.transport.base:LoopbackTransport",
    "amqp": "atasks.transport.backends.amqp:AMQPTransport",
    "amqps": "atasks.transport.backends.amqp:AMQPTransport",
    "unix": "atasks.transport.backends.local:LocalTransport",
    "local": "atasks.transport.backends.local:LocalTransport",
}
"""URL scheme -> the transport's class."""

Lifespan = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def connect(
    url: str | Sequence[str] = "loopback:", *, namespace: str = "default", **options: Any
) -> AsyncIterator[Transport]:
    """Await atasks of the namespace over this transport, inside this block.

    `url`: "loopback:" (calls run in this process), "local:" (on worker processes of this program),
    "unix:///run/app.sock" (on those of a server on this host) or "amqp://user:password@host:port/vhost" (on
    workers anywhere). Several URLs are those of the nodes of one broker, to be tried in turn. `options` are those
    of the transport's class.

    The block is that of the task that enters it, and of the tasks that are started in it; a nested one shadows the
    outer one. Other tasks of this event loop use the block of the loop that was entered first.

    Guarantees: awaits that are pending when the block ends are ended with `CallConnectionLost`. It may be left by
    another task than the one that entered it, and before the blocks inside it.

    Raises InvalidURL, ConnectFailed, AccessRefused, ListenFailed, WorkersFailed.
    """
    transport = _make(url, namespace, options)
    async with _connected(transport):
        if _scheme(url) != "loopback":
            yield transport
            return
        worker = Worker(get_router(namespace), transport)
        await worker.start()
        try:
            yield transport
        finally:
            await worker.drain(grace=0)


@asynccontextmanager
async def serve(
    url: str | Sequence[str],
    *,
    namespace: str = "default",
    queues: Sequence[str] | None = None,
    concurrency: int = 100,
    max_parked: int = 50_000,
    threads: int | None = None,
    processes: int | None = None,
    lifespan: Lifespan | None = None,
    grace: float = 30.0,
    **options: Any,
) -> AsyncIterator[Worker]:
    """Serve the atasks of the namespace inside this block, for embedding a worker in a program.

    `queues` are the work queues to serve (None: those of the atasks that are registered now); at most
    `concurrency` calls run at once, and at most `max_parked` wait for calls that they made. Blocking functions run
    in at most `threads` threads (None: as many as calls run at once, at most 100) and `processes` processes (None:
    one for each processor). `lifespan` is an async context manager, or a function that returns one, entered before
    the first call and left after the last; a call reads its value as `current_call().state`. Awaits inside the
    block go over the same transport.

    Guarantees: when the block ends the worker drains (see `Worker.drain`) within `grace` seconds.

    Raises what `connect` raises, and QueueMismatch.
    """
    transport = _make(url, namespace, options)
    transport.will_serve()
    async with _connected(transport), AsyncExitStack() as stack:
        state = None
        if lifespan is not None:
            manager = lifespan if isinstance(lifespan, AbstractAsyncContextManager) else lifespan()
            state = await stack.enter_async_context(manager)
        worker = Worker(
            get_router(namespace),
            transport,
            concurrency=concurrency,
            max_parked=max_parked,
            threads=threads,
            processes=processes,
            state=state,
        )
        await _start(worker, queues, grace)
        try:
            yield worker
        finally:
            await worker.drain(grace)


async def _start(worker: Worker, queues: Sequence[str] | None, grace: float) -> None:
    """Start it. If this is cancelled when calls have come already, from the first of its queues, it drains."""
    starting = asyncio.create_task(worker.start(queues), name="atasks start")
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        if not worker.held:
            starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await worker.drain(grace)
        raise


def local(
    workers: int | None = None, *, namespace: str = "default", **options: Any
) -> AbstractAsyncContextManager[Transport]:
    """Await atasks of the namespace on worker processes of this program, as many as there are cores unless told.

    They are fresh interpreters, which import the modules of the atasks that are registered now; a script should
    have what starts it under `if __name__ == "__main__":`. `options` are those of `LocalTransport`: `concurrency`
    is for how many calls a process runs at once (1 is best for calls that keep a core busy), `grace` for how many
    seconds calls get to finish when the block ends.

    Guarantees: a process that dies is replaced, and its calls run in another one, up to their `max_attempts`. No
    process is left when the block ends, nor a while after this program was killed.

    Raises WorkersFailed if the processes cannot serve, NotSupported if the atasks are in no module.
    """
    return connect("local:", namespace=namespace, workers=workers, **options)


@asynccontextmanager
async def _connected(transport: Transport) -> AsyncIterator[None]:
    """A block in which awaits of its namespace go over the transport, which is connected meanwhile."""
    await transport.connect()
    block = Block(transport)
    connected = get_router(transport.namespace)._connected
    connected.setdefault(block.loop, []).append(block)
    block.hold()
    try:
        yield
    finally:
        block.leave()
        blocks = connected[block.loop]
        blocks.remove(block)
        if not blocks:
            del connected[block.loop]
        await transport.disconnect()


def _scheme(url: str | Sequence[str]) -> str:
    if isinstance(url, (list, tuple)):
        schemes = [_scheme(item) for item in url]
        if len({TRANSPORTS[scheme] for scheme in schemes}) != 1:
            raise InvalidURL(f"several URLs are nodes of one broker, not {schemes}: give one scheme for all")
        return schemes[0]
    if not isinstance(url, str):
        raise TypeError(f"a URL is a string, not {url!r}")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # brackets that are no IPv6 address
        scheme = url.partition(":")[0]
    if scheme in TRANSPORTS:
        return scheme
    near = closest(scheme or url, TRANSPORTS, limit=1)
    hint = (
        f"did you mean {near[0]}:?" if near else f"known schemes: {', '.join(f'{name}:' for name in TRANSPORTS)}"
    )
    raise InvalidURL(f"{_without_password(url)!r} names no transport; {hint}")


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://', 1)[0]}://…@{tail}" if at and "://" in head else url


def _make(url: str | Sequence[str], namespace: str, options: dict[str, Any]) -> Transport:
    """A transport for the URL, without becoming the one that is registered in the namespace."""
    scheme = _scheme(url)
    module, _, name = TRANSPORTS[scheme].partition(":")
    cls: type[Transport] = getattr(importlib.import_module(module), name)
    registered = get_transport(namespace)
    try:
        return cls.from_url(url, namespace, options)
    finally:
        namespaces.register(namespace, transport=registered)
