"""Properties that the client library cannot read: they cost no connection, and no other message."""

# Private attributes: `Serving._leases` and its `_queues`: the name of a lease queue is told to nobody.

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aio_pika
import pytest
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from atasks import MsgpackCodec, wire
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.wire import CONTENT_TYPE, Call
from tests.amqp.conftest import NewTransport
from tests.amqp.peer import Peer

pytestmark = pytest.mark.usefixtures("whoever_reads_frames")

CONTENT, HEADERS, REPLY_TO, MESSAGE_ID, TIMESTAMP = 0x8000, 0x2000, 0x0200, 0x0080, 0x0040


class Raw(Basic.Properties):
    """Properties as bytes."""

    def __init__(self, flags: int, content: bytes) -> None:
        super().__init__(message_id="raw")
        self.raw = struct.pack(">H", flags) + content

    def marshal(self) -> bytes:
        return self.raw


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(*fields: tuple[bytes, bytes]) -> bytes:
    content = b"".join(short(key) + value for key, value in fields)
    return len(content).to_bytes(4, "big") + content


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + len(value).to_bytes(4, "big") + value
    return value


GOOD = short(CONTENT_TYPE.encode())
UNREADABLE = {
    "a time in microseconds": Raw(CONTENT | TIMESTAMP, GOOD + (1_767_225_600_000_000).to_bytes(8, "big")),
    "the last time there is": Raw(TIMESTAMP, b"\xff" * 8),
    "a content type that is no UTF-8": Raw(CONTENT, short(b"\xff\xfe")),
    "an address that is no UTF-8": Raw(CONTENT | REPLY_TO, GOOD + short(b"atasks.r.\xff")),
    "an id that is no UTF-8": Raw(CONTENT | MESSAGE_ID, GOOD + short(b"\x80")),
    "a header key that is no UTF-8": Raw(CONTENT | HEADERS, GOOD + table((b"\xc3\x28", b"V"))),
    "headers 500 deep": Raw(CONTENT | HEADERS, GOOD + table((b"k", nested(500)))),
    "many headers": Raw(
        CONTENT | HEADERS, GOOD + table((b"k", b"A" + (100_000).to_bytes(4, "big") + b"V" * 100_000))
    ),
    "a time in a header": Raw(CONTENT | HEADERS, GOOD + table((b"k", b"T" + b"\xff" * 8))),
}


@pytest.fixture
async def raw(amqp_url: str, prefix: str, site: Site) -> AsyncIterator[Channel]:
    connection = await aio_pika.connect(amqp_url)
    async with connection, connection.channel(publisher_confirms=True) as channel:
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, Channel)
        yield underlay


@pytest.fixture
def site(new_transport: NewTransport) -> Iterator[Site]:
    """Transports that take the broker's patience for a second, so that there are leases."""
    site = Site(functools.partial(new_transport, consumer_timeout=1.0))
    yield site
    site.close()


def _links(site: Site) -> list[Any]:
    transports = [site.caller, *(worker.transport for worker in site.workers)]
    return [transport.session.link for transport in transports if isinstance(transport, AMQPTransport)]


async def _dead(site: Site, count: int) -> None:
    """Return when there are so many dead letters: whoever reads them would have to read their properties."""
    (link,) = _links(site)[:1]
    topology = site.caller.session.topology  # type: ignore[attr-defined]
    while (await link.queue_state(topology.dead)) != (count, 0):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", UNREADABLE)
async def test_message_goes_to_the_dead_queue(site: Site, peer: Peer, raw: Channel, name: str) -> None:
    MsgpackCodec(site.namespace)

    @site.atask
    async def echo(value: Any) -> Any:
        return value

    @site.atask(executor="thread")
    def block(value: Any) -> Any:
        return value

    async with site.open(serve=False):
        await site.serve(threads=1)
        links = _links(site)
        body = wire.encode([Call(1, "an-id", echo.name, b"\x92\x91\x01\x80", "msgpack")])
        work = peer.work_queue()
        for number, queue in enumerate((work, f"{work}.solo", f"{work}.thread"), 1):
            counted = site.worker.bad_messages
            await raw.basic_publish(body, routing_key=queue, properties=UNREADABLE[name])
            await soon(_dead(site, number))
            assert site.worker.bad_messages > counted
            assert await soon(asyncio.gather(echo(1), block(2))) == [1, 2]
        assert _links(site) == links


