"""Processes that leave while their connection is lost: no reply queue of theirs stays at the broker."""

# Private attributes: `_records`, whose `restore` is a step of a reconnect after the reply queue was declared.

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from aiormq.exceptions import ChannelAccessRefused

import atasks
from atasks.testing import soon, until
from atasks.transport.backends.amqp import AMQPTransport, connection
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.caller.calling import Calling
from atasks.transport.backends.amqp.session import State
from tests.broker import Broker
from tests.faults.proxy import BIND, Proxy

NEVER = 1e6
"""Seconds."""


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[Proxy]:
    proxy = Proxy(amqp_url)
    yield proxy
    proxy.close()


@pytest.fixture
def transport(proxy: Proxy, prefix: str, amqp_leaks: None) -> AMQPTransport:
    """A caller behind the proxy; `amqp_leaks` looks at what it leaves."""
    return AMQPTransport(proxy.url(), prefix=prefix)


async def test_leaving_before_the_next_attempt_to_connect(
    transport: AMQPTransport, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BACKOFF", (NEVER, NEVER))
    await transport.connect()
    proxy.drop()
    await until(lambda: not transport.is_connected)
    await soon(transport.disconnect())


async def test_leaving_while_the_next_link_is_set_up(
    transport: AMQPTransport, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await transport.connect()
    declared = asyncio.Event()

    async def stuck(link: Link) -> None:
        declared.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(transport._records, "restore", stuck)
    proxy.drop()
    await soon(declared.wait())
    await soon(transport.disconnect())


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cut_beside_the_deletion_of_the_reply_queue(
    transport: AMQPTransport, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, when: Literal["before", "after"]
) -> None:
    """The cut comes before the broker hears of the deletion, or before this side hears that it was done."""
    await transport.connect()
    leave = Calling.leave

    async def cut(calling: Calling, link: Link) -> None:
        monkeypatch.undo()
        if when == "after":
            await leave(calling, link)
        proxy.drop()
        await leave(calling, link)

    monkeypatch.setattr(Calling, "leave", cut)
    await soon(transport.disconnect())


async def test_cut_before_the_last_words_are_confirmed(transport: AMQPTransport, proxy: Proxy) -> None:
    await transport.connect()
    outbox = transport.session.outbox
    proxy.mute("to_client", "publish")
    outbox.put(transport.session.control([], "nobody listens"))
    leaving = asyncio.create_task(transport.disconnect())
    await until(lambda: proxy.swallowed("to_client", "publish"))
    proxy.drop()
    await soon(leaving)
    assert len(outbox) == 0


async def test_leaving_while_the_broker_cannot_be_reached(
    proxy: Proxy, prefix: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """One attempt is made. The queue stays until it expires."""
    transport = AMQPTransport(proxy.url(), prefix=prefix)
    await transport.connect()
    proxy.refuse()
    proxy.drop()
    await until(lambda: not transport.is_connected)
    caplog.set_level(logging.INFO, "atasks.amqp")
    await soon(transport.disconnect())
    assert "stay at the broker until they expire" in caplog.text
    left = await asyncio.to_thread(broker.clear, prefix)
    assert [name.startswith(f"{prefix}.r.") for name in left] == [True]


@pytest.fixture
def calm(amqp_url: str, prefix: str) -> AMQPTransport:
    """A caller whose link is healthy."""
    return AMQPTransport(amqp_url, prefix=prefix)


async def test_leaving_while_the_broker_does_not_answer_who_binds_a_queue(
    proxy: Proxy, prefix: str, amqp_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else that is asked over the channel of that question is answered: the end waited for that too."""
    proxy.leave_unasked(f"{prefix}.q.default.default", question=BIND)
    async with atasks.serve(proxy.url(), prefix=prefix, grace=0):
        await until(lambda: proxy.swallowed("to_broker") > 0)
        began = time.monotonic()
    assert time.monotonic() - began < 12
    assert "the broker had not answered everything" in caplog.text
    assert "0 messages" not in caplog.text


async def test_last_words_that_the_broker_refuses_are_not_said_again(
    calm: AMQPTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    await calm.connect()
    opened: list[Link] = []
    open_link, leave = Link.open, Calling.leave

    async def counted(*args: Any) -> Link:
        opened.append(await open_link(*args))
        return opened[-1]

    async def refused(calling: Calling, link: Link) -> None:
        monkeypatch.setattr(Calling, "leave", leave)
        raise ChannelAccessRefused("not for you")

    monkeypatch.setattr(Link, "open", counted)
    monkeypatch.setattr(Calling, "leave", refused)
    await soon(calm.disconnect())
    assert not opened


async def test_who_leaves_while_another_one_does_returns_when_all_is_closed(
    calm: AMQPTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    await calm.connect()
    saying, said = asyncio.Event(), asyncio.Event()
    leave = Calling.leave

    async def slow(calling: Calling, link: Link) -> None:
        saying.set()
        await said.wait()
        await leave(calling, link)

    monkeypatch.setattr(Calling, "leave", slow)
    first = asyncio.create_task(calm.disconnect())
    await soon(saying.wait())
    second = asyncio.create_task(calm.disconnect())
    await asyncio.wait((second,), timeout=0.2)
    assert not second.done()
    said.set()
    await soon(second)
    assert calm.session.state is State.CLOSED
    await soon(first)


async def test_an_error_of_last_words_that_are_cut_short_is_looked_at(
    calm: AMQPTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leaves is cancelled, and so are the last words, which end with an error."""
    await calm.connect()
    unseen: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context["message"]))
    saying = asyncio.Event()

    async def stubborn(calling: Calling, link: Link) -> None:
        try:
            saying.set()
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("it went meanwhile")

    monkeypatch.setattr(Calling, "leave", stubborn)
    leaving = asyncio.create_task(calm.disconnect())
    await soon(saying.wait())
    leaving.cancel()
    await soon(asyncio.wait((leaving,)))
    assert leaving.cancelled()
    del leaving  # it keeps the frames that know of the task
    gc.collect()
    assert not unseen
