"""Queues that cannot be served for a while, beside others that can."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiormq.channel import Channel

import atasks
from atasks import atask
from atasks.testing import soon, until
from atasks.transport.backends.amqp.broker import questions
from atasks.transport.backends.amqp.transport import AMQPTransport
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import echo, gated
from tests.faults.workers import Fleet

LEFT_OUT = "queue 'ailing' cannot be served for now"
SERVED_AGAIN = "queue 'ailing' is served again"


@atask
async def plain(value: int) -> int:
    return value


@pytest.mark.parametrize("part", ["", ".solo"])
@pytest.mark.usefixtures("connected")
async def test_a_queue_without_a_leader_keeps_no_worker_from_its_other_queues(
    fleet: Fleet,
    history: History,
    node: Broker,
    second_proxy: Proxy,
    prefix: str,
    tmp_path: Path,
    part: str,
) -> None:
    """While it serves, and then while it begins to."""
    gate = tmp_path / "gate"
    ailing = f"{prefix}.q.default.ailing{part}"
    queues = {"queues": ["ailing", "well"], "queue_type": "quorum", "concurrency": 40}
    first = fleet.start_one(url=second_proxy.url(), **queues)
    calls = history.start(10, gated, str(gate), queue="ailing")
    await until(lambda: history.started() == 10, "the calls run")
    await asyncio.to_thread(node.silence_quorum_queue, ailing)
    second_proxy.drop()
    await until(lambda: LEFT_OUT in first.output, "the worker leaves the queue out")
    await settled(asyncio.gather(*history.start(20, echo, queue="well")), "calls on the other queue")
    second = fleet.start_one(**queues)
    assert LEFT_OUT in second.output
    first.kill()
    await settled(asyncio.gather(*history.start(20, echo, queue="well")), "calls on the other queue")
    assert not any(call.done() for call in calls)
    gate.touch()
    await asyncio.to_thread(node.wake_quorum_queue, ailing)
    await settled(asyncio.gather(*calls), "calls on the queue that has recovered", 60)
    await until(lambda: SERVED_AGAIN in second.output, "the worker says so")
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_queue_that_has_recovered_survives_a_reconnect_and_a_drain(
    fleet: Fleet, history: History, node: Broker, second_proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    queues = {"queues": ["ailing", "well"], "queue_type": "quorum"}
    fleet.start_one(**queues).kill()
    ailing = f"{prefix}.q.default.ailing"
    await asyncio.to_thread(node.silence_quorum_queue, ailing)
    worker = fleet.start_one(url=second_proxy.url(), **queues)
    await asyncio.to_thread(node.wake_quorum_queue, ailing)
    await until(lambda: SERVED_AGAIN in worker.output, "the queue is served")
    calls = history.start(10, gated, str(gate), queue="ailing")
    await until(lambda: history.started() == 10, "the calls run")
    second_proxy.drop()
    await until(lambda: " is restored" in worker.output, "the worker is back")
    gate.touch()
    await settled(asyncio.gather(*calls), "calls whose connection was lost")
    assert len(history.runs()) == 10
    calls = history.start(10, echo, queue="ailing") + history.start(10, echo, queue="well")
    await settled(asyncio.gather(*calls), "calls after the reconnect")
    assert await asyncio.to_thread(worker.stop) == 0
    history.completed()
    history.check()
    await fleet.quiet()


async def test_queues_without_an_answer_take_nothing_from_the_others(
    node: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker does not answer about queues of a node that is down. Each worker has a few channels to ask over."""
    declare, answers = Channel.queue_declare, asyncio.Event()

    async def unanswered(channel: Channel, queue: str = "", *args: Any, **options: Any) -> Any:
        try:
            return await declare(channel, queue, *args, **options)
        finally:
            if "ailing" in queue and not (options.get("passive") and queue.endswith(tuple(queues))):
                await answers.wait()

    queues = ["ailing1", "ailing2", "well1", "well2"]
    namespace = "unanswered"
    async with atasks.connect(node.url, prefix=prefix, namespace=namespace):
        with node.channel() as channel:
            heard = channel.queue_declare("", exclusive=True).method.queue
            for queue in queues:
                channel.queue_bind(heard, f"{prefix}.control", f"up:{namespace}:{queue}")
            monkeypatch.setattr(Channel, "queue_declare", unanswered)
            async with atasks.serve(node.url, prefix=prefix, namespace=namespace, queues=queues, timeout=8.0):
                left_out = [record.getMessage() for record in caplog.records if "for now" in record.getMessage()]
                assert sorted(text.split("'")[1] for text in left_out) == ["ailing1", "ailing2"]
                answers.set()
                await until(lambda: caplog.text.count("is served again") == 2, "the queues are served")
            announced = [channel.basic_get(heard, auto_ack=True)[0] for _ in queues]
    assert sorted(each.routing_key.rpartition(":")[2] for each in announced if each is not None) == queues


