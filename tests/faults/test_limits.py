"""Limits while workers die and connections are cut: never more than they say."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import atasks
from atasks import Limit, LimitError, atask
from atasks.testing import until
from tests.broker import Broker, BrokerError, PrivateNode
from tests.brokers.private_node import find_sbin
from tests.faults.history import settled
from tests.faults.limited import limited, limited_and_rated, rated
from tests.faults.proxy import Proxy
from tests.faults.workers import Fleet
from tests.waiting import DEADLINE

pytestmark = pytest.mark.timeout(300)  # up to eight processes are started one after the other
QUEUE_TYPES = ["classic", "quorum"]
LIMITED = "tests.faults.limited"


class Visit(NamedTuple):
    """One run of a body."""

    call: str
    pid: int
    began: float
    ended: float


class Visits:
    """Visits that the bodies noted, and the times at which their processes were killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.killed: dict[int, float] = {}

    def kill(self, fleet: Fleet, index: int) -> None:
        worker = fleet.workers[index]
        self.killed[worker.pid] = time.perf_counter()
        worker.kill()

    def lines(self) -> list[list[str]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [line.split() for line in text.splitlines()]

    @property
    def began(self) -> int:
        return sum(line[0] == "in" for line in self.lines())

    def all(self) -> Iterator[Visit]:
        """Every visit; one that was cut off ended when its process was killed."""
        open_: dict[tuple[str, int], float] = {}
        for word, call, pid, at in self.lines():
            key = (call, int(pid))
            if word == "in":
                open_[key] = float(at)
            else:
                yield Visit(call, key[1], open_.pop(key), float(at))
        for (call, pid_), at_ in open_.items():  # or was cancelled when its connection was cut
            yield Visit(call, pid_, at_, self.killed.get(pid_, at_))

    def most(self) -> int:
        """The largest number of bodies that were inside at the same time."""
        steps = [(visit.began, 1) for visit in self.all()] + [(visit.ended, -1) for visit in self.all()]
        inside = most = 0
        for _, step in sorted(steps):
            inside += step
            most = max(most, inside)
        return most

    def shortest(self, count: int) -> float:
        """The shortest time in which one more than so many began."""
        began = sorted(visit.began for visit in self.all())
        return min(later - earlier for earlier, later in zip(began, began[count:], strict=False))


@pytest.fixture
def visits(tmp_path: Path) -> Visits:
    return Visits(tmp_path / "visits")


def tokens(fleet: Fleet, name: str, kind: str) -> int:
    """Tokens of a limit at the broker."""
    ending = f".limit.default.{name}.{kind}"
    return sum(queue.messages for queue in fleet.broker.queues() if queue.name == fleet.prefix + ending)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_a_thousand_calls_at_three_workers_that_are_killed(
    fleet: Fleet, visits: Visits, queue_type: str
) -> None:
    fleet.start(3, module=LIMITED, queue_type=queue_type, concurrency=20)
    calls = [asyncio.create_task(limited(str(visits.path), 0.004)) for _ in range(1000)]
    for number in range(4):
        await until(lambda goal=100 * (number + 1): visits.began >= goal, "some of them began", DEADLINE)
        visits.kill(fleet, number)
        await asyncio.to_thread(fleet.start, module=LIMITED, queue_type=queue_type, concurrency=20)
    await settled(asyncio.gather(*calls), "1 000 calls", 120)
    assert visits.most() == 3
    await until(lambda: tokens(fleet, "three", "places") == 3, "all tokens are back")


@pytest.mark.usefixtures("connected")
async def test_each_of_three_workers_has_its_share(fleet: Fleet, visits: Visits) -> None:
    """Workers have as many turns each, as long as each has calls: how many it has is a matter of who took them
    first."""
    fleet.start(3, module=LIMITED, concurrency=20)
    await settled(asyncio.gather(*(limited(str(visits.path), 0.004) for _ in range(600))), "600 calls", 60)
    assert visits.most() == 3
    order = [visit.pid for visit in sorted(visits.all(), key=lambda visit: visit.began)]
    first = max(order.index(worker.pid) for worker in fleet.workers)
    last = min(len(order) - order[::-1].index(worker.pid) for worker in fleet.workers)
    shares = Counter(order[first:last])
    assert last - first > 60, order
    assert min(shares[worker.pid] for worker in fleet.workers) > 0.3 * (last - first), shares


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_a_rate_over_three_workers_that_are_killed(fleet: Fleet, visits: Visits, queue_type: str) -> None:
    fleet.start(3, module=LIMITED, queue_type=queue_type, concurrency=20)
    calls = [asyncio.create_task(rated(str(visits.path), 0.004)) for _ in range(80)]
    for number in range(3):
        await until(lambda goal=15 * (number + 1): visits.began >= goal, "some of them began", DEADLINE)
        visits.kill(fleet, number)
        await asyncio.to_thread(fleet.start, module=LIMITED, queue_type=queue_type, concurrency=20)
    await settled(asyncio.gather(*calls), "80 calls", 60)
    assert visits.shortest(10) > 0.99, "eleven in a second"
    await until(
        lambda: (tokens(fleet, "ten", "rate"), tokens(fleet, "ten", "cooling")) == (10, 0),
        "all tokens are back",
        30,
    )


@pytest.mark.usefixtures("connected")
async def test_both_at_once(fleet: Fleet, visits: Visits) -> None:
    fleet.start(3, module=LIMITED, concurrency=20)
    calls = [asyncio.create_task(limited_and_rated(str(visits.path), 0.01)) for _ in range(60)]
    await until(lambda: visits.began >= 20, "some of them began", DEADLINE)
    visits.kill(fleet, 0)
    await settled(asyncio.gather(*calls), "60 calls", 60)
    assert visits.most() <= 2
    assert visits.shortest(10) > 0.495


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.usefixtures("connected")
async def test_cut_connections_cost_no_token_and_make_none(
    fleet: Fleet, visits: Visits, proxy: Proxy, queue_type: str
) -> None:
    fleet.start(1, module=LIMITED, queue_type=queue_type, concurrency=20)
    fleet.start(2, module=LIMITED, url=proxy.url(), queue_type=queue_type, concurrency=20)
    calls = [asyncio.create_task(limited(str(visits.path), 0.01)) for _ in range(300)]
    for number in range(4):
        await until(lambda goal=50 * (number + 1): visits.began >= goal, "some of them began", DEADLINE)
        proxy.drop()
    await settled(asyncio.gather(*calls), "300 calls", 120)
    await until(lambda: tokens(fleet, "three", "places") == 3, "there are three tokens")
    # what was inside when it was cut off goes on, and its token goes to others
    assert visits.most() <= 6


@pytest.mark.usefixtures("connected")
async def test_a_broker_that_is_killed_comes_back_with_all_tokens(
    fleet: Fleet, node: Broker, visits: Visits
) -> None:
    fleet.start(2, module=LIMITED, concurrency=20)
    calls = [asyncio.create_task(rated(str(visits.path), 0.01)) for _ in range(30)]
    more = [asyncio.create_task(limited(str(visits.path), 0.01)) for _ in range(300)]
    await until(lambda: visits.began >= 50, "some of them began", DEADLINE)
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.start)
    await settled(asyncio.gather(*calls, *more), "330 calls", 120)
    await until(lambda: tokens(fleet, "three", "places") == 3, "there are three tokens", 30)
    await until(lambda: tokens(fleet, "ten", "rate") == 10, "and ten", 30)


