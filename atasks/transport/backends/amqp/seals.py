"""Seals on what this transport sends and receives: which key seals a message, and what a key may ask for."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

from aiormq.abc import ConsumerCallback, DeliveredMessage
from msgspec.structs import replace
from pamqp.commands import Basic

from atasks import wire
from atasks.checks import from_environment
from atasks.current import serving
from atasks.errors import InvalidKeys
from atasks.signing import (
    CONTENT_TYPE,
    Body,
    Key,
    Keyring,
    Kind,
    Replays,
    SealError,
    Unsealed,
    seal,
    seal_apart,
    unseal,
)
from atasks.transport.backends.amqp.broker.pattern import Made, names_of
from atasks.transport.refusals import Refusals
from atasks.wire import (
    RUN_PIPELINE,
    RUN_TRIES,
    Ask,
    Call,
    Cancel,
    Claim,
    Credit,
    End,
    Envelope,
    Grant,
    Held,
    Item,
    Query,
    QueryAnswer,
    Reply,
    Report,
    Up,
)

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.outgoing import Outgoing
    from atasks.transport.backends.amqp.broker.topology import Topology
    from atasks.transport.backends.amqp.worker.request_message import RequestMessage
    from atasks.transport.pending import Pending
    from atasks.transport.server import Server

__all__ = ["UNSEALED", "Opened", "Seals", "as_it_came", "content_type", "key_of", "opening"]

logger = logging.getLogger("atasks.keys")

UNSEALED: Final = ""
"""In the place of the name of a key: no seal."""
REQUEST_SECONDS: Final = 7 * 24 * 3600.0
"""The largest age in seconds of a request that has no deadline."""
CONTROL_SECONDS: Final = 60.0
"""The most seconds by which a message between callers and workers may be old, or ahead of this clock."""
OWNERS: Final = 2_000
"""Calls of which it is remembered at least whose they are, as they come: of those that it has in hand or finished
lately a worker knows it anyway."""
CANCELLED: Final = 10_000


class Opened(DeliveredMessage):
    """A message whose seal was right; `body` is what was sealed, `closed` the message as it came."""

    key: Key
    issued_ms: int
    kind: Kind
    closed: DeliveredMessage

    if not TYPE_CHECKING:
        # The class above is frozen, and all other ways to set these cost more. Python takes the short way to set
        # an attribute only if the one to delete it is usual too.
        __setattr__, __delattr__ = object.__setattr__, object.__delattr__
        delivery_tag = redelivered = None  # which look at the method there
        header = Made(lambda self: self.closed.header)
        delivery = property(lambda self: self.closed.delivery)

    def __init__(
        self, message: DeliveredMessage, body: bytes | memoryview, key: Key, issued_ms: int, kind: Kind
    ) -> None:
        made: Any = self
        made.closed = message
        made.delivery_tag = message.delivery_tag
        made.redelivered = message.redelivered
        made.channel = message.channel
        made.body = body
        made.key = key
        made.issued_ms = issued_ms
        made.kind = kind


def as_it_came(message: DeliveredMessage) -> DeliveredMessage:
    """The message under its seal, if it has one."""
    return message.closed if isinstance(message, Opened) else message


def content_type(message: DeliveredMessage) -> str | None:
    """The content type of a message, without its seal if it had one."""
    if isinstance(message, Opened):
        return wire.CONTENT_TYPE
    properties: Basic.Properties = message.header.properties
    return properties.content_type


def key_of(message: DeliveredMessage) -> str:
    """The name of the key that sealed a message; `UNSEALED` if none did."""
    return message.key.name if isinstance(message, Opened) else UNSEALED


def opening(
    seals: Seals | None,
    receive: Callable[[DeliveredMessage], object],
    place: Callable[[DeliveredMessage], tuple[Kind, str] | None],
    refuse: Callable[[DeliveredMessage], object] = lambda _: None,
    *,
    remember: bool = True,
    among: str = "",
) -> ConsumerCallback:
    """Return the callback to consume with, so that `receive` gets only messages with a seal for that place.

    Other messages are counted, and given to `refuse`. Without seals the callback is `receive` itself. `remember`:
    a request may come once only, `among` the messages of that name. `receive` may be a plain function: the client
    library takes those too, whatever its types say, and is spared a task for each message.
    """
    if seals is None:
        return cast("ConsumerCallback", receive)

    def open_first(message: DeliveredMessage) -> object:
        try:
            opened = seals.open(message, place(message), remember=remember, among=among)
        except SealError as error:
            seals.count(str(error))
            return refuse(message)
        return receive(opened)

    return cast("ConsumerCallback", open_first)


class Seals:
    """The keys of one transport at work. A transport without keys has none of this."""

    def __init__(self, keys: Keyring, topology: Topology, *, accept_unsealed: bool) -> None:
        self.keys = keys
        self.accept_unsealed = accept_unsealed
        """True if unsealed messages are served too, and answered unsealed."""
        text = "messages were refused: %s; docs/security.md says what the reasons mean"
        refusals = Refusals(logger.warning, text)
        self.refused = refusals.counts
        self.count = refusals.add
        self.answered = asyncio.Event()
        """Set once a worker has answered anything, the probe at first."""
        self._topology = topology
        self._place = lru_cache(maxsize=1024)(topology.place)
        self._replays = Replays()
        self._admitted: deque[tuple[list[str], str]] = deque()
        """Ids of calls that came in one message, and whose they are: the latest messages."""
        self._remembered = 0
        """Ids in them."""
        self._owners: dict[str, str] | None = None
        """Id of a call -> whose it is, by `_admitted`; None: nobody has asked since the last message."""
        self._cancelled: OrderedDict[tuple[str, str], int] = OrderedDict()
        """Key and call that has not come yet -> when its await ended, by the clock of whoever cancelled it."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str] | None, unsealed: str, topology: Topology) -> Seals | None:
        """The seals of a transport with these options. Raises InvalidKeys, ValueError."""
        if unsealed not in ("refuse", "accept"):
            raise ValueError(f"unsealed={unsealed!r}: 'refuse' or 'accept'")
        if path is None:
            path = from_environment("ATASKS_KEYS", InvalidKeys, "name the file of keys", "keys")
        return cls(Keyring(path), topology, accept_unsealed=unsealed == "accept") if path else None

    def require_serve(self) -> None:
        """Raise InvalidKeys if the key that seals is none of a worker's."""
        if not self.keys.own.serve:
            raise InvalidKeys(
                f"key {self.keys.own.name!r}, the first one in {self.keys.path!r}, may only call: "
                "put the worker's own key first, with the word serve"
            )

    # -- what leaves

    def sealed(self, message: Outgoing) -> tuple[bytes, Body]:
        """Return the seal and the body to be sent; the seal is empty if the message is for everybody."""
        place = self._place(message.exchange, message.destination)
        if message.key == UNSEALED or place is None:
            return b"", message.body
        key = self.keys.own if message.key is None else self.keys.known(message.key) or self.keys.own
        kind, destination = place
        properties = message.properties
        reply_to, message_id = properties.reply_to or "", properties.message_id or ""
        return seal_apart(key, message.body, int(time.time() * 1000), kind, destination, reply_to, message_id)

    def seal_record(self, destination: str, name: str, body: bytes, key: str | None) -> bytes:
        """Return the bytes to be kept in a database of what has this name in the record at that destination. `key`
        as in `Outgoing`."""
        if key == UNSEALED:
            return body
        own = self.keys.own if key is None else self.keys.known(key) or self.keys.own
        return seal(own, body, int(time.time() * 1000), "record", destination, "", name)

    def open_record(self, destination: str, name: str, content: bytes) -> tuple[bytes, str]:
        """Return what was sealed so, and the name of its key. Raises SealError."""
        try:
            key, _, _, body = unseal(self.keys.find, content, "record", destination, "", name)
        except Unsealed:
            if self.accept_unsealed:
                return content, UNSEALED
            raise
        return bytes(body), key.name

    def voice(self) -> str:
        """The name of the key with which a call that is made now is sealed. While unsealed calls are accepted,
        what such a call calls is unsealed too: workers may be around that have no keys yet."""
        run = serving.get()
        return UNSEALED if run is not None and self.accept_unsealed and not run.call.by else self.keys.own.name

    def mark(self, pending: Pending) -> None:
        """Say how a new call that another one makes is sealed. What a submitted run calls is called in the name of
        its submitter."""
        run = serving.get()
        if run is None:
            return
        if self.voice() == UNSEALED:
            pending.key = UNSEALED
        elif run.call.by and run.call.task in (RUN_PIPELINE, RUN_TRIES):
            pending.call.by = run.call.by

    # -- what arrives

    def open(
        self,
        message: DeliveredMessage,
        place: tuple[Kind, str] | None,
        *,
        remember: bool = True,
        among: str = "",
    ) -> DeliveredMessage:
        """The message without its seal; as it is, if it has none and that is accepted, or if it is an announcement
        (`place` None). Raises SealError."""
        said, reply_to, message_id = names_of(message)
        if place is None or said != CONTENT_TYPE:
            if place is None or self.accept_unsealed:
                return message
            raise SealError("unsealed")
        kind, destination = place
        key, issued_ms, mac, body = unseal(
            self.keys.find, message.body, kind, destination, reply_to or "", message_id or ""
        )
        if kind == "request":
            if among:
                mac = blake2b(mac + among.encode()).digest()
            # A redelivered message has come before: it is treated like one whose call may have begun.
            if remember and self._replays.seen(mac, time.monotonic()) and not message.redelivered:
                raise SealError("replayed")
        elif kind == "control" and not _is_fresh(issued_ms, CONTROL_SECONDS):
            raise SealError("too old")
        return Opened(message, body, key, issued_ms, kind)

    # -- requests

    def admit(
        self, message: DeliveredMessage, request: RequestMessage, calls: list[Call], queue: str, worker: Server
    ) -> tuple[list[Call], list[tuple[str | None, str]]]:
        """The calls of a request that its key may make, in the name of their owner, and why it may not make the
        others, as (id, reason): calls under ids of other callers' calls are among these. Calls that were cancelled
        before they came are among neither."""
        others: set[str] = set()
        if isinstance(message, Opened) and message.key.is_free and not request.consumer.solo:
            ids = self._adopt(message, calls, worker)
            if ids:
                request.answer(request.reply_to, message.key.name)
                self._remember_owner(ids, message.key.name)
                return calls, []
        ids = [call.id for call in calls]
        if worker.knows_any(ids):  # they come again, or somebody else wants their replies
            sealing = message.key if isinstance(message, Opened) else None
            known = filter(worker.knows, ids)
            others = {call_id for call_id in known if not self._owns(sealing, call_id, worker)}
            calls = [call for call in calls if call.id not in others]
        request.answer(request.reply_to, UNSEALED)
        admitted, refused = self._admit(message, request, calls, queue)
        if others:
            self.count("not allowed", len(others))
            refused += [(call_id, "request refused: its id is that of another call") for call_id in others]
        return admitted, refused

    def _admit(
        self, message: DeliveredMessage, request: RequestMessage, calls: list[Call], queue: str
    ) -> tuple[list[Call], list[tuple[str | None, str]]]:
        if not isinstance(message, Opened):
            for call in calls:
                call.by = ""  # whatever it says
            return calls, []
        key = owner = message.key
        names = {call.by for call in calls} - {""}
        if names and key.serve and len({call.by for call in calls}) == 1:
            found = self.keys.find(names.pop())
            if found is None:
                self.count("unknown key")
                return [], []  # no caller could open a sealed answer
            owner = found
        request.answer(request.reply_to, owner.name)
        admitted: list[Call] = []
        refused: list[tuple[str | None, str]] = []
        old = abs(time.time() * 1000 - message.issued_ms)
        for call in calls:
            if call.sent_ms > message.issued_ms:  # it was delayed
                old = abs(time.time() * 1000 - call.sent_ms)
            if old > CONTROL_SECONDS * 1000 and old > _age(call) * 1000:
                self.count("too old")
                seconds = f"{_age(call):.0f} s"
                refused.append((call.id, f"request refused: key {key.name!r} sealed it more than {seconds} ago"))
                continue
            why = _forbidden(key, owner, call, queue, request.consumer.solo)
            if why:
                self.count("not allowed")
                refused.append((call.id, f"request refused: key {owner.name!r} {why}"))
                continue
            if owner.max_attempts is not None:
                call.max_attempts = min(call.max_attempts, owner.max_attempts)
            call.by = owner.name
            admitted.append(call)
        self._remember_owner([call.id for call in admitted], owner.name)
        return admitted, refused

    def _adopt(self, message: Opened, calls: list[Call], worker: Server) -> list[str]:
        """Say in each call whose it is, and return their ids. Empty: one of them needs a look of its own, or is
        known here, so nothing was said."""
        issued_ms, owner = message.issued_ms, message.key.name
        ids: list[str] = []
        if _is_fresh(issued_ms, CONTROL_SECONDS):
            for call in calls:
                if call.by or call.attempt > 1 or call.sent_ms > issued_ms:
                    break
                call.by = owner
                ids.append(call.id)
            else:
                if not worker.knows_any(ids):
                    return ids
        for call in calls[: len(ids)]:
            call.by = ""
        return []

    def _remember_owner(self, ids: list[str], owner: str) -> None:
        """Remember whose the calls with these ids are. Few ask, so a call costs next to nothing."""
        if not ids:
            return
        admitted = self._admitted
        admitted.append((ids, owner))
        self._remembered += len(ids)
        self._owners = None
        while self._remembered - len(admitted[0][0]) >= OWNERS:
            self._remembered -= len(admitted.popleft()[0])

    @property
    def has_cancelled(self) -> bool:
        """True if awaits have ended whose requests had not come then: `was_cancelled` may say so of a call."""
        return bool(self._cancelled)

    def was_cancelled(self, message: DeliveredMessage, call: Call) -> bool:
        """Say whether its await ended before the request came here."""
        if not isinstance(message, Opened):
            return False
        at = [self._cancelled.get((name, call.id), -1) for name in (call.by, message.key.name)]
        return max(at) >= message.issued_ms

    def _owns(self, key: Key | None, call_id: str, worker: Server) -> bool:
        """Say whether who holds this key may ask about a call and end it."""
        owner = self._owner(call_id, worker)
        return not owner if key is None else key.serve or owner == key.name

    def _owner(self, call_id: str, worker: Server) -> str | None:
        owner = worker.owner(call_id)
        if owner is not None:
            return owner
        if self._owners is None:
            self._owners = {name: owner for ids, owner in self._admitted for name in ids}
        return self._owners.get(call_id)

    # -- control messages

    def for_worker(
        self, message: DeliveredMessage, envelopes: Iterable[Envelope], worker: Server
    ) -> list[Envelope]:
        """Return the envelopes of a control message that its key may say to a worker."""
        key = message.key if isinstance(message, Opened) else None
        if key is None and not self.accept_unsealed:
            self.count("unsealed")
            return []
        kept: list[Envelope] = []
        for envelope in envelopes:
            if isinstance(envelope, (Cancel, Ask)):
                ids: list[str] = []
                for call_id in envelope.ids:
                    if self._owns(key, call_id, worker):
                        ids.append(call_id)
                    elif self._owner(call_id, worker) is not None:
                        self.count("not allowed")
                    elif isinstance(envelope, Cancel) and isinstance(message, Opened):
                        _remember(self._cancelled, (message.key.name, call_id), message.issued_ms, CANCELLED)
                # A caller that wants an answer in any case is told that calls which it may not ask for are not
                # here.
                if ids or (isinstance(envelope, Ask) and (envelope.token or not envelope.ids)):
                    kept.append(replace(envelope, ids=ids))
            elif isinstance(envelope, Query):
                kept.append(envelope)  # anybody may look; who may end a call says `owner_for`
            elif isinstance(envelope, (Credit, Grant)):
                if self._owns(key, envelope.id, worker):
                    kept.append(envelope)
                else:
                    self.count("not allowed")
            elif (key is None or key.serve) and isinstance(envelope, (Held, Reply, End)):
                kept.append(envelope)  # from workers that were asked
            else:
                self.count("not allowed")
        return kept

    def owner_for(self, message: DeliveredMessage) -> str | None:
        """Say whose calls may be ended by who sealed a message: those of the key of that name, or all (None)."""
        if isinstance(message, Opened):
            return None if message.key.serve else message.key.name
        return UNSEALED

    # -- replies

    def for_caller(
        self, message: DeliveredMessage, envelopes: list[Envelope], pendings: dict[str, Pending], news: bool
    ) -> list[Envelope]:
        """Return the envelopes of a message that answer calls which were sealed here: they come under the same
        key. Not all do: `is_answer` has said no. `news`: as `is_news` says."""
        if news:
            trusted = self.serves(message)
            awaited = {
                name for name, pending in pendings.items() if pending.address and not pending.kept and not trusted
            }
            return [item for item in envelopes if isinstance(item, Reply) and item.id not in awaited]
        key = key_of(message)
        fresh = not isinstance(message, Opened) or _is_fresh(message.issued_ms, CONTROL_SECONDS)
        kept: list[Envelope] = []
        for envelope in envelopes:
            if isinstance(envelope, Held):
                ids = [call_id for call_id in envelope.ids if self._answers(key, pendings.get(call_id))]
                if len(ids) < len(envelope.ids):
                    self.count("not allowed")
                elif fresh and (ids or key in self.keys.mine or (key == UNSEALED and self.accept_unsealed)):
                    kept.append(envelope)
            elif isinstance(envelope, (Reply, Item, End, Claim, Report)) and self._answers(
                key, pendings.get(envelope.id)
            ):
                if fresh or not isinstance(envelope, (Claim, Report)):
                    kept.append(envelope)
            elif not (key == UNSEALED and isinstance(envelope, Up)) and not (
                isinstance(envelope, QueryAnswer) and fresh and key == UNSEALED and self.accept_unsealed
            ):
                self.count("not allowed")
            else:
                kept.append(envelope)
        return kept

    def is_answer(self, message: DeliveredMessage) -> bool:
        """Say whether all of it is for this side: sealed with a key of this side, lately, and no news. If not,
        `is_news` and `for_caller` look closer."""
        if not isinstance(message, Opened) or message.kind == "record" or message.key.name not in self.keys.mine:
            return False
        self.answered.set()
        return _is_fresh(message.issued_ms, CONTROL_SECONDS)

    def is_news(self, message: DeliveredMessage) -> bool:
        """Say whether it tells of a record, which is read then: it answers nothing by itself."""
        if isinstance(message, Opened):
            return message.kind == "record"
        delivery: Any = message.delivery
        return self._topology.is_sealed_as_record(delivery.routing_key or "")

    def serves(self, message: DeliveredMessage) -> bool:
        """Say whether a worker has sealed a message that was opened, or nobody has and that is accepted."""
        return message.key.serve if isinstance(message, Opened) else self.accept_unsealed

    def from_workers(
        self, messages: Iterable[DeliveredMessage], place: tuple[Kind, str] | None
    ) -> Iterator[DeliveredMessage]:
        """Open what workers have sealed; the rest is refused."""
        for message in messages:
            try:
                opened = self.open(message, place)
            except SealError as error:
                self.count(str(error))
            else:
                if self.serves(opened):
                    yield opened
                else:
                    self.count("not allowed")

    def _answers(self, key: str | None, pending: Pending | None) -> bool:
        if key == UNSEALED:
            return self.accept_unsealed and (pending is None or pending.key == UNSEALED)
        return key in self.keys.mine or (pending is not None and key in (pending.call.by, pending.key))


