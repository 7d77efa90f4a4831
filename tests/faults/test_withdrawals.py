"""Calls that nobody awaits any more do not begin, whoever was away when their awaits ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from tests.faults.callers import CallerProcess
from tests.faults.history import History, settled
from tests.faults.proxy import Proxy
from tests.faults.tasks import counting, echo, gated, leaf
from tests.faults.workers import Fleet
from tests.pace import keeping_pace
from tests.withdrawing import by_cancel, by_timeout

PATIENCE = 3.0
"""Seconds for which a caller may be away in some of these tests; otherwise 30."""
WAIT = 3.5
"""Seconds after which a call has waited so long that its caller is asked."""


async def _declared(fleet: Fleet) -> None:
    """There are work queues, and no worker."""
    fleet.start_one().stop()


async def _at_the_broker(fleet: Fleet, count: int) -> None:
    await until(
        lambda: sum(queue.messages for queue in fleet.queues()) == count, f"{count} calls are at the broker"
    )


@pytest.mark.parametrize("end", [by_timeout, by_cancel])
@pytest.mark.parametrize("old", [True, False])
async def test_calls_whose_awaits_ended_before_a_worker_came_do_not_begin(
    fleet: Fleet,
    history: History,
    prefix: str,
    end: Callable[[list[asyncio.Task[object]]], Awaitable[None]],
    old: bool,
) -> None:
    await _declared(fleet)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        calls = [asyncio.create_task(echo(f"unwanted-{number}", "")) for number in range(25)]
        await _at_the_broker(fleet, 25)
        await end(list(calls))
        wanted = history.start(5, echo, key=None)
        if old:
            await asyncio.sleep(WAIT)
        fleet.start_one(concurrency=4)
        await settled(asyncio.gather(*wanted), "calls that are wanted")
        await fleet.quiet()
        assert [run for run in history.runs() if run.key.startswith("unwanted")] == []
    history.completed()


@pytest.mark.parametrize("how", ["leave", "kill", "interrupt"])
async def test_calls_of_a_caller_that_is_gone_do_not_begin(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path, how: str
) -> None:
    await _declared(fleet)
    caller = CallerProcess(history.path, fleet.broker.url, prefix, 30, tmp_path / "gate")
    try:
        await _at_the_broker(fleet, 30)
        if how == "kill":
            caller.kill()
        else:
            caller.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(caller.wait)
        fleet.start_one(concurrency=4, caller_patience=PATIENCE)
        async with atasks.connect(fleet.broker.url, prefix=prefix), keeping_pace() as pace:
            await settled(asyncio.gather(*history.start(20, echo)), "calls of a living caller")
            assert pace.seconds < 3, "they do not wait for calls of the dead"
        await fleet.quiet()
        assert [run for run in history.runs() if run.key not in history.made] == []
    finally:
        caller.close()


async def test_calls_of_a_dead_caller_keep_nobody_waiting(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    fleet.start_one(concurrency=10)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        blocking = history.start(10, gated, str(tmp_path / "gate"))
        await until(lambda: history.started() == 10, "all slots in use")
        caller = CallerProcess(history.path, fleet.broker.url, prefix, 60, tmp_path / "never")
        try:
            await _at_the_broker(fleet, 70)
            caller.kill()
            await asyncio.sleep(WAIT)
            (tmp_path / "gate").touch()
            await settled(asyncio.gather(*blocking), "calls that ran before")
            async with keeping_pace() as pace:
                await settled(asyncio.gather(*history.start(20, echo)), "calls of a living caller")
                assert pace.seconds < 5
            assert len(history.runs()) == 30, "none of the dead caller's calls has begun"
        finally:
            caller.close()


async def test_leaving_ends_what_runs_and_what_waits_at_once(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    fleet.start_one(concurrency=5)

    items: list[object] = []

    async def read() -> None:
        async for item in counting("stream", 100, str(tmp_path / "gate")):
            items.append(item)  # noqa: PERF401  # a comprehension would hide them until the end

    async with atasks.connect(fleet.broker.url, prefix=prefix):
        calls: list[asyncio.Task[object]] = [asyncio.create_task(read())]
        await until(lambda: len(items) == 50, "the stream waits for the gate")
        calls += history.start(12, gated, str(tmp_path / "gate"))
        lives_on = history.start(1, gated, str(tmp_path / "gate"), key="orphan", orphan="run", priority=3)
        await until(lambda: history.started() == 5, "all slots in use")
        await _at_the_broker(fleet, 14)
    async with keeping_pace() as pace:
        await until(lambda: sum(run.ending == "cancelled" for run in history.runs()) == 5, "what ran is cancelled")
        await until(
            lambda: any(run.key == "orphan" for run in history.runs()), "what is to run without a caller runs"
        )
        assert pace.seconds < 2
    (tmp_path / "gate").touch()
    await fleet.quiet()
    assert sorted(str(run.ending) for run in history.runs()) == ["cancelled"] * 5 + ["end"]
    await asyncio.wait([*calls, *lives_on])
    assert isinstance(calls[0].exception(), atasks.CallConnectionLost)


async def test_what_was_cancelled_long_ago_does_not_begin_although_much_was_cancelled_since(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    fleet.start_one(concurrency=2)
    async with atasks.connect(fleet.broker.url, prefix=prefix):
        blocking = history.start(2, gated, str(tmp_path / "gate"))
        await until(lambda: history.started() == 2, "all slots in use")
        calls = [asyncio.create_task(echo.options(batch=False)(f"no-{number}", "")) for number in range(11_000)]
        await _at_the_broker(fleet, 11_002)
        await by_cancel(list(calls))
        (tmp_path / "gate").touch()
        await settled(asyncio.gather(*blocking, *history.start(3, echo)), "calls that are wanted")
        assert [run for run in history.runs() if run.key not in history.made] == []


@pytest.mark.parametrize("how", ["stopped", "cut"])
async def test_a_caller_that_is_away_for_a_while_loses_nothing(
    fleet: Fleet, history: History, prefix: str, proxy: Proxy, tmp_path: Path, how: str
) -> None:
    await _declared(fleet)
    caller = CallerProcess(history.path, proxy.url(), prefix, 40, tmp_path / "gate", delivery="at_most_once")
    try:
        await _at_the_broker(fleet, 40)
        if how == "stopped":
            caller.process.send_signal(signal.SIGSTOP)
        else:
            proxy.refuse()
            proxy.drop()
        (tmp_path / "gate").touch()
        await asyncio.sleep(WAIT)
        fleet.start_one(concurrency=4)
        async with atasks.connect(fleet.broker.url, prefix=prefix):
            await settled(asyncio.gather(*map(leaf, range(10))), "calls of another caller")
        await asyncio.sleep(1)
        if how == "stopped":
            caller.process.send_signal(signal.SIGCONT)
        else:
            proxy.resume()
        assert await asyncio.to_thread(caller.wait) == 0, caller.output
        assert len(history.runs()) == 40
    finally:
        caller.close()


async def test_calls_that_are_to_run_without_a_caller_begin_although_it_is_gone(
    fleet: Fleet, history: History, prefix: str, tmp_path: Path
) -> None:
    await _declared(fleet)
    caller = CallerProcess(history.path, fleet.broker.url, prefix, 8, tmp_path / "gate", orphan="run")
    try:
        await _at_the_broker(fleet, 8)
        caller.kill()
        (tmp_path / "gate").touch()
        await asyncio.sleep(WAIT)
        fleet.start_one(concurrency=4)
        await fleet.quiet()
        assert [run.ending for run in history.runs()] == ["end"] * 8
    finally:
        caller.close()
