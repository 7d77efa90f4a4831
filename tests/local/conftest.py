"""A place for sockets, and hubs that others may join."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atasks.transport.backends.local.hub.listener import Host
from tests.faults.history import History
from tests.local.fleet import Fleet


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="at-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def path(run_dir: Path) -> str:
    """The path of a socket that nobody listens on yet."""
    return str(run_dir / "hub.sock")


@pytest.fixture
async def host(path: str, no_leaked_tasks: None) -> AsyncIterator[Host]:
    """A hub at `path`."""
    host = await Host.open(path)
    yield host
    if not host.hub.closed:
        await host.close()


@pytest.fixture
def history(tmp_path: Path) -> History:
    """The record of this test's awaits and runs."""
    return History(tmp_path / "runs")


@pytest.fixture
def fleet(path: str, history: History) -> Iterator[Fleet]:
    """Processes; those that still run at the end are ended."""
    fleet = Fleet(path, history.path)
    yield fleet
    fleet.close()
