"""The contract of a transport.

A transport moves requests and replies of one namespace. There are two levels:

- The minimal contract, for a transport of your own: `connect`, `disconnect` and `send_request(name, content)`.
  Both contents are opaque messages of wire v1, so ids, deadlines and the chain of calls travel inside.
- The rich contract, which the router and the worker speak: `request(call, options)` and `serve(worker)`. What a
  transport may ask of the worker is in `server.py`.
  `Transport` adapts the minimal contract to it; `CallTransport` implements the caller's half for transports that
  move `Call` and `Reply` objects, cancellation included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from atasks import wire
from atasks.errors import (
    CallConnectionLost,
    CallError,
    NotSupported,
)
from atasks.namespaces import namespaces
from atasks.options import Executor, TaskOptions, validate_queue
from atasks.outlast import ends_at
from atasks.tracking.counters import ENDED, RECEIVED, callers, failed, replied
from atasks.transport.minimal import respond
from atasks.transport.whereabouts import timed_out
from atasks.wire import Call, Reply

if TYPE_CHECKING:
    from atasks.codecs.pieces import Pieces
    from atasks.tracking.steering import DeadLetters, Purged
    from atasks.tracking.watching import Watching
    from atasks.transport.delivery import Delivery
    from atasks.transport.journals import Journals
    from atasks.transport.limits.contract import Limits
    from atasks.transport.pending import Pending, PlainPending
    from atasks.transport.records.contract import Records
    from atasks.transport.schedules import Schedules
    from atasks.transport.server import Server

__all__ = ["RequestCallback", "Transport", "get_transport"]


RequestCallback = Callable[[str, bytes], Awaitable[bytes]]
"""`await callback(name, content) -> bytes`: what serves the requests that a minimal transport receives."""


DEFAULT_MAX_PAYLOAD = 64 * 2**20


class Transport:
    """Moves requests and replies of one namespace.

    Constructing a transport registers it in its namespace: awaits there use it, unless an `atasks.connect` of the
    running event loop shadows it. A subclass needs `connect`, `disconnect` and `send_request`.
    """

    supports: ClassVar[frozenset[str]] = frozenset()
    """The abilities beyond the minimal contract: "cancel" (the remote run ends when the await does),
    "at_most_once", "no_worker" (the transport can tell that nothing serves a queue), "streams",
    "events", and "reports" (the progress of calls comes back)."""

    redelivers: ClassVar[bool] = False
    """True if one call may be delivered more than once, so that workers must remember those they finished."""

    measures_work: ClassVar[bool] = False
    """True if replies are to say how much work a run did that awaited other calls: `Reply.work_us`."""

    max_payload: int = DEFAULT_MAX_PAYLOAD
    """Bytes of arguments or of a result that it moves; more is a `PayloadTooLarge`."""

    records: Records | None = None
    """Keeps what becomes of the runs of pipelines; None: it cannot do that."""

    journals: Journals | None = None
    """Keeps the journals of calls that resume; None: it cannot do that."""

    limits: Limits | None = None
    """Hands out the tokens of limits; None: it has none."""
    schedules: Schedules | None = None
    """Keeps schedules, and says which worker keeps their times; None: it cannot do that."""
    queue: str = "default"
    """The work queue of calls of atasks that name none."""

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = validate_queue(namespace, "namespace")
        self.callback: RequestCallback | None = None
        # Not of the class: to read an attribute that the class has too costs each call ten times as much.
        self.serves = self.watching = None
        self.counters = callers.new(self, self.namespace)
        """The counters of the calls that are made over the transport."""
        namespaces.register(namespace, transport=self)

    def keep(self, payload: Pieces) -> bytes | Pieces:
        """Return a payload in pieces as it waits to be sent: whoever has the memory of a piece may write to it."""
        return bytes(payload)

    @property
    def is_connected(self) -> bool:
        """False while a lost connection is being restored, and where there was none or will be none."""
        return True

    async def queue_states(self, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Work queue -> how many calls are ready in it, and its consumers; without those that are not there. Empty
        where that cannot be told."""
        return {}

    async def pause_queue(self, queue: str) -> None:
        """Have workers take no new calls of the queue, those that come later too, until it is resumed. Those that
        are there may have to be told: `Fleet.pause` does that."""
        raise NotSupported(f"{type(self).__name__} has no queue that others could pause")

    async def resume_queue(self, queue: str) -> None:
        """Undo `pause_queue`."""
        raise NotSupported(f"{type(self).__name__} has no queue that others could pause")

    async def paused_queues(self, queues: Sequence[str]) -> list[str]:
        """Return those of the queues that are paused."""
        return []

    async def purge_queue(self, queue: str) -> Purged:
        """End the calls that wait in the queue: their awaits end in `CallCancelled`."""
        raise NotSupported(f"{type(self).__name__} has no queue that others could purge")

    def dead_letters(self) -> AbstractAsyncContextManager[DeadLetters]:
        """A block in which the messages that could be neither read nor answered can be looked at, put back into
        their queues, or dropped."""
        raise NotSupported(f"{type(self).__name__} keeps no messages that cannot be read")

    async def dead_count(self) -> int:
        """Return the number of these messages."""
        return 0

    @classmethod
    def from_url(cls, url: str | Sequence[str], namespace: str, options: dict[str, Any]) -> Transport:
        """Make the transport for a URL of `connect` or `serve`: here nothing but its scheme counts."""
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

    @property
    def refused(self) -> dict[str, int]:
        """Messages that it refused although they could be read, by the reason."""
        return {}

    def pendings(self) -> list[Pending]:
        """The calls that are awaited over it, as far as it knows them."""
        return []

    serves: Server | None
    """The worker that takes its requests."""

    watching: Watching | None
    """Tells of calls that are made over it, while somebody watches its worker."""

    def send_events(self, token: str, worker: str, content: bytes, voice: str | None) -> bool:
        """Send who watches a worker of this process under that token what has happened, without waiting. False: it
        takes no more for now. It may get lost."""
        return False

    def end_await(self, pending: Pending) -> None:
        """End one of those awaits in `CallCancelled`, and its run."""

    def will_serve(self) -> None:
        """Called before `connect` where a worker is going to be attached, for transports to which that matters."""

    def forsake_streams(self) -> None:
        """Called where the current task leaves a block, before its worker drains: see `CallTransport`."""

    def usable(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return True if awaits of this event loop may use this transport."""
        return True

    async def pause(self, seconds: float) -> bool:
        """Wait before a call is tried again. Returns False, at once, if there can be no other try: it was
        disconnected."""
        await asyncio.sleep(seconds)
        return True

    def begin_request(self, call: Call, options: TaskOptions) -> PlainPending | None:
        """Send the call at once. Returns None, having done nothing, where it has to wait for anything, or may take
        several tries. Raises as `request` does.

        Whoever begins a call awaits its future, and gives what comes of that to `end_request` or `fail_request`: a
        coroutine of `request` would be kept for each call in flight."""
        return None

    def end_request(self, pending: PlainPending, reply: Reply) -> None:
        """The await of a call that was begun has ended with its reply."""

    def fail_request(self, pending: PlainPending, error: BaseException) -> None:
        """The await of a call that was begun has raised."""

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        """Have a worker answer the call. Raises a `CallError`, or `CancelledError` when the task is cancelled."""
        row, began = self.counters.row(call.task), time.perf_counter()
        row[RECEIVED] += 1
        try:
            reply = await self._request(call, options)
        except BaseException as error:
            row[ENDED + failed(error)] += 1
            raise
        replied(row, reply.status, began)
        return reply

    async def _request(self, call: Call, options: TaskOptions) -> Reply:
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
        scope = asyncio.timeout(None)
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            async with scope:
                ends_at(scope, None if timeout is None else asyncio.get_running_loop().time() + timeout)
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

    async def publish(self, call: Call) -> None:
        """Have the handlers of an event run: `call.task` is its name, and nobody awaits what they return. Returns
        when the event is safe. A transport that does this hands out the events of `ServerTasks.subscriptions`."""
        raise NotSupported(f"{type(self).__name__} moves no events: publish them over another transport")

    async def serve(self, worker: Server, queues: Sequence[str] | None = None) -> None:
        """Deliver requests to the worker from now on; again after `stop_serving`, for the same worker."""
        await self.register_callback(partial(respond, worker))

    async def serve_also(self, worker: Server, queues: Sequence[str]) -> None:
        """Deliver requests of these queues too, to a worker that is being served, and the events that its atasks
        handle by now. Returns when that is so. By default nothing: all that arrives is delivered."""

    async def serve_no_more(self, worker: Server, queue: str) -> None:
        """Deliver no more requests of this queue to the worker. By default nothing."""

    async def stop_serving(self, worker: Server) -> None:
        """Deliver no more requests; replies to those that were delivered still leave."""
        await self.unregister_callback()

    async def has_other_workers(self, worker: Server) -> bool:
        """Return True if another worker serves each of the queues of this one, as far as can be known."""
        return False

    async def flush(self) -> None:
        """Return when every reply handed over so far is safe."""

    def waited(self, call: Call, delivery: Delivery | None) -> float:
        """For how many seconds a call that is delivered now has been under way for certain. The clocks of caller
        and worker may differ, and a call that ends too early is worse than one that ends late: its caller has a
        timer of its own."""
        return 0.0

    def slots_changed(self, worker: Server) -> None:
        """The worker has free slots and nothing to put in them: a chance to ask for more."""

    def overfull(self, worker: Server) -> None:
        """Calls wait in the worker for a slot for some time: a chance to let other workers have them."""

    def lacks_place(self, worker: Server, executor: Executor) -> None:
        """Calls wait in the worker for a place in a pool: a chance to let other workers have them."""


def _lost(transport: Transport, call: Call, error: BaseException) -> CallConnectionLost:
    return CallConnectionLost(
        f"{type(transport).__name__} lost {call.task} ({type(error).__name__}): the outcome cannot be known"
    )


def get_transport(namespace: str = "default") -> Transport | None:
    """The transport that was constructed last for the namespace, or None."""
    return getattr(namespaces.get(namespace), "transport", None)
