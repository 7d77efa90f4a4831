"""Connections that are cut, go silent or come and go, with calls in flight. No process dies in these tests."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Literal

import pytest

import atasks
from atasks.testing import until
from atasks.transport.backends.amqp import AMQPTransport
from atasks.transport.backends.amqp.caller import requests
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy, Role
from tests.faults.tasks import block, echo, gated, work
from tests.faults.workers import Fleet

HEARTBEAT = 1
"""Seconds: with this a client notices within seven that nothing comes."""
LINK = 2
"""Connections of one process."""

Sides = list[Proxy]


def _sides(where: str, caller: Proxy, worker: Proxy) -> Sides:
    return {"caller": [caller], "worker": [worker], "both": [caller, worker]}[where]


async def _reconnected(sides: Sides, before: list[int]) -> None:
    """Return when the clients have opened connections anew."""
    for proxy, accepted in zip(sides, before, strict=True):
        await until(lambda p=proxy, n=accepted: p.accepted >= n + LINK, "the client has connected again")


async def _ended(history: History, calls: list[asyncio.Task[object]], fleet: Fleet) -> None:
    """Every await ends, and ends well; an at-most-once call may have got lost, and says so."""
    await settled(asyncio.gather(*calls), "calls whose connection was lost")
    history.check()
    lost = [item for item in history.awaits if item.error is not None]
    assert {item.delivery for item in lost} <= {"at_most_once"}, lost
    assert {type(item.error).__name__ for item in lost} <= {"WorkerLost", "CallConnectionLost"}, lost
    await fleet.quiet()


@pytest.mark.parametrize(
    ("where", "role"),
    [
        ("caller", None),
        ("caller", "publish"),
        ("caller", "consume"),
        ("worker", None),
        ("worker", "publish"),
        ("worker", "consume"),
        ("both", None),
        ("both", "closed by the broker"),
    ],
)
async def test_calls_go_on_over_a_cut(
    fleet: Fleet,
    history: History,
    node: Broker,
    proxy: Proxy,
    second_proxy: Proxy,
    prefix: str,
    tmp_path: Path,
    where: str,
    role: Role | Literal["closed by the broker"] | None,
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(url=second_proxy.url(), concurrency=200)
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = history.start(400, gated, str(gate))
        calls += history.start(100, gated, str(gate), delivery="at_most_once")
        await until(lambda: history.started() >= 200, "all slots in use")
        sides = _sides(where, proxy, second_proxy)
        before = [side.accepted for side in sides]
        if role == "closed by the broker":
            await asyncio.to_thread(node.close_all_connections)
        else:
            for side in sides:
                assert side.drop(role)
        await _reconnected(sides, before)
        gate.touch()
        await _ended(history, calls, fleet)
    assert len(history.runs()) <= 500, "a worker that runs a call, or has finished it, does not run it again"


@pytest.mark.parametrize("fault", ["half-open", "blackhole"])
async def test_calls_go_on_after_silence(
    fleet: Fleet,
    history: History,
    proxy: Proxy,
    second_proxy: Proxy,
    prefix: str,
    tmp_path: Path,
    fault: str,
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(url=second_proxy.url(heartbeat=HEARTBEAT), concurrency=200)
    async with atasks.connect(proxy.url(heartbeat=HEARTBEAT), prefix=prefix):
        calls = history.start(400, gated, str(gate))
        calls += history.start(100, gated, str(gate), delivery="at_most_once")
        await until(lambda: history.started() >= 200, "all slots in use")
        sides = [proxy, second_proxy]
        before = [side.accepted for side in sides]
        for side in sides:
            if fault == "half-open":
                side.hold()
            else:
                side.blackhole()
        gate.touch()  # replies leave, or try to, while nothing gets through
        for side, accepted in zip(sides, before, strict=True):
            await until(lambda p=side, n=accepted: p.accepted > n, "the client has noticed")
        for side in sides:
            if fault == "blackhole":
                side.resume()
        await _ended(history, calls, fleet)
    assert len(history.runs()) <= 500, "a worker that runs a call, or has finished it, does not run it again"


async def test_what_is_said_of_a_lost_connection_names_its_broker(
    proxy: Proxy, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process may have several connections."""
    server = proxy.url().partition("@")[2].partition("/")[0]
    async with atasks.connect(proxy.url(), prefix=prefix):
        proxy.refuse()
        proxy.drop()
        await until(lambda: "cannot be restored yet" in caplog.text, "it tries to connect")
        proxy.resume()
        await until(lambda: " is restored" in caplog.text, "it is back")
    lines = [record.message for record in caplog.records if record.name == "atasks.amqp"]
    begin = f"the connection to RabbitMQ at {server} "
    assert lines[0].startswith(f"{begin}is lost: ")
    assert lines[1].startswith(f"{begin}cannot be restored yet: ")
    assert lines[-1] == f"{begin}is restored"
    assert {line.startswith(begin) for line in lines} == {True}


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_a_call_that_blocks_its_worker_past_three_heartbeats_runs_once(
    fleet: Fleet, history: History, prefix: str, delivery: str
) -> None:
    """The broker gives the worker up meanwhile, and delivers what it holds again when it is back."""
    worker = fleet.start_one(url=f"{fleet.broker.url}?heartbeat={HEARTBEAT}", concurrency=20)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        calls = history.start(10, work, 4.0, delivery=delivery)
        await until(lambda: history.started() == 10, "the others run")
        calls += history.start(1, block, 8.0, delivery=delivery)
        await settled(asyncio.gather(*calls), "calls of a worker that was blocked", 60)
        history.completed()
        history.check()
        await fleet.quiet()
    assert len(history.runs()) == 11
    assert "connection to RabbitMQ" in worker.output
    assert "is lost: " in worker.output
    assert "tests.faults.tasks.block" in worker.output
    assert "blocked the event loop" in worker.output


