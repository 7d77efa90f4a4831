"""Commands that look at a fleet and act on it: against two real workers at a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

import atasks
from atasks import atask
from atasks.tracking.queries import WorkerInfo
from atasks_cli import shown
from atasks_cli.doctor import differences
from tests.broker import Broker
from tests.cli.command import Done
from tests.cli.fleet import FleetOfTwo
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def two(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetOfTwo]:
    """One fleet for all tests here: each of them costs a process or two as it is."""
    url = broker.add_vhost() if broker.controllable else broker.url
    fleet = FleetOfTwo(tmp_path_factory.mktemp("fleet"), url, f"cli-{uuid.uuid4().hex}")
    yield fleet
    fleet.close()
    if broker.controllable:
        broker.remove_vhost(url)


@pytest.fixture(autouse=True)
def no_leaks(two: FleetOfTwo) -> None:
    """The fleet of this module outlives its tests."""


def test_ping(two: FleetOfTwo) -> None:
    done = two.run("ping")
    header, *lines = done.out.splitlines()
    assert header.split()[:2] == ["WORKER", "HOST"]
    assert sorted(line.split()[4] for line in lines) == ["default", "leaves"]
    arguments = ("ping", "--namespace", two.namespace, "--expect", "3", "--timeout", "1")
    done = two.shell.run(*arguments, env=two.env)
    assert (done.code, done.err) == (1, "atasks: 2 workers answered within 1 s, and 3 were expected\n")


def test_a_tree_over_two_workers(two: FleetOfTwo) -> None:
    client, gate = two.tree()
    found = two.json("tree")
    calls = {call["task"]: call for call in found["calls"]}
    top, middle, leaf, nobody = (calls[f"shop.{name}"] for name in ("top", "middle", "leaf", "nobody"))
    assert found["tops"] == [top["id"]]
    assert [call["state"] for call in (top, middle, leaf, nobody)] == ["parked", "parked", "running", "waiting"]
    assert (middle["parent"], leaf["parent"], nobody["parent"]) == (top["id"], middle["id"], top["id"])
    assert top["worker"] == middle["worker"] != leaf["worker"]
    assert (nobody["worker"], nobody["queue"]) == ("", "unserved")
    lines = two.run("tree", leaf["id"][:10]).out.splitlines()
    assert lines[0].startswith(f"shop.top {top['id']}  parked at ")
    assert any(line.startswith(("├─ shop.middle ", "└─ shop.middle ")) for line in lines)
    assert any(line.lstrip("│ ").startswith("└─ shop.leaf ") and "  running at " in line for line in lines)
    assert any("─ shop.nobody " in line and "waiting in queue 'unserved'" in line for line in lines)
    states = {line.split()[1]: line.split()[2] for line in two.run("ps", "--task", "shop.*").out.splitlines()[1:]}
    assert states == {
        "shop.top": "parked",
        "shop.middle": "parked",
        "shop.leaf": "running",
        "shop.nobody": "waiting",
    }
    assert [call["task"] for call in two.json("ps", "--state", "running")["calls"]] == ["shop.leaf"]
    assert two.json("ps", "--older", "1h")["calls"] == []
    for only in (("--state", "waiting"), ("--task", "shop.n*"), ("--queue", "unserved")):
        assert [call["task"] for call in two.json("ps", *only)["calls"]] == ["shop.nobody"]

    stack = two.run("stack", leaf["id"]).out
    assert "shop.leaf" in stack
    assert "tasks.py:" in stack
    assert re.search(r"task Task-\d+ of shop\.middle\n", two.run("stack", top["id"]).out)
    assert two.run("stack", "0" * 32, code=1).line().startswith("no worker that answered holds call")

    assert two.run("cancel", leaf["id"], nobody["id"]).out.count("cancelled") == 2
    client.wait_for("top")
    assert client.finish().code == 0
    assert not gate.exists()


def test_calls_that_wait_for_each_other_are_named(two: FleetOfTwo) -> None:
    client = two.call("stuck")
    wait_until(lambda: two.json("tree")["cycles"])
    out = two.run("tree").out
    shown = re.sub(r"(shop\.[a-z]+) [0-9a-f-]{32,}", r"\1", out)
    assert "deadlock: these calls wait for each other, and none of them can go on:\n" in shown
    for line in (
        "shop.pay waits for shop.book",
        "shop.book waits for a token of limit 'ledger', which is held by shop.audit",
        "shop.audit waits for shop.charge",
        "shop.charge waits for a token of limit 'bank', which is held by shop.pay",
    ):
        assert f"  {line}\n" in shown
    assert re.search(r"shop\.pay  parked .*, holds limit 'bank'\n", shown)
    (problem,) = two.json("doctor", code=1)["problems"]
    assert re.match(r"4 calls wait for each other, none of which can go on: shop\.\w+ [0-9a-f]{32} and", problem)
    two.run("cancel", out.split()[1])
    client.wait_for("cancelled")
    assert client.finish().code == 0


def test_an_empty_id_names_no_call(two: FleetOfTwo) -> None:
    """Every id begins with nothing, as a variable of a shell has it that is not set."""
    client = two.call("leaf", str(gate := two.shell.directory / "gate-of-one"))
    wait_until(lambda: len(two.json("ps")["calls"]) == 1)
    for command in ("cancel", "stack", "tree"):
        assert two.run(command, "", code=2).line().startswith("an ID is empty")
    gate.touch()
    assert client.finish().out == "leaf\n"
    gate.unlink()


def test_a_cancelled_call_ends_at_its_caller(two: FleetOfTwo) -> None:
    client, _ = two.tree()
    (top,) = (call for call in two.json("ps")["calls"] if call["task"] == "shop.top")
    assert two.json("cancel", top["id"][:12]) == {"cancelled": [top["id"]], "later": []}
    client.wait_for("cancelled")
    assert client.finish().code == 0
    wait_until(lambda: two.json("ps")["calls"] == [])


def test_inspect(two: FleetOfTwo) -> None:
    client = two.call("add", 1, 2)
    client.wait_for("3")
    assert client.finish().code == 0
    (worker,) = [info for info in two.json("inspect") if info["queues"] == ["default"]]
    (counts,) = [task for task in worker["tasks"] if task["task"] == "shop.add"]
    assert counts["ended"]["value"] >= 1
    text = two.run("inspect", worker["id"]).out
    assert f"worker:     {worker['id']}\n" in text
    assert "clock:      +0.0 s from this one\n" in text  # though the command has waited for answers
    assert "shop.add" in text
    assert two.run("inspect", "nobody", code=1).line().startswith("worker 'nobody' does not answer")


def test_watching(two: FleetOfTwo) -> None:
    viewer = two.start("watch", "--kind", "started", "--kind", "ended", "--json")
    trace = two.shell.directory / "trace.json"
    timeline = two.start("timeline", "-o", str(trace))
    for command in (viewer, timeline):
        command.wait_for("atasks: watching")
    for task in ("add", "fail"):
        two.call(task, *([1, 2] if task == "add" else [])).finish()
    lines = [json.loads(viewer.wait_for('"ended"')) for _ in range(2)]
    assert {(line["task"], line["status"], line.get("error")) for line in lines} == {
        ("shop.add", "value", None),
        ("shop.fail", "raised", "ValueError"),
    }
    assert "it fails" in next(line["traceback"] for line in lines if "error" in line)
    for command in (viewer, timeline):
        command.signal(signal.SIGINT)
        assert command.finish().code == 0
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {span["name"] for span in spans} >= {"shop.add", "shop.fail"}


def test_top(two: FleetOfTwo) -> None:
    assert two.call("add", 1, 2).finish().out == "3\n"
    lines = two.run("top", "--rounds", "2", "--every", "200ms").out.splitlines()
    assert sum("2 workers, 200 slots" in line for line in lines) == 2
    rates = [line.split()[1] for line in lines if line.startswith("shop.add ")]
    assert rates[0] == "-"
    assert rates[1].endswith("/s")
    found = two.json("top", "--rounds", "1")
    assert found["queues"]["leaves"]["consumers"] == 1


def test_a_call_from_the_shell(two: FleetOfTwo) -> None:
    def call(*arguments: str) -> Done:
        return two.shell.run("call", *arguments, env=two.env)

    assert call("tasks:add", "1", "-o", "b=5").out == "6\n"
    assert call("tasks.py:add", '"a"', "b", "--json").out == '"ab"\n'
    failed = call("tasks:fail")
    assert (failed.code, failed.line()) == (1, "ValueError: it fails")
    counted = call("tasks:count", "7", "--progress")
    assert (counted.out, counted.err) == ("7\n", "7/10 counted\n")
    assert (call("tasks:count", "7").err, call("tasks:numbers", "--progress").code) == ("", 2)
    assert call("tasks:add").code == 2
    wrong = call("tasks:ad")
    assert (wrong.code, wrong.line()) == (2, "'ad' is no atask in tasks; did you mean add?")


def test_doctor(two: FleetOfTwo) -> None:
    found = two.json("doctor")
    assert found["problems"] == []
    assert all("the policies of the broker" in text for text in found["unseen"])
    (problem,) = two.json("doctor", "--queue", "leaves", "--queue", "empty", code=1)["problems"]
    assert problem == "queue 'empty' has no workers: start some for it"
    refused = two.env["ATASKS_URL"].replace("guest:guest", "guest:wrong")
    (problem,) = two.json("doctor", "--url", refused, code=1)["problems"]
    assert "check the user and the password" in problem


def test_differences_between_workers() -> None:
    def info(name: str, now: float = 100.0, codec: str = "pickle", version: str = "1") -> WorkerInfo:
        return WorkerInfo(
            name, "host", 1, "shop", ["q"], version, "3.12", codec, "T", now, 1.0, False, 1, 0, 0, 0, 0.0, 0
        )

    assert differences([info("a"), info("b", 100.4)], 99.5, 100.5) == []
    assert len(differences([], 0.0, 1.0)) == 1
    found = differences([info("a"), info("b"), info("c", 107.0, "msgpack", "2"), info("d", 90.0)], 99.5, 100.5)
    assert [problem.split(":")[0] for problem in found] == [
        "worker c has codec 'msgpack', and most have 'pickle'",
        "worker c has version of atasks '2', and most have '1'",
        "the clock of worker c on host is +6.5 s from this one",
        "the clock of worker d on host is -9.5 s from this one",
    ]


def in_terminal(two: FleetOfTwo, *arguments: str, answer: bytes = b"") -> tuple[int, bytes]:
    """The exit code of a command in a terminal, and what it shows there."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, **two.env, "TERM": "xterm", "COLUMNS": "200"}
    command = [sys.executable, "-m", "atasks", *arguments, "--namespace", two.namespace, *two.patience]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    os.write(ours, answer)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        shown += chunk
        if not chunk:
            break
    os.close(ours)
    return process.wait(30), shown


