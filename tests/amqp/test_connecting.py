"""Errors of connecting: the client library's never reach a user, and each says what to do."""

# Private attributes: `Link._channel` and `_connections`: a connection is broken at a moment of its opening.

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiormq
import aiormq.exceptions
import pamqp.exceptions
import pytest
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from yarl import URL

import atasks
from atasks import AccessRefused, ConnectFailed, InvalidURL, NotConnected, QueueMismatch, TransportError
from atasks.current import serving
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, NoChannel, map_error
from atasks.transport.backends.amqp.broker.frames import takes_frames
from atasks.transport.backends.amqp.broker.link import Link, _underlay
from atasks.transport.backends.amqp.broker.questions import close_channel, guard, shielded, together
from atasks.transport.backends.amqp.broker.spares import SPARES
from atasks.transport.backends.amqp.transport import SPARES_OF_WORKER
from tests.amqp.conftest import NewTransport
from tests.brokers.base import Broker
from tests.brokers.ports import free_ports

SECRET = "the-password"


async def _refused(url: str, kind: type[TransportError], **options: float) -> str:
    """The message of the error that connecting to that URL raises."""
    with pytest.raises(kind) as caught:
        async with asyncio.timeout(30), atasks.connect(url, namespace="connecting", **options):
            pass
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


async def test_wrong_password(amqp_url: str) -> None:
    url = URL(amqp_url).with_password(SECRET)
    text = await _refused(str(url), AccessRefused)
    assert "user 'guest'" in text
    assert "password" in text


async def test_unknown_user(amqp_url: str) -> None:
    text = await _refused(str(URL(amqp_url).with_user("nobody").with_password(SECRET)), AccessRefused)
    assert "user 'nobody'" in text


async def test_unknown_virtual_host(amqp_url: str) -> None:
    text = await _refused(str(URL(amqp_url).with_path("/no-such-vhost")), AccessRefused)
    assert "'no-such-vhost'" in text


@pytest.mark.parametrize(
    ("limits", "advice"),
    [
        ({"max_queues": 0}, "queue limit in vhost"),
        ({"max_connections": 0}, "limits"),
        ({"max_connections": 1}, "limits"),
    ],
)
async def test_limits_of_the_virtual_host(
    controllable_broker: Broker, limits: dict[str, int], advice: str
) -> None:
    """Nobody is told that a queue exists with other arguments, or to look at the path of the URL alone."""
    url = controllable_broker.add_vhost()
    try:
        name = URL(url).path.removeprefix("/")
        other = await aiormq.connect(url)  # the broker may let two in which come at the same time, and not a third
        await asyncio.to_thread(_limit, controllable_broker, name, **limits)
        text = await _refused(url, AccessRefused)
        await other.close()
        assert advice in text
        assert "list_vhost_limits" in text
        await asyncio.to_thread(_limit, controllable_broker, name)
        async with atasks.connect(url, namespace="connecting"):
            pass
    finally:
        controllable_broker.remove_vhost(url)


def _limit(broker: Broker, vhost: str, **limits: int) -> None:
    """Give a virtual host these limits and no others; names have `_` in the place of `-`."""
    text = json.dumps({name.replace("_", "-"): value for name, value in limits.items()}).replace('"', '\\"')
    broker.evaluate(f'ok = rabbit_vhost_limit:parse_set(<<"{vhost}">>, <<"{text}">>, <<"tests">>).')


@contextlib.contextmanager
def configured(broker: Broker, name: str, value: int) -> Iterator[None]:
    """Connections that begin in the block meet this value in the configuration of the broker: one that no other
    process of the tests uses."""
    broker.start()
    before = broker.evaluate(f"{{ok, Value}} = application:get_env(rabbit, {name}), Value.")
    broker.evaluate(f"application:set_env(rabbit, {name}, {value}).")
    try:
        yield
    finally:
        broker.evaluate(f"application:set_env(rabbit, {name}, {before}).")


