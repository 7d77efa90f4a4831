"""A fleet that changes from an older version of atasks to this one, and back, a process after the other."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atasks.testing import until
from atasks.transport.backends.local.messages import PROTOCOL
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.rolling import DIRECTIONS, ROOT, VERSIONS, Talks, Version, checked_out
from tests.faults.talks import TalkProcess
from tests.faults.workers import Fleet, WorkerProcess
from tests.waiting import wait_until

OLDER = "c1cd7ee"
"""The last state before callers' users were in the names of reply queues, claims of first attempts, and seals."""
PROTOCOLS = {"older": 2, "newer": PROTOCOL}
"""Protocol versions of the hubs of both versions."""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the older version, out of the repository's history."""
    return checked_out(OLDER, tmp_path_factory.mktemp("older"))


@pytest.fixture
def sources(older: Path) -> dict[Version, Path | None]:
    return {"older": older, "newer": None}


@pytest.fixture
def talks(fleet: Fleet, sources: dict[Version, Path | None]) -> Iterator[Talks]:
    talks = Talks(fleet, sources)
    yield talks
    talks.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("caller", "workers"),
    [
        ("older", ["newer"]),
        ("newer", ["older"]),
        ("older", ["older", "newer"]),
        ("newer", ["older", "newer"]),
    ],
)
async def test_every_kind_of_call(talks: Talks, gate: Path, caller: Version, workers: list[Version]) -> None:
    for version in workers:
        talks.start(version)
    await asyncio.to_thread(talks.begin(caller, "everything", gate=str(gate)).done)
    await talks.fleet.quiet()
    assert all(worker.stop() == 0 for worker in talks.fleet.workers)


@pytest.mark.parametrize("caller", VERSIONS)
def test_calls_that_call_each_other_across_versions(talks: Talks, older: Path, caller: Version) -> None:
    for version in VERSIONS:
        talks.start(version, queues=[version])
    talk = talks.begin(caller, "relay", queues=["older", "newer", "older", "newer"])
    assert json.loads(talk.done()) == [str(older), str(ROOT)] * 2


@pytest.mark.parametrize(("before", "after"), DIRECTIONS)
async def test_a_fleet_is_replaced_under_load(
    talks: Talks, tmp_path: Path, before: Version, after: Version
) -> None:
    """Callers of both versions; each worker drains, for less long than some calls run, before the next starts."""
    over = tmp_path / "over"
    for _ in range(3):
        talks.start(before, concurrency=30, grace=1.0)
    callers = [talks.begin(version, "load", over=str(over)) for version in VERSIONS]
    history = History(talks.fleet.record)
    await until(lambda: history.started() > 100, "the load")
    for worker in talks.fleet.workers[:3]:
        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(talks.start, after, concurrency=30, grace=1.0)
        await asyncio.sleep(1.0)
    over.touch()
    for caller in callers:
        await asyncio.to_thread(caller.done)
    await talks.fleet.quiet()


async def test_a_mixed_fleet_survives_dropped_connections(talks: Talks, proxy: Proxy, tmp_path: Path) -> None:
    """Calls are delivered again, to a worker of either version."""
    over = tmp_path / "over"
    for version in (*VERSIONS, *VERSIONS):
        talks.start(version, url=proxy.url(), concurrency=30)
    callers = [talks.begin(version, "load", over=str(over)) for version in VERSIONS]
    history = History(talks.fleet.record)
    await until(lambda: history.started() > 100, "the load")
    for _ in range(5):
        proxy.drop()
        await asyncio.sleep(1.5)
    over.touch()
    for caller in callers:
        await asyncio.to_thread(caller.done)
    assert max(run.attempt for run in history.runs()) <= 3
    await talks.fleet.quiet()


