"""Messages between a hub and the processes around it, those included that they do not understand."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import atasks
from atasks import ConnectFailed, DecodeError, get_router
from atasks.testing import until
from atasks.transport.backends.local.conversation import FLUSH_BYTES
from atasks.transport.backends.local.frames import decode, encode, salvage
from atasks.transport.backends.local.hub.listener import Host
from atasks.transport.backends.local.link import HIGH_WATER, KEPT_READ_BYTES, SocketLink
from atasks.transport.backends.local.messages import (
    Hello,
    NoneServes,
    Request,
    Stop,
    Welcome,
)
from atasks.wire import Call
from tests.faults.history import settled
from tests.local.jobs import NAMESPACE, echo
from tests.waiting import DEADLINE


def call(name: str = "a.task", payload: bytes = b"payload") -> Call:
    return Call(1, "some-id", name, payload, "pickle")


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def link() -> tuple[SocketLink, list[object]]:
    """A link that is not connected, and what it receives. Within an event loop."""
    received: list[object] = []
    here = SocketLink()
    here.receive = received.extend
    return here, received


def arrive(link: SocketLink, data: bytes) -> None:
    """Give the link data as asyncio does."""
    while data:
        room = link.get_buffer(-1)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        link.buffer_updated(size)
        data = data[size:]


async def test_frames_may_arrive_in_any_pieces() -> None:
    messages = [Hello(1, "default", 7), Request("q", call()), Stop()]
    data = frame(encode(messages[:1])) + frame(encode(messages[1:])) + frame(encode([Welcome(8)]))
    for size in (1, 3, 50, len(data)):
        here, received = link()
        for start in range(0, len(data), size):
            arrive(here, data[start : start + size])
        assert received == [*messages, Welcome(8)]


async def test_large_frames_between_small_ones() -> None:
    """Larger than what a link keeps room for, in pieces as a socket gives them, and as large as there is room."""
    large = [Request("q", call(payload=bytes(size))) for size in (70_000, 3_000_000, 20_000_000)]
    messages = [Stop(), large[0], Stop(), large[2], large[1], Stop(), large[1], Stop()]
    data = b"".join(frame(encode([message])) for message in messages)
    for size in (200_000, len(data)):
        here, received = link()
        for start in range(0, len(data), size):
            arrive(here, data[start : start + size])
        assert received == messages
        assert len(here.get_buffer(-1)) <= KEPT_READ_BYTES


async def test_a_length_that_is_only_claimed_takes_no_memory() -> None:
    here, received = link()
    arrive(here, (2**31 - 1).to_bytes(4, "big") + b"nothing of the kind")
    assert len(here.get_buffer(-1)) <= 2**20
    assert received == []


def test_what_can_be_read_of_a_frame_is_read() -> None:
    body = encode([Stop(), Request("q", call("n" * 5000)), NoneServes("x"), ["not a message"]])
    with pytest.raises(ValueError, match="length"):
        decode(body)
    found = salvage(body)
    assert found.messages == [Stop(), NoneServes("x")]
    assert [refusal and getattr(refusal, "id", "") for refusal, _ in found.bad] == ["some-id", None]


@asynccontextmanager
async def conversation(path: str) -> AsyncIterator[tuple[SocketLink, SocketLink]]:
    """Both ends of one over a socket."""
    accepted: list[SocketLink] = []

    def accept() -> SocketLink:
        accepted.append(SocketLink())
        return accepted[-1]

    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(accept, path)
    _, here = await loop.create_unix_connection(SocketLink, path)
    await until(lambda: accepted, "it is accepted")
    try:
        yield here, accepted[0]
    finally:
        await settled(asyncio.gather(here.aclose(DEADLINE), accepted[0].aclose(DEADLINE)), "the end of both sides")
        server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
async def test_a_socket_takes_what_leaves_in_one_piece_before_the_other_side_reads(path: str) -> None:
    async with conversation(path) as (here, there):
        assert there.transport is not None
        there.transport.pause_reading()
        here.send(Request("q", call(payload=random.randbytes(FLUSH_BYTES))))
        here.flush()
        waits = here.unsent
        there.transport.resume_reading()
    assert not waits


@pytest.mark.parametrize("ends", [False, True])
async def test_what_waits_for_a_slow_reader_arrives_in_order(path: str, ends: bool) -> None:
    """Also if there is an end behind it, and whatever the sizes."""
    messages = [
        Request("q", call(payload=random.randbytes(size))) for size in [10, 300_000, 40_000, 2_000_000] * 5
    ]
    received: list[object] = []
    freed: list[bool] = []
    async with conversation(path) as (here, there):
        assert there.transport is not None
        there.receive, here.freed = received.extend, lambda: freed.append(here.clogged)
        there.transport.pause_reading()
        for message in messages:
            here.send(message)
            here.flush()
        assert here.clogged
        assert here.unsent > HIGH_WATER
        if ends:
            closing = asyncio.create_task(here.aclose(DEADLINE))
            await asyncio.sleep(0)
        there.transport.resume_reading()
        await until(lambda: len(received) >= len(messages), "all of it has arrived")
        if ends:
            await settled(closing, "the end of the conversation")
        else:
            await until(lambda: not here.unsent, "nothing waits any more")
            assert (freed, here.clogged) == ([False], False)
    assert received == messages


async def test_what_was_sent_before_the_end_arrives_although_the_other_side_writes(path: str) -> None:
    received: list[object] = []
    ends: list[str] = []
    async with conversation(path) as (here, there):
        assert here.transport is not None
        here.receive, here.lost = received.extend, ends.append
        here.transport.pause_reading()
        here.send(Stop())
        here.end_turn()
        there.send(Welcome(8))
        closing = asyncio.create_task(there.aclose(DEADLINE))
        for _ in range(20):
            await asyncio.sleep(0.01)  # it is closed by now, if it does not wait for this side
            here.send(Stop())
        here.transport.resume_reading()
        await settled(closing, "the end of the conversation")
        await until(lambda: ends, "it is told of the end")
    assert (received, ends) == ([Welcome(8)], ["it was closed by the other side"])


async def test_a_call_that_cannot_be_read_costs_no_other(host: Host, path: str) -> None:
    async with atasks.serve(f"unix://{path}", namespace=NAMESPACE, hub=False):
        others = [asyncio.create_task(echo(number)) for number in range(20)]
        with pytest.raises(DecodeError, match="request refused"):
            await settled(get_router(NAMESPACE).send_request("n" * 5000), "a call of a name that is too long")
        assert await settled(asyncio.gather(*others), "the others") == list(range(20))


async def test_another_version_is_refused(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atasks.transport.backends.local.transport.PROTOCOL", 99)
    with pytest.raises(ConnectFailed, match="run the same version of atasks"):
        async with atasks.connect(f"unix://{path}"):
            pass


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", frame(b"\xc1"), b"\xff" * 8, frame(encode([Stop()]))])
async def test_strangers_are_shown_out(host: Host, path: str, data: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    if data.startswith(b"GET"):
        writer.write_eof()  # the length that it seems to say is not reached
    await settled(reader.read(), "the hub closes the connection")
    writer.close()
    await writer.wait_closed()
    await until(lambda: host.hub.peers == [], "it is forgotten")