@pytest.mark.parametrize("size", [0, 8192])
async def test_frames_of_other_sizes(own_broker: Broker, prefix: str, size: int) -> None:
    """0 stands for no limit, and was taken for a size: no message had room for a body. RabbitMQ 4.3 takes no
    connection with less than 8192."""

    @atasks.atask(namespace="connecting")
    async def mirror(content: bytes) -> bytes:
        return content[::-1]

    content = bytes(range(256)) * 5000
    with configured(own_broker, "frame_max", size):
        async with atasks.serve(own_broker.url, namespace="connecting", prefix=prefix):
            assert await asyncio.wait_for(mirror(content), 30) == content[::-1]


async def test_few_channels(own_broker: Broker) -> None:
    with configured(own_broker, "channel_max", 1):
        assert "Raise channel_max" in await _refused(own_broker.url, ConnectFailed)


async def test_an_exchange_that_others_have_declared(broker: Broker, prefix: str) -> None:
    with broker.channel() as channel:
        channel.exchange_declare(f"{prefix}.control", exchange_type="topic", durable=True)
        try:
            with pytest.raises(QueueMismatch, match="another prefix") as caught:
                async with atasks.connect(broker.url, prefix=prefix):
                    pass
            assert "queue_type" not in str(caught.value)
        finally:
            channel.exchange_delete(f"{prefix}.control")


async def test_closed_port() -> None:
    (port,) = free_ports(1)
    text = await _refused(f"amqp://guest:{SECRET}@127.0.0.1:{port}/", ConnectFailed)
    assert f"127.0.0.1:{port}" in text
    assert "Connection refused" in text


async def test_failed_attempt_leaves_nothing_to_a_collector_in_another_thread() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConnectFailed) as caught:
        async with atasks.connect(f"amqp://127.0.0.1:{port}/", namespace="connecting"):
            pass
    errors = [caught.value]
    del caught
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        await asyncio.to_thread(lambda: (errors.clear(), gc.collect()))
    assert [str(item.message) for item in warned] == []


async def test_unknown_host() -> None:
    text = await _refused(f"amqp://guest:{SECRET}@no-such-host.invalid/", ConnectFailed)
    assert "no-such-host.invalid:5672" in text


@asynccontextmanager
async def _server(greeting: bytes | None) -> AsyncIterator[int]:
    """A server that is no broker: it sends its greeting and hangs up, or says nothing at all."""
    released = asyncio.Event()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greeting is None:
            await released.wait()
        else:
            writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        released.set()


@pytest.mark.parametrize(
    "greeting",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"\x01\x00\x00\x00\x00\x00\x00\xce"],
)
async def test_server_that_is_no_broker(greeting: bytes) -> None:
    async with _server(greeting) as port:
        text = await _refused(f"amqp://guest:{SECRET}@127.0.0.1:{port}/", ConnectFailed)
    assert f"127.0.0.1:{port}" in text


async def test_server_that_does_not_answer() -> None:
    async with _server(None) as port:
        text = await _refused(f"amqp://guest:{SECRET}@127.0.0.1:{port}/", ConnectFailed, timeout=0.2)
    assert "no answer in time" in text


@pytest.mark.parametrize(
    "url",
    [
        "amqp://",
        "amqp:",
        f"amqp://guest:{SECRET}@host:port/",
        f"ampq://guest:{SECRET}@host/",
        f"http://u:{SECRET}@h/",
        "",
    ],
)
async def test_url_that_is_none(url: str) -> None:
    text = await _refused(url, InvalidURL)
    assert "amqp:" in text


