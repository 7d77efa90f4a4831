"""Replies that nobody awaited when they came."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from atasks.wire import Reply

__all__ = ["LateReplies"]

MAX_REPLIES: Final = 1000
MAX_BYTES: Final = 16 * 2**20


class LateReplies:
    """Replies to calls that an earlier run of a call has made, until the run that is here asks for them. Where
    there are too many, the oldest go."""

    def __init__(self) -> None:
        self._replies: OrderedDict[str, Reply] = OrderedDict()
        self._bytes = 0

    def add(self, reply: Reply) -> None:
        """Keep a reply, unless there is one to that call."""
        if reply.id not in self._replies:
            self._replies[reply.id] = reply
            self._bytes += len(reply.payload)
            while len(self._replies) > MAX_REPLIES or self._bytes > MAX_BYTES:
                _, dropped = self._replies.popitem(last=False)
                self._bytes -= len(dropped.payload)

    def get(self, call_id: str) -> Reply | None:
        """Return the reply to that call, None if there is none here."""
        return self._replies.get(call_id)

    def clear(self) -> None:
        """Forget all of them."""
        self._replies.clear()
        self._bytes = 0
