"""Steps of calls that resume, which had not ended as a later run needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atasks import ATask, Diverged
from atasks.testing import soon, until
from tests.amqp.journals import left_of_journals
from tests.broker import Broker
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.resuming import forgiving, local
from tests.faults.rolled_before import reordered, rolled, strict, versioned
from tests.faults.workers import Fleet, WorkerProcess

MODULE = "tests.faults.resuming"


@pytest.mark.parametrize("result", ["is not there", "is on its way", "is safe"])
async def test_local_work_is_done_again_unless_its_result_is_safe(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
    result: str,
) -> None:
    gate, end = tmp_path / "gate", tmp_path / "end"
    first = fleet.start_one(module=MODULE, url=proxy.url(), caller_patience=5.0)
    task = asyncio.create_task(local(key, str(gate), str(end)))
    await until(lambda: history.runs(f"{key}-0"), "the work is begun")
    if result != "is not there":
        if result == "is on its way":
            proxy.hold("publish", "to_broker")
        gate.touch()
        await until(lambda: history.runs(f"{key}-0")[0].ending, "the work is done")
        if result == "is safe":
            await until(
                lambda: sum(queue.messages for queue in node.queues() if ".run." in queue.name), "it is kept"
            )
    first.kill()
    proxy.drop()
    second = fleet.start_one(module=MODULE, caller_patience=5.0)
    gate.touch()
    end.touch()
    assert await soon(task) == (first if result == "is safe" else second).pid
    endings = {"is not there": [None, "end"], "is on its way": ["end", "end"], "is safe": ["end"]}
    assert [run.ending for run in history.runs(f"{key}-0")] == endings[result]
    await until(lambda: not left_of_journals(node, prefix), "the journal is dropped")


async def test_a_step_that_was_lost_is_made_again(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gate, end = tmp_path / "gate", tmp_path / "end"
    parents, children = (
        fleet.start_one(module=MODULE, queues=[name], caller_patience=5.0) for name in ("default", "other")
    )
    task = asyncio.create_task(forgiving(key, "other", str(gate), str(end)))
    await until(lambda: history.runs(f"{key}-0"), "the step runs")
    children.kill()
    again = fleet.start_one(module=MODULE, queues=["other"], caller_patience=5.0)
    await until(lambda: history.runs(f"{key}-lost"), "the step is lost")
    parents.kill()
    fleet.start_one(module=MODULE, queues=["default"], caller_patience=5.0)
    gate.touch()
    end.touch()
    assert await soon(task) == again.pid
    assert [run.ending for run in history.runs(f"{key}-0")] == [None, "end"]
    await until(lambda: not left_of_journals(node, prefix), "the journal is dropped")


@pytest.mark.parametrize(
    ("call", "times"),
    [(rolled, {"first": 1, "second": 1, "new": 1}), (versioned, {"first": 1, "second": 2, "new": 1})],
)
async def test_new_code_finds_the_steps_that_it_has_in_common_with_the_old_one_unless_it_is_a_version_of_its_own(
    fleet: Fleet,
    node: Broker,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
    call: ATask[[str, str], Any],
    times: dict[str, int],
) -> None:
    gate = tmp_path / "gate"
    before = fleet.start_one(module="tests.faults.rolled_before", caller_patience=5.0)
    task = asyncio.create_task(call(key, str(gate)))
    await until(lambda: history.runs(f"{key}-second"), "both steps")
    await until(lambda: len(history.safe()) == 2, "they are safe")
    before.kill()
    after = fleet.start_one(module="tests.faults.rolled_after", caller_patience=5.0)
    gate.touch()
    assert await soon(task) == ["new", "second"]
    assert {name: len(history.runs(f"{key}-{name}")) for name in times} == times
    warned = (
        "rolled, call" in after.output and "did not find tests.faults.resuming.step in its journal" in after.output
    )
    assert warned == (call is rolled)
    if call is rolled:
        await until(lambda: not left_of_journals(node, prefix), "the journal is dropped")
    else:
        await until(
            lambda: len([name for name in left_of_journals(node, prefix) if ".run." in name]) == 1,
            "the journal of the version before is left, and expires",
        )


async def test_old_and_new_code_take_turns_at_a_call_and_each_step_is_made_once_by_its_name(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    """The new code has another order of the steps, and another name for one. Workers of both are killed."""
    gate = tmp_path / "gate"
    names = {
        "before": ["first", "renamed-before", "second", "third"],
        "after": ["third", "second", "renamed-after", "first"],
    }

    workers: dict[int, tuple[WorkerProcess, str]] = {}

    def start(version: str) -> None:
        worker = fleet.start_one(module=f"tests.faults.rolled_{version}", caller_patience=5.0)
        workers[worker.pid] = worker, version

    for version in names:
        start(version)
    task = asyncio.create_task(reordered(key, str(gate)))
    versions: list[str] = []
    for made in (4, 5, 5):
        await until(lambda: len(history.runs(key)) > len(versions), "a run has begun")
        if len(versions) == 1:
            start(versions[0])
        worker, version = workers[history.runs(key)[-1].pid]
        versions.append(version)
        await until(lambda: len(history.safe()) == made, "its steps are safe")  # noqa: B023
        if len(versions) < 3:
            worker.kill()
    gate.touch()
    assert await soon(task) == names[versions[-1]]
    assert versions[0] == versions[2] != versions[1]
    steps = {name for each in names.values() for name in each}
    assert {name: len(history.runs(f"{key}-{name}")) for name in steps} == dict.fromkeys(steps, 1)
    await until(lambda: not left_of_journals(node, prefix), "the journal is dropped")


async def test_new_code_ends_a_strict_call_before_its_first_new_step_and_leaves_nothing(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    before = fleet.start_one(module="tests.faults.rolled_before", caller_patience=5.0)
    task = asyncio.create_task(strict(key, str(tmp_path / "gate")))
    await until(lambda: len(history.safe()) == 2, "both steps are safe")
    before.kill()
    fleet.start_one(module="tests.faults.rolled_after", caller_patience=5.0)
    with pytest.raises(Diverged, match=r"strict called tests.faults.resuming.step, which .* \(2 left\)") as caught:
        await soon(task)
    assert "atasks: try" not in "".join(caught.value.__notes__)  # the one that `on=Exception` might want
    runs = {name: len(history.runs(f"{key}-{name}")) for name in ("first", "second", "new")}
    assert runs == {"first": 1, "second": 1, "new": 0}
    await until(lambda: not left_of_journals(node, prefix), "the journal is dropped")
    await fleet.quiet()
    assert not [queue for queue in fleet.queues() if queue.messages]
