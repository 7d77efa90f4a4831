"""The schedules that a hub keeps, and which worker keeps their times."""

from __future__ import annotations

from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.messages import Answer, LookAtTable, Outcome, ReadTable, Stand, Swap, Table

__all__ = ["HubSchedules"]


class HubSchedules:
    """A table for each namespace, and the workers that would keep its times: the first of them does."""

    def __init__(self) -> None:
        self._tables: dict[str | None, bytes] = {}
        self._standing: dict[str | None, list[Peer]] = {}

    def read(self, peer: Peer, message: ReadTable) -> None:
        """Somebody asks for the table."""
        peer.link.send(Table(message.number, self._tables.get(peer.namespace, b"")))

    def swap(self, peer: Peer, message: Swap) -> None:
        """Somebody has another table for the one that was read."""
        known = self._tables.get(peer.namespace, b"")
        if known not in (message.old, message.new):
            peer.link.send(Answer(message.number, Outcome.BAD, "the table is another one by now"))
            return
        self._tables[peer.namespace] = message.new
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

    def _tell(self, namespace: str | None) -> None:
        standing = self._standing.get(namespace)
        if standing:
            standing[0].link.send(LookAtTable())
