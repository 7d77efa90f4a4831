"""`HubJournals`: the journals that a hub keeps of calls that resume. They go with it, and with their call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.local.messages import Answer, DropJournal, JournalFound, Note, OpenJournal, Outcome
from atasks.transport.journals import Entries
from atasks.wire import Reply

if TYPE_CHECKING:
    from atasks.transport.backends.local.hub.peer import Peer

__all__ = ["HubJournals"]

OVERHEAD: Final = 300
"""Bytes that an entry costs besides its payload, roughly."""


class HubJournals:
    """Keeps `max_bytes` in all: what there is no room for is not kept, and done again by the next run.

    `unwanted` is called with the ids of calls whose journal is dropped: nobody is to have their replies.
    """

    def __init__(self, max_bytes: int, unwanted: Callable[[list[str]], object]) -> None:
        self._max_bytes = max_bytes
        self._unwanted = unwanted
        self._size = 0
        self._journals: dict[tuple[str, str], _Journal] = {}
        """By namespace and name."""
        self._owners: dict[str, list[tuple[str, str]]] = {}
        """Id of the call in hand -> its journals: each version of its code that has run it has one."""

    def __len__(self) -> int:
        return len(self._journals)

    def open(self, peer: Peer, message: OpenJournal) -> None:
        """Send what is in the journal, which is a new one if there is none of that name."""
        key = _key(peer, message.name)
        journal = self._journals.get(key)
        if journal is None:
            journal = _Journal()
            if self._takes(journal, OVERHEAD + len(message.name)):
                self._journals[key] = journal
        if key in self._journals and journal.owner != message.owner:
            self._disown(key, journal)
            journal.owner = message.owner
            self._owners.setdefault(message.owner, []).append(key)
        peer.answer(lambda: self._send(peer, message.number, journal))

    def _send(self, peer: Peer, number: int, journal: _Journal) -> None:
        entries = journal.entries
        replies, sent, spent = list(entries.replies.values()), sorted(entries.sent), sorted(entries.spent)
        peer.link.send(JournalFound(number, replies, sent, spent), journal.size)

    def note(self, peer: Peer, message: Note) -> None:
        """Put a step into a journal."""
        kept = self.keep(_key(peer, message.name), message.reply)
        peer.link.send(Answer(message.number, Outcome.DONE if kept else Outcome.NO_ROOM))

    def drop(self, peer: Peer, message: DropJournal) -> None:
        """The call of that journal is over."""
        key = _key(peer, message.name)
        journal = self._journals.get(key)
        if journal is not None and message.owner in ("", journal.owner):
            self.over(journal.owner)

    def sent(self, peer: Peer, name: str, call_id: str) -> Reply | None:
        """A call is sent whose reply goes into this journal; the reply, if it is there."""
        journal = self._journals.get(_key(peer, name))
        if journal is None:
            return None
        entries = journal.entries
        if call_id not in entries.sent and self._takes(journal, OVERHEAD):
            entries.sent.add(call_id)
        return entries.replies.get(call_id)

    def keep(self, key: tuple[str, str], reply: Reply) -> bool:
        """Put a reply into a journal; False: there is no such journal, or no room."""
        journal = self._journals.get(key)
        if journal is None or not self._takes(journal, len(reply.payload) + OVERHEAD):
            return False
        reply.payload = bytes(reply.payload)  # it may have been in pieces
        journal.entries.add(reply)
        return True

    def _takes(self, journal: _Journal, size: int) -> bool:
        """Count so many bytes more of a journal; False: there is no room for them."""
        if self._size + size > self._max_bytes:
            return False
        journal.size += size
        self._size += size
        return True

    def over(self, call_id: str) -> None:
        """A call will not run again."""
        for key in self._owners.pop(call_id, ()):
            self._drop(key)

    def _disown(self, key: tuple[str, str], journal: _Journal) -> None:
        """Another call is to work at the journal: a try, say."""
        owned = self._owners.get(journal.owner, [])
        if key in owned:
            owned.remove(key)
            if not owned:
                del self._owners[journal.owner]

    def _drop(self, key: tuple[str, str]) -> None:
        journal = self._journals.pop(key, None)
        if journal is not None:
            self._size -= journal.size
            entries = journal.entries
            self._unwanted([call_id for call_id in entries.sent if call_id not in entries.replies])


class _Journal:
    """A journal, and the call in hand that works at it."""

    __slots__ = ("entries", "owner", "size")

    def __init__(self) -> None:
        self.entries = Entries()
        self.owner = ""
        self.size = 0
        """Bytes, roughly."""


def _key(peer: Peer, name: str) -> tuple[str, str]:
    assert peer.namespace is not None, "it was welcomed"
    return peer.namespace, name
