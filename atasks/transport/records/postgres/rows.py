"""The contents of records in PostgreSQL, as they are written and read."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Ended", "Found", "Held", "Look", "New", "Next", "Noted", "Wanted"]


class New(NamedTuple):
    """A record that is to be opened."""

    id: str
    base: str | None
    """The beginning that no other record's id may have; None: any may."""
    task: str
    queue: str
    keep_ms: int
    """0: it is a mark that the call has not ended, and cannot be read."""
    delay_ms: int
    sent: bool
    """True if nobody has to know whether its call was sent."""
    request: bytes


class Held(NamedTuple):
    """The record that there is now for a new one: itself, or another one with the same base."""

    id: str
    sent: bool


class Ended(NamedTuple):
    """The end of a call."""

    id: str
    """The id of the call, which may have taken the place of another one in its record."""
    status: int
    worker: str
    reply: bytes


class Next(NamedTuple):
    """A call that is to take the place of one which has ended."""

    id: str
    """The id of the record."""
    before: str
    """The id of the call that has ended."""
    call: str
    """The id of the one that takes its place."""
    note: str
    """The name that the request has among the notes."""
    request: bytes


class Noted(NamedTuple):
    """Something else that is kept of a call."""

    id: str
    note: str
    reply: bytes
    loud: bool
    """True if those who wait for steps are told."""


class Found(NamedTuple):
    """A record: bytes as they were given."""

    request: bytes
    reply: bytes | None
    kept: bool
    """False: it is a mark, which nobody reads."""
    notes: list[tuple[str, bytes]]


class Look(NamedTuple):
    """The state of a record."""

    ended: bool
    call: str
    """The id of the latest call of the record."""
    keep: float
    """Seconds for which it is kept; 0: it is a mark."""


class Wanted(NamedTuple):
    """The calls that a list has. See `Records.history`."""

    since: float | None
    failed: bool
    task: str
    limit: int
