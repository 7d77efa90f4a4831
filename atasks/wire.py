"""Wire format v1: what travels between callers and workers. `docs/wire.md` specifies it field by field.

A message body is a MessagePack array of envelopes; an envelope is an array that begins with its tag and the
version. Fields may be appended in a later minor revision (readers ignore what they do not know); anything else
needs a new version, which readers of this one refuse by name.
"""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from atasks.arrays import UNREADABLE, elements, length, read_each, scalar
from atasks.errors import DecodeError

__all__ = [
    "AT_LEAST_ONCE",
    "AT_MOST_ONCE",
    "CONTENT_TYPE",
    "FEW",
    "MAX_BODY",
    "STREAM_BYTES",
    "VERSION",
    "Ask",
    "Bad",
    "Call",
    "Cancel",
    "Claim",
    "Credit",
    "Decoded",
    "End",
    "Ending",
    "Envelope",
    "Grant",
    "Held",
    "Item",
    "Kept",
    "Query",
    "QueryAnswer",
    "Reply",
    "Report",
    "Status",
    "Up",
    "cancels",
    "counted",
    "decode",
    "encode",
    "ended",
    "ending",
    "purged",
    "salvage",
]

VERSION: Final = 1
CONTENT_TYPE: Final = "application/vnd.atasks.v1+msgpack"

AT_LEAST_ONCE: Final = 0
AT_MOST_ONCE: Final = 1

STREAM_BYTES: Final = 2**20
"""The window of a stream in bytes: a worker that has so many bytes of items on their way sends no further item."""
MAX_ENVELOPES: Final = 1024
"""Envelopes in one message."""
MAX_BODY: Final = 128 * 2**20
"""Bytes of a message; transports have lower limits of their own."""

Id = Annotated[str, Meta(min_length=1, max_length=64)]
"""Printable ASCII: `_flaw` looks, where a pattern would cost more than all other checks together."""
Key = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[ -~]+\Z")]
"""An id that a pattern checks: for fields that few envelopes have."""
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
CodecName = Annotated[str, Meta(max_length=1024)]
"""Empty: there is no payload of a codec."""
Count = Annotated[int, Meta(ge=0, le=2**53)]
MAX_QUERY: Final = 128 * 2**10
MAX_QUERY_ANSWER: Final = 2 * 2**20
"""Bytes."""
MAX_NOTE: Final = 200
"""Characters of the note of a report."""
MAX_IDS: Final = 1000
"""Calls in one envelope."""
Ids = Annotated[list[Key], Meta(max_length=MAX_IDS)]
"""Repeats count once."""


Awaits = tuple[Key, Name]
"""A call that a run awaits: its id, and its atask."""


RUN_TRIES: Final = "atasks.submitted.tries"
"""The name of the atask that every worker has: it awaits the tries of a submitted call with a `retry`."""
UNBOUNDED: Final = 1_000_000
"""The most attempts that a call may have."""
RUN_PIPELINE: Final = "atasks.pipeline.run"
"""The name of the atask that every worker has: it runs a submitted pipeline."""


class Status:
    """The endings of a call, in `Reply.status`. The payload of `VALUE` is the codec's bytes, that of `RAISED` a
    failure (see `atasks.failures`), that of any other status an `Ending`."""

    VALUE: Final = 0
    RAISED: Final = 1
    CANCELLED: Final = 2
    TIMED_OUT: Final = 3
    UNKNOWN_TASK: Final = 4
    WORKER_LOST: Final = 5
    ENCODE_ERROR: Final = 6
    DECODE_ERROR: Final = 7
    TOO_LARGE: Final = 8
    FAILED: Final = 9
    """The worker itself failed; the call may have run."""


