"""Notes of running calls that outlive the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from atasks.supervisor.running_calls import RECORDS, RunningCalls, RunningCallsNotes
from atasks.tracking.counters import BUSY, Counters
from atasks.wire import Call

NOTING = """
import sys, time
from atasks.supervisor.running_calls import RunningCallsNotes
from atasks.wire import Call
notes = RunningCallsNotes(int(sys.argv[1]))
records = [notes.enter(Call(1, f"id-{number}", f"app.task{number}", b"", "pickle")) for number in range(3)]
notes.leave(records[1])
print("noted", flush=True)
time.sleep(3600)
"""


def call(call_id: str, task: str = "app.task") -> Call:
    return Call(1, call_id, task, b"", "pickle")


@pytest.fixture
def box() -> Iterator[RunningCalls]:
    box = RunningCalls()
    yield box
    box.close()


def test_calls_are_named_the_latest_first(box: RunningCalls) -> None:
    notes = RunningCallsNotes(box.fd)
    assert box.read() == ([], 0)
    notes.enter(call("a", "app.first"))
    second = notes.enter(call("b", "app.second"))
    assert second is not None
    assert box.read() == ([("b", "app.second"), ("a", "app.first")], 0)
    notes.leave(second)
    notes.enter(call("c", "app.third"))  # in the record of the one that ended, and still the latest
    assert box.read() == ([("c", "app.third"), ("a", "app.first")], 0)


def test_calls_without_a_record_are_counted(box: RunningCalls) -> None:
    notes = RunningCallsNotes(box.fd)
    cells = Counters("worker", "namespace", notes.table).own
    calls = [call(str(number)) for number in range(RECORDS + 3)]
    records = []
    for each in calls:
        records.append(notes.enter(each))
        cells[BUSY] += 1
    assert records[RECORDS:] == [None] * 3
    named, more = box.read()
    assert (len(named), more) == (RECORDS, 3)
    for record in records:
        if record is not None:
            notes.leave(record)
        cells[BUSY] -= 1
    assert box.read() == ([], 0)
    notes.enter(calls[-1])
    assert box.read() == ([(calls[-1].id, "app.task")], 0)


def test_long_name_is_cut_and_costs_no_other_record(box: RunningCalls) -> None:
    notes = RunningCallsNotes(box.fd)
    notes.enter(call("a", "app." + "ä" * 500))
    notes.enter(call("b"))
    (second, first), _ = box.read()
    assert second == ("b", "app.task")
    assert first[0] == "a"
    assert first[1].startswith("app.ää")


def test_box_without_anonymous_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)  # as on macOS
    box = RunningCalls()
    RunningCallsNotes(box.fd).enter(call("a"))
    assert box.read() == ([("a", "app.task")], 0)
    box.close()


def test_notes_outlive_a_process_that_is_killed(box: RunningCalls) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NOTING, str(box.fd)], pass_fds=[box.fd], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "noted\n"
        os.kill(process.pid, signal.SIGKILL)
    assert box.read() == ([("id-2", "app.task2"), ("id-0", "app.task0")], 0)
