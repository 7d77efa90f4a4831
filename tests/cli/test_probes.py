"""`atasks health` and `--http`: probes of real servers."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import pytest

from atasks_cli import health
from tests.cli.app import App, workers
from tests.cli.command import Command
from tests.cli.shell import Shell
from tests.waiting import wait_until


@pytest.fixture
def served(socket_app: App, tmp_path: Path) -> App:
    socket_app.env["ATASKS_RUN_DIR"] = str(tmp_path / "notes")
    return socket_app


def get(command: Command, path: str, **headers: str) -> tuple[int, str]:
    """The status and the body that a server answers to a request."""
    request = urllib.request.Request(command.http + path, headers=headers)  # type: ignore[attr-defined]
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def probed(start: Callable[..., Command], *options: str) -> Command:
    """A server that answers probes at a free port."""
    command = start("--http", "127.0.0.1:0", *options)
    line = command.wait_for("probes at")
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found is not None, line
    command.http = found[0]  # type: ignore[attr-defined]
    return command


def probe(app: App, *options: str) -> subprocess.CompletedProcess[str]:
    """`atasks health`, as a probe runs it."""
    code = "from atasks_cli.start import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "health", *options],
        env={**os.environ, **app.env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_server_is_well_and_ready_until_it_drains(served: App) -> None:
    server = probed(served.start)
    server.wait_for("serving")
    assert get(server, "/healthz")[0] == 200
    wait_until(lambda: get(server, "/readyz")[0] == 200)
    (note,) = json.loads(get(server, "/readyz")[1])["workers"]
    assert (note["pid"], note["connected"], note["slots"], note["problems"]) == (server.process.pid, True, 100, [])
    assert probe(served).returncode == 0
    assert f"(pid {server.process.pid}): well; 0 of 100 slots run" in probe(served, "--ready").stdout

    client = served.call("gated")
    server.wait_for("running")
    wait_until(lambda: json.loads(probe(served, "--json").stdout)[0]["running"] == 1)
    server.signal(SIGTERM)
    wait_until(lambda: get(server, "/readyz")[0] == 503)
    assert get(server, "/healthz")[0] == 200
    assert probe(served).returncode == 0
    assert "it drains" in probe(served, "--ready").stdout
    served.gate.write_text("")
    assert client.finish().out == "through\n"
    assert server.finish().code == 0
    gone = probe(served)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "no server has left a note" in gone.stderr


def test_a_blocked_event_loop_is_seen(served: App) -> None:
    supervisor = probed(served.start, "--workers", "2")
    supervisor.wait_for("serve")
    first, _ = workers(supervisor)
    wait_until(lambda: get(supervisor, "/healthz")[0] == 200)
    first.send_signal(SIGSTOP)
    try:
        wait_until(lambda: probe(served, "--lag", "2").returncode == 1)
        stopped = probe(served, "--lag", "2", "--pid", str(first.pid))
        assert "its event loop has been blocked for" in stopped.stdout
        assert probe(served, "--lag", "2", "--ready").returncode == 0, "the other one takes calls"
        assert get(supervisor, "/readyz")[0] == 200
    finally:
        first.send_signal(SIGCONT)
    wait_until(lambda: probe(served, "--lag", "2").returncode == 0)
    killed = workers(supervisor)[0].pid
    os.kill(killed, 9)
    wait_until(lambda: str(killed) not in probe(served).stdout)
    wait_until(lambda: len(probe(served).stdout.splitlines()) == 2)
    served.end(supervisor)


def test_metrics_of_all_processes(served: App) -> None:
    supervisor = probed(served.start, "--workers", "2")
    supervisor.wait_for("serve")
    served.pids(count=2)
    served.call("die").finish()

    def values() -> dict[str, float]:
        status, text = get(supervisor, "/metrics")
        assert status == 200
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    ended = 'atasks_calls_total{status="value",task="tasks.pid"}'
    wait_until(lambda: values().get(ended, 0) >= 10)
    wait_until(lambda: sum(name.startswith("atasks_slots{") for name in values()) == 2)
    found = values()
    assert found['atasks_call_run_seconds_count{task="tasks.pid"}'] == found[ended]
    assert found['atasks_call_run_seconds_bucket{le="+Inf",task="tasks.pid"}'] == found[ended]
    buckets = [value for name, value in found.items() if name.startswith("atasks_call_run_seconds_bucket")]
    assert buckets[:-1] == sorted(buckets[:-1]) or len(set(buckets)) > 1
    assert found['atasks_calls_started_total{task="tasks.die"}'] == 1, "the process that it killed is counted"
    lost = 'atasks_calls_total{status="worker_lost",task="tasks.die"}'
    assert found[lost] == 1, "the process that took its place has declared it lost"
    openmetrics = get(supervisor, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]
    assert openmetrics.endswith("# EOF\n")
    served.end(supervisor)


def test_metrics_tell_how_long_the_queues_are(app: App, tmp_path: Path) -> None:
    app.env["ATASKS_RUN_DIR"] = str(tmp_path / "notes")
    calls = "asyncio.gather(*(tasks.forever() for _ in range(50)))"
    many = f"import asyncio, tasks\n\nasync def aiomain():\n    await {calls}\n"
    app.shell.write("many.py", many)
    server = probed(app.start, "--concurrency", "1")
    server.wait_for("serving")
    client = app.shell.start("run", "many.py", "--mode", "client", "--namespace", app.namespace, env=app.env)
    server.wait_for("running")

    def found(name: str) -> float:
        lines = get(server, "/metrics")[1].splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    wait_until(lambda: found(f'atasks_queue_ready{{namespace="{app.namespace}",queue="default"}}') > 30)
    assert found("atasks_slots_wanted") == 50
    client.signal(SIGTERM)
    client.finish()
    wait_until(lambda: found("atasks_slots_wanted") == 0)
    app.end(server)


def test_other_requests(served: App) -> None:
    server = probed(served.start)
    server.wait_for("serving")
    assert get(server, "/")[0] == 404
    assert get(server, "/healthz?verbose=1")[0] == 200
    served.end(server)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--http", "127.0.0.1"], "--http 127.0.0.1: write HOST:PORT, as in 127.0.0.1:8000, or :8000"),
        (["--http", "x:y"], "--http x:y: write HOST:PORT, as in 127.0.0.1:8000, or :8000"),
        (["--http", ":70000"], "--http :70000: write HOST:PORT, as in 127.0.0.1:8000, or :8000"),
    ],
)
def test_an_address_that_is_none(shell: Shell, options: list[str], problem: str) -> None:
    shell.write("tasks.py", "from atasks import atask\n\n@atask\nasync def one(): ...\n")
    done = shell.run("run", "tasks.py", "--mode", "server", *options)
    assert (done.code, done.line()) == (2, problem)


def test_probes_are_of_servers(shell: Shell) -> None:
    shell.write("tasks.py", "async def aiomain(): ...\n")
    done = shell.run("run", "tasks.py", "--http", ":8000")
    assert (done.code, done.line()) == (
        2,
        "--http is for --mode server, and this is --mode loopback: leave it out",
    )


def note(**more: Any) -> dict[str, Any]:
    state = {"pid": os.getpid(), "supervisor": None, "worker": "ann", "connected": True, "consuming": True}
    state |= {"draining": False, "running": 0, "parked": 0, "waiting": 0, "slots": 1, "at": time.monotonic()}
    return state | more


def test_files_of_others_are_left_out(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    files = {
        str(os.getpid()): json.dumps(note()),
        str(ended.pid): json.dumps(note(pid=ended.pid)),
        "1": json.dumps(note()),
        "half": '{"pid": 1',
        "list": "[]",
        "text": "\udcff",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text, errors="surrogateescape")
    names = [str(os.getpid()), str(ended.pid), "1", "half", "list", "text"]
    with ExitStack() as stack:
        for name in names:
            fcntl.flock(stack.enter_context((tmp_path / f"{name}.json").open()), fcntl.LOCK_EX)
        assert [found["pid"] for found in health.notes(where=tmp_path)] == [os.getpid()]
        assert health.notes(pid=1, where=tmp_path) == []
    assert health.notes(where=tmp_path / "nowhere") == []


def test_the_note_of_a_server_that_was_killed_goes_although_its_number_lives(served: App, tmp_path: Path) -> None:
    server = served.serve()
    path = tmp_path / "notes" / f"{server.process.pid}.json"
    assert len(json.loads(probe(served, "--json").stdout)) == 1
    content = path.read_bytes()
    server.signal(SIGKILL)
    server.finish()
    mine = path.with_name(f"{os.getpid()}.json")  # as if this process had got the number of the server
    mine.write_bytes(content.replace(b'"pid": %d' % server.process.pid, b'"pid": %d' % os.getpid()))
    gone = probe(served)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "well", "ready"),
    [
        ({}, [], []),
        ({"connected": False, "consuming": False}, [], ["it has no connection"]),
        ({"consuming": False}, [], ["it does not consume"]),
        ({"draining": True, "consuming": False}, [], ["it drains"]),
    ],
)
def test_what_keeps_a_server_from_being_ready(more: dict[str, Any], well: list[str], ready: list[str]) -> None:
    assert health.problems(note(**more)) == well
    assert health.problems(note(**more), ready=True) == ready


def test_a_probe_imports_no_more_than_it_needs() -> None:
    code = "import sys; from atasks_cli.start import main; sys.argv[1:] = ['health']\n"
    code += "try: main()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {
        name for name in done.stdout.split() if name.partition(".")[0] in ("asyncio", "atasks", "atasks_cli")
    }
    assert loaded == {"atasks_cli", "atasks_cli.start", "atasks_cli.health"}
