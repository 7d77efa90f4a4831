"""`--workers`: a supervisor and its worker processes, over a real broker."""

from __future__ import annotations

import os
import re
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import psutil
import pytest

from tests.cli.app import App, workers
from tests.cli.command import PATIENCE
from tests.cli.shell import Shell
from tests.waiting import wait_until

STORM = """
    import asyncio, os, pathlib
    from atasks import WorkerLost, atask

    @atask(namespace="NAMESPACE")
    async def late(value):
        await asyncio.sleep(0.01)
        return value

    @atask(namespace="NAMESPACE")
    async def poison():
        os.kill(os.getpid(), 9)

    async def poisoned():
        try:
            await poison()
        except WorkerLost as error:
            print("lost after", error.attempts, "attempts", flush=True)

    async def aiomain(mode):
        task = None
        while mode == "client" and not pathlib.Path("stop").exists():
            if task is None and pathlib.Path("poison").exists():
                task = asyncio.create_task(poisoned())
            assert await asyncio.gather(*(late(n) for n in range(50))) == list(range(50))
            print("round", flush=True)
"""


def test_workers_serve_and_drain(app: App) -> None:
    supervisor = app.supervise("--workers", "2", "--concurrency", "3")
    processes = workers(supervisor)
    assert app.pids(count=2) == [process.pid for process in processes]
    ready, draining = app.end(supervisor).splitlines()
    where = f"on queues 'default', 'gpu' of {app.shown} with concurrency 3 each"
    assert ready == f"atasks: 2 workers serve 9 atasks {where}; Ctrl-C to drain"
    assert draining == "atasks: draining 2 workers, for at most 30 s; Ctrl-C again to exit at once"


def test_worker_that_is_killed_is_replaced_and_its_calls_are_named(app: App) -> None:
    supervisor = app.supervise("--workers", "2")
    before = [process.pid for process in workers(supervisor)]
    assert "WorkerLost" in app.call("die").finish().err
    line = supervisor.wait_for("takes its place")
    match = re.search(
        r"worker \d \(pid (\d+)\) was killed by SIGKILL while it ran 1 call: task 'tasks.die' \(", line
    )
    assert match is not None, line
    (survivor,) = {*before} - {int(match[1])}
    app.pids(other_than=before)
    wait_until(lambda: len(workers(supervisor)) == 2)
    assert survivor in [process.pid for process in workers(supervisor)]
    lines = app.end(supervisor).splitlines()
    assert len([line for line in lines if "worker_lost" not in line]) == 3


def test_call_of_a_worker_that_is_killed_runs_on_another(any_app: App) -> None:
    supervisor = any_app.supervise("--workers", "2")
    client = any_app.call("handed_on")
    supervisor.wait_for("running")
    for process in workers(supervisor):
        process.kill()
    supervisor.wait_for("while it ran 1 call: task 'tasks.handed_on'")
    assert client.finish().out == "through\n"
    any_app.end(supervisor)


def test_calls_outlive_worker_after_worker(app: App) -> None:
    """Workers are killed under load, one of them three times by a call; every other call has its own result."""
    app.shell.write("storm.py", STORM.replace("NAMESPACE", app.namespace))
    supervisor = app.supervise("--workers", "3", target="storm.py")
    client = app.shell.start("run", "storm.py", "--mode", "client", "--namespace", app.namespace, env=app.env)
    client.wait_for("round")
    for number in range(4):
        victim = workers(supervisor)[number % 3]
        victim.kill()
        supervisor.wait_for(f"(pid {victim.pid}) was killed by SIGKILL")
        wait_until(lambda: len(workers(supervisor)) == 3)
        client.wait_for("round")
    (app.shell.directory / "poison").touch()
    client.wait_for("lost after 3 attempts")
    (app.shell.directory / "stop").touch()
    done = client.finish()
    assert done.code == 0, done.err
    log = app.end(supervisor)
    assert log.count("task 'storm.poison' (") == 3, log


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
@pytest.mark.parametrize("to_all", [False, True], ids=["supervisor", "all"])
def test_signal_drains(app: App, number: Signals, to_all: bool) -> None:
    """`to_all`: as a terminal and service managers do, which signal every process of a group."""
    supervisor = app.supervise("--workers", "2")
    client = app.call("gated")
    supervisor.wait_for("running")
    for process in workers(supervisor) if to_all else []:
        process.send_signal(number)
    supervisor.signal(number)
    supervisor.wait_for("draining 2 workers")
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    done = supervisor.finish()
    assert done.code == 0
    assert "Traceback" not in done.err