def test_in_a_terminal(two: FleetOfTwo) -> None:
    code, shown = in_terminal(two, "ping")
    assert code == 0
    assert b"WORKER" in shown
    assert b"leaves" in shown


def test_a_queue_is_paused_purged_and_resumed(two: FleetOfTwo) -> None:
    assert two.run("pause", "leaves").out == "queue leaves is paused: 1 worker takes no new calls of it\n"
    client = two.call("leaf", "nowhere")

    def state() -> dict[str, object]:
        found: dict[str, object] = two.json("top", "--rounds", "1")["queues"]["leaves"]
        return found

    wait_until(lambda: state() == {"ready": 1, "consumers": 0, "paused": True})
    (problem,) = two.json("doctor", code=1)["problems"]
    assert problem == "queue 'leaves' is paused: resume it (atasks resume leaves)"
    assert two.run("purge", "leaves", code=2).line().endswith("Nobody is here to ask: add --yes")
    code, shown = in_terminal(two, "purge", "leaves", answer=b"n\n")
    assert code == 1
    assert b"End all calls that wait in queue 'leaves' of namespace" in shown
    assert two.json("purge", "leaves", "--yes") == {"queue": "leaves", "purged": 1, "unreadable": 0, "left": 0}
    client.wait_for("cancelled")
    assert client.finish().code == 0
    assert two.json("resume", "leaves")["workers"]
    gate = two.shell.write("there", "")
    assert two.call("leaf", str(gate)).finish().out == "leaf\n"
    assert two.run("pause", "\x1b[31m", code=2).line().startswith("QUEUE='\\x1b[31m': letters, digits")


