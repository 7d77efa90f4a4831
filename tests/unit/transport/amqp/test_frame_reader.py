"""Frames that arrive in pieces: the client library reads the same bytes, wherever they were cut."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
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
        FrameReader(reader)
        for start in range(0, len(sent), size):
            reader.feed_data(sent[start : start + size])
        reader.feed_eof()
        assert await reader.read() == read, size


async def test_nothing_is_kept_back_of_a_body() -> None:
    """The body may be large, and nothing in it is looked at: not what looks like a frame either."""
    reader = asyncio.StreamReader()
    FrameReader(reader)
    body = frame.marshal(ContentBody(BAD), 1)
    reader.feed_data(body[:100])
    assert await reader.readexactly(100) == body[:100]
    reader.feed_data(body[100:])
    assert await reader.readexactly(len(body) - 100) == body[100:]
