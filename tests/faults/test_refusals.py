"""Messages over which the broker closes the channel: each ends alone, and the connection stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pika
import pytest
from pamqp.commands import Basic

import atasks
from atasks import (
    AccessRefused,
    CallConnectionLost,
    CallRefused,
    PayloadTooLarge,
    RemoteError,
    WorkerLost,
    atask,
    current_call,
)
from atasks.current import carried
from atasks.pipeline import map
from atasks.testing import soon, until
from atasks.tracking.fleet import Fleet
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.transport import AMQPTransport
from tests.broker import Broker
from tests.busy import calm

LIMIT = 1_000_000
"""Bytes that the broker takes in these tests, of which nobody was told."""
LARGE = 2_000_000

cargo: ContextVar[bytes] = ContextVar("cargo", default=b"")


@contextlib.contextmanager
def _limit(node: Broker) -> Iterator[None]:
    """Have the broker take smaller messages than its version does by default, on channels that are opened now."""
    default = node.evaluate("{ok, Size} = application:get_env(rabbit, max_message_size), Size.")
    set_limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    node.evaluate(set_limit.format(LIMIT))  # RabbitMQ 4 keeps it in the second place
    try:
        yield
    finally:
        node.evaluate(set_limit.format(default))


@pytest.fixture
def limited(node: Broker) -> Iterator[Broker]:
    """A broker that takes smaller messages than its version does by default."""
    with _limit(node):
        yield node


@pytest.fixture
def carried_cargo() -> Iterator[None]:
    atasks.carry(cargo)
    yield
    del carried[cargo.name]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    return f"case-{request.node.name.translate(str.maketrans('[]', '--'))}"[:60]


def _connections(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("connection")]


@contextlib.asynccontextmanager
async def _site(url: str, prefix: str, namespace: str) -> AsyncIterator[None]:
    async with (
        atasks.serve(url, namespace=namespace, prefix=prefix, grace=0),
        atasks.connect(url, namespace=namespace, prefix=prefix),
    ):
        yield


@pytest.mark.parametrize("what", ["result", "exception", "arguments", "context", "item"])
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_what_is_too_large_ends_alone(
    limited: Broker,
    prefix: str,
    cleanup: None,
    carried_cargo: None,
    namespace: str,
    what: str,
    delivery: Any,
    caplog: Any,
) -> None:
    runs: list[int] = []

    @atask(namespace=namespace, delivery=delivery)
    async def make(size: int) -> bytes:
        return bytes(size)

    @atask(namespace=namespace, delivery=delivery)
    async def fail(size: int) -> None:
        raise ValueError(bytes(size))

    @atask(namespace=namespace, delivery=delivery)
    async def take(value: bytes) -> int:
        return len(value)

    @atask(namespace=namespace, delivery=delivery)
    async def items(size: int) -> AsyncIterator[bytes]:
        yield b"first"
        yield bytes(size)
        yield b"last"

    @atask(namespace=namespace, delivery=delivery)
    async def innocent(n: int) -> int:
        runs.append(n)
        await asyncio.sleep(0.001)
        return n

    async def carry() -> None:
        cargo.set(bytes(LARGE))
        await take(b"")

    async def read() -> None:
        async for item in items(LARGE):
            assert item == b"first"

    guilty: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "result": lambda: make(LARGE),
        "exception": lambda: fail(LARGE),
        "arguments": lambda: take(bytes(LARGE)),
        "context": carry,
        "item": read,
    }
    async with _site(limited.url, prefix, namespace):
        assert await soon(innocent(0)) == 0
        for _ in range(2):  # while nobody knows the limit, and when it is known
            runs.clear()
            sent = [asyncio.create_task(innocent(n)) for n in range(100)]
            culprits = [asyncio.create_task(guilty[what]()) for _ in range(2)]
            sent += [asyncio.create_task(innocent(n)) for n in range(100, 200)]
            assert await soon(asyncio.gather(*sent)) == list(range(200))
            for culprit in culprits:
                if what == "exception":  # without what is large of it
                    with pytest.raises((RemoteError, ValueError)) as caught:
                        await soon(culprit)
                    assert not isinstance(caught.value, PayloadTooLarge)
                    assert "ValueError" in str(caught.value.__cause__) + str(caught.value)
                else:
                    with pytest.raises(PayloadTooLarge, match="over the limit"):
                        await soon(culprit)
            assert delivery == "at_least_once" or len(runs) == 200
        assert await soon(innocent(1)) == 1
    assert not _connections(caplog), "a channel that is closed is no connection that is lost"


async def test_calls_that_are_too_large_together_are_sent_one_by_one(
    limited: Broker, prefix: str, cleanup: None, carried_cargo: None, namespace: str, caplog: Any
) -> None:
    @atask(namespace=namespace, batch=64)
    async def take() -> int:
        return len(cargo.get())

    async with _site(limited.url, prefix, namespace):
        cargo.set(bytes(LIMIT // 10))
        assert await soon(asyncio.gather(*(take() for _ in range(40)))) == [LIMIT // 10] * 40
    assert not calm(caplog.records)


async def test_user_who_may_not_write_to_the_default_exchange(
    node: Broker, prefix: str, cleanup: None, namespace: str, caplog: Any
) -> None:
    @atask(namespace=namespace)
    async def echo(n: int) -> int:
        return n

    user = f"{prefix}-user"
    node.ctl("add_user", user, "pw")
    try:
        node.ctl("set_permissions", user, f"^{prefix}.*", f"^{prefix}.*", ".*")
        url = node.url.replace("guest:guest", f"{user}:pw")
        async with atasks.connect(url, namespace=namespace, prefix=prefix):
            for options in ({}, {"delivery": "at_most_once"}, {"batch": 64}):
                calls = (echo.options(**options)(n) for n in range(100))  # type: ignore[arg-type]
                for error in await soon(asyncio.gather(*calls, return_exceptions=True)):
                    assert isinstance(error, CallRefused)
                    assert "permission" in str(error)
                    assert user in str(error)
    finally:
        node.ctl("delete_user", user)
    assert not _connections(caplog)


async def test_worker_that_may_not_reply_does_not_start(
    node: Broker, prefix: str, cleanup: None, namespace: str
) -> None:
    user = f"{prefix}-user"
    node.ctl("add_user", user, "pw")
    try:
        node.ctl("set_permissions", user, f"^{prefix}.*", f"^{prefix}.*", ".*")
        url = node.url.replace("guest:guest", f"{user}:pw")
        with pytest.raises(AccessRefused, match="default"):
            async with atasks.serve(url, namespace=namespace, prefix=prefix, grace=0):
                pass
    finally:
        node.ctl("delete_user", user)


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_worker_that_may_reply_no_more_leaves_its_calls_to_others(
    node: Broker, prefix: str, cleanup: None, namespace: str, others: int, delivery: Any
) -> None:
    begun = 0

    @atask(namespace=namespace, delivery=delivery, batch=False)
    async def name() -> Any:
        nonlocal begun
        begun += 1
        while begun < 20:
            await asyncio.sleep(0.01)
        return current_call().state

    @asynccontextmanager
    async def named(state: str) -> AsyncIterator[str]:
        yield state

    user = f"{prefix}-user"
    await asyncio.to_thread(node.ctl, "add_user", user, "pw")
    permit = partial(asyncio.to_thread, node.ctl, "set_permissions", user, ".*")
    try:
        await permit(".*", ".*")
        url = node.url.replace("guest:guest", f"{user}:pw")
        serve = partial(atasks.serve, namespace=namespace, prefix=prefix, concurrency=20, grace=0)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(serve(url, lifespan=named("limited")))
            if others:
                await stack.enter_async_context(serve(node.url, lifespan=named("well")))
            await stack.enter_async_context(atasks.connect(node.url, namespace=namespace, prefix=prefix))
            calls = [asyncio.create_task(name()) for _ in range(19)]  # they wait for one more
            await until(lambda: begun == 19)
            await permit("^$", ".*")
            # A channel may remember for as long as it lives what its user was permitted.
            await asyncio.to_thread(node.ctl, "close_all_user_connections", user, "revoked")
            calls.append(asyncio.create_task(name()))
            if others:
                for result in await soon(asyncio.gather(*calls, return_exceptions=True)):
                    lost = isinstance(result, WorkerLost | CallConnectionLost)
                    assert result in ("well", "limited") or (lost and delivery == "at_most_once")
                await until_served(name, {"well"})
            await permit(".*", ".*")
            if others:
                await until_served(name, {"limited", "well"})
            else:
                for result in await soon(asyncio.gather(*calls, return_exceptions=True)):
                    assert result == "limited" or delivery == "at_most_once"
                assert await soon(name()) == "limited"
    finally:
        await asyncio.to_thread(node.ctl, "delete_user", user)


async def until_served(name: Any, states: set[str]) -> None:
    """Return when calls are served by those workers, by each of them and no other."""
    async with asyncio.timeout(90):
        while set(await asyncio.gather(*(name() for _ in range(20)), return_exceptions=True)) != states:
            pass


class _Odd(Outgoing):
    """A message that nobody sends: the broker closes the channel over it, and does not say over which."""

    __slots__ = ("ending",)

    def __init__(self, body: bytes, expiration: str = "-1") -> None:
        properties = Basic.Properties(message_id=f"odd-{id(self)}", expiration=expiration)
        super().__init__(body, "nowhere", properties, mandatory=False)
        self.ending: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()

    def confirmed(self) -> None:
        self.ending.cancel()

    def rejected(self, refusal: Refusal) -> None:
        self.ending.set_result(refusal)


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_broker_does_not_say_which_message(
    node: Broker, prefix: str, cleanup: None, namespace: str, delivery: Any, caplog: Any
) -> None:
    @atask(namespace=namespace, delivery=delivery)
    async def innocent(n: int) -> int:
        return n

    async with (
        atasks.serve(node.url, namespace=namespace, prefix=prefix, grace=0),
        atasks.connect(node.url, namespace=namespace, prefix=prefix) as transport,
    ):
        assert isinstance(transport, AMQPTransport)
        assert await soon(innocent(0)) == 0
        for _ in range(3):
            sent = [asyncio.create_task(innocent(n)) for n in range(30)]
            await asyncio.sleep(0)
            odd = [_Odd(b"x"), _Odd(b"x", "99999999999999")]
            for message in odd:
                transport.session.outbox.put(message)
            sent += [asyncio.create_task(innocent(n)) for n in range(30, 60)]
            results = await soon(asyncio.gather(*sent, return_exceptions=True))
            for n, result in enumerate(results):
                if delivery == "at_least_once":
                    assert result == n
                else:  # some of them never arrived, and nobody can know which
                    assert result == n or isinstance(result, atasks.CallConnectionLost)
            for message in odd:
                assert "expiration" in (await soon(message.ending)).reason
        await soon(transport.session.outbox.flushed())
        assert await soon(innocent(1)) == 1
    assert not _connections(caplog)


@pytest.mark.parametrize("text", ["\ud800", "k" * 300, "\N{GRINNING FACE}" * 64])
async def test_message_that_cannot_be_written_leaves_confirms_in_step(
    node: Broker, prefix: str, cleanup: None, namespace: str, text: str, caplog: Any
) -> None:
    async with atasks.connect(node.url, namespace=namespace, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        outbox, odd = transport.session.outbox, _Odd(b"x", "1000")
        odd.routing_key = text
        good = [_Odd(b"x", "1000") for _ in range(20)]
        for message in (*good[:10], odd, *good[10:]):
            outbox.put(message)
        assert "cannot be written" in (await soon(odd.ending)).reason
        await until(lambda: all(message.ending.cancelled() for message in good))
        assert not len(outbox)
    assert not _connections(caplog)


async def test_run_of_a_pipeline_over_the_limit(
    limited: Broker, prefix: str, cleanup: None, namespace: str, caplog: Any
) -> None:
    """A record of a run is a message too."""

    @atask(namespace=namespace)
    async def grow(size: int) -> bytes:
        return bytes(size)

    async with _site(limited.url, prefix, namespace):
        run = map(grow)
        for _ in range(2):
            handle = await soon(run.submit(LARGE))
            with pytest.raises(PayloadTooLarge):
                await soon(handle)
        assert len(await soon(await soon(run.submit(10)))) == 10
    assert not _connections(caplog)


async def test_dead_messages_beside_one_over_the_limit(
    node: Broker, prefix: str, cleanup: None, namespace: str
) -> None:
    """None is put back twice. Those that the broker has not confirmed stay: it took them before the one that is
    too large, and a queue that is full, or whose node stops, may yet be without them."""
    home, small = f"{prefix}.home", {f"small-{n}" for n in range(200)}
    queue = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{home}">>))'
    async with _site(node.url, prefix, namespace):
        with node.channel() as channel:
            channel.queue_declare(home, durable=True)
            for name in (*sorted(small), "large"):
                properties = pika.BasicProperties(message_id=name, headers={"x-first-death-queue": home})
                channel.basic_publish("", f"{prefix}.dead", bytes(LARGE if name == "large" else 10), properties)
    with _limit(node):
        async with atasks.connect(node.url, namespace=namespace, prefix=prefix) as transport:
            assert isinstance(transport, AMQPTransport)
            fleet = Fleet(transport)
            await until_dead(fleet, 201)
            async with fleet.dead_letters() as dead:
                node.evaluate(f"{queue}, sys:suspend(amqqueue:get_pid(Q)).")  # nothing is confirmed meanwhile
                try:
                    problems = await soon(dead.retry(dead.messages))
                finally:
                    node.evaluate(f"{queue}, sys:resume(amqqueue:get_pid(Q)).")
                told = {message.name: problems.pop(message.number) for message in dead.messages}
            await until_dead(fleet, 201)
    assert not problems
    assert "larger than configured" in told.pop("large")
    assert told == dict.fromkeys(small, "it may be in both queues")
    with node.channel() as channel:
        back: list[str] = []
        while (found := channel.basic_get(home, auto_ack=True)[1]) is not None:
            back.append(found.message_id)
    assert sorted(back) == sorted(small)


async def until_dead(fleet: Fleet, expected: int) -> None:
    """Return when so many dead messages are ready."""
    async with asyncio.timeout(30):
        while await fleet.dead_count() != expected:
            await asyncio.sleep(0.01)


async def test_timeouts_that_no_broker_takes(
    node: Broker, prefix: str, cleanup: None, namespace: str, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit that older peers, and others, may send: the worker, and what it calls, take it for the
    longest there is."""
    monkeypatch.setattr("atasks.checks.MAX_TIMEOUT", 2**53)  # as if it was not refused where it is given

    @atask(namespace=namespace)
    async def inner(n: int) -> int:
        return n

    @atask(namespace=namespace)
    async def outer(n: int) -> int:
        return await inner(n)

    async with _site(node.url, prefix, namespace):
        for task in (inner, outer):
            for timeout in (2**53 / 1000, 1e9):
                assert await soon(task.options(timeout=timeout)(3)) == 3
    assert not _connections(caplog)


async def test_pause_between_reconnects_grows(node: Broker, prefix: str, cleanup: None, namespace: str) -> None:
    async with atasks.connect(node.url, namespace=namespace, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        loop, pauses = asyncio.get_running_loop(), []
        for _ in range(5):
            link = transport.session.link
            assert link is not None
            since = loop.time()
            link.lose("a test")
            await until(lambda link=link: transport.session.link not in (None, link))  # type: ignore[misc]
            pauses.append(loop.time() - since)
        assert pauses[4] > 0.4 > pauses[0]
