"""Clients of the page that take their time, and those beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from atasks.testing import soon, until
from atasks_cli import page_server
from atasks_cli.page_server import PageServer

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer "/" at once, and anything else without an end."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
    if scope["path"] == "/":
        await send({"type": "http.response.body", "body": b"x" * 1000})
        return
    for _ in range(900):
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(0.05)


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    config = uvicorn.Config(answer, port=0, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
    server = PageServer(config, "")
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def test_who_sends_no_request_is_parted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is none; who asks again and again over one connection, and who is answered, stay."""
    monkeypatch.setattr(page_server, "HEAD_SECONDS", 1.0)
    async with serving() as port:
        slow, writing = await asyncio.open_connection("127.0.0.1", port)
        streaming, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(REQUEST.replace(b"/ ", b"/stream ", 1))
        await soon(streaming.readuntil(b"\r\n\r\nx"))
        often, asked = await asyncio.open_connection("127.0.0.1", port)
        writing.write(b"GET / HTTP/1.1\r\nX: ")
        over = asyncio.create_task(slow.read())
        while not over.done():  # the test's own deadline ends it
            with suppress(ConnectionError):
                writing.write(b"a")
            asked.write(REQUEST)
            await soon(often.readuntil(b"x" * 1000))
            await asyncio.sleep(0.1)
        with suppress(ConnectionError):
            assert over.result() == b""
        assert await soon(streaming.read(1)) == b"x"
        for writer in (writing, asking, asked):
            writer.close()
