"""`connect` and `serve`: a transport for the running event loop, by URL."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator, AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

from atasks.blocks import Block, settle
from atasks.options import ConnectOptions, PrivateOptions, TransportOptions
from atasks.outlast import begin, outlast
from atasks.router import get_router
from atasks.schemes import TRANSPORTS, Where, transport_class, transport_of
from atasks.transport.contract import Transport
from atasks.urls import shown

if TYPE_CHECKING:
    from atasks.worker.worker import Worker

__all__ = ["connect", "import_ahead", "serve"]

T = TypeVar("T")

Lifespan = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]


class _Opening(AbstractAsyncContextManager[T], AsyncContextDecorator):
    """The block that `connect` and `serve` return. Nothing is open until it is entered.

    It is no generator: those that are suspended when their event loop ends are closed there all at once, the outer
    ones while the inner ones still run. A block that nobody has left by then is left in one piece, and a
    ResourceWarning says so. Until then it is open, whether anybody holds this object or not.
    """

    def __init__(
        self,
        name: str,
        url: Where,
        enter: Callable[[AsyncExitStack], Coroutine[Any, Any, T]],
    ) -> None:
        """`enter` opens it, and pushes on the stack what closes it. `name` and `url` are for people."""
        self._name = name
        self._url = url
        self._enter = enter
        self._opened: AsyncExitStack | None = None
        self._end: AsyncGenerator[None, None] | None = None

    async def __aenter__(self) -> T:
        if self._end is not None:
            raise RuntimeError(f"this {self._name} block is entered already: each block needs one of its own")
        self._end = self._left_at_the_end()
        try:
            async with AsyncExitStack() as stack:
                value = await self._enter(stack)
                await anext(self._end)
                self._opened = stack.pop_all()
        except BaseException:
            self._end = None
            raise
        _open.add(self)
        return value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool | None:
        """Leave it, once; another time does nothing."""
        opened, self._opened = self._opened, None
        if opened is None:
            return None
        try:
            return await opened.__aexit__(kind, error, traceback)
        finally:
            end, self._end = self._end, None
            _open.discard(self)
            if end is not None:
                await end.aclose()

    async def _left_at_the_end(self) -> AsyncGenerator[None, None]:
        """Leave the block when the event loop ends: it closes this generator then."""
        try:
            yield
        finally:
            if self._opened is not None:
                self._end = None  # this
                await self.__aexit__(None, None, None)
                block = f"atasks.{self._name}({_shown(self._url)})"
                warnings.warn(
                    f"{block} was not left before its loop ended: use `async with`",
                    ResourceWarning,
                    stacklevel=2,
                )

    def _recreate_cm(self) -> _Opening[T]:
        """Make a block for each call of a function that this decorates."""
        return _Opening(self._name, self._url, self._enter)


_open: Final[set[_Opening[Any]]] = set()
"""The blocks that were entered and not left."""


def _shown(url: Where) -> str:
    if isinstance(url, Transport):
        return f"{type(url).__name__}()"
    return ", ".join(repr(shown(each)) for each in ((url,) if isinstance(url, str) else url))


def connect(
    url: Where = "loopback:", *, namespace: str = "default", **options: Unpack[ConnectOptions]
) -> AbstractAsyncContextManager[Transport]:
    """Await atasks of the namespace over this transport, inside this block.

    The block is that of the task that enters it, and of the tasks that are started in it; a nested one shadows the
    outer one. Other tasks of this event loop use the block of the loop that was entered first.

    Args:
        url: "loopback:" (calls run in this process), "local:" (on worker processes of this program),
            "unix:///run/app.sock" (on those of a server on this host) or "amqp://user:password@host:port/vhost"
            (on workers anywhere). Several URLs are those of the nodes of one broker, to be tried in turn. Packages
            may add schemes, by entry points of the group "atasks.transports". A transport of the namespace may
            stand in the place of a URL, one that is made with its options and is not connected.
        namespace: The namespace whose atasks are awaited here.
        **options: Those of the transport's class. One that has no meaning for this transport is ignored, so that a
            URL alone switches a program from one transport to another.

    Raises:
        InvalidURL: The URL names no transport.
        ValueError: A transport that was given is of another namespace.
        ConnectFailed: Nobody answers there; with `AccessRefused`, somebody does and refuses the user.
        ListenFailed: The socket of `local:` cannot be used.
        WorkersFailed: The worker processes of `local:` cannot serve.
        TypeError: An option is unknown, or this transport cannot honour it.

    Guarantees:
        Awaits that are pending when the block ends are ended with `CallConnectionLost`. The block may be left by
        another task than the one that entered it, and before the blocks inside it. Whoever is cancelled while it
        leaves the block is told when it has left.

    Example:
        ```python
        import atasks
        from atasks import atask

        @atask
        async def add(a: int, b: int) -> int:
            return a + b

        async with atasks.connect("loopback:"):
            print(await add(1, 2))  # 3
        ```
    """

    async def enter(stack: AsyncExitStack) -> Transport:
        transport = transport_of(url, namespace, options)
        await use(stack, transport)
        if getattr(transport, "_is_here", False):  # nobody else could serve it
            from atasks.worker.worker import Worker  # which other callers need not wait for

            worker = Worker(
                get_router(namespace),
                transport,
                concurrency=options.get("concurrency", 100),
                max_parked=options.get("max_parked", 50_000),
                threads=options.get("threads"),
                processes=options.get("processes"),
                process_setup=options.get("process_setup"),
            )
            await worker.start()
            stack.push_async_callback(lambda: outlast(worker.drain(grace=0)))
        return transport

    return _Opening("connect", url, enter)


def serve(
    url: Where,
    *,
    namespace: str = "default",
    queues: Sequence[str] | None = None,
    concurrency: int = 100,
    max_parked: int = 50_000,
    threads: int | None = None,
    processes: int | None = None,
    process_setup: str | None = None,
    lifespan: Lifespan | None = None,
    grace: float = 30.0,
    **options: Unpack[TransportOptions],
) -> AbstractAsyncContextManager[Worker]:
    """Serve the atasks of the namespace inside this block, for embedding a worker in a program.

    Awaits inside the block go over the same transport. Enter the result by `async with`; it is nothing to await.

    Args:
        url: As for `connect`.
        namespace: The namespace whose atasks are served.
        queues: The work queues to serve. None: those of the atasks that are registered now.
        concurrency: At most so many calls run at once. Those that wait for calls of their own do not count.
        max_parked: At most so many calls wait for calls that they made.
        threads: At most so many blocking functions run in threads. None: as many as calls run at once, at most
            100.
        processes: At most so many run in processes. None: one for each processor.
        process_setup: The name of a function, as in "shop.boot:prepare", which each of these processes calls
            first. None: the one that prepared this process, if any.
        lifespan: An async context manager, or a function that returns one, entered before the first call and left
            after the last. A call reads its value as `current_call().state`.
        grace: Seconds for which calls may go on when the block ends.
        **options: Those of the transport's class, as for `connect`.

    Raises:
        QueueMismatch: A queue exists at the broker, and was declared otherwise.
        AtasksError: Each of those that `connect` raises.

    Guarantees:
        When the block ends the worker drains (see `Worker.drain`) within `grace` seconds, also if the task is
        cancelled meanwhile: its CancelledError is raised when the worker has drained.

    Example:
        ```python
        from contextlib import asynccontextmanager

        import atasks
        from atasks import atask, current_call

        @atask
        async def price(item: str) -> int:
            return current_call().state[item]

        @asynccontextmanager
        async def prices():
            yield {"tea": 3}

        async with atasks.serve("loopback:", concurrency=10, lifespan=prices):
            print(await price("tea"))  # 3
        ```
    """

    async def enter(stack: AsyncExitStack) -> Worker:
        from atasks.worker.worker import Worker

        transport = transport_of(url, namespace, options)
        transport.will_serve()
        await use(stack, transport)
        state = None
        if lifespan is not None:
            manager = lifespan if isinstance(lifespan, AbstractAsyncContextManager) else lifespan()
            state = await manager.__aenter__()
            stack.push_async_exit(_leaving(manager))
        worker = Worker(
            get_router(namespace),
            transport,
            concurrency=concurrency,
            max_parked=max_parked,
            threads=threads,
            processes=processes,
            process_setup=process_setup,
            state=state,
        )
        await _start(worker, queues, grace)
        stack.push_async_callback(lambda: outlast(worker.drain(grace)))
        # Close streams before the drain: their runs would wait for a reader that never comes.
        stack.callback(transport.forsake_streams)
        return worker

    return _Opening("serve", url, enter)


def _leaving(manager: AbstractAsyncContextManager[Any]) -> Callable[..., Coroutine[Any, Any, bool | None]]:
    """The end of a lifespan. An event loop that ends closes its generator by itself."""

    async def leave(*raised: Any) -> bool | None:
        closes = getattr(getattr(manager, "gen", None), "ag_running", False)
        return None if closes else await manager.__aexit__(*raised)

    return leave


async def _start(worker: Worker, queues: Sequence[str] | None, grace: float) -> None:
    """Start it. If this is cancelled when calls have come already, from the first of its queues, it drains."""

    def give_up(starting: asyncio.Task[None]) -> None:
        if not worker.held:
            starting.cancel()

    await begin(worker.start(queues), lambda: worker.drain(grace), give_up)


def local(
    workers: int | None = None, *, namespace: str = "default", **options: Unpack[PrivateOptions]
) -> AbstractAsyncContextManager[Transport]:
    """Await atasks of the namespace on worker processes of this program.

    They are fresh interpreters, which import the modules of the atasks that are registered now; a script should
    have what starts it under `if __name__ == "__main__":`.

    Args:
        workers: So many processes. None: one for each processor.
        namespace: The namespace whose atasks are awaited here.
        **options: Those of `LocalTransport`. `concurrency`: so many calls run in a process at once (1 is best for
            calls that keep a core busy). `grace`: seconds that calls get to finish when the block ends.
            `process_setup`: the name of a function, as in "shop.boot:prepare", which a process calls before it
            imports those modules.

    Raises:
        WorkersFailed: The processes cannot serve.
        NotSupported: The atasks are in no module that a process could import.

    Guarantees:
        A process that dies is replaced, and its calls run in another one, up to their `max_attempts`. No process
        is left when the block ends, nor a while after this program was killed.
    """
    return connect("local:", namespace=namespace, workers=workers, **options)


async def use(stack: AsyncExitStack, transport: Transport) -> None:
    """Connect it, and have awaits of its namespace go over it until the stack is left."""
    await begin(transport.connect(), transport.disconnect)
    block = Block(transport)
    connected = get_router(transport.namespace)._connected
    connected.setdefault(block.loop, []).append(block)
    block.hold()

    async def leave() -> None:
        try:
            await outlast(settle())
        finally:  # it raises the cancellation that it has outlasted
            block.leave()
            blocks = connected[block.loop]
            blocks.remove(block)
            if not blocks:
                del connected[block.loop]
            await outlast(transport.disconnect())

    stack.push_async_callback(leave)


def import_ahead(transport: str, *, serves: bool) -> None:
    """Import now what `connect` would import for a URL of this scheme, or with `serves` what `serve` would. Does
    nothing about a transport that a package adds."""
    if transport in TRANSPORTS:
        transport_class(transport)
    if serves:
        import atasks.worker.worker  # noqa: F401