@pytest.mark.parametrize("name", UNREADABLE)
async def test_other_queues(site: Site, peer: Peer, raw: Channel, name: str) -> None:
    """Reply, control and lease queues: such a message is dropped."""
    ended = asyncio.Event()

    @site.atask
    async def wait(value: int) -> int:
        await ended.wait()
        return value

    async with site.open():
        links = _links(site)
        call = asyncio.create_task(wait(3))
        assert isinstance(site.caller, AMQPTransport)
        leases = site.worker.transport.serving._leases  # type: ignore[attr-defined]
        await until(lambda: leases._queues)
        (lease,) = leases._queues.values()
        topology = site.caller.session.topology
        properties = UNREADABLE[name]
        body = wire.encode([wire.Cancel(1, ["an-id"])])
        control = topology.control
        for exchange, key in (
            ("", site.caller.session.reply_queue),
            ("", lease),
            (control, topology.queue_key("default")),
            (control, topology.worker_key(site.worker.id)),
            (control, topology.up_key("default")),
        ):
            await raw.basic_publish(body, exchange=exchange, routing_key=key, properties=properties)
        ended.set()
        assert await soon(call) == 3
        assert await soon(wait(4)) == 4
        assert _links(site) == links


async def test_routing_key_that_is_no_utf_8(site: Site, peer: Peer, raw: Channel) -> None:
    """A message reaches a queue by a copy, whatever it was addressed to."""
    MsgpackCodec(site.namespace)

    @site.atask
    async def echo(value: Any) -> Any:
        return value

    async with site.open():
        links = _links(site)
        work = peer.work_queue().encode()
        copies = table(
            (b"CC", b"A" + (len(work) + 5).to_bytes(4, "big") + b"S" + len(work).to_bytes(4, "big") + work)
        )
        for number, key in enumerate((b"\xff" * 255, b"\x80"), 1):
            properties = Raw(CONTENT | HEADERS, GOOD + copies)
            await _publish(raw, key, b"x", properties)
            await soon(_dead(site, number))
        odd = table((b"CC", b"A" + (6).to_bytes(4, "big") + b"S" + (1).to_bytes(4, "big") + b"\xff"))
        await raw.basic_publish(b"y", routing_key=work.decode(), properties=Raw(CONTENT | HEADERS, GOOD + odd))
        await soon(_dead(site, 3))
        assert await soon(echo(1)) == 1
        assert _links(site) == links


async def _publish(channel: Channel, key: bytes, body: bytes, properties: Raw) -> None:
    """By hand: the client library takes texts only."""
    content = b"\x00\x3c\x00\x28\x00\x00\x00" + short(key) + b"\x00"
    number = channel.number
    method = b"\x01" + number.to_bytes(2, "big") + len(content).to_bytes(4, "big") + content + b"\xce"
    header = frame.marshal(ContentHeader(properties=properties, body_size=len(body)), number)
    await channel.write_queue.put(
        ChannelFrame(method + header + frame.marshal(ContentBody(body), number), should_close=False)
    )
    channel.delivery_tag += 1


async def test_headers_that_can_be_read_are_no_obstacle(site: Site, peer: Peer) -> None:
    MsgpackCodec(site.namespace)

    @site.atask
    async def echo(value: Any) -> Any:
        return value

    async with site.open():
        envelope = [1, 1, "an-id", echo.name, b"\x92\x91\x01\x80", "msgpack"]
        await peer.send(envelope, headers={"trace": "x" * 1000, "n": 5, "ä": ["ö"]}, timestamp=1_767_225_600)
        ((tag, _, call_id, status, payload, *_),) = await peer.answer()
        assert (tag, call_id, status, payload) == (2, "an-id", 0, b"\x01")
