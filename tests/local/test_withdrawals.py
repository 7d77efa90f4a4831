"""Calls around a hub that nobody awaits any more, and those of callers that are gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import atasks
from atasks.testing import until
from tests.faults.history import History, settled
from tests.faults.processes import Process
from tests.faults.tasks import echo, gated
from tests.local.fleet import Fleet
from tests.pace import keeping_pace
from tests.withdrawing import by_cancel, by_timeout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_calls_of_a_caller_that_is_gone_end_and_do_not_begin(
    fleet: Fleet, history: History, tmp_path: Path, number: signal.Signals
) -> None:
    await fleet.server(concurrency=10)
    caller = Process("tests.local.waiters", fleet.url, "30", str(tmp_path / "never"))
    try:
        async with atasks.connect(fleet.url, hub=False):
            await until(lambda: history.started() == 10, "all slots in use")
            caller.signal(number)
            async with keeping_pace() as pace:
                await settled(asyncio.gather(*history.start(20, echo)), "calls of a living caller")
                assert pace.seconds < 3
        runs = history.runs()
        assert len(runs) == 30
        assert [run.ending for run in runs if run.key not in history.made] == ["cancelled"] * 10
    finally:
        caller.close()


@pytest.mark.parametrize("end", [by_timeout, by_cancel])
async def test_calls_whose_awaits_ended_before_there_was_a_slot_do_not_begin(
    fleet: Fleet,
    history: History,
    tmp_path: Path,
    end: Callable[[list[asyncio.Task[object]]], Awaitable[None]],
) -> None:
    await fleet.server(concurrency=2)
    async with atasks.connect(fleet.url, hub=False):
        blocking = history.start(2, gated, str(tmp_path / "gate"))
        await until(lambda: history.started() == 2, "all slots in use")
        unwanted = [asyncio.create_task(echo(f"no-{number}", "")) for number in range(11_000)]
        await asyncio.sleep(0.1)
        await end(list(unwanted))
        with pytest.raises(atasks.NoWorker):  # the hub answers in the order in which it was told
            await echo.options(queue="nobody", on_no_worker="error")("no-worker", "")
        (tmp_path / "gate").touch()
        await settled(asyncio.gather(*blocking, *history.start(3, echo)), "calls that are wanted")
        assert len(history.runs()) == 5


async def test_leaving_ends_what_runs_at_once(fleet: Fleet, history: History, tmp_path: Path) -> None:
    await fleet.server(concurrency=4)
    async with atasks.connect(fleet.url, hub=False):
        calls = history.start(12, gated, str(tmp_path / "gate"))
        await until(lambda: history.started() == 4, "all slots in use")
    async with keeping_pace() as pace:
        await until(lambda: [run.ending for run in history.runs()] == ["cancelled"] * 4, "all runs end")
    assert pace.seconds < 2
    await asyncio.wait(calls)
    assert set(history.errors()) == {"CallConnectionLost"}
