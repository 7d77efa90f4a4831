"""Keeping what becomes of calls in the memory of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from atasks.errors import NotConnected
from atasks.options import TaskOptions
from atasks.transport.records import Record, Records, unknown_run
from atasks.wire import VERSION, Call, Kept, Reply

if TYPE_CHECKING:
    from atasks.transport.base import CallTransport

__all__ = ["MemoryRecords"]


class MemoryRecords(Records):
    """The records of a transport whose callers and workers are all in this process."""

    def __init__(self, transport: CallTransport, expires: float) -> None:
        super().__init__(expires)
        self._transport = transport
        self.opening: set[str] = set()
        """Calls that are to be kept, and have not ended."""
        self._records: dict[str, Record] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watches: dict[str, list[asyncio.Event]] = {}

    async def begin(self, call: Call, options: TaskOptions) -> None:
        head = Kept(VERSION, call.id, options.queue or "default", int(self.expires * 1000))
        self._records[call.id] = Record(head, call)
        self.opening.add(call.id)
        self._use(call.id)
        try:
            await self._transport.request(call, options)
        except BaseException:
            self._forget(call.id)
            raise

    async def add(self, call_id: str, reply: Reply) -> None:
        self._find(call_id)
        self.put(call_id, reply)

    def put(self, call_id: str, reply: Reply) -> None:
        """As `add`; a record that has expired is let go."""
        record = self._records.get(call_id)
        if record is not None:
            record.add(reply)
            self._use(call_id)
            if reply.id == call_id:
                self.opening.discard(call_id)
            self._wake(call_id)

    async def read(self, call_id: str) -> Record:
        return self._find(call_id)

    async def touch(self, call_id: str) -> None:
        self._find(call_id)

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
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._records.clear()
        self.opening.clear()
        for call_id in list(self._watches):
            self._wake(call_id)

    def _find(self, call_id: str) -> Record:
        if not self._transport.usable(asyncio.get_running_loop()):
            raise NotConnected("the transport was disconnected, and what it kept is gone")
        record = self._records.get(call_id)
        if record is None:
            raise unknown_run(call_id)
        self._use(call_id)
        return record

    def _use(self, call_id: str) -> None:
        """The time of the record begins anew."""
        timer = self._timers.get(call_id)
        if timer is not None:
            timer.cancel()
        self._timers[call_id] = asyncio.get_running_loop().call_later(self.expires, self._forget, call_id)

    def _forget(self, call_id: str) -> None:
        timer = self._timers.pop(call_id, None)
        if timer is not None:
            timer.cancel()
        self._records.pop(call_id, None)
        self.opening.discard(call_id)
        self._wake(call_id)

    def _wake(self, call_id: str) -> None:
        for event in self._watches.get(call_id, ()):
            event.set()
