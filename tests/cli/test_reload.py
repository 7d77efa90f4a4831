"""`--reload`, over a real broker and with real files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atasks_cli.reload import files_of, project_files
from tests.cli.app import App
from tests.cli.command import Command
from tests.cli.shell import Shell

VERSIONED = """
    import asyncio, pathlib
    from atasks import atask
    from helpers.version import VERSION

    @atask(namespace="NAMESPACE")
    async def version():
        return VERSION

    @atask(namespace="NAMESPACE")
    async def late():
        import later
        return later.VALUE

    @atask(namespace="NAMESPACE")
    async def gated():
        print("running", flush=True)
        await asyncio.to_thread(pathlib.Path("gate").read_text)
        return VERSION
"""

CLIENT = """
    import asyncio, atasks
    from atasks import get_router

    async def aiomain(namespace, task, until=None):
        while True:
            found = await get_router(namespace).send_request("versioned." + task)
            if until is None or found == until:
                return print(found)
            await asyncio.sleep(0.05)
"""


class Program:
    """Modules that change, and the supervisor that serves them."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.shell = app.shell
        self.shell.write("versioned.py", VERSIONED.replace("NAMESPACE", app.namespace))
        self.shell.write("helpers/__init__.py", "")
        self.shell.write("client.py", CLIENT)

    def write_version(self, text: str) -> None:
        self.shell.write("helpers/version.py", text)

    def serve(self, *options: str) -> Command:
        # Python takes a file of the same size and of the same second for unchanged if it has compiled it before.
        env = {"PYTHONDONTWRITEBYTECODE": "1"}
        return self.app.start("--reload", *options, target="versioned.py", env=env)

    def call(self, task: str, *options: str) -> Command:
        return self.app.call(task, "-o", f"task={task}", *options)

    def version(self) -> str:
        return self.call("version").finish().out


def test_change_of_a_loaded_module_drains_and_starts_the_workers_again(app: App) -> None:
    program = Program(app)
    program.write_version("VERSION = 'first'")
    supervisor = program.serve("--workers", "2")
    supervisor.wait_for("2 workers serve 3 atasks")
    client = program.call("gated")
    supervisor.wait_for("running")
    program.write_version("VERSION = 'second'")
    assert supervisor.wait_for("changed") == "atasks: helpers/version.py changed: starting 2 workers again\n"
    app.gate.write_text("")
    assert client.finish().out == "first\n"
    supervisor.wait_for("2 workers serve 3 atasks")
    assert program.version() == "second\n"
    app.end(supervisor)


def test_workers_around_a_socket_start_again_while_clients_stay_connected(socket_app: App) -> None:
    program = Program(socket_app)
    program.write_version("VERSION = 'first'")
    supervisor = program.serve("--workers", "2")
    supervisor.wait_for("2 workers serve 3 atasks")
    assert program.version() == "first\n"
    waiting = program.call("version", "-o", "until=second")
    program.write_version("VERSION = 'second'")
    supervisor.wait_for("helpers/version.py changed: starting 2 workers again")
    supervisor.wait_for("2 workers serve 3 atasks")
    assert waiting.finish().out == "second\n", "the hub outlives the workers, and the client hears of nothing"
    socket_app.end(supervisor)


def test_module_with_an_error_is_waited_for(app: App) -> None:
    program = Program(app)
    program.write_version("VERSION = 'first'")
    supervisor = program.serve()
    supervisor.wait_for("1 worker serves")
    program.write_version("VERSION = ")
    line = supervisor.wait_for("waiting for a change")
    assert line == (
        "atasks: cannot import versioned.py: SyntaxError: invalid syntax (helpers/version.py:1); "
        "waiting for a change\n"
    )
    program.write_version("import helpers.missing; VERSION = 'second'")
    assert "No module named 'helpers.missing'" in supervisor.wait_for("waiting for a change")
    program.shell.write("helpers/missing.py", "")  # a file that nothing has loaded yet
    supervisor.wait_for("1 worker serves")
    assert program.version() == "second\n"
    lines = app.end(supervisor).splitlines()
    assert len(lines) == 8  # served, then three times a change and what came of it, and drained


