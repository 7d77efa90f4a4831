"""The contract of a transport, and the loopback transport.

A transport moves requests and replies of one namespace. There are two levels:

- The minimal contract, for a transport of your own: `connect`, `disconnect` and `send_request(name, content)`.
  Both contents are opaque messages of wire v1, so ids, deadlines and the chain of calls travel inside.
- The rich contract, which the router and the worker speak: `request(call, options)` and `serve(worker)`. This base
  class adapts the minimal contract to it; `CallTransport` implements the caller's half for transports that move
  `Call` and `Reply` objects, cancellation included.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from msgspec import Struct

from atasks import wire
from atasks.errors import (
    CallConnectionLost,
    CallError,
    NotConnected,
    NotSupported,
    NoWorker,
)
from atasks.namespaces import namespaces
from atasks.options import Executor, TaskOptions, validate_queue
from atasks.transport.records.contract import DEFAULT_EXPIRES, Records
from atasks.transport.records.memory import MemoryRecords
from atasks.transport.records.store import DEFAULT_KEEP_BYTES
from atasks.transport.unserved import WARN_SECONDS, Unserved
from atasks.transport.whereabouts import Whereabouts, found_at, timed_out
from atasks.wire import Call, Credit, End, Item, Reply, Status

if TYPE_CHECKING:
    from atasks.transport.stream_receiver import Inflow
    from atasks.worker.held_call import Delivery
    from atasks.worker.worker import Worker

__all__ = ["CallTransport", "LoopbackTransport", "Pending", "RequestCallback", "Transport", "get_transport"]

RequestCallback = Callable[[str, bytes], Awaitable[bytes]]
"""`await callback(name, content) -> bytes`: what serves the requests that a minimal transport receives."""

logger = logging.getLogger("atasks.transport")

DEFAULT_MAX_PAYLOAD = 64 * 2**20
LOCATE_SECONDS: Final = 0.5
LOCATE_SHARE: Final = 0.25
"""How long before its deadline a caller looks where a call is, at most, and as a part of its time."""


class Transport:
    """Moves requests and replies of one namespace.

    Constructing a transport registers it in its namespace: awaits there use it, unless an `atasks.connect` of the
    running event loop shadows it. A subclass needs `connect`, `disconnect` and `send_request`.
    """

    supports: ClassVar[frozenset[str]] = frozenset()
    """What else it offers: "cancel" (the remote run ends when the await does), "at_most_once", "no_worker" (it can
    tell that nothing serves a queue), and "streams"."""

    redelivers: ClassVar[bool] = False
    """Whether one call may be delivered more than once, so that workers must remember those they finished."""

    max_payload: int = DEFAULT_MAX_PAYLOAD
    """Bytes of arguments or of a result that it moves; more is a `PayloadTooLarge`."""

    records: Records | None = None
    """Keeps what becomes of the runs of pipelines; None: it cannot do that."""

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = validate_queue(namespace, "namespace")
        self.callback: RequestCallback | None = None
        namespaces.register(namespace, transport=self)

    @classmethod
    def from_url(cls, url: str | Sequence[str], namespace: str, options: dict[str, Any]) -> Transport:
        """What `connect` and `serve` make of a URL: here nothing but its scheme counts."""
        return cls(namespace=namespace, **options)

    # -- the minimal contract

    async def connect(self) -> None:
        """Be ready to send requests and to register a callback."""
        raise NotImplementedError(f"{type(self).__name__} has no connect()")

    async def disconnect(self) -> None:
        """Let go of everything. Awaits that are pending end in `CallConnectionLost`."""
        raise NotImplementedError(f"{type(self).__name__} has no disconnect()")

    async def send_request(self, name: str, content: bytes) -> bytes:
        """Have the callback of some process answer `content`, a message for the atask `name`.

        Whatever it raises, and an answer that is not bytes, ends the await in `CallConnectionLost`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no send_request()")

    async def register_callback(self, callback: RequestCallback) -> None:
        """Serve requests with `await callback(name, content) -> bytes` from now on."""
        self.callback = callback

    async def unregister_callback(self) -> None:
        """Serve no more requests."""
        self.callback = None

    # -- the rich contract

    def will_serve(self) -> None:
        """Called before `connect` where a worker is going to be attached, for transports to which that matters."""

    def forsake_streams(self) -> None:
        """Called where the current task leaves a block, before its worker drains: see `CallTransport`."""

    def usable(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether awaits of this event loop may use it."""
        return True

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        """Have a worker answer the call. Raises a `CallError`, or `CancelledError` when the task is cancelled."""
        if options.delivery == "at_most_once" and "at_most_once" not in self.supports:
            raise NotSupported(
                f"{type(self).__name__} does not promise at-most-once delivery: "
                "use delivery='at_least_once' or another transport"
            )
        if options.on_no_worker == "error" and "no_worker" not in self.supports:
            raise NotSupported(
                f"{type(self).__name__} cannot tell whether anything serves a queue: "
                "use on_no_worker='wait' with a timeout, or another transport"
            )
        timeout = None if call.timeout_ms is None else call.timeout_ms / 1000
        scope = asyncio.timeout(timeout)
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            async with scope:
                content = await self.send_request(call.task, wire.encode([call]))
        except CallError:
            raise
        except asyncio.CancelledError as error:
            if task is None or task.cancelling() > cancelled_before:
                raise
            raise _lost(self, call, error) from error  # a library's way to say that the connection is gone
        except Exception as error:
            if scope.expired():
                raise timed_out(call) from None
            raise _lost(self, call, error) from error
        if not isinstance(content, bytes):
            raise CallConnectionLost(
                f"{type(self).__name__}.send_request returned {type(content).__name__} instead of bytes "
                f"for {call.task}: the outcome cannot be known"
            )
        envelopes = wire.decode(content)
        if len(envelopes) != 1 or not isinstance(envelopes[0], Reply) or envelopes[0].id not in (call.id, "?"):
            raise CallConnectionLost(f"the answer to {call.task} is not the reply to this call")
        return envelopes[0]

    async def serve(self, worker: Worker, queues: Sequence[str] | None = None) -> None:
        """Deliver requests to the worker from now on; again after `stop_serving`, for the same worker."""
        await self.register_callback(worker.answer)

    async def stop_serving(self, worker: Worker) -> None:
        """Deliver no more requests; replies to those that were delivered still leave."""
        await self.unregister_callback()

    async def has_other_workers(self, worker: Worker) -> bool:
        """Whether another worker serves each of the queues of this one, as far as can be known."""
        return False

    async def flush(self) -> None:
        """Return when every reply handed over so far is safe."""

    def waited(self, call: Call, delivery: Delivery | None) -> float:
        """For how many seconds a call that is delivered now has been under way for certain. The clocks of caller
        and worker may differ, and a call that ends too early is worse than one that ends late: its caller has a
        timer of its own."""
        return 0.0

    def slots_changed(self, worker: Worker) -> None:
        """The worker has free slots and nothing to put in them: a chance to ask for more."""

    def overfull(self, worker: Worker) -> None:
        """Calls wait in the worker for a slot for some time: a chance to let other workers have them."""

    def lacks_place(self, worker: Worker, executor: Executor) -> None:
        """Calls wait in the worker for a place in a pool: a chance to let other workers have them."""


def _lost(transport: Transport, call: Call, error: BaseException) -> CallConnectionLost:
    return CallConnectionLost(
        f"{type(transport).__name__} lost {call.task} ({type(error).__name__}): the outcome cannot be known"
    )


def get_transport(namespace: str = "default") -> Transport | None:
    """The transport that was constructed last for the namespace, or None."""
    return getattr(namespaces.get(namespace), "transport", None)


class Pending(Struct, eq=False):
    """A call whose await has not ended."""

    call: Call
    options: TaskOptions
    future: asyncio.Future[Reply]
    timer: asyncio.TimerHandle | None = None
    deadline: float | None = None
    """When the await ends at the latest (event loop time): the timer may be set to sooner. None: no deadline."""
    inflow: Inflow | None = None
    """What takes its items in; None: not a stream."""
    since: float = 0.0
    """When it was sent, or a worker last said that it holds it (event loop time)."""
    asked: int = 0
    """How often workers were asked for it since then."""
    where: Whereabouts | None = None
    """Where it was when that was last told; None: it is not known."""
    denied: int = 0
    """How often all workers said since then that they do not have it."""
    confirmed: bool = False
    """Whether the broker has it."""
    unheard: bool = False
    """Whether the broker had no queue for it: it waits for a worker that declares one."""
    copies: dict[int | str, str] | None = None
    """Attempt -> the one copy of its request that may start as this attempt; for a call that runs at most once,
    copy -> the one worker that may start it. None: nobody has asked."""
    begun: tuple[str, int] | None = None
    """Where the last attempt has begun: the worker, and which of its beginnings that is (0: it did not say)."""
    kept: bool = False
    """Whether its replies are kept, and not sent to here: then the await ends when the request is safe."""
    key: str | None = None
    """Under which key its messages are sealed, where they are: None: this side's own. Empty: under none."""

    def __repr__(self) -> str:  # without the arguments, which a debugging event loop would log
        return f"<pending call {self.call.id} of {self.call.task!r}>"

    def answered(self, reply: Reply) -> None:
        """End the await with this reply, unless it ended already."""
        if not self.future.done():
            self.future.set_result(reply)

    def handed_over(self) -> None:
        """The request of a kept call is safe: its await has ended."""
        self.answered(wire.ended(self.call.id, Status.VALUE, "kept"))

    def fail(self, error: Exception) -> None:
        """End the await with an error, unless it ended already."""
        if not self.future.done():
            self.future.set_exception(error)


class CallTransport(Transport):
    """A transport that moves `Call` and `Reply` objects. A subclass hands calls over in `_post` (without waiting),
    gives every reply to `_resolve`, and tells workers of ended awaits in `_withdraw`. One that supports "streams"
    gives every `Item` and `End` to `_take_in`, and hands a `Credit` to its worker in `_grant`.

    Guarantees: every await ends in one reply (later ones are dropped), in `CallTimeout` at its deadline by this
    side's clock, in `CancelledError` when its task is cancelled, or in `CallConnectionLost` at disconnect.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"cancel", "at_most_once", "no_worker"})

    def __init__(self, namespace: str = "default") -> None:
        super().__init__(namespace)
        self._pending: dict[str, Pending] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refusal: str | None = f"{type(self).__name__} is not connected: await its connect() first"

    def usable(self, loop: asyncio.AbstractEventLoop) -> bool:
        return self._loop is loop

    def _opened(self) -> None:
        """Call at the end of `connect`: awaits of the running event loop are welcome."""
        self._loop = asyncio.get_running_loop()
        self._refusal = None
        _open.add(self)

    def _closed(self, reason: str) -> None:
        """Call at the start of `disconnect`: no more awaits, and those that are pending end here. Workers are told
        of those whose runs are not to go on without a caller."""
        self._refusal = reason
        self._loop = None
        _open.discard(self)
        for pending in list(self._pending.values()):
            if not pending.future.done():
                pending.fail(CallConnectionLost(f"{reason}: the outcome of {pending.call.task} cannot be known"))
                if pending.call.orphan == 0:
                    self._withdraw(pending)

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        loop = self._loop  # what runs: asking for that costs a system call before Python 3.12
        assert loop is not None, "there is one wherever there is no refusal"
        pending = Pending(call, options, loop.create_future())
        self._pending[call.id] = pending
        try:
            if call.timeout_ms is not None:
                self._set_timer(pending, call.timeout_ms / 1000)
            room = self._room()
            if room is not None:
                await self._wait_for_room(pending, room)
            if not pending.future.done():
                self._post(pending)
            return await pending.future
        except asyncio.CancelledError:
            self._withdraw(pending)
            raise
        finally:
            if pending.timer is not None:
                pending.timer.cancel()
            del self._pending[call.id]

    async def _wait_for_room(self, pending: Pending, room: asyncio.Future[None]) -> None:
        """Return when the call may be handed over, or has ended: its deadline holds here too."""
        while True:
            await asyncio.wait((room, pending.future), return_when=asyncio.FIRST_COMPLETED)
            if pending.future.done() or (again := self._room()) is None:
                return
            room = again

    def _room(self) -> asyncio.Future[None] | None:
        """What to await before asking again whether more may be handed over; None: it may."""
        return None

    async def open_stream(self, inflow: Inflow) -> None:
        """Have a worker run a stream, whose items go to `inflow`. Raises as `request` does. Its consumer calls
        `close_stream` in any case."""
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        call, loop = inflow.call, asyncio.get_running_loop()
        pending = Pending(call, inflow.options, loop.create_future())
        pending.inflow = inflow
        self._pending[call.id] = pending
        inflow.opened(pending)
        if call.timeout_ms is not None:
            self._set_timer(pending, call.timeout_ms / 1000)
        room = self._room()
        if room is not None:
            await self._wait_for_room(pending, room)
        if not pending.future.done():  # else reading it says how it ended
            self._post(pending)

    def close_stream(self, pending: Pending) -> None:
        """The consumer wants no more of it: tell the workers, unless it has ended. Safe to call again."""
        if pending.timer is not None:
            pending.timer.cancel()
        if self._pending.pop(pending.call.id, None) is not None and not pending.future.done():
            pending.future.cancel()
            self._withdraw(pending)

    def forsake_streams(self) -> None:
        """The current task leaves a block: streams that it has read, or a task that has ended, nobody reads on."""
        for pending in list(self._pending.values()):
            if pending.inflow is not None:
                pending.inflow.forsake(asyncio.current_task())

    def _take_in(self, envelope: Item | End) -> None:
        """Items of a stream have arrived, or its end; those of one that nobody reads (any more) are dropped."""
        pending = self._pending.get(envelope.id)
        if pending is not None and pending.inflow is not None:
            pending.inflow.receive(envelope)

    def _grant(self, credit: Credit, worker: str) -> None:
        """Hand this to the worker of that id, without waiting. It may get lost, if a later one arrives."""
        raise NotImplementedError(f"{type(self).__name__} supports streams and has no _grant()")

    @abstractmethod
    def _post(self, pending: Pending) -> None:
        """Hand the call over to the wire, without waiting."""

    @abstractmethod
    def _withdraw(self, pending: Pending) -> None:
        """The await has ended without a reply: tell the workers, without waiting."""

    def _resolve(self, reply: Reply) -> None:
        """A reply has arrived; one that nobody awaits (any more) is dropped."""
        pending = self._pending.get(reply.id)
        if pending is not None:
            pending.answered(reply)

    def _set_timer(self, pending: Pending, seconds: float) -> None:
        """End the await after so many seconds, and find out a little before where the call is."""
        assert self._loop is not None, "it is connected"
        pending.deadline = until = self._loop.time() + seconds
        lead = min(LOCATE_SECONDS, seconds * LOCATE_SHARE)
        pending.timer = self._loop.call_at(until - lead, self._nearly_expired, pending, until)

    def _nearly_expired(self, pending: Pending, until: float) -> None:
        if self._loop is not None and not pending.future.done():
            pending.timer = self._loop.call_at(until, self._expire, pending)
            self._locate(pending)

    def _locate(self, pending: Pending) -> None:
        """Find out where the call is, without waiting: its deadline is near."""

    def _expire(self, pending: Pending) -> None:
        if not pending.future.done():
            now = asyncio.get_running_loop().time()
            pending.future.set_exception(timed_out(pending.call, pending.where, now))
            self._withdraw(pending)


_open: weakref.WeakSet[CallTransport] = weakref.WeakSet()


def _after_fork() -> None:
    """A connection shared with the parent process would mix both conversations: the child must open its own."""
    for transport in list(_open):
        transport._refusal = (
            "this process was forked from one that had connected; connections do not survive a fork: "
            "enter atasks.connect(url) in the child"
        )
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


class LoopbackTransport(CallTransport):
    """Runs every call in this process, for unit tests and a first run.

    Arguments and results go through the codec, calls through a worker with slots, deadlines and cancellation, so
    what works here works over a broker. Calls wait until a worker serves, as they do on a queue. `keep_runs` is
    for how many seconds the results of a pipeline's run are kept when nobody uses them, while this is connected,
    and `keep_bytes` how many bytes there may be of them.
    """

    supports = CallTransport.supports | {"streams"}
    clock_skew: float = 0.0
    """Seconds by which the clock may differ: it is the same one."""

    def __init__(
        self,
        namespace: str = "default",
        *,
        keep_runs: float = DEFAULT_EXPIRES,
        keep_bytes: int = DEFAULT_KEEP_BYTES,
    ) -> None:
        records = MemoryRecords(self, keep_runs, keep_bytes)
        super().__init__(namespace)
        self._memory = records
        self._worker: Worker | None = None
        self._workers: dict[str, Worker] = {}
        """Those that have served, by id: one that drains still has streams."""
        self._waiting: dict[str, Pending] = {}
        self._unserved = Unserved(logger)
        self._look: asyncio.TimerHandle | None = None
        # a subclass with a send_request of its own (a test's spy, say) gets every call through it
        self._minimal = type(self).send_request is not LoopbackTransport.send_request
        self.records = None if self._minimal else records

    async def connect(self) -> None:
        self._opened()
        self._memory.open()

    async def disconnect(self) -> None:
        self._closed("the loopback transport was disconnected")
        self._waiting.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._workers.clear()
        self._memory.close()

    async def send_request(self, name: str, content: bytes) -> bytes:
        if self.callback is None:
            raise NoWorker(f"nothing serves {name!r}: register a callback, or activate a router, first")
        return await self.callback(name, content)

    # Any coroutine will do: pyright takes that of an `async def` for a narrower type.
    def request(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, call: Call, options: TaskOptions
    ) -> Coroutine[Any, Any, Reply]:
        kind = Transport if self._minimal else CallTransport
        return kind.request(self, call, options)

    async def serve(self, worker: Worker, queues: Sequence[str] | None = None) -> None:
        await super().serve(worker, queues)
        self._worker = self._workers[worker.id] = worker
        waiting, self._waiting = self._waiting, {}
        for pending in waiting.values():
            self._post(pending)

    def waited(self, call: Call, delivery: Delivery | None) -> float:
        return max(time.time() - call.sent_ms / 1000 - self.clock_skew, 0.0)

    async def stop_serving(self, worker: Worker) -> None:
        if self._worker is worker:  # else another one took over
            await super().stop_serving(worker)
            self._worker = None

    def _post(self, pending: Pending) -> None:
        pending.kept = pending.call.id in self._memory.opening
        if self._worker is not None:
            self._worker.deliver(pending.call, _Delivery(self, pending))
            if pending.kept:
                pending.handed_over()
        elif pending.options.on_no_worker == "error":
            raise NoWorker(f"nothing serves {pending.call.task!r}: activate a router with this transport")
        else:
            self._wait(pending)

    def _wait(self, pending: Pending) -> None:
        """Keep the call for the next worker, and warn if none comes."""
        loop = asyncio.get_running_loop()
        pending.since = loop.time()
        self._waiting[pending.call.id] = pending
        if self._look is None:
            self._look = loop.call_later(WARN_SECONDS, self._warn)

    def _warn(self) -> None:
        loop, self._look = asyncio.get_running_loop(), None
        if self._waiting:
            self._look = loop.call_later(WARN_SECONDS, self._warn)
            queues: dict[str, list[Pending]] = {}
            for pending in self._waiting.values():
                queues.setdefault(pending.options.queue or "default", []).append(pending)
            for queue, pendings in queues.items():
                self._unserved.see(queue, pendings, loop.time())

    def _withdraw(self, pending: Pending) -> None:
        if self._waiting.pop(pending.call.id, None) is None:
            for worker in self._workers.values():
                worker.cancel(pending.call.id)

    def _locate(self, pending: Pending) -> None:
        found = (run for worker in self._workers.values() if (run := worker.find(pending.call.id)) is not None)
        run = next(found, None)
        if run is not None:
            pending.where = found_at(run)
        elif self._worker is None:
            pending.where = Whereabouts("worker", pending.options.queue or "default")

    def _grant(self, credit: Credit, worker: str) -> None:
        if worker in self._workers:
            self._workers[worker].streams.credit(credit)


class _Delivery(Struct, eq=False):
    """A call that the worker has in hand."""

    transport: LoopbackTransport
    pending: Pending

    def reply(self, reply: Reply | End) -> None:
        if isinstance(reply, End):
            self.transport._take_in(reply)
        elif self.pending.kept:
            self.transport._memory.end(reply)
        else:
            self.transport._resolve(reply)

    def send(self, envelope: Item | End) -> None:
        self.transport._take_in(envelope)

    def drop(self) -> None:
        pass

    async def pass_on(self, call: Call) -> Call | None:
        return None

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        if self._is_wanted():
            asyncio.get_running_loop().call_soon(self._return)

    def _is_wanted(self) -> bool:
        return self.pending.kept or not self.pending.future.done()

    def _return(self) -> None:
        """Go to the worker that is attached by now, or wait for the next one."""
        if not self._is_wanted():
            return
        if self.transport._worker is None:
            self.transport._wait(self.pending)
        else:
            self.transport._post(self.pending)
