"""A second socket of a link, over which descriptors of shared memory go: asyncio reads none from the first one."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import msgspec

from atasks import forks
from atasks.codecs.pieces import MAX_PIECES, MAX_SHARED, SHARES, Pieces, Shared

__all__ = ["LOST", "Lane", "borrowed", "described", "put_together"]

BUFFER: Final = 4608
"""Bytes of the buffer of a lane, so that it takes about ten messages which the other side has not read: further
payloads go over the link, which notices when they wait."""
LOST: Final = b"!lost: this process had no descriptor left for it"
"""In the place of a payload that was lost so: no pickle begins like that, and whoever decodes it says so."""

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
        nothing was sent, for this system has no lanes, or no descriptor is left, or the link is broken."""
        if not SHARES:
            return None
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return None
        try:
            with theirs, borrowed(link) as own:
                lane = cls(ours)
                _send(own, first, [theirs.fileno()])
        except OSError:
            ours.close()
            return None
        return lane

    @classmethod
    def accept(cls, link: int) -> Lane | None:
        """Return the lane whose end comes with the bytes that this socket has to read, and leave those there."""
        if not SHARES:
            return None
        with suppress(OSError), borrowed(link) as own:
            for descriptor in _descriptors(own, 1, socket.MSG_PEEK):
                try:
                    end = socket.socket(fileno=descriptor)
                except OSError:  # it is no socket
                    os.close(descriptor)
                    raise
                return cls(end)
        return None

    def send(self, payload: Pieces) -> bool:
        """Send the descriptors of a payload; False: it does not go this way."""
        shared = [piece.descriptor for piece in payload.pieces if isinstance(piece, Shared)]
        if not 0 < len(shared) <= MAX_PIECES:
            return False
        try:
            _send(self._socket, b"\0", shared)
        except OSError:  # those before were not taken yet, or too many are on their way
            return False
        return True

    def take(self) -> list[Shared]:
        """Return the memory of the payload that was announced. Raises OSError: of `EMFILE` if it is lost, because
        this process had too few descriptors left."""
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


@contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket with this descriptor, which stays open, and is not copied: there may be none left for that."""
    own = socket.socket(fileno=descriptor)
    try:
        yield own
    finally:
        own.detach()


# The other side may have the same end of a socket open, and have it wait: so each call says that it does not.


def _send(end: socket.socket, content: bytes, descriptors: Sequence[int]) -> None:
    """Send both together. Raises OSError."""
    rights = array.array("i", descriptors)
    end.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT)


def _descriptors(end: socket.socket, most: int, flags: int = 0) -> list[int]:
    """The descriptors that come with the next byte, none if they are too many. Raises OSError: it is not there, or
    (`EMFILE`) this process may not have so many."""
    found = array.array("i")
    room = socket.CMSG_LEN(most * found.itemsize)
    _, ancillary, flags, _ = end.recvmsg(1, room, flags | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) // found.itemsize * found.itemsize])
    if flags & socket.MSG_CTRUNC:
        lacking = len(found) < most
        while found:
            os.close(found.pop())
        if lacking:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return found.tolist()


def described(payload: Pieces) -> bytes:
    """Return what stands for it in its message: the pieces, and the sizes of those in shared memory."""
    return _encode([piece.size if isinstance(piece, Shared) else piece for piece in payload.pieces])


def put_together(shape: bytes, shared: list[Shared] | None) -> bytes:
    """Return the payload that was described so; None: its memory was lost. Raises one of `UNREADABLE` if this is
    not its memory."""
    if shared is None:
        return LOST
    parts = _shape.decode(shape)
    if [part for part in parts if isinstance(part, int)] != [memory.size for memory in shared]:
        raise msgspec.ValidationError("another payload in shared memory than was described")
    rest = iter(shared)
    pieces: list[Any] = [next(rest) if isinstance(part, int) else part for part in parts]
    payload = Pieces(pieces)
    return cast("bytes", payload if Shared.count <= MAX_SHARED else bytes(payload))
