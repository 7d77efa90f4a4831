"""A place for sockets, and hubs that others may join."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atasks.transport.backends.local.host import Host


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
    await host.close()
