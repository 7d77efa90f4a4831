"""A stream, to its consumer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from atasks.caller.decoding import reply_error
from atasks.caller.encoding import carried_context, encoded_arguments, new_call
from atasks.caller.tries import Tries
from atasks.codecs.checked import undecodable
from atasks.current import serving_here
from atasks.errors import CallError, NotSupported, WorkerLost, name_call
from atasks.options import FIRST_WINDOW
from atasks.parking import Parked
from atasks.transport.stream_receiver import StreamReceiver, lost
from atasks.wire import Status

if TYPE_CHECKING:
    from types import TracebackType

    from atasks.codecs.base import Codec
    from atasks.definitions import BaseTask
    from atasks.options import TaskOptions
    from atasks.router import Router
    from atasks.transport.call_transport import CallTransport
    from atasks.transport.contract import Transport
    from atasks.wire import Call
    from atasks.worker.held_call import HeldCall

__all__ = ["RemoteStream"]

T = TypeVar("T")

_ONE_WAY = (
    "nothing can be {what} the stream {name}: its generator runs on a worker, ahead of its consumer. Iterate over "
    "it, and pass what it needs as arguments"
)


class RemoteStream(Generic[T]):
    """The items of an async generator that runs on a worker: `async for item in numbers(10)`.

    It begins at the first item that is asked for. Items come in order, each once; then the generator's exception,
    or another ending, as an await of an atask would raise it; after that there are no more items. The worker runs
    at most a window ahead. Leaving the loop, `aclose()`, an exception, a cancellation and garbage collection close
    the generator at the worker: its `finally` runs there, and is not waited for here. A `timeout` is for the whole
    stream: when it has passed, `CallTimeout` comes at once, before items that were not taken.

    Raises StreamLost when the worker dies and another one may not begin anew.
    """

    def __init__(self, router: Router, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._receiver: StreamReceiver | None = None
        """None: it has not begun, or is over."""
        self._router = router
        self._name = name
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = (args, kwargs)
        """None: it has begun, or was closed."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._codec: Codec = router.codec
        self._task: BaseTask[..., Any] | None = None
        self._busy = False

    def __aiter__(self) -> RemoteStream[T]:
        return self

    async def __anext__(self) -> T:
        """The next item."""
        self._claim()
        try:
            receiver = self._receiver
            if receiver is None:
                receiver = await self._open()
            if not receiver.payloads:
                await self._wait(receiver)
            payload = receiver.take()
            item: T = await self._decode(payload)
            return item
        except BaseException:
            self._close()
            raise
        finally:
            self._busy = False

    def _claim(self) -> None:
        """Take the next item for the running task alone, until `_busy` is cleared."""
        if self._busy:
            raise RuntimeError("anext(): this stream is being read by another task")
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise RuntimeError(f"anext(): {self!r} was begun in another event loop, which alone can read it")
        self._busy = True

    async def aclose(self) -> None:
        """Want no more items: the generator is closed at the worker. Does not wait for that."""
        if self._busy:
            raise RuntimeError("aclose(): this stream is being read by another task")
        self._close()

    async def asend(self, value: Any) -> T:
        """Raises NotSupported: nothing can be sent into a generator that runs ahead on a worker."""
        raise NotSupported(_ONE_WAY.format(name=self._name, what="sent into"))

    async def athrow(self, *error: Any) -> T:
        """Close the stream, and raise NotSupported: nothing can be thrown into a generator on a worker."""
        self._close()
        raise NotSupported(_ONE_WAY.format(name=self._name, what="thrown into"))

    async def __aenter__(self) -> RemoteStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or not self._busy:  # another exception would hide this error
            await self.aclose()

    def __del__(self) -> None:
        receiver = self._receiver
        if receiver is not None and self._loop is not None:
            # The collector may run in any thread, at any point, and when the interpreter has taken imports away.
            try:
                self._loop.call_soon_threadsafe(receiver.close)
            except RuntimeError:  # the event loop is closed, and the transport with it
                return

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop in which it has begun, and which alone can read it."""
        return self._loop

    def __repr__(self) -> str:
        return f"<remote stream {str(self._name)!r}>"

    async def _open(self) -> StreamReceiver:
        """Begin, unless it is over."""
        if self._arguments is None:
            raise StopAsyncIteration
        (args, kwargs), self._arguments = self._arguments, None
        run = serving_here()
        transport = self._router._transport(run)
        if "streams" not in transport.supports:
            raise NotSupported(
                f"{type(transport).__name__} moves no streams: call an atask that returns a list, or connect "
                "over another transport"
            )
        self._loop = asyncio.get_running_loop()
        call, options = await self._request(args, kwargs, transport, run)
        if options.retry is not None:
            return await self._open_with_tries(Tries(call, options.retry, transport), options)
        return await self._begin(call, options, transport)

    async def _begin(self, call: Call, options: TaskOptions, transport: Transport) -> StreamReceiver:
        receiver = self._receiver = StreamReceiver(cast("CallTransport", transport), call, options)
        await receiver.open()
        return receiver

    async def _open_with_tries(self, tries: Tries, options: TaskOptions) -> StreamReceiver:
        """Begin, as often as its `Retry` says, until there is an item. Parked over all tries."""
        async with Parked(self._close):
            while True:
                receiver = await self._begin(tries.call, options, tries.transport)
                try:
                    await self._wait(receiver)
                    return receiver
                except StopAsyncIteration:
                    raise
                except Exception as error:
                    receiver.close()
                    await tries.another(error)

    async def _request(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], transport: Transport, run: HeldCall | None
    ) -> tuple[Call, TaskOptions]:
        """The call that is the stream."""
        router, name, codec = self._router, self._name, self._codec
        self._task, options = router._named(name)
        payload = await encoded_arguments(name, self._task, codec, args, kwargs)
        call = new_call(name, payload, options, transport, codec, run)
        call.context = await carried_context(call, codec, transport)
        call.credit = options.window or FIRST_WINDOW
        call.orphan = 0  # nobody would take the items of the stream
        if run is not None and run.atask is not None and run.atask.resume:
            await router.may_stream(run, name, options, payload)
        return call, options

    async def _wait(self, receiver: StreamReceiver) -> None:
        """Return when there is an item; raise how the stream ended if there is none."""
        run = serving_here()
        try:
            if run is None:
                await receiver.wait()
            else:
                run.park()
                try:
                    await receiver.wait()
                except BaseException:
                    receiver.close()  # at once, and not when a slot is free: the stream may hold the last one
                    raise
                finally:
                    await run.unpark(receiver.close)
            if receiver.payloads:
                return
            assert receiver.pending is not None, "it was opened"
            reply, call = receiver.pending.future.result(), receiver.call
        except Exception as error:
            name_call(error, receiver.call.id)
            raise
        if reply.status == Status.VALUE:
            if receiver.complete:
                raise StopAsyncIteration
            raise CallError(f"{call.task} is a stream, and was answered by a worker that knows no streams")
        ended = await reply_error(reply, call, self._codec)
        if isinstance(ended, WorkerLost):
            ended = lost(call, receiver.received, str(ended), ended)
        name_call(ended, call.id)
        raise ended

    async def _decode(self, payload: bytes) -> Any:
        # Like `value_of`, and not in one coroutine with it: one more would cost both, for each item.
        try:
            if self._task is None:
                return await self._codec.decode(payload)
            return await self._codec.decode_result(payload, self._task.local)
        except BaseException as error:
            flaw = undecodable(f"an item of {self._name}", self._codec, error, type(error).__name__)
            if flaw is None:
                raise
            raise flaw from error

    def _close(self) -> None:
        self._arguments = None
        receiver, self._receiver = self._receiver, None
        if receiver is None or self._loop is None:
            return
        if self._loop is asyncio.get_running_loop():
            receiver.close()
        else:
            with contextlib.suppress(RuntimeError):  # the event loop is closed, and the transport with it
                self._loop.call_soon_threadsafe(receiver.close)
