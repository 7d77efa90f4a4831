"""Frames that are written while the socket is full, and others write to it too."""

# Private attributes: `FrameWriter._descriptor`: -1 is what it is for a connection with TLS.

from __future__ import annotations

import asyncio
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextvars import ContextVar
from struct import Struct
from typing import Any
from weakref import ref

import pytest
from aiormq.base import Base

from atasks.testing import soon
from atasks.transport.backends.amqp.broker.frames import SOCKETS, WRITE_BYTES, FrameWriter, limit_buffer

HEAD = Struct(">BHI")
HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"
SIZE = 131_064


CALL: ContextVar[object] = ContextVar("call")


class Connected(Base):
    """A channel of a connection to nobody in particular, from whose queue nobody takes frames."""

    def __init__(self) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.connection = self
        self.number = 1
        self.channels = {1: self}
        self.write_queue: asyncio.Queue[object] = asyncio.Queue(10)
        self.observers: list[asyncio.Future[Any]] = []

    @property
    def closing(self) -> asyncio.Future[Any]:
        self.observers.append(super().closing)
        return self.observers[-1]

    async def _on_close(self, exc: object = None) -> None:
        """Nobody is told."""

    def __str__(self) -> str:
        return "nobody"


class Call:
    """Stands for the payload, which the context of a call has."""


async def connected(here: socket.socket) -> tuple[Any, asyncio.StreamWriter]:
    """A channel whose frames go to this socket."""
    _, writer = await asyncio.open_connection(sock=here)
    limit_buffer(writer.transport)
    channel: Any = Connected()
    SOCKETS[channel] = ref(writer)
    return channel, writer


@pytest.fixture
async def channel() -> AsyncIterator[tuple[Any, asyncio.StreamWriter, asyncio.StreamReader]]:
    here, there = socket.socketpair()
    channel, writer = await connected(here)
    reader, other = await asyncio.open_connection(sock=there)
    yield channel, writer, reader
    writer.close()
    other.close()


def in_frames(body: bytes) -> list[list[bytes | memoryview]]:
    parts = [memoryview(body)[start : start + SIZE] for start in range(0, len(body), SIZE)]
    return [[HEAD.pack(3, 1, len(part)), part, b"\xce"] for part in parts]


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind, _, size = HEAD.unpack(await soon(reader.readexactly(HEAD.size)))
    content = await soon(reader.readexactly(size + 1))
    assert content[-1:] == b"\xce"
    return kind, content[:-1]


@pytest.mark.parametrize("encrypted", [False, True])
async def test_frames_of_others_come_between_those_of_a_large_body(
    channel: tuple[Any, asyncio.StreamWriter, asyncio.StreamReader], encrypted: bool
) -> None:
    connection, socket, reader = channel
    writer = FrameWriter(connection)
    if encrypted:
        writer._descriptor = -1
    body = random.Random(1).randbytes(5 * 2**20)
    writer.write_pieces(in_frames(body))
    writer.write([HEAD.pack(1, 1, 3) + b"and\xce", HEAD.pack(1, 1, 2) + b"so\xce"])
    arrived, beats = b"", 0
    while True:
        if not beats % 3:
            socket.write(HEARTBEAT)
        kind, content = await read_frame(reader)
        if kind == 1:
            break
        beats += kind == 8
        arrived += content if kind == 3 else b""
    assert arrived == body
    assert beats > 5
    while kind == 1 and content != b"so":
        kind, content = await read_frame(reader)
    await soon(writer.flushed())


async def test_a_large_body_is_not_copied_while_it_waits(
    channel: tuple[Any, asyncio.StreamWriter, asyncio.StreamReader],
) -> None:
    connection, _, reader = channel
    writer = FrameWriter(connection)
    frames = in_frames(random.Random(1).randbytes(5 * 2**20))
    tracemalloc.start()
    writer.write_pieces(frames)
    for _ in range(20):
        await read_frame(reader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    for _ in frames[20:]:
        await read_frame(reader)
    await soon(writer.flushed())


@pytest.mark.parametrize("library_writes", [False, True])
async def test_nothing_is_kept_of_the_call_that_wrote(
    channel: tuple[Any, asyncio.StreamWriter, asyncio.StreamReader], library_writes: bool
) -> None:
    """The context of a call has its payload, and a socket may be full for as long as there are calls."""
    connection, _, reader = channel
    writer = FrameWriter(connection)
    frames = in_frames(bytes(5 * 2**20))

    async def call() -> ref[Call]:
        CALL.set(served := Call())
        if library_writes:
            connection.write_queue.put_nowait("of the library")
        writer.write_pieces(frames)
        return ref(served)

    of_call = await asyncio.create_task(call())
    for _ in range(3):
        await asyncio.sleep(0)  # what was scheduled with its context has run
    assert of_call() is None
    if library_writes:
        connection.write_queue.get_nowait()
        connection.write_queue.task_done()
    for _ in frames:
        await read_frame(reader)
    await soon(writer.flushed())
    assert all(each.done() for each in connection.observers), "the channel keeps others until it is closed"


async def test_a_body_is_not_finished_once_its_channel_is_closed(
    channel: tuple[Any, asyncio.StreamWriter, asyncio.StreamReader],
) -> None:
    connection, socket, reader = channel
    writer = FrameWriter(connection)
    frames = in_frames(random.Random(1).randbytes(5 * 2**20))
    writer.write_pieces(frames)
    await asyncio.sleep(0)
    connection.channels.clear()
    socket.write(HEARTBEAT)  # stands for the client library's word that it has heard of it
    kinds = [3]
    while kinds[-1] == 3:
        kinds.append((await read_frame(reader))[0])
    assert kinds[-1] == 8
    assert len(kinds) < len(frames)
    await soon(writer.flushed())


async def test_frames_for_a_broker_that_is_gone_are_given_up_together(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio warns of each piece that it is given behind that."""
    here, there = socket.socketpair()
    channel, writer = await connected(here)
    there.close()
    frames = FrameWriter(channel)
    frames.write_pieces(in_frames(bytes(10 * 2**20)))
    await soon(frames.flushed())
    assert len(caplog.records) <= 3
    writer.close()


async def test_what_the_client_library_asks_overtakes_no_frame_that_was_written_before(
    channel: tuple[Any, asyncio.StreamWriter, asyncio.StreamReader],
) -> None:
    """Neither do frames of another writer: a consumer is cancelled before its queue is deleted."""
    connection = channel[0]
    queue = connection.write_queue
    queue.put_nowait("of the library")
    FrameWriter(connection).write([b"consume", b" it"])
    FrameWriter(connection).write([b"cancel"])
    queue.put_nowait("delete")
    written = [queue.get_nowait() for _ in range(queue.qsize())]
    assert [getattr(each, "payload", each) for each in written] == [
        "of the library",
        b"consume it",
        b"cancel",
        "delete",
    ]


async def test_what_nothing_takes_any_more_is_not_waited_for_once_its_channel_closes() -> None:
    channel: Any = Connected()
    writer = FrameWriter(channel)
    writer.write([b"frame"] * 10)
    writer.write([b"x" * WRITE_BYTES] * 20)
    flushed = asyncio.ensure_future(writer.flushed())
    await asyncio.wait([flushed], timeout=0.1)
    assert not flushed.done()
    await channel.close()
    await soon(flushed)
