"""`HubRecords`: the records that a hub keeps of calls that nobody awaits, and the processes that watch them."""

from __future__ import annotations

from collections.abc import Callable

from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.messages import Add, Answer, Begin, Found, News, Outcome, Read, Touch, Watch
from atasks.transport.records.contract import Record, base_of, record_of
from atasks.transport.records.store import RecordStore
from atasks.wire import VERSION, Kept, Reply

__all__ = ["HubRecords"]

Key = tuple[str, str]
"""A namespace and a call id."""


class HubRecords:
    """The records of a hub: they go with it. Every question is answered, in the order of the questions.

    `unwanted` is called with the id of a call whose record has ended, or is forgotten; `in_hand` says of an id
    whether a worker has the call.
    """

    def __init__(self, max_bytes: int, unwanted: Callable[[str], object], in_hand: Callable[[str], bool]) -> None:
        self._store: RecordStore[Key] = RecordStore(max_bytes, self._forgotten, in_hand)
        self._unwanted = unwanted
        self._watchers: dict[Key, dict[Peer, None]] = {}

    def holder(self, peer: Peer, call_id: str) -> str | None:
        """The id of the call that has the `unique` key which the id of this one names; None: none has."""
        base = base_of(call_id)
        found = None if base is None else self._store.holder(_key(peer, base))
        return None if found is None else found[1]

    def has(self, peer: Peer, call_id: str) -> bool:
        """Return True if this call has a record, which it began, or goes on with."""
        record = self._store.find(_key(peer, record_of(call_id)))
        return record is not None and call_id in (record.id, record.call.id)

    def open(self, peer: Peer, message: Begin) -> bool:
        """Keep what becomes of the call, if anything is to be kept; False: there is no room."""
        base = base_of(message.call.id)
        if not message.expires_ms and base is None:
            return True
        head = Kept(VERSION, message.call.id, message.queue, message.expires_ms)
        key = _key(peer, message.call.id)
        return self._store.open(key, Record(head, message.call), base and _key(peer, base))

    def again(self, peer: Peer, message: Begin) -> int:
        """Let the call take the place of one that has ended, if its record says so; the outcome."""
        key = _key(peer, record_of(message.call.id))
        if key not in self._store:
            return Outcome.UNKNOWN
        taken = self._store.go_on(key, message.call)
        return Outcome.NO_ROOM if taken is None else Outcome.DONE if taken else Outcome.TAKEN

    def end(self, namespace: str, reply: Reply) -> None:
        """Keep the reply that ends a call; a call whose record is forgotten is let go."""
        key = (namespace, record_of(reply.id))
        if key in self._store:
            self._store.end(key, reply)
            self._tell(key, ended=True)

    def close(self) -> None:
        """Forget everything."""
        self._store.close()
        self._watchers.clear()

    # -- what processes ask for

    def add(self, peer: Peer, message: Add) -> None:
        """A reply from a worker, or an ending from whoever wants the call to end."""
        key = _key(peer, message.id)
        outcome = Outcome.DONE
        if key not in self._store:
            outcome = Outcome.UNKNOWN
        elif not self._store.add(key, message.reply):
            outcome = Outcome.NO_ROOM
        elif not message.quiet:
            ended = record_of(message.reply.id) == message.id
            self._tell(key, ended=ended)
            if ended:
                self._unwanted(message.reply.id)
        peer.link.send(Answer(message.number, outcome))

    def touch(self, peer: Peer, message: Touch) -> None:
        """Somebody waits for the call, or runs it."""
        known = self._store.find(_key(peer, message.id)) is not None
        peer.link.send(Answer(message.number, Outcome.DONE if known else Outcome.UNKNOWN))

    def read(self, peer: Peer, message: Read) -> None:
        """Send the record, when the process reads what it was sent before."""
        peer.answer(lambda: self._send(peer, message))

    def _send(self, peer: Peer, message: Read) -> None:
        record = self._store.read(_key(peer, message.id))
        if record is None:
            peer.link.send(Answer(message.number, Outcome.UNKNOWN))
            return
        head, replies = record.head, list(record.replies.values())
        size = len(record.call.payload) + sum(len(reply.payload) for reply in replies)
        peer.link.send(Found(message.number, head.queue, head.expires_ms, record.call, replies), size)

    def watch(self, peer: Peer, message: Watch) -> None:
        """Begin or stop to tell the peer of news of a call."""
        key = _key(peer, message.id)
        if message.on:
            peer.watching.add(message.id)
            self._watchers.setdefault(key, {})[peer] = None
        elif message.id in peer.watching:
            peer.watching.remove(message.id)
            self._unwatch(key, peer)

    def leave(self, peer: Peer) -> None:
        """Forget a peer that is gone."""
        for call_id in peer.watching:
            self._unwatch(_key(peer, call_id), peer)
        peer.watching.clear()

    def _unwatch(self, key: Key, peer: Peer) -> None:
        watchers = self._watchers[key]
        del watchers[peer]
        if not watchers:
            del self._watchers[key]

    def _tell(self, key: Key, *, ended: bool) -> None:
        for peer in self._watchers.get(key, ()):
            peer.link.send(News(key[1], ended))

    def _forgotten(self, key: Key, record: Record) -> None:
        self._tell(key, ended=True)
        self._unwanted(record.call.id)


def _key(peer: Peer, call_id: str) -> Key:
    assert peer.namespace is not None, "it was welcomed"
    return peer.namespace, call_id
