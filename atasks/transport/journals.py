"""Journals: how the calls that another call has made have ended, kept for the run of that call that comes next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Protocol

from atasks.options import TaskOptions
from atasks.transport.pending import Pending
from atasks.wire import Call, Reply, Status

__all__ = ["LASTING", "Caller", "Elsewhere", "Entries", "Journals", "journal_name", "lasts"]

LASTING: Final = frozenset({Status.VALUE, Status.RAISED})
"""The endings of a call that a journal keeps: a call that ended otherwise is made again."""


def journal_name(key: str, version: bool | str) -> str:
    """The name of the journal of the call with this idempotency key, run by that version of its code."""
    named = "" if isinstance(version, bool) or version == "strict" else version
    return blake2b(f"{named}\0{key}".encode(), digest_size=16, person=b"atasks journal").hexdigest()


def lasts(reply: Reply) -> bool:
    """Return True if a call that has ended so is not made again."""
    return reply.status in LASTING


class Elsewhere(Exception):
    """The call of a journal was given to another worker, while this one had no connection, or to two workers."""

    def __init__(self, call_id: str, *, ended: bool = False) -> None:
        super().__init__(call_id)
        self.ended = ended
        """True if the call has ended there; False: it goes on."""


@dataclass(slots=True)
class Entries:
    """The contents of a journal."""

    replies: dict[str, Reply] = field(default_factory=dict)
    """Id -> how that call, or that step, has ended: with a value or an exception of its own."""
    sent: set[str] = field(default_factory=set)
    """The ids of calls that were sent: they may wait, run, or have ended."""
    spent: set[str] = field(default_factory=set)
    """The ids of calls that ended otherwise: whoever makes one of them again needs another id."""
    messages: int = 0
    """All that is in it, also what is not believed; 0 where nothing counts that."""
    refused: int = 0
    """Messages in it that are not believed: no worker has sealed them whose key is known."""

    def add(self, reply: Reply) -> None:
        """Keep a reply. The first one of an id counts."""
        if lasts(reply):
            self.replies.setdefault(reply.id, reply)
        else:
            self.spent.add(reply.id)


class Caller(Protocol):
    """The part of a transport that makes the calls of journals."""

    async def request_on_record(
        self,
        call: Call,
        options: TaskOptions,
        address: str,
        *,
        sent: bool,
        stays: Callable[[], bool],
        held: list[Pending] | None = None,
    ) -> Reply:
        """See `CallTransport`."""
        ...

    def send_on_record(self, pending: Pending) -> None:
        """See `CallTransport`."""
        ...


class Journals(ABC):
    """Keeps the journals of one transport. Each has a name, which is the same for every run of its call.

    A call that is made by `request` has its reply kept, and given to whoever awaits it, in one step: no worker can
    die between the two.
    """

    generation: int = 0
    """Grows when another run may have worked at any of the journals meanwhile: open them again before the next
    step."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def hasten(self, name: str, owner: str) -> None:  # noqa: B027 - most have nothing to hasten
        """Begin now with what `open` takes time for, which is called later, if the run does not end before."""

    @abstractmethod
    async def open(self, name: str, owner: str) -> Entries:
        """Open the journal of the call `owner`, or find it, and return what is in it. Work at it goes on until
        `finish` or `leave`. Raises a `CallError` or a `TransportError`; Elsewhere if it was open here, and another
        worker has the call now."""

    def late(self, step: str) -> Reply | None:
        """The reply to a call of an earlier run that has come since its journal was read, if there is one."""
        return None

    @abstractmethod
    async def add(self, name: str, reply: Reply) -> None:
        """Put a step into the journal, and return when it is safe."""

    async def request(
        self,
        name: str,
        call: Call,
        options: TaskOptions,
        *,
        sent: bool,
        stays: Callable[[], bool],
        held: list[Pending] | None = None,
    ) -> Reply:
        """Have a worker answer the call, and keep the reply. `sent`: it was sent before, by another run. `stays`
        is asked where the await is cancelled: True: the call goes on, and its reply is kept. Raises as
        `Transport.request` does.

        `held`: the journal is not open yet. The call is put there, and whoever holds it lets `send` see to it, or
        ends the await. `NOT_SENT` is returned if the call is to be made without this."""
        if held is None and not sent:
            if options.on_no_worker == "error":
                await self._require_worker(options)
            self._note(name, call.id)
        address = self._address(name)
        return await self._caller.request_on_record(call, options, address, sent=sent, stays=stays, held=held)

    def send(self, name: str, pending: Pending) -> None:
        """Send a call that was held until its journal was open, in which there is nothing of it. Its await ends in
        `NOT_SENT` if that would take an await."""
        self._note(name, pending.call.id)
        self._caller.send_on_record(pending)

    def _address(self, name: str) -> str:
        """The address of the replies that a journal keeps."""
        return name

    async def _require_worker(self, options: TaskOptions) -> None:  # noqa: B027 - most transports see to it
        """Raise NoWorker if nothing serves the queue of a call, which is not sent then."""

    def _note(self, name: str, *call_ids: str) -> None:  # noqa: B027 - whoever passes a call on may note it itself
        """Note in the journal that these calls are sent, before they are."""

    @abstractmethod
    def spend(self, name: str, reply: Reply) -> None:
        """Note that the await of a call has ended otherwise than by a reply, without waiting. It may get lost."""

    @abstractmethod
    def finish(self, name: str, call_id: str, owner: str = "") -> None:
        """Drop the journal as soon as the reply to its call is safe; at once, if none is on its way. If another
        worker may have the call by then, leave it: that one needs it. `owner`: the call that opened it, after
        which another one of the same idempotency key may have opened it."""

    @abstractmethod
    def leave(self, name: str) -> None:
        """Leave the journal to the next run."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Drop a journal whose call will not run again. Nothing happens if it is not there."""