async def test_connection_that_is_closed_while_it_is_opened(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the broker, before the first channel."""
    open_channel = Link._channel

    async def too_late(link: Link, index: int) -> Channel:
        await _underlay(link._connections[index]).close()
        return await open_channel(link, index)

    monkeypatch.setattr(Link, "_channel", too_late)
    text = await _refused(amqp_url, ConnectFailed)
    assert "connection to the broker was lost" in text


async def test_second_url_is_tried(amqp_url: str, site: Site, prefix: str) -> None:
    (port,) = free_ports(1)
    transport = AMQPTransport([f"amqp://127.0.0.1:{port}/", amqp_url], site.namespace, prefix=prefix)
    await transport.connect()
    assert transport.usable(asyncio.get_running_loop())
    await transport.disconnect()


async def test_transport_is_used_after_it_was_disconnected(new_transport: NewTransport, site: Site) -> None:
    @site.atask
    async def add(a: int, b: int) -> int:
        return a + b

    async with site.open():
        pass
    with pytest.raises(NotConnected, match=r"atasks\.connect"):
        await soon(add(1, 2))


async def test_await_that_is_pending_at_disconnect(site: Site) -> None:
    @site.atask
    async def never() -> None: ...

    async with site.open(serve=False):
        waiting = asyncio.create_task(never())
        await asyncio.sleep(0)
        await site.caller.disconnect()
        with pytest.raises(atasks.CallConnectionLost):
            await soon(waiting)


def _exceptions(module: object) -> list[type[Exception]]:
    found = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == getattr(module, "__name__", None)
    ]
    assert found
    return found


def _instance(cls: type[Exception]) -> Exception:
    """One of that class as the client library makes it, with the arguments that it wants."""
    if issubclass(cls, aiormq.exceptions.DeliveryError):
        frame = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="", routing_key="key")
        return cls(DeliveredMessage(frame, ContentHeader(), b"", channel=None), frame)  # type: ignore[arg-type]
    for count in (2, 1, 0, 3, 4):
        try:
            error = cls(*["some text"] * count)
            str(error)
        except (TypeError, AttributeError, IndexError):
            continue
        return error
    raise AssertionError(f"{cls} cannot be made")


URL_WITH_PASSWORD = f"amqp://guest:{SECRET}@host/vhost"


def test_every_exception_of_the_client_library_is_mapped() -> None:
    kinds = [
        *_exceptions(aiormq.exceptions),
        *_exceptions(pamqp.exceptions),
        OSError,
        ConnectionError,
        TimeoutError,
    ]
    for kind in kinds:
        error = _instance(kind)
        mapped = map_error(error, URL_WITH_PASSWORD)
        assert isinstance(mapped, TransportError), kind
        assert mapped.__cause__ is error, kind
        assert "host:5672" in str(mapped), kind
        assert "\n" not in str(mapped), kind
        assert SECRET not in str(mapped), kind


def test_every_exception_of_the_client_library_is_caught() -> None:
    assert [kind for kind in _exceptions(aiormq.exceptions) if not issubclass(kind, CLIENT_ERRORS)] == []


async def test_concurrent_blocks_to_several_brokers_do_not_mix(
    amqp_url: str, prefix: str, amqp_leaks: None
) -> None:
    """They differ by their prefix: each has workers of its own, as at another broker."""
    namespace = prefix

    @atasks.atask(namespace=namespace)
    async def where() -> str:
        run = serving.get()
        assert run is not None
        return str(run.worker.state)

    @asynccontextmanager
    async def named(name: str) -> AsyncIterator[str]:
        yield name

    async def handler(number: int, of: str) -> None:
        async with atasks.connect(amqp_url, namespace=namespace, prefix=of):
            for _ in range(number % 3 + 2):
                assert await soon(where()) == of
                assert await soon(asyncio.gather(where(), where())) == [of, of]

    prefixes = [f"{prefix}.one", f"{prefix}.two"]
    async with AsyncExitStack() as stack:
        for each in prefixes:
            lifespan = named(each)
            await stack.enter_async_context(
                atasks.serve(amqp_url, namespace=namespace, prefix=each, lifespan=lifespan, grace=1)
            )
        await asyncio.gather(*(handler(number, prefixes[number % 2]) for number in range(8)))


async def test_a_channel_that_is_given_up_while_it_opens_leaves_no_trace(
    new_transport: NewTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "aiormq")
    transport = new_transport("connecting")
    await transport.connect()
    link = transport.session.link
    assert link is not None
    for turns in range(12):
        for open_one in (link.open_channel, link.open_unconfirmed):
            opening = asyncio.create_task(open_one())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await opening).close()
    assert await soon(link.queue_state("no such queue")) is None
    await transport.disconnect()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiormq")] == []


async def test_declarations_do_not_wait_for_each_other(
    new_transport: NewTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = new_transport("connecting")
    await transport.connect()
    link = transport.session.link
    assert link is not None
    all_at_once, declare = asyncio.Barrier(SPARES), Channel.queue_declare

    async def together(channel: Channel, *args: Any, **options: Any) -> Any:
        await all_at_once.wait()
        return await declare(channel, *args, **options)

    monkeypatch.setattr(Channel, "queue_declare", together)
    states = await soon(asyncio.gather(*(link.queue_state(f"no such queue {n}") for n in range(2 * SPARES))))
    assert states == [None] * (2 * SPARES)
    await transport.disconnect()


@pytest.mark.parametrize("serves", [True, False])
async def test_only_a_transport_that_will_serve_opens_channels_for_declarations_ahead(
    new_transport: NewTransport, serves: bool
) -> None:
    transport = new_transport("connecting")
    if serves:
        transport.will_serve()
    await transport.connect()
    link = transport.session.link
    assert link is not None
    channels = _underlay(link._connections[1]).channels
    if serves:  # as many as the queues of one work queue need
        await until(lambda: len(channels) == 2 + SPARES_OF_WORKER)
    else:
        assert len(channels) == 2
    await transport.disconnect()


async def test_declarations_that_are_given_up_leave_no_channel(
    new_transport: NewTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "aiormq")
    transport = new_transport("connecting")
    await transport.connect()
    link = transport.session.link
    assert link is not None
    channels = _underlay(link._connections[1]).channels
    assert await soon(link.queue_state(transport.session.reply_queue)) == (0, 1)
    before = len(channels)
    for turns in range(12):
        asking = [asyncio.create_task(link.queue_state("no such queue")) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for question in asking:
            question.cancel()
        await asyncio.wait(asking)
    assert await soon(link.queue_state(transport.session.reply_queue)) == (0, 1)
    await until(lambda: len(channels) <= before)
    await transport.disconnect()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiormq")] == []


async def test_channels_that_the_broker_closes_while_others_are_opened(amqp_url: str) -> None:
    """The number of a channel that the broker has closed is not another one's before the broker knows of that."""
    link = await Link.open([amqp_url], "channels", 10.0)
    try:

        async def ask(number: int) -> None:
            channel = await link.open_channel()
            with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
                await channel.queue_declare(f"no-such-queue-{number}", passive=True)

        for _ in range(10):
            await soon(asyncio.gather(*map(ask, range(100))))
            assert not link.lost.done(), link.lost.result()
    finally:
        await link.close()


async def test_what_is_asked_together_has_ended_when_it_is_cancelled_while_it_ends() -> None:
    """Else a connection that opens meanwhile would stay open: who closes all of them has looked before."""
    ending, closed = asyncio.Event(), []

    async def fail() -> None:
        raise ConnectionError("refused")

    async def settle() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.1)
            closed.append(True)

    both = asyncio.create_task(together(settle(), fail()))
    await soon(ending.wait())
    for _ in range(2):
        both.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await soon(both)
    assert closed == [True]


