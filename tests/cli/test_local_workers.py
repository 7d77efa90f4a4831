"""`--mode server --workers` around a hub on a Unix socket: no broker."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

import psutil
import pytest

from tests.cli.app import App, workers
from tests.cli.command import PATIENCE


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


def test_private_socket_is_of_no_use_to_a_server(app: App) -> None:
    done = app.start("--workers", "2", "--url", "local:").finish()
    assert done.code == 2
    assert done.line().startswith("local: is a private socket, which no client finds: give a path")