class Call(Struct, array_like=True, tag=1, gc=False):
    """A request: run `task` with the arguments in `payload`."""

    v: int
    id: Id
    task: Name
    payload: bytes
    codec: Name
    timeout_ms: Count | None = None
    """Milliseconds that were left of the whole call when it was sent; None: no deadline."""
    sent_ms: Count = 0
    """The caller's wall clock when it was sent, in milliseconds since 1970."""
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    max_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    delivery: Annotated[int, Meta(ge=0, le=1)] = AT_LEAST_ONCE
    orphan: Annotated[int, Meta(ge=0, le=1)] = 0
    """0: cancel the run when its caller is gone; 1: let it finish."""
    root: Id | None = None
    """The call at the top of the chain of calls; None: this one."""
    parent: Id | None = None
    """The call that awaits this one; None: none does."""
    seen: Annotated[list[Key], Meta(max_length=64)] | None = None
    """Ids of the workers that do not know `task`."""
    credit: Count = 0
    """The window of a stream: how many items may be on their way; 0: not a stream."""
    context: Annotated[dict[Name, bytes], Meta(max_length=256)] | None = None
    """Context variables that travel with the call, by name, each in the codec's bytes."""
    sig: bytes | None = None
    """Reserved for a signature; ignored in version 1."""
    ran: bool = False
    """True if a worker may have run this call before, at this attempt: that worker gave it back, or may have been
    sent it in vain. Of a stream: and its consumer may have items."""
    by: Annotated[str, Meta(max_length=32)] = ""
    """The name of the key whose owner made the call, if a worker passes it on; empty: the sender's own."""
    key: Key | None = None
    """The idempotency key, which is the same for every try: the id of the first one; None: this is the first."""
    try_: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Which try this is, of those that a caller's retries make."""
    headers: Annotated[dict[Name, Annotated[str, Meta(max_length=65_536)]], Meta(max_length=64)] | None = None
    """Notes from the middlewares of the caller to those of the worker."""
    reports: bool = False
    """True if the caller wants a `Report` whenever the call says how far it is."""


class Reply(Struct, array_like=True, tag=2, gc=False):
    """The ending of the call with that id."""

    v: int
    id: Id
    status: Count
    payload: bytes
    codec: CodecName = ""
    worker: str = ""
    run_us: Count = 0
    """Microseconds from start to end of the run."""
    parked: bool = False
    """True if the run awaited another call."""
    work_us: Count = 0
    """Microseconds of work of a run that awaited another call: see `HeldCall.worked`. 0: it is not known."""


class Ending(Struct, array_like=True, gc=False):
    """The payload of a reply with neither a value nor an exception."""

    message: str
    attempts: Count = 0
    """With `WORKER_LOST`: how many deliveries of the call a worker did not survive."""
    worker: Annotated[str, Meta(max_length=64)] = ""
    """The worker that had the call last; empty: it is not known."""
    ran_ms: Annotated[int, Meta(ge=-1, le=2**53)] = -1
    """For how many milliseconds it had run there; -1: it had not, or it is not known."""
    awaits: Awaits | None = None
    """A call that the run awaited."""


class Cancel(Struct, array_like=True, tag=3, gc=False):
    """The awaits of these calls have ended: stop their runs, and do not start them."""

    v: int
    ids: Ids


class Ask(Struct, array_like=True, tag=4, gc=False):
    """Which of these calls do you hold? A worker that holds any answers `Held` to the message's reply address."""

    v: int
    ids: Ids
    token: Annotated[str, Meta(max_length=64)] = ""
    """A text that the answer must repeat; a worker then answers even if it holds none of the calls."""


class Held(Struct, array_like=True, tag=5, gc=False):
    """The answer to `Ask`: the calls that this worker holds, running or not yet."""

    v: int
    ids: Ids
    worker: Key
    token: Annotated[str, Meta(max_length=64)] = ""
    """That of the question."""
    ran_ms: Annotated[list[int], Meta(max_length=MAX_IDS)] | None = None
    """For how many milliseconds each has run; -1: not yet. None: the worker is an older one."""
    awaits: Annotated[list[Awaits | None], Meta(max_length=MAX_IDS)] | None = None
    """A call that each of them awaits, if it does. None: the worker is an older one."""


