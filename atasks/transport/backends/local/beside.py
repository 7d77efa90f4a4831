"""Large payloads, which travel beside their messages: each side hands on the bytes themselves, without a copy.

Each comes before the frame of its message, which is alone there: its length plus `BESIDE`, in four bytes, then it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import structs

from atasks.codecs.pieces import Pieces, Shared
from atasks.transport.backends.local.lane import put_together
from atasks.transport.backends.local.messages import (
    Begin,
    Deliver,
    GiveBack,
    Message,
    Request,
)
from atasks.wire import End, Item, Reply

__all__ = ["BESIDE", "BESIDE_BYTES", "SHARED", "Arriving", "large_payloads", "put_payloads", "with_payload"]

BESIDE: Final = 2**31
"""Added to the length of a payload, which stands before it as that of a frame does."""
SHARED: Final = BESIDE.to_bytes(4, "big")
"""Stands before the message of a payload in shared memory, which `lane.py` brings; it describes the payload."""
BESIDE_BYTES: Final = 256 * 2**10
"""A payload of so many bytes travels beside its message."""
MAX_BESIDE: Final = 2**16
"""Payloads beside one message."""
OVERHEAD: Final = 200
"""Bytes that a payload costs besides itself, roughly."""
CLAIMED_BYTES: Final = 32 * 2**20
"""Memory that a payload may take as soon as its length is known. The system gives more only to what has come."""


def large_payloads(message: Message) -> Sequence[bytes | Pieces]:
    """The payloads of a message, if each of them is to travel beside it; else none."""
    match message:
        case Request() | Deliver() | GiveBack() | Begin():
            payloads: Sequence[bytes | Pieces] = (message.call.payload,)
        case Reply() | End():
            payloads = (message.payload,)
        case Item():
            payloads = message.payloads
        case _:
            return ()
    return payloads if payloads and min(map(len, payloads)) >= BESIDE_BYTES else ()


def with_payload(message: Message, payload: bytes) -> Message:
    """The message that travels beside its payloads: a copy with this in the place of one, and nothing in that of
    others."""
    match message:
        case Request() | Deliver() | GiveBack() | Begin():
            return structs.replace(message, call=structs.replace(message.call, payload=payload))
        case Reply():
            return structs.replace(message, payload=payload)
        case End():
            return structs.replace(message, reply=structs.replace(message.reply, payload=payload))
        case Item():
            return structs.replace(message, payloads=[b""] * len(message.payloads))
        case _:
            raise TypeError(f"{type(message).__name__} has no payload")


def put_payloads(messages: list[Message], payloads: list[bytes], shared: list[Shared] | None) -> None:
    """Give a message its payloads, which have arrived beside it, or the one in shared memory that it describes
    (None: that was lost). Raises ValidationError if they are not those of one message that came without."""
    message = messages[0] if len(messages) == 1 else None
    match message:
        case Item() if len(message.payloads) == len(payloads) and not any(message.payloads):
            message.payloads = payloads
            return
        case Request() | Deliver() | GiveBack() | Begin():
            holder: object = message.call
        case End():
            holder = message.reply
        case _:
            holder = message
    if shared != [] and not payloads and type(getattr(holder, "payload", None)) is bytes:
        payloads = [put_together(holder.payload, shared)]  # type: ignore[attr-defined]  # it has one
        holder.payload = b""  # type: ignore[attr-defined]
    if len(payloads) != 1 or getattr(holder, "payload", None) != b"":
        raise msgspec.ValidationError("payloads beside a message that is not without them")
    (holder.payload,) = payloads  # type: ignore[attr-defined]  # it has one


class _Memory(io.BytesIO):
    """Memory that gives its bytes away without a copy, once its buffer is released."""

    def __del__(self) -> None:
        """Close nothing: Python 3.13 writes to stderr of a file that cannot be closed, because its buffer is in
        use, when the garbage collector finds both."""


class Arriving:
    """The payloads of the message that comes next, as far as they have arrived."""

    def __init__(self) -> None:
        self.size = 0
        """Their bytes, those included that are still to come."""
        self.memory = 0
        """Bytes of memory that they take, or may take soon."""
        self.shared: list[Shared] | None = []
        """The memory of a payload that is in none of this process's own; None: it was lost."""
        self._files: list[_Memory] = []
        self._before = 0
        """Bytes of those that are whole."""

    def begin(self, size: int) -> memoryview:
        """Return the memory of one more payload, to be filled. Raises MemoryError."""
        if len(self._files) == MAX_BESIDE:
            raise MemoryError
        file = _Memory(bytes(size))
        self._files.append(file)
        self._before = self.size
        self.size += size
        self.fill(0)
        return file.getbuffer()

    def share(self, shared: list[Shared]) -> None:
        """Count a payload in shared memory."""
        self.shared = shared
        self.size = sum(memory.size for memory in shared)

    def lose(self) -> None:
        """Count a payload in shared memory that was lost."""
        self.shared = None
        self.size = 1

    def fill(self, filled: int) -> None:
        """Count memory: so many bytes of the payload that was begun last have come."""
        size = self.size - self._before
        overhead = OVERHEAD * len(self._files)
        self.memory = overhead + self._before + min(size, max(CLAIMED_BYTES, 16 * filled))

    def take(self) -> tuple[list[bytes], list[Shared] | None]:
        """Return the payloads, which are whole, and the memory of one that is shared, and expect those of another
        message."""
        files, self._files = self._files, []
        shared, self.shared = self.shared, []
        self.size = self.memory = self._before = 0
        return [file.getvalue() for file in files], shared
