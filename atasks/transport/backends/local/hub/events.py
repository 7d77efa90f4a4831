"""`HubEvents`: the handlers of events, as a hub knows them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.subscription import Subscription

__all__ = ["HubEvents"]

MAX_GROUPS: Final = 10_000
"""Groups that are kept: what is published to others of which a worker comes later is not kept for it."""


class HubEvents:
    """The groups that were ever served around a hub, and the workers that handle events for themselves."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str | None, str], dict[str, Subscription]] = {}
        """Namespace and event -> queue of a group -> its handler."""
        self._size = 0
        """The number of groups."""
        self._each: dict[tuple[str | None, str], dict[Peer, list[Subscription]]] = {}

    def serve(self, peer: Peer, subscriptions: Sequence[Subscription], queues: Collection[str]) -> bool:
        """A worker serves these queues, and handles events; whether it does so for itself as well."""
        own = False
        for item in subscriptions:
            key = (peer.namespace, item.event)
            if item.queue is None:
                own = True
                self._each.setdefault(key, {}).setdefault(peer, []).append(item)
            elif item.queue in queues and (self._size < MAX_GROUPS or item.queue in self._groups.get(key, ())):
                groups = self._groups.setdefault(key, {})
                self._size += item.queue not in groups
                groups[item.queue] = item
        return own

    def leave(self, peer: Peer) -> None:
        """Forget the peer's own handlers; the groups that it has joined stay."""
        for key in [key for key, peers in self._each.items() if peer in peers]:
            del self._each[key][peer]
            if not self._each[key]:
                del self._each[key]

    def handlers(self, namespace: str | None, event: str) -> list[tuple[str, Subscription, str]]:
        """By which queues an event goes, and to whom; and to which worker, if that one has it for itself."""
        key = (namespace, event)
        found = [(queue, item, "") for queue, item in self._groups.get(key, {}).items()]
        for peer, items in self._each.get(key, {}).items():
            found += [(peer.own_queue, item, peer.worker_id) for item in items]
        return found