class Up(Struct, array_like=True, tag=6, gc=False):
    """A worker declared this work queue: send again what may have been lost with an earlier one."""

    v: int
    namespace: Name
    queue: Name
    worker: Key


class Credit(Struct, array_like=True, tag=7, gc=False):
    """The consumer of stream `id` has taken so many items since its start: the worker may go on up to a window
    past them. Nothing is lost with a `Credit` that gets lost: the next one says the same and more."""

    v: int
    id: Key
    items: Count
    size: Count
    """Their bytes."""
    again: Count | None = None
    """Number of the next item that is wanted: it, and what follows, was not received; None: nothing is missing."""
    window: Count = 0
    """Items that may be on their way from now on; 0: as many as before."""


class Item(Struct, array_like=True, tag=8, gc=False):
    """Items of stream `id`, in order: the first has the number `first`, counted from 0.

    Without payloads it is a question, which the caller answers with `Credit`, or with `Cancel` if it does not want
    the stream any more.
    """

    v: int
    id: Id
    first: Count
    payloads: Annotated[list[bytes], Meta(max_length=65_536)]
    codec: CodecName = ""
    worker: str = ""
    """The name of the worker that sends it, and gets the `Credit`."""
    attempt: Count = 1
    """The attempt of the call; items of an earlier attempt than the latest one are void."""


class End(Struct, array_like=True, tag=9, gc=False):
    """Stream `id` has ended after `count` items; `reply` says how."""

    v: int
    id: Id
    count: Count
    reply: Reply
    attempt: Count = 1

    @property
    def payload(self) -> bytes:
        """That of the reply."""
        return self.reply.payload


class Kept(Struct, array_like=True, tag=10, gc=False):
    """The record of a call whose replies are kept begins with this, and the call behind it."""

    v: int
    id: Key
    queue: Name
    """The work queue of the call."""
    expires_ms: Count
    """Milliseconds after which the record goes, if nobody uses it."""


class Claim(Struct, array_like=True, tag=11, gc=False):
    """May this copy of the call start, as its attempt of that number? `Grant` says so, to `worker`."""

    v: int
    id: Key
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)]
    copy: Key
    """The `message_id` of the request."""
    worker: Key
    """The name of the worker that asks."""
    begins: bool = False
    """True if the last attempt starts now: nothing else runs beside it."""
    again: bool = False
    """True if the broker delivered the copy to somebody before: the call may have begun there."""
    run: Count = 0
    """The number of last attempts that this worker has asked to begin so far, this one included; 0: it has not
    asked yet, or is an older version."""
    over: Annotated[str, Meta(max_length=64)] = ""
    """The beginning of this copy that is over, as `worker:run`: its worker gave it back. Empty: none was."""


class Grant(Struct, array_like=True, tag=12, gc=False):
    """The answer to `Claim`: whether that copy of the call may start. Each attempt is granted to one copy."""

    v: int
    id: Key
    copy: Key
    granted: bool
    begun: bool = False
    """True if a worker has said that this copy begins."""
    run: Count | None = None
    """Which beginning of the worker that asked was granted, by the number in its claim; 0: none was; None: the
    caller is an older version."""
    now_ms: Count = 0
    """The caller's wall clock when it answered, in milliseconds since 1970; 0: it does not say."""
    over: bool = False
    """True if nobody awaits the call any more."""


class Report(Struct, array_like=True, tag=13, gc=False):
    """The progress of a call whose caller wants to know. It may get lost, if a later one arrives."""

    v: int
    id: Key
    done: int | float
    total: int | float | None = None
    """None: it is not known."""
    note: Annotated[str, Meta(max_length=MAX_NOTE)] = ""
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class Sent(Struct, array_like=True, tag=14, gc=False):
    """In a journal: these calls are sent by the call whose journal it is, or were."""

    v: int
    ids: Ids