@pytest.mark.usefixtures("connected")
async def test_another_number_while_workers_with_the_old_one_live(
    fleet: Fleet, visits: Visits, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.start(1, module=LIMITED)
    await settled(limited(str(visits.path), 0.0), "a call")
    other = Limit("three", at_once=5)
    async with other:  # the younger declaration
        assert "at_once=5 from now on: it was at_once=3" in caplog.text
        calls = [asyncio.create_task(limited(str(visits.path), 0.5)) for _ in range(8)]
        await settled(asyncio.gather(*calls), "calls")
    assert visits.most() == 4, "an old worker has the new number: five, of which one is held here"
    await asyncio.to_thread(
        fleet.start, module=LIMITED
    )  # one more of the old ones, whose declaration is the youngest now
    await settled(asyncio.gather(*(limited(str(visits.path), 0.05) for _ in range(30))), "calls at both")
    await until(lambda: tokens(fleet, "three", "places") == 3, "the tokens that were too many are gone")
    visits.path.unlink()
    await settled(asyncio.gather(*(limited(str(visits.path), 0.05) for _ in range(12))), "calls at both")
    assert visits.most() == 3
    async with other:
        pass  # this process has used it before: the younger number holds
    await until(lambda: tokens(fleet, "three", "places") == 3, "three tokens are there")


@pytest.mark.usefixtures("connected")
async def test_another_number_when_those_who_used_the_old_one_are_gone(fleet: Fleet, visits: Visits) -> None:
    (worker,) = fleet.start(1, module=LIMITED)
    await settled(limited(str(visits.path), 0.0), "a call")
    other = Limit("three", per_second=5)
    with pytest.raises(LimitError, match=r"5 in 1 s here, and at_once=3"):
        async with other:
            pass
    await asyncio.to_thread(worker.stop)
    async with other:
        pass
    await until(lambda: tokens(fleet, "three", "rate") + tokens(fleet, "three", "cooling") == 5, "five tokens")
    await asyncio.to_thread(fleet.start, module=LIMITED)
    with pytest.raises(LimitError, match=r"at_once=3 here, and 5 in 1 s"):
        await settled(limited(str(visits.path), 0.0), "a call")


PATIENCE = 8.0
"""Seconds for which the broker waits for an acknowledgement; it looks every second."""


@pytest.fixture
def impatient(own_broker: Broker) -> Iterator[Broker]:
    sbin = find_sbin()
    if sbin is None:
        raise BrokerError("the limit is set on a private node: install rabbitmq-server")
    node = PrivateNode(sbin)
    node.start()
    for name, value in (("consumer_timeout", PATIENCE), ("channel_tick_interval", 1.0)):
        node.ctl("eval", f"application:set_env(rabbit, {name}, {value * 1000:.0f}).")
    yield node
    node.close()


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
async def test_a_token_that_is_held_for_long_is_exchanged(
    impatient: Broker, prefix: str, queue_type: str, caplog: pytest.LogCaptureFixture, no_leaked_tasks: None
) -> None:
    order: list[str] = []

    @atask(name="long-holder", namespace=f"long-{queue_type}")
    async def nothing() -> None: ...

    long = Limit("long", at_once=1, namespace=nothing.namespace)
    options = {"prefix": prefix, "queue_type": queue_type, "consumer_timeout": PATIENCE}

    async def second() -> None:
        async with (
            atasks.connect(impatient.url, namespace=nothing.namespace, **options),  # type: ignore[arg-type]
            long,
        ):
            order.append("second")

    async with atasks.connect(impatient.url, namespace=nothing.namespace, **options):  # type: ignore[arg-type]
        async with long:
            waiting = asyncio.create_task(second())
            await asyncio.sleep(3 * PATIENCE)
            order.append("first")
            assert not waiting.done()
        await settled(waiting, "the second one")
    assert order == ["first", "second"]
    assert not [record for record in caplog.records if "connection to RabbitMQ" in record.message]
