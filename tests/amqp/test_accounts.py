"""Callers of one broker, and what one of them can do to the calls of another."""

# Private attributes: `Worker._finished` and its `_replies`: no public way lists the ids that a worker remembers.

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused
from msgspec.msgpack import encode

import atasks
from atasks import UnknownRun, atask
from atasks.pipeline import map
from atasks.testing import soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.topology import Topology
from tests.amqp.peer import Peer
from tests.brokers.base import Broker
from tests.keys import KeyFiles

ASK, CREDIT = 4, 7


@pytest.fixture
def stranger_queue(prefix: str) -> str:
    """The name of a reply queue of another user."""
    return Topology(prefix, "default").new_reply_queue("stranger")


def _atasks(namespace: str) -> Any:
    @atask(namespace=namespace, name="secret")
    async def secret(number: int) -> str:
        return f"secret {number}"

    @atask(namespace=namespace, name="numbers", window=2)
    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @atask(namespace=namespace, name="forever")
    async def forever() -> None:
        await asyncio.Event().wait()

    return secret, numbers, forever


def test_reply_queues_keep_users_apart() -> None:
    topology = Topology("shop", "default")
    queues = {
        user: topology.new_reply_queue(user) for user in ("ann", "ann.b", "ann-b", "änn", "x" * 200, "a/b c")
    }
    for user, name in queues.items():
        assert name.startswith("shop.r."), user
        assert re.fullmatch(r"[A-Za-z0-9_.:@#,/+ -]{1,200}", name), "aiormq takes no other names"
        assert topology.is_reply_queue(name)
        assert topology.are_of_one_caller(name, topology.new_reply_queue(user))
        own = re.compile(re.escape(name.rpartition(".")[0]) + r"\..*")
        assert [other for other, queue in queues.items() if own.fullmatch(queue)] == [user]
        others = [queue for other, queue in queues.items() if other != user]
        assert not any(topology.are_of_one_caller(name, other) for other in others)
    assert queues["ann"].startswith("shop.r.ann.")
    older = "shop.r.0123456789abcdef"
    assert topology.are_of_one_caller(older, "shop.r.fedcba9876543210"), "of callers that name no user"
    assert not topology.are_of_one_caller(older, queues["ann"])