class Query(Struct, array_like=True, tag=20, gc=False):
    """A question to the workers of a namespace about themselves, or something that they must do. Each one answers
    with a `QueryAnswer` to the message's reply address; those of older versions do not hear it."""

    v: int
    token: Key
    """The text that answers repeat."""
    content: Annotated[bytes, Meta(max_length=MAX_QUERY)]
    """One of `atasks.tracking.queries`."""
    worker: Annotated[str, Meta(max_length=64)] = ""
    """Only this worker is meant; empty: all are."""
    queue: Annotated[str, Meta(max_length=1024)] = ""
    """Only workers are meant that serve this queue; empty: all are."""


class QueryAnswer(Struct, array_like=True, tag=21, gc=False):
    """The answer of a worker to a `Query`."""

    v: int
    token: Key
    worker: Key
    content: Annotated[bytes, Meta(max_length=MAX_QUERY_ANSWER)]


Envelope = (
    Call
    | Reply
    | Cancel
    | Ask
    | Held
    | Up
    | Credit
    | Item
    | End
    | Kept
    | Claim
    | Grant
    | Report
    | Sent
    | Query
    | QueryAnswer
)


class Bad(Struct, gc=False):
    """An envelope that cannot be read: why, and its call id where that much can be read."""

    reason: str
    id: str | None
    tag: int | None


class Decoded(Struct, gc=False):
    """The contents of a message body: the good envelopes, and the flaws of the others."""

    envelopes: list[Envelope]
    bad: list[Bad]


_encoder = msgspec.msgpack.Encoder(enc_hook=bytes)  # payloads in pieces are joined
_decoder: msgspec.msgpack.Decoder[list[Envelope]] = msgspec.msgpack.Decoder(list[Envelope])
_ending: msgspec.msgpack.Decoder[Ending] = msgspec.msgpack.Decoder(Ending)
_one: msgspec.msgpack.Decoder[Envelope] = msgspec.msgpack.Decoder(Envelope)

FEW: Final = 0x9F
"""The first byte of the longest array whose length is in it."""

NOT_PLAIN: Final = "an id that is not printable ASCII"

encode = _encoder.encode
"""A list of envelopes -> the bytes of a message body."""


def plain(text: str) -> bool:
    """Return True for printable ASCII, which ids and the names of workers must be: they go into keys and into
    lines of logs."""
    return text.isascii() and text.isprintable()


def ids_of(call: Call) -> str:
    """Return the ids in a call as one text, for `plain`: one look at all of them."""
    return call.id if call.root is None and call.parent is None else f"{call.id}{call.root}{call.parent}"


def decode(body: bytes | memoryview, limit: int = MAX_BODY) -> list[Envelope]:
    """The envelopes of a message body of up to `limit` bytes; a `DecodeError` if any of them cannot be read (then
    see `salvage`). Sizes are looked at before anything is made of what has them."""
    if len(body) > limit:
        raise DecodeError(_too_large(body, limit))
    if body and body[0] > FEW and length(body) > MAX_ENVELOPES:
        raise DecodeError(_too_many(body))
    try:
        envelopes = _decoder.decode(body)
    except UNREADABLE as error:
        raise DecodeError(f"not a message of wire version {VERSION}: {_why(error)}") from None
    for envelope in envelopes:
        flaw = _flaw(envelope)
        if flaw is not None:
            raise DecodeError(flaw)
    return envelopes


def ending(reply: Reply) -> Ending:
    """The payload of a reply with neither a value nor an exception. Never raises."""
    try:
        return _ending.decode(reply.payload)
    except UNREADABLE:
        return Ending("(the worker's message cannot be read)")


def cancels(ids: list[str]) -> list[Cancel]:
    """Return as many `Cancel` envelopes as it takes for so many calls."""
    return [Cancel(VERSION, ids[start : start + MAX_IDS]) for start in range(0, len(ids), MAX_IDS)]


def ended(
    call_id: str,
    status: int,
    message: str,
    worker: str = "",
    attempts: int = 0,
    *,
    last_worker: str = "",
    ran: float | None = None,
    awaits: Awaits | None = None,
) -> Reply:
    """A reply with neither a value nor an exception. Lone surrogates in the message arrive as their escapes.

    `last_worker` had the call last, for `ran` seconds, and the run awaited the call `awaits`.
    """
    ran_ms = -1 if ran is None else int(ran * 1000)
    text = message.encode("utf-8", "backslashreplace").decode()
    ending = Ending(text, attempts, last_worker, ran_ms, awaits)
    return Reply(VERSION, call_id, status, _encoder.encode(ending), "", worker)


