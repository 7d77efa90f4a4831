"""`StreamReceiver`: the items that have arrived of a stream, at its consumer."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from atasks.errors import CallConnectionLost, CallError, CallTimeout, DecodeError, StreamLost
from atasks.options import WIDEST_WINDOW
from atasks.transport.whereabouts import Whereabouts
from atasks.wire import STREAM_BYTES, VERSION, Call, Credit, End, Item, Reply, Status

if TYPE_CHECKING:
    from atasks.options import TaskOptions
    from atasks.transport.call_transport import CallTransport
    from atasks.transport.pending import Pending

__all__ = ["StreamReceiver"]

ASK_SECONDS: Final = 2.0
"""Seconds after which the worker of a stream that has ended is asked again for the items that are missing."""
MAX_ASKED: Final = 10
"""The number of questions in a row that a worker may leave without an item as the answer."""


class StreamReceiver:
    """Takes the items of one stream in, and hands them out in order, each once.

    Tells the worker whenever half a window was taken, and when something is missing. What arrives of a run that
    another one has replaced is dropped.
    """

    __slots__ = (
        "_ask_timer",
        "_asked",
        "_attempt",
        "_codec",
        "_credit_at",
        "_credit_bytes_at",
        "_early",
        "_end",
        "_former",
        "_heard_since",
        "_missing",
        "_reader",
        "_received_bytes",
        "_taken",
        "_taken_bytes",
        "_told",
        "_transport",
        "_waited_at",
        "_waiter",
        "_window",
        "_worker",
        "call",
        "complete",
        "options",
        "payloads",
        "pending",
        "received",
    )

    def __init__(self, transport: CallTransport, call: Call, options: TaskOptions) -> None:
        self.call = call
        self.pending: Pending | None = None
        self.payloads: deque[bytes] = deque()
        """Received and not taken; the consumer of the stream takes them by `take`."""
        self.received = 0
        """Items that arrived, none missing before them."""
        self.complete = False
        """True once the worker has said how the stream ended, and no item before that is missing."""
        self.options = options
        self._transport = transport
        self._codec = call.codec
        self._received_bytes = 0
        self._taken = 0
        self._taken_bytes = 0
        self._window = call.credit
        """Items that may be ahead of what was taken."""
        self._waited_at = 0
        """Items that had arrived when the consumer had to wait last."""
        self._told = 0
        """Items that had been taken when the worker was told last."""
        self._credit_at = self._half_window
        self._credit_bytes_at = STREAM_BYTES // 2
        self._early: dict[int, Item] = {}
        """Items that came before their predecessors, by the number of the first one."""
        self._missing = -1
        """The item that the worker was asked to send again."""
        self._end: End | None = None
        self._asked = 0
        self._ask_timer: asyncio.TimerHandle | None = None
        self._worker = ""
        """The worker that runs it."""
        self._heard_since = 0.0
        """When that was heard for the first time (event loop time)."""
        self._former: set[str] = set()
        """Workers that ran it before."""
        self._attempt = 0
        self._waiter: asyncio.Future[None] | None = None
        self._reader: weakref.ref[asyncio.Task[Any]] | None = None
        """The task that has asked for items last, of those that had to wait."""

    @property
    def _half_window(self) -> int:
        return max(1, self._window // 2)

    # -- for the consumer

    async def open(self) -> None:
        """Have a worker run the stream."""
        self._note_reader()
        await self._transport.open_stream(self)

    def take(self) -> bytes:
        """The next item, which is there."""
        payload = self.payloads.popleft()
        self._taken += 1
        self._taken_bytes += len(payload)
        if self._taken >= self._credit_at or self._taken_bytes >= self._credit_bytes_at:
            self._credit()
        return payload

    async def wait(self) -> None:
        """Return when there are items, or the stream has ended."""
        assert self.pending is not None, "it was opened"
        self._note_reader()
        if not self.payloads:
            self._catch_up()
        while not self.payloads and not self.pending.future.done():
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _catch_up(self) -> None:
        """The consumer has taken all that came. If half a window or more has come since it waited last, a window
        for each way to the worker and back is too little. The worker may not know that it has grown, and wait for
        the word on half of the first one."""
        come, self._waited_at = self.received - self._waited_at, self.received
        if self.options.window is None and self._half_window <= come and self._window < WIDEST_WINDOW:
            self._window = min(2 * self._window, WIDEST_WINDOW)
            self._credit()
        elif self._window > self.call.credit and self._taken - self._told >= max(1, self.call.credit // 2):
            self._credit()

    def _note_reader(self) -> None:
        task = asyncio.current_task()
        self._reader = None if task is None else weakref.ref(task)

    def forsake(self, leaving: asyncio.Task[Any] | None) -> None:
        """End the stream if nobody else reads it: this task is about to leave its block."""
        reader = None if self._reader is None else self._reader()
        if self._waiter is None and (reader is None or reader is leaving or reader.done()):
            reason = "the block in which it was read was left"
            self._fail(CallConnectionLost(f"{reason}: the outcome of {self.call.task} cannot be known"))

    # -- for the transport

    def opened(self, pending: Pending) -> None:
        """Note the pending call, before the request is sent."""
        self.pending = pending
        pending.future.add_done_callback(self._on_ending)

    def receive(self, envelope: Item | End) -> None:
        """Something arrived for this stream."""
        pending = self.pending
        if pending is None or pending.future.done():
            return
        if isinstance(envelope, Item):
            if self._is_current(envelope.worker, envelope.attempt):
                if self._end is None:
                    self._stop_asking()
                self._take_in(envelope)
        elif self._is_current(envelope.reply.worker, envelope.attempt):
            self._end = envelope
            if envelope.count > self.received:
                self._ask_for_the_rest()
        if self._end is not None and self._end.count <= self.received and not pending.future.done():
            self.complete = True
            pending.future.set_result(self._end.reply)

    @property
    def begun(self) -> bool:
        """The worker that runs the stream is known."""
        return bool(self._worker)

    def ask(self, worker: str = "") -> None:
        """Have the worker that runs it, or this one, send what has not arrived: it may have gone elsewhere. Asks
        again and again, until something is heard."""
        if self._end is not None:
            self._ask_for_the_rest()
            return
        self._stop_asking()
        self._credit(self.received, worker)
        self._ask_timer = asyncio.get_running_loop().call_later(ASK_SECONDS, self.ask)

    def _ask_for_the_rest(self) -> None:
        """The worker is done, and asks no more questions of its own."""
        self._stop_asking()
        self._asked += 1
        if self._asked > MAX_ASKED:
            self._lose("its last items were lost on the way")
        else:
            self._credit(self.received)
            self._ask_timer = asyncio.get_running_loop().call_later(ASK_SECONDS, self._ask_for_the_rest)

    def _stop_asking(self) -> None:
        if self._ask_timer is not None:
            self._ask_timer.cancel()
            self._ask_timer = None

    def _is_current(self, worker: str, attempt: int) -> bool:
        """Return True if this comes from the run that counts; a newer run takes the place of the one before."""
        if worker == self._worker:
            self._attempt = max(self._attempt, attempt)
            return True
        if worker in self._former or attempt < self._attempt:
            return False
        if self.received and not self.options.replayable:
            self._lose("the worker that ran it is gone")
            return False
        if self._worker:
            self._former.add(self._worker)
        self._worker, self._attempt = worker, attempt
        self._heard_since = asyncio.get_running_loop().time()
        self._early.clear()
        self._stop_asking()
        self._end = None
        self._missing = -1
        return True

    def _take_in(self, item: Item) -> None:
        if item.codec != self._codec:
            self._fail(
                DecodeError(
                    f"the items of {self.call.task} are encoded by {item.codec!r}, and this side has "
                    f"{self._codec!r}: construct the same codec on both sides"
                )
            )
            return
        if item.first + len(item.payloads) - self._taken > self._window:
            self._lose(f"its worker sent more than the window of {self._window} items")
        elif not item.payloads:
            self._credit(self.received if item.first != self.received else None)
        elif item.first > self.received:
            if self._has_room(sum(len(one) for early in self._early.values() for one in early.payloads)):
                self._early[item.first] = item
            if self._missing != self.received:
                self._missing = self.received
                self._credit(self.received)
        else:
            self._append(item)
            while self._early and (first := min(self._early)) <= self.received:
                self._append(self._early.pop(first))
            if self._waiter is not None and self.payloads and not self._waiter.done():
                self._waiter.set_result(None)

    def _append(self, item: Item) -> None:
        """Append the new ones of items that begin at the next one or before it."""
        known = self.received - item.first
        fresh = item.payloads[known:] if known else item.payloads
        if fresh:
            size = sum(map(len, fresh))
            if not self._has_room(size - len(fresh[-1])):
                self._lose(f"its worker sent more than {STREAM_BYTES} bytes ahead")
                return
            self.payloads.extend(fresh)
            self.received += len(fresh)
            self._received_bytes += size
            self._asked = 0

    def _has_room(self, size: int) -> bool:
        """Return True if a worker may send one more item ahead, behind so many bytes."""
        return self._received_bytes - self._taken_bytes + size < STREAM_BYTES

    @property
    def seen(self) -> Whereabouts | None:
        """The run of the stream, as far as what arrives from it tells; None: nothing has arrived."""
        if not self._worker:
            return None
        now = asyncio.get_running_loop().time()
        return Whereabouts("run", worker=self._worker, ran=now - self._heard_since, told=now)

    def _credit(self, again: int | None = None, worker: str = "") -> None:
        """Tell the worker how far this side is."""
        self._told = self._taken
        self._credit_at = self._taken + self._half_window
        self._credit_bytes_at = self._taken_bytes + STREAM_BYTES // 2
        worker = worker or self._worker
        if worker and not self.complete:
            window = self._window if self._window > self.call.credit else 0
            credit = Credit(VERSION, self.call.id, self._taken, self._taken_bytes, again, window)
            self._transport._grant(credit, worker)

    def _lose(self, why: str) -> None:
        self._fail(lost(self.call, self.received, why))

    def _fail(self, error: Exception) -> None:
        """End it here, and have whoever runs it stop."""
        assert self.pending is not None, "something arrived for it"
        if not self.pending.future.done():
            self._transport._withdraw(self.pending)
            self.pending.fail(error)

    def _on_ending(self, ending: asyncio.Future[Reply]) -> None:
        """End the stream with this reply, whoever made it."""
        self._stop_asking()
        if not ending.cancelled():
            error = ending.exception()
            late = ending.result().status == Status.TIMED_OUT if error is None else isinstance(error, CallTimeout)
            if late:
                self.payloads.clear()  # the time is up for the consumer too, whichever side has noticed first
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self.close()

    def close(self) -> None:
        """The consumer wants no more: whoever runs it is told. Does nothing if it has ended."""
        if self.pending is not None:
            self._transport.close_stream(self.pending)


def lost(call: Call, items: int, why: str, seen: CallError | None = None) -> StreamLost:
    """The error of a stream that cannot go on; `seen` says where it was."""
    error = StreamLost(
        f"{call.task} was lost after {items} items: {why}; if it yields the same items each time, "
        "replayable=True lets another worker begin anew",
        items,
    )
    if seen is not None:
        error.waited_for, error.worker, error.ran, error.awaited = (
            seen.waited_for,
            seen.worker,
            seen.ran,
            seen.awaited,
        )
    return error
