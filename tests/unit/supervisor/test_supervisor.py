"""A supervisor and real worker processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from atasks import WorkersFailed
from atasks.pauses import pauses
from atasks.supervisor import Supervisor
from atasks.supervisor import supervisor as module
from atasks.testing import until

PATIENCE = 60.0
"""Seconds, on a machine that is busy."""

WORKER = str(Path(__file__).with_name("supervised.py"))


class Site:
    """Makes supervisors, and keeps what their workers report and write."""

    def __init__(self) -> None:
        self.supervisors: list[Supervisor] = []
        self.reports: asyncio.Queue[tuple[int, str, list[Any]]] = asyncio.Queue()
        self.output: dict[int, bytes] = {}

    def make(self, *arguments: object, count: int = 1) -> Supervisor:
        command = [sys.executable, WORKER, *map(str, arguments)]
        supervisor = Supervisor(command, count, on_output=self._write, on_report=self._report)
        self.supervisors.append(supervisor)
        return supervisor

    async def start(self, *arguments: object, count: int = 1) -> Supervisor:
        supervisor = self.make(*arguments, count=count)
        async with asyncio.timeout(PATIENCE):
            await supervisor.start()
        return supervisor

    async def report(self, kind: str) -> tuple[int, list[Any]]:
        """The next report of this kind: who, and what."""
        async with asyncio.timeout(PATIENCE):
            while True:
                number, found, values = await self.reports.get()
                if found == kind:
                    return number, values

    def _write(self, number: int, lines: bytes) -> None:
        assert lines.endswith(b"\n")
        self.output[number] = self.output.get(number, b"") + lines

    def _report(self, number: int, kind: str, values: list[Any]) -> None:
        self.reports.put_nowait((number, kind, values))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    for supervisor in site.supervisors:
        await supervisor.stop(grace=0)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], Awaitable[str]]:
    """The first line of the supervisor's log with a text, once there is one."""
    caplog.set_level(logging.INFO, "atasks.supervisor")

    async def wait_for(text: str) -> str:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = [line for line in caplog.messages if text in line]
                if found:
                    return found[0]
                await asyncio.sleep(0.02)

    return wait_for


async def test_start_returns_when_all_serve_and_stop_when_all_have_drained(site: Site) -> None:
    supervisor = await site.start("serve", count=3)
    processes = supervisor.processes
    assert [process.number for process in processes] == [1, 2, 3]
    assert [process.serves for process in processes] == ["as 1", "as 2", "as 3"]
    assert all(process.serving for process in processes)
    await supervisor.stop(PATIENCE)
    assert [process.ended.result() for process in processes] == [0, 0, 0]
    assert sorted([(await site.report("drained"))[0] for _ in processes]) == [1, 2, 3]
    assert supervisor.processes == []
    await supervisor.wait()


async def test_stopped_supervisor_can_be_started_again(site: Site) -> None:
    supervisor = await site.start("serve")
    first = supervisor.processes[0].pid
    await supervisor.stop(PATIENCE)
    await supervisor.start()
    assert supervisor.processes[0].pid != first


async def test_start_that_is_cancelled_leaves_what_serves_to_be_drained(site: Site, tmp_path: Path) -> None:
    supervisor = site.make("serve_alone", tmp_path / "mark", count=2)
    starting = asyncio.create_task(supervisor.start())
    await site.report("not ready")
    await until(lambda: any(process.serving for process in supervisor.processes))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (serving,) = [process for process in supervisor.processes if process.serving]
    await supervisor.stop(PATIENCE)
    assert await site.report("drained") == (serving.number, [serving.pid])
    assert supervisor.processes == []


async def test_worker_that_is_killed_is_replaced_and_its_calls_are_named(
    site: Site, logged: Callable[[str], Awaitable[str]]
) -> None:
    supervisor = await site.start("hold", "held", count=2)
    victim, other = supervisor.processes
    os.kill(victim.pid, signal.SIGKILL)
    line = await logged("takes its place")
    assert line == (
        f"worker 1 (pid {victim.pid}) was killed by SIGKILL while it ran 1 call: task 'app.held' (call call-1); "
        "a new one takes its place"
    )
    await until(
        lambda: len(supervisor.processes) == 2 and all(process.serving for process in supervisor.processes)
    )
    assert supervisor.processes[0].pid != victim.pid
    assert supervisor.processes[1] is other


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no call"),
        (["a"], "1 call: task 'app.a' (call call-1)"),
        (["a", "b"], "2 calls: task 'app.b' (call call-2), task 'app.a' (call call-1)"),
        (["a", "b", "a", "a"], "4 calls: task 'app.a' (3 calls, the latest call-4), task 'app.b' (call call-2)"),
    ],
)
async def test_calls_of_a_dead_worker_are_named_by_atask(
    site: Site, logged: Callable[[str], Awaitable[str]], names: list[str], said: str
) -> None:
    supervisor = await site.start("hold", *names)
    os.kill(supervisor.processes[0].pid, signal.SIGKILL)
    assert f"while it ran {said}; a new one takes its place" in await logged("takes its place")


async def test_calls_past_the_tenth_atask_are_counted(site: Site, logged: Callable[[str], Awaitable[str]]) -> None:
    supervisor = await site.start("hold", *(f"task{number}" for number in [0, 0, *range(12)]))
    os.kill(supervisor.processes[0].pid, signal.SIGKILL)
    line = await logged("takes its place")
    assert "while it ran 14 calls: task 'app.task11' (call call-14), " in line
    assert ", task 'app.task2' (call call-5) and 4 more; a new one" in line


