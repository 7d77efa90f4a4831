"""The processes around a hub: who they are, and what they send, turn by turn."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.frames import Salvaged
from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.messages import (
    PROTOCOL,
    Hello,
    Message,
    Refused,
    Welcome,
)
from atasks.transport.refusals import Refusals

__all__ = ["Reception"]

logger = logging.getLogger("atasks.local")

HELLO_SECONDS: Final = 10.0
"""Seconds that a process has to say `Hello` after it has connected."""


class Reception:
    """Knows the processes that converse with a hub. Hands each message of theirs to its handler, and nothing of a
    process that has not said `Hello` in this protocol."""

    def __init__(
        self,
        handlers: Mapping[type[Any], Callable[[Peer, Any], None]],
        *,
        look: Callable[[Peer], None],
        freed: Callable[[Peer], None],
        left: Callable[[Peer], None],
    ) -> None:
        """`look`: see `Peer`; `freed(peer)`: its socket has drained; `left(peer)`: its connection has closed."""
        self.peers: list[Peer] = []
        self.closed = False
        """True once nothing is taken from anybody any more."""
        self._handlers = handlers
        self._look = look
        self._freed = freed
        self._left = left
        self._loop = asyncio.get_running_loop()
        self.refusals = Refusals(logger.error, "the hub refused what processes sent: %s")
        self._receiving = False
        self._unsent: list[Conversation] = []
        """Those to whom something was sent while what has arrived is dealt with."""

    def attach(self, link: Conversation, pid: int = 0) -> None:
        """Converse with one more process; `pid` 0: its `Hello` will tell. Nothing is taken from it before that."""
        peer = Peer(link, pid, self._look)
        self.peers.append(peer)
        peer.expected = self._loop.call_later(HELLO_SECONDS, self._expect_hello, peer)
        link.schedule = self._schedule
        link.receive = partial(self._receive, peer)
        link.unreadable = partial(self._unreadable, peer)
        link.lost = partial(self._gone, peer)
        link.freed = partial(self._freed, peer)
        link.held_back = peer.unread

    def _expect_hello(self, peer: Peer) -> None:
        """Part with who has not said who it is by now."""
        if peer.namespace is None and peer in self.peers:
            self.refusals.add("connections without a Hello")
            self.peers.remove(peer)
            peer.link.abort()

    def hang_up(self, pid: int) -> None:
        """A process has ended. Its connections do so too, when what it sent has been read: a child that a library
        forked may have them open."""
        for peer in self.peers:
            if peer.pid == pid:
                peer.link.hang_up()

    def _receive(self, peer: Peer, messages: list[Message]) -> None:
        if self.closed:
            return
        if peer.namespace is None and not self._welcomed(peer, messages.pop(0) if messages else None):
            return
        handlers = self._handlers
        self._receiving = True
        try:
            for message in messages:
                handler = handlers.get(type(message))
                if handler is not None:
                    handler(peer, message)
        finally:
            self._receiving = False
            unsent, self._unsent = self._unsent, []
            for link in unsent:  # at once: what arrives together was sent together, and leaves together
                link.end_turn()

    def _schedule(self, link: Conversation) -> None:
        if self._receiving:
            self._unsent.append(link)
        else:
            self._loop.call_soon(link.end_turn)

    def _welcomed(self, peer: Peer, message: Message | None) -> bool:
        """Return True if the first message is a `Hello` of this protocol."""
        if isinstance(message, Hello) and message.protocol == PROTOCOL:
            peer.namespace, peer.pid = message.namespace, peer.pid or message.pid
            peer.expect_no_hello()
            peer.link.beside = message.beside
            peer.link.shares = peer.link.has_lane
            peer.link.send(Welcome(os.getpid(), True, peer.link.shares))
            return True
        theirs = message.protocol if isinstance(message, Hello) else "none"
        reason = (
            f"the hub speaks protocol {PROTOCOL} and was addressed in {theirs}: run the same version of atasks"
        )
        self.refusals.add("processes of another version", latest=reason)
        peer.link.send(Refused(reason))
        self.peers.remove(peer)
        peer.link.close()
        return False

    def _unreadable(self, peer: Peer, salvaged: Salvaged) -> None:
        """Some messages make no sense: those that are requests are answered, and the others are dropped."""
        self.refusals.add("bad messages", len(salvaged.bad), str(salvaged.bad[0][1]))
        self._receive(peer, salvaged.messages)
        for refusal, _ in salvaged.bad:
            if refusal is not None:
                peer.link.send(refusal)

    def _gone(self, peer: Peer, reason: str) -> None:
        """Let go of a peer whose connection is closed."""
        peer.expect_no_hello()
        if self.closed:
            return
        self.peers.remove(peer)
        logger.info("process %d is gone: %s", peer.pid, reason)
        self._left(peer)
