"""Other numbers of a limit that is in use: of the youngest who declare it, and not without end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from atasks import LimitError
from atasks.connection import use
from atasks.policies.limit import Rule
from atasks.testing import soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.limits.definition import MAX_CHANGES

Connect = Callable[[], Awaitable[AMQPTransport]]


@pytest.fixture
async def connect(amqp_url: str, prefix: str) -> AsyncIterator[Connect]:
    """Connect as one more process would."""
    async with AsyncExitStack() as stack:

        async def connected() -> AMQPTransport:
            transport = AMQPTransport(amqp_url, "limits", prefix=prefix)
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
