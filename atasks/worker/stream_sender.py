"""The items that a stream has sent and its consumer has not taken, at the worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from atasks.options import MAX_WINDOW
from atasks.wire import STREAM_BYTES, VERSION, Credit, End, Item, Reply

if TYPE_CHECKING:
    from atasks.transport.delivery import Delivery
    from atasks.worker.held_call import HeldCall

__all__ = ["StreamSender"]

BATCH_BYTES: Final = 64 * 2**10
"""Bytes of items after which a message is sent in the middle of a turn of the event loop."""


class StreamSender:
    """The items of one run of a stream, on their way to the consumer.

    Those of one turn of the event loop leave together. At most a window of them is sent and not known to be taken;
    these are kept, so that they can be sent again if they are lost on the way.
    """

    __slots__ = (
        "_answered",
        "_base",
        "_bytes",
        "_fresh",
        "_fresh_bytes",
        "_kept",
        "_skip",
        "_taken",
        "_waiter",
        "codec",
        "end",
        "produced",
        "quiet",
        "run",
        "window",
    )

    def __init__(self, run: HeldCall, codec: str) -> None:
        self.run = run
        self.codec = codec
        self.window = run.call.credit
        self.produced = 0
        """Items that the generator has yielded."""
        self.end: End | None = None
        """The end of the stream, once there is one."""
        self.quiet = False
        """True while nothing was sent since this was set."""
        self._taken = 0
        """Items that the consumer has taken, as far as is known here."""
        self._kept: deque[bytes] = deque()
        self._base = 0
        """Number of the first one that is kept."""
        self._bytes = 0
        """Bytes of the payloads that are kept."""
        self._skip = 0
        """Items that the consumer has from an earlier run: they are not sent."""
        self._fresh: list[bytes] = []
        """The last ones of those that are kept: not sent yet."""
        self._fresh_bytes = 0
        self._answered = False
        """True once the consumer has said which item it needs next."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return self._bytes

    @property
    def full(self) -> bool:
        """The window has no room for another item."""
        return self.produced - self._taken >= self.window or self._bytes >= STREAM_BYTES

    @property
    def skipping(self) -> bool:
        """The consumer already has the next item."""
        return self.produced < self._skip

    def put(self, payload: bytes) -> None:
        """Send an item, at the end of this turn of the event loop at the latest."""
        if self.produced < self._skip:
            self.produced += 1
            self._base = self.produced
            return
        size = len(payload)
        if self._fresh_bytes + size > BATCH_BYTES:
            self.flush()
        self.produced += 1
        if not self._fresh:
            self.run.loop.call_soon(self.flush)
        self._kept.append(payload)
        self._bytes += size
        self._fresh.append(payload)
        self._fresh_bytes += size

    def flush(self) -> None:
        """Send what was put."""
        if self._fresh:
            fresh, self._fresh, self._fresh_bytes = self._fresh, [], 0
            self._send(self.produced - len(fresh), fresh)

    def ask(self) -> None:
        """Ask the consumer where it is: what it lacks is sent again, if it is kept here still."""
        self.flush()
        self._send(self.produced, [])

    def finish(self, reply: Reply) -> End:
        """The run has ended like this."""
        self.flush()
        self.end = End(VERSION, self.run.call.id, self.produced, reply, self.run.call.attempt)
        return self.end

    def credited(self, credit: Credit) -> None:
        """The consumer says where it is."""
        self._answered = True
        self._taken = max(self._taken, credit.items)
        self.window = min(max(self.window, credit.window), MAX_WINDOW)
        while self._kept and self._base < self._taken:
            self._bytes -= len(self._kept.popleft())
            self._base += 1
        if credit.again is not None:
            self._send_again(credit.again)
        if not self.full:
            self._wake()

    async def room(self) -> None:
        """Return when the window has room, parked meanwhile. Raises TooManyParked."""
        self.flush()
        while self.full:
            await self._wait()

    async def greet(self) -> None:
        """Ask the consumer where it is, before a run that is not the first one begins. Raises TooManyParked."""
        self.ask()
        while not self._answered:
            await self._wait()

    async def _wait(self) -> None:
        run = self.run
        if run.reason is not None:  # cancelled: the generator suppressed it, or it strikes in the next turn
            await asyncio.sleep(0)
            raise asyncio.CancelledError
        waiter = self._waiter = run.loop.create_future()
        run.park()
        try:
            await waiter
        finally:
            self._waiter = None
            await run.unpark()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _send_again(self, first: int) -> None:
        """The consumer has nothing from this item on."""
        if first > self.produced:  # it has them from an earlier run
            self._skip = first
            return
        self.flush()
        batch: list[bytes] = []
        size = 0
        for payload in islice(self._kept, max(0, first - self._base), None):
            if batch and size + len(payload) > BATCH_BYTES:
                self._send(first, batch)
                first += len(batch)
                batch, size = [], 0
            batch.append(payload)
            size += len(payload)
        if batch:
            self._send(first, batch)
        if self.end is not None:
            self._delivery.send(self.end)

    def _send(self, first: int, payloads: Sequence[bytes]) -> None:
        self.quiet = False
        call, worker = self.run.call, self.run.worker
        self._delivery.send(Item(VERSION, call.id, first, list(payloads), self.codec, worker.id, call.attempt))

    @property
    def _delivery(self) -> Delivery:
        """The latest one: those before may be of a connection, or of a reply address, that is gone."""
        return self.run.deliveries[-1]
