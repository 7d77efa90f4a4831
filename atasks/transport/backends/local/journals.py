"""Journals at the hub, as the processes around it use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from atasks.errors import QueueFull
from atasks.transport.backends.local.messages import Answer, DropJournal, JournalFound, Note, OpenJournal, Outcome
from atasks.transport.journals import Caller, Entries, Journals
from atasks.wire import Reply

if TYPE_CHECKING:
    from atasks.transport.backends.local.conversation import Conversation
    from atasks.transport.backends.local.records import LocalRecords

__all__ = ["LocalJournals"]


class LocalJournals(Journals):
    """The journals of one namespace. A hub that is gone has taken them along: what was done is done again."""

    def __init__(self, caller: Caller, records: LocalRecords, link: Callable[[], Conversation | None]) -> None:
        super().__init__(caller)
        self._records = records
        self._link = link

    async def open(self, name: str, owner: str) -> Entries:
        found = await self._records.ask(lambda number: OpenJournal(number, name, owner))
        if not isinstance(found, JournalFound):
            return Entries()
        return Entries({reply.id: reply for reply in found.replies}, set(found.sent), set(found.spent))

    async def add(self, name: str, reply: Reply) -> None:
        answer = await self._records.ask(lambda number: Note(number, name, reply), len(reply.payload))
        if isinstance(answer, Answer) and answer.outcome == Outcome.NO_ROOM:
            raise QueueFull(
                "there is no room at the hub for the journal of this call: raise keep_bytes, or return references"
            )

    def spend(self, name: str, reply: Reply) -> None:
        link = self._link()
        if link is not None:
            link.send(Note(0, name, reply))

    def finish(self, name: str, call_id: str, owner: str = "") -> None:
        asyncio.get_running_loop().call_soon(self._drop, name, owner)  # behind the reply

    def leave(self, name: str) -> None:
        pass

    def drop(self, name: str) -> None:
        self._drop(name, "")

    def _drop(self, name: str, owner: str) -> None:
        link = self._link()
        if link is not None:
            link.send(DropJournal(name, owner))
