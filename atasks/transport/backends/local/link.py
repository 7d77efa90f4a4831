"""A conversation with a hub over a socket."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import Final, cast

from atasks import forks
from atasks.codecs.pieces import Pieces
from atasks.transport.backends.local.beside import (
    BESIDE,
    SHARED,
    Arriving,
    large_payloads,
    put_payloads,
    with_payload,
)
from atasks.transport.backends.local.conversation import FLUSH_BYTES, Conversation
from atasks.transport.backends.local.frames import UNREADABLE, decode, encode, salvage
from atasks.transport.backends.local.lane import Lane, borrowed, described
from atasks.transport.backends.local.messages import Message

__all__ = ["SocketLink"]

logger = logging.getLogger("atasks.local")

SOCKET_BYTES: Final = 2 * FLUSH_BYTES
"""Bytes that a socket takes before the other side reads, as far as the system allows so many. Its own number is
less than that of one turn, and each time that it is full costs five calls of the system at the two sides."""
HIGH_WATER: Final = 2**20
"""Bytes that wait for the other side to read, besides those that asyncio has: past it, the link is clogged."""
LOW_WATER: Final = HIGH_WATER // 4
"""Below it, it is clogged no more."""
PIECES: Final = 64
"""Pieces that are written by one call of the system."""
TAIL_BYTES: Final = 4 * 2**10
"""Bytes given to asyncio, which copies them, when the socket is full: it tells when it has written them."""
MAX_FRAME: Final = BESIDE - 1
JOINED_BYTES: Final = 32 * 2**10
"""Up to here it costs less to copy a frame than to write its length by itself."""
READ_BYTES: Final = 64 * 2**10
"""Room for what is received, unless a frame needs more."""
KEPT_READ_BYTES: Final = 4 * 2**20
"""Room that a link keeps for the next large frame."""


class SocketLink(Conversation, asyncio.BufferedProtocol):
    """Over a socket. What it receives goes into room of its own, so that a large frame is put together without
    being copied for each piece that arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the socket is closed."""
        self.max_frame = MAX_FRAME
        """Bytes of the largest frame that is received."""
        self._room = memoryview(bytearray(READ_BYTES))
        self._filled = 0
        """Bytes at its beginning that were received, and of which no frame was handed over."""
        self._payloads = Arriving()
        """Those that have come beside the message of the next frame."""
        self._frame_room: memoryview | None = None
        """The room for frames, while `_room` is that of a payload."""
        self._pieces: deque[bytes | memoryview] = deque()
        """Pieces to write, once asyncio has written what it has."""
        self._waiting = 0
        """Their bytes."""
        self._full = False
        """True while asyncio has something to write."""
        self._refused = False
        """True once the other side has sent what makes no sense: nothing behind that is handed over."""
        self._descriptor = -1
        """That of the socket."""
        self.lane: Lane | None = None
        """Takes payloads in shared memory, if `shares`."""

    @property
    def unsent(self) -> int:
        """Bytes that wait here for the other side to read."""
        return self._waiting + (0 if self.transport is None else self.transport.get_write_buffer_size())

    def _overflow(self) -> None:
        """The last message is a large one, or there are many."""
        payloads = large_payloads(self._messages[-1]) if self.beside and not self.closed else ()
        if not payloads:
            self.flush()
            return
        message = self._messages.pop()
        if self._messages:
            self.flush()
        self._size = 0
        self._sent += 1
        pieces: list[bytes | memoryview] = []
        for payload in payloads:
            if isinstance(payload, Pieces) and self.shares and self.lane is not None:
                body = encode([with_payload(message, described(payload))])  # what fails leaves nothing on the lane
                if self.lane.send(payload):
                    self._hand_over_large(SHARED, len(body).to_bytes(4, "big") + body)
                    return
            parts = payload.buffers() if isinstance(payload, Pieces) else [payload]
            pieces += (BESIDE + len(payload)).to_bytes(4, "big"), *parts
        body = encode([with_payload(message, b"")])
        self._hand_over_large(*pieces, len(body).to_bytes(4, "big") + body)

    @property
    def has_lane(self) -> bool:
        return self.lane is not None

    def greet(self, message: Message) -> None:
        body = encode([message])
        self.lane = Lane.offer(self._descriptor, len(body).to_bytes(4, "big") + body)
        if self.lane is None:
            self.send(message)

    def _write(self, messages: list[Message]) -> None:
        body = encode(messages)
        start = len(body).to_bytes(4, "big")
        if len(body) <= JOINED_BYTES:
            self._hand_over(start + body)
        else:
            self._hand_over_large(start, body)

    def _hand_over(self, piece: bytes) -> None:
        """Write it when everything before was written. asyncio would put it behind what it has, with a copy of all
        that each time that its buffer grows."""
        if self._full:
            self._pieces.append(piece)
            self._waiting += len(piece)
            self.clogged = self.clogged or self._waiting > HIGH_WATER
        else:
            self._give(piece)

    def _hand_over_large(self, *pieces: bytes | memoryview) -> None:
        """Write them when everything before was written, without a copy."""
        self._pieces += pieces
        self._waiting += sum(map(len, pieces))
        if not self._full:
            self._write_on()
        self.clogged = self.clogged or self._waiting > HIGH_WATER

    def _write_on(self) -> None:
        """Write the pieces that wait, until the socket is full. Then asyncio writes the next few bytes."""
        pieces, transport = self._pieces, self.transport
        assert transport is not None, "it is connected before anything is sent"
        while pieces and not self._full:
            written = 0
            if not transport.is_closing() and not transport.get_write_buffer_size():
                with suppress(OSError):  # asyncio meets it too
                    written = os.writev(self._descriptor, list(islice(pieces, PIECES)))
            self._waiting -= written
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.popleft())
            if pieces:
                rest = memoryview(pieces.popleft())[written:]
                if len(rest) > TAIL_BYTES:
                    pieces.appendleft(rest[TAIL_BYTES:])
                self._waiting -= len(rest[:TAIL_BYTES])
                self._give(rest[:TAIL_BYTES])

    def _hand_over_all(self) -> None:
        """Nothing comes behind it."""
        self._waiting = 0
        while self._pieces:
            self._give(self._pieces.popleft())

    def _give(self, piece: bytes | memoryview) -> None:
        """Write it, unless the other side has closed: then asyncio would warn of each piece."""
        assert self.transport is not None, "it is connected before anything is sent"
        if not self.transport.is_closing():
            self.transport.write(piece)

    def hang_up(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            with suppress(OSError), borrowed(self._descriptor) as own:  # it is over already
                own.shutdown(socket.SHUT_RD)

    def abort(self) -> None:
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        if not self.closed:
            self.flush()
            self.closed = True
            if self.transport is not None:
                self._hand_over_all()
                self.transport.close()

    async def aclose(self, seconds: float) -> None:
        """The other side is told that no more comes, and closes: a socket that is closed while the other side
        writes to it takes with it what that side has not read."""
        if not self.closed:
            self.flush()
            self.closed = True
        if self.transport is not None:
            try:
                if not self.transport.is_closing():
                    self._hand_over_all()
                    with suppress(OSError):  # the other side has closed
                        self.transport.write_eof()
                await asyncio.wait([self.ended], timeout=seconds)
            finally:
                self.transport.abort()
            await self.ended

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        end: socket.socket = transport.get_extra_info("socket")
        forks.withhold(end.fileno())
        self._descriptor = end.fileno()
        with suppress(OSError):  # the other side is gone already
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self.transport.set_write_buffer_limits(0)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand over the frames that are complete."""
        if self._frame_room is not None:
            self._payload_updated(nbytes)
            return
        room, position, end = self._room, 0, self._filled + nbytes
        needed = 0
        while end - position >= 4:
            start = position + 4
            stop = start + int.from_bytes(room[position:start], "big")
            if stop - start + self._payloads.size > self.max_frame:
                size = stop - start - BESIDE
                if size == 0 and self._begin_shared():
                    position = start
                    continue
                if self._begin_payload(size):
                    position = min(start + size, end)
                    self._room[: position - start] = room[start:position]
                    if self._payload_updated(position - start):
                        continue
                    return
                self._refuse(f"a frame of more than {self.max_frame} bytes, or more beside one than there may be")
                position = end
                break
            if stop > end:
                needed = stop - position
                break
            self._frame(room[start:stop])
            position = end if self._refused else stop
        self._filled = end - position
        self._make_room(needed, position)

    def _make_room(self, needed: int, position: int) -> None:
        """Have room for a frame of so many bytes, whose beginning is at that position, and move it to the front.

        Not for all of a very large one at once: how long it is is but a claim until the bytes come.
        """
        old, filled = self._room, self._filled
        size = len(old)
        # Only when the buffer is full, because growing it copies all of it.
        if needed > size and position + filled == size:
            size = min(needed, max(2**20, 16 * filled))
        elif size > KEPT_READ_BYTES and needed <= READ_BYTES:
            size = READ_BYTES
        if size != len(old):
            if not self._may_have(size + self._payloads.memory):
                self._refuse("a large frame, beside the half-sent ones of others")
                self._filled = 0
                return
            self._room = memoryview(bytearray(size))
        if filled and (position or size != len(old)):
            self._room[:filled] = old[position : position + filled]

    def _begin_payload(self, size: int) -> bool:
        """Have room for a payload beside a message, and no other room meanwhile. Return False if there is none."""
        if size <= 0 or self._payloads.size + size > self.max_frame:
            return False
        try:
            room = self._payloads.begin(size)
        except MemoryError:
            return False
        if not self._may_have(len(self._room) + self._payloads.memory):
            return False
        self._frame_room, self._room, self._filled = self._room, room, 0
        return True

    def _begin_shared(self) -> bool:
        """Take the memory of a payload that was announced. Return False if there is none."""
        if self.lane is None or not self.shares or self._payloads.size:
            return False
        try:
            shared = self.lane.take()
        except OSError as error:
            if error.errno != errno.EMFILE:
                return False
            logger.error("a payload is lost, because this process may open no more files: raise its limit")
            self._payloads.lose()
            return True
        self._payloads.share(shared)
        return bool(shared) and self._payloads.size <= self.max_frame

    def _payload_updated(self, nbytes: int) -> bool:
        """So many more bytes have come of a payload. Returns True if it is whole: then frames go on."""
        assert self._frame_room is not None, "a payload arrives"
        self._filled += nbytes
        if self._filled == len(self._room):
            self._read_frames()
            return True
        before = self._payloads.memory
        self._payloads.fill(self._filled)
        if self._payloads.memory > before and not self._may_have(len(self._frame_room) + self._payloads.memory):
            self._refuse("a large payload, beside the half-sent frames of others")
        return False

    def _read_frames(self) -> None:
        """No payload comes any more: let go of its room."""
        if self._frame_room is not None:
            self._room, self._frame_room, self._filled = self._frame_room, None, 0

    def _may_have(self, size: int) -> bool:
        """Return True if there may be room for so many bytes."""
        return True

    def _frame(self, body: memoryview) -> None:
        if self.closed:
            return
        try:
            messages = decode(body)
        except UNREADABLE:
            try:
                salvaged = salvage(body)
                if salvaged.messages:
                    self._put_payloads(salvaged.messages)
            except UNREADABLE as error:
                self._refuse(f"a frame that is no list of messages ({error})")
            else:
                self._payloads.take()
                self._may_have(len(self._room))
                self.unreadable(salvaged)
        else:
            if self._payloads.size:
                try:
                    self._put_payloads(messages)
                except UNREADABLE as error:
                    self._refuse(str(error))
                    return
            self.receive(messages)

    def _put_payloads(self, messages: list[Message]) -> None:
        """Give a message the payloads that came beside it. Raises one of `UNREADABLE`."""
        payloads, shared = self._payloads.take()
        if payloads or shared != []:
            self._may_have(len(self._room))
            put_payloads(messages, payloads, shared)

    def _refuse(self, reason: str) -> None:
        self._refused = True
        logger.error("the other side of a local connection sent %s: the connection is closed", reason)
        if self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._write_on()
        if self.clogged and self._waiting < LOW_WATER:
            self.clogged = False
            self.freed()

    def connection_lost(self, exc: Exception | None) -> None:
        closed, self.closed = self.closed, True
        self._pieces.clear()
        self._waiting = 0
        self._payloads = Arriving()
        self._read_frames()
        if self.lane is not None:
            self.lane.close()
        if not self.ended.done():
            self.ended.set_result(None)
        if not closed:
            self.lost("it was closed by the other side" if exc is None else str(exc))
