"""The benchmarks' harness. What it measures decides nothing here: only that it measures, and says so."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.__main__ import MODULES, arguments
from benchmarks.aiopika_rpc import SYSTEM as AIOPIKA
from benchmarks.aiormq_echo import SYSTEM as AIORMQ
from benchmarks.echo_amqp import SYSTEM as AMQP
from benchmarks.echo_loopback import SYSTEM as LOOPBACK
from benchmarks.harness import BenchmarkFailed, Sample, Settings, System, WorkerProcess, measure, percentile, run
from benchmarks.report import as_json, table
from tests.broker import Broker

ROOT = Path(__file__).parents[2]


async def test_each_system_is_measured_in_every_round():
    progress: list[str] = []
    settings = Settings(inflight=(1, 3), seconds=0, rounds=2)
    cells = await run([LOOPBACK], "loopback:", settings, progress.append)

    assert [(cell.system, cell.inflight) for cell in cells] == [("loopback", 1), ("loopback", 3)]
    for cell in cells:
        assert [sample.calls for sample in cell.samples] == [cell.inflight] * 2
        for sample in cell.samples:
            assert 0 < sample.p50_ms <= sample.p99_ms <= 1000 * sample.seconds
            assert sample.client_cpu > 0
            assert sample.worker_cpu is None, "the caller is the worker"
        assert cell.worker_cpu is None
        rates = sorted(sample.rate for sample in cell.samples)
        assert rates[0] <= cell.rate <= rates[1]
    assert progress == [f"round {number} of 2: {inflight} in flight" for number in (1, 2) for inflight in (1, 3)]


@pytest.mark.parametrize("system", [AMQP, AIOPIKA, AIORMQ], ids=lambda system: system.name)
async def test_systems_with_a_broker_and_a_worker_process(system: System, controllable_broker: Broker):
    controllable_broker.start()
    before = await asyncio.to_thread(controllable_broker.queues)
    cells = await run([system], controllable_broker.url, Settings(inflight=(5,), seconds=0, rounds=1))

    (sample,) = cells[0].samples
    assert sample.calls == 5
    assert sample.worker_cpu is not None
    assert sample.worker_cpu >= 0
    left = {queue.name for queue in await asyncio.to_thread(controllable_broker.queues)}
    assert left <= {queue.name for queue in before}, "nothing is left at the broker"


async def test_new_calls_are_made_until_the_time_is_over():
    calls = 0

    async def echo(payload: bytes) -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return payload

    sample = await measure(echo, inflight=4, seconds=0.05)
    assert sample.calls == calls
    assert sample.seconds >= 0.05
    assert sample.rate == sample.calls / sample.seconds


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

    await measure(echo, inflight=7, seconds=0.01)
    assert most == 7


async def test_payloads_have_the_size_that_was_asked_for():
    sizes = set()

    async def echo(payload: bytes) -> bytes:
        sizes.add(len(payload))
        return payload

    await measure(echo, inflight=300, seconds=0, size=8)
    assert sizes == {8}


async def test_a_swapped_answer_is_a_failure():
    first: list[bytes] = []

    async def echo(payload: bytes) -> bytes:
        first.append(payload)
        return first[0]

    with pytest.raises(BenchmarkFailed, match="another call's answer"):
        await measure(echo, inflight=2, seconds=0)


async def test_a_call_that_raises_is_a_failure():
    async def echo(payload: bytes) -> bytes:
        raise ConnectionResetError("gone")

    with pytest.raises(BenchmarkFailed, match="3 in flight: ConnectionResetError"):
        await measure(echo, inflight=3, seconds=0)


async def test_a_call_without_an_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "STUCK", 0.05)

    async def echo(payload: bytes) -> bytes:
        return await asyncio.Future()

    with pytest.raises(BenchmarkFailed, match="not answered"):
        await measure(echo, inflight=1, seconds=0)


async def test_a_worker_that_cannot_start_is_a_failure(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(BenchmarkFailed, match=r"the worker ended .*aiormq_echo"):
        async with WorkerProcess.start("benchmarks.aiormq_echo", "amqp://localhost:1/", "nothing"):
            pytest.fail("it says that it consumes, from a broker that is not there")
    assert "ConnectionError" in capfd.readouterr().err, "its traceback is shown"


def test_percentiles_are_values_that_were_measured():
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_a_cell_is_the_median_of_its_rounds():
    cell = harness.Cell("x", "a system", 50)
    for calls, p50, worker in ((100, 1.0, 0.5), (300, 9.0, 0.3), (200, 2.0, 0.2)):
        cell.samples.append(
            Sample(calls=calls, seconds=2.0, p50_ms=p50, p99_ms=10 * p50, client_cpu=1.0, worker_cpu=worker)
        )
    assert (cell.rate, cell.p50_ms, cell.p99_ms) == (100, 2.0, 20.0)
    assert cell.client_cpu == 5.0, "CPU seconds per 1000 calls"
    assert cell.worker_cpu == 1.0

    header, row = table([cell]).splitlines()[1], table([cell]).splitlines()[3]
    assert header.split()[:2] == ["in", "flight"]
    assert row.split() == ["50", "a", "system", "100", "50-150", "2.000", "20.000", "5.000", "1.000"]
    assert len(row) == len(header)


def test_json_has_every_round_and_what_it_was_measured_with():
    cell = harness.Cell("x", "a system", 1, [Sample(10, 2.0, 1.0, 2.0, 0.1, None)])
    written = json.loads(json.dumps(as_json([cell], Settings(inflight=(1,), seconds=0.9, rounds=1))))
    assert written["settings"] == {"inflight": [1], "seconds": 0.9, "rounds": 1, "size": 100}
    assert set(written["packages"]) == {"atasks", "msgspec", "aio-pika", "aiormq", "pamqp"}
    (row,) = written["cells"]
    assert row["calls_per_second"] == 5.0
    assert row["client_cpu_per_1000"] == 10.0
    assert row["worker_cpu_per_1000"] is None
    assert row["rounds"][0]["calls"] == 10


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path):
    file = tmp_path / "figures.json"
    given = ["--systems", "loopback", "--inflight", "1,2", "--seconds", "0", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *given, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines() if "atasks loopback" in line]
    assert [row[0] for row in rows] == ["1", "2"]
    assert [cell["rounds"][0]["calls"] for cell in json.loads(file.read_text())["cells"]] == [1, 2]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("--systems lopback", "no system 'lopback': choose from loopback,amqp,aiopika,aiormq"),
        ("--inflight 0", "argument --inflight"),
        ("--inflight many", "argument --inflight"),
        ("--seconds -1", "--seconds is at least 0"),
        ("--size 7", "--size at least 8"),
        ("--rounds 0", "--rounds at least 1"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(given: str, complaint: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        arguments(given.split())
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_all_systems_are_measured_unless_some_are_named():
    assert arguments([]).systems == list(MODULES)
    assert arguments(["--systems", "aiormq,loopback"]).systems == ["aiormq", "loopback"]
