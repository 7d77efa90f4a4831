"""Workers that begin to serve while others do, or while their connections are cut."""

from __future__ import annotations

import asyncio
import random

import aiormq
import pytest

import atasks
from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import echo
from tests.faults.workers import READY, Fleet

WORKERS = 6
QUEUES = ["one", "two", "three"]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.usefixtures("connected")
async def test_workers_that_declare_the_same_new_queues_at_the_same_time(
    fleet: Fleet, history: History, queue_type: str
) -> None:
    """RabbitMQ 3.10 answers some of them with an internal error, and closes their connections."""
    workers = fleet.start(WORKERS, queue_type=queue_type, queues=QUEUES, wait=False)
    await until(lambda: all(READY in worker.output for worker in workers), "all workers serve", 60)
    calls = [call for queue in QUEUES for call in history.start(40, echo, queue=queue)]
    await settled(asyncio.gather(*calls), "calls to new queues")
    history.completed()
    history.check()

    def consumed() -> bool:  # a quorum queue says so a few seconds later
        consumers = [queue.consumers for queue in fleet.queues() if not queue.name.endswith(".dead")]
        return consumers == [WORKERS] * 2 * len(QUEUES)

    await until(consumed, "every queue is consumed by every worker")
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_worker_whose_connections_are_cut_while_it_begins(
    fleet: Fleet, history: History, second_proxy: Proxy
) -> None:
    dice = random.Random(13)
    (worker,) = fleet.start(url=second_proxy.url(), queues=QUEUES, wait=False)
    cuts = 0
    for _ in range(5):
        said = dice.randrange(800, 3_000)  # bytes: somewhere between its greeting and its last consumer
        await until(
            lambda s=said: READY in worker.output or second_proxy.forwarded("to_broker") > s,
            "it has said something",
        )
        cuts += second_proxy.drop()
    assert cuts
    await until(lambda: READY in worker.output or not worker.running, "it serves, or has given up", 60)
    if not worker.running:  # the very first connection was cut: that is for whoever starts it
        assert "ConnectFailed" in worker.output
        await asyncio.to_thread(fleet.start, queues=QUEUES)
    calls = [call for queue in QUEUES for call in history.start(20, echo, queue=queue)]
    await settled(asyncio.gather(*calls), "calls to a worker whose beginning was hard", 60)
    history.completed()
    history.check()
    await fleet.quiet()


async def test_connecting_and_serving_wait_for_the_broker_a_few_times_only(second_proxy: Proxy) -> None:
    """A broker may be far away: atasks asks at the same time for what does not depend on another answer."""
    there_and_back = 0.3
    second_proxy.delay(there_and_back / 2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    connection = await aiormq.connect(second_proxy.url())
    least = loop.time() - began
    began = loop.time()
    async with atasks.connect(second_proxy.url(), namespace="far"):
        connecting = loop.time() - began - least
    began = loop.time()
    async with atasks.serve(second_proxy.url(), namespace="far"):
        serving = loop.time() - began - least - connecting
        second_proxy.resume()
    await connection.close()
    assert connecting < 7 * there_and_back  # 3, and what the proxy and a busy machine add
    assert serving < 16 * there_and_back