async def test_more_channels_than_the_broker_has(amqp_url: str) -> None:
    """The connection of whoever opens too many would be closed."""
    link = await Link.open([amqp_url], "channels", 10.0)
    try:
        opened = await soon(asyncio.gather(*(link.open_channel() for _ in range(2100)), return_exceptions=True))
        failed = [error for error in opened if isinstance(error, BaseException)]
        assert {type(error) for error in failed} == {NoChannel}
        assert 50 < len(failed) < 60
        assert not link.lost.done()
        await next(each for each in opened if isinstance(each, Channel)).close()
        assert await link.queue_state("no-such-queue") is None
    finally:
        await link.close()


async def test_a_channel_that_the_broker_closes_while_events_leave(amqp_url: str) -> None:
    """Events on their way to somebody who has stopped watching cost no connection."""
    link = await Link.open([amqp_url], "channels", 10.0)
    try:
        for _ in range(50):
            channel = await link.open_unconfirmed()
            while takes_frames(channel):
                with contextlib.suppress(*CLIENT_ERRORS):
                    await channel.basic_publish(b"", exchange="no-such-exchange", routing_key="events")
            await soon(asyncio.wait([channel.closing]))
            assert await link.queue_state("no-such-queue") is None
        assert not link.lost.done(), link.lost.result()
    finally:
        await link.close()


