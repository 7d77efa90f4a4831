"""Journals in the memory of this process, while a transport is connected."""

from __future__ import annotations

from atasks.transport.journals import Caller, Entries, Journals
from atasks.wire import Reply

__all__ = ["MemoryJournals"]


class MemoryJournals(Journals):
    """The journals of a transport whose callers and workers are all in this process."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(caller)
        self._journals: dict[str, Entries] = {}

    def __len__(self) -> int:
        return len(self._journals)

    async def open(self, name: str, owner: str) -> Entries:
        found = self._journals.setdefault(name, Entries())
        return Entries(dict(found.replies), set(found.sent), set(found.spent))

    async def add(self, name: str, reply: Reply) -> None:
        self.note(name, reply)

    def _note(self, name: str, *call_ids: str) -> None:
        self._journals.setdefault(name, Entries()).sent.update(call_ids)

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
