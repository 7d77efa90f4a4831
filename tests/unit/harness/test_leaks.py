"""A test that leaves something behind fails: the checks of conftest.py, run on tests that leak."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[3]

TESTS = """
    import asyncio, subprocess, sys, threading, time
    import pytest
    from tests import conftest

    conftest.GRACE = 1.0  # what leaks here does not end by itself

    GATE = threading.Event()

    async def test_task():
        test_task.leaked = asyncio.create_task(asyncio.Event().wait())

    async def test_task_that_ends():
        asyncio.create_task(asyncio.sleep(0))

    @pytest.fixture
    async def serving():
        event = asyncio.Event()
        task = asyncio.create_task(event.wait())
        yield
        event.set()
        await task

    async def test_task_of_a_fixture(serving):
        pass

    @pytest.fixture
    async def forgetful():
        forgetful.leaked = asyncio.create_task(asyncio.Event().wait())
        yield

    async def test_task_of_a_forgetful_fixture(forgetful):
        pass

    def test_thread():
        threading.Thread(target=GATE.wait, args=(3,), name="leaked").start()

    async def test_thread_of_the_loop():
        await asyncio.to_thread(time.time)

    def test_process():
        test_process.leaked = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def test_process_that_ends():
        subprocess.run([sys.executable, "-c", ""], check=True)

    def test_warning():
        import warnings
        warnings.warn("no good", UserWarning)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Test -> how it ended, of a run of the tests above under this project's configuration."""
    file = tmp_path_factory.mktemp("leaks") / "test_sample.py"
    file.write_text(dedent(TESTS))
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rA", "-c"]
    command += [str(ROOT / "pyproject.toml"), f"--rootdir={file.parent}", str(file)]
    environ = {**os.environ, "COLUMNS": "500"}  # reasons are cut to the terminal's width
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S*::(\w+)(?: - (.*))?", done.stdout, re.MULTILINE)
    # A leak is found when the test has passed and is torn down: ERROR is listed beside PASSED.
    ended: dict[str, str] = {}
    for outcome, name, reason in found:
        if outcome != "PASSED" or name not in ended:
            ended[name] = f"{outcome} {reason}".strip()
    return ended


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("test_task", "ERROR Failed: asyncio tasks left pending"),
        ("test_task_of_a_forgetful_fixture", "ERROR Failed: asyncio tasks left pending"),
        ("test_thread", "ERROR Failed: left behind: thread leaked"),
        ("test_process", "ERROR Failed: left behind: process"),
        ("test_warning", "FAILED UserWarning: no good"),
    ],
)
def test_a_leak_fails_the_test(outcomes: dict[str, str], name: str, ending: str) -> None:
    assert outcomes[name].startswith(ending)


@pytest.mark.parametrize(
    "name", ["test_task_that_ends", "test_task_of_a_fixture", "test_thread_of_the_loop", "test_process_that_ends"]
)
def test_what_ends_is_no_leak(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == "PASSED"
