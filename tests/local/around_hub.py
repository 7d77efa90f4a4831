"""Processes around a hub, spoken for by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atasks.testing import until
from atasks.transport.backends.local.link import SocketLink
from atasks.transport.backends.local.messages import PROTOCOL, Hello, Welcome
from atasks.wire import VERSION, Call
from tests.faults.history import settled


@asynccontextmanager
async def process(
    path: str, *, namespace: str | None = "default"
) -> AsyncIterator[tuple[SocketLink, list[object]]]:
    """A process around the hub, which has said `Hello` unless it has no namespace, and what it receives."""
    received: list[object] = []
    _, here = await asyncio.get_running_loop().create_unix_connection(SocketLink, path)
    here.receive = received.extend
    if namespace is not None:
        here.send(Hello(PROTOCOL, namespace, os.getpid()))
        await until(lambda: received and isinstance(received[0], Welcome), "it is welcome")
    try:
        yield here, received
    finally:
        here.abort()
        await settled(here.ended, "the end of the conversation")


def call(call_id: str, payload: bytes = b"payload", orphan: int = 0) -> Call:
    return Call(VERSION, call_id, "a.task", payload, "pickle", orphan=orphan)


def of(received: list[object], kind: type) -> list[object]:
    return [message for message in received if isinstance(message, kind)]
