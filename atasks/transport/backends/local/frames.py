"""Frames between a hub and the processes around it: messages to bytes and back.

A frame is its length, in four bytes, and a MessagePack array of messages. `beside.py` has what may come before it.
"""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

from typing import Final

import msgspec
from msgspec import Struct

from atasks.arrays import UNREADABLE, elements, length, read_each, scalar
from atasks.transport.backends.local.messages import (
    Add,
    Answer,
    Begin,
    GiveBack,
    Message,
    Note,
    OpenJournal,
    Outcome,
    Publish,
    ReadTable,
    Request,
    Serve,
    Steer,
    Swap,
    TakeToken,
    TokenTaken,
)
from atasks.wire import NOT_PLAIN, Status, ended, ids_of, plain

__all__ = ["UNREADABLE", "Salvaged", "decode", "encode", "salvage"]

MAX_MESSAGES: Final = 2**20
"""Messages in one frame: a program may make so many calls in one turn of its event loop."""
MAX_WORKER: Final = 64
"""Characters of the name of a worker."""
MAX_BAD: Final = 1000
"""Messages of one frame that may be unreadable."""
REQUEST: Final = Request.__struct_config__.tag
TAKE_TOKEN: Final = TakeToken.__struct_config__.tag
QUESTIONS: Final = tuple(
    kind.__struct_config__.tag for kind in (Begin, Add, Publish, ReadTable, Swap, Steer, OpenJournal, Note)
)
"""Tags of the messages that `Answer` answers if they cannot be read."""

_NAMING: Final = frozenset({Request, Begin, Publish, GiveBack, Serve})
"""The messages that `_check_id` looks at."""

_decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])
_one: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

encode = msgspec.msgpack.Encoder(enc_hook=bytes).encode
"""A list of messages -> the body of a frame. Payloads in pieces are joined."""


def decode(body: bytes | memoryview) -> list[Message]:
    """The messages of a frame's body; raises one of `UNREADABLE` if not all can be read (then see `salvage`)."""
    _check_length(body)
    messages = _decoder.decode(body)
    for message in messages:
        if type(message) in _NAMING:
            _check_id(message)
    return messages


def _check_length(body: bytes | memoryview) -> None:
    count = length(body)
    if count > MAX_MESSAGES:
        raise msgspec.ValidationError(f"{count} messages in one frame: at most {MAX_MESSAGES} are read")


def _check_id(message: Message) -> None:
    """Ids stand in logs, and in keys: other sides may be anybody's."""
    if isinstance(message, (Request, Begin, Publish, GiveBack)) and not plain(ids_of(message.call)):
        raise msgspec.ValidationError(NOT_PLAIN)
    if isinstance(message, Serve) and not (len(message.worker) <= MAX_WORKER and plain(message.worker)):
        raise msgspec.ValidationError(
            f"a worker that is not named in up to {MAX_WORKER} characters of printable ASCII"
        )


class Salvaged(Struct, gc=False):
    """The messages that could be read of a frame. For each other message: the answer of a hub, or None if it has
    none; and why it could not be read."""

    messages: list[Message]
    bad: list[tuple[Message | None, str]]


def salvage(body: bytes | memoryview) -> Salvaged:
    """Read a body that `decode` refuses, message by message.

    Raises one of `UNREADABLE` if it is no array, or if more than `MAX_BAD` of its messages cannot be read: each
    costs a hundred times what a good one does.
    """
    bad: list[tuple[Message | None, str]] = []

    def refuse(piece: msgspec.Raw, error: Exception) -> None:
        if len(bad) == MAX_BAD:
            raise msgspec.ValidationError(f"more than {MAX_BAD} messages in it cannot be read") from None
        bad.append((_refusal(piece, f"request refused: {error}"), str(error)))

    _check_length(body)
    return Salvaged(read_each(body, _read, refuse), bad)


def _read(piece: msgspec.Raw) -> Message:
    message = _one.decode(piece)
    _check_id(message)
    return message


def _refusal(piece: msgspec.Raw, reason: str) -> Message | None:
    """Return the answer to a message that cannot be read; None: it has none."""
    fields = elements(piece)
    tag = scalar(fields[0]) if len(fields) > 1 else None
    if tag == REQUEST and len(fields) > 2:
        call = elements(fields[2])
        call_id = scalar(call[2]) if len(call) > 2 else None
        return ended(call_id, Status.DECODE_ERROR, reason) if isinstance(call_id, str) else None
    number = scalar(fields[1]) if tag in QUESTIONS or tag == TAKE_TOKEN else None
    if not isinstance(number, int):
        return None
    return TokenTaken(number, reason) if tag == TAKE_TOKEN else Answer(number, Outcome.BAD, reason)