def test_signal_while_a_worker_loads_drains_those_that_serve(app: App) -> None:
    app.shell.write(
        "loading.py",
        """
        import os
        try:
            os.close(os.open("first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            open("never").read()
        import tasks
        """,
    )
    os.mkfifo(app.shell.directory / "never")
    supervisor = app.start("--workers", "2", target="loading.py")
    client = app.call("gated")
    supervisor.wait_for("running")
    supervisor.signal(SIGTERM)
    supervisor.wait_for("draining 2 workers")
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert supervisor.finish().code == 0


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_second_signal_ends_all_at_once(app: App, number: Signals, code: int) -> None:
    supervisor = app.supervise("--workers", "2")
    client = app.call("forever")
    supervisor.wait_for("running")
    processes = workers(supervisor)
    supervisor.signal(number)
    supervisor.wait_for("draining 2 workers")
    supervisor.signal(number)
    done = supervisor.finish()
    assert done.code == code
    assert "cancelled" not in done.out
    assert psutil.wait_procs(processes, PATIENCE)[1] == []
    client.signal(SIGINT)
    assert client.finish().code == 130


def test_workers_drain_when_their_supervisor_is_killed(app: App) -> None:
    supervisor = app.supervise("--workers", "2", "-v")
    client = app.call("gated")
    supervisor.wait_for("running")
    processes = workers(supervisor)
    supervisor.signal(SIGKILL)
    supervisor.wait_for("draining: 1 call is running")  # where the supervisor wrote to: it can be read still
    app.gate.write_text("")
    assert client.finish().out == "through\n"
    assert psutil.wait_procs(processes, PATIENCE)[1] == []
    assert supervisor.finish().code == -SIGKILL


def test_worker_that_does_not_drain_in_time_gives_its_calls_back(app: App) -> None:
    supervisor = app.supervise("--workers", "1", "--grace", "0")
    client = app.call("handed_on")
    supervisor.wait_for("running")
    app.end(supervisor)
    other = app.supervise("--workers", "1")
    assert client.finish().out == "through\n"
    app.end(other)


def test_lines_of_workers_name_them(app: App) -> None:
    app.shell.write(
        "writing.py",
        """
        import sys, tasks

        async def aiomain():
            print("on stdout", flush=True)
            print("on stderr", "in pieces", file=sys.stderr)
        """,
    )
    supervisor = app.supervise("--workers", "2", target="writing.py")
    for _ in range(2):
        supervisor.wait_for("on stdout")
        supervisor.wait_for("on stderr")
    app.end(supervisor)
    assert {"[worker 1] on stderr in pieces\n", "[worker 2] on stderr in pieces\n"} <= set(supervisor.err)
    assert supervisor.out == ["on stdout\n", "on stdout\n"]


def test_lines_of_workers_are_not_mixed(app: App) -> None:
    """Commands of these tests run with $PYTHONUNBUFFERED, as many containers do."""
    app.shell.write(
        "writing.py",
        """
        import asyncio, os, pathlib, sys, tasks

        async def aiomain():
            pathlib.Path(f"{os.getpid()}.here").touch()
            while len(list(pathlib.Path().glob("*.here"))) < 2:
                await asyncio.sleep(0.01)
            sys.stdout.write("one ")
            await asyncio.sleep(0.3)
            print("line")
        """,
    )
    supervisor = app.supervise("--workers", "2", target="writing.py")
    for _ in range(2):
        supervisor.wait_for("line")
    app.end(supervisor)
    assert supervisor.out == ["one line\n", "one line\n"]


