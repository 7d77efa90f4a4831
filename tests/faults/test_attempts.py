"""Runs of calls are counted that are passed on, or sent again, just when workers die and connections are cut."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import atasks
from atasks import WorkerLost
from atasks.testing import until
from atasks.transport.backends.amqp import AMQPTransport
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import doomed, gated
from tests.faults.workers import Fleet, WorkerProcess
from tests.waiting import DEADLINE

LINK = 2
"""Connections of one process."""
LONG = 600.0
"""Seconds within which a busy machine has done what comes next."""


def _attempts(history: History, key: str = "call") -> list[int]:
    return [run.attempt for run in history.runs(key)]


def _waits_in_solo(fleet: Fleet, node: Broker) -> bool:
    """True if a last attempt is at a worker."""
    (solo,) = [queue for queue in fleet.queues() if queue.name.endswith(".solo")]
    with node.channel() as channel:
        ready: int = channel.queue_declare(solo.name, passive=True).method.message_count
    return (ready, solo.messages) == (0, 1)


def _delivered_before(worker: WorkerProcess) -> int:
    """The number of calls that the worker has passed on at their next attempt."""
    return worker.output.count("was delivered before")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.usefixtures("connected")
async def test_a_call_that_kills_who_has_just_passed_it_on(
    fleet: Fleet, history: History, second_proxy: Proxy, tmp_path: Path, queue_type: str
) -> None:
    """The copy comes straight back, and kills the worker before the original is acknowledged: both are still
    there."""
    gate = tmp_path / "gate"
    first = fleet.start_one(queue_type=queue_type)
    call = asyncio.create_task(history.call(doomed, str(gate), key="call", max_attempts=2))
    await until(lambda: _attempts(history) == [1], "the first attempt runs")
    second = await asyncio.to_thread(fleet.start_one, url=second_proxy.url(), queue_type=queue_type)
    second_proxy.mute("to_client", "publish")  # what it publishes arrives, and is not confirmed
    gate.touch()
    await until(lambda: not first.running and not second.running, "two workers have died")
    assert _delivered_before(second) == 1
    for _ in range(2):
        await asyncio.to_thread(fleet.start_one, queue_type=queue_type)
    ended = await settled(call, "a call that has killed two workers")
    assert isinstance(ended.error, WorkerLost)
    assert ended.error.attempts == 2
    await fleet.quiet()
    history.check()
    assert _attempts(history) == [1, 2]
    assert sum(_delivered_before(worker) for worker in fleet.workers) == 2, "the original was passed on twice"
    assert sum(worker.running for worker in fleet.workers) == 2


@pytest.mark.usefixtures("connected")
async def test_a_call_that_is_passed_on_twice_over_a_cut_runs_once_at_each_attempt(
    fleet: Fleet, history: History, second_proxy: Proxy, tmp_path: Path
) -> None:
    gate, other_gate = tmp_path / "gate", tmp_path / "other"
    first = fleet.start_one(concurrency=1)
    call = asyncio.create_task(history.call(gated, str(gate), key="call"))
    await until(lambda: _attempts(history) == [1], "the first attempt runs")
    relay = await asyncio.to_thread(fleet.start_one, url=second_proxy.url(), concurrency=2)
    other = asyncio.create_task(history.call(gated, str(other_gate), key="other"))
    await until(lambda: _attempts(history, "other") == [1], "the relay has one slot left")
    second_proxy.mute("to_client", "publish")
    first.kill()
    await until(
        lambda: _delivered_before(relay) == 1, "it passes the call on, and does not know whether it arrived"
    )
    # Its window is full: another worker runs the second attempt.
    second = await asyncio.to_thread(fleet.start_one, concurrency=1)
    await until(lambda: _attempts(history) == [1, 2], "the second attempt runs")
    assert history.runs("call")[-1].pid == second.pid
    before = second_proxy.accepted
    second_proxy.drop()
    await until(lambda: second_proxy.accepted >= before + LINK, "the relay has connected again")
    await until(lambda: "is surplus" in relay.output, "the second copy is dropped")
    assert _delivered_before(relay) == 2
    second.kill()
    await until(lambda: _attempts(history) == [1, 2, 3], "the third attempt runs")
    gate.touch()
    other_gate.touch()
    await settled(asyncio.gather(call, other), "two calls")
    history.completed()
    history.check()
    await fleet.quiet()
    assert _attempts(history) == [1, 2, 3]


async def test_a_call_that_is_sent_again_goes_on_at_its_attempt(
    fleet: Fleet, history: History, node: Broker, prefix: str, tmp_path: Path
) -> None:
    """A reply queue that is deleted has its caller send everything again. The call does not begin anew."""
    gate = tmp_path / "gate"
    transport = AMQPTransport(node.url, prefix=prefix)
    await transport.connect()
    try:
        first = fleet.start_one(concurrency=1)
        call = asyncio.create_task(history.call(doomed, str(gate), key="call", max_attempts=3))
        await until(lambda: _attempts(history) == [1], "the first attempt runs")
        first.kill()
        await asyncio.to_thread(fleet.start_one, concurrency=1)
        await until(lambda: _attempts(history) == [1, 2], "the second attempt runs")
        await asyncio.to_thread(fleet.start_one, concurrency=1)
        with node.channel() as channel:
            channel.queue_delete(transport.session.reply_queue)
        await until(lambda: _attempts(history) == [1, 2, 2], "the copy that was sent again runs too")
        gate.touch()
        async with asyncio.timeout(DEADLINE):
            while not call.done():
                if sum(worker.running for worker in fleet.workers) < 2:
                    await asyncio.to_thread(fleet.start_one, concurrency=1)
                await asyncio.wait([call], timeout=0.05)
        ended = call.result()
        assert isinstance(ended.error, WorkerLost)
        assert ended.error.attempts == 3
        await fleet.quiet()
    finally:
        await transport.disconnect()
    assert _attempts(history) == [1, 2, 2, 3], "once more for the one time that it was sent again"
    assert history.resent == {history.runs("call")[0].call_id: 1}
    history.check()


async def test_a_later_attempt_starts_without_the_word_of_a_silent_caller(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = fleet.start_one(caller_patience=2.0)
    async with atasks.connect(proxy.url(), prefix=prefix):
        call = asyncio.create_task(history.call(gated, str(gate), key="call", orphan="run"))
        await until(lambda: _attempts(history) == [1], "the first attempt runs")
        proxy.hold()
        await asyncio.to_thread(fleet.start_one, caller_patience=2.0)
        first.kill()
        await until(lambda: _attempts(history) == [1, 2], "the second attempt runs")
        gate.touch()
        await until(lambda: history.runs("call")[-1].ending == "end", "it has ended unheard")
        proxy.resume()
        await settled(call, "a call whose caller was silent")
    history.completed()
    history.check()
    await fleet.quiet()


async def test_a_worker_that_drains_gives_back_what_waits_for_the_word_of_its_caller(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = fleet.start_one()
    async with atasks.connect(proxy.url(), prefix=prefix):
        call = asyncio.create_task(history.call(gated, str(gate), key="call", max_attempts=2))
        await until(lambda: _attempts(history) == [1], "the first attempt runs")
        proxy.hold("publish")  # the caller is asked, and its answer does not get through
        second = await asyncio.to_thread(fleet.start_one)
        first.kill()
        await until(lambda: _delivered_before(second) == 1, "the call is passed on")
        await until(
            lambda: "waits until its caller lets it start" in second.output, "the second attempt is asked for"
        )
        assert await asyncio.to_thread(second.stop) == 0
        third = await asyncio.to_thread(fleet.start_one)
        proxy.resume()
        gate.touch()
        await settled(call, "a call that was given back")
    history.completed()
    history.check()
    await fleet.quiet()
    assert [(run.attempt, run.pid) for run in history.runs("call")] == [(1, first.pid), (2, third.pid)]


async def test_a_silent_caller_keeps_no_other_last_attempt_waiting(
    fleet: Fleet, history: History, proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    """For longer than a moment: a worker has one of them at a time, and the next one if nobody answers for it."""
    gate = tmp_path / "gate"
    first = fleet.start_one()
    async with atasks.connect(proxy.url(), prefix=prefix):
        calls = [asyncio.create_task(history.call(gated, str(gate), key=key, max_attempts=2)) for key in "ab"]
        await until(lambda: _attempts(history, "a") == _attempts(history, "b") == [1], "the first attempts run")
        proxy.hold("publish")  # the caller is asked, and its answers do not get through
        second = await asyncio.to_thread(fleet.start_one)
        first.kill()
        await until(lambda: _delivered_before(second) == 2, "both calls are passed on")
        waits = re.compile(r"call (\S+), attempt 2, waits until its caller lets it start")
        await until(lambda: len(set(waits.findall(second.output))) == 2, "both calls are asked for")
        proxy.resume()
        gate.touch()
        await settled(asyncio.gather(*calls), "both calls")
    history.completed()
    history.check()
    await fleet.quiet()


@pytest.mark.usefixtures("connected")
async def test_a_last_attempt_that_has_not_begun_is_not_lost_with_its_worker(
    fleet: Fleet, history: History, node: Broker, tmp_path: Path
) -> None:
    """The call waits to be alone there, and another call kills the worker first."""
    gate, other_gate = tmp_path / "gate", tmp_path / "other"
    first = fleet.start_one(concurrency=1)
    call = asyncio.create_task(history.call(gated, str(gate), key="call", max_attempts=2))
    await until(lambda: _attempts(history) == [1], "the first attempt runs")
    second = await asyncio.to_thread(fleet.start_one, alone_patience=LONG)
    other = asyncio.create_task(history.call(gated, str(other_gate), key="other"))
    await until(lambda: _attempts(history, "other") == [1], "another call runs")
    first.kill()
    await until(lambda: _delivered_before(second) == 1, "the call is passed on")

    await until(lambda: _waits_in_solo(fleet, node), "the last attempt waits for the other call to end")
    second.kill()
    third = await asyncio.to_thread(fleet.start_one)
    await until(lambda: _attempts(history, "other") == [1, 2], "the other call runs elsewhere")
    other_gate.touch()
    await until(lambda: _attempts(history) == [1, 2], "the last attempt runs elsewhere")
    gate.touch()
    await settled(asyncio.gather(call, other), "two calls")
    history.completed()
    history.check()
    await fleet.quiet()
    assert [(run.attempt, run.pid) for run in history.runs("call")] == [(1, first.pid), (2, third.pid)]


@pytest.mark.usefixtures("connected")
async def test_a_last_attempt_that_was_given_back_has_not_begun(
    fleet: Fleet, history: History, node: Broker, tmp_path: Path
) -> None:
    """A worker drains that has begun it, and the next one dies of another call before it begins it anew."""
    gate, other_gate = tmp_path / "gate", tmp_path / "other"
    first = fleet.start_one(concurrency=1)
    call = asyncio.create_task(history.call(gated, str(gate), key="call", max_attempts=2))
    await until(lambda: _attempts(history) == [1], "the first attempt runs")
    leaving = await asyncio.to_thread(fleet.start_one, grace=0.2)
    first.kill()
    await until(lambda: _attempts(history) == [1, 2], "the last attempt runs")
    dying = await asyncio.to_thread(fleet.start_one, alone_patience=LONG)
    other = asyncio.create_task(history.call(gated, str(other_gate), key="other"))
    await until(lambda: _attempts(history, "other") == [1], "another call runs")
    assert history.runs("other")[0].pid == dying.pid
    assert await asyncio.to_thread(leaving.stop) == 0
    await until(lambda: _waits_in_solo(fleet, node), "the last attempt waits for the other call to end")
    dying.kill()
    await asyncio.to_thread(fleet.start_one)
    gate.touch()
    other_gate.touch()
    await settled(asyncio.gather(call, other), "two calls")
    history.completed()
    history.check()
    await fleet.quiet()
    assert _attempts(history) == [1, 2, 2]
