"""The queues and exchanges at the broker: who declares them, with which arguments, and what is left of them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pika.exceptions
import pytest
from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

import atasks
from atasks import QueueMismatch, TransportError
from atasks.testing import Site, soon, until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.worker.worker import Worker
from tests.amqp.conftest import NewTransport
from tests.amqp.peer import Peer
from tests.brokers.base import Broker

DAY = 24 * 3600 * 1000
NOT_FOUND, PRECONDITION_FAILED = 404, 406


def _work_arguments(prefix: str, queue_type: str = "classic", **more: Any) -> dict[str, Any]:
    return {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{prefix}.dead",
        **more,
    }


def _is_declared_so(broker: Broker, name: str, arguments: dict[str, Any]) -> bool:
    """True if the queue exists with exactly these arguments: the broker refuses to declare it with others."""
    with broker.channel() as channel:
        channel.queue_declare(name, passive=True)
        try:
            channel.queue_declare(name, durable=True, arguments=arguments)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == PRECONDITION_FAILED:
                return False
            raise
    return True


def _exists(broker: Broker, name: str) -> bool:
    with broker.channel() as channel:
        try:
            channel.queue_declare(name, passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                return False
            raise
    return True


@pytest.fixture
def added(site: Site) -> Any:
    """An atask that adds."""

    @site.atask
    async def add(a: int, b: int) -> int:
        return a + b

    return add


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {}),
        ({"max_priority": 3}, {"x-max-priority": 3}),
        ({"queue_type": "quorum"}, {"x-delivery-limit": 1_000_000}),
    ],
    ids=["classic", "priorities", "quorum"],
)
async def test_queues_are_declared(
    broker: Broker, prefix: str, new_transport: NewTransport, options: dict[str, Any], more: dict[str, Any]
) -> None:
    site = Site(lambda namespace: new_transport(namespace, **options))

    @site.atask
    async def add(a: int, b: int) -> int:
        return a + b

    async with site.open():
        assert await soon(add(1, 2)) == 3
        work = f"{prefix}.q.{site.namespace}.default"
        arguments = _work_arguments(prefix, options.get("queue_type", "classic"), **more)
        for name in (work, f"{work}.solo"):
            assert _is_declared_so(broker, name, arguments)
            assert not _is_declared_so(broker, name, {**arguments, "x-max-length": 1})
        assert _is_declared_so(
            broker,
            f"{prefix}.dead",
            {"x-queue-type": "classic", "x-max-length": 10_000, "x-message-ttl": 7 * DAY},
        )
        with broker.channel() as channel:
            channel.exchange_declare(f"{prefix}.control", "direct", durable=True)
    site.close()


async def test_reply_queue_is_the_callers_and_goes_with_it(
    broker: Broker, site: Site, peer: Peer, added: Any
) -> None:
    requests = await peer.declare_work_queue("spy")
    async with site.open():
        waiting = asyncio.create_task(added.options(queue="spy")(1, 2))
        name = (await soon(requests.get())).reply_to
        assert name is not None
        assert name.startswith(f"{peer.prefix}.r.")
        assert _is_declared_so(broker, name, {"x-queue-type": "classic", "x-expires": 300_000})
        waiting.cancel()
        await asyncio.wait([waiting])
    assert not _exists(broker, name)


async def test_caller_declares_no_work_queue(broker: Broker, site: Site, peer: Peer, added: Any) -> None:
    async with site.open(serve=False):
        with pytest.raises(atasks.CallTimeout):
            await soon(added.options(timeout=0.1)(1, 2))
        assert not _exists(broker, peer.work_queue())


async def test_control_queue_goes_with_the_worker(broker: Broker, site: Site, prefix: str, added: Any) -> None:
    async with site.open():
        await soon(added(1, 2))
        if broker.controllable:
            names = [queue.name for queue in broker.queues() if queue.name.startswith(f"{prefix}.")]
            assert [name for name in names if site.worker.id in name] != []
        worker_id = site.worker.id
    if broker.controllable:
        names = [queue.name for queue in broker.queues() if queue.name.startswith(f"{prefix}.")]
        assert [name for name in names if worker_id in name or name.startswith(f"{prefix}.r.")] == []
    assert _exists(broker, f"{prefix}.q.{site.namespace}.default")


@pytest.mark.parametrize(
    ("other", "argument"),
    [({"queue_type": "quorum"}, "x-queue-type"), ({"max_priority": 2}, "x-max-priority")],
    ids=["type", "priority"],
)
async def test_queue_with_other_arguments(
    site: Site, added: Any, new_transport: NewTransport, other: dict[str, Any], argument: str
) -> None:
    async with site.open():
        transport = new_transport(site.namespace, **other)
        await transport.connect()
        try:
            worker = Worker(site.router, transport)
            with pytest.raises(QueueMismatch) as caught:
                await soon(worker.start())
        finally:
            await transport.disconnect()
        text = str(caught.value)
        assert argument in text
        assert "\n" not in text
        assert "max_priority" in text or "queue_type" in text
        assert await soon(added(1, 2)) == 3


async def test_worker_that_begins_while_the_broker_creates_its_queue(
    controllable_broker: Broker, prefix: str, new_transport: NewTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker refuses a queue that another worker has just declared: RabbitMQ 3.10 fails, and closes the
    connection."""
    site = Site(lambda namespace: new_transport(namespace, queue_type="quorum"))
    name = f"{prefix}.q.{site.namespace}.default"

    @site.atask
    async def add(a: int, b: int) -> int:
        return a + b

    async with site.open():
        assert await soon(add(1, 2)) == 3
    await asyncio.to_thread(controllable_broker.silence_quorum_queue, name)
    async with site.open(serve=False):
        serving = asyncio.create_task(site.serve())
        while "cannot serve yet" not in caplog.text:
            await asyncio.wait([serving], timeout=0.01)
            assert not serving.done()
        await asyncio.to_thread(controllable_broker.wake_quorum_queue, name)
        await soon(serving)
        assert await soon(add(1, 2)) == 3
    site.close()


