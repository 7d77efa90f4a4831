"""A cluster of three nodes with quorum queues: any node may die, with calls in flight."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from tests.broker import BrokerError
from tests.brokers.cluster import Cluster, ClusterNode
from tests.brokers.private_node import find_sbin
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.resuming import fanned, row
from tests.faults.tasks import echo, gated, work
from tests.faults.workers import Fleet, WorkerProcess

CALLS = 300
ONCE = 100
CALLERS_NODE = 1
"""The node that the caller connects to: its reply queue lives there. The first worker connects to node 0, which so
leads the work queues, and the second one to node 2."""


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running cluster, of which a test may stop and kill nodes."""
    sbin = find_sbin()
    if sbin is None:
        raise BrokerError("a cluster is made of private nodes: install rabbitmq-server")
    failed = request.session.testsfailed
    cluster = Cluster(sbin)
    try:
        cluster.start()
        yield cluster
    finally:
        logs = request.config.rootpath / ".broker-logs-cluster"
        cluster.close(logs if request.session.testsfailed > failed else None)


@pytest.fixture
def node(cluster: Cluster) -> ClusterNode:
    """Some node of the cluster, every node of which runs."""
    cluster.start()
    return cluster.nodes[0]


@pytest.fixture
def restored(cluster: Cluster) -> Iterator[None]:
    """Starts what the test left dead."""
    yield
    cluster.start()


@pytest.fixture
async def connected(
    cluster: Cluster, prefix: str, cleanup: None, restored: None, no_leaked_tasks: None
) -> AsyncIterator[None]:
    async with atasks.connect(cluster.urls(CALLERS_NODE), prefix=prefix):
        yield


@pytest.fixture
async def workers(cluster: Cluster, fleet: Fleet, connected: None) -> None:
    """Two workers, at different nodes."""
    for first in (0, 2):
        await asyncio.to_thread(
            fleet.start, url=cluster.urls(first), concurrency=50, caller_patience=3.0, queue_type="quorum"
        )
    await asyncio.to_thread(_on_disk, cluster)


def _on_disk(cluster: Cluster) -> None:
    """Have RabbitMQ 3.10 write what it knows of new quorum queues to disk, as it does within five seconds: if a
    node is killed before that, its member of the queue never comes back. That is not what is tested here."""
    cluster.each(lambda node: node.ctl("eval", "[dets:sync(Table) || Table <- dets:all()]."))


VICTIMS: dict[str, Callable[[Cluster, str], ClusterNode]] = {
    "leader": lambda cluster, prefix: cluster.leader(f"{prefix}.q.default.default"),
    "caller's": lambda cluster, prefix: cluster.nodes[CALLERS_NODE],
    "other worker's": lambda cluster, prefix: cluster.nodes[2],
}


def _check(history: History) -> None:
    """Every at-least-once call completed, and the others ended in what they may end in."""
    history.check()
    for item in history.awaits:
        if item.delivery == "at_least_once":
            assert item.error is None, item
        else:
            # A quorum queue that has no leader refuses: then the call did not run, and is not sent again.
            known = (type(None), atasks.WorkerLost, atasks.CallConnectionLost, atasks.QueueFull)
            assert isinstance(item.error, known), item


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.usefixtures("workers")
async def test_calls_complete_without_a_node(
    cluster: Cluster, fleet: Fleet, history: History, prefix: str, tmp_path: Path, victim: str
) -> None:
    """Calls in flight, and calls made afterwards, end while the node is still dead."""
    gate = tmp_path / "gate"
    calls = history.start(CALLS, gated, str(gate)) + history.start(ONCE, gated, str(gate), delivery="at_most_once")
    await until(lambda: history.started() >= 100, "all slots in use")
    dead = await asyncio.to_thread(VICTIMS[victim], cluster, prefix)
    await asyncio.to_thread(dead.kill)
    gate.touch()
    calls += history.start(50, echo) + history.start(20, echo, delivery="at_most_once")
    await settled(asyncio.gather(*calls), "calls in flight when a node died", 60)
    _check(history)
    await asyncio.to_thread(dead.start)
    await fleet.quiet()


