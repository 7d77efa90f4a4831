"""Workers whose clocks are wrong, at the broker and around a hub: deadlines are those of the caller."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import atasks
from atasks import CallTimeout
from atasks.testing import until
from atasks.transport.backends.local.hub.listener import Host
from tests.faults.history import History, settled
from tests.faults.tasks import echo, time_left, work
from tests.faults.workers import Fleet, WorkerProcess
from tests.local.fleet import Fleet as LocalFleet

pytestmark = pytest.mark.timeout(120)

Start = Callable[..., WorkerProcess]


@pytest.fixture(params=["amqp", "local"])
async def start(request: pytest.FixtureRequest, history: History) -> AsyncIterator[Start]:
    """Starts a worker with options; the test is connected to what it serves."""
    if request.param == "amqp":
        fleet: Fleet = request.getfixturevalue("fleet")
        async with atasks.connect(fleet.broker.url, prefix=fleet.prefix):
            yield fleet.start_one
        return
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        host = await Host.open(f"{directory}/hub.sock")
        local = LocalFleet(f"{directory}/hub.sock", history.path)

        def start(**options: Any) -> WorkerProcess:
            process = WorkerProcess(
                history.path, {"url": local.url, "hub": False, "caller_patience": 30.0, **options}
            )
            local.processes.append(process)
            return process

        try:
            async with atasks.connect(local.url, hub=False):
                yield start
        finally:
            await asyncio.to_thread(local.close)
            await host.close()


async def _ready(worker: WorkerProcess) -> WorkerProcess:
    await asyncio.to_thread(worker.wait_ready)
    return worker


@pytest.mark.parametrize("clock", [60.0, -60.0, 2.9, -1.9, 86_400.0])
async def test_a_worker_whose_clock_is_wrong(
    request: pytest.FixtureRequest, start: Start, history: History, clock: float
) -> None:
    worker = await _ready(await asyncio.to_thread(start, clock=clock))
    for _ in range(3):
        ended = await settled(history.call(time_left, timeout=5.0), "a call that has time enough")
        assert ended.error is None
        assert 3 < ended.value[3] < 5.2, "what it has left is what its caller would give it"
    await settled(asyncio.gather(*history.start(50, echo, timeout=5.0)), "many of them")
    await settled(asyncio.gather(*history.start(5, echo, timeout=0.9)), "calls that have little time")
    assert history.errors() == {"value": 58}
    before = time.monotonic()
    ended = await settled(history.call(work, 30.0, timeout=1.5), "a call that takes too long")
    assert 1.4 < time.monotonic() - before < 4
    assert isinstance(ended.error, CallTimeout)
    assert "did not finish within 1.5 s" in str(ended.error)
    await until(lambda: history.runs()[-1].ending == "cancelled", "its run is ended")
    history.check()
    told = re.findall(r"the clock of this worker is ([0-9.]+) s (\S+ ?\S*) that of a caller", worker.output)
    for seconds, side in told:
        assert abs(float(seconds) - abs(clock)) < 1
        assert side == ("ahead of" if clock > 0 else "behind")
    if request.node.callspec.params["start"] == "local":  # where no clocks are compared
        assert not told
    elif abs(clock) > 3:
        assert len(told) == 1


@pytest.mark.parametrize("clock", [60.0, -60.0])
async def test_what_has_waited_past_its_deadline_does_not_begin(
    start: Start, history: History, clock: float
) -> None:
    await _ready(await asyncio.to_thread(start, clock=clock, concurrency=1))
    await settled(history.call(echo, timeout=5.0), "a first call")
    busy = asyncio.create_task(history.call(work, 3.0))
    await until(lambda: len(history.runs()) == 2, "the only slot is in use")
    ended = await settled(history.call(echo, key="late", timeout=1.0), "a call that waits for too long")
    assert isinstance(ended.error, CallTimeout)
    patient = asyncio.create_task(history.call(time_left, timeout=10.0))
    await asyncio.sleep(1.0)
    await settled(asyncio.gather(busy, patient), "the others")
    left = patient.result().value[3]
    assert left < 9.6, "it has waited"
    assert history.runs("late") == []
    history.check()