async def test_one_transport_serves_one_worker(site: Site, added: Any) -> None:
    async with site.open():
        second = Worker(site.router, site.worker.transport)
        with pytest.raises(TransportError, match="one transport for each worker"):
            await second.start()
        assert await soon(added(1, 2)) == 3


async def test_work_queue_keeps_what_waits_after_the_worker(site: Site, added: Any) -> None:
    async with site.open():
        await soon(added(1, 2))
        await site.worker.drain()
        waiting = asyncio.create_task(added(3, 4))
        await asyncio.sleep(0)
        await site.serve()
        assert await soon(waiting) == 7


def test_options_that_brokers_refuse(new_transport: NewTransport) -> None:
    with pytest.raises(ValueError, match="max_priority needs queue_type='classic'"):
        new_transport("n", max_priority=1, queue_type="quorum")
    with pytest.raises(ValueError, match="'classic' or 'quorum'"):
        new_transport("n", queue_type="stream")
    with pytest.raises(ValueError, match="max_priority=4: 1 to 3"):
        new_transport("n", max_priority=4)
    with pytest.raises(ValueError, match="queue='a b': letters"):
        new_transport("n", queue="a b")


async def test_workers_without_schedules_stand_in_no_line(
    site: Site, added: Any, broker: Broker, prefix: str
) -> None:
    """There is nothing to keep. They stand as soon as somebody makes a schedule, in whatever process."""
    ticks: list[str] = []

    @site.atask
    async def tick() -> None:
        ticks.append("")

    table = f"{prefix}.schedules.{site.namespace}"
    async with site.open():
        await site.serve()
        assert await soon(added(1, 2)) == 3
        assert not _exists(broker, table)
        assert not _exists(broker, f"{table}.leader")
        await soon(atasks.schedule("ticks", tick, every=0.1))
        await until(lambda: ticks, "a tick")
        with broker.channel() as channel:
            standing = channel.queue_declare(f"{table}.leader", passive=True).method.consumer_count
        assert standing >= 1
        assert await soon(atasks.unschedule("ticks", namespace=site.namespace))


@pytest.mark.parametrize("keys", [1, 200])
async def test_a_declaration_that_the_broker_refuses_says_why(
    amqp_url: str, prefix: str, amqp_leaks: None, keys: int
) -> None:
    """The channel may be closed before all has been asked for that goes out in one round trip."""
    connect = partial(atasks.connect, amqp_url, prefix=prefix)
    async with connect() as transport, connect() as other:
        assert isinstance(transport, AMQPTransport)
        assert isinstance(other, AMQPTransport)
        link, rival = transport.session.link, other.session.link
        assert link is not None
        assert rival is not None
        control = transport.session.topology.control
        names = [str(key) for key in range(keys)]
        for _ in range(10):
            with pytest.raises(ChannelAccessRefused, match=r"amq\.no"):
                await soon(link.declare_queue("amq.no", {"x-queue-type": "classic"}, control, names))
        lock = f"{prefix}.lock"
        assert await soon(rival.lock(lock))
        for _ in range(10):
            assert not await soon(link.lock(lock))
        assert not link.lost.done()


async def test_a_worker_that_may_not_reply_is_told_why(
    amqp_url: str, prefix: str, amqp_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the broker has closed the channel before it is asked whether it has looked at the message."""
    publish = Channel.basic_publish

    async def refused(self: Channel, *args: Any, **options: Any) -> Any:
        await publish(self, *args, **{**options, "exchange": f"{prefix}.none"})
        await asyncio.wait((self.closing,))

    async with atasks.connect(amqp_url, prefix=prefix) as transport:
        assert isinstance(transport, AMQPTransport)
        assert transport.session.link is not None
        monkeypatch.setattr(Channel, "basic_publish", refused)
        with pytest.raises(ChannelNotFoundEntity, match="none"):
            await soon(transport.session.link.require_write(""))
