"""Channels that are read where their bytes arrive: in order, wherever the bytes are cut, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import PublishError
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from atasks.transport.backends.amqp.broker import frame_reader
from atasks.transport.backends.amqp.broker.content import Properties, header_frame, read_header
from atasks.transport.backends.amqp.broker.frame_reader import FrameReader

DIRECT = 3
HEARTBEAT = frame.marshal(Heartbeat(), 0)


class Confirmation:
    """A message that was published: notes what it is told."""

    def __init__(self, tag: int, told: list[Any]) -> None:
        self.tag = tag
        self.told = told

    def set_result(self, _: object) -> None:
        self.told.append((self.tag, "confirmed"))

    def set_exception(self, error: BaseException) -> None:
        self.told.append((self.tag, "returned" if isinstance(error, PublishError) else "refused"))


class Site:
    """A connection's reader with one direct channel."""

    def __init__(self, published: int = 0) -> None:
        self.told: list[Any] = []
        self.channel = SimpleNamespace(
            number=DIRECT,
            consumers={"ctag": self.consume},
            confirmations={tag: Confirmation(tag, self.told) for tag in range(1, published + 1)},
            message_id_delivery_tag={f"m{tag}": tag for tag in range(1, published + 1)},
            create_task=lambda coroutine: asyncio.get_running_loop().create_task(coroutine),
        )
        self.stream = asyncio.StreamReader()
        self.reader = FrameReader(self.stream)
        self.reader.read(cast("Any", self.channel))

    def consume(self, message: DeliveredMessage) -> None:
        self.told.append((message.delivery_tag, message.header.properties.message_id, message.body))

    async def left(self) -> bytes:
        """Return what the client library was given, but for heartbeats."""
        self.stream.feed_eof()
        return (await self.stream.read()).replace(HEARTBEAT, b"")


def message(tag: int, message_id: str, *pieces: bytes, number: int = DIRECT, key: str = "a.queue") -> bytes:
    """The frames that deliver a message whose body comes in such pieces."""
    method = Basic.Deliver(consumer_tag="ctag", delivery_tag=tag, exchange="", routing_key=key)
    header = ContentHeader(properties=Basic.Properties(message_id=message_id), body_size=sum(map(len, pieces)))
    return b"".join(frame.marshal(each, number) for each in (method, header, *map(ContentBody, pieces)))


def returned(message_id: str) -> bytes:
    method = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="", routing_key="nowhere")
    header = ContentHeader(properties=Basic.Properties(message_id=message_id), body_size=4)
    return b"".join(frame.marshal(each, DIRECT) for each in (method, header, ContentBody(b"body")))


def ack(tag: int, multiple: bool = False) -> bytes:
    return frame.marshal(Basic.Ack(delivery_tag=tag, multiple=multiple), DIRECT)


OTHERS = message(1, "other", b"x" * 300, number=7) + frame.marshal(Basic.ConsumeOk(consumer_tag="ctag"), DIRECT)
"""Frames that are not deliveries: one of another channel, and the answer to a command."""


async def test_cut_anywhere_it_is_read_in_order() -> None:
    sent = (
        OTHERS + message(5, "five", b"ab", b"cd") + ack(1) + OTHERS + message(6, "six") + returned("m2") + ack(2)
    )
    for size in (*range(1, 60), len(sent)):
        site = Site(published=2)
        for start in range(0, len(sent), size):
            site.reader.feed(sent[start : start + size])
        assert site.told == [
            (5, "five", b"abcd"),
            (1, "confirmed"),
            (6, "six", b""),
            (2, "returned"),  # and not confirmed behind that
        ], size
        assert await site.left() == OTHERS * 2, size


