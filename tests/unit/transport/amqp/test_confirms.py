"""The connection by which messages leave is read a few confirms at a time, while nobody waits for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp import frame
from pamqp.commands import Basic

from atasks.testing import soon
from atasks.transport.backends.amqp.broker.confirms import FEW, Confirms
from atasks.transport.backends.amqp.broker.frame_reader import FrameReader

PATIENCE = "atasks.transport.backends.amqp.broker.confirms.PATIENCE_SECONDS"
PATIENT = SimpleNamespace(is_awaited=False)
AWAITED = SimpleNamespace(is_awaited=True)


class Site:
    """A connection whose confirms are read by `Confirms`, and the broker's end of it."""

    def __init__(self, broker: socket.socket, transport: asyncio.Transport, reader: FrameReader) -> None:
        self.transport = transport
        self.stream = asyncio.StreamReader()
        self.unconfirmed: dict[int, Any] = {}
        reader.read(self.channel)
        self.broker = broker
        self._confirms = Confirms(reader, self.unconfirmed)
        self.sent = 0
        self.confirmed: list[int] = []

    @property
    def channel(self) -> Any:
        return SimpleNamespace(number=1, confirmations=self.unconfirmed)

    def send(self, message: Any = PATIENT) -> None:
        """A message leaves."""
        self.sent += 1
        tag = self.sent
        self.unconfirmed[tag] = SimpleNamespace(set_result=lambda _: self.confirmed.append(tag))
        self._confirms.left([message])

    def confirm(self, *tags: int) -> None:
        """The broker confirms messages."""
        self.broker.sendall(b"".join(frame.marshal(Basic.Ack(delivery_tag=tag), 1) for tag in tags))

    async def until_confirmed(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.confirmed) < count:
                await asyncio.sleep(0.001)

    async def one_at_a_time(self) -> None:
        """Send messages, each when the one before it is confirmed, until the event loop looks away; the last one
        is confirmed, and that was not read. A busy machine may be too slow for the first few."""
        async with asyncio.timeout(60):
            while self.transport.is_reading():
                await self.until_confirmed(self.sent)
                self.send()
                self.confirm(self.sent)


@asynccontextmanager
async def connected() -> AsyncIterator[Site]:
    here, there = socket.socketpair()
    here.setblocking(False)
    stream, writer = await asyncio.open_connection(sock=here)
    reader = FrameReader(stream)
    reader.attach(writer.transport)
    site = Site(there, writer.transport, reader)  # type: ignore[arg-type]
    site.stream = stream
    try:
        yield site
    finally:
        there.close()
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timer reads, however busy the machine is."""
    monkeypatch.setattr(PATIENCE, 3600.0)


@pytest.mark.usefixtures("patience")
async def test_a_few_confirms_are_read_together_and_without_the_event_loop() -> None:
    async with connected() as site:
        await site.one_at_a_time()
        for _ in range(FEW - 2):
            site.send()
        site.confirm(*range(FEW + 1, 2 * FEW - 1))
        await asyncio.sleep(0.02)
        assert len(site.confirmed) == FEW - 1, "of the last one and those behind it none was read"
        site.send()
        await site.until_confirmed(2 * FEW - 2)
        assert not site.transport.is_reading()


@pytest.mark.usefixtures("patience")
async def test_the_event_loop_looks_again_when_a_confirm_is_awaited() -> None:
    async with connected() as site:
        await site.one_at_a_time()
        site.send(AWAITED)
        assert site.transport.is_reading()
        site.confirm(FEW + 1)
        await site.until_confirmed(FEW + 1)


@pytest.mark.usefixtures("patience")
async def test_the_event_loop_looks_again_when_the_broker_confirms_nothing() -> None:
    async with connected() as site:
        await site.one_at_a_time()
        while not site.transport.is_reading():
            site.send()
            await asyncio.sleep(0)
        assert len(site.unconfirmed) <= 2 * FEW


async def test_a_confirm_is_read_after_a_while_and_then_the_event_loop_looks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PATIENCE, 0.3)
    async with connected() as site:
        await site.one_at_a_time()
        await site.until_confirmed(site.sent)
        async with asyncio.timeout(60):
            while not site.transport.is_reading():
                await asyncio.sleep(0.001)


async def test_the_event_loop_reads_each_confirm_of_messages_that_leave_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PATIENCE, 1e-9)
    async with connected() as site:
        for number in range(1, 3 * FEW):
            site.send()
            assert site.transport.is_reading()
            site.confirm(number)
            await site.until_confirmed(number)


@pytest.mark.usefixtures("patience")
async def test_messages_that_leave_together_are_confirmed_as_ever() -> None:
    async with connected() as site:
        for _ in range(10 * FEW):
            site.send()
        assert site.transport.is_reading()


async def test_the_end_of_a_connection_is_met_that_the_event_loop_does_not_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PATIENCE, 0.3)
    async with connected() as site:
        await site.one_at_a_time()
        site.broker.close()
        await soon(site.stream.read())
        assert site.stream.at_eof()