async def test_a_pause_shorter_than_the_heartbeat_is_only_a_pause(
    fleet: Fleet, history: History, proxy: Proxy, second_proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    fleet.start_one(url=second_proxy.url(), concurrency=200)
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = history.start(100, echo)
        await settled(asyncio.gather(*calls), "a first hundred")
        proxy.blackhole()
        calls = history.start(200, echo, delivery="at_most_once") + history.start(200, echo)
        proxy.delay(0.005)
        proxy.resume()
        await settled(asyncio.gather(*calls), "calls behind a pause")
    history.completed()
    history.check()
    await fleet.quiet()
    assert len(history.runs()) == 500
    assert proxy.accepted == LINK, "no connection was given up"


async def test_a_cut_between_publish_and_confirm(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=50)
    async with atasks.connect(proxy.url(), prefix=prefix):
        await history.call(echo)
        proxy.mute("to_client")
        calls = history.start(80, gated, str(gate)) + history.start(20, gated, str(gate), delivery="at_most_once")
        await until(lambda: history.started() == 51, "the requests have arrived; their confirms do not")
        before = proxy.accepted
        proxy.drop()
        await _reconnected([proxy], [before])
        gate.touch()
        await _ended(history, calls, fleet)
        assert len(history.runs()) <= 101, "what was sent again is known to the worker, and runs once"


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_a_cut_between_reply_and_acknowledgement(
    fleet: Fleet, history: History, second_proxy: Proxy, prefix: str, delivery: str
) -> None:
    fleet.start_one(url=second_proxy.url(), concurrency=100)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        await history.call(echo)
        await fleet.quiet()
        second_proxy.mute("to_broker", "consume")
        calls = history.start(100, echo, delivery=delivery)
        await settled(asyncio.gather(*calls), "replies that are not acknowledged")
        history.completed()
        before = second_proxy.accepted
        second_proxy.drop()
        await _reconnected([second_proxy], [before])
        await fleet.quiet()
    history.check()
    assert len(history.runs()) == 101, "what was delivered again had finished, and did not run again"


async def test_an_at_most_once_call_whose_acknowledgement_died_with_its_worker_does_not_run_again(
    fleet: Fleet, history: History, second_proxy: Proxy, prefix: str
) -> None:
    victim = fleet.start_one(url=second_proxy.url(), concurrency=100)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        await history.call(echo)
        await fleet.quiet()
        second_proxy.mute("to_broker", "consume")
        calls = history.start(50, echo, delivery="at_most_once")
        await settled(asyncio.gather(*calls), "replies that are not acknowledged")
        await asyncio.to_thread(fleet.start)
        victim.kill()
        await fleet.quiet()
    history.completed()
    history.check()
    assert len(history.runs()) == 51


async def test_a_last_attempt_whose_worker_was_only_cut_off_is_not_lost(
    fleet: Fleet, history: History, second_proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(url=second_proxy.url())
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        calls = history.start(5, gated, str(gate), max_attempts=1)
        await until(lambda: history.started() == 5, "the calls run")
        await asyncio.to_thread(fleet.start)
        before = second_proxy.accepted
        second_proxy.drop()
        await _reconnected([second_proxy], [before])
        await until(lambda: sum(queue.consumers for queue in fleet.queues()) == 4, "both workers consume")
        gate.touch()
        await settled(asyncio.gather(*calls), "calls whose worker lives")
    history.completed()
    history.check()
    await fleet.quiet()


async def test_connections_that_are_cut_again_and_again(
    fleet: Fleet, history: History, proxy: Proxy, second_proxy: Proxy, prefix: str
) -> None:
    dice = random.Random(5)
    fleet.start_one(url=second_proxy.url(), concurrency=20)
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = []
        for number in range(500):
            delivery = "at_most_once" if number % 5 == 0 else "at_least_once"
            calls += history.start(1, work, dice.random() / 10, delivery=delivery)
        for count in range(50, 500, 50):
            await until(lambda n=count: len(history.awaits) >= n, f"{count} calls have ended")
            dice.choice([proxy, second_proxy]).drop(dice.choice([None, "publish", "consume"]))
        await _ended(history, calls, fleet)


async def test_a_reconnect_that_is_cut_as_well(
    fleet: Fleet, history: History, proxy: Proxy, second_proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    dice = random.Random(7)
    fleet.start_one(url=second_proxy.url(), concurrency=50)
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = history.start(100, gated, str(gate))
        await until(lambda: history.started() == 50, "all slots in use")
        for side in (proxy, second_proxy):
            for _ in range(8):
                side.drop()
                # not before it listens again, and at any moment of what it says first
                said = dice.randrange(1_500)
                before = side.accepted
                await until(
                    lambda p=side, n=before, b=said: p.accepted >= n + LINK and p.forwarded("to_broker") > b,
                    "the client is on its way back",
                )
        gate.touch()
        await _ended(history, calls, fleet)
    assert len([run for run in history.runs() if run.ending == "end"]) == 100  # a caller away for long ends runs


async def test_a_broker_that_refuses_for_a_while(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one(concurrency=100)
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = history.start(50, gated, str(gate))
        await until(lambda: history.started() == 50, "the calls run")
        proxy.refuse()
        proxy.drop()
        calls += history.start(50, echo)  # made while there is no connection
        gate.touch()
        await until(lambda: all(run.ending for run in history.runs()), "the runs have ended unheard")
        assert not history.awaits
        proxy.resume()
        await _ended(history, calls, fleet)
    assert len(history.runs()) == 100


async def test_an_at_most_once_call_that_cannot_be_sent_ends_after_a_while(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "WITHDRAW_SECONDS", 1.0)
    fleet.start_one()
    async with atasks.connect(proxy.url(), prefix=prefix):
        await history.call(echo)
        proxy.mute("to_client", "publish")
        proxy.hold("consume")
        (call,) = history.start(1, echo, delivery="at_most_once")
        await until(lambda: history.started() == 2, "it has run; neither its confirm nor its reply arrives")
        proxy.refuse()
        proxy.drop()
        ended = await settled(call, "a call whose connection does not come back")
        assert isinstance(ended.error, atasks.CallConnectionLost)
        assert ended.error.waited_for == "connection"
        proxy.resume()
        await history.call(echo)
    history.check()
    await fleet.quiet()


async def test_each_url_is_tried(
    fleet: Fleet, history: History, proxy: Proxy, second_proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    fleet.start_one()
    proxy.refuse()
    transport = AMQPTransport([proxy.url(), second_proxy.url()], prefix=prefix)
    await transport.connect()
    try:
        assert second_proxy.accepted == LINK
        calls = history.start(50, gated, str(gate))
        await until(lambda: history.started() == 50, "the calls run")
        proxy.resume()
        second_proxy.refuse()
        second_proxy.drop()
        await _reconnected([proxy], [0])
        gate.touch()
        await settled(asyncio.gather(*calls), "calls of a client that changed brokers")
    finally:
        await transport.disconnect()
    history.completed()
    history.check()
    await fleet.quiet()