async def test_the_reply_queue_names_the_user(amqp_url: str, prefix: str, amqp_leaks: None) -> None:
    async with atasks.connect(amqp_url, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        user = urlsplit(amqp_url).username
        assert re.fullmatch(rf"{re.escape(prefix)}\.r\.{user}\.[0-9a-f]{{32}}", transport.session.reply_queue)


async def test_a_result_is_told_to_nobody_else(
    amqp_url: str, prefix: str, amqp_leaks: None, stranger_queue: str
) -> None:
    namespace = f"accounts-{prefix}"
    secret, _, forever = _atasks(namespace)
    async with (
        atasks.serve(amqp_url, prefix=prefix, namespace=namespace, grace=0) as worker,
        Peer.connect(amqp_url, prefix, namespace) as peer,
    ):
        transport = worker.transport
        assert isinstance(transport, AMQPTransport)
        await secret(1)
        running = asyncio.create_task(forever())
        await until(lambda: worker.held == 1)
        assert worker._finished is not None
        ids = [worker.runs[0].call.id, *worker._finished._replies]
        assert len(ids) == 2
        queue = await peer.channel.declare_queue(stranger_queue, auto_delete=True)
        mine = await peer.consume(queue.name)
        key = f"queue:{namespace}:default"
        for address in (queue.name, peer.replies.name):
            await peer.control(encode([[ASK, 1, ids]]), key, reply_to=address)
        control = await peer.channel.declare_queue(f"{prefix}.c.a-worker.1", exclusive=True)
        asked = await peer.consume(control.name)
        await peer.control(encode([[ASK, 1, ids]]), key, reply_to=control.name)
        for _ in range(2):  # a worker is told what is held, and what has ended
            await soon(asked.get())
        assert mine.empty()
        assert peer.unread.empty()
        running.cancel()


async def test_a_stream_is_not_taken_over(
    amqp_url: str, prefix: str, amqp_leaks: None, stranger_queue: str
) -> None:
    namespace = f"accounts-{prefix}"
    _, numbers, _ = _atasks(namespace)
    async with (
        atasks.serve(amqp_url, prefix=prefix, namespace=namespace, grace=0) as worker,
        Peer.connect(amqp_url, prefix, namespace) as peer,
    ):
        stream = numbers(50)
        assert await anext(stream) == 0
        (run,) = worker.runs
        queue = await peer.channel.declare_queue(stranger_queue, auto_delete=True)
        mine = await peer.consume(queue.name)
        for items in (1, 10, 50):
            credit = encode([[CREDIT, 1, run.call.id, items, items, 0]])
            await peer.control(credit, f"worker:{worker.id}", reply_to=queue.name)
        assert [number async for number in stream] == list(range(1, 50))
        assert mine.empty()


@pytest.fixture
def accounts(controllable_broker: Broker, prefix: str) -> Iterator[dict[str, str]]:
    """URLs of two callers and of a worker with the permissions that docs/wire.md gives them, by name."""
    broker, parts = controllable_broker, urlsplit(controllable_broker.url)
    own = re.escape(prefix)
    worker = rf"^({own}\..*|amq\.default)$"
    permissions = {"worker": (worker, worker, worker)}
    for user in ("ann", "bob"):
        entities = rf"{own}\.(control|events|r\.{user}-{own}\..*|run\..*)"
        permissions[user] = (f"^{entities}$", rf"^({entities}|amq\.default)$", f"^{entities}$")
    urls: dict[str, str] = {}
    names = {name: f"{name}-{prefix}" for name in permissions}
    for name, (configure, write, read) in permissions.items():
        broker.ctl("add_user", names[name], "secret")
        broker.ctl("set_permissions", "-p", "/", names[name], configure, write, read)
        urls[name] = f"amqp://{names[name]}:secret@{parts.hostname}:{parts.port}/"
    yield urls
    for name in names.values():
        broker.ctl("delete_user", name)


async def test_accounts_with_least_permissions(accounts: dict[str, str], prefix: str) -> None:
    namespace = f"accounts-{prefix}"
    secret, numbers, _ = _atasks(namespace)
    async with atasks.serve(accounts["worker"], prefix=prefix, namespace=namespace, grace=0):
        for user in ("ann", "bob"):
            async with atasks.connect(accounts[user], prefix=prefix, namespace=namespace) as transport:
                assert isinstance(transport, AMQPTransport)
                assert await secret(2) == "secret 2"
                assert await secret.options(on_no_worker="error")(3) == "secret 3"
                assert [number async for number in numbers(5)] == list(range(5))
                other = accounts["bob" if user == "ann" else "ann"]
                connection = await aio_pika.connect(other)
                async with connection:
                    for passive in (False, True):
                        channel = await connection.channel()
                        with pytest.raises(ChannelAccessRefused):
                            queue = await channel.declare_queue(
                                transport.session.reply_queue,
                                durable=True,
                                passive=passive,
                                arguments=transport.session.topology.reply_arguments(),
                            )
                            await queue.get(fail=False)


async def test_accounts_with_least_permissions_and_keys(
    accounts: dict[str, str], prefix: str, tmp_path: Path
) -> None:
    """The permissions are enough for sealed calls, streams and runs, and no account reads another's."""
    namespace = f"accounts-{prefix}"
    secret, numbers, _ = _atasks(namespace)
    keys = KeyFiles(tmp_path, ann="", bob="")
    options: dict[str, Any] = {"prefix": prefix, "namespace": namespace}
    async with (
        atasks.serve(accounts["worker"], keys=keys.worker, grace=0, **options),
        atasks.connect(accounts["bob"], keys=keys.caller("bob"), **options) as bob,
        atasks.connect(accounts["ann"], keys=keys.caller("ann"), **options) as ann,
    ):
        assert await secret(2) == "secret 2"
        assert await secret.options(on_no_worker="error", delivery="at_most_once")(3) == "secret 3"
        assert [number async for number in numbers(5)] == list(range(5))
        run = await map(secret).submit(4)
        assert await run == "secret 4"
        assert isinstance(bob, AMQPTransport)
        assert isinstance(ann, AMQPTransport)
        assert bob.records is not None
        with pytest.raises(UnknownRun):  # it is sealed with the key of ann
            await bob.records.read(run.id)
        assert dict(ann.session.seals.refused if ann.session.seals else {}) == {}
