"""Callers of one broker, and what one of them can do to the calls of another."""

# Private attributes: `Worker._finished` and its `_replies`: no public way lists the ids that a worker remembers.

from __future__ import annotations

import asyncio
import re
import shlex
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused
from msgspec.msgpack import encode

import atasks
from atasks import AccessRefused, Limit, UnknownRun, atask
from atasks.pipeline import map
from atasks.testing import soon, until
from atasks.tracking.fleet import Fleet
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.topology import Topology
from tests.amqp.peer import Peer
from tests.brokers.base import Broker
from tests.keys import KeyFiles

ASK, CREDIT = 4, 7
PAGE = Path(__file__).parents[2] / "docs" / "security.md"


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
    broker = controllable_broker
    own = re.escape(prefix)
    worker = rf"^({own}\..*|amq\.default)$"
    permissions = {"worker": (worker, worker, worker)}
    for user in ("ann", "bob"):
        entities = rf"{own}\.(control|events|r\.{user}-{own}\..*|run\..*)"
        permissions[user] = (f"^{entities}$", rf"^({entities}|amq\.default)$", f"^{entities}$")
    urls: dict[str, str] = {}
    names = {name: f"{name}-{prefix}" for name in permissions}
    for name, allowed in permissions.items():
        urls[name] = broker.add_user(names[name])
        broker.permit(names[name], "/", *allowed)
    yield urls
    for name in names.values():
        broker.remove_user(name)


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


async def test_an_account_hears_of_calls_of_others_and_reaches_no_queue_of_theirs(
    accounts: dict[str, str], prefix: str
) -> None:
    namespace = f"accounts-{prefix}"
    secret, _, forever = _atasks(namespace)
    async with (
        atasks.serve(accounts["worker"], prefix=prefix, namespace=namespace, grace=0) as worker,
        atasks.connect(accounts["bob"], prefix=prefix, namespace=namespace),
        await aio_pika.connect(accounts["ann"]) as connection,
    ):
        assert isinstance(worker.transport, AMQPTransport)
        topology = worker.transport.session.topology
        for queue in (topology.work("default"), topology.dead, worker.transport.session.reply_queue):
            for order in ("get", "delete", "purge"):
                channel = await connection.channel()
                found = await channel.get_queue(queue, ensure=False)
                with pytest.raises(ChannelAccessRefused):
                    await (found.get(fail=False) if order == "get" else getattr(found, order)())
        channel = await connection.channel()
        own = await channel.declare_queue(f"{prefix}.r.ann-{prefix}.listening", auto_delete=True)
        await own.bind(topology.control, f"queue:{namespace}:default")
        heard: asyncio.Queue[Any] = asyncio.Queue()
        await own.consume(heard.put, no_ack=True)
        running = asyncio.create_task(forever())
        await until(lambda: worker.held == 1, "it runs")
        call_id = worker.runs[0].call.id
        running.cancel()
        assert call_id.encode() in (await soon(heard.get())).body
        await channel.default_exchange.publish(aio_pika.Message(b"anything"), topology.work("default"))
        await until(lambda: worker.bad_messages == 1, "it reaches the queue, and nothing else comes of it")
        assert await soon(secret(1)) == "secret 1"


