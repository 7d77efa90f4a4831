"""The floor: an echo whose AMQP frames are packed by hand, in a protocol of asyncio without any client library.

The same broker-side guarantees as `aiormq_echo`: durable queues, persistent and mandatory messages, publisher
confirms, acknowledgements at both sides, and a request that is acknowledged only when the broker has confirmed its
reply. What a Python process needs at least for that: one write for everything that a read calls for, and one copy
of a large body, which makes bytes of it for who called. pamqp packs and reads the frames of the handshake. The
layout of the others is that of AMQP 0-9-1, sections 2.3.5 (frames) and 1.8 (the class Basic).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from struct import Struct
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame, header

from benchmarks.child import amqp_url, main
from benchmarks.load import Client

WINDOW: Final = 500
"""Requests that the worker holds unacknowledged at most."""

METHOD, HEADER, BODY = 1, 2, 3
DELIVER, ACK, NACK, RETURN = 60 << 16 | 60, 60 << 16 | 80, 60 << 16 | 120, 60 << 16 | 50

FRAME = Struct(">BHI")
CLASS_METHOD = Struct(">I")
TAG = Struct(">Q")
CONTENT = Struct(">BHIHHQHB")
"""The header frame up to the delivery mode: its frame, class, weight, size of the body, flags, delivery mode."""
ACKNOWLEDGE = Struct(">BHIIQBB")

END: Final = b"\xce"
AROUND: Final = 8
"""Bytes of a frame besides its content: type, channel and size before it, the end behind it."""
FRAME_BYTES: Final = 131_072 - AROUND
"""Bytes of the content of a frame: the broker takes no more, unless it is told to."""
ROOM: Final = 256 * 2**10
"""Bytes that arrive at once, other than those of large bodies."""
PIECES: Final = 512
"""Pieces that are written by one call of the system."""
TAIL_BYTES: Final = 4 * 2**10
"""Bytes that asyncio has to write when the socket is full: it tells when it has."""
PERSISTENT, WITH_ID, WITH_REPLY_TO = 1 << 12, 1 << 10, 1 << 9


def short(text: bytes) -> bytes:
    """A short string of AMQP."""
    return bytes((len(text),)) + text


def publish_to(queue: bytes) -> bytes:
    """The frame that publishes through the default exchange, mandatory."""
    method = CLASS_METHOD.pack(60 << 16 | 40) + b"\0\0" + short(b"") + short(queue) + b"\x01"
    return FRAME.pack(METHOD, 1, len(method)) + method + END


def content(correlation_id: bytes, reply_to: bytes, body: bytes | memoryview) -> list[bytes | memoryview]:
    """The frames behind it: the properties, the body."""
    flags = PERSISTENT | WITH_ID | (WITH_REPLY_TO if reply_to else 0)
    properties = short(correlation_id) + (short(reply_to) if reply_to else b"")
    head = CONTENT.pack(HEADER, 1, 15 + len(properties), 60, 0, len(body), flags, 2)
    if len(body) <= FRAME_BYTES:
        return [b"".join((head, properties, END, FRAME.pack(BODY, 1, len(body)), body, END))]
    pieces: list[bytes | memoryview] = [head + properties]
    whole = memoryview(body)
    for start in range(0, len(body), FRAME_BYTES):
        part = whole[start : start + FRAME_BYTES]
        pieces += (END + FRAME.pack(BODY, 1, len(part)), part)
    pieces.append(END)
    return pieces


def acknowledge(tag: int, multiple: bool = False) -> bytes:
    """The frame that acknowledges a delivery, or all up to it."""
    return ACKNOWLEDGE.pack(METHOD, 1, 13, ACK, tag, multiple, 0xCE)


class Frames(asyncio.BufferedProtocol):
    """A connection with one channel in confirm mode, and one queue that is consumed."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        """The answers of the broker to commands."""
        self.deliver: Callable[[int, bytes, bytes, bytes | memoryview], None] | None = None
        """Takes the tag, the correlation id, the reply queue and the body of a message."""
        self.confirm: Callable[[int, bool], None] = lambda tag, multiple: None
        self.out: list[bytes | memoryview] = []
        self._unwritten: deque[bytes | memoryview] = deque()
        self._room = memoryview(bytearray(ROOM))
        self._filled = 0
        self._tag = 0
        self._head: bytes = b""
        self._size = 0
        """Bytes of the body that is announced."""
        self._body: memoryview | None = None
        """A body of several frames that is arriving, with room for what stands between two frames."""
        self._at = 0
        self._left = 0
        """Bytes that are missing of its frame."""
        self._between = 0
        """Bytes behind the frame that are there, of its end and the head of the next one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport: Any = transport
        self.transport.set_write_buffer_limits(0)
        self._descriptor = transport.get_extra_info("socket").fileno()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Have a large body arrive where it belongs: the rest of a frame, and the head of the next one."""
        if self._body is None:
            return self._room[self._filled :]
        stop = self._at + self._left
        return self._body[self._at + self._between : stop + (AROUND if stop < self._size else 1)]

    def buffer_updated(self, nbytes: int) -> None:
        """Take whole frames, and write what they call for at once."""
        if self._body is not None:
            self._take_body(self._body, nbytes)
        else:
            self._filled += nbytes
            self._take_frames()
        self.flush()

    def _take_body(self, body: memoryview, nbytes: int) -> None:
        new = min(nbytes, self._left)
        self._at += new
        self._left -= new
        self._between += nbytes - new
        if self._between == AROUND:
            kind, _, self._left = FRAME.unpack_from(body, self._at + 1)
            assert kind == BODY, "nothing comes between the frames of a body: one channel, and no heartbeats"
            self._between = 0
        elif self._between and self._at == self._size:
            self._body, self._between = None, 0
            self._hand_over(body[: self._size])

    def _take_frames(self) -> None:
        room, at, end = self._room, 0, self._filled
        while end - at >= AROUND:
            kind, _, size = FRAME.unpack_from(room, at)
            if kind == BODY and size < self._size:
                self._body, self._at, self._left = memoryview(bytearray(self._size + AROUND)), 0, size
                at += AROUND - 1
                while self._body is not None and at < end:
                    place = self.get_buffer(-1)[: end - at]
                    place[:] = room[at : at + len(place)]
                    at += len(place)
                    self._take_body(self._body, len(place))
                continue
            after = at + size + AROUND
            if after > end:
                break
            self._take(kind, bytes(room[at:after]))
            at = after
        self._filled = end - at
        if at and self._filled:
            room[: self._filled] = room[at:end]

    def flush(self) -> None:
        """Write what was packed, in one call."""
        if self.out:
            self._unwritten += self.out
            self.out.clear()
            self.resume_writing()

    def resume_writing(self) -> None:
        """Write until the socket is full."""
        unwritten = self._unwritten
        while unwritten and not self.transport.get_write_buffer_size():
            written = 0
            with suppress(BlockingIOError):
                written = os.writev(self._descriptor, list(itertools.islice(unwritten, PIECES)))
            while unwritten and written >= len(unwritten[0]):
                written -= len(unwritten.popleft())
            if unwritten:
                rest = memoryview(unwritten.popleft())[written:]
                if len(rest) > TAIL_BYTES:
                    unwritten.appendleft(rest[TAIL_BYTES:])
                self.transport.write(rest[:TAIL_BYTES])

    def _hand_over(self, body: bytes | memoryview) -> None:
        head = self._head
        behind = 16 + head[15]
        reply_to = head[behind + 1 : behind + 1 + head[behind]] if len(head) > behind else b""
        assert self.deliver is not None
        self.deliver(self._tag, head[16:behind], reply_to, body)

    def _take(self, kind: int, data: bytes) -> None:
        if kind == BODY:
            self._hand_over(data[7:-1])
        elif kind == HEADER:
            self._head = data[7:-1]
            (self._size,) = TAG.unpack_from(data, 11)
        elif (method := CLASS_METHOD.unpack_from(data, 7)[0]) == DELIVER:
            (self._tag,) = TAG.unpack_from(data, 12 + data[11])
        elif method == ACK:
            self.confirm(TAG.unpack_from(data, 11)[0], bool(data[19]))
        elif method in (NACK, RETURN):
            raise RuntimeError("the broker refused a message")
        else:
            self.answers.put_nowait(frame.unmarshal(data)[2])

    async def ask(self, channel: int, command: Any) -> Any:
        """Send a command, and return its answer."""
        self.transport.write(frame.marshal(command, channel))
        return await self.answers.get()


@asynccontextmanager
async def connected(*queues: str) -> AsyncIterator[Frames]:
    """A connection with these queues declared."""
    url = urlsplit(amqp_url())
    loop = asyncio.get_running_loop()
    _, frames = await loop.create_connection(Frames, url.hostname or "localhost", url.port or 5672)
    try:
        frames.transport.write(header.ProtocolHeader().marshal())
        await frames.answers.get()
        secret = f"\0{unquote(url.username or 'guest')}\0{unquote(url.password or 'guest')}"
        tune = await frames.ask(0, commands.Connection.StartOk({}, "PLAIN", secret, "en_US"))
        agreed = commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0)  # and no heartbeats
        frames.transport.write(frame.marshal(agreed, 0))
        await frames.ask(0, commands.Connection.Open(unquote(url.path[1:]) or "/"))
        await frames.ask(1, commands.Channel.Open())
        await frames.ask(1, commands.Confirm.Select())
        await frames.ask(1, commands.Basic.Qos(0, WINDOW, False))
        arguments = {"x-queue-type": "classic", "x-expires": 300_000}
        for queue in queues:
            await frames.ask(1, commands.Queue.Declare(queue=queue, durable=True, arguments=arguments))
        yield frames
    finally:
        frames.transport.close()


@asynccontextmanager
async def client(queue: str) -> AsyncIterator[Client]:
    """Calls through the default exchange, with a durable reply queue of its own."""
    reply_queue = f"{queue}-replies"
    async with connected(reply_queue, queue) as frames:
        loop = asyncio.get_running_loop()
        waiting: dict[bytes, asyncio.Future[bytes]] = {}
        ids = itertools.count()
        head, back = publish_to(queue.encode()), reply_queue.encode()

        def on_reply(tag: int, call_id: bytes, _: bytes, body: bytes | memoryview) -> None:
            waiting.pop(call_id).set_result(bytes(body))
            frames.out.append(acknowledge(tag))

        async def echo(payload: bytes) -> bytes:
            call_id = b"%032x" % next(ids)
            answer = waiting[call_id] = loop.create_future()
            if not frames.out:
                loop.call_soon(frames.flush)
            frames.out += head, *content(call_id, back, payload)
            return await answer

        frames.deliver = on_reply
        await frames.ask(1, commands.Basic.Consume(queue=reply_queue))
        yield Client(echo)
        for each in (reply_queue, queue):
            await frames.ask(1, commands.Queue.Delete(queue=each))


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[None]:
    """Answers each request with its own body, and acknowledges it when the reply is confirmed."""
    async with connected(queue) as frames:
        published = itertools.count(1)
        heads: dict[bytes, bytes] = {}
        unconfirmed: dict[int, int] = {}

        def on_request(tag: int, call_id: bytes, reply_to: bytes, body: bytes | memoryview) -> None:
            if (head := heads.get(reply_to)) is None:
                head = heads[reply_to] = publish_to(reply_to)
            frames.out += head, *content(call_id, b"", body)
            unconfirmed[next(published)] = tag

        def on_confirm(tag: int, multiple: bool) -> None:
            if multiple:
                done = [unconfirmed.pop(each) for each in list(unconfirmed) if each <= tag]
                frames.out += map(acknowledge, done)
            else:
                frames.out.append(acknowledge(unconfirmed.pop(tag)))

        frames.deliver = on_request
        frames.confirm = on_confirm
        await frames.ask(1, commands.Basic.Consume(queue=queue))
        yield


if __name__ == "__main__":
    main(client, worker)
