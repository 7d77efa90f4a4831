"""Runs of pipelines on the workers, while submitters, workers and the broker come and go."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import atasks
from atasks import CallCancelled, WorkerLost
from atasks.codecs import get_codec
from atasks.pipeline import Handle, Pipeline, attach, bind, collect, flat_map, map, stage
from atasks.pipeline.submitted.journal import notes_of
from atasks.testing import until
from atasks.transport.backends.local.hub.listener import Host
from atasks.wire import Reply
from tests.broker import Broker
from tests.faults.grounds import AMQPGround, Ground, LocalGround
from tests.faults.history import History, settled
from tests.faults.mended import pipeline as mended_pipeline
from tests.faults.processes import Process
from tests.faults.proxy import Proxy
from tests.faults.submitters import chained, gated_stage
from tests.faults.tasks import counted_to, crash, passed_item, passed_once
from tests.faults.workers import Fleet
from tests.waiting import DEADLINE

STAGES = 5
ITEMS = 6


@pytest.fixture(params=["amqp", "local"])
async def ground(request: pytest.FixtureRequest, history: History) -> AsyncIterator[Ground]:
    """Workers at the broker, or around a hub; the test is connected to it."""
    if request.param == "amqp":
        ground: Ground = AMQPGround(request.getfixturevalue("fleet"))
        async with atasks.connect(ground.url, **ground.options):
            yield ground
        return
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        path = f"{directory}/hub.sock"
        host = await Host.open(path)
        local = LocalGround(host, path, history.path)
        try:
            async with atasks.connect(local.url, **local.options):
                yield local
        finally:
            await asyncio.to_thread(local.fleet.close)
            await host.close()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Path]:
    """A directory: the stage of a number waits until there is a file of that name. All open in the end."""
    path = tmp_path / "gates"
    path.mkdir()
    yield path
    _open(path, *range(STAGES))


def _open(gates: Path, *numbers: int) -> None:
    for number in numbers:
        (gates / str(number)).touch()


async def _running(history: History, number: int) -> None:
    await until(lambda: history.runs(f"stage-{number}"), f"stage {number} runs")


async def test_a_run_outlives_its_submitter_and_is_read_twice_by_another_process(
    ground: Ground, gates: Path
) -> None:
    await ground.start()
    submitter = Process("tests.faults.submitters", ground.url, json.dumps(ground.options), str(gates), str(STAGES))
    try:
        assert await asyncio.to_thread(submitter.wait) == 0, submitter.output
        handle = attach(submitter.output.strip())
    finally:
        submitter.close()
    assert len(handle.task_ids) == STAGES
    assert not await handle.done()
    _open(gates, 0, 1)
    assert await settled(handle.step(1), "the step of a run that goes on") == [0, 1]
    assert not await handle.done()
    _open(gates, 2, 3, 4)
    for _ in range(2):
        assert await settled(handle, "the result") == [0, 1, 2, 3, 4]
    assert await settled(attach(handle.dumps()).step(3), "a step of a run that has ended") == [0, 1, 2, 3]
    assert await handle.done()
    await ground.quiet()


async def test_killing_the_worker_at_every_stage_costs_a_run_nothing_but_time(
    ground: Ground, gates: Path, history: History
) -> None:
    victim = await ground.start_one()
    handle = await chained(str(gates), STAGES).submit([])
    ending = asyncio.ensure_future(_value(handle))
    for number in range(STAGES):
        await until(lambda: ending.done() or history.runs(f"stage-{number}"), f"stage {number} runs")  # noqa: B023
        assert not ending.done(), ending
        victim.kill()
        victim = await ground.start_one()
        _open(gates, number)
    assert await settled(ending, "the result") == [0, 1, 2, 3, 4]
    for number in range(STAGES - 1):
        assert await settled(handle.step(number), "a step") == list(range(number + 1))


async def test_a_failed_run_goes_on_at_workers_with_mended_code(ground: Ground, tmp_path: Path) -> None:
    """The submitter, the workers of both versions and who retries it are processes of their own."""
    notes = tmp_path / "notes"
    options = json.dumps(ground.options)
    broken = Process("tests.faults.mended", ground.url, options, str(notes), "1")
    mended = retries = None
    try:
        await until(lambda: "serves" in broken.output, "a worker serves")
        handle = await mended_pipeline.submit(8)
        with pytest.raises(ZeroDivisionError, match="version 1"):
            await settled(handle, "the result")
        broken.kill()
        mended = Process("tests.faults.mended", ground.url, options, str(notes), "2")
        await until(lambda: mended is not None and "serves" in mended.output, "a worker serves")
        retries = Process("tests.faults.mended", ground.url, options, "retry", handle.id)
        assert await asyncio.to_thread(retries.wait) == 0, retries.output
        assert retries.output.split() == ["14.0"]
        assert await settled(handle, "the result") == 14
        assert notes.read_text().split() == [*(f"1:{n}" for n in range(6)), *(f"2:{n}" for n in range(5, 8))]
    finally:
        for process in (broken, mended, retries):
            if process is not None:
                process.close()


async def test_a_run_moves_on_from_a_worker_that_drains(ground: Ground, gates: Path, history: History) -> None:
    first = await ground.start_one()
    handle = await chained(str(gates), STAGES).submit([])
    _open(gates, 0)
    await _running(history, 1)
    await ground.start()
    stopping = asyncio.create_task(asyncio.to_thread(first.stop))
    _open(gates, 1, 2, 3, 4)
    assert await settled(handle, "the result") == [0, 1, 2, 3, 4]
    assert await settled(stopping, "the drain") == 0
    assert len(history.runs("stage-0")) == 1


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.usefixtures("connected")
async def test_a_run_goes_on_after_a_restart_of_the_broker(
    fleet: Fleet, gates: Path, history: History, node: Broker, how: str
) -> None:
    fleet.start(2)
    handle = await chained(str(gates), STAGES).submit([])
    awaiting = asyncio.ensure_future(_value(handle))
    _open(gates, 0, 1)
    await _running(history, 2)
    await asyncio.to_thread(node.kill if how == "kill" else node.stop)
    _open(gates, 2)
    await asyncio.to_thread(node.start)
    _open(gates, 3, 4)
    assert await settled(awaiting, "the result", 2 * DEADLINE) == [0, 1, 2, 3, 4]
    assert await settled(attach(handle.id).step(1), "a step from before") == [0, 1]


async def test_dropped_connections_interrupt_neither_a_run_nor_who_waits_for_it(
    fleet: Fleet, gates: Path, history: History, proxy: Proxy, second_proxy: Proxy, prefix: str
) -> None:
    fleet.start_one(url=second_proxy.url())
    async with atasks.connect(proxy.url(), prefix=prefix):
        submitting = asyncio.ensure_future(chained(str(gates), STAGES).submit([]))
        await asyncio.sleep(0)  # it begins
        proxy.drop()
        handle = await settled(submitting, "a submission over a connection that was dropped")
        waiting = [asyncio.ensure_future(_value(handle)) for _ in range(3)]
        step = asyncio.ensure_future(handle.step(2))
        for number in range(STAGES):
            await _running(history, number)
            (proxy if number % 2 else second_proxy).drop()
            _open(gates, number)
        assert await settled(step, "a step") == [0, 1, 2]
        assert await settled(asyncio.gather(*waiting), "the results") == [[0, 1, 2, 3, 4]] * 3


async def _value(handle: Any) -> Any:
    return await handle


async def test_a_stage_that_kills_its_workers_ends_the_run(ground: Ground, history: History) -> None:
    await ground.start_one()
    handle = await (stage(crash) | gated_stage(passed_once, "", 1)).submit("poison", "nonce", "kill")
    ending = asyncio.ensure_future(_value(handle))
    until_when = time.monotonic() + 2 * DEADLINE
    while not ending.done():
        assert time.monotonic() < until_when, "the run has not ended"
        if not any(worker.running for worker in ground.workers):
            await ground.start(wait=False)  # it may die before it can say that it is ready
        await asyncio.wait([ending], timeout=0.05)
    with pytest.raises(WorkerLost, match=r"crash|run") as caught:
        await ending
    assert caught.value.attempts == 3
    with pytest.raises(WorkerLost):
        await handle.step(1)
    with pytest.raises(WorkerLost):
        await attach(handle.id)
    assert not history.runs("stage-1")


async def test_a_stage_that_runs_at_most_once_is_not_begun_again(
    ground: Ground, gates: Path, history: History
) -> None:
    victim = await ground.start_one()
    once = passed_once.options(delivery="at_most_once")
    handle = await (chained(str(gates), 1) | gated_stage(once, str(gates), 1)).submit([])
    _open(gates, 0)
    await _running(history, 1)
    victim.kill()
    await ground.start()
    _open(gates, 1)
    with pytest.raises(WorkerLost):
        await settled(handle, "the run")
    assert len(history.runs("stage-1")) == 1
    assert await settled(handle.step(0), "the step before") == [0]


async def test_cancelling_a_run_ends_its_calls_and_every_await_of_it(
    ground: Ground, gates: Path, history: History
) -> None:
    await ground.start(2)
    handle = await chained(str(gates), STAGES).submit([])
    awaiting = [asyncio.ensure_future(_value(attach(handle.id))) for _ in range(3)]
    _open(gates, 0)
    await _running(history, 1)
    await settled(handle.cancel(), "cancelling")
    for each in [*awaiting, _value(handle), handle.step(1), handle.step(4)]:
        with pytest.raises(CallCancelled, match=handle.id):
            await settled(each, "a cancelled run")
    assert await settled(handle.step(0), "a step that had ended") == [0]
    await until(lambda: "cancelled stage-1" in history.path.read_text(), "the call of the stage is cancelled")
    await handle.cancel()  # of a run that has ended: nothing
    assert await handle.done()
    await ground.quiet()


async def test_a_run_that_is_cancelled_before_a_worker_takes_it_never_begins(
    ground: Ground, gates: Path, history: History
) -> None:
    (await ground.start_one()).kill()  # it has declared the queue
    _open(gates, *range(STAGES))
    handle = await settled(chained(str(gates), STAGES).submit([]), "a submission while no worker lives")
    await handle.cancel()
    await ground.start()
    await ground.quiet()
    assert not history.runs("stage-0")
    with pytest.raises(CallCancelled):
        await settled(handle, "a cancelled run")


def overlapping(gates: Path) -> Pipeline[..., Any, Any]:
    """Two stages of many items, each of which waits for its gate."""
    return (
        flat_map(counted_to)
        | map(passed_item, bind=bind(str(gates), "a"), workers=ITEMS)
        | map(passed_item, bind=bind(str(gates), "b"), workers=ITEMS)
        | collect()
    )


async def _noted(handle: Handle[Any]) -> int:
    """The number of items whose results are on record."""
    transport = atasks.get_router().transport()
    assert transport.records is not None
    codec = get_codec()
    notes = [
        await codec.decode(each.payload)
        for each in notes_of(await transport.records.read(handle.id), handle.id)
        if isinstance(each, Reply)
    ]
    return sum(len(note["notes"]) for note in notes)


async def test_items_that_are_through_a_stage_do_not_go_through_it_again_after_a_crash(
    ground: Ground, gates: Path, history: History
) -> None:
    victim = await ground.start_one()
    handle = await overlapping(gates).submit(ITEMS)
    for name in ("a-0", "a-1", "a-3", "b-1"):
        (gates / name).touch()
    await until(lambda: history.runs("b-3"), "items are in both stages at once")
    deadline = time.monotonic() + DEADLINE
    while await _noted(handle) < 4:
        assert time.monotonic() < deadline, "what the items gave is not noted"
        await asyncio.sleep(0.05)
    assert not await handle.done()
    victim.kill()
    await ground.start_one()
    for item in range(ITEMS):
        (gates / f"a-{item}").touch()
        (gates / f"b-{item}").touch()
    assert await settled(handle, "the result") == list(range(ITEMS))
    assert await settled(handle.step(1), "a step") == list(range(ITEMS))
    assert [len(history.runs(name)) for name in ("a-0", "a-1", "a-3", "b-1")] == [1, 1, 1, 1]


async def test_killing_the_worker_again_and_again_costs_overlapping_stages_nothing_but_time(
    ground: Ground, gates: Path, history: History
) -> None:
    victim = await ground.start_one()
    handle = await overlapping(gates).submit(ITEMS)
    ending = asyncio.ensure_future(_value(handle))
    for item in range(ITEMS):
        for part in "ab":
            name = f"{part}-{item}"
            await until(lambda: ending.done() or history.runs(name), f"{name} runs")  # noqa: B023
            if item % 2 == (part == "a"):
                victim.kill()
                victim = await ground.start_one()
            (gates / name).touch()
    assert await settled(ending, "the result") == list(range(ITEMS))
    await ground.quiet()