def test_module_that_becomes_a_package_is_waited_for(app: App) -> None:
    program = Program(app)
    program.write_version("VERSION = 'first'")
    supervisor = program.serve()
    supervisor.wait_for("1 worker serves")
    program.write_version("import parts; VERSION = parts.VERSION")
    assert "No module named 'parts'" in supervisor.wait_for("waiting for a change")
    program.shell.write("parts/__init__.py", "VERSION = 'second'")  # a folder that nothing has loaded from yet
    supervisor.wait_for("parts/__init__.py changed")
    supervisor.wait_for("1 worker serves")
    assert program.version() == "second\n"
    program.write_version("VERSION = 'third'")
    supervisor.wait_for("1 worker serves")
    assert program.version() == "third\n"
    app.end(supervisor)


def test_module_without_an_atask_is_waited_for(app: App) -> None:
    program = Program(app)
    program.write_version("VERSION = 'first'")
    supervisor = program.serve()
    supervisor.wait_for("1 worker serves")
    program.shell.write("versioned.py", "import helpers.version")
    assert "nothing to serve: no atask" in supervisor.wait_for("waiting for a change")
    program.shell.write("versioned.py", VERSIONED.replace("NAMESPACE", app.namespace))
    supervisor.wait_for("1 worker serves")
    assert program.version() == "first\n"
    app.end(supervisor)


def test_module_that_is_wrong_from_the_beginning_is_waited_for(app: App) -> None:
    program = Program(app)
    program.write_version("1 / 0")
    supervisor = program.serve("--workers", "2")
    assert "ZeroDivisionError" in supervisor.wait_for("waiting for a change")
    program.write_version("VERSION = 'mended'")
    supervisor.wait_for("2 workers serve")
    assert program.version() == "mended\n"
    app.end(supervisor)


def test_signal_while_a_change_is_waited_for(app: App) -> None:
    program = Program(app)
    program.write_version("1 / 0")
    supervisor = program.serve()
    supervisor.wait_for("waiting for a change")
    assert len(app.end(supervisor).splitlines()) == 1


def test_module_that_a_call_imports_is_watched_too(app: App) -> None:
    program = Program(app)
    program.write_version("VERSION = 1")
    program.shell.write("later.py", "VALUE = 1")
    supervisor = program.serve()
    supervisor.wait_for("serves")
    assert program.call("late").finish().out == "1\n"
    changed = None
    number = 1
    while changed is None:  # it is watched some half a second later: until then a change counts for nothing
        number += 1
        program.shell.write("later.py", f"VALUE = {number}")
        changed = next((line for line in supervisor.err if "later.py changed" in line), None)
    supervisor.wait_for("serves")
    assert program.call("late", "-o", f"until={number}").finish().out == f"{number}\n"
    app.end(supervisor)


def test_file_that_does_not_exist_is_not_waited_for(app: App) -> None:
    done = app.start("--reload", target="task.py").finish()
    assert (done.code, done.line()) == (3, "no such file: task.py; did you mean tasks.py or client.py?")


def test_watchfiles_that_is_not_installed(shell: Shell) -> None:
    shell.write("tasks.py", "")
    shell.write("watchfiles.py", "raise ModuleNotFoundError")
    env = {"PYTHONPATH": f"{shell.directory}:{Path(__file__).parents[2]}"}
    done = shell.run("run", "tasks.py", "--mode", "server", "--reload", env=env)
    expected = "--reload needs watchfiles, which is not installed: pip install watchfiles"
    assert (done.code, done.line()) == (2, expected)


def test_project_files_are_neither_installed_nor_the_interpreters() -> None:
    files = project_files()
    assert str(Path(__file__).resolve()) in files
    assert not any("site-packages" in file for file in files)
    assert sys.modules["asyncio"].__file__ not in files


def test_files_of_an_error_are_those_that_it_came_through(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = (")
    with pytest.raises(ImportError) as caught:
        try:
            compile(broken.read_text(), str(broken), "exec")
        except SyntaxError as error:
            raise ImportError from error
    assert files_of(caught.value) == sorted([str(broken.resolve()), str(Path(__file__).resolve())])
