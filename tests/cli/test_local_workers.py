"""`--mode server --workers` around a hub on a Unix socket: no broker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import psutil
import pytest

import atasks
from tests.cli.app import App, workers
from tests.cli.command import PATIENCE
from tests.waiting import wait_until


@pytest.fixture
def app(socket_app: App) -> App:
    return socket_app


def test_workers_serve_and_drain(app: App) -> None:
    supervisor = app.supervise("--workers", "2")
    processes = workers(supervisor)
    assert app.pids(count=2) == [process.pid for process in processes]
    client = app.call("gated")
    supervisor.wait_for("running")
    supervisor.signal(SIGTERM)
    supervisor.wait_for("draining 2 workers")
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert supervisor.finish().code == 0


def test_worker_is_replaced_after_its_calls(app: App) -> None:
    supervisor = app.supervise("--workers", "1", "--max-calls-per-worker", "1")
    (old,) = workers(supervisor)
    assert app.pids() == [old.pid]
    assert app.pids(other_than=[old.pid]) != []
    app.end(supervisor)


def test_workers_end_with_a_supervisor_that_is_killed(app: App) -> None:
    supervisor = app.supervise("--workers", "2")
    processes = workers(supervisor)
    supervisor.signal(SIGKILL)
    assert psutil.wait_procs(processes, PATIENCE)[1] == []
    assert supervisor.finish().code == -SIGKILL


@pytest.fixture(params=["--workers=2", "--workers=1", "--grace=30"])
def unread(app: App, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A server whose stderr nobody reads any more, as behind a `tee` that a Ctrl-C has ended."""
    arguments = ["run", "tasks.py", "--mode", "server", "--namespace", app.namespace, request.param, "-v"]
    with (app.shell.directory / "output").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "atasks", *arguments],
            cwd=app.shell.directory,
            env={**os.environ, **app.env, "PYTHONPATH": str(Path(atasks.__file__).parent.parent)},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        assert server.stderr is not None
        with server.stderr:
            assert any("Ctrl-C to drain" in line for line in server.stderr)
        yield server
    finally:
        server.kill()
        server.wait()


def test_a_server_drains_although_nobody_reads_its_stderr(app: App, unread: subprocess.Popen[str]) -> None:
    client = app.call("gated")
    wait_until(lambda: "running" in (app.shell.directory / "output").read_text())
    unread.send_signal(SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        unread.wait(0.5)
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert unread.wait(PATIENCE) == 0


def test_private_socket_is_of_no_use_to_a_server(app: App) -> None:
    done = app.start("--workers", "2", "--url", "local:").finish()
    assert done.code == 2
    assert done.line().startswith("local: is a private socket, which no client finds: give a path")
