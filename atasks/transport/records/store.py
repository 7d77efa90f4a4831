"""Records in the memory of one process: what the loopback transport and the hub of the local one keep."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextvars import Context
from typing import Final, Generic, TypeVar

from atasks import wire
from atasks.transport.records.contract import Record
from atasks.wire import Call, Reply, Status

__all__ = ["DEFAULT_KEEP_BYTES", "LARGEST_KEEP_BYTES", "RecordStore", "check_keep_bytes"]

K = TypeVar("K", bound=Hashable)

DEFAULT_KEEP_BYTES: Final = 256 * 2**20
LARGEST_KEEP_BYTES: Final = 2**30
"""A record may be sent whole, in one frame."""
OVERHEAD: Final = 500
"""Bytes of a call or a reply besides its payload, roughly."""


class RecordStore(Generic[K]):
    """Keeps records, of `max_bytes` in all, each until it was not used for its own time.

    Where there is no room for more, records of calls that have ended and whose end was read are forgotten before
    their time, those first that were not used for longest; others never are. `forgotten` is called with the key
    and the record for each one that is forgotten, but for those that `close` and `forget` forget. A record is in
    use while `in_hand` says of the id of its call that a worker has it. One that expires after 0 seconds is a mark
    that its call has not ended: it cannot be read, and goes when the call ends.
    """

    def __init__(
        self,
        max_bytes: int,
        forgotten: Callable[[K, Record], object],
        in_hand: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        """Bytes, roughly."""
        self._forgotten = forgotten
        self._in_hand = in_hand
        self._stored: dict[K, _Stored] = {}
        self._spent: OrderedDict[K, _Stored] = OrderedDict()
        """Those that have ended and were read since, in the order in which they were used."""
        self._holders: dict[Hashable, K] = {}
        """Value given as `base` -> the key of the record that has it."""
        self._loop = asyncio.get_running_loop()
        self._no_context = Context()
        """For timers, which would keep the call that makes a record for as long as the record."""

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, key: K) -> bool:
        return key in self._stored

    def open(self, key: K, record: Record, base: Hashable = None) -> bool:
        """Keep a record from now on; False: there is no room. `base`: what it has, and no other one may have."""
        size = _weight(record)
        if not self._make_room(size):
            return False
        stored = self._stored[key] = _Stored(record, size, self._loop.time() + record.expires, base)
        if record.expires:
            stored.timer = self._loop.call_at(stored.until, self._expire, key, stored, context=self._no_context)
        if base is not None:
            self._holders[base] = key
        self.size += size
        return True

    def holder(self, base: Hashable) -> K | None:
        """The key of the record that has this base; None: none has."""
        return self._holders.get(base)

    def find(self, key: K) -> Record | None:
        """The record, whose time begins anew; None if there is none."""
        stored = self._use(key)
        return None if stored is None else stored.record

    def read(self, key: K) -> Record | None:
        """Like `find`; also marks a record that has an ending as read, so that it may be dropped early."""
        stored = self._use(key)
        if stored is None:
            return None
        if stored.record.ending is not None:
            self._spent[key] = stored
        return stored.record

    def add(self, key: K, reply: Reply) -> bool:
        """Put the reply into the record of that key, which there is; False: there is no room."""
        stored = self._use(key)
        assert stored is not None, "it was found before"
        size = len(reply.payload) + len(reply.codec) + len(reply.worker) + OVERHEAD
        if reply.id in stored.record.replies:
            return True
        self._spent.pop(key, None)  # a call must not be forgotten to make room for its own reply
        if not self._make_room(size):
            return False
        reply.payload = bytes(reply.payload)  # it may have been in pieces
        stored.record.add(reply)
        stored.size += size
        self.size += size
        return True

    def go_on(self, key: K, call: Call) -> bool | None:
        """Let this call take the place of the one that has ended; False if it may not, None: there is no room."""
        stored = self._use(key)
        assert stored is not None, "it was found before"
        size = len(call.payload) + OVERHEAD
        was_spent = self._spent.pop(key, None)
        if not self._make_room(size):
            if was_spent is not None:
                self._spent[key] = was_spent
            return None
        if not stored.record.go_on(call):
            return False
        stored.size += size
        self.size += size
        return True

    def end(self, key: K, reply: Reply) -> None:
        """Like `add`, for the reply that ends the call. If there is no room for it, the call ends with the
        error that says so."""
        if not self._stored[key].record.expires:
            self.forget(key)
            return
        if not self.add(key, reply):
            message = (
                f"what call {reply.id} gave has {len(reply.payload)} bytes, and there is no room for it among the "
                f"{self.max_bytes} bytes of records: raise keep_bytes, shorten keep_runs, or pass references"
            )
            stored = self._stored[key]
            stored.record.add(wire.ended(reply.id, Status.TOO_LARGE, message))
            stored.size += OVERHEAD  # over the limit, if need be, so that the end of a call is never lost
            self.size += OVERHEAD

    def forget(self, key: K) -> None:
        """Keep it no longer, if it was kept."""
        self._spent.pop(key, None)
        stored = self._stored.pop(key, None)
        if stored is not None:
            self.size -= stored.size
            stored.cancel()
            if stored.base is not None:
                del self._holders[stored.base]

    def close(self) -> None:
        """Forget everything."""
        for stored in self._stored.values():
            stored.cancel()
        self._stored.clear()
        self._spent.clear()
        self._holders.clear()
        self.size = 0

    def _use(self, key: K) -> _Stored | None:
        stored = self._stored.get(key)
        if stored is not None:
            if not stored.record.expires:
                return None
            stored.until = self._loop.time() + stored.record.expires
            if key in self._spent:
                self._spent.move_to_end(key)
        return stored

    def _make_room(self, size: int) -> bool:
        """Return True if there is room for so many bytes more, after dropping what may be dropped."""
        while self.size + size > self.max_bytes and self._spent:
            key, stored = next(iter(self._spent.items()))
            self.forget(key)
            self._forgotten(key, stored.record)
        return self.size + size <= self.max_bytes

    def _expire(self, key: K, stored: _Stored) -> None:
        # Whoever runs it says so too, but a process may be held up, or this one.
        if self._in_hand(stored.record.call.id):
            self._use(key)
        if self._loop.time() < stored.until:  # it was used meanwhile
            stored.timer = self._loop.call_at(stored.until, self._expire, key, stored, context=self._no_context)
        else:
            self.forget(key)
            self._forgotten(key, stored.record)


class _Stored:
    """A record that is kept."""

    __slots__ = ("base", "record", "size", "timer", "until")

    def __init__(self, record: Record, size: int, until: float, base: Hashable) -> None:
        self.record = record
        self.base = base
        self.size = size
        self.until = until
        """When it expires, if it is not used (event loop time)."""
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Stop the timer: the record does not expire any more."""
        if self.timer is not None:
            self.timer.cancel()


def _weight(record: Record) -> int:
    """Bytes of a record that begins, roughly."""
    call = record.call
    context = sum(len(name) + len(value) for name, value in (call.context or {}).items())
    return len(call.payload) + context + len(call.task) + len(call.codec) + len(record.head.queue) + OVERHEAD


def check_keep_bytes(value: object) -> int:
    """The option `keep_bytes` of transports that keep records in memory, checked."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"keep_bytes is a number of bytes, not {value!r}")
    if not 0 < value <= LARGEST_KEEP_BYTES:
        raise ValueError(f"keep_bytes={value!r}: bytes above 0, at most {LARGEST_KEEP_BYTES}")
    return value
