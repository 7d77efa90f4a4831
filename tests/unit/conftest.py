"""Fixtures for the unit tests: namespaces of their own, and scripts run by an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from atasks.definitions import ATask
from atasks.namespaces import namespaces
from atasks.tasks import atask
from tests.busy import without_warnings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace that no other test has; what was registered there is forgotten."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    if name in namespaces.names():
        namespaces.unregister(name)


@pytest.fixture
def add(namespace: str) -> ATask[..., int]:
    """An atask of this test's namespace, with a default."""

    @atask(namespace=namespace, name="add")
    async def add(a: int, b: int = 10) -> int:
        return a + b

    return add


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Runs the text as `python script.py` and returns what it printed; anything on stderr fails the test."""

    def run(text: str, *options: str, name: str = "script.py") -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text))
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        # Any value turns it on, and then stderr tells of a busy machine.
        environ.pop("PYTHONASYNCIODEBUG", None)
        done = subprocess.run(
            [sys.executable, *options, name],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, without_warnings(done.stderr)) == (0, ""), done.stdout + done.stderr
        return done.stdout.strip()

    return run