@pytest.mark.parametrize("size", [7, 8, 100, 4096, 50_000, 65_544, 131_079, 262_144, 2**20])
async def test_a_large_body_is_whole_wherever_it_is_cut(size: int) -> None:
    """Frames of other channels come between its own, and bytes of it that look like frames are none."""
    body = random.Random(1).randbytes(100_000) + OTHERS * 300 + random.Random(2).randbytes(65_537)
    pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    frames = [frame.marshal(ContentBody(piece), DIRECT) for piece in pieces]
    whole = message(5, "five", *pieces)
    sent = ack(1) + whole[: -sum(map(len, frames))] + b"".join(each + HEARTBEAT for each in frames)
    sent += whole + ack(2) + message(6, "six", b"ab") + OTHERS + whole
    site = Site(published=2)
    for start in range(0, len(sent), size):
        site.reader.feed(sent[start : start + size])
    assert site.told == [
        (1, "confirmed"),
        (5, "five", body),
        (5, "five", body),
        (2, "confirmed"),
        (6, "six", b"ab"),
        (5, "five", body),
    ]
    assert {type(each[2]) for each in site.told if len(each) == 3} == {bytes}
    assert await site.left() == OTHERS


async def test_a_large_body_takes_its_own_bytes_of_memory_and_little_else() -> None:
    body = random.Random(1).randbytes(8 * 2**20)
    sent = message(5, "five", *(body[start : start + 131_064] for start in range(0, len(body), 131_064)))
    site = Site()
    tracemalloc.start()
    for start in range(0, len(sent), 2**18):
        site.reader.feed(sent[start : start + 2**18])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert site.told == [(5, "five", body)]
    assert peak < len(body) + 2**20


async def test_more_of_a_large_body_than_was_announced_is_dropped() -> None:
    body = bytes(200_000)
    longer = message(5, "five", body, body[:100]).replace((200_100).to_bytes(8), (200_000).to_bytes(8), 1)
    for size in (150_000, len(longer)):
        site = Site()
        for start in range(0, len(longer), size):
            site.reader.feed(longer[start : start + size])
        site.reader.feed(message(6, "six", b"ab"))
        assert site.told == [(5, "five", body), (6, "six", b"ab")]


async def test_a_confirm_of_many_confirms_them_in_order() -> None:
    site = Site(published=5)
    site.reader.feed(ack(2) + ack(4, multiple=True) + ack(4, multiple=True) + ack(9))
    assert site.told == [(2, "confirmed"), (1, "confirmed"), (3, "confirmed"), (4, "confirmed")]
    assert list(site.channel.confirmations) == [5]


async def test_refusals_and_confirms_are_told_in_the_order_in_which_they_came() -> None:
    """A confirm of many says nothing of those before it that were refused."""
    site = Site(published=6)
    refusals = [Basic.Nack(delivery_tag=1), Basic.Nack(delivery_tag=4, multiple=True)]
    first, second = (frame.marshal(refusal, DIRECT) for refusal in refusals)
    site.reader.feed(first + ack(2, multiple=True) + second + ack(6, multiple=True))
    endings = ["refused", "confirmed", "refused", "refused", "confirmed", "confirmed"]
    assert site.told == list(enumerate(endings, 1))
    assert await site.left() == b""


@pytest.mark.parametrize(
    "last", [Channel.Close(reply_code=404, reply_text="NOT_FOUND", class_id=60, method_id=40), Channel.CloseOk()]
)
async def test_a_channel_that_has_closed_is_read_no_more(last: Any) -> None:
    """Another channel may have its number next."""
    site = Site()
    site.reader.feed(message(1, "one", b"1") + (rest := frame.marshal(last, DIRECT) + message(2, "two", b"2")))
    assert site.told == [(1, "one", b"1")]
    assert await site.left() == rest


async def test_a_message_for_nobody_is_dropped() -> None:
    site = Site()
    site.channel.consumers.clear()
    site.reader.feed(message(1, "one", b"1"))
    assert site.told == []
    assert await site.left() == b""


async def test_a_receiver_that_fails_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()

    def fail(message: DeliveredMessage) -> None:
        raise LookupError("not today")

    async def fail_later(message: DeliveredMessage) -> None:
        raise LookupError("not tomorrow")

    site.channel.consumers["ctag"] = fail
    site.reader.feed(message(1, "one", b"1"))
    site.channel.consumers["ctag"] = fail_later
    site.reader.feed(message(2, "two", b"2"))
    await asyncio.sleep(0.01)
    site.channel.consumers["ctag"] = site.consume
    site.reader.feed(message(3, "three", b"3"))
    assert site.told == [(3, "three", b"3")]
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info and str(record.exc_info[1]) for record in failures] == ["not today", "not tomorrow"]


