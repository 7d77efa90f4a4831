"""Queues that cannot be served for a while, beside others that can."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiormq.channel import Channel

import atasks
from atasks.testing import until
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import echo, gated
from tests.faults.workers import Fleet

LEFT_OUT = "queue 'ailing' cannot be served for now"
SERVED_AGAIN = "queue 'ailing' is served again"


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
