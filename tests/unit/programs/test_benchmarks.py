"""The benchmarks' harness. What it measures decides nothing here: only that it measures, and says so."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from benchmarks import guard, redis_server
from benchmarks import load as loads
from benchmarks.__main__ import arguments
from benchmarks.catalogue import SYSTEMS, WORKLOADS, System
from benchmarks.environments import python_of
from benchmarks.guard import verdict
from benchmarks.harness import Cell, Sample, Settings, run
from benchmarks.load import BenchmarkFailed, Client, Load, WindowClient, measure, percentile
from benchmarks.processes import Child
from benchmarks.report import as_json, promises, table
from benchmarks.usage import Usage
from tests.broker import Broker

ROOT = Path(__file__).parents[3]
HERE = sorted(system.name for system in SYSTEMS.values() if not system.requires and "redis" not in system.needs)
"""The systems that need no environment of their own."""


def client(echo: Callable[[bytes], Awaitable[bytes]]) -> Client:
    return Client(echo)


@pytest.mark.parametrize("name", HERE)
async def test_systems_of_this_environment(name: str, controllable_broker: Broker):
    url = await asyncio.to_thread(controllable_broker.add_vhost)
    progress: list[str] = []
    settings = Settings(workloads=("5", "nested"), seconds=0, rounds=2)
    system = SYSTEMS[name]
    cells = await run([system], {"amqp": url}, settings, progress.append)

    assert [(cell.system, cell.workload) for cell in cells] == [(name, "5"), (name, "nested")]
    for cell in cells:
        if cell.workload in system.cannot:
            assert (cell.samples, cell.note) == ([], system.cannot[cell.workload])
            continue
        assert [sample.calls for sample in cell.samples] == [5 if cell.workload == "5" else 127] * 2, cell.note
        for sample in cell.samples:
            assert 0 < sample.p50_ms <= sample.p99_ms <= 1000 * sample.seconds
            assert sample.client_cpu > 0
            assert sample.client_peak > 1 << 20
            if system.worker:
                assert sample.worker_cpu is not None
                assert sample.worker_peak is not None
                assert sample.worker_peak > 1 << 20
            elif name.startswith("loopback"):
                assert (sample.worker_cpu, sample.worker_peak) == (None, None), "the caller is the worker"
    rounds = [f"round {number} of 2: {workload}" for number in (1, 2) for workload in ("5", "nested")]
    assert progress == [f"starting {system.title}", *rounds]
    left = await asyncio.to_thread(controllable_broker.queues, urlsplit(url).path.strip("/"))
    assert left == [], "nothing is left at the broker"
    await asyncio.to_thread(controllable_broker.remove_vhost, url)


async def test_a_system_that_fails_says_so_and_the_others_go_on():
    broken = System("broken", "a broken one", "benchmarks.atasks_loopback", "", needs=frozenset({"redis"}))
    settings = Settings(workloads=("1", "2"), seconds=0, rounds=1)
    cells = await run([broken, SYSTEMS["loopback"]], {}, settings)

    assert [(cell.system, len(cell.samples)) for cell in cells] == [
        ("broken", 0),
        ("loopback", 1),
        ("broken", 0),
        ("loopback", 1),
    ]
    assert cells[0].note == "failed: there is no redis server: set $ATASKS_BENCH_REDIS_URL"
    assert cells[0].note in table(cells)
    assert cells[0].as_dict() == {
        "system": "broken",
        "title": "a broken one",
        "workload": "1",
        "note": cells[0].note,
    }


async def test_a_system_whose_worker_ends_says_so():
    system = dataclasses.replace(SYSTEMS["loopback"], worker=True)  # its module has no worker's side
    cells = await run([system], {}, Settings(("1",), 0, 1))
    assert "ended: see its traceback above" in cells[0].note


async def test_new_calls_are_made_until_the_time_is_over():
    calls = 0

    async def echo(payload: bytes) -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return payload

    figures = await measure(client(echo), Load(4, 0.05))
    assert figures["calls"] == calls
    assert figures["seconds"] >= 0.05


async def test_as_many_calls_are_in_flight_as_it_says():
    waiting = 0
    most = 0

    async def echo(payload: bytes) -> bytes:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0)
        waiting -= 1
        return payload

    await measure(client(echo), Load(7, 0.01))
    assert most == 7


async def test_a_window_has_as_many_handles_as_it_says():
    pending: set[bytes] = set()
    most = 0
    sizes = set()

    def submit(payload: bytes) -> bytes:
        nonlocal most
        pending.add(payload)
        sizes.add(len(payload))
        most = max(most, len(pending))
        return payload

    def result(handle: bytes) -> bytes:
        pending.remove(handle)
        return handle

    once = await measure(WindowClient(submit, result), Load(7, 0, size=30))
    assert (once["calls"], most, sizes, pending) == (7, 7, {30}, set())
    longer = await measure(WindowClient(submit, result), Load(7, 0.01, size=30))
    assert longer["calls"] > 7
    assert (most, pending) == (7, set())


async def test_payloads_have_the_size_that_was_asked_for():
    sizes = set()

    async def echo(payload: bytes) -> bytes:
        sizes.add(len(payload))
        return payload

    await measure(client(echo), Load(300, 0, size=8))
    assert sizes == {8}


async def test_a_tree_counts_all_its_calls():
    async def tree(depth: int) -> int:
        return 1 + sum(await asyncio.gather(tree(depth - 1), tree(depth - 1))) if depth else 1

    async def lies(depth: int) -> int:
        return depth

    async def echo(payload: bytes) -> bytes:
        return payload

    assert (await measure(Client(echo, tree), Load(2, depth=3)))["calls"] == 2 * 15
    with pytest.raises(BenchmarkFailed, match="another call's answer"):
        await measure(Client(echo, lies), Load(depth=3))
    with pytest.raises(BenchmarkFailed, match="nothing can be awaited inside a call"):
        await measure(Client(echo), Load(depth=3))
    with pytest.raises(BenchmarkFailed, match="nothing can be awaited inside a call"):
        await measure(WindowClient(bytes, bytes), Load(depth=3))


async def test_a_swapped_answer_is_a_failure():
    first: list[bytes] = []

    async def echo(payload: bytes) -> bytes:
        first.append(payload)
        return first[0]

    with pytest.raises(BenchmarkFailed, match="another call's answer"):
        await measure(client(echo), Load(2))
    with pytest.raises(BenchmarkFailed, match="another call's answer"):
        await measure(WindowClient(bytes, lambda handle: first[0]), Load(2))


async def test_a_call_that_raises_is_a_failure():
    async def echo(payload: bytes) -> bytes:
        raise ConnectionResetError("gone")

    def submit(payload: bytes) -> bytes:
        raise ConnectionResetError("gone")

    with pytest.raises(BenchmarkFailed, match="ConnectionResetError"):
        await measure(client(echo), Load(3))
    with pytest.raises(BenchmarkFailed, match="ConnectionResetError"):
        await measure(WindowClient(submit, bytes), Load(3))


async def test_a_call_without_an_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loads, "STUCK", 0.05)

    async def echo(payload: bytes) -> bytes:
        return await asyncio.Future()

    with pytest.raises(BenchmarkFailed, match="not answered"):
        await measure(client(echo), Load(1))


async def test_a_process_that_cannot_start_is_a_failure(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(BenchmarkFailed, match=r"aiormq_echo` ended: see its traceback above"):
        environ = {"ATASKS_BENCH_AMQP_URL": "amqp://localhost:1/"}
        async with Child.start(
            Path(sys.executable), "benchmarks.peers.aiormq_echo", "worker", "nothing", environ=environ
        ):
            pytest.fail("it says that it consumes, from a broker that is not there")
    assert "ConnectionError" in capfd.readouterr().err, "its traceback is shown"


def test_usage_is_that_of_processes_and_of_what_they_started():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        alone, below = Usage.of(process.pid), Usage.below(process.pid)
        both = Usage.together(alone, below)
        for usage in (alone, below, both):
            usage.reset_peak()
            assert usage.exists()
            assert usage.cpu() >= 0
        assert both.peak() >= max(alone.peak(), below.peak()) > 1 << 20
        (child,) = psutil.Process(process.pid).children()
        assert not Usage.below(child.pid).exists()
        process.communicate(b"\n")


def test_percentiles_are_values_that_were_measured():
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def a_sample(calls: int = 10, p50: float = 1.0, worker: float | None = None) -> Sample:
    peak = None if worker is None else 3 << 20
    return Sample(calls, 2.0, p50, 10 * p50, 1.0, worker, 2 << 20, peak)


def test_a_cell_is_the_median_of_its_rounds():
    cell = Cell("x", "a system", "50")
    for calls, p50, worker in ((100, 1.0, 0.5), (300, 9.0, 0.3), (200, 2.0, 0.2)):
        cell.samples.append(a_sample(calls, p50, worker))
    assert (cell.rate, cell.p50_ms, cell.p99_ms) == (100, 2.0, 20.0)
    assert cell.client_cpu == 5.0, "CPU seconds per 1000 calls"
    assert cell.worker_cpu == 1.0

    header, row = table([cell]).splitlines()[1], table([cell]).splitlines()[3]
    assert header.split()[:2] == ["workload", "system"]
    figures = ["100", "50-150", "2.000", "20.000", "5.000", "1.000", "2", "3"]
    assert row.split() == ["50", "a", "system", *figures]
    assert len(row) == len(header)


def test_json_has_every_round_and_what_it_was_measured_with():
    cell = Cell("loopback", "a system", "1", [a_sample()])
    settings = Settings(workloads=("1", "fan-out"), seconds=0.9, rounds=1)
    written = json.loads(json.dumps(as_json([cell], [SYSTEMS["loopback"]], settings, "python -m benchmarks")))
    assert written["settings"] == {"workloads": ["1", "fan-out"], "seconds": 0.9, "rounds": 1}
    assert written["workloads"] == {
        "1": {"inflight": 1, "seconds": 0.9, "size": 100, "depth": 0},
        "fan-out": {"inflight": 5000, "seconds": 0.0, "size": 100, "depth": 0},
    }
    assert {"atasks", "aiormq"} <= set(written["packages"])
    assert {"command", "date", "python", "platform", "cpu", "cpus"} <= set(written)
    assert set(written["systems"]) == {"loopback"}
    (row,) = written["cells"]
    assert row["calls_per_second"] == 5.0
    assert row["client_cpu_per_1000"] == 100.0
    assert row["worker_cpu_per_1000"] is None
    assert row["rounds"][0]["calls"] == 10


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path):
    file = tmp_path / "figures.json"
    given = ["--systems", "loopback", "--workloads", "1,2", "--seconds", "0", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *given, str(file)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("ATASKS_BENCH")},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines() if " atasks loopback" in line]
    assert [row[0] for row in rows[:2]] == ["1", "2"]
    assert "Not the price of the same thing" in done.stdout
    written = json.loads(file.read_text())
    assert written["command"] == f"python -m benchmarks {' '.join(given)} {file}"
    assert [cell["rounds"][0]["calls"] for cell in written["cells"]] == [1, 2]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("--systems lopback", "no system 'lopback': choose from ours,all,loopback,local,amqp"),
        ("--workloads 0", "no workload '0': choose from sequential,concurrent"),
        ("--workloads many", "no workload 'many'"),
        ("--seconds -1", "--seconds is at least 0"),
        ("--rounds 0", "--rounds at least 1"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(given: str, complaint: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        arguments(given.split())
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_ours_are_measured_unless_others_are_named():
    assert {"loopback", "amqp"} <= {system.name for system in arguments([]).systems}
    assert all(system.ours and not system.uvloop for system in arguments([]).systems)
    named = arguments(["--systems", "aiormq,loopback", "--uvloop"]).systems
    assert [system.name for system in named] == ["aiormq", "loopback", "loopback-uvloop"]
    everything = [system.name for system in arguments(["--systems", "all"]).systems]
    assert everything == [name for name, system in SYSTEMS.items() if not system.uvloop]


def test_every_system_can_be_started_and_says_what_it_promises():
    for name, system in SYSTEMS.items():
        assert system.name == name
        assert (ROOT / f"{system.module.replace('.', '/')}.py").is_file()
        assert system.cannot.keys() <= WORKLOADS.keys()
        assert system.title in promises([system])
        assert all("==" in requirement for requirement in system.requires), "figures are those of a version"
    used = {ROOT / f"{system.module.replace('.', '/')}.py" for system in SYSTEMS.values()}
    assert used >= set((ROOT / "benchmarks" / "peers").glob("[!_]*.py"))


def test_a_system_that_cannot_be_installed(tmp_path: Path):
    nowhere = dataclasses.replace(SYSTEMS["amqp"], name="nowhere", requires=(str(tmp_path / "no-such-package"),))
    said: list[str] = []
    with pytest.raises(BenchmarkFailed, match=r"cannot be installed: .*no-such-package"):
        python_of(nowhere, said.append, tmp_path)
    assert said == [f"installing {tmp_path}/no-such-package"]


def test_a_system_runs_in_the_environment_that_it_requires(tmp_path: Path):
    assert python_of(SYSTEMS["amqp"]) == Path(sys.executable)
    here = dataclasses.replace(SYSTEMS["amqp"], name="here", requires=(str(wheel(tmp_path)),))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "left-behind").touch()  # by an installation that failed
    said: list[str] = []
    for _ in range(2):
        python = python_of(here, said.append, tmp_path)
        assert python == tmp_path / "here" / "bin" / "python"
        subprocess.run([python, "-c", "import here"], check=True)
    assert said == [f"installing {here.requires[0]}"], "once"
    assert not (tmp_path / "here" / "left-behind").exists()


def wheel(folder: Path) -> Path:
    """A package that can be installed without downloading anything."""
    path = folder / "here-1-py3-none-any.whl"
    files = {
        "here.py": "",
        "here-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: here\nVersion: 1\n",
        "here-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "here-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_a_redis_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATASKS_BENCH_REDIS_URL", "redis://elsewhere:1")
    with redis_server.running() as url:
        assert url == "redis://elsewhere:1"


def test_without_any_redis_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("ATASKS_BENCH_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server, "USUAL_PORT", 1)
    assert not redis_server.answers(1)
    with redis_server.running() as url:
        assert url is None


def rounds(system: str, workload: str, p50: float, rate: int, cpu: float) -> Cell:
    sample = Sample(rate, 1.0, p50, p50, cpu / 2, cpu / 2, 1, 1)
    slow = dataclasses.replace(sample, p50_ms=100 * p50, calls=1)
    return Cell(system, system, workload, [sample, slow, sample])


def test_the_guard_compares_with_the_yardstick_of_each_check():
    yardsticks = [
        rounds("aiormq", "sequential", 1.0, 1000, 1.0),
        rounds("aiormq", "concurrent", 9.0, 1000, 1.0),
        rounds("frames", "sequential", 0.9, 1000, 0.5),
        rounds("asyncio", "sequential", 0.1, 1000, 1.0),
        rounds("asyncio", "concurrent", 0.1, 1000, 1.0),
        rounds("loopback", "sequential", 0.1, 1000, 3.5),
        rounds("amqp-sealed", "concurrent", 2.0, 5000, 1.05),
        rounds("amqp", "nested", 2.0, 5000, 2.5),
        rounds("local", "nested", 2.0, 5000, 1.0),
        rounds("frames", "100 KiB", 2.0, 5000, 1.0),
        rounds("local", "100 KiB", 2.0, 5000, 1.0),
        rounds("amqp", "100 KiB", 2.0, 5000, 2.0),
        *(rounds("pool", work, 0.0, 5000, 1.0) for work in ("threads", "processes", "large", "start")),
        *(rounds("stages", work, 0.0, 5000, 0.2) for work in ("threads", "processes", "large", "start")),
    ]
    one, many = rounds("amqp", "sequential", 1.2, 900, 1.1), rounds("amqp", "concurrent", 2.0, 5000, 1.0)
    loopback = rounds("loopback", "concurrent", 0.1, 1000, 4.5)
    said, within = verdict([one, many, loopback, *yardsticks])
    assert within
    ratios = [line.partition(" of that")[0].split()[-1] for line in said.splitlines()]
    first = ["1.20", "1.22", "1.33", "0.20", "0.20", "3.50", "4.50", "1.05", "2.50", "1.00", "2.00"]
    assert ratios == [*first, "0.20", "0.20", "0.20", "0.20"]
    said, within = verdict([one, rounds("amqp", "concurrent", 2.0, 1500, 1.0), loopback, *yardsticks])
    assert not within
    assert [number for number, line in enumerate(said.splitlines()) if line.endswith("TOO SLOW")] == [3, 4]
    said, within = verdict([one, many, rounds("loopback", "concurrent", 0.1, 1000, 5.7), *yardsticks])
    assert not within
    assert [number for number, line in enumerate(said.splitlines()) if line.endswith("TOO SLOW")] == [6]


def test_the_guard_measures_stages_beside_the_pools(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "ROUNDS", 1)
    cells = guard.stages([check for check in guard.CHECKS if check.workload == "threads"])
    assert {(cell.system, cell.workload) for cell in cells} == {("stages", "threads"), ("pool", "threads")}
    assert all(sample.calls == 3000 and sample.client_cpu > 0 for cell in cells for sample in cell.samples)