def test_uvloop_in_every_worker(app: App) -> None:
    app.shell.write(
        "loop.py",
        "import asyncio, os, tasks\nasync def aiomain():\n"
        "    os.write(1, f'{type(asyncio.get_running_loop()).__module__}\\n'.encode())\n",  # a line at a time
    )
    supervisor = app.supervise("--workers", "2", "--uvloop", target="loop.py")
    for _ in range(2):
        assert supervisor.wait_for("uvloop") == "uvloop\n"
    app.pids(count=2)
    app.end(supervisor)


def test_only_processes_that_serve_load_what_tunes_their_memory(app: App) -> None:
    def loaded(process: psutil.Process) -> bool:
        return any("_ctypes" in mapped.path for mapped in process.memory_maps())

    supervisor = app.supervise("--workers", "2")
    # They say before that they serve.
    wait_until(lambda: [loaded(process) for process in workers(supervisor)] == [True, True])
    assert not loaded(psutil.Process(supervisor.process.pid))
    app.end(supervisor)


# -- what cannot serve


def test_uvloop_that_is_not_installed(shell: Shell) -> None:
    shell.write("tasks.py", "")
    shell.write("uvloop.py", "raise ModuleNotFoundError")
    done = shell.run("run", "tasks.py", "--mode", "server", "--workers", "2", "--uvloop")
    assert (done.code, done.line()) == (2, "uvloop is not installed: pip install uvloop")


def test_broker_that_cannot_be_reached(app: App) -> None:
    done = app.start("--workers", "3", "--url", "amqp://localhost:1/").finish()
    assert done.code == 4
    assert done.line().startswith("cannot reach RabbitMQ at localhost:1 (")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("import nothing_of_that_name", 3, "cannot import broken.py: ModuleNotFoundError: No module named"),
        ("x = 1", 2, "nothing to serve: no atask of namespace"),
        ("import os\nos._exit(11)", 8, "5 worker processes in a row died at their start, the last: worker "),
    ],
    ids=["load", "usage", "workers"],
)
def test_module_that_cannot_be_served(app: App, text: str, code: int, message: str) -> None:
    app.shell.write("broken.py", text)
    done = app.start("--workers", "2", target="broken.py").finish()
    assert done.code == code
    *deaths, last = done.err.splitlines()
    assert last.startswith(f"atasks: error: {message}")
    assert len(deaths) == (5 if code == 8 else 0)
    assert all("exited with code 11, before it could serve; a new one takes its place" in line for line in deaths)


def test_aiomain_that_raises_in_every_worker(app: App) -> None:
    app.shell.write("failing.py", "import tasks\nasync def aiomain():\n    raise ValueError(3)")
    done = app.start("--workers", "2", target="failing.py").finish()
    assert done.code == 8
    assert "] ValueError: 3\n" in done.err
    assert "exited with code 1" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--workers", "2", "--mode", "client"),
            "--workers is for --mode server, and this is --mode client: leave it out",
        ),
        (
            ("--reload", "--mode", "client"),
            "--reload is for --mode server, and this is --mode client: leave it out",
        ),
        (("--workers", "0", "--mode", "server"), "Invalid value for '--workers': 0 is not in the range x>=1."),
        (
            ("--max-memory-per-worker", "much", "--mode", "server"),
            (
                "Invalid value for '--max-memory-per-worker': 'much' is no size: "
                "give bytes, or a number with K, M or G, like 500M"
            ),
        ),
    ],
)
def test_options_that_do_not_fit(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    shell.write("tasks.py", "")
    done = shell.run("run", "tasks.py", *arguments)
    assert done.code == 2
    assert done.line().removesuffix(" (see atasks run --help)") == message.rstrip(".")
