"""Journals in the memory of this process, while a transport is connected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from atasks.options import TaskOptions
from atasks.transport.journals import Entries, Journals
from atasks.transport.pending import Pending
from atasks.wire import Call, Reply

if TYPE_CHECKING:
    from atasks.transport.call_transport import CallTransport

__all__ = ["MemoryJournals"]


class MemoryJournals(Journals):
    """The journals of a transport whose callers and workers are all in this process."""

    def __init__(self, transport: CallTransport) -> None:
        self._transport = transport
        self._journals: dict[str, Entries] = {}

    def __len__(self) -> int:
        return len(self._journals)

    async def open(self, name: str, owner: str) -> Entries:
        found = self._journals.setdefault(name, Entries())
        return Entries(dict(found.replies), set(found.sent), set(found.spent))

    async def add(self, name: str, reply: Reply) -> None:
        self.note(name, reply)

    async def request(
        self,
        name: str,
        call: Call,
        options: TaskOptions,
        *,
        sent: bool,
        stays: Callable[[], bool],
        held: list[Pending] | None = None,
    ) -> Reply:
        if held is None:
            self._journals.setdefault(name, Entries()).sent.add(call.id)
        return await self._transport.request_on_record(call, options, name, sent=sent, stays=stays, held=held)

    def send(self, name: str, pending: Pending) -> None:
        self._journals.setdefault(name, Entries()).sent.add(pending.call.id)
        self._transport.send_on_record(pending)

    def spend(self, name: str, reply: Reply) -> None:
        self.note(name, reply)

    def note(self, name: str, reply: Reply) -> None:
        """A call of this journal has ended. Nothing happens if the journal was dropped."""
        if (entries := self._journals.get(name)) is not None:
            entries.add(reply)

    def finish(self, name: str, call_id: str, owner: str = "") -> None:
        self.drop(name)

    def leave(self, name: str) -> None:
        pass

    def drop(self, name: str) -> None:
        self._journals.pop(name, None)

    def close(self) -> None:
        """Forget everything."""
        self._journals.clear()
