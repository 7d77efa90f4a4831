"""Worker processes that a program starts: `atasks.local`."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

import atasks
from atasks import WorkerLost, WorkersFailed, tracking
from atasks.testing import until
from atasks.transport.backends.local import LocalTransport
from tests.faults.history import settled
from tests.local.jobs import (
    NAMESPACE,
    asleep,
    block,
    crash,
    crash_awaiting,
    depth,
    echo,
    fib,
    hold,
    interrupted,
    outer,
    pid,
    touch,
)

pytestmark = pytest.mark.timeout(180)


def pids(transport: atasks.Transport) -> list[int]:
    assert isinstance(transport, LocalTransport)
    assert transport.worker_processes is not None
    return transport.worker_processes.pids


def marks(directory: Path) -> list[Path]:
    return sorted(directory.glob("mark.*"))


@pytest.fixture
async def transport(no_leaked_tasks: None) -> AsyncIterator[atasks.Transport]:
    """Two worker processes, which run one call at a time each."""
    async with atasks.local(workers=2, namespace=NAMESPACE, concurrency=1) as transport:
        yield transport


async def test_calls_run_in_all_processes_and_none_is_left_after(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with atasks.local(workers=2, namespace=NAMESPACE, concurrency=1) as transport:
        started = pids(transport)
        assert len(started) == 2
        calls = [asyncio.create_task(hold(str(tmp_path / "mark"), str(gate))) for _ in range(4)]
        await until(lambda: len(marks(tmp_path)) == 2, "each process runs one call")
        gate.touch()
        ran = await settled(asyncio.gather(*calls), "4 calls")
        assert {process for process, _ in ran} == set(started)
        assert os.getpid() not in started
    assert not [process for process in started if psutil.pid_exists(process)]


async def test_as_many_processes_as_cores_by_default() -> None:
    async with atasks.connect("local:", namespace=NAMESPACE) as transport:
        assert len(pids(transport)) == os.cpu_count()
        assert await settled(echo(1), "a call") == 1


async def test_recursion_deeper_and_wider_than_all_slots(transport: atasks.Transport) -> None:
    assert await settled(fib(11), "fib(11)", 60) == 89
    assert await settled(depth(150), "150 calls in one another", 60) == 150


async def test_calls_of_a_killed_process_run_in_another_and_it_is_replaced(
    transport: atasks.Transport, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    calls = [asyncio.create_task(hold(str(tmp_path / "mark"), str(gate))) for _ in range(2)]
    await until(lambda: len(marks(tmp_path)) == 2, "both run")
    victim = pids(transport)[0]
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(marks(tmp_path)) == 3, "the victim's call runs again")
    await until(
        lambda: len(pids(transport)) == 2 and victim not in pids(transport), "there are two processes again"
    )
    gate.touch()
    ran = await settled(asyncio.gather(*calls), "2 calls")
    assert sorted(attempt for _, attempt in ran) == [1, 2]
    assert victim not in {process for process, _ in ran}


async def test_a_call_that_kills_every_process_ends_in_worker_lost(transport: atasks.Transport) -> None:
    before = lost()
    killer = asyncio.create_task(crash())
    innocent = [asyncio.create_task(echo(number)) for number in range(50)]
    with pytest.raises(WorkerLost) as caught:
        await settled(killer, "the killer", 60)
    assert caught.value.attempts == 3
    assert await settled(asyncio.gather(*innocent), "the others", 60) == list(range(50))
    assert lost() == before + 1


def lost() -> int:
    """The calls of `crash` that were counted as lost in this process, which has the hub."""
    counts = tracking.snapshot().tasks().get(crash.name)
    return 0 if counts is None else counts.endings.get("worker_lost", 0)


async def test_a_call_that_died_while_it_awaited_another_one_names_that(
    transport: atasks.Transport, tmp_path: Path
) -> None:
    with pytest.raises(WorkerLost, match=r"and awaited 'tests\.local\.jobs\.asleep'") as caught:
        await settled(crash_awaiting(str(tmp_path / "mark")), "the call", 60)
    error = caught.value
    assert error.waited_for == "run"
    assert error.worker is not None
    assert error.ran is not None
    assert error.awaited is not None


async def test_leaving_the_block_cancels_what_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with atasks.local(workers=1, namespace=NAMESPACE):
        call = asyncio.create_task(asleep(str(mark)))
        await until(mark.exists, "it runs")
    assert (tmp_path / "mark.cancelled").exists()
    with pytest.raises(atasks.CallConnectionLost):
        await call


async def test_leaving_the_block_lets_calls_finish_within_the_grace(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with atasks.local(workers=1, namespace=NAMESPACE, grace=30) as transport:
        assert pids(transport)
        call = asyncio.create_task(hold(str(tmp_path / "mark"), str(gate)))
        await until(lambda: len(marks(tmp_path)) == 1, "it runs")
        gate.touch()
    await asyncio.wait([call])
    assert call.done()


async def test_a_process_that_is_blocked_is_killed_in_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = tmp_path / "mark"
    async with atasks.local(workers=1, namespace=NAMESPACE) as transport:
        (process,) = pids(transport)
        call = asyncio.create_task(block(str(mark)))
        await until(mark.exists, "it blocks")
    assert not psutil.pid_exists(process)
    assert "is killed" in caplog.text
    await asyncio.wait([call])
    assert isinstance(call.exception(), atasks.CallConnectionLost)


async def test_modules_may_be_named() -> None:
    async with atasks.local(workers=1, namespace=NAMESPACE, modules=["tests.local.jobs"]):
        assert await settled(pid(), "a call") != os.getpid()


async def test_a_module_that_cannot_be_imported_is_one_line() -> None:
    with pytest.raises(WorkersFailed, match="no_such_module_anywhere") as caught:
        async with atasks.local(workers=1, namespace=NAMESPACE, modules=["no_such_module_anywhere"]):
            pass
    assert "\n" not in str(caught.value)


async def test_the_socket_is_in_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(run_dir))
    async with atasks.local(workers=1, namespace=NAMESPACE):
        (directory,) = run_dir.iterdir()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "hub.sock").stat().st_mode) == 0o600
    assert list(run_dir.iterdir()) == []


async def test_a_second_transport_with_processes_beside_the_first(
    transport: atasks.Transport, tmp_path: Path
) -> None:
    async with atasks.local(workers=1, namespace=NAMESPACE) as inner:
        assert await settled(pid(), "a call") in pids(inner)
    assert await settled(pid(), "a call") in pids(transport)
    await settled(touch(str(tmp_path / "touched")), "a call")
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("workers", [-1, 1.5, True, "2"])
async def test_numbers_of_processes_that_make_no_sense(workers: object) -> None:
    with pytest.raises((TypeError, ValueError), match="workers"):
        async with atasks.connect("local:", workers=workers):
            pass


async def test_a_call_that_died_with_its_caller_does_not_run_again(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with atasks.local(workers=1, namespace=NAMESPACE) as transport:
        calling = asyncio.create_task(outer(str(tmp_path / "mark"), str(gate)))
        await until(lambda: len(marks(tmp_path)) == 1, "the only process runs a call, and the one that it made")
        os.kill(pids(transport)[0], signal.SIGKILL)
        await until(lambda: len(marks(tmp_path)) == 2, "the next process makes a call of its own")
        gate.touch()
        await settled(calling, "the call")
        assert [mark.name.split(".")[2] for mark in marks(tmp_path)] == ["1", "1"], (
            "the attempts of the inner calls"
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_programs_that_a_call_starts_can_be_interrupted(transport: atasks.Transport, number: int) -> None:
    """A worker process does nothing at a Ctrl-C, but what it starts does not inherit that: unless these tests were
    started so that the signal is ignored, by nohup for example."""
    ignored = signal.getsignal(number) is signal.SIG_IGN
    assert await settled(interrupted(number), "a call") == (0 if ignored else -number)
