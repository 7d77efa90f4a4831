"""The router of a namespace: turns an await into a request, and a reply into its value or its exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from atasks.activation import Activation
from atasks.blocks import Block, default_of, entered_first, innermost
from atasks.caller.background import call, hand_over, iterate_here, run_here
from atasks.caller.decoding import value_of
from atasks.caller.encoding import carried_context, encoded_arguments, new_call
from atasks.codecs.base import Codec, as_bytes
from atasks.codecs.default import get_codec
from atasks.current import carried, serving, serving_here
from atasks.definitions import BaseTask, InvokedName, TaskName
from atasks.errors import NotConnected, NotSupported, TransportError, name_call
from atasks.namespaces import namespace_item, namespaces
from atasks.options import TaskOptions, validate_queue
from atasks.original import (
    JobNotFound,
    NoClientTransportRegistered,
    NoCodecRegistered,
    as_before,
    refuse_overrides,
)
from atasks.original_events import OriginalEvents
from atasks.registration import define
from atasks.registry import Manager
from atasks.wire import RUN_TRIES, Call, Reply

if TYPE_CHECKING:
    from atasks.caller.stream import RemoteStream
    from atasks.caller.sync_stream import SyncStream
    from atasks.caller.sync_watched import SyncWatchedCall
    from atasks.caller.watched import WatchedCall
    from atasks.lazy import LazyConnection
    from atasks.policies.limit import Limit
    from atasks.submitted.handle import Handle
    from atasks.transport.contract import Transport
    from atasks.transport.limits.contract import Token
    from atasks.worker.held_call import HeldCall
    from atasks.worker.worker import Worker

__all__ = [
    "JobNotFound",
    "NoClientTransportRegistered",
    "NoCodecRegistered",
    "Router",
    "TransportError",
    "get_router",
]

T = TypeVar("T")

_PUBLISHED = TaskOptions(orphan="run")


class Router(OriginalEvents):
    """Encodes calls, sends them, and decodes replies; registers atasks; activates transports to serve them.

    Constructing a router makes it the router of its namespace; it adopts the atasks that are registered there.
    Override `send_request` to see or change every call of the namespace, and call super's.
    """

    extra_options: ClassVar[tuple[str, ...]] = ()
    """Further options that `@atask` accepts in this router's namespace; they are in `ATask.task_options.extra`."""

    @as_before
    def __init__(self, namespace: str = "default") -> None:
        self.namespace = validate_queue(namespace, "namespace")
        self._space = namespace_item(namespace)
        self.registry: Manager = getattr(self._space, "registry", None) or Manager(namespace, unite=False)
        self._activation = Activation(self)
        namespaces.register(namespace, router=self, registry=self.registry)
        around_calls, around_runs = (getattr(self._space, name, None) for name in ("around_calls", "around_runs"))
        namespaces.register(namespace, around_calls=around_calls, around_runs=around_runs)
        namespaces.register(namespace, codec=getattr(self._space, "codec", None))
        self._connected: dict[asyncio.AbstractEventLoop, list[Block]] = getattr(self._space, "connected", {})
        namespaces.register(namespace, connected=self._connected)
        lazy, after_commit = (getattr(self._space, name, None) for name in ("lazy", "after_commit"))
        namespaces.register(namespace, lazy=lazy, after_commit=after_commit)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_overrides(cls)

    # -- registration

    def register_atask(self, name: str, coro: Callable[..., Any], options: Mapping[str, Any] | None = None) -> Any:
        """The ATask of this name, whose calls run `coro` at the worker; a StreamTask if that is an async generator
        function.

        A later definition of the same module, qualified name and file takes the place of the earlier one, as a
        reload or an edited cell of a notebook wants it, which is logged at INFO. Decorators are looked through.

        Args:
            name: The name by which calls find it.
            coro: The function.
            options: Those of `@atask`.

        Raises:
            RegisteringTwice: Another definition has this name.
            TypeError: An option is unknown, or not for this function.
        """
        task = define(self.registry, name, self.namespace, coro, options or {}, self.extra_options)
        if self._activation.serves_all:
            self._activation.serve_later()
        return task

    # -- calling

    async def send_request(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run the atask `name` on a worker and return its result.

        Raises the exception that it raised, or a `CallError`; `asyncio.CancelledError` only if the awaiting task
        was cancelled.
        """
        around = self._space.around_calls
        if around is not None and type(name) is not InvokedName:
            return await around.call(self, name, args, kwargs)
        run = serving.get()
        if run is not None and (run.ended or run.loop is not asyncio.get_running_loop()):
            run = None  # a task that outlived its call, or a thread's own event loop
        if run is not None and run.atask is not None and run.atask.resume:
            return await self._resume(run, name, args, kwargs)
        transport = self._transport(run)
        codec = self.codec
        if isinstance(name, TaskName):  # this is `_named`, without a call
            task, options = name.task, name.options
        else:
            task, options = self._named(name)
        try:  # not by `encoded_arguments`: it would cost one more coroutine for each call
            payload = await codec.pieces((args, kwargs))
            if type(payload) is not bytes:
                payload = as_bytes(payload, codec, transport.keep)
        except Exception as error:
            from atasks.codecs.culprits import unencodable_arguments

            raise await unencodable_arguments(name, task and task.local, args, kwargs, codec, error) from error
        del args, kwargs  # release the arguments: the call may take long, and they may be large
        call = new_call(name, payload, options, transport, codec, run)
        if carried:
            call.context = await carried_context(call, codec, transport)
        try:
            if run is not None:
                run.park()
                run.last_awaited = call
            try:
                pending = transport.begin_request(call, options)
                if pending is None:
                    reply = await self._reply(transport, call, options)
                else:
                    try:
                        reply = await pending.future
                    except BaseException as error:
                        transport.fail_request(pending, error)
                        pending = None  # the traceback has this frame, and its future has the error
                        raise
                    transport.end_request(pending, reply)
                if run is not None:
                    run.answered(call, reply)
            finally:
                if run is not None:
                    await run.unpark()
            return await value_of(reply, call, task, codec)
        except Exception as error:
            name_call(error, call.id)
            raise

    async def _reply(self, transport: Transport, call: Call, options: TaskOptions) -> Reply:
        """The reply to a call that was not begun, or to the last one of its tries."""
        if options.retry is None:
            return await transport.request(call, options)
        from atasks.caller.tries import tried

        return await tried(self, self.codec, transport, call, options)

    async def _resume(self, run: HeldCall, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call that another one makes which resumes."""
        from atasks.resume.calls import made

        task, options = self._named(name)
        reply, call = await made(self, run, name, task, options, args, kwargs)
        return await self.outcome(reply, call, task)

    async def may_stream(self, run: HeldCall, name: str, options: TaskOptions, payload: bytes) -> None:
        """Called before a call that resumes reads a stream. Raises Diverged if that cannot be done again."""
        from atasks.resume.calls import may_stream

        await may_stream(run, name, options, payload)

    async def submit(self, name: str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Have a worker run the atask `name`, whether anybody awaits it or not, and return a handle of the call
        when it is safe. See `ATask.submit`. Override it to see or change every submitted call of the namespace,
        and call super's."""
        from atasks.submitted.submit import submit

        return await submit(self, name, args, kwargs, self._named(name)[1])

    def submit_soon(self, name: str, submit: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Submit without waiting until it is safe. See `Submission.soon`."""
        hand_over(self, f"a submitted call of {name}", submit)

    def submit_after_commit(self, name: str, submit: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Submit when the transaction that is open here has committed. See `ATask.on_commit`."""
        after_commit = self._space.after_commit
        if after_commit is None:
            raise NotSupported(
                f"{name}.on_commit() needs a framework that tells of transactions: add 'atasks.contrib.django' to "
                "INSTALLED_APPS, or call submit.soon() when it has committed"
            )
        after_commit(partial(self.submit_soon, name, submit))

    def run_sync(self, what: str, instead: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine of `make` for a thread without an event loop, in the loop in which the calls of this
        thread are made; returns and raises as the coroutine does.

        Raises RuntimeError where an event loop runs: its text names `what`, and says what to do `instead`.
        """
        return run_here(self, what, instead, make)

    def iterate_sync(self, what: str, instead: str, make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """The items of what `make` returns, for a thread without an event loop, as `run_sync` does it."""
        return iterate_here(self, what, instead, make)

    async def request_to_keep(
        self,
        name: str,
        args: tuple[Any, ...],
        options: TaskOptions,
        transport: Transport,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Call:
        """A call for `transport.records`: nobody awaits it, and it is no part of the call that makes it."""
        call = self.call_to_keep(name, await self.encode_arguments(name, args, kwargs or {}), options, transport)
        if carried:
            call.context = await carried_context(call, self.codec, transport)
        return call

    def call_to_keep(self, name: str, payload: bytes, options: TaskOptions, transport: Transport) -> Call:
        """Return such a call, without context variables. Raises PayloadTooLarge."""
        return new_call(name, payload, options, transport, self.codec, None)

    async def encode_arguments(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments of a call in the codec's bytes. Raises EncodeError."""
        return await encoded_arguments(name, self._named(name)[0], self.codec, args, kwargs)

    async def submit_inside(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: TaskOptions,
        send: Callable[..., Coroutine[Any, Any, Any]],
        call_id: str | None = None,
    ) -> Any:
        """Submit a call inside the namespace's middlewares: returns or raises what they make of `await send(name,
        *args, **kwargs)`.

        `send` makes a call that nobody awaits, by `request_to_keep`, and returns when the call is safe. `call_id`:
        the id that it will have, for the middlewares; None: any.
        """
        around = self._space.around_calls
        if around is None:
            return await send(name, *args, **kwargs)
        task, _ = self._named(name)
        return await around.around(self, name, task, options, args, kwargs, send, submitted=True, call_id=call_id)

    async def submit_encoded(
        self,
        name: str,
        payload: bytes,
        codec: str,
        options: TaskOptions,
        transport: Transport,
        begin: Callable[[Call], Coroutine[Any, Any, T]],
        call_id: str | None = None,
        *,
        tries: bool = False,
    ) -> T:
        """Submit a call, whose arguments were encoded before by the codec of that name, inside the namespace's
        middlewares: these see the arguments if it is this side's codec, else no call. `tries`: the arguments are
        those of `run_tries`. Returns what `await begin(call)` does.
        """
        if self._space.around_calls is None or codec != self.codec.name:
            call = self.call_to_keep(RUN_TRIES if tries else name, payload, options, transport)
            call.codec = codec
            return await begin(call)

        async def send(name: str, /, *args: Any, **kwargs: Any) -> T:
            if tries:
                from atasks.submitted.tries import named_as

                name, args, kwargs = named_as(name, RUN_TRIES), (str(name), given, list(args), kwargs), {}
            return await begin(await self.request_to_keep(name, args, options, transport, kwargs))

        args, kwargs = await self.codec.decode(payload)
        if tries:
            _, given, args, kwargs = args
        queue = options.queue or transport.queue
        around = replace(options, timeout=None, queue=queue)
        result: T = await self.submit_inside(name, args, kwargs, around, send, call_id)
        return result

    async def publish(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Publish an event, and return when the broker has it. It is no part of the call that publishes it.

        Raises a `CallError`, NotConnected, and NotSupported from a transport that moves no events.
        """

        async def send(event: str, /, *args: Any, **kwargs: Any) -> None:
            transport = self.transport()
            await transport.publish(await self.request_to_keep(event, args, _PUBLISHED, transport, kwargs))

        await self.submit_inside(event, args, kwargs, replace(_PUBLISHED, queue=f"events:{event}"), send)

    async def outcome(self, reply: Reply, call: Call, task: BaseTask[..., Any] | None = None) -> Any:
        """Return the value of a reply, or raise its exception; `task`: the atask, where its types count."""
        try:
            return await value_of(reply, call, task, self.codec)
        except Exception as error:
            name_call(error, call.id)
            raise

    def transport(self) -> Transport:
        """The transport that awaits use which are made here. Raises NotConnected."""
        return self._transport(serving_here())

    def stream(self, name: str, /, *args: Any, **kwargs: Any) -> RemoteStream[Any]:
        """The items of the stream `name`, which runs on a worker from the first `__anext__` on.

        Override it to see or change every stream of the namespace, and call super's.
        """
        around = self._space.around_calls
        if around is not None and type(name) is not InvokedName:
            return around.stream(self, name, args, kwargs)
        if self.lazy is None:
            from atasks.caller.stream import RemoteStream

            return RemoteStream(self, name, args, kwargs)
        from atasks.caller.bridged_stream import BridgedStream

        return BridgedStream(self, name, args, kwargs)

    def watch(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> WatchedCall[Any]:
        """The call of the atask `name`, whose progress can be followed. See `ATask.watch`."""
        from atasks.caller.watched import WatchedCall

        return WatchedCall(self, name, args, kwargs)

    @property
    def lazy(self) -> LazyConnection | None:
        """The connection of calls that are made where nothing else is connected; None: they raise NotConnected."""
        return self._space.lazy

    @property
    def codec(self) -> Codec:
        """The codec of the namespace."""
        return self._space.codec or get_codec(self.namespace)

    def _named(self, name: str) -> tuple[BaseTask[..., Any] | None, TaskOptions]:
        """The atask, if it is known here, and the options that apply."""
        if isinstance(name, TaskName):
            return name.task, name.options
        item = self.registry.get(name)
        return (None, TaskOptions()) if item is None else (item.task, item.options)

    def _transport(self, run: HeldCall | None) -> Transport:
        """That of the block which this code is in; else the serving one inside a served call, else that of the
        running event loop's oldest block, else the namespace's, else the way to its lazy connection."""
        here = innermost.get()
        if here is not None:
            loop = asyncio.get_running_loop()
            if here.loop is loop and here.transport is not None and here.namespace == self.namespace:
                return here.transport  # as `find` would say
            inner = here.find(self.namespace, loop)
            if inner is not None and inner.transport is not None:
                return inner.transport
        if run is not None and run.worker.namespace == self.namespace:
            return run.worker.transport
        loop = asyncio.get_running_loop()
        blocks = self._connected.get(loop)
        if blocks and (oldest := default_of(blocks, here)) is not None:
            return oldest
        transport: Transport | None = getattr(self._space, "transport", None)
        if transport is None or not transport.usable(loop):
            if self.lazy is not None:
                return self.lazy.bridge
            where = "" if self.namespace == "default" else f", namespace={self.namespace!r}"
            advice = f'enter `async with atasks.connect("amqp://localhost/"{where})`, or another URL, first'
            if entered_first(self._connected) is not None:
                advice = "another one has: await there, or call `.sync` in a thread where no event loop runs"
            raise NotConnected(f"namespace {self.namespace!r} has no transport in this event loop: {advice}")
        return transport

    def send_request_sync(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make the call from a thread without an event loop; returns and raises as `send_request` does. See
        `ATask.sync`."""
        return call(name, self, args, kwargs)

    def stream_sync(self, stream: RemoteStream[Any]) -> SyncStream[Any]:
        """The items of a stream, for a thread without an event loop."""
        from atasks.caller.sync_stream import SyncStream

        return SyncStream(self, stream)

    def watch_sync(self, call: WatchedCall[Any]) -> SyncWatchedCall[Any]:
        """A watched call, for a thread without an event loop."""
        from atasks.caller.sync_watched import SyncWatchedCall

        return SyncWatchedCall(self, call)

    # -- limits

    async def take_token(self, limit: Limit, key: str | None) -> Token:
        """A token of the limit, as soon as there is one: `async with limit`. A call that is being served here is
        parked while it waits. Raises LimitError, NotConnected, NotSupported."""
        from atasks.parking import Parked
        from atasks.worker.limited import take_noted

        run = serving_here()
        transport = self._transport(run)
        limits = transport.limits
        if limits is None:
            raise NotSupported(f"{type(transport).__name__} has no limits: use another transport")
        token: Token | None = None
        try:
            async with Parked():
                if run is None:
                    token = await limits.take(limit.name, key, limit.rule)
                else:
                    token = await take_noted(run, limits, limit, key)
        except BaseException:
            if token is not None:
                token.release()
            raise
        return token

    def take_token_sync(self, limit: Limit, key: str | None) -> Token:
        """Take a token for a thread without an event loop. Its work has begun."""

        async def take() -> Token:
            token = await self.take_token(limit, key)
            token.begin()
            return token

        return run_here(self, "limit.sync", "`async with limit:`", take)

    # -- serving

    async def activate(self, transport: Transport, *, concurrency: int = 100) -> None:
        """Serve the atasks of the namespace on this transport until `deactivate`: those that are defined later
        too, although their queues may be new.

        Args:
            transport: A transport of the namespace, which is connected.
            concurrency: At most so many calls run at once. Those that wait for calls of their own do not count.

        Raises:
            QueueMismatch: A queue exists at the broker, and was declared otherwise.
            NotConnected: The transport is not connected.
        """
        self._activation.serves_all = True
        await self.serve_on(transport, None, concurrency=concurrency)

    async def serve_on(
        self, transport: Transport, queues: Sequence[str] | None, *, concurrency: int = 100
    ) -> Worker:
        """Serve these queues, besides those that are served on this transport already; None: those of the atasks
        that are registered. Returns the worker."""
        return await self._activation.serve_on(transport, queues, concurrency)

    async def deactivate(self, grace: float = 30.0) -> None:
        """Serve no more, and return when the worker has drained. Does nothing if nothing was activated.

        Args:
            grace: Seconds for which running calls may go on.
        """
        await self._activation.end(grace)


def get_router(namespace: str = "default") -> Router:
    """The router that was constructed last for the namespace, made now if there is none."""
    router = getattr(namespace_item(namespace), "router", None)
    return router if isinstance(router, Router) else Router(namespace)