@pytest.mark.parametrize("caller", VERSIONS)
@pytest.mark.parametrize("order", [*itertools.product(VERSIONS, repeat=3)], ids="-".join)
def test_a_call_that_kills_workers_of_both_versions(
    talks: Talks, caller: Version, order: tuple[Version, ...]
) -> None:
    talks.start(order[0])
    talk = talks.begin(caller, "doomed", how="kill")
    for number, version in enumerate(order[1:], 1):
        wait_until(lambda: not talks.fleet.workers[number - 1].running, "it kills its worker")  # noqa: B023
        talks.start(version, wait=False)  # it may be killed before it can say that it is ready
    wait_until(lambda: not talks.fleet.workers[2].running, "three are dead")
    for version in VERSIONS:
        talks.start(version)
    talk.done()
    assert sum(worker.running for worker in talks.fleet.workers) == 2


@pytest.mark.parametrize(("caller", "worker"), DIRECTIONS)
async def test_calls_that_waited_are_begun_if_they_are_wanted(
    talks: Talks, gate: Path, tmp_path: Path, caller: Version, worker: Version
) -> None:
    talks.start(caller).stop()
    ready = tmp_path / "ready"
    asked = worker == "newer"  # an older one begins what it finds
    talk = talks.begin(caller, "waiting", count=300, gate=str(gate), ready=str(ready), asked=asked)
    await until(ready.exists, "the calls wait")
    await asyncio.to_thread(talks.start, worker, concurrency=20)
    await asyncio.to_thread(talk.done)
    await talks.fleet.quiet()


@pytest.mark.parametrize(("caller", "worker"), DIRECTIONS)
async def test_a_caller_that_leaves_takes_its_calls_with_it(
    talks: Talks, tmp_path: Path, caller: Version, worker: Version
) -> None:
    """Thousands of them, of which some run."""
    talks.start(worker, concurrency=20)
    never, ready = tmp_path / "never", tmp_path / "ready"
    talk = talks.begin(caller, "leave", count=3000, gate=str(never), ready=str(ready))
    await asyncio.to_thread(talk.done)
    await talks.fleet.quiet()
    history = History(talks.fleet.record)
    assert {run.ending for run in history.runs()} == {"cancelled"}


@pytest.mark.parametrize(("before", "after"), DIRECTIONS)
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_run_is_begun_by_one_version_and_finished_by_the_other(
    talks: Talks, tmp_path: Path, before: Version, after: Version, how: str
) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    worker = talks.start(before)
    run_id = talks.submit(before, gates, 4)
    history = History(talks.fleet.record)
    (gates / "0").touch()
    wait_until(lambda: history.runs("stage-1"), "the second stage runs")
    readers = [talks.begin(version, "read", id=run_id) for version in VERSIONS]
    successor = talks.start(after)
    if how == "kill":
        worker.kill()
    else:
        worker.signal(signal.SIGTERM)
    for number in (1, 2, 3):
        (gates / str(number)).touch()
    readers += [talks.begin(version, "read", id=run_id) for version in VERSIONS]
    for reader in readers:
        assert json.loads(reader.done()) == [[0, 1, 2, 3], [0, 1]]
    assert len(history.runs("stage-0")) == 1
    assert any(run.pid == successor.pid for run in history.runs("stage-3"))


@pytest.mark.parametrize(("client", "server"), DIRECTIONS)
def test_a_hub_of_the_other_version_says_one_line(
    history: History, gate: Path, sources: dict[Version, Path | None], client: Version, server: Version
) -> None:
    """Both ends say it, and neither hangs: the processes of one host are of one version."""
    refused = (
        f"the hub speaks protocol {PROTOCOLS[server]} and was addressed in {PROTOCOLS[client]}: "
        "run the same version of atasks"
    )
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        url = f"unix://{directory}/hub.sock"
        arguments = {"url": url, "concurrency": 100, "caller_patience": 5.0}
        worker = WorkerProcess(history.path, arguments, sources[server])
        talk = None
        try:
            worker.wait_ready()
            talk = TalkProcess(history.path, "everything", url, {}, sources[client], gate=str(gate))
            assert talk.wait() == 1
            assert talk.output.splitlines()[-1].endswith(f"ConnectFailed: {refused}")
            assert sum(refused in line for line in worker.output.splitlines()) == 1
            assert worker.stop() == 0
        finally:
            for process in (talk, worker):
                if process is not None:
                    print(process.output[-5000:])
                    process.close()