def purged(call: Call, queue: str) -> Reply:
    """The reply of a call that somebody ended while it waited in its queue."""
    message = f"{describe(call)} was purged from queue {queue!r} by request, as `atasks purge` does"
    return ended(call.id, Status.CANCELLED, message)


def salvage(body: bytes | memoryview, limit: int = MAX_BODY) -> Decoded:
    """Read a body that `decode` refuses, envelope by envelope, and return what can be read. Never raises."""
    if len(body) > limit:
        return Decoded([], [Bad(_too_large(body, limit), None, None)])
    if length(body) > MAX_ENVELOPES:
        return Decoded([], [Bad(_too_many(body), None, None)])
    bad: list[Bad] = []
    try:
        good = read_each(body, _read, lambda piece, error: bad.append(_diagnose(piece, _why(error))))
    except UNREADABLE as error:
        return Decoded([], [Bad(f"not a MessagePack array of envelopes: {_why(error)}", None, None)])
    return Decoded(good, bad)


def _read(piece: msgspec.Raw) -> Envelope:
    envelope = _one.decode(piece)
    flaw = _flaw(envelope)
    if flaw is not None:
        raise msgspec.ValidationError(flaw)
    return envelope


def _flaw(envelope: Envelope) -> str | None:
    """Return the flaw of an envelope that was decoded; None: it has none."""
    if envelope.v != VERSION:
        return _wrong_version(envelope.v)
    if isinstance(envelope, Call):
        return None if plain(ids_of(envelope)) else NOT_PLAIN
    if isinstance(envelope, (Reply, Item)):
        worker = envelope.worker
    elif isinstance(envelope, End):
        return _flaw(envelope.reply) if plain(envelope.id) else NOT_PLAIN
    else:
        return None  # its keys were looked at
    names = envelope.id + worker  # both at once, and not by `plain`: every message comes here
    if len(worker) <= 64 and names.isascii() and names.isprintable():
        return None
    if not plain(envelope.id):
        return NOT_PLAIN
    return "a worker that is not named in up to 64 characters of printable ASCII"


def _diagnose(piece: msgspec.Raw, reason: str) -> Bad:
    """Say whether it is the version that is wrong, and find the call id."""
    fields = [scalar(field) for field in elements(piece)[:3]]
    if len(fields) < 2:
        return Bad(f"not an envelope: {reason}", None, None)
    tag, version, call_id = (*fields, None)[:3]
    if isinstance(version, int) and version != VERSION:
        reason = _wrong_version(version)
    if not (isinstance(call_id, str) and 0 < len(call_id) <= 64 and plain(call_id)):
        call_id = None
    return Bad(reason, call_id, tag if isinstance(tag, int) else None)


def _too_large(body: bytes | memoryview, limit: int) -> str:
    return f"a message of {len(body)} bytes: at most {limit} are read"


def _too_many(body: bytes | memoryview) -> str:
    return f"a message of {length(body)} envelopes: at most {MAX_ENVELOPES} are read"


def _why(error: Exception) -> str:
    """Return the flaw of bytes that could not be decoded, without quoting them."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    bad_text = isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error)  # msgspec 0.22, and 0.23
    return "a text that is not UTF-8" if bad_text else str(error)


def _wrong_version(version: int) -> str:
    return f"wire version {version}: this side speaks version {VERSION}; upgrade the older side"


def describe(call: Call) -> str:
    """Return the name of a call in logs, notes and errors: its atask and its id."""
    return f"task {call.task!r}, call {call.id}"


def counted(number: int, what: str) -> str:
    """Return a number of things in words: "1 call", "2 calls"."""
    return f"{number} {what}{'s' * (number != 1)}"
