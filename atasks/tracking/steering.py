"""The results of orders to queues: purged calls, and messages in the dead queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

__all__ = ["DeadLetters", "DeadMessage", "Purged"]


class Purged(Struct):
    """The outcome of a purge."""

    calls: int = 0
    """Calls that have ended in `CallCancelled`, and events whose handlers will not run."""
    unreadable: int = 0
    """Messages that could not be read, and are in the dead queue now."""
    left: int = 0
    """Messages that stay in the queue: they are sealed under keys that are not known here, or their callers could
    not be told."""
    known: bool = True
    """False: there is no such queue."""


class DeadMessage(Struct):
    """A message in the dead queue: it could be neither read nor answered."""

    number: int
    """The place in the queue, from 1 on."""
    name: str
    """The id of the message: unlike the number it stays the same when others leave the queue. Empty: it has
    none."""
    queue: str
    """The queue at the broker that it came from; empty: nobody noted it."""
    reason: str
    """The reason why it is there, in a word of the broker's: `rejected`, `expired`, `maxlen`, `delivery_limit`."""
    size: int
    """Bytes of its body."""
    at: float | None = None
    """When it came there, by the broker's clock, where that is known."""
    sealed: bool = False
    tasks: list[str] = []
    """The names of the atasks of its calls, as far as they can be read."""
    ids: list[str] = []
    """The ids of these calls."""
    body: bytes = b""


class DeadLetters(Protocol):
    """The messages of a dead queue, which nobody else sees until this is left. What is not dropped, or safe
    elsewhere, is in the queue again after that, and also if this process is killed."""

    @property
    def messages(self) -> Sequence[DeadMessage]:
        """The messages, the oldest first."""
        ...

    async def retry(self, messages: Sequence[DeadMessage]) -> dict[int, str]:
        """Put messages back into the queues that they came from, many at a time. A message leaves the dead queue
        when its copy is safe, so one is in both queues if this process is killed between the two, and none is
        lost. Returns why that cannot be, by the numbers of those that stay."""
        ...

    async def drop(self, message: DeadMessage) -> None:
        """Forget a message for good."""
        ...
