"""What a worker remembers of calls that are over, within bounds."""

from __future__ import annotations

from collections import OrderedDict

from atasks.wire import End, Reply

__all__ = ["RecentIds", "RecentReplies"]


class RecentIds:
    """The last `size` ids that were added."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, call_id: str) -> None:
        """Remember an id."""
        self._ids[call_id] = None
        self._ids.move_to_end(call_id)
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)


class RecentReplies:
    """The last replies, at most `size` of them and `max_bytes` of payload."""

    def __init__(self, size: int = 2_000, max_bytes: int = 16 * 2**20) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._bytes = 0
        self._replies: OrderedDict[str, Reply | End] = OrderedDict()

    def add(self, call_id: str, reply: Reply | End) -> None:
        """Remember a reply; the oldest ones make room."""
        known = self._replies.pop(call_id, None)
        if known is not None:
            self._bytes -= len(known.payload)
        self._replies[call_id] = reply
        self._bytes += len(reply.payload)
        while len(self._replies) > self._size or self._bytes > self._max_bytes:
            _, old = self._replies.popitem(last=False)
            self._bytes -= len(old.payload)

    def get(self, call_id: str) -> Reply | End | None:
        """The reply of a call that finished lately, or None."""
        return self._replies.get(call_id)

    def __len__(self) -> int:
        return len(self._replies)
