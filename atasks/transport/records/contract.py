"""Keeping what becomes of a call that nobody awaits, for whoever asks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, Final

from msgspec import Struct

from atasks.checks import validate_number
from atasks.current import new_call_id
from atasks.errors import NotSupported, QueueFull, UnknownRun
from atasks.options import LONGEST_KEEP, TaskOptions
from atasks.outlast import Within
from atasks.wire import Call, Kept, Reply

__all__ = [
    "DEFAULT_EXPIRES",
    "GENERATION",
    "Record",
    "Records",
    "RunInfo",
    "again_id",
    "base_of",
    "check_expires",
    "key_of_run",
    "no_room",
    "record_of",
    "round_of",
    "unknown_run",
]

DEFAULT_EXPIRES: Final = 86_400.0
"""Seconds."""
GENERATION: Final = "~"
"""In the id of a call with a `unique` key: what is before it is the same for all calls with that key."""
ROUND: Final = "+"
"""In the id of a call that goes on with the record of one that failed: before it stands the id of the record."""
PATIENCE: Final = 10.0
"""Seconds after which one who waits looks whether what it waits for is still there."""


class Record:
    """The record of one submitted call: the call itself, and the replies so far, in the order in which they were
    kept. Where that call has ended in an error another one may take its place: the record's `call` is the latest
    one, and the replies of those before stay."""

    def __init__(self, head: Kept, call: Call) -> None:
        self.head = head
        self.call = call
        self.address = ""
        """The reply address of its call; empty: that of a record of its own."""
        self.replies: dict[str, Reply] = {}
        """By id. The first of an id counts: a call may be run twice, if its worker seems to have died."""

    def add(self, reply: Reply) -> bool:
        """Put the reply into the record; False if there is one of its id."""
        return self.replies.setdefault(reply.id, reply) is reply

    def go_on(self, call: Call) -> bool:
        """Let this call take the place of the one that has ended. False, and nothing happens, if that one has not
        ended, or this call is not the next one of the record."""
        after = round_of(self.call.id) + 1
        if self.ending is None or record_of(call.id) != self.id or round_of(call.id) != after:
            return False
        self.call = call
        return True

    def has_ended(self, call_id: str) -> bool:
        """Return True if this call of the record has ended: every one but the latest has."""
        return self.call.id != call_id or self.ending is not None

    @property
    def id(self) -> str:
        """The id of the record: that of its first call."""
        return record_of(self.call.id)

    @property
    def ending(self) -> Reply | None:
        """The reply that ended the latest call, once there is one."""
        return self.replies.get(self.call.id)

    @property
    def expires(self) -> float:
        """Seconds after which the record goes, if nobody uses it."""
        return self.head.expires_ms / 1000


class RunInfo(Struct, frozen=True, kw_only=True):
    """A submitted call, or a run of a pipeline, in a list."""

    id: str
    task: str
    queue: str
    submitted: float
    """When it was submitted, in seconds since 1970, as the other times."""
    due: float
    """When it may begin, or might."""
    ended: float | None
    """None: it waits or runs."""
    status: int | None
    """One of `Status`; None: it has not ended."""
    worker: str | None
    """The id of the worker that ended it."""
    expires: float
    """When its record goes, if nobody uses it."""


class Records(ABC):
    """Keeps the replies of calls that nobody awaits: any process may read them, any number of times.

    A record goes when it was not used for `expires` seconds: neither written nor read nor waited for. Whoever runs
    a kept call uses its record meanwhile.
    """

    patience = PATIENCE

    def __init__(self, expires: float) -> None:
        self.expires = check_expires(expires)

    @abstractmethod
    async def begin(self, call: Call, options: TaskOptions, *, delay: float = 0.0, named: str = "") -> str:
        """Open a record, unless the options say `keep=0`, and have a worker run the call, at the earliest after
        `delay` seconds, which is when `sent_ms` says that it was sent. `named`: the name of its atask in lists, if
        the call is one that makes the tries of another one. Returns its id when both are safe; that of
        another call, and does nothing, if that one has the same `base_of` its id and waits, runs, or has a record.
        Raises a `CallError`."""

    def keeps(self, options: TaskOptions) -> float:
        """Seconds for which the record of a call with these options is kept; 0: it has none."""
        return self.expires if options.keep is None else options.keep

    def milliseconds(self, options: TaskOptions, delay: float) -> int:
        """For how long the record of such a call, which begins so many seconds later, is kept if nobody uses it;
        0: it has none."""
        keep = self.keeps(options)
        return int((keep + delay) * 1000) if keep else 0

    async def again(self, record: Record, call: Call, options: TaskOptions) -> bool:
        """Have a worker run this call, whose id is an `again_id`, in the place of the one of the record, which has
        ended. Returns True when call and record are safe; False, and does nothing, if another call has taken that
        place meanwhile. Raises UnknownRun, and a `CallError`."""
        raise NotSupported(f"{type(self).__name__} runs no failed call again: submit it anew")

    @abstractmethod
    async def add(self, call_id: str, reply: Reply, *, quiet: bool = False) -> None:
        """Put a reply into the record, and return when it is safe. The call has ended with the first one that has
        its id; others have an id of their own. Nobody is told of one that is `quiet`. Raises UnknownRun, and
        QueueFull if there is no room for it."""

    async def cancel(self, record: Record, ending: Reply) -> None:
        """End the call of this record, which has not ended, with that reply."""
        await self.add(record.id, ending)

    @abstractmethod
    async def read(self, call_id: str) -> Record:
        """The record as it is now. Raises UnknownRun."""

    @abstractmethod
    async def touch(self, call_id: str) -> None:
        """Use the record: its time begins anew. Raises UnknownRun."""

    async def history(
        self, *, since: float | None = None, failed: bool = False, task: str = "*", limit: int = 100
    ) -> Sequence[RunInfo]:
        """The calls that have records, those first that were submitted last, and at most `limit` of them: those of
        the last `since` seconds, those that have failed only, those of atasks whose names fit `task`, in which `*`
        stands for any text and `?` for any letter. Raises NotSupported where records cannot be listed."""
        raise NotSupported(f"{self.unlisted}: keep records in PostgreSQL (records=, --records or $ATASKS_RECORDS)")

    unlisted = "these records are found by their ids only"
    """The reason why there is no `history`."""

    async def drop(self, call_id: str) -> None:
        """Forget the record: nobody learns any more how its call ends, which goes on. Raises UnknownRun, and
        NotSupported where records go by themselves only."""
        raise NotSupported("records go by themselves here, when nobody has used them for as long as they are kept")

    @abstractmethod
    def watch(self, call_id: str, *, steps: bool) -> AbstractAsyncContextManager[asyncio.Event]:
        """Inside of this the event is set after the call has ended, and, with `steps`, after other replies were
        kept; it may also be set for no reason."""

    def pursue(self, record: Record) -> AbstractContextManager[None]:
        """Inside of this the call is sent again if it gets lost."""
        return nullcontext()

    def see_to(self, record: Record) -> None:
        """Have the call of this record, which somebody else has submitted, sent again if it gets lost, or was
        never sent because who submitted it died: until it has ended, or this transport closes."""
        return

    async def wait(self, call_id: str, wanted: Callable[[Record], bool], *, steps: bool) -> Record:
        """The record, as soon as it is as wanted. Raises UnknownRun, also if it expires meanwhile."""
        async with self.watch(call_id, steps=steps) as news:
            return await self.follow_up(await self.read(call_id), news, wanted)

    async def follow_up(self, record: Record, news: asyncio.Event, wanted: Callable[[Record], bool]) -> Record:
        """The record, as soon as it is as wanted, beginning with what was read of it; `news` as from `watch`."""
        with self.pursue(record):
            while not wanted(record):
                try:
                    async with Within(min(self.patience, record.expires / 3)):
                        await news.wait()
                except TimeoutError:
                    await self.touch(record.id)
                else:
                    news.clear()
                    record = await self.read(record.id)
        return record


def base_of(call_id: str) -> str | None:
    """Return the common part of the ids of all calls with the same `unique` key; None: this call has no such
    key."""
    base, found, _ = call_id.partition(GENERATION)
    return base if found else None


def again_id(call_id: str) -> str:
    """A new id for the call that takes the place of this one, which has ended. Those who make one at the same time
    make different ones: the first that is kept counts."""
    return f"{record_of(call_id)}{ROUND}{round_of(call_id) + 1}-{new_call_id()[:8]}"


def record_of(call_id: str) -> str:
    """Return the id of the record that this call, or the reply that ends it, belongs to."""
    return call_id.partition(ROUND)[0]


def round_of(call_id: str) -> int:
    """Return how many calls of the record ended in an error before this one."""
    number = call_id.partition(ROUND)[2].partition("-")[0]
    return int(number) if number.isdecimal() else 0


def key_of_run(call: Call) -> str:
    """Return the key that names the journal of this call. One that is run again after it had ended has another
    journal, and its steps have other ids: workers remember how the steps of before have ended."""
    key = call.key or call.id
    number = round_of(call.id) or round_of(call.parent or "")  # the parent makes the tries of a `retry`
    return f"{key}{ROUND}{number}" if number else key


def check_expires(value: Any) -> float:
    """The option `keep_runs` of transports, checked."""
    validate_number("keep_runs", value)
    if not 0.001 <= value <= LONGEST_KEEP:
        raise ValueError(f"keep_runs={value!r}: seconds above 0, at most {LONGEST_KEEP:.0f}")
    return float(value)


def no_room(call_id: str) -> QueueFull:
    """The error of who wants to keep more than there is room for."""
    return QueueFull(
        f"there is no room for more of run {call_id!r} in the memory for runs: wait for results to expire, "
        "shorten keep_runs, or raise keep_bytes"
    )


def unknown_run(call_id: str) -> UnknownRun:
    """The error of who asks for a record that there is not."""
    return UnknownRun(
        f"there is no run {call_id!r} here: its results have expired, it was submitted with keep=0, or over "
        "another broker, hub, prefix or namespace, or it was kept in a process that has ended"
    )
