"""The schedules that a hub keeps, and which worker keeps their times."""

from __future__ import annotations

from typing import Final

from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.messages import Answer, LookAtTable, Outcome, ReadTable, Stand, Swap, Table

__all__ = ["HubSchedules"]

OVERHEAD: Final = 300
"""Bytes that a table costs besides its content, with the name of its namespace, roughly."""


class HubSchedules:
    """A table for each namespace, and the workers that would keep its times: the first of them does. The tables
    have `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tables: dict[str | None, bytes] = {}
        self._standing: dict[str | None, list[Peer]] = {}

    @property
    def size(self) -> int:
        """Bytes that are kept, roughly."""
        lists = OVERHEAD * len(self._standing)
        return lists + sum(OVERHEAD + len(table) for table in self._tables.values())

    def read(self, peer: Peer, message: ReadTable) -> None:
        """Somebody asks for the table."""
        peer.answer(lambda: self._send(peer, message.number))

    def _send(self, peer: Peer, number: int) -> None:
        table = self._tables.get(peer.namespace, b"")
        peer.link.send(Table(number, table), len(table))

    def swap(self, peer: Peer, message: Swap) -> None:
        """Somebody has another table for the one that was read."""
        known = self._tables.get(peer.namespace, b"")
        if known not in (message.old, message.new):
            peer.link.send(Answer(message.number, Outcome.BAD, "the table is another one by now"))
            return
        more = len(message.new) - len(known)
        if more > 0 and self.size + OVERHEAD + more > self._max_bytes:
            peer.link.send(Answer(message.number, Outcome.NO_ROOM))
            return
        self._tables[peer.namespace] = message.new
        if not message.new:
            del self._tables[peer.namespace]
        peer.link.send(Answer(message.number, Outcome.DONE))
        self._tell(peer.namespace)

    def stand(self, peer: Peer, message: Stand) -> None:
        """A worker would keep the times, or does so no more."""
        if not message.on:
            self.leave(peer)
            return
        standing = self._standing.setdefault(peer.namespace, [])
        if peer not in standing:
            standing.append(peer)
        if standing[0] is peer:
            self._tell(peer.namespace)

    def leave(self, peer: Peer) -> None:
        """A worker is gone, or leaves."""
        standing = self._standing.get(peer.namespace, [])
        if peer in standing:
            standing.remove(peer)
            self._tell(peer.namespace)
            if not standing:
                del self._standing[peer.namespace]

    def _tell(self, namespace: str | None) -> None:
        standing = self._standing.get(namespace)
        if standing:
            standing[0].link.send(LookAtTable())