async def test_the_client_library_sees_that_the_broker_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library gives up a connection by which it has got nothing for long; once a second is often
    enough."""
    now = 100.0
    monkeypatch.setattr(frame_reader.time, "monotonic", lambda: now)
    site = Site()
    for tag in range(1, 31):
        site.reader.feed(message(tag, "one", b"1"))
        now += 0.1
    site.stream.feed_eof()
    assert await site.stream.read() == HEARTBEAT * 3
    assert len(site.told) == 30


@pytest.mark.parametrize(
    "properties",
    [
        Basic.Properties(),
        Basic.Properties(content_type="a/b", message_id="an-id", reply_to="queue", delivery_mode=2),
        Basic.Properties(correlation_id="c", priority=0, expiration="60000", content_encoding="zstd"),
        Basic.Properties(message_id="ä" * 100, reply_to="x" * 255),
        Basic.Properties(headers={"x": 1}, message_id="an-id", timestamp=datetime(2026, 1, 1, tzinfo=UTC)),
        Basic.Properties(user_id="guest", app_id="app", message_type="kind", priority=255),
        Properties(),
        Properties(content_type="a/b", message_id="an-id", reply_to="queue", delivery_mode=2),
        Properties(correlation_id="c", priority=0, expiration="60000", message_id="ä" * 100),
    ],
)
def test_properties_are_written_and_read_as_the_client_library_does(properties: Basic.Properties) -> None:
    content = ContentHeader(properties=properties, body_size=2**33)
    written = header_frame(9, properties, 2**33)
    assert written == frame.marshal(content, 9)
    read = read_header(written[7:-1])
    assert read.body_size == 2**33
    assert read.properties == properties


def test_properties_that_are_written_once_are_written_anew_where_one_changes() -> None:
    properties = [Properties.of(name, "a/b", 2, "queue", 3, "60000") for name in ("an-id", "other-id")]
    given: dict[str, Any] = {"content_type": "a/b", "delivery_mode": 2, "reply_to": "queue", "priority": 3}
    given |= {"expiration": "60000", "message_id": "other-id"}
    assert header_frame(9, properties[1], 77) == header_frame(9, Basic.Properties(**given), 77)
    for name, value in {"content_type": "c/d", "headers": {"x": 1}, "reply_to": None, "app_id": "app"}.items():
        setattr(properties[1], name, value)
        given[name] = value
        assert header_frame(9, properties[1], 77) == header_frame(9, Basic.Properties(**given), 77)
    assert header_frame(9, properties[0], 77) == header_frame(
        9, Properties.of("an-id", "a/b", 2, "queue", 3, "60000"), 77
    )


@pytest.mark.parametrize(
    "properties",
    [
        Properties.of("an-id", "a/b", 2, "queue", 3, "60000"),
        Properties(content_type="a/b", message_id="an-id", reply_to="queue"),
        Basic.Properties(content_type="a/b", headers={"x": 1}, message_id="an-id"),
        Basic.Properties(message_id="an-id", timestamp=datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_properties_are_written_with_another_content_type(properties: Basic.Properties) -> None:
    before = properties.content_type
    written = header_frame(9, properties, 77, "sealed/and more")
    assert properties.content_type == before
    assert header_frame(9, properties, 77, "sealed/and more") == written
    properties.content_type = "sealed/and more"
    assert written == frame.marshal(ContentHeader(properties=properties, body_size=77), 9)


@pytest.mark.parametrize(
    "properties",
    [
        Basic.Properties(message_id="x" * 256),
        Basic.Properties(reply_to="\ud800"),
        Basic.Properties(priority=256),
        Basic.Properties(priority=-1),
        Properties(message_id="x" * 256),
        Properties(reply_to="x" * 256, message_id="an-id"),
    ],
)
def test_properties_that_cannot_be_written_are_an_error(properties: Basic.Properties) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError, struct.error)):
        header_frame(1, properties, 0)


@pytest.mark.parametrize("cut", range(1, 30))
def test_properties_that_end_too_early_are_none(cut: int) -> None:
    whole = header_frame(1, Basic.Properties(message_id="an-id", reply_to="some.queue", priority=3), 77)[7:-1]
    header = read_header(whole[: max(14, len(whole) - cut)])
    assert header.body_size == 77
    assert header.properties.message_id in (None, "an-id"[: 5 - cut])


async def test_a_heartbeat_does_not_come_between_a_mended_frame_and_its_end() -> None:
    site = Site()
    mended = message(2, "an-id", b"body", number=1).replace(b"an-id", b"an\xff\xfe\xfd")
    site.reader.feed(message(1, "m1", b"body") + mended)
    site.stream.feed_eof()
    left, names = await site.stream.read(), []
    while left:
        size, _, read = frame.unmarshal(left)
        names.append(type(read).__name__)
        left = left[size:]
    assert sorted(names) == ["ContentBody", "ContentHeader", "Deliver", "Heartbeat"]
    assert site.told == [(1, "m1", b"body")]


def arrival(
    consumer: str = "ctag",
    tag: int = 5,
    again: bool = False,
    key: str = "a.queue",
    message_id: bytes = b"an-id",
    body: Sequence[bytes] = (b"body",),
    **others: Any,
) -> bytes:
    """The frames that deliver a message with such properties."""
    method = Basic.Deliver(consumer, tag, again, "", key)
    name = "?" * len(message_id)
    properties = Basic.Properties(message_id=name, **{"content_type": "a/b", "reply_to": "replies"} | others)
    header = frame.marshal(ContentHeader(properties=properties, body_size=sum(map(len, body))), DIRECT)
    frames = [frame.marshal(each, DIRECT) for each in (method, *map(ContentBody, body))]
    return b"".join((frames[0], header.replace(name.encode(), message_id), *frames[1:]))


ALIKE = [
    arrival(),
    arrival(tag=2**62, message_id=b"other", body=[b"another"]),
    arrival(message_id=b"longer-id"),
    arrival(message_id=b"\xff\xfe\xfd.."),
    arrival(message_id=b"\xff\xfe\xfd..", expiration="1000"),
    *(arrival(expiration=milliseconds) for milliseconds in ("1000", "2000", "100000")),
    arrival(reply_to="another"),
    arrival(reply_to="somewhere.else"),
    arrival(again=True),
    arrival(key="b.queue"),
    arrival(consumer="bear"),
    arrival(body=[]),
    arrival(body=[b"in two ", b"frames"]),
    arrival(body=[b"in two ", b"frames"], message_id=b"other"),
    arrival(headers={"a": 1}),
    arrival(priority=3, delivery_mode=2),
    arrival(app_id="an-id"),
    arrival(app_id="other"),
    arrival(timestamp=datetime(2026, 1, 1, tzinfo=UTC)),
    ack(1),
]


def read(sent: bytes, size: int) -> list[Any]:
    """Return what is told of frames that arrive in pieces of this size."""
    site = Site()

    def consume(message: DeliveredMessage) -> None:
        assert message.channel is site.channel
        names = message.consumer_tag, message.exchange, message.routing_key
        header = message.header.body_size, message.header.properties
        site.told.append((message.delivery_tag, message.redelivered, *names, *header, message.body))

    site.channel.consumers = {"ctag": consume, "bear": consume}
    for start in range(0, len(sent), size):
        site.reader.feed(sent[start : start + size])
    return site.told


async def test_what_is_like_an_earlier_message_is_read_as_alone() -> None:
    """After whatever other message it comes, and wherever it is cut."""
    alone = {sent: read(sent, len(sent)) for sent in ALIKE}
    for earlier in ALIKE:
        for sent in ALIKE:
            told = alone[earlier] + alone[sent] + alone[earlier] + alone[sent]
            whole = (earlier + sent) * 2
            for size in (len(whole), len(earlier + sent), len(sent), 50):
                assert read(whole, size) == told, (earlier, sent, size)


@pytest.mark.parametrize("content_type", [None, "sealed"])
def test_an_address_that_is_too_long_raises_what_the_client_library_raises(content_type: str | None) -> None:
    properties = Properties.of("an-id", "a/b", 2, "x" * 256)
    with pytest.raises((TypeError, struct.error)) as raised:  # as the version of the client library has it
        frame.marshal(ContentHeader(properties=properties, body_size=3), 1)
    with pytest.raises(raised.type):
        header_frame(1, properties, 3, content_type)
