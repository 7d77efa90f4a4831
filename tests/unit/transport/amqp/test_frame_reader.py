"""Frames that arrive in pieces: the client library reads the same bytes, wherever they were cut."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from atasks.transport.backends.amqp.broker.frame_reader import FrameReader


def header(properties: Basic.Properties) -> bytes:
    return frame.marshal(ContentHeader(properties=properties, body_size=600), 1)


def deliver(key: bytes) -> bytes:
    method = Basic.Deliver(consumer_tag="ctag", delivery_tag=7, exchange="", routing_key="x" * len(key))
    return frame.marshal(method, 1).replace(b"x" * len(key), key)


BODY = frame.marshal(ContentBody(bytes(range(200)) * 3), 1)
GOOD = (
    frame.marshal(Basic.Ack(delivery_tag=3, multiple=True), 1)
    + frame.marshal(Heartbeat(), 0)
    + deliver(b"a.queue")
    + header(Basic.Properties(message_id="an-id", timestamp=datetime(2026, 1, 1, tzinfo=UTC)))
    + BODY
)
UNREADABLE = header(Basic.Properties(message_id="an-id")).replace(b"an-id", b"an\xff\xfe\xfd")
BAD = deliver(b"a\xffqueue") + UNREADABLE + BODY + GOOD
MENDED = deliver(b"a?queue") + UNREADABLE[:19] + bytes(2) + UNREADABLE[21:] + BODY + GOOD


@pytest.mark.parametrize(("sent", "read"), [(GOOD * 2, GOOD * 2), (BAD * 2, MENDED * 2)], ids=["good", "bad"])
async def test_cut_anywhere(sent: bytes, read: bytes) -> None:
    for size in (*range(1, 40), len(GOOD) - 1, len(sent)):
        reader = asyncio.StreamReader()
        frames = FrameReader(reader)
        for start in range(0, len(sent), size):
            frames.feed(memoryview(sent)[start : start + size])
        reader.feed_eof()
        assert await reader.read() == read, size


async def test_nothing_is_kept_back_of_a_body() -> None:
    """The body may be large, and nothing in it is looked at: not what looks like a frame either."""
    reader = asyncio.StreamReader()
    frames = FrameReader(reader)
    body = frame.marshal(ContentBody(BAD), 1)
    frames.feed(body[:100])
    assert await reader.readexactly(100) == body[:100]
    frames.feed(body[100:])
    assert await reader.readexactly(len(body) - 100) == body[100:]


LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
"""Event loops that make their transports each in its own way."""
Loop = Callable[[], asyncio.AbstractEventLoop]


class Connected:
    """A connection whose frames are looked at, and the other side of it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    other_reader: asyncio.StreamReader
    other: asyncio.StreamWriter


@asynccontextmanager
async def connected() -> AsyncIterator[Connected]:
    site = Connected()
    accepted = asyncio.Event()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.other_reader, site.other = reader, writer
        accepted.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    site.reader, site.writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await accepted.wait()
    FrameReader(site.reader).attach(site.writer.transport)
    try:
        yield site
    finally:
        site.writer.close()
        site.other.close()
        server.close()


def run(new_loop: Loop, main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@LOOPS
def test_a_read_takes_no_more_memory_than_what_has_arrived(new_loop: Loop) -> None:
    async def main() -> None:
        async with connected() as site:
            tracemalloc.start()
            try:
                site.other.write(GOOD)
                assert await site.reader.readexactly(len(GOOD)) == GOOD
                assert tracemalloc.get_traced_memory()[1] < 100 * 2**10
            finally:
                tracemalloc.stop()

    run(new_loop, main)


@LOOPS
def test_a_connection_that_has_ended_keeps_no_room(new_loop: Loop) -> None:
    """The client library keeps it until a full collection, which a large program makes seldom."""

    async def main() -> None:
        tracemalloc.start()
        try:
            async with connected() as site:
                protocol = site.writer.transport.get_protocol()
                assert tracemalloc.get_traced_memory()[0] > 256 * 2**10
                site.other.close()
                assert not await site.reader.read()
                site.writer.close()
                await site.writer.wait_closed()
                assert tracemalloc.get_traced_memory()[0] < 200 * 2**10
                assert isinstance(protocol, FrameReader)
        finally:
            tracemalloc.stop()

    run(new_loop, main)


@LOOPS
def test_the_stream_hears_of_the_end_of_the_connection(new_loop: Loop) -> None:
    async def main() -> None:
        async with connected() as site:
            site.other.write(BAD)
            site.other.close()
            assert await site.reader.read() == MENDED
            assert site.reader.at_eof()
            site.writer.close()
            await site.writer.wait_closed()

    run(new_loop, main)


@LOOPS
def test_the_stream_hears_whether_the_socket_takes_more(new_loop: Loop) -> None:
    async def main() -> None:
        async with connected() as site:
            while not site.writer.transport.get_write_buffer_size():
                site.writer.write(bytes(2**20))
            draining = asyncio.ensure_future(site.writer.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            while not draining.done():
                await site.other_reader.read(2**20)
            await draining

    run(new_loop, main)


MESSAGE = deliver(b"a.queue") + header(Basic.Properties(message_id="an-id")) + BODY


@pytest.mark.parametrize(
    ("messages", "others", "at_once"),
    [(1, 0, 1), (2, 0, 0), (1, 1, 0)],
    ids=["alone", "of two", "beside another callback"],
)
async def test_what_a_read_begins_does_its_first_step_at_once_if_nothing_else_is_to_run(
    messages: int, others: int, at_once: int
) -> None:
    loop = asyncio.get_running_loop()
    steps: list[asyncio.Task[None]] = []
    done: asyncio.Future[int] = loop.create_future()

    async def begin() -> None:
        assert asyncio.current_task() in steps

    def arrive(frames: FrameReader) -> None:
        frames.get_buffer(-1)[: len(MESSAGE) * messages] = MESSAGE * messages
        frames.buffer_updated(len(MESSAGE) * messages)
        done.set_result(sum(step.done() for step in steps))

    async with connected() as site:
        frames = cast("FrameReader", site.writer.transport.get_protocol())
        consumers = {"ctag": lambda _: steps.append(loop.create_task(begin()))}
        frames.read(cast("Any", SimpleNamespace(number=1, consumers=consumers)))
        loop.call_soon(arrive, frames)
        for _ in range(others):
            loop.call_soon(lambda: None)
        assert await done == at_once
        await asyncio.gather(*steps)
