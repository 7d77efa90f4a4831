"""Keeping what becomes of calls in the memory of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from atasks.errors import NotConnected
from atasks.options import TaskOptions
from atasks.transport.records.contract import Record, Records, base_of, no_room, record_of, unknown_run
from atasks.transport.records.store import RecordStore, check_keep_bytes
from atasks.wire import VERSION, Call, Kept, Reply

if TYPE_CHECKING:
    from atasks.transport.loopback import LoopbackTransport
    from atasks.transport.server import Server

__all__ = ["MemoryRecords"]


class MemoryRecords(Records):
    """The records of a transport whose callers and workers are all in this process; `max_bytes` in all."""

    def __init__(self, transport: LoopbackTransport, expires: float, max_bytes: int) -> None:
        super().__init__(expires)
        self._transport = transport
        self._max_bytes = check_keep_bytes(max_bytes)
        self._store: RecordStore[str] | None = None
        self._watches: dict[str, list[asyncio.Event]] = {}

    def open(self) -> None:
        """Keep records from now on, in this event loop."""
        self._store = RecordStore(self._max_bytes, lambda key, _: self._wake(key), self._in_hand)

    async def begin(self, call: Call, options: TaskOptions, *, delay: float = 0.0, named: str = "") -> str:
        head = Kept(VERSION, call.id, options.queue or "default", self.milliseconds(options, delay))
        store = self._opened()
        base = base_of(call.id)
        if base is not None and (holder := store.holder(base)) is not None:
            return holder
        recorded = head.expires_ms or base is not None
        if recorded and not store.open(call.id, Record(head, call), base):
            raise no_room(call.id)
        try:
            await self._transport.hand_over(call, options, delay=delay)
        except BaseException:
            store.forget(call.id)
            self._wake(call.id)
            raise
        return call.id

    async def again(self, record: Record, call: Call, options: TaskOptions) -> bool:
        store = self._opened()
        if store.find(record.id) is None:
            raise unknown_run(record.id)
        taken = store.go_on(record.id, call)
        if taken is None:
            raise no_room(record.id)
        if taken:
            await self._transport.hand_over(call, options)
        return taken

    async def add(self, call_id: str, reply: Reply, *, quiet: bool = False) -> None:
        store = self._opened()
        if store.find(call_id) is None:
            raise unknown_run(call_id)
        if not store.add(call_id, reply):
            raise no_room(call_id)
        if not quiet:
            self._wake(call_id)

    async def cancel(self, record: Record, ending: Reply) -> None:
        await super().cancel(record, ending)
        self._transport.withdraw(record.call.id)

    def end(self, reply: Reply) -> None:
        """Keep the reply that ends a call; a call whose record is forgotten is let go."""
        record_id = record_of(reply.id)
        if self._store is not None and record_id in self._store:
            self._store.end(record_id, reply)
            self._wake(record_id)

    async def read(self, call_id: str) -> Record:
        record = self._opened().read(call_id)
        if record is None:
            raise unknown_run(call_id)
        return record

    async def touch(self, call_id: str) -> None:
        if self._opened().find(call_id) is None:
            raise unknown_run(call_id)

    @asynccontextmanager
    async def watch(self, call_id: str, *, steps: bool) -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        events = self._watches.setdefault(call_id, [])
        events.append(event)
        try:
            yield event
        finally:
            events.remove(event)
            if not events:
                self._watches.pop(call_id, None)

    def close(self) -> None:
        """Forget everything: who waits is told."""
        if self._store is not None:
            self._store.close()
            self._store = None
        for call_id in list(self._watches):
            self._wake(call_id)

    def _in_hand(self, call_id: str) -> bool:
        worker: Server | None = getattr(self._transport, "_worker", None)
        return worker is not None and worker.holds(call_id)

    def _opened(self) -> RecordStore[str]:
        if self._store is None or not self._transport.usable(asyncio.get_running_loop()):
            raise NotConnected("the transport was disconnected, and what it kept is gone")
        return self._store

    def _wake(self, call_id: str) -> None:
        for event in self._watches.get(call_id, ()):
            event.set()