@pytest.fixture
def commands(controllable_broker: Broker) -> Iterator[dict[str, list[str]]]:
    """The commands of docs/security.md, carried out: those that set permissions, by user.

    Their names get an ending: another process of the tests may have the same broker do these commands just now.
    """
    ending = uuid.uuid4().hex[:8]
    block = re.search(r"```text\n(rabbitmqctl add_vhost.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    done: list[list[str]] = []
    try:
        text = re.sub(r"\b(shop|worker|ann)\b", rf"\g<1>{ending}", block[1].replace("\\\n", " "))
        for line in text.splitlines():
            program, *words = shlex.split(line)
            assert program == "rabbitmqctl"
            controllable_broker.ctl(*words, *(["secret"] if words[0] == "add_user" else []))
            done.append(words)
        yield {words[3].removesuffix(ending): words for words in done if words[0] == "set_permissions"}
    finally:
        for order, name, *_ in done:
            if order == "add_vhost":
                controllable_broker.remove_vhost(f"{controllable_broker.url.rstrip('/')}/{name}")
            elif order == "add_user":
                controllable_broker.remove_user(name)


def _url(broker: Broker, permissions: list[str]) -> str:
    parts = urlsplit(broker.url)
    return f"amqp://{permissions[3]}:secret@{parts.hostname}:{parts.port}/{permissions[2]}"


async def test_the_commands_of_the_page_are_enough(
    commands: dict[str, list[str]], controllable_broker: Broker, tmp_path: Path
) -> None:
    """With and without keys, under the prefix that programs have unless they say otherwise."""
    namespace = f"accounts-{uuid.uuid4().hex}"
    secret, numbers, forever = _atasks(namespace)
    worker, ann = (_url(controllable_broker, commands[user]) for user in ("worker", "ann"))
    keys = KeyFiles(tmp_path, ann="")
    for serving, calling in (("", ""), (str(keys.worker), str(keys.caller("ann")))):
        async with (
            atasks.serve(worker, namespace=namespace, grace=0, keys=serving),
            atasks.connect(ann, namespace=namespace, keys=calling),
        ):
            assert await soon(secret(1)) == "secret 1"
            assert await soon(secret.options(delivery="at_most_once", on_no_worker="error")(2)) == "secret 2"
            assert [number async for number in numbers(5)] == list(range(5))
            async with secret.watch(3) as call:
                assert await soon(call) == "secret 3"
            handle = await soon(secret.submit(4))
            assert await soon(atasks.attach(handle.dumps())) == "secret 4"
            assert await soon(await soon(map(secret).submit(5))) == "secret 5"
            with pytest.raises(TimeoutError):
                await forever.options(timeout=0.3)()


async def _take(limit: Limit) -> None:
    async with limit:
        pass


async def _pause(transport: AMQPTransport) -> None:
    fleet = Fleet(transport)
    await fleet.pause("default")
    await fleet.resume("default")


async def _watch(transport: AMQPTransport, call: Callable[[int], Awaitable[str]]) -> None:
    async with aclosing(Fleet(transport).watch(("ended",))) as events:
        heard = asyncio.ensure_future(anext(events))
        while not heard.done():  # the test's own deadline ends it
            await call(1)
        await heard


@pytest.fixture
def user(controllable_broker: Broker, prefix: str) -> Iterator[tuple[str, str]]:
    """A user who may do nothing yet, and the URL for it."""
    name = f"user-{prefix}"
    yield name, controllable_broker.add_user(name)
    controllable_broker.remove_user(name)


def _permit_all_but(broker: Broker, user: str, permission: str, name: str) -> None:
    patterns = [rf"^(?!{name}).*$" if each == permission else ".*" for each in ("configure", "write", "read")]
    broker.permit(user, "/", *patterns)


async def test_an_account_that_lacks_a_permission_is_told_which(
    controllable_broker: Broker, prefix: str, amqp_leaks: None, user: tuple[str, str]
) -> None:
    """At once: later the broker would close a channel over it that others need, again and again."""
    namespace = f"accounts-{prefix}"
    _atasks(namespace)
    name, url = user
    needs = [
        *((use, "configure, write, read", "control") for use in (atasks.serve, atasks.connect)),
        *((use, "configure, write, read", "r") for use in (atasks.serve, atasks.connect)),
        (atasks.serve, "configure, write, read", "c"),
        (atasks.serve, "configure, read", "lock"),
        (atasks.serve, "configure, read", "q"),
        (atasks.serve, "configure", "dead"),
    ]
    for use, permissions, kind in needs:
        for permission in permissions.split(", "):
            if (use, permission, kind) == (atasks.connect, "write", "control"):
                continue  # its calls run, and the log names each message that it may not send
            _permit_all_but(controllable_broker, name, permission, rf"{re.escape(prefix)}\.{kind}\b")
            with pytest.raises(AccessRefused, match=rf"\b{permission}\b.* access to \w+ '{prefix}\.{kind}\b"):
                await soon(_enter(use(url, prefix=prefix, namespace=namespace)))


async def _enter(block: AbstractAsyncContextManager[Any]) -> None:
    async with block:
        pass


async def test_a_worker_that_may_not_renew_what_runs_for_long_says_so(
    controllable_broker: Broker,
    prefix: str,
    amqp_leaks: None,
    user: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And keeps its connection, over which others are answered."""
    namespace = f"accounts-{prefix}"
    secret, _, forever = _atasks(namespace)
    name, url = user
    _permit_all_but(controllable_broker, name, "configure", rf"{re.escape(prefix)}\.l\.")
    async with (
        atasks.serve(url, prefix=prefix, namespace=namespace, grace=0, consumer_timeout=1.0) as worker,
        atasks.connect(controllable_broker.url, prefix=prefix, namespace=namespace),
    ):
        assert isinstance(worker.transport, AMQPTransport)
        link = worker.transport.session.link
        running = asyncio.create_task(forever())
        await until(lambda: "access to queue" in caplog.text)
        assert await soon(secret(1)) == "secret 1"
        assert worker.transport.session.link is link
        running.cancel()


async def test_a_worker_that_may_tell_nothing_to_who_watches_says_so(
    controllable_broker: Broker,
    prefix: str,
    amqp_leaks: None,
    user: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    namespace = f"accounts-{prefix}"
    secret, _, _ = _atasks(namespace)
    name, url = user
    _permit_all_but(controllable_broker, name, "write", rf"{re.escape(prefix)}\.watch")
    async with (
        atasks.serve(url, prefix=prefix, namespace=namespace, grace=0),
        atasks.connect(controllable_broker.url, prefix=prefix, namespace=namespace) as transport,
        aclosing(Fleet(transport).watch(("ended",))) as events,
    ):
        assert isinstance(transport, AMQPTransport)
        heard = asyncio.ensure_future(anext(events))
        while "write access to exchange" not in caplog.text:  # the test's own deadline ends it
            assert await soon(secret(1)) == "secret 1"
        heard.cancel()
        await asyncio.wait([heard])


async def test_what_a_caller_needs_to_do_more(commands: dict[str, list[str]], controllable_broker: Broker) -> None:
    """Each row of the page's table: refused without these permissions, and done with them."""
    namespace = f"accounts-{uuid.uuid4().hex}"
    secret, _, _ = _atasks(namespace)
    worker, ann = (_url(controllable_broker, commands[user]) for user in ("worker", "ann"))
    limit = Limit("a-limit", at_once=1, namespace=namespace)

    @atask(namespace=namespace, name="unserved", queue="unserved")
    async def unserved() -> None: ...

    uses: dict[tuple[str, str], Callable[[AMQPTransport], Awaitable[object]]] = {
        (r"due|due\.early|delay\..*", r"q\..*"): lambda _: secret.options(delay=5.0).submit(1),
        (r"unique\..*", ""): lambda _: secret.options(unique=uuid.uuid4().hex).submit(1),
        (r"q\..*\.early", ""): lambda _: unserved.submit(),
        (r"schedules\..*", ""): lambda _: atasks.schedule("hourly", secret, [1], every=3600.0),
        (r"paused\..*", ""): _pause,
        (r"watch|w\..*", ""): lambda transport: _watch(transport, secret),
        (r"limit\..*", ""): lambda _: _take(limit),
    }
    rows = re.findall(r"^\| .+ \| `([^`]+)` \| (?:`([^`]+)` )?\|$", PAGE.read_text(), re.MULTILINE)
    assert {(names.replace("\\|", "|"), write) for names, write in rows} == set(uses)

    async def use(action: Callable[[AMQPTransport], Awaitable[object]], seconds: float) -> None:
        async with atasks.connect(ann, namespace=namespace) as transport, asyncio.timeout(seconds):
            assert isinstance(transport, AMQPTransport)
            await action(transport)

    async with atasks.serve(worker, namespace=namespace, grace=0, queues=["default"]):
        for (names, write), action in uses.items():
            *_, vhost, user, configure, writes, reads = commands["ann"]
            controllable_broker.permit(user, vhost, configure, writes, reads)
            with pytest.raises((AccessRefused, TimeoutError)):
                await use(action, 3)
            more = f"run\\..*|{names}"
            writes = writes.replace(r"run\..*", f"{more}|{write}" if write else more)
            configure, reads = (pattern.replace(r"run\..*", more) for pattern in (configure, reads))
            controllable_broker.permit(user, vhost, configure, writes, reads)
            await use(action, 30)
