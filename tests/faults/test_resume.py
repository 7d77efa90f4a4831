"""Calls that resume, while their workers, and the broker, come and go."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from atasks import WorkerLost
from atasks.testing import soon, until
from tests.broker import Broker
from tests.brokers.base import Queue
from tests.faults.history import History, RunRecord, begun_again
from tests.faults.proxy import Direction, Proxy
from tests.faults.resuming import drawing, fanned, gated, given_up, guarding, late, row, step, tree
from tests.faults.workers import Fleet, WorkerProcess

MODULE = "tests.faults.resuming"


def workers(fleet: Fleet, count: int = 1, *queues: str) -> list[WorkerProcess]:
    return fleet.start(count, module=MODULE, queues=list(queues) or None, caller_patience=5.0)


def journals(node: Broker, prefix: str) -> list[Queue]:
    """The queues of records and journals at the broker."""
    return [queue for queue in node.queues() if queue.name.startswith(f"{prefix}.run.")]


async def test_a_killed_worker_costs_a_call_no_step_that_had_ended(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gates = [str(tmp_path / f"{key}-{number}") for number in range(4)]
    workers(fleet, 1)
    task = asyncio.create_task(row(key, gates))
    for number, gate in enumerate(gates):
        await until(lambda number=number: history.runs(f"{key}-{number}"), f"step {number}")  # type: ignore[misc]
        await until(lambda: len(journals(node, prefix)) == 1, "there is a journal", 10)
        if number < 3:
            await asyncio.sleep(0.3)  # the step has ended, and the number is drawn
            fleet.workers[-1].kill()
            workers(fleet, 1)
        Path(gate).touch()
    made = await soon(task)
    pids = [worker.pid for worker in fleet.workers]
    assert made == [pid for pid in pids for _ in range(2)], "each worker made one step, and drew one number"
    assert [len(history.runs(f"{key}-{number}")) for number in range(4)] == [1, 1, 1, 1]
    assert len(history.runs(key)) == 4
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_calls_that_run_when_their_caller_dies_are_kept(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gates = [str(tmp_path / f"{key}-{number}") for number in range(2)]
    (parents,) = workers(fleet, 1, "default")
    (children,) = workers(fleet, 1, "other")
    task = asyncio.create_task(fanned(key, "other", gates))
    await until(lambda: history.runs(f"{key}-0") and history.runs(f"{key}-1"), "both steps run")
    parents.kill()
    Path(gates[0]).touch()  # nobody awaits it now
    await until(lambda: history.runs(f"{key}-0")[0].ending, "the first step has ended")
    workers(fleet, 1, "default")
    await until(lambda: len(history.runs(key)) == 2, "the call runs again")
    Path(gates[1]).touch()
    assert await soon(task) == [children.pid, children.pid]
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_a_call_that_may_run_once_is_not_made_again(
    fleet: Fleet, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gate = str(tmp_path / key)
    (parents,) = workers(fleet, 1, "default")
    workers(fleet, 1, "other")
    task = asyncio.create_task(fanned(key, "other", [gate], "at_most_once"))
    await until(lambda: history.runs(f"{key}-0"), "the step runs")
    parents.kill()
    workers(fleet, 1, "default")
    with pytest.raises(WorkerLost, match="was called by an earlier run: it may have run, and runs at most once"):
        await soon(task)
    Path(gate).touch()
    assert len(history.runs(f"{key}-0")) == 1


async def test_steps_survive_the_broker(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gates = [str(tmp_path / f"{key}-{number}") for number in range(2)]
    workers(fleet, 1)
    task = asyncio.create_task(row(key, gates))
    await until(lambda: history.runs(f"{key}-0"), "the first step")
    await asyncio.sleep(0.3)
    await asyncio.to_thread(node.kill)
    fleet.workers[-1].kill()
    await asyncio.to_thread(node.start)
    workers(fleet, 1)
    for gate in gates:
        Path(gate).touch()
    made = await soon(task)
    assert made == [worker.pid for worker in fleet.workers for _ in range(2)]
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_a_drained_worker_hands_its_steps_on(
    fleet: Fleet, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gates = [str(tmp_path / f"{key}-{number}") for number in range(2)]
    fleet.start(1, module=MODULE, grace=0.2)
    task = asyncio.create_task(row(key, gates))
    await until(lambda: history.runs(f"{key}-0"), "the first step")
    await asyncio.sleep(0.3)
    workers(fleet, 1)
    assert await asyncio.to_thread(fleet.workers[0].stop) == 0
    for gate in gates:
        Path(gate).touch()
    assert await soon(task) == [worker.pid for worker in fleet.workers for _ in range(2)]
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]


async def test_a_worker_that_was_cut_off_leaves_the_call_to_the_one_that_has_it(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    gates = [str(tmp_path / f"{key}-{number}") for number in range(6)]
    fleet.start(1, module=MODULE, queues=["other"])
    frozen, other = (
        fleet.start(1, module=MODULE, queues=["default"], url=f"{node.url}?heartbeat=2")[0] for _ in range(2)
    )
    task = asyncio.create_task(drawing(key, "other", gates))
    await until(lambda: history.runs(f"{key}-0-drawn"), "the first number is drawn")
    first = history.runs(key)[0].pid
    if first != frozen.pid:
        frozen, other = other, frozen
    await asyncio.sleep(0.3)  # it is safe
    frozen.signal(signal.SIGSTOP)
    try:
        await until(lambda: len(history.runs(key)) == 2, "the other worker has the call")
        for gate in gates:
            Path(gate).touch()
        assert await soon(task) == [first] + 5 * [other.pid]
    finally:
        frozen.signal(signal.SIGCONT)
    await until(lambda: history.runs(key)[0].ending == "cancelled", "the run of the first one ends")
    drawn = Counter(run.key for run in history.runs() if run.key.endswith("drawn"))
    assert max(drawn.pop(f"{key}-{number}-drawn") for number in (0, 1)) <= 2, "the step that came next"
    assert set(drawn.values()) == {1}
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_a_worker_that_was_cut_off_before_its_reply_was_safe_leaves_the_journal_to_the_next_run(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
) -> None:
    first, second, end = (tmp_path / name for name in ("first", "second", "end"))
    (children,) = workers(fleet, 1, "other")
    (cut,) = fleet.start(1, module=MODULE, queues=["default"], url=proxy.url())
    task = asyncio.create_task(late(key, "other", [str(first), str(second)], str(end)))
    first.touch()
    await until(lambda: history.runs(f"{key}-1") and history.runs(f"{key}-1")[0].ending, "both steps have ended")
    await asyncio.sleep(0.3)  # they are safe
    proxy.hold("publish", "to_broker")
    end.touch()
    await until(lambda: history.runs(key)[0].ending == "end", "it has ended, and its reply has not arrived")
    proxy.refuse()
    proxy.drop()
    workers(fleet, 1, "default")
    await until(lambda: len(history.runs(key)) == 2, "the other worker has the call, and asks for no step yet")
    proxy.resume()
    assert await soon(task) == [children.pid, children.pid]
    await until(lambda: "is left to the next run" in cut.output or "is dropped" in cut.output, "its word arrives")
    children.kill()  # it would remember
    workers(fleet, 1, "other")
    second.touch()
    await until(lambda: history.runs(key)[1].ending == "end", "the second run ends")
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]
    await until(lambda: not journals(node, prefix), "the journal is dropped")


@pytest.mark.parametrize("moment", ["before its first step", "while it makes a call"])
async def test_a_worker_that_comes_back_makes_no_call_for_one_that_has_ended_elsewhere(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
    moment: str,
) -> None:
    first, second, end = (tmp_path / name for name in ("first", "second", "end"))
    (children,) = workers(fleet, 1, "other")
    (cut,) = fleet.start(1, module=MODULE, queues=["default"], url=proxy.url())
    task = asyncio.create_task(late(key, "other", [str(first), str(second)], str(end)))
    await until(lambda: history.runs(key), "it begins")
    if moment == "while it makes a call":
        proxy.hold("publish", "to_broker")
        first.touch()
        await until(lambda: "is open" in cut.output, "it asks for a step")
        await asyncio.sleep(0.3)
    proxy.refuse()
    proxy.drop()
    first.touch()
    second.touch()
    end.touch()
    workers(fleet, 1, "default")
    assert await soon(task) == [children.pid, children.pid]
    await until(lambda: not journals(node, prefix), "the journal is dropped")
    children.kill()  # it would remember
    workers(fleet, 1, "other")
    proxy.resume()
    await until(lambda: history.runs(key)[0].ending, "the first run ends")
    await asyncio.sleep(3)  # a call that no worker has would be sent again
    assert [len(history.runs(f"{key}-{number}")) for number in range(2)] == [1, 1]
    assert history.runs(key)[0].ending == "cancelled"
    await until(lambda: not journals(node, prefix), "no journal is left")


async def test_a_step_that_waits_at_a_worker_that_comes_back_does_not_begin_if_it_has_ended_elsewhere(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
) -> None:
    gate, second = tmp_path / "gate", tmp_path / "gate-second"
    workers(fleet, 1, "default")
    (cut,) = fleet.start(1, module=MODULE, queues=["other"], url=proxy.url())
    task = asyncio.create_task(guarding(key, "other", str(gate)))
    await until(lambda: history.runs(f"{key}-0"), "the first step has the token")
    second.touch()
    await asyncio.sleep(0.5)  # the other step waits for it
    (other,) = workers(fleet, 1, "other")
    proxy.refuse()
    proxy.drop()
    gate.touch()
    assert await soon(task) == [other.pid, other.pid]
    proxy.resume()
    await until(lambda: "is restored" in cut.output, "it is back")
    await asyncio.sleep(1)  # the token is free
    assert [run.pid for run in history.runs(f"{key}-1")] == [other.pid]
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_a_step_that_waits_at_a_worker_that_is_back_does_not_begin_if_it_has_ended_elsewhere_since(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
) -> None:
    gate, rest, end = (tmp_path / name for name in ("gate", "rest", "end"))
    workers(fleet, 1, "default")
    (cut,) = fleet.start(1, module=MODULE, queues=["other", "busy"], url=proxy.url(), concurrency=1)
    busy = asyncio.create_task(step.options(queue="busy")(f"{key}-busy", str(rest)))
    await until(lambda: history.runs(f"{key}-busy"), "the worker has no slot")
    task = asyncio.create_task(gated(key, "other", str(gate), str(end)))
    await until(lambda: history.runs(key), "the call begins")
    await asyncio.sleep(1)  # its step waits for a slot
    (other,) = workers(fleet, 1, "other")
    proxy.refuse()
    proxy.drop()
    await until(lambda: history.runs(f"{key}-0"), "the step begins at the other worker")
    proxy.resume()
    await until(lambda: "is restored" in cut.output, "it is back")
    gate.touch()
    await until(lambda: history.runs(f"{key}-0")[0].ending, "the step ends")
    await asyncio.sleep(0.5)  # its reply is safe
    rest.touch()
    await soon(busy)
    await asyncio.sleep(1)  # there is a slot
    assert [run.pid for run in history.runs(f"{key}-0")] == [other.pid]
    end.touch()
    assert await soon(task) == other.pid
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_a_worker_that_comes_back_after_its_journal_has_expired_goes_on(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
) -> None:
    """The step, which nobody seemed to want any more, was sent again and again, and never begun."""
    gate, end = tmp_path / "gate", tmp_path / "end"
    workers(fleet, 1, "other")
    (cut,) = fleet.start(1, module=MODULE, queues=["default"], url=proxy.url(), keep_runs=2.0)
    task = asyncio.create_task(gated(key, "other", str(gate), str(end)))
    await until(lambda: history.runs(f"{key}-0"), "the step begins")
    await asyncio.sleep(0.5)
    proxy.refuse()
    proxy.drop()
    await until(lambda: not journals(node, prefix), "the journal has expired")
    await until(lambda: history.runs(f"{key}-0")[0].ending, "the step is ended")
    gate.touch()
    end.touch()
    proxy.resume()
    assert await soon(task) == history.runs(f"{key}-0")[0].pid
    assert [run.ending for run in history.runs(f"{key}-0")] == ["cancelled", "end"]
    assert [run.pid for run in history.runs(key)] == [cut.pid]
    await until(lambda: not journals(node, prefix), "the journal is dropped")


@pytest.mark.parametrize("options", [{"delivery": "at_most_once"}, {"max_attempts": 1}])
async def test_a_call_that_may_not_begin_again_goes_on_over_a_cut(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
    options: Any,
) -> None:
    """Another worker is given it meanwhile, hears that the first one still runs it, and leaves it to that one."""
    gates = [tmp_path / f"{number}" for number in range(2)]
    (cut,) = fleet.start(1, module=MODULE, url=proxy.url())
    task = asyncio.create_task(row.options(**options)(key, [str(gate) for gate in gates]))
    await until(lambda: history.runs(f"{key}-0"), "its first step")
    await asyncio.sleep(0.3)  # it has ended, and the number is drawn
    workers(fleet, 1)
    proxy.refuse()
    proxy.drop()
    await asyncio.sleep(0.5)  # the other worker asks
    proxy.resume()
    await until(lambda: "is restored" in cut.output, "it is back")
    await asyncio.sleep(4)  # the other one has its answer
    for gate in gates:
        gate.touch()
    first, drawn, *_ = await soon(task)
    assert first == drawn == cut.pid
    assert [run.ending for run in history.runs(key)] == ["end"]
    await until(lambda: not journals(node, prefix), "the journal is dropped")


async def test_a_call_that_is_given_up_ends_its_calls(
    fleet: Fleet, node: Broker, prefix: str, history: History, tmp_path: Path, key: str, connected: None
) -> None:
    (parents,) = workers(fleet, 1, "default")
    workers(fleet, 1, "other")
    task = asyncio.create_task(given_up(key, "other", str(tmp_path / "never")))
    await until(lambda: history.runs(f"{key}-0"), "the step runs")
    parents.kill()
    workers(fleet, 1, "default")
    with pytest.raises(WorkerLost):
        await soon(task)
    await until(lambda: not journals(node, prefix), "the journal is dropped")
    await until(lambda: history.runs(f"{key}-0")[0].ending == "cancelled", "the step is cancelled")


@pytest.mark.parametrize(("held", "times"), [("to_broker", 2), ("to_client", 1), (None, 1)])
async def test_a_step_is_made_again_if_its_reply_was_not_confirmed_when_its_worker_was_killed_and_only_then(
    fleet: Fleet,
    node: Broker,
    proxy: Proxy,
    prefix: str,
    history: History,
    tmp_path: Path,
    key: str,
    connected: None,
    held: Direction | None,
    times: int,
) -> None:
    """The reply had not arrived at the broker; the broker had it, and its word was on the way; it had arrived."""
    gate, end = tmp_path / "gate", tmp_path / "end"
    (parents,) = workers(fleet, 1, "default")
    (children,) = fleet.start(1, module=MODULE, queues=["other"], url=proxy.url())
    task = asyncio.create_task(gated(key, "other", str(gate), str(end)))
    await until(lambda: history.runs(f"{key}-0"), "the step runs")
    sent = sum(journal.messages for journal in journals(node, prefix))
    if held is not None:
        proxy.hold("publish", held)
    gate.touch()
    await until(lambda: history.runs(f"{key}-0")[0].ending == "end", "the step has ended")
    if times == 1:
        await until(lambda: sum(journal.messages for journal in journals(node, prefix)) > sent, "it is kept")
    if held is None:
        await until(lambda: history.runs(f"{key}-0")[0].call_id in history.safe(), "the worker knows")
    else:
        await asyncio.sleep(0.3)
        assert not history.safe()
    for worker in (parents, children):
        worker.kill()
    proxy.drop()
    workers(fleet, 1, "default", "other")
    end.touch()
    made = await soon(task)
    steps = history.runs(f"{key}-0")
    assert [run.ending for run in steps] == ["end"] * times
    assert made == steps[-1].pid
    assert not begun_again(steps, history.safe())


async def test_branches_in_trees_are_made_once_whatever_dies(
    fleet: Fleet, node: Broker, prefix: str, history: History, key: str, connected: None
) -> None:
    fleet.start(3, module=MODULE, caller_patience=5.0)
    task = asyncio.create_task(tree(key, 3, 2, 0.2))
    for _ in range(4):
        await asyncio.sleep(0.6)
        killed = time.monotonic()
        fleet.workers[-3].kill()
        workers(fleet, 1)
    assert await soon(task) == 64
    await until(lambda: not journals(node, prefix), "the journals are dropped")
    safe, branches = history.safe(), defaultdict[str, list[RunRecord]](list)
    for run in history.runs():
        branches[run.key].append(run)
    assert min(safe.values()) < killed, "some ends were safe before the last worker died"
    again = {
        name: runs
        for name, runs in branches.items()
        if begun_again(runs, {run.call_id: safe[run.call_id] for run in runs if run.call_id in safe})
    }
    assert not again, f"these had ended, and ran again: {again}"
