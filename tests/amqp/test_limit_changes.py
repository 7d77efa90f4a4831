"""Other numbers of a limit that is in use: of the youngest who declare it, and not without end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from atasks import LimitError
from atasks.connection import use
from atasks.policies.limit import Rule
from atasks.testing import soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.limits.definition import MAX_CHANGES
from tests.faults.proxy import Proxy

Connect = Callable[..., Awaitable[AMQPTransport]]


@pytest.fixture
async def connect(amqp_url: str, prefix: str) -> AsyncIterator[Connect]:
    """Connect as one more process would."""
    async with AsyncExitStack() as stack:

        async def connected(proxy: Proxy | None = None) -> AMQPTransport:
            url = amqp_url if proxy is None else proxy.url()
            transport = AMQPTransport(url, "limits", prefix=prefix)
            await use(stack, transport)
            return transport

        yield connected


async def ready(transport: AMQPTransport, kind: str) -> int:
    """Tokens that nobody holds."""
    link = transport.session.link
    assert link is not None
    state = await link.queue_state(f"{transport.session.topology.limit('x', None)}.{kind}")
    return -1 if state is None else state[0]


async def test_tokens_that_are_held_go_when_they_come_back(connect: Connect) -> None:
    one, two = await connect(), await connect()
    assert one.limits is not None
    assert two.limits is not None
    held = [await soon(one.limits.take("x", None, Rule(3, 4, 0.05))) for _ in range(3)]
    waiting = two.limits.take("x", None, Rule(1, 2, 0.05))
    for token in held:
        token.begin()
        token.release()
    (await soon(waiting)).release()
    left = (-1, -1)
    while left != (1, 2):  # the test's own deadline ends it
        left = (await ready(two, "places"), await ready(two, "rate") + await ready(two, "cooling"))


async def test_declarations_that_take_turns_are_an_error(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    first = await connect()
    assert first.limits is not None
    (await soon(first.limits.take("x", None, Rule(1, 0, 1.0)))).release()
    for number in range(2, 2 + MAX_CHANGES):
        process = await connect()
        assert process.limits is not None
        (await soon(process.limits.take("x", None, Rule(number, 0, 1.0)))).release()
        await until(lambda number=number: f"is at_once={number} from now on" in caplog.text)  # type: ignore[misc]
    last = await connect()
    assert last.limits is not None
    with pytest.raises(LimitError, match=rf"at_once=99 here, and at_once={1 + MAX_CHANGES} where"):
        await soon(last.limits.take("x", None, Rule(99, 0, 1.0)))
    (await soon(first.limits.take("x", None, Rule(1, 0, 1.0)))).release()
    with pytest.raises(LimitError, match="1 in 1 s here"):
        await soon(last.limits.take("x", None, Rule(0, 1, 1.0)))
    with pytest.raises(LimitError, match=r"2 in 9 s here"):
        await soon(last.limits.take("x", None, Rule(2, 2, 9.0)))


@pytest.fixture
def proxies(amqp_url: str) -> Iterator[tuple[Proxy, Proxy]]:
    """Two ways to the broker that can be cut."""
    pair = Proxy(amqp_url), Proxy(amqp_url)
    yield pair
    for proxy in pair:
        proxy.close()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[Link]:
    """The links that have found a lock taken, in the order of their looks."""
    lock, found = Link.lock, list[Link]()

    async def noted(link: Link, name: str) -> bool:
        taken = await lock(link, name)
        if not taken:
            found.append(link)
        return taken

    monkeypatch.setattr(Link, "lock", noted)
    return found


async def test_who_wants_nothing_of_a_limit_declares_nothing(
    connect: Connect, proxies: tuple[Proxy, Proxy], refused: list[Link]
) -> None:
    """Nor one that is back from a cut, and for whom others have waited in vain before it."""
    others, process = await connect(), await connect(proxies[0])
    assert others.limits is not None
    assert process.limits is not None
    (await soon(others.limits.take("x", None, Rule(3, 0, 0.0)))).release()
    for key in (None, "a"):
        assert others.session.link is not None
        lock = f"{others.session.topology.limit('x', None)}.lock"
        assert await others.session.link.lock(lock)
        refused.clear()
        waiting = asyncio.create_task(process.limits.take("x", key, Rule(1, 0, 0.0)))
        await until(lambda: refused, "it stands at the lock")
        waiting.cancel()
        proxies[0].drop()
        await asyncio.wait((waiting,))
        await others.session.link.delete_queue(lock)
        (await soon(process.limits.take(f"y{key}", None, Rule(1, 0, 0.0)))).release()  # it is that one's turn next
        assert await ready(others, "places") == 3
    (await soon(process.limits.take("x", None, Rule(1, 0, 0.0)))).release()
    await until_places(others, 1)
    for key in (None, "a"):  # who wants it again after that has it
        (await soon(process.limits.take("x", key, Rule(1, 0, 0.0)))).release()


async def test_who_comes_while_a_limit_is_let_go_of_has_it(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, refused: list[Link]
) -> None:
    others, process = await connect(), await connect()
    assert process.limits is not None
    take = partial(process.limits.take, "x", None, Rule(1, 0, 0.0))
    lock = f"{others.session.topology.limit('x', None)}.lock"
    there, own = others.session.link, process.session.link
    assert there is not None
    assert await there.lock(lock)
    leaves = asyncio.create_task(take())
    await until(lambda: refused, "it stands at the lock")
    leaves.cancel()
    await asyncio.wait((leaves,))
    delete_queue, came = Link.delete_queue, list[asyncio.Task[Any]]()

    async def come(link: Link, name: str) -> None:
        if link is own and name == lock and not came:
            came.append(asyncio.create_task(take()))
            await asyncio.sleep(0)
        await delete_queue(link, name)

    monkeypatch.setattr(Link, "delete_queue", come)
    await there.delete_queue(lock)
    await until(lambda: came, "its turn has come, and nobody wanted the limit")
    (await soon(came[0])).release()


async def test_the_youngest_declaration_holds_when_all_have_lost_their_connections(
    connect: Connect, proxies: tuple[Proxy, Proxy]
) -> None:
    old, young = await connect(proxies[0]), await connect(proxies[1])
    for process, number in ((old, 1), (young, 3), (old, 1)):
        assert process.limits is not None
        (await soon(process.limits.take("x", None, Rule(number, 0, 0.0)))).release()
    for proxy in proxies:
        proxy.refuse()
        proxy.drop()
    for process, number, proxy in ((old, 1, proxies[0]), (young, 3, proxies[1])):
        proxy.resume()
        assert process.limits is not None
        tokens = [await soon(process.limits.take("x", None, Rule(number, 0, 0.0))) for _ in range(3)]
        for token in tokens:
            token.release()
        await until_places(process, 3)


async def test_who_is_back_to_a_limit_of_another_kind_is_told(
    connect: Connect, proxies: tuple[Proxy, Proxy]
) -> None:
    old, young = await connect(proxies[0]), await connect()
    assert old.limits is not None
    assert young.limits is not None
    (await soon(old.limits.take("x", None, Rule(1, 0, 0.0)))).release()
    proxies[0].refuse()
    proxies[0].drop()
    assert young.session.link is not None
    while await young.session.link.queue_state(young.session.topology.limit("x", None)) != (0, 0):
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(old.limits.take("x", None, Rule(1, 0, 0.0)))
    (await soon(young.limits.take("x", None, Rule(0, 5, 1.0)))).release()
    proxies[0].resume()
    with pytest.raises(LimitError, match="at_once=1 here, and 5 in 1 s"):
        await soon(waiting)


async def until_places(transport: AMQPTransport, count: int) -> None:
    while await ready(transport, "places") != count:  # the test's own deadline ends it
        await asyncio.sleep(0.01)


async def tokens_of(transport: AMQPTransport, key: str) -> int:
    """Tokens for a value of a key."""
    link = transport.session.link
    assert link is not None
    state = await link.queue_state(f"{transport.session.topology.limit('x', key)}.places")
    return -1 if state is None else state[0]


async def test_values_of_a_key_have_the_number_of_the_youngest(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The number of the youngest values holds, as without a key, whichever values each process uses."""
    caplog.set_level(logging.WARNING)
    old, young = await connect(), await connect()
    assert old.limits is not None
    assert young.limits is not None
    (await soon(old.limits.take("x", "a", Rule(1, 0, 0.0)))).release()
    (await soon(young.limits.take("x", "b", Rule(2, 0, 0.0)))).release()
    assert "limit 'x' is at_once=2 from now on: it was at_once=1" in caplog.text
    (await soon(old.limits.take("x", "c", Rule(1, 0, 0.0)))).release()
    await until_ready(old, "c", 2)
    (await soon(young.limits.take("x", "a", Rule(2, 0, 0.0)))).release()
    await until_ready(old, "a", 2)


async def test_values_of_a_key_are_of_one_kind(connect: Connect) -> None:
    one, two, three = await connect(), await connect(), await connect()
    assert one.limits is not None
    assert two.limits is not None
    assert three.limits is not None
    token = await soon(one.limits.take("x", "a", Rule(1, 0, 0.0)))
    for rule in (Rule(0, 5, 1.0), Rule(1, 5, 1.0)):
        with pytest.raises(LimitError, match=rf"{rule} here, and at_once=1 where"):
            await soon(two.limits.take("x", "b", rule))
    with pytest.raises(LimitError, match="5 in 1 s here, and at_once=1 where"):
        await soon(three.limits.take("x", None, Rule(0, 5, 1.0)))
    token.release()
    (await soon(two.limits.take("x", "b", Rule(1, 0, 0.0)))).release()


async def until_ready(transport: AMQPTransport, key: str, count: int) -> None:
    found = -1
    while found != count:  # the test's own deadline ends it
        found = await tokens_of(transport, key)
