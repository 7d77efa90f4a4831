"""What the tests of the command line use."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
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


@pytest.fixture
def app(shell: Shell, broker: Broker, amqp_url: str) -> Iterator[App]:
    app = App(shell, amqp_url, f"cli-{uuid.uuid4().hex}")
    yield app
    shell.close()
    if broker.controllable:
        names = [queue.name for queue in broker.queues() if app.namespace in queue.name]
        with broker.channel() as channel:
            for name in names:
                channel.queue_delete(name)


@pytest.fixture(params=["app", "socket_app"])
def any_app(request: pytest.FixtureRequest) -> App:
    """Over the broker, and around a hub."""
    app: App = request.getfixturevalue(request.param)
    return app