@pytest.mark.parametrize("first", ["ask", "close"])
async def test_a_channel_that_is_asked_for_while_the_link_closes_is_none(amqp_url: str, first: str) -> None:
    link = await Link.open([amqp_url], "closing", 10)
    works = [link.open_channel(), link.close()]
    asked = [asyncio.ensure_future(work) for work in (works if first == "ask" else works[::-1])]
    await asyncio.wait(asked)
    (error,) = [each.exception() for each in asked if each.exception() is not None]
    assert isinstance(error, ConnectionError)


async def test_what_is_asked_and_not_awaited_may_fail_without_a_word() -> None:
    async def fail() -> None:
        raise ConnectionError("the link is lost")

    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    asked = [shielded(fail()), shielded(shielded(fail()))]
    await asyncio.sleep(0.01)
    asked.clear()
    gc.collect()
    assert not said


async def test_a_cancellation_while_a_channel_closes_is_neither_lost_nor_costs_the_connection(
    amqp_url: str,
) -> None:
    """The client library drops it, or closes the channel a second time, which the broker takes amiss. What keeps a
    limit went on after that, and whoever left its block waited for ever."""
    link = await Link.open([amqp_url], "test", 10.0)
    try:
        for turns in range(40):
            closing = asyncio.create_task(close_channel(await link.open_channel()))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(turns % 2 * turns / 40_000)
            is_cancelled = closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled() == is_cancelled, turns
        assert not link.lost.done()
    finally:
        await link.close()


async def test_a_link_that_is_lost_with_a_question_that_was_given_up_says_so(amqp_url: str) -> None:
    """The client library closes the channel of such a question, and says of that only that it was closed."""
    link = await Link.open([amqp_url], "test", 10.0)
    try:
        asked = asyncio.create_task(guard(link.inbox.basic_qos(prefetch_count=0)))
        for _ in range(3):
            await asyncio.sleep(0)
        asked.cancel()
        reason = await soon(link.lost)
        assert reason == "a channel was closed by this side: a question over it was cancelled, or had no answer"
    finally:
        await link.close()


@pytest.mark.parametrize("error", [None, ConnectionError, RuntimeError])
async def test_a_cancellation_that_becomes_another_error_is_one_still(error: type[Exception] | None) -> None:
    async def operation() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    task = asyncio.create_task(guard(operation()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_a_variable_of_records_that_is_set_and_empty_is_an_error(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something was to name the database and did not: workers with it would leave these calls to nobody."""
    monkeypatch.setenv("ATASKS_RECORDS", "")
    with pytest.raises(InvalidURL, match=r"\$ATASKS_RECORDS is set and empty.*records=''"):
        AMQPTransport(prefix=prefix)
    assert AMQPTransport(prefix=prefix, records="").seals is None