@pytest.mark.parametrize("how", ["locked", "of another type", "of other arguments", "consumed by another alone"])
@pytest.mark.usefixtures("connected")
async def test_a_queue_that_others_have_taken_keeps_no_worker_from_its_other_queues(
    fleet: Fleet, history: History, node: Broker, prefix: str, how: str
) -> None:
    """The queue was deleted while it was served, and another program has declared it in its own way."""
    worker = fleet.start_one(queues=["ailing", "well"])
    name = f"{prefix}.q.default.ailing"
    dead: dict[str, object] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{prefix}.dead"}
    with node.channel() as channel:
        channel.queue_delete(name)
        match how:
            case "locked":
                channel.queue_declare(name, exclusive=True)
            case "of another type":
                channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **dead})
            case "of other arguments":
                channel.queue_declare(name, durable=True, arguments={"x-max-length": 100})
            case _:
                channel.queue_declare(name, durable=True, arguments={"x-queue-type": "classic", **dead})
                channel.basic_consume(name, lambda *_: None, exclusive=True)
        await until(lambda: LEFT_OUT in worker.output, "the worker leaves the queue out")
        await settled(asyncio.gather(*history.start(20, echo, queue="well")), "calls on the other queue")
        channel.queue_delete(name)
    await until(lambda: SERVED_AGAIN in worker.output, "the worker says so")
    await settled(asyncio.gather(*history.start(20, echo, queue="ailing")), "calls on the queue that is back")
    assert await asyncio.to_thread(worker.stop) == 0
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.mark.parametrize("timeout", [2.0, 60.0])
async def test_a_queue_that_is_not_answered_for_is_named_and_keeps_no_worker_from_its_others(
    node: Broker,
    second_proxy: Proxy,
    prefix: str,
    timeout: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """RabbitMQ 3.10 that was killed soon after a quorum queue was declared answers nobody who consumes it."""
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 1.0)
    ailing = f"{prefix}.q.default.ailing"
    ill = f"{prefix}.q.default.ill"
    second_proxy.leave_unasked(ailing, ill)
    async with (
        atasks.connect(node.url, prefix=prefix),
        atasks.serve(second_proxy.url(), prefix=prefix, queues=["ill", "ailing", "well"], timeout=timeout),
    ):
        assert await soon(plain.options(queue="well")(1)) == 1
        second_proxy.drop()
        assert await soon(plain.options(queue="well")(2)) == 2
        waiting = asyncio.ensure_future(plain.options(queue="ailing")(3))
        second_proxy.leave_unasked()
        assert await soon(waiting) == 3
    reasons = [text for text in caplog.messages if "cannot be" in text]
    assert reasons
    for text in reasons:
        assert f"the broker does not answer who wants to consume queue '{prefix}.q.default." in text


async def test_a_queue_that_is_served_later_and_not_answered_for_is_tried_until_it_is_given_up(
    node: Broker,
    second_proxy: Proxy,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 4.0)
    ailing, given_up = (f"{prefix}.q.default.{name}" for name in ("ailing", "a-given-up"))
    async with (
        atasks.connect(node.url, prefix=prefix),
        atasks.serve(second_proxy.url(), prefix=prefix, queues=["well"]) as worker,
    ):
        assert await soon(plain.options(queue="well")(1)) == 1
        second_proxy.leave_unasked(ailing, given_up)
        with pytest.raises(atasks.ConnectFailed, match="who wants to consume queue"):
            await worker.transport.serve_also(worker, ["a-given-up", "ailing", "later"])
        await until(lambda: "'a-given-up' cannot be served for now" in caplog.text)
        assert await soon(plain.options(queue="later")(2)) == 2
        await worker.transport.serve_no_more(worker, "a-given-up")
        waiting = asyncio.ensure_future(plain.options(queue="ailing")(3))
        second_proxy.leave_unasked()
        assert await soon(waiting) == 3
        await until(lambda: "'ailing' is served again" in caplog.text)
        assert "'a-given-up' is served again" not in caplog.text


async def test_queues_that_are_served_later_are_given_up_together_if_one_cannot_be_declared(
    node: Broker, prefix: str, cleanup: None
) -> None:
    """The next try found none of them new, and served none."""
    wrong = f"{prefix}.q.default.wrong"
    async with (
        atasks.connect(node.url, prefix=prefix),
        atasks.serve(node.url, prefix=prefix, queues=["well"]) as worker,
    ):
        with node.channel() as channel:
            channel.queue_declare(wrong, durable=True, arguments={"x-max-priority": 2})
        for _ in range(2):
            with pytest.raises(atasks.QueueMismatch, match="wrong"):
                await worker.transport.serve_also(worker, ["right", "wrong", "last"])
        with node.channel() as channel:
            channel.queue_delete(wrong)
        await worker.transport.serve_also(worker, ["right", "wrong", "last"])
        for queue in ("right", "wrong", "last"):
            assert await soon(plain.options(queue=queue)(1)) == 1


async def test_an_answer_that_a_new_link_waits_for_is_named(
    second_proxy: Proxy, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with atasks.serve(second_proxy.url(), prefix=prefix, timeout=2.0) as worker:
        assert isinstance(worker.transport, AMQPTransport)
        session = worker.transport.session
        for place in ("the reply queue", "the control queue"):
            caplog.clear()
            names = [session.reply_queue]
            if place == "the control queue":
                names = [session.topology.control_queue(worker.id, number) for number in range(20)]
            second_proxy.leave_unasked(*names)
            second_proxy.drop()
            await until(lambda: "who wants to consume queue" in caplog.text, place)
            told = next(text for text in caplog.messages if "who wants to consume queue" in text)
            assert "cannot be restored yet: the broker does not answer" in told
            assert any(f"'{name}'" in told for name in names), told
            second_proxy.leave_unasked()
            await until(lambda: " is restored" in caplog.text, "the worker is back")
