"""The messages between a stage's worker and its process: pickles, and the way on which they go."""

from __future__ import annotations

import enum
import pickle
import select
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from atasks.codecs.data import PROTOCOL, is_data

if TYPE_CHECKING:
    from atasks.pipeline.flow.channel import Lineage, Token

__all__ = ["FIXED", "STREAM", "ChildLink", "ChildMessage", "Incoming", "load", "message", "to_calls", "together"]


class ChildMessage(enum.Enum):
    """The message types between a stage's worker and its process."""

    START = enum.auto()
    CALL = enum.auto()
    CALLS = enum.auto()
    BEGIN = enum.auto()
    NEXT = enum.auto()
    FINISH = enum.auto()
    VALUE = enum.auto()
    DONE = enum.auto()
    ENDED = enum.auto()
    FAILED = enum.auto()
    CONFINED = enum.auto()
    WANTED = enum.auto()
    BROKEN = enum.auto()


class Stream(enum.Enum):
    """Stands for the stream that a join is called with."""

    STREAM = enum.auto()


STREAM = Stream.STREAM
BUFFER: Final = 1 << 16
"""Bytes that are read at once; and longer pickles are sent without a copy."""
TOGETHER: Final = 1 << 20
"""Bytes of calls to which no other one is added. They were expected to have far less."""
_HEADER: Final = struct.Struct("!Q")
FIXED: Final = frozenset({str, bytes, int, float, bool, type(None)})
"""The types of values that cannot change."""


def message(kind: ChildMessage, value: Any = None, lineage: Lineage = ()) -> list[bytes | memoryview]:
    """The pickle of a message with a value, which mostly is an item or a result: its pieces. Raises what
    `to_pieces` raises."""
    content = kind._value_, value, lineage  # `value` is a function of Python
    if is_data(value):
        return [pickle.dumps(content, PROTOCOL)]
    from atasks.pipeline.flow.pickling import to_pieces  # when it is first needed: it imports a lot

    return to_pieces(content)


def to_calls(items: Sequence[Token], lineages: bool) -> tuple[list[Any], Exception | None]:
    """Return the calls for the first ones of the items: as far as they can be sent, and the exception of the next
    one, or until they have `TOGETHER` bytes. A call is an item that cannot change, or the pieces of a message.
    `lineages`: the function asks for them."""
    calls = [value for _, value in items]
    types = {*map(type, calls)}
    if FIXED.issuperset(types) and bytes not in types:
        texts = sum([len(value) for value in calls if type(value) is str]) if str in types else 0
        if texts < TOGETHER:
            return calls, None
    size = 0
    for number, (lineage, value) in enumerate(items):
        if size >= TOGETHER:
            return calls[:number], None
        # One pickle has what is fixed: no call can change what another one gets.
        if type(value) not in FIXED or not is_data(value):
            try:
                calls[number] = pieces = message(ChildMessage.CALL, value, lineage if lineages else ())
            except Exception as error:
                return calls[:number], error
            size += sum(map(len, pieces))
        elif type(value) is str or type(value) is bytes:
            size += len(value)
    return calls, None


def together(calls: Sequence[Any], lineages: Sequence[Lineage]) -> list[bytes | memoryview]:
    """Return the message of all these calls. There is a lineage for each of them, or none at all."""
    if len(calls) > 1:
        content = [bytearray().join(call) if type(call) is list else call for call in calls]
        return [pickle.dumps((ChildMessage.CALLS.value, content, lineages), PROTOCOL)]
    call: list[bytes | memoryview] | Any = calls[0]
    return call if type(call) is list else message(ChildMessage.CALL, call, *lineages)


class Incoming:
    """A large message whose beginning has arrived: its content is unpickled as it comes, large values from the
    socket into the objects themselves."""

    def __init__(self, reader: Any, size: int) -> None:
        self.broken = False
        """True if the other side was gone before all had come."""
        self.size = size
        """Bytes of the message."""
        self._reader = reader
        self._left = size

    def load(self) -> Any:
        """Return the content. Raises what unpickling raises, and anything if it is `broken`."""
        try:
            return pickle.Unpickler(self).load()
        finally:
            while self._left and not self.broken:  # it cannot be unpickled: the next message begins behind it
                self.read(BUFFER)

    # -- what an unpickler calls

    def read(self, size: int) -> bytes:
        """Return so many bytes, or as many as there are. Raises EOFError and OSError."""
        size = min(size, self._left)
        self.broken = True
        data: bytes = self._reader.read(size)
        self._count(len(data), size)
        return data

    def readinto(self, room: memoryview) -> int:
        """Fill the room, or as much as there are bytes for. Returns how many. Raises EOFError and OSError."""
        size = min(len(room), self._left)
        self.broken = True
        count: int = self._reader.readinto(room[:size])
        self._count(count, size)
        return count

    def readline(self) -> bytes:
        """Refuse: pickles of this protocol have no lines."""
        raise pickle.UnpicklingError("a line in a pickle")

    def _count(self, count: int, expected: int) -> None:
        if count < expected:
            raise EOFError
        self.broken = False
        self._left -= count


def load(received: bytes | Incoming) -> Any:
    """Return the content of a message. Raises what unpickling raises, and anything if it is `broken`."""
    return received.load() if isinstance(received, Incoming) else pickle.loads(received)


class ChildLink:
    """One end of the way between a stage's worker and its process: pickles, each after its length in bytes.

    The processes of `executor="process"` have a header like this one, and MessagePack behind it, which the process
    of a stage need not import.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = channel.makefile("rb", BUFFER)

    def send(self, message: list[bytes | memoryview]) -> None:
        """Send what `message` has made. Raises OSError."""
        size = sum(map(len, message))
        header = _HEADER.pack(size)
        if size <= BUFFER:
            self._channel.sendall(b"".join((header, *message)))
        else:  # without a copy
            self._channel.sendall(header)
            for piece in message:
                self._channel.sendall(piece)

    def receive(self) -> bytes | Incoming:
        """Return the next message, which `load` reads: a large one as it comes. Raises EOFError and OSError."""
        (size,) = _HEADER.unpack(self._read(_HEADER.size))
        return self._read(size) if size <= BUFFER else Incoming(self._reader, size)

    def has_message(self, seconds: float) -> bool:
        """Wait for so long, and return True if there is something to receive by then. Nothing was read of it."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def close(self) -> None:
        """Close this end."""
        self._reader.close()
        self._channel.close()

    def _read(self, size: int) -> bytes:
        data: bytes = self._reader.read(size)
        if len(data) < size:
            raise EOFError
        return data
