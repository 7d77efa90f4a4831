"""A fleet with keys that changes from an older version of atasks to this one, and back: no seal is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from atasks.testing import until
from tests.faults.history import History
from tests.faults.rolling import DIRECTIONS, ROOT, VERSIONS, Talks, Version, checked_out
from tests.faults.workers import Fleet
from tests.keys import KeyFiles
from tests.waiting import wait_until

OLDER = "45520719"
"""A state in which everything that has seals has them, three hundred changes ago."""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the older version, out of the repository's history."""
    return checked_out(OLDER, tmp_path_factory.mktemp("older"))


@pytest.fixture
def words(request: pytest.FixtureRequest) -> str:
    """Those of the callers' line."""
    return getattr(request, "param", "")


@pytest.fixture
def talks(fleet: Fleet, older: Path, tmp_path: Path, words: str) -> Iterator[Talks]:
    """All workers have one file of keys, and all callers another one. Nothing is refused."""
    folder = tmp_path / "keys"
    folder.mkdir()
    keys = KeyFiles(folder, shop=words)
    serving, calling = {"keys": str(keys.worker)}, {"keys": str(keys.caller("shop"))}
    talks = Talks(fleet, {"older": older, "newer": None}, serving, calling)
    yield talks
    logs = fleet.logs() + "".join(each.output for each in talks.begun)
    talks.close()
    assert "refused" not in logs
    assert not [queue for queue in fleet.queues() if queue.name.endswith(".dead") and queue.messages]


@pytest.mark.parametrize("words", ["", "encrypt"], indirect=True)
@pytest.mark.parametrize("caller", VERSIONS)
async def test_every_kind_of_call(talks: Talks, older: Path, tmp_path: Path, caller: Version) -> None:
    """Some of which call each other across versions."""
    for version in VERSIONS:
        talks.start(version, queues=["default", version])
    gate = tmp_path / "gate"
    gate.touch()
    talks_of = [
        talks.begin(caller, "everything", gate=str(gate)),
        talks.begin(caller, "relay", queues=["older", "newer", "older", "newer"]),
    ]
    outputs = [await asyncio.to_thread(talk.done) for talk in talks_of]
    assert json.loads(outputs[1]) == [str(older), str(ROOT)] * 2
    await talks.fleet.quiet()


@pytest.mark.parametrize(("before", "after"), DIRECTIONS)
async def test_a_fleet_is_replaced_under_load(
    talks: Talks, tmp_path: Path, before: Version, after: Version
) -> None:
    """Callers of both versions; each worker gives back what runs for longer than it drains."""
    over = tmp_path / "over"
    for _ in range(2):
        talks.start(before, concurrency=30, grace=1.0)
    callers = [talks.begin(version, "load", over=str(over)) for version in VERSIONS]
    history = History(talks.fleet.record)
    await until(lambda: history.started() > 100, "the load")
    for worker in talks.fleet.workers[:2]:
        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(talks.start, after, concurrency=30, grace=1.0)
    over.touch()
    for caller in callers:
        await asyncio.to_thread(caller.done)
    await talks.fleet.quiet()


@pytest.mark.parametrize(("before", "after"), DIRECTIONS)
def test_a_run_is_begun_by_one_version_and_finished_by_the_other(
    talks: Talks, tmp_path: Path, before: Version, after: Version
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
    worker.kill()
    for number in (1, 2, 3):
        (gates / str(number)).touch()
    readers += [talks.begin(version, "read", id=run_id) for version in VERSIONS]
    for reader in readers:
        assert json.loads(reader.done()) == [[0, 1, 2, 3], [0, 1]]
    assert len(history.runs("stage-0")) == 1
    assert any(run.pid == successor.pid for run in history.runs("stage-3"))