async def test_worker_that_dies_before_it_serves_is_replaced(
    site: Site, tmp_path: Path, logged: Callable[[str], Awaitable[str]]
) -> None:
    supervisor = await site.start("die_once", tmp_path / "mark")
    assert "exited with code 9, before it could serve; a new one takes its place" in await logged("takes its")
    assert [process.serves for process in supervisor.processes] == ["as 1"]


async def test_deaths_of_a_call_that_came_early_are_no_reason_to_give_up(
    site: Site, tmp_path: Path, logged: Callable[[str], Awaitable[str]]
) -> None:
    supervisor = await site.start("die_with_a_call", tmp_path / "mark")
    assert "exited with code 9 while it ran 1 call: task 'app.early' (call call-1);" in await logged("takes its")
    assert (tmp_path / "mark").read_text() == "." * 7
    assert [process.serves for process in supervisor.processes] == ["as 1"]


async def test_worker_that_retires_serves_until_its_replacement_does(
    site: Site, tmp_path: Path, logged: Callable[[str], Awaitable[str]]
) -> None:
    supervisor = await site.start("retire", tmp_path / "mark")
    old = supervisor.processes[0]
    assert await logged("is to be replaced") == f"worker 1 (pid {old.pid}) is to be replaced: it is old"
    assert await site.report("drained") == (1, [old.pid])
    assert await asyncio.wait_for(old.ended, PATIENCE) == 0
    (new,) = supervisor.processes
    assert new.serving
    assert new.pid != old.pid


@pytest.mark.parametrize("count", [1, 3])
async def test_worker_that_says_that_none_can_serve_ends_the_start(site: Site, count: int) -> None:
    supervisor = site.make("refuse", count=count)
    with pytest.raises(WorkersFailed, match=r"^there is no broker$") as caught:
        await asyncio.wait_for(supervisor.start(), PATIENCE)
    assert caught.value.code == 4
    assert supervisor.processes == []


@pytest.mark.parametrize("doing", ["die", "ready_and_die"])
async def test_workers_that_die_faster_than_they_start_end_it(site: Site, doing: str) -> None:
    supervisor = site.make(doing, count=2)
    with pytest.raises(WorkersFailed, match=r"^5 worker processes in a row .* exited with code 9;") as caught:
        async with asyncio.timeout(PATIENCE):
            await supervisor.start()
            await supervisor.wait()
    assert caught.value.code is None


async def test_command_that_does_not_exist_ends_the_start() -> None:
    with pytest.raises(WorkersFailed, match=r"worker 1 cannot be started .*no-such-command"):
        await asyncio.wait_for(Supervisor(["no-such-command"], 1).start(), PATIENCE)


async def test_worker_that_does_not_drain_is_killed(site: Site, logged: Callable[[str], Awaitable[str]]) -> None:
    supervisor = await site.start("ignore")
    (process,) = supervisor.processes
    stopping = asyncio.create_task(supervisor.stop(PATIENCE))
    await site.report("ignored")
    stopping.cancel()  # as a second signal does: what is left is killed at once
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert await asyncio.wait_for(process.ended, PATIENCE) == -signal.SIGKILL

    await supervisor.start()
    (process,) = supervisor.processes
    await supervisor.stop(0.1)
    assert process.ended.result() == -signal.SIGKILL
    assert "and is killed while it ran no call" in await logged("has not drained within 0.1 s")


async def test_lines_of_workers_are_whole_however_they_are_written(site: Site) -> None:
    lines, length = 50, 100
    supervisor = await site.start("write", lines, length, count=3)
    for _ in range(3):
        await site.report("written")
    await supervisor.stop(PATIENCE)
    for number in (1, 2, 3):
        line = str(number).encode() * 100 * length
        assert site.output[number].split(b"\n") == [line] * lines + [b"end", b""]


async def test_process_that_inherits_the_streams_of_a_worker_does_not_hold_up_its_end(
    site: Site, tmp_path: Path
) -> None:
    supervisor = site.make("serve")
    script = (
        f"{sys.executable} {WORKER} serve & echo $! >{tmp_path}/pid; sleep 3600 2>&2 & echo $! >>{tmp_path}/pid"
    )
    supervisor.command = ["/bin/sh", "-c", f"{script}; wait %1; exit 3"]
    await asyncio.wait_for(supervisor.start(), PATIENCE)
    (process,) = supervisor.processes
    worker, sleeper = map(int, (tmp_path / "pid").read_text().split())
    try:
        os.kill(worker, signal.SIGKILL)
        assert await asyncio.wait_for(process.ended, PATIENCE) == 3
        assert psutil.pid_exists(sleeper)
    finally:
        os.kill(sleeper, signal.SIGKILL)


async def test_environment_of_workers(site: Site) -> None:
    supervisor = await site.start("serve", count=2)
    for process in supervisor.processes:
        if sys.platform == "linux":
            assert Path(f"/proc/{process.pid}/comm").read_text() == f"atasks:{process.number}\n"
    assert "ATASKS_TETHER" not in os.environ


def test_pauses_grow_and_differ() -> None:
    each = [islice(pauses(module.FIRST_PAUSE, module.LONGEST_PAUSE), 30) for _ in range(50)]
    for deaths, found in enumerate(zip(*each, strict=True)):
        longest = min(module.FIRST_PAUSE * 2**deaths, module.LONGEST_PAUSE)
        assert all(longest / 2 <= pause <= longest for pause in found)
        assert len(set(found)) > 1


def test_no_workers() -> None:
    with pytest.raises(ValueError, match="count=0: at least 1"):
        Supervisor(["true"], 0)
