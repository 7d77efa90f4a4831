"""Whom calls wait for: warnings, and the words of `CallTimeout`."""

from __future__ import annotations

import asyncio
import logging
import pickle
from pathlib import Path

import pytest

import atasks
from atasks import CallTimeout
from atasks.testing import until
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from tests.broker import Broker
from tests.faults.history import History, settled
from tests.faults.tasks import block, echo, gated
from tests.faults.workers import Fleet


async def _timeout(call: object) -> CallTimeout:
    with pytest.raises(CallTimeout) as raised:
        await call  # type: ignore[misc]
    return raised.value


async def test_a_timeout_says_what_the_call_waited_for(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    (worker,) = fleet.start(1, concurrency=1)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        gate = str(tmp_path / "gate")
        running = asyncio.create_task(_timeout(gated.options(timeout=3.0)("runs", "", gate)))
        await until(lambda: history.started() == 1, "it runs")
        waiting = [asyncio.create_task(_timeout(echo.options(timeout=1.5)(f"waits-{n}", ""))) for n in range(3)]
        for error in await asyncio.gather(*waiting):
            assert (error.waited_for, error.worker, error.ran) == ("turn", None, None)
            assert "did not finish within 1.5 s: it waited for its turn in queue 'default', where 3 calls" in str(
                error
            )
        error = await running
        assert error.waited_for == "run"
        assert error.worker is not None
        assert str(worker.pid) in error.worker
        assert error.ran is not None
        assert 2.0 < error.ran < 3.1
        assert f"it ran at worker {error.worker} for {error.ran:.1f} s" in str(error)
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.waited_for, copy.ran) == (str(error), "run", error.ran)
        worker.stop()
        error = await _timeout(echo.options(timeout=0.8)("none", ""))
        assert (error.waited_for, error.worker, error.ran) == ("worker", None, None)
        assert str(error).endswith("it waited for a worker, and nothing serves queue 'default'")


async def test_a_timeout_says_that_there_was_no_connection(fleet: Fleet, node: Broker, prefix: str) -> None:
    fleet.start_one()
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        await echo("first", "")
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.000001")
        try:
            error = await _timeout(echo.options(timeout=1.5)("blocked", ""))
        finally:
            await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
        assert error.waited_for == "connection"
        assert "the broker has not taken it for queue" in str(error)
        await asyncio.to_thread(node.stop)
        try:
            error = await _timeout(echo.options(timeout=0.8)("lost", ""))
        finally:
            await asyncio.to_thread(node.start)
        assert error.waited_for == "connection"
        assert str(error).endswith("it waited for the connection, which is lost")
        await settled(echo("last", ""), "a call after the restart")


async def test_a_worker_that_does_not_answer_is_named(fleet: Fleet, history: History, prefix: str) -> None:
    fleet.start_one()
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        blocking = asyncio.create_task(block("blocks", "", 3.0))
        await until(lambda: history.started() == 1, "it blocks its worker")
        error = await _timeout(echo.options(timeout=1.0)("behind", ""))
        assert error.waited_for is None
        assert "has it and does not answer: is its event loop blocked?" in str(error)
        await settled(blocking, "the call that blocks")


async def test_calls_that_nothing_serves_are_said_once_a_queue_and_each_minute(
    fleet: Fleet, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.start_one().stop()
    monkeypatch.setattr("atasks.transport.unserved.AGAIN_SECONDS", 4.0)

    def said() -> list[str]:
        return [message for message in caplog.messages if "have waited for a worker" in message]

    async with atasks.connect(fleet.broker.url, prefix=prefix):
        began = asyncio.get_running_loop().time()
        calls = [asyncio.create_task(echo(f"call-{n}", "")) for n in range(7)]
        calls += [asyncio.create_task(echo.options(queue="nobody")(f"other-{n}", "")) for n in range(2)]
        await until(lambda: len(said()) == 2, "it is said of both queues")
        assert 5 <= asyncio.get_running_loop().time() - began < 9
        first, second = sorted(said())
        assert first.startswith("nothing serves queue 'default': 7 calls have waited for a worker, some for ")
        assert second.startswith("nothing serves queue 'nobody': 2 calls have waited for a worker, some for ")
        await until(lambda: len(said()) == 4, "it is said again")
        assert asyncio.get_running_loop().time() - began > 8
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        caplog.clear()
        await asyncio.sleep(3 * OverdueCalls.pause)
        assert said() == []
    assert all(record.levelno == logging.WARNING for record in caplog.records)
