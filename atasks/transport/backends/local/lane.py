"""A second socket of a link, over which descriptors of shared memory go: asyncio reads none from the first one."""

from __future__ import annotations

import array
import os
import socket
from contextlib import suppress
from typing import Any, Final, cast

import msgspec

from atasks import forks
from atasks.codecs.pieces import MAX_PIECES, MAX_SHARED, SHARES, Pieces, Shared

__all__ = ["Lane", "described", "put_together"]

BUFFER: Final = 4608
"""Bytes of the buffer of a lane, so that it takes about ten messages which the other side has not read: further
payloads go over the link, which notices when they wait."""

_encode: Final = msgspec.msgpack.Encoder().encode
_shape = msgspec.msgpack.Decoder(list[bytes | int])


class Lane:
    """One end. It carries the descriptors of one payload for each that the link announces, in the same order."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        forks.withhold(end.fileno())

    @classmethod
    def offer(cls, link: int, first: bytes) -> Lane | None:
        """Send the first bytes over the socket with that descriptor, and the other end of a lane with them. None:
        nothing was sent, for this system has none."""
        if not SHARES:
            return None
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(fileno=os.dup(link)) as own:
            socket.send_fds(own, [first], [theirs.fileno()])
        return cls(ours)

    @classmethod
    def accept(cls, link: int) -> Lane | None:
        """Return the lane whose end comes with the bytes that this socket has to read, and leave those there."""
        if not SHARES:
            return None
        with socket.socket(fileno=os.dup(link)) as own, suppress(OSError):
            for descriptor in _descriptors(own, 1, socket.MSG_PEEK):
                try:
                    return cls(socket.socket(fileno=descriptor))
                except OSError:  # it is no socket
                    os.close(descriptor)
                    raise
        return None

    def send(self, payload: Pieces) -> bool:
        """Send the descriptors of a payload; False: it does not go this way."""
        shared = [piece.descriptor for piece in payload.pieces if isinstance(piece, Shared)]
        if not 0 < len(shared) <= MAX_PIECES:
            return False
        try:
            socket.send_fds(self._socket, [b"\0"], shared)
        except OSError:  # those before were not taken yet, or too many are on their way
            return False
        return True

    def take(self) -> list[Shared]:
        """Return the memory of the payload that was announced. Raises OSError."""
        descriptors = _descriptors(self._socket, MAX_PIECES)
        found = []
        try:
            while descriptors:
                found.append(Shared(descriptors.pop()))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return found[::-1]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _descriptors(end: socket.socket, most: int, flags: int = 0) -> list[int]:
    """The descriptors that come with the next byte, none if they are too many. Raises OSError: it is not there."""
    found = array.array("i")
    room = socket.CMSG_LEN(most * found.itemsize)
    _, ancillary, flags, _ = end.recvmsg(1, room, flags | socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) // found.itemsize * found.itemsize])
    if flags & socket.MSG_CTRUNC:
        while found:
            os.close(found.pop())
    return found.tolist()


def described(payload: Pieces) -> bytes:
    """Return what stands for it in its message: the pieces, and the sizes of those in shared memory."""
    return _encode([piece.size if isinstance(piece, Shared) else piece for piece in payload.pieces])


def put_together(shape: bytes, shared: list[Shared]) -> bytes:
    """Return the payload that was described so. Raises one of `UNREADABLE` if this is not its memory."""
    parts = _shape.decode(shape)
    if [part for part in parts if isinstance(part, int)] != [memory.size for memory in shared]:
        raise msgspec.ValidationError("another payload in shared memory than was described")
    rest = iter(shared)
    pieces: list[Any] = [next(rest) if isinstance(part, int) else part for part in parts]
    payload = Pieces(pieces)
    return cast("bytes", payload if Shared.count <= MAX_SHARED else bytes(payload))
