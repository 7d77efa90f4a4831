"""A bounded memory of calls that have finished or were cancelled."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from atasks.wire import Call, End, Reply

__all__ = ["CondemnedCalls", "RecentIds", "RecentReplies"]


CONDEMNED_SECONDS: Final = 600.0


class RecentIds:
    """Ids that were added in the last `seconds`, at most `size` of them."""

    def __init__(self, size: int = 10_000, seconds: float = 30.0) -> None:
        self._size = size
        self._ms = seconds * 1000
        self.ids: OrderedDict[str, float] = OrderedDict()
        """With the wall clock, in milliseconds. An id may still be here when its time is over: see `since`."""
        self.forgotten_ms = 0.0
        """When an id had to make room for others before its time."""

    def add(self, call_id: str) -> None:
        """Remember an id."""
        now, ids = time.time() * 1000, self.ids
        ids[call_id] = now
        ids.move_to_end(call_id)
        while True:
            oldest = next(iter(ids))
            if now - ids[oldest] > self._ms:
                del ids[oldest]
            elif len(ids) > self._size:
                del ids[oldest]
                self.forgotten_ms = now
            else:
                return

    def since(self, call_id: str) -> float | None:
        """When the id was added (wall clock in milliseconds); None: it was not, or is forgotten."""
        added = self.ids.get(call_id)
        return None if added is None or time.time() * 1000 - added > self._ms else added

    def __contains__(self, call_id: str) -> bool:
        return self.since(call_id) is not None

    def __len__(self) -> int:
        return len(self.ids)


class CondemnedCalls:
    """Calls that are to end when they come here within 10 minutes."""

    def __init__(self) -> None:
        self._ids = RecentIds(seconds=CONDEMNED_SECONDS)

    def add(self, call_id: str, owner: str | None) -> None:
        """Remember a call; `owner`: only if it is of the key of that name."""
        self._ids.add(call_id if owner is None else f"{call_id} {owner}")

    def __contains__(self, call: Call) -> bool:
        return call.id in self._ids or f"{call.id} {call.by}" in self._ids


class RecentReplies:
    """The last replies, at most `size` of them and `max_bytes` of payload."""

    def __init__(self, size: int = 2_000, max_bytes: int = 16 * 2**20) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._bytes = 0
        self._replies: OrderedDict[str, Reply | End] = OrderedDict()
        self._usual = ""
        """The owner of the calls of which `_owners` says nothing."""
        self._owners: dict[str, str] = {}
        """Id of a call whose reply is here -> whose it is, if it is somebody else's."""

    def add(self, call_id: str, reply: Reply | End, owner: str = "") -> None:
        """Remember a reply, and whose the call was; the oldest ones make room."""
        replies = self._replies
        kept = self._bytes + len(reply.payload)
        if call_id in replies:
            kept -= len(replies.pop(call_id).payload)
            self._owners.pop(call_id, None)
        replies[call_id] = reply
        if owner is not self._usual:
            self._note(call_id, owner)
        while len(replies) > self._size or kept > self._max_bytes:
            name, old = replies.popitem(last=False)
            kept -= len(old.payload)
            if self._owners:
                self._owners.pop(name, None)
        self._bytes = kept

    def _note(self, call_id: str, owner: str) -> None:
        """Remember whose a call is. Most calls are of one owner, as a rule, and cost nothing."""
        if len(self._replies) == 1:  # that of this call
            self._usual = owner
        elif owner != self._usual:
            self._owners[call_id] = owner

    def get(self, call_id: str) -> Reply | End | None:
        """The reply of a call that finished lately, or None."""
        return self._replies.get(call_id)

    def has_any(self, call_ids: Iterable[str]) -> bool:
        """Return True if one of these calls finished lately."""
        return not self._replies.keys().isdisjoint(call_ids)

    def owner(self, call_id: str) -> str | None:
        """Return the name of the key whose a call is that finished lately; empty: nobody's, None: it did not."""
        return self._owners.get(call_id, self._usual) if call_id in self._replies else None

    def __len__(self) -> int:
        return len(self._replies)