def test_a_purge_of_a_queue_that_is_not_there_is_an_error(two: FleetOfTwo) -> None:
    absent = f"there is no queue %r in namespace {two.namespace!r}; "
    line = two.run("purge", "leafs", "--yes", code=1).line()
    assert line == f"{absent % 'leafs'}did you mean 'leaves'?"
    line = two.run("purge", "zzz", "--yes", code=1).line()
    assert line == f"{absent % 'zzz'}workers serve 'default', 'leaves'"


async def test_schedules(two: FleetOfTwo) -> None:
    add = atask(namespace=two.namespace, name="shop.add")(_nothing)
    names = ("add-often", "count-mondays")
    async with atasks.connect(two.env["ATASKS_URL"], namespace=two.namespace):
        await atasks.schedule(names[0], add, [1], every=0.2, catch_up=True)
        await atasks.schedule(names[1], add, [3], every="30 7 * * 1", tz="Europe/Berlin")
        while (await atasks.schedules(namespace=two.namespace))[0].last is None:  # its workers keep the times
            await asyncio.sleep(0.1)
        often, mondays = await asyncio.to_thread(two.json, "schedules")
        lines = [line.split() for line in (await asyncio.to_thread(two.run, "schedules")).out.splitlines()]
        for name in names:
            assert await atasks.unschedule(name, namespace=two.namespace)
    assert (often["name"], often["task"], often["every"], often["tz"]) == (names[0], "shop.add", 0.2, "UTC")
    assert (often["catch_up"], often["overlap"], often["defined"]) == (True, "skip", False)
    assert often["last_id"]
    assert often["last"] < often["next"]
    assert (mondays["name"], mondays["every"], mondays["tz"]) == (names[1], "30 7 * * 1", "Europe/Berlin")
    assert (mondays["last"], mondays["last_id"]) == (None, None)
    assert lines[0] == ["NAME", "ATASK", "EVERY", "LAST", "NEXT", "MADE", "BY"]
    assert [line[:3] for line in lines[1:]] == [[names[0], "shop.add", "0.2s"], [names[1], "shop.add", "30"]]
    assert lines[2][3:9] == ["7", "*", "*", "1", "Europe/Berlin", "-"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d 0[56]:30:00", " ".join(lines[2][9:11]))  # as UTC
    assert [line[-1] for line in lines[1:]] == ["schedule()"] * 2


async def _nothing(a: int, b: int = 1) -> int:
    """For its signature: the fleet has the atask."""
    return a + b


def test_a_fleet_that_nobody_else_sees(two: FleetOfTwo) -> None:
    line = two.run("ps", "--url", "loopback:", code=2).line()
    assert line.startswith("--url loopback: is seen by its own process alone")


COLUMNS = ("ID", "ATASK", "STATE", "AGE", "QUEUE", "WORKER")
ROW = ("3f4e4c0dd2a8", "shop.reserve", "waiting", "5m06s", "default", "a-host.example.19043.06f80b31")


def test_a_narrow_terminal_folds_the_widest_columns_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "in_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "68")
    shown.show_table(COLUMNS, [ROW])
    head, first, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == list(COLUMNS)
    assert max(map(len, (head, first, *rest))) <= 68
    assert tuple(first.split()[:5]) == ROW[:5]
    assert "".join(line.split()[-1] for line in (first, *rest)) == ROW[5]


def test_a_terminal_that_is_too_narrow_for_columns_has_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "in_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    shown.show_table(COLUMNS, [ROW, (*ROW[:4], "", ROW[5])])
    assert capsys.readouterr().out.splitlines() == [
        "3f4e4c0dd2a8  shop.reserve",
        "  state waiting, age 5m06s, queue default",
        f"  worker {ROW[5]}",
        "3f4e4c0dd2a8  shop.reserve",
        "  state waiting, age 5m06s",
        f"  worker {ROW[5]}",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_letters_that_are_two_columns_wide_keep_the_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(shown, "in_terminal", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "80")
    shown.show_table(("ATASK", "STATE"), [("漢字", "running"), ("abcde\u0301", "parked")])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["ATASK  STATE", "漢字   running", "abcde\u0301  parked"]


def test_an_odd_name_makes_its_own_row_long_and_no_other_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody who publishes may choose a name: ten thousand rows of its width are 80 MB."""
    shown.show_table(("NAME", "SIZE"), [("x" * 5000, "1"), ("short", "2")])
    head, long, short = capsys.readouterr().out.splitlines()
    assert long == f"{'x' * 5000}  1"
    assert head.split() == ["NAME", "SIZE"]
    assert short.split() == ["short", "2"]
    assert len(head) < len(short) + 10 < 130
