"""Fixtures for the tests of the command line."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.cli.app import App
from tests.cli.shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.fixture
def socket_app(shell: Shell) -> Iterator[App]:
    """Served around a hub on a socket."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:  # short enough for a socket
        yield App(shell, f"unix://{directory}/hub.sock", f"cli-{uuid.uuid4().hex}")
        shell.close()


@contextmanager
def open_app(shell: Shell, broker: Broker) -> Iterator[App]:
    """A program in the directory of the shell; at the end its commands and queues are gone."""
    app = App(shell, broker.url, f"cli-{uuid.uuid4().hex}")
    try:
        yield app
    finally:
        shell.close()
        if broker.controllable:
            names = [queue.name for queue in broker.queues() if app.namespace in queue.name]
            with broker.channel() as channel:
                for name in names:
                    channel.queue_delete(name)


@pytest.fixture
def app(shell: Shell, broker: Broker) -> Iterator[App]:
    with open_app(shell, broker) as app:
        yield app


@pytest.fixture(params=["app", "socket_app"])
def any_app(request: pytest.FixtureRequest) -> App:
    """Over the broker, and around a hub."""
    app: App = request.getfixturevalue(request.param)
    return app
