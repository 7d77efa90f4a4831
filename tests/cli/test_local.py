"""The local transport on the command line: no broker is needed for any of this."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import psutil
import pytest

from tests.cli.command import Command
from tests.cli.shell import Shell
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

APP = """
    import asyncio, os, pathlib
    from atasks import atask

    @atask
    async def pid():
        return os.getpid()

    @atask
    async def gated(number):
        pathlib.Path(f"running.{number}").touch()
        while not pathlib.Path("gate").exists():
            await asyncio.sleep(0.02)
        return os.getpid()

    @atask
    async def die():
        os.kill(os.getpid(), 9)

    async def aiomain(mode, url, transport, job="pids"):
        if mode == "server":
            return
        if job == "die":
            await die()
        elif job == "gated":
            print(len(set(await asyncio.gather(gated(1), gated(2)))), flush=True)
        else:
            print(transport, os.getpid() in [await pid() for _ in range(5)])
    """


@pytest.fixture
def app(shell: Shell) -> Shell:
    """A directory with app.py."""
    shell.write("app.py", APP)
    return shell


@pytest.fixture
def url() -> Iterator[str]:
    """A URL where nobody serves yet. The paths of pytest may be too long for a socket."""
    directory = tempfile.mkdtemp(prefix="at-")
    yield f"unix://{directory}/app.sock"
    shutil.rmtree(directory)


def children(command: Command) -> list[psutil.Process]:
    return psutil.Process(command.process.pid).children()


def serve(app: Shell, url: str, *arguments: str) -> Command:
    server = app.start("run", "app.py", "--mode", "server", "--url", url, *arguments)
    server.wait_for("Ctrl-C to drain")
    return server


def client(app: Shell, url: str, *arguments: str) -> Command:
    return app.start("run", "app.py", "--mode", "client", "--url", url, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workers", "2"),
        ("--url", "local:"),
        ("--transport", "local", "--workers", "1", "--concurrency", "2"),
        ("--mode", "client", "--url", "local:?workers=1"),
        ("--workers", "1", "--uvloop"),
    ],
    ids=" ".join,
)
def test_aiomain_with_worker_processes_of_its_own(app: Shell, arguments: tuple[str, ...]) -> None:
    done = app.run("run", "app.py", *arguments)
    assert (done.code, done.out, done.err) == (0, "local False\n", "")


def test_all_worker_processes_are_used(app: Shell) -> None:
    command = app.start("run", "app.py", "--workers", "2", "--concurrency", "1", "-o", "job=gated")
    wait_until(lambda: len(list(app.directory.glob("running.*"))) == 2)
    assert len(children(command)) == 2
    app.write("gate", "")
    assert command.finish().out == "2\n"


def test_a_call_that_kills_its_processes_is_named(app: Shell) -> None:
    done = app.run("run", "app.py", "--workers", "2", "-o", "job=die")
    assert done.code == 1
    assert "WorkerLost" in done.err
    assert "was killed by SIGKILL while it ran 1 call: task 'app.die'" in done.err


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_a_signal_ends_the_program_and_its_processes(app: Shell, number: Signals, code: int) -> None:
    command = app.start("run", "app.py", "--workers", "2", "-o", "job=gated")
    wait_until(lambda: len(list(app.directory.glob("running.*"))) == 2)
    processes = children(command)
    for process in processes if number == SIGINT else []:  # as a terminal does
        process.send_signal(number)
    command.signal(number)
    done = command.finish()
    assert (done.code, done.err) == (code, "")
    assert not any(process.is_running() for process in processes)


def test_a_program_that_is_killed_leaves_no_process(app: Shell) -> None:
    command = app.start("run", "app.py", "--workers", "2", "-o", "job=gated")
    wait_until(lambda: len(list(app.directory.glob("running.*"))) == 2)
    processes = children(command)
    command.signal(SIGKILL)
    command.finish()
    wait_until(lambda: not any(process.is_running() for process in processes))


def test_a_server_and_its_clients(app: Shell, url: str) -> None:
    server = serve(app, url)
    assert [client(app, url).finish().out for _ in range(2)] == ["unix False\n"] * 2
    server.signal(SIGTERM)
    done = server.finish()
    assert done.code == 0
    assert f"1 atask on queue 'default' of {url}" not in done.err
    assert f"3 atasks on queue 'default' of {url}" in done.err
    assert not os.path.exists(url.removeprefix("unix://"))


def test_a_server_with_worker_processes(app: Shell, url: str) -> None:
    server = serve(app, url, "--workers", "2", "--concurrency", "1")
    caller = client(app, url, "-o", "job=gated")
    wait_until(lambda: len(list(app.directory.glob("running.*"))) == 2)
    victim = children(server)[0]
    victim.kill()
    server.wait_for("takes its place")
    app.write("gate", "")
    assert caller.finish().code == 0
    server.signal(SIGINT)
    done = server.finish()
    assert done.code == 0
    assert "2 workers serve 3 atasks" in done.err
    assert "draining 2 workers" in done.err


def test_a_client_outlives_a_restart_of_its_server(app: Shell, url: str) -> None:
    first = serve(app, url)
    caller = client(app, url, "-o", "job=gated")
    wait_until(lambda: len(list(app.directory.glob("running.*"))) == 2)
    first.signal(SIGKILL)
    first.finish()
    app.write("gate", "")
    second = serve(app, url)
    assert caller.finish().out == "1\n"
    second.signal(SIGTERM)
    assert second.finish().code == 0


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_a_second_server_at_the_same_path(app: Shell, url: str, workers: tuple[str, ...]) -> None:
    server = serve(app, url)
    done = app.run("run", "app.py", "--mode", "server", "--url", url, *workers)
    assert done.code == 9
    assert "app.sock: another process serves there; stop it, or name another path" in done.line()
    server.signal(SIGTERM)
    assert server.finish().code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("--mode", "client", "--url", "unix:///nowhere/a.sock"),
            4,
            "nothing serves at /nowhere/a.sock: start a server",
        ),
        (("--mode", "server", "--url", "unix:///nowhere/a.sock"), 9, "there is no directory /nowhere"),
        (("--mode", "server", "--url", f"unix:///tmp/{'x' * 200}"), 2, "bytes on this system, and this one has"),
        (("--mode", "server", "--url", "local:"), 2, "give a path, as in unix:///run/app.sock"),
        (("--mode", "server", "--transport", "local"), 2, "give a path, as in unix:///run/app.sock"),
        (("--mode", "server", "--transport", "unix"), 2, "add --url unix:///run/app.sock"),
        (("--url", "unix:///run/app.sock"), 2, "say --mode server or --mode client"),
        (("--workers", "2", "--url", "amqp://localhost/"), 2, "leave it out, or say --mode server"),
        (("--workers", "2", "--reload"), 2, "--reload is for --mode server"),
        (("--workers", "2", "--queue", "a"), 2, "--queue is for --mode server"),
        (("--mode", "client", "--workers", "2", "--url", "unix:///a"), 2, "--workers is for --mode server"),
    ],
)
def test_what_does_not_go_together(app: Shell, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = app.run("run", "app.py", *arguments)
    assert done.code == code
    assert message in done.line()


def test_a_module_that_cannot_be_imported_twice(app: Shell) -> None:
    app.write("once.py", "import pathlib\npathlib.Path('mark').mkdir()\nimport app\nasync def aiomain(): ...\n")
    done = app.run("run", "once.py", "--workers", "2")
    assert done.code == 3
    assert "cannot import once.py: FileExistsError" in done.line()
