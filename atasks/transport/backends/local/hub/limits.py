"""The tokens of limits at the hub."""

from __future__ import annotations

from functools import partial
from typing import Final

from atasks.errors import LimitError
from atasks.policies.limit import Rule
from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.messages import Begun, GiveToken, TakeToken, TokenTaken
from atasks.transport.limits.contract import MAX_KEYS
from atasks.transport.limits.memory import Pools
from atasks.transport.limits.pool import Grant

__all__ = ["HubLimits"]

MOST_USED: Final = 2 * MAX_KEYS

Name = tuple[str, str]
"""A namespace and a limit."""


class HubLimits:
    """Counters for the processes around a hub. Who has used a limit uses it until its connection ends, or until
    nobody holds a token of it and a thousand others are used; when it ends, its tokens go to others."""

    def __init__(self) -> None:
        self._pools: dict[str, Pools] = {}
        """By namespace."""
        self._users: dict[Name, set[Peer]] = {}
        """Those of each limit that is in use."""
        self._most = MOST_USED
        """Limits that may have users before those are forgotten of which nothing else is known."""
        self._grants: dict[Peer, dict[int, Grant]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of the namespaces and of the limits that are known."""
        return len(self._pools), len(self._users)

    def take(self, peer: Peer, message: TakeToken) -> None:
        """Give the peer a token, now or when one is free."""
        assert peer.namespace is not None, "it was welcomed"
        rule = Rule(message.at_once, message.per_period, message.period)
        name = peer.namespace, message.name
        pools = self._pools.get(peer.namespace)
        if pools is None:
            self._tidy()
            pools = self._pools[peer.namespace] = Pools()
        if name not in self._users:
            pools.change(message.name, rule)
        try:
            pool = pools.find(message.name, message.key, rule)
        except LimitError as error:
            peer.link.send(TokenTaken(message.number, str(error)))
            return
        if name not in self._users:
            self._tidy_users()
        self._users.setdefault(name, set()).add(peer)
        grants = self._grants.setdefault(peer, {})
        if message.number not in grants:
            grants[message.number] = pool.ask(partial(peer.link.send, TokenTaken(message.number)), peer)

    def begun(self, peer: Peer, message: Begun) -> None:
        """Spend a token of a rate: the peer begins the work that it was taken for."""
        grant = self._grants.get(peer, {}).get(message.number)
        if grant is not None:
            grant.begin()

    def give(self, peer: Peer, message: GiveToken) -> None:
        """Take back a token that the peer needs no more."""
        grant = self._grants.get(peer, {}).pop(message.number, None)
        if grant is not None:
            grant.release()

    def leave(self, peer: Peer) -> None:
        """Take back the tokens of a peer that is gone."""
        for grant in self._grants.pop(peer, {}).values():
            grant.release()
        for name, users in list(self._users.items()):
            users.discard(peer)
            if not users:
                del self._users[name]

    def _tidy(self) -> None:
        """Forget the namespaces whose limits have neither users nor tokens that are missed."""
        in_use = {namespace for namespace, _ in self._users}
        for namespace in [name for name, pools in self._pools.items() if name not in in_use and pools.idle]:
            self._pools.pop(namespace).close()

    def _tidy_users(self) -> None:
        """Forget the users of limits of which no tokens are kept any more, if there are many."""
        if len(self._users) >= self._most:
            kept = {(namespace, name) for namespace, pools in self._pools.items() for name in pools.names}
            self._users = {name: users for name, users in self._users.items() if name in kept}
            self._most = max(MOST_USED, 2 * len(self._users))

    def close(self) -> None:
        """Forget everything."""
        for pools in self._pools.values():
            pools.close()
        self._grants.clear()
