"""A module of Python's own that functions of processes use is imported once, by the server of the processes."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atasks.pipeline import map

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are fork servers on Linux alone")

MODULE = """
import sys

early = {name!r} in sys.modules

import {name}

def work(x):
    return early, {name}.__file__
"""


async def used(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[bool, str]]:
    """Run the function in two processes, one after the other. Return for each of them whether it had the module of
    that name before its function asked for it, and the file of the module."""
    (folder / f"uses_{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(str(folder))
    work = importlib.import_module(f"uses_{name}").work
    found: list[tuple[bool, str]] = []
    for _ in range(2):
        found += await ([1] | map(work, multiprocess=True))
    return found


async def test_what_one_process_imports_of_python_the_next_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await used(tmp_path, monkeypatch, "colorsys")
    assert second == (True, first[1])


async def test_a_module_of_the_user_that_has_the_name_of_one_of_python_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("sched")  # that of Python, in this process
    (tmp_path / "sched.py").touch()
    assert await used(tmp_path, monkeypatch, "sched") == 2 * [(False, str(tmp_path / "sched.py"))]


PROGRAM = """
import socket
from atasks.fork_server.starting import start

here, there = socket.socketpair()
with there:
    text = "import socket, sched, sys; socket.socket(fileno=int(sys.argv[1])).sendall(sched.__file__.encode())"
    child = start(["sched"], text, [], [there.fileno()])
print(here.makefile().read())
child.wait()
"""


def test_the_server_takes_no_file_of_a_user_for_a_module_of_python(tmp_path: Path) -> None:
    """Such a file would run there, and might start a thread: then nothing is forked any more."""
    (tmp_path / "sched.py").touch()
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    spec = importlib.util.find_spec("sched")
    assert spec is not None
    assert found.stdout.strip() == spec.origin
