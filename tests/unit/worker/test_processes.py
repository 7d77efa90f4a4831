"""Blocking functions in processes: what they see, how they end, and what a process that dies costs."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import psutil
import pytest

from atasks import (
    CallCancelled,
    CallTimeout,
    DecodeError,
    EncodeError,
    MsgpackCodec,
    PayloadTooLarge,
    PickleCodec,
    RemoteError,
    WorkerLost,
    ZstdCodec,
    atask,
)
from atasks.codecs import CloudpickleCodec
from atasks.errors import CallError, NotSupported
from atasks.progress import Progress
from atasks.testing import PATIENCE, soon, until
from tests.unit import serving
from tests.unit.serving import idle
from tests.unit.worker import blocking


def serve(**options: Any) -> Any:
    return serving.serve(blocking.NAMESPACE, **options)


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_calls_run_beside_each_other_in_processes_that_are_used_again(tmp_path: Path) -> None:
    async with serve(processes=2):
        pids = set(await soon(asyncio.gather(*(blocking.meet(str(tmp_path), 2) for _ in range(2)))))
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert set(await soon(asyncio.gather(*(blocking.pid() for _ in range(20))))) <= pids
    assert all(map(gone, pids))


async def test_the_garbage_collector_looks_at_what_calls_make_alone() -> None:
    async with serve():
        assert await soon(blocking.collects()) == (True, True)


async def test_a_process_whose_python_begins_without_a_garbage_collector_stays_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import gc\n\ngc.disable()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with serve():
        assert await soon(blocking.collects()) == (False, True)


async def test_the_call_and_carried_variables_are_seen(tmp_path: Path) -> None:
    @atask(namespace=blocking.NAMESPACE)
    async def parent() -> dict[str, Any]:
        return await blocking.look.options(timeout=60)()

    blocking.tenant.set("acme")
    now = asyncio.get_running_loop().time()
    async with serve():
        seen = await soon(parent())
        again = await soon(blocking.look())
    assert seen["parent_id"] == seen["root_id"] not in (None, seen["id"])
    assert now < seen["deadline"] <= now + 60 + PATIENCE
    assert (seen["attempt"], seen["state"], seen["tenant"], seen["thread"]) == (1, None, "acme", True)
    assert (again["parent_id"], again["root_id"], again["deadline"]) == (None, again["id"], None)


async def test_an_exception_arrives_as_from_anywhere_else() -> None:
    async with serve():
        pid = await soon(blocking.pid())
        with pytest.raises(blocking.Sized) as caught:
            await soon(blocking.fail(3))
    error = caught.value
    assert (error.args, error.size) == (("size 3",), 3)
    assert isinstance(error.__cause__, KeyError)
    text = str(error.__cause__.__cause__)
    assert "in fail" in text
    assert "child.py" not in text
    assert f"pid {pid}" in error.__notes__[-1]


async def test_what_would_end_a_program_ends_the_call() -> None:
    async with serve(processes=1):
        pid = await soon(blocking.pid())
        with pytest.raises(RemoteError, match="SystemExit"):
            await soon(blocking.leave())
        with pytest.raises(CallCancelled):
            await soon(blocking.give_up())
        assert await soon(blocking.pid()) == pid


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_an_await_that_ends_early_stops_the_function_and_what_it_started(how: str, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with serve(processes=1) as worker:
        await soon(blocking.pid())
        if how == "timeout":
            with pytest.raises(CallTimeout):
                await soon(blocking.spin.options(timeout=5)(str(file), with_child=True))
        else:
            task = asyncio.create_task(blocking.spin(str(file), with_child=True))
            await until(lambda: len(lines(file)) == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(task)
        await until(lambda: idle(worker))
        pids = [int(pid) for pid in lines(file)]
        assert len(pids) == 2
        await until(lambda: all(map(gone, pids)))
        assert await soon(blocking.pid()) not in pids


async def test_a_call_that_is_cancelled_while_it_waits_for_a_process_never_runs(tmp_path: Path) -> None:
    file = tmp_path / "attempts"
    async with serve(processes=1) as worker:
        first = asyncio.create_task(blocking.meet(str(tmp_path), 2))
        await until(lambda: len(list(tmp_path.iterdir())) == 1)
        second = asyncio.create_task(blocking.die(str(file), "exit"))
        await until(lambda: worker.unstarted == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(second)
        (tmp_path / "other").touch()
        await soon(first)
        await until(lambda: idle(worker))
    assert not file.exists()


@pytest.mark.parametrize(
    ("how", "named"),
    [("segfault", "SIGSEGV"), ("exit", "exit code 3"), ("kill", "SIGKILL"), ("fork", "exit code 3")],
)
async def test_a_process_that_dies_costs_its_call_an_attempt_and_no_other_call_anything(
    how: str, named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "attempts"
    async with serve(processes=2) as worker:
        dying = asyncio.create_task(blocking.die(str(file), how))
        others = [asyncio.create_task(blocking.echo(number)) for number in range(20)]
        with pytest.raises(WorkerLost, match=rf"its process died \({named}\) in attempt 3") as caught:
            await soon(dying)
        assert await soon(asyncio.gather(*others)) == list(range(20))
        await until(lambda: idle(worker))
    assert caught.value.attempts == 3
    assert lines(file) == ["1", "2", "3"]
    forked = [int(pid) for pid in lines(tmp_path / "attempts.forked")]
    assert len(forked) == (3 if how == "fork" else 0)
    await until(lambda: all(map(gone, forked)))
    told = [record for record in caplog.records if "it is tried again in another one" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING] * 2


async def test_a_call_that_survives_a_later_attempt_has_its_value(tmp_path: Path) -> None:
    async with serve(processes=1):
        assert await soon(blocking.die(str(tmp_path / "attempts"), "exit", until_attempt=3)) == 3


async def test_an_at_most_once_call_is_not_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "attempts"
    async with serve():
        with pytest.raises(WorkerLost) as caught:
            await soon(blocking.die.options(delivery="at_most_once")(str(file), "exit"))
    assert (caught.value.attempts, lines(file)) == (1, ["1"])


async def test_a_drain_stops_what_runs_and_ends_all_processes(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with serve(processes=2):
        pid = await soon(blocking.pid())
        task = asyncio.create_task(blocking.spin(str(file)))
        await until(lambda: lines(file))
    with pytest.raises(CallError):
        await soon(task)
    assert all(map(gone, [pid, *map(int, lines(file))]))


async def test_values_that_cannot_travel() -> None:
    async with serve():
        with pytest.raises(EncodeError, match="lock"):
            await soon(blocking.lock())
        assert await soon(blocking.echo(b"x" * 5_000_000)) == b"x" * 5_000_000


async def test_a_result_over_the_limit_is_refused() -> None:
    async with serve() as worker:
        worker.transport.max_payload = 1000
        with pytest.raises(PayloadTooLarge, match=r"the result of .* over the limit of 1000"):
            await soon(blocking.repeat("x", 1001))


async def test_functions_of_every_kind() -> None:
    async with serve():
        assert await soon(blocking.Holder.static(4)) == 8
        assert await soon(blocking.power(5)) == 32
        assert await soon(blocking.factorial(5)) == 120
        assert await soon(blocking.with_own_loop()) == 7


async def test_signals_to_a_whole_group_are_the_workers_business() -> None:
    async with serve(processes=1):
        pid = await soon(blocking.pid())
        assert await soon(blocking.signals()) == "True"
        assert await soon(blocking.pid()) == pid


async def test_calling_another_atask_needs_a_connection_of_its_own() -> None:
    async with serve():
        with pytest.raises(NotSupported, match=r"executor='process' .*: use executor='thread', or enter"):
            await soon(blocking.call_another())
        value, call_id = await soon(blocking.connect_and_call_another())
    assert value == 4
    assert call_id is not None


def zstd(namespace: str) -> ZstdCodec:
    return ZstdCodec(namespace=namespace, threshold=1)


@pytest.mark.parametrize("codec", [PickleCodec, CloudpickleCodec, MsgpackCodec, zstd])
async def test_processes_have_the_codec_of_the_worker(codec: Any) -> None:
    codec(blocking.NAMESPACE)
    try:
        async with serve():
            assert await soon(blocking.echo([1, "two"])) == [1, "two"]
            if codec is MsgpackCodec:
                with pytest.raises(DecodeError, match="size"):
                    await soon(blocking.fail("three"))  # type: ignore[arg-type]  # that is the point
    finally:
        CloudpickleCodec(blocking.NAMESPACE)


class Waiting(PickleCodec):
    """A codec that waits for the event loop."""

    async def encode(self, obj: Any) -> bytes:
        await asyncio.sleep(0)
        return await super().encode(obj)

    async def decode(self, content: bytes) -> Any:
        await asyncio.sleep(0)
        return await super().decode(content)


def zstd_around_waiting(namespace: str) -> ZstdCodec:
    return ZstdCodec(Waiting(namespace), namespace=namespace, threshold=1)


@pytest.mark.parametrize("codec", [Waiting, zstd_around_waiting])
async def test_a_codec_may_wait_in_a_process(codec: Any) -> None:
    codec(blocking.NAMESPACE)
    try:
        async with serve():
            assert await soon(blocking.echo([1, "two"])) == [1, "two"]
            with pytest.raises(blocking.Sized) as caught:
                await soon(blocking.fail(3))
            assert caught.value.size == 3
    finally:
        CloudpickleCodec(blocking.NAMESPACE)


def cancel_whoever_reads() -> None:
    raise asyncio.CancelledError


class CancelsWhoReads:
    def __reduce__(self) -> Any:
        return cancel_whoever_reads, ()


async def test_arguments_whose_reading_ends_like_a_cancellation_cannot_be_decoded() -> None:
    async with serve():
        with pytest.raises(DecodeError, match="CancelledError"):
            await soon(blocking.echo(CancelsWhoReads()))


async def test_a_codec_that_cannot_be_sent_to_a_process_is_named() -> None:
    class Unsendable(CloudpickleCodec):
        def __reduce__(self) -> Any:
            raise pickle.PicklingError("it holds a key")

    Unsendable(blocking.NAMESPACE)
    try:
        async with serve() as worker:
            with pytest.raises(CallError, match=r"no process could be started .*it holds a key"):
                await soon(blocking.pid())
            await until(lambda: idle(worker))
    finally:
        CloudpickleCodec(blocking.NAMESPACE)


def test_functions_that_another_process_cannot_import_are_refused(namespace: str) -> None:
    def nested() -> None: ...

    class Unpicklable:
        def __call__(self) -> None: ...

        def __reduce__(self) -> Any:
            raise pickle.PicklingError("no")

    for function in (nested, lambda: None):
        with pytest.raises(TypeError, match=r"cannot be imported by another process: .* use executor='thread'"):
            atask(function, namespace=namespace, executor="process")
    with pytest.raises(TypeError, match=r"cannot be pickled for another process \(PicklingError: no\)"):
        atask(Unpicklable(), name="it", namespace=namespace, executor="process")


async def heard(call: Any) -> list[Progress]:
    return [progress async for progress in call.progress()]


async def test_reports_of_a_process_reach_who_watches() -> None:
    async with serve(), asyncio.timeout(PATIENCE), blocking.count.watch(20_000) as call:
        got = await heard(call)
        assert await call == 20_000
    assert got[-1] == Progress(20_000, 20_000, "counting")
    assert len(got) < 100
    assert got == sorted(got)


async def test_the_latest_report_of_a_process_is_told_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "go on"
    async with serve() as worker, asyncio.timeout(PATIENCE):
        task = asyncio.create_task(blocking.wait_for(str(file)))
        await until(lambda: [str(run.progress) for run in worker.runs] == ["2/3 waiting"])
        file.touch()
        assert await task == "done"
        file.unlink()
        async with blocking.wait_for.watch(str(file)) as call:
            async for progress in call.progress():
                if progress.done == 2:
                    file.touch()
            assert await call == "done"


async def test_reports_of_a_fork_of_a_process_reach_nobody() -> None:
    async with serve(processes=1), asyncio.timeout(PATIENCE), blocking.report_in_a_fork.watch() as call:
        assert await heard(call) == []
        assert await call == 0
    async with serve(processes=1), asyncio.timeout(PATIENCE):
        assert await blocking.count(3) == 3


async def test_reports_begin_anew_where_a_process_has_died() -> None:
    async with serve(), asyncio.timeout(PATIENCE), blocking.report_and_die.watch() as call:
        got = await heard(call)
        assert await call == 2
    assert got == [Progress(5, 10), Progress(5, 10, attempt=2)]