@pytest.mark.usefixtures("workers")
async def test_nodes_die_one_after_the_other_while_calls_come_and_go(
    cluster: Cluster, fleet: Fleet, history: History, prefix: str
) -> None:
    dice = random.Random(12)
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            delivery = "at_most_once" if dice.random() < 0.25 else "at_least_once"
            await history.call(work, dice.random() / 5, delivery=delivery)

    clients = [asyncio.create_task(client()) for _ in range(100)]
    for victim in ("leader", "caller's"):
        before = len(history.awaits)
        await until(lambda before=before: len(history.awaits) >= before + 200, "calls come and go")
        dead = await asyncio.to_thread(VICTIMS[victim], cluster, prefix)
        await asyncio.to_thread(dead.kill)
        await asyncio.to_thread(dead.start)
    over.set()
    await settled(asyncio.gather(*clients), "calls on the move while nodes died", 60)
    _check(history)
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_queue_whose_node_is_down_keeps_no_worker_from_its_other_queues(
    cluster: Cluster, fleet: Fleet, history: History, tmp_path: Path
) -> None:
    """Classic queues live on the node where they were declared."""
    gate = tmp_path / "gate"
    for queue, first in (("well", 0), ("ailing", 2)):
        worker = await asyncio.to_thread(fleet.start_one, url=cluster.urls(first), queues=[queue])
        assert await asyncio.to_thread(worker.stop) == 0
    worker = await asyncio.to_thread(fleet.start_one, url=cluster.urls(0), queues=["ailing", "well"])
    calls = history.start(20, gated, str(gate), queue="ailing")
    await until(lambda: history.started() == 20, "the calls run")
    dead = cluster.nodes[2]
    await asyncio.to_thread(dead.kill)
    await settled(asyncio.gather(*history.start(50, echo, queue="well")), "calls on the other queue", 60)
    await until(lambda: "queue 'ailing' cannot be served for now" in worker.output, "the worker says so", 60)
    assert not any(call.done() for call in calls)
    gate.touch()
    await asyncio.to_thread(dead.start)
    await settled(asyncio.gather(*calls), "calls that ran while their queue was away", 60)
    await until(lambda: "queue 'ailing' is served again" in worker.output, "the worker serves it", 60)
    await settled(asyncio.gather(*history.start(20, echo, queue="ailing")), "calls on it")
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.fixture(params=["classic", "quorum"])
async def parents(
    request: pytest.FixtureRequest, cluster: Cluster, fleet: Fleet, connected: None
) -> WorkerProcess:
    """The worker of calls that resume, whose journals so live on node 2. Its work queue is on node 0, as is that
    of another worker, which has the queue "other"."""

    def start(first: int, queue: str) -> WorkerProcess:
        return fleet.start_one(
            url=cluster.urls(first), module="tests.faults.resuming", queues=[queue], queue_type=request.param
        )

    await asyncio.to_thread(start, 0, "other")
    declares = await asyncio.to_thread(start, 0, "default")
    assert await asyncio.to_thread(declares.stop) == 0
    parents = await asyncio.to_thread(start, 2, "default")
    if request.param == "quorum":
        await asyncio.to_thread(_on_disk, cluster)
    return parents


async def test_a_call_has_the_replies_to_its_calls_although_the_node_of_its_journal_is_dead(
    cluster: Cluster, parents: WorkerProcess, history: History, tmp_path: Path
) -> None:
    key, gate = uuid.uuid4().hex, tmp_path / "gate"
    task = asyncio.create_task(fanned(key, "other", [str(gate)] * 2))
    await until(lambda: history.runs(f"{key}-0") and history.runs(f"{key}-1"), "its calls run")
    dead = cluster.nodes[2]
    await asyncio.to_thread(dead.kill)
    await until(lambda: "is restored" in parents.output, "its worker is at another node")
    await asyncio.sleep(11)  # those who run its calls have looked whether the journal is there
    gate.touch()
    await settled(task, "a call whose calls ran when the node of its journal died", 60)
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]
    await asyncio.to_thread(dead.start)


async def test_a_call_waits_for_the_node_of_its_journal_before_its_next_step_and_repeats_none(
    cluster: Cluster, parents: WorkerProcess, history: History, tmp_path: Path
) -> None:
    key, gates = uuid.uuid4().hex, [tmp_path / name for name in "ab"]
    task = asyncio.create_task(row(key, [str(gate) for gate in gates]))
    await until(lambda: history.runs(f"{key}-0"), "its first step")
    await asyncio.sleep(1)  # it has ended, and the number is drawn
    dead = cluster.nodes[2]
    await asyncio.to_thread(dead.kill)
    for gate in gates:
        gate.touch()
    await until(lambda: "waits for the node that has its journal" in parents.output, "the worker says so", 60)
    assert not task.done()
    await asyncio.to_thread(dead.start)
    await settled(task, "a call whose journal was away", 60)
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]


async def test_a_reply_that_finds_neither_journal_nor_lock_is_asked_for_when_the_node_is_back(
    cluster: Cluster, fleet: Fleet, connected: None, proxy: Proxy, history: History, tmp_path: Path
) -> None:
    """Neither the journal nor the lock can take it. The call waits for no longer than for the node."""

    def start(url: list[str], queue: str) -> WorkerProcess:
        return fleet.start_one(url=url, module="tests.faults.resuming", queues=[queue])

    key, gate, dead = uuid.uuid4().hex, tmp_path / "gate", cluster.nodes[2]
    await asyncio.to_thread(start, cluster.urls(0), "other")
    declares = await asyncio.to_thread(start, cluster.urls(0), "default")
    assert await asyncio.to_thread(declares.stop) == 0
    parents = await asyncio.to_thread(start, [dead.url, proxy.url()], "default")
    task = asyncio.create_task(fanned(key, "other", [str(gate)]))
    await until(lambda: history.runs(f"{key}-0"), "its call runs")
    proxy.refuse()
    await asyncio.to_thread(dead.kill)
    await until(lambda: "is lost" in parents.output, "its worker has no connection")
    gate.touch()
    await until(lambda: history.runs(f"{key}-0")[0].ending == "end", "its call has ended")
    await asyncio.sleep(1)  # the broker has nowhere to put the reply
    proxy.resume()
    await until(lambda: "waits for the node that has its journal" in parents.output, "the worker says so", 60)
    assert not task.done()
    await asyncio.to_thread(dead.start)
    await settled(task, "a call whose step ended while nobody could hear of it", 60)
    assert len(history.runs(f"{key}-0")) == 1
