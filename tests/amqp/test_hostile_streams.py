"""Workers that send more of a stream than its consumer has asked for, over a broker and around a hub."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

import atasks
from atasks import MsgpackCodec, StreamLost, atask
from atasks.testing import soon, until
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import PROTOCOL, Deliver, Hello, Serve, Slots, Welcome
from atasks.wire import VERSION, Item, Reply, Status
from tests.amqp.conftest import Meeting
from tests.amqp.peer import Peer
from tests.faults.history import settled

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode

WINDOW = 4
FLOOD = 400
"""Messages that the worker sends ahead."""
LARGE = encode(bytes(100_000))
BOUND = 16 * 2**20
"""Bytes that these may take at once, at both sides of the socket: less than half of what the worker sends."""


class Hand:
    """A worker made by hand: it takes calls, and sends what a test says."""

    def __init__(self, calls: asyncio.Queue[tuple[str, str]], send: Callable[..., Awaitable[None]]) -> None:
        self.calls = calls
        self.send = send

    async def take(self) -> tuple[str, str]:
        """The id of the next call, and the address for what it sends."""
        return await soon(self.calls.get())


@asynccontextmanager
async def at_the_broker(url: str, prefix: str, namespace: str) -> AsyncIterator[Hand]:
    async with Peer.connect(url, prefix, namespace) as peer:
        requests = await peer.declare_work_queue("default")
        calls: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

        async def read() -> None:
            while True:
                message = await requests.get()
                for envelope in decode(message.body):
                    calls.put_nowait((envelope[2], message.reply_to or ""))

        async def send(envelope: Any, to: str) -> None:
            await peer.publish(encode([envelope]), to)

        reading = asyncio.create_task(read())
        try:
            yield Hand(calls, send)
        finally:
            reading.cancel()
            await asyncio.wait([reading])


@asynccontextmanager
async def at_a_hub(path: str, namespace: str) -> AsyncIterator[Hand]:
    calls: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    _, link = await asyncio.get_running_loop().create_unix_connection(SocketLink, path)
    welcome = asyncio.Event()

    def receive(messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Welcome):
                welcome.set()
            elif isinstance(message, Deliver):
                calls.put_nowait((message.call.id, ""))

    async def send(envelope: Any, _: str) -> None:
        link.send(envelope, len(LARGE))
        await until(lambda: not link.clogged, "the hub reads")

    link.receive = receive
    link.send(Hello(PROTOCOL, namespace, os.getpid()))
    await soon(welcome.wait())
    link.send(Serve("hand", ["default"]))
    link.send(Slots(10, 0))
    try:
        yield Hand(calls, send)
    finally:
        link.abort()
        await settled(link.ended, "the end of the conversation")


@asynccontextmanager
async def by_hand(meeting: Meeting, namespace: str) -> AsyncIterator[Hand]:
    """A worker made by hand where the callers are, the only one of the namespace."""
    url, options = meeting
    if url.startswith("unix:"):
        async with at_a_hub(url.removeprefix("unix://"), namespace) as hand:
            yield hand
    else:
        async with at_the_broker(url, options["prefix"], namespace) as hand:
            yield hand


@pytest.mark.parametrize("way", ["on and on", "the same again", "with a gap", "of another attempt"])
async def test_a_worker_that_sends_far_more_than_the_window_costs_its_own_stream(
    meeting: Meeting, way: str
) -> None:
    url, options = meeting
    namespace = f"case-{uuid.uuid4().hex}"
    MsgpackCodec(namespace)

    @atask(namespace=namespace, window=WINDOW)
    async def numbers() -> AsyncIterator[bytes]:
        yield b""

    @atask(namespace=namespace)
    async def add(a: int) -> int:
        return a

    async with by_hand(meeting, namespace) as hand, atasks.connect(url, namespace=namespace, **options):
        stream = numbers()
        first = asyncio.ensure_future(anext(stream))
        call_id, address = await hand.take()

        async def item(number: int, payload: bytes, attempt: int = 1) -> None:
            await hand.send(Item(VERSION, call_id, number, [payload], "msgpack", "hand", attempt), address)

        await item(0, encode(b""))
        assert await soon(first) == b""
        tracemalloc.start()
        try:
            for number in range(FLOOD):
                match way:
                    case "on and on":
                        await item(1 + number, LARGE)
                    case "the same again":
                        await item(1, LARGE)
                    case "with a gap":
                        await item(2 + number % 3, LARGE)
                    case _:
                        await item(1 + number, LARGE, number)
            good = asyncio.create_task(add(5))
            good_id, good_address = await hand.take()
            await hand.send(Reply(VERSION, good_id, Status.VALUE, encode(5), "msgpack", "hand"), good_address)
            assert await soon(good) == 5
            assert tracemalloc.get_traced_memory()[1] < BOUND
        finally:
            tracemalloc.stop()
        if way in ("on and on", "of another attempt"):
            with pytest.raises(StreamLost, match="window of 4 items"):
                while True:
                    await soon(anext(stream))
        else:
            await stream.aclose()