def _forbidden(key: Key, owner: Key, call: Call, queue: str, solo: bool) -> str:
    """Why this key may not make this call; empty: it may. `solo`: it came by the queue of calls that run alone."""
    if not key.serve and call.by:
        return "may not name another caller: that is for keys with serve"
    if not key.serve and call.attempt > 1:
        return "may not say which attempt it is: that is for keys with serve"
    if not key.serve and solo:
        return "may not have a call run alone: that is for keys with serve"
    if call.by not in ("", owner.name):
        return "sealed a message of several callers"
    if not owner.may_use(queue):
        return f"may not use queue {queue!r}"
    return "" if owner.may_call(call.task) else f"may not call {call.task!r}"


def _age(call: Call) -> float:
    """Return the largest age in seconds of a call's seal: the time that the call has in all, and the seconds
    that clocks may differ by."""
    if call.timeout_ms is None:
        return REQUEST_SECONDS
    return min(call.timeout_ms / 1000 + CONTROL_SECONDS, REQUEST_SECONDS)


def _is_fresh(issued_ms: int, seconds: float) -> bool:
    return abs(time.time() * 1000 - issued_ms) <= seconds * 1000


def _remember(memory: OrderedDict[Any, Any], name: Any, value: Any, size: int) -> None:
    memory[name] = value
    memory.move_to_end(name)
    if len(memory) > size:
        memory.popitem(last=False)
