"""A conversation between a hub and one of the processes around it: messages out, messages in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Any, Final

from atasks.codecs.pieces import SHARES
from atasks.transport.backends.local.frames import Salvaged
from atasks.transport.backends.local.messages import Message

__all__ = ["Conversation", "InnerLink"]

FLUSH_MESSAGES: Final = 64
FLUSH_BYTES: Final = 256 * 2**10
"""Bytes that are sent before the end of the turn, so that the other side can begin."""


class Conversation:
    """One end. What is sent in one turn of the event loop leaves together at its end, in order.

    Whoever holds it sets the callbacks. None of them is called from within `send`.
    """

    def __init__(self) -> None:
        self.receive: Callable[[list[Message]], None] = _ignore
        """Called with the messages that have arrived."""
        self.unreadable: Callable[[Salvaged], None] = _ignore
        """Called instead, with what could be read of a frame that was not all right."""
        self.lost: Callable[[str], None] = _ignore
        """Called once, with the reason, when the conversation is over; not after `close`."""
        self.freed: Callable[[], None] = _ignore
        """Called when it is clogged no more."""
        self.last_word: Callable[[], Message | None] | None = None
        """Asked for one more message right before the others leave."""
        self.eager = False
        """Send the first message of a turn at once if the last turn sent at most one: more are unlikely, and
        waiting would only add latency."""
        self.clogged = False
        """True while the other side is slow to read. Nothing is dropped: send less."""
        self.held_back: Sized = ()
        """Whatever is to be sent when it is clogged no more."""
        self.closed = False
        self.beside = False
        """True once the other side has said that it takes payloads beside their messages."""
        self.shares = False
        """True once it is known that payloads go to the other side in shared memory."""
        self.schedule: Callable[[Conversation], object] = self._call_soon
        """Called when there is something to send: has `end_turn` called before the next turn ends."""
        self._messages: list[Message] = []
        self._size = 0
        self._scheduled = False
        self._sent = 0
        """The number of messages that have left in this turn."""
        self._single = False
        self._loop = asyncio.get_running_loop()

    def send(self, message: Message, size: int = 0) -> None:
        """Send it at the end of this turn of the event loop, if it is not closed. `size`: its bytes, roughly."""
        self._messages.append(message)
        self._size += size
        if len(self._messages) >= FLUSH_MESSAGES or self._size >= FLUSH_BYTES:
            self._overflow()
        if not self._scheduled:
            self._scheduled = True
            self.schedule(self)
            if self._single:
                self.flush()

    @property
    def has_lane(self) -> bool:
        """True if payloads could go to the other side in shared memory."""
        return SHARES

    def greet(self, message: Message) -> None:
        """Send the first message."""
        self.send(message)

    def speak(self) -> None:
        """Ask for the last word, and send it, although there may be nothing else to send."""
        if not self._scheduled:
            self._scheduled = True
            self.schedule(self)

    def end_turn(self) -> None:
        """Send what waits; what is sent from now on is scheduled anew."""
        self._scheduled = False
        self.flush()
        self._single = self.eager and self._sent <= 1
        self._sent = 0

    def flush(self) -> None:
        """Send what waits, now."""
        if self.last_word is not None and (message := self.last_word()) is not None:
            self._messages.append(message)
        if self._messages:
            messages, self._messages, self._size = self._messages, [], 0
            self._sent += len(messages)
            if not self.closed:
                self._write(messages)

    def _call_soon(self, _: Conversation) -> None:
        self._loop.call_soon(self.end_turn)

    def _overflow(self) -> None:
        """Much waits, and the turn is not over."""
        self.flush()

    def _write(self, messages: list[Message]) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        """The other side is dead, whoever has its end: the conversation is over when what it sent was read."""

    def close(self) -> None:
        """End the conversation, when the other side has read what was sent."""
        raise NotImplementedError

    def abort(self) -> None:
        """End the conversation at once, on this side without a word."""
        self.close()

    async def aclose(self, seconds: float) -> None:
        """End the conversation, and return when it is over, after so many seconds at most."""
        self.close()


class InnerLink(Conversation):
    """Within the process: the messages themselves are handed over."""

    def __init__(self) -> None:
        super().__init__()
        self._other: InnerLink | None = None

    @classmethod
    def pair(cls) -> tuple[InnerLink, InnerLink]:
        """Both ends."""
        here, there = cls(), cls()
        here._other, there._other = there, here
        return here, there

    def _overflow(self) -> None:
        pass  # the other side would be called from within send()

    def _write(self, messages: list[Message]) -> None:
        assert self._other is not None, "both ends are made together"
        if not self._other.closed:
            self._other.receive(messages)

    def close(self) -> None:
        if not self.closed:
            self.flush()
            self.closed = True
            if self._other is not None and not self._other.closed:
                self._other.closed = True
                self._other.lost("it was closed by the other side")


def _ignore(*_: Any) -> None:
    """Do nothing: the callback that stands for none."""
