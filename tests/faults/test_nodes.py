"""The broker of the tests can be stopped and killed, and ends with those who use it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import psutil
import pytest

from tests.broker import Broker, BrokerError, PrivateNode, Queue
from tests.brokers.ports import speaks_amqp
from tests.brokers.private_node import find_sbin
from tests.brokers.shared_node import SharedNode, locked

ROOT = Path(__file__).parents[2]


@pytest.fixture
def queue(node: Broker) -> Iterator[str]:
    """The name of a durable queue that holds one persistent message."""
    name = f"test-{uuid.uuid4().hex}"
    with node.channel() as channel:
        channel.confirm_delivery()
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "classic"})
        channel.basic_publish("", name, b"kept", pika.BasicProperties(delivery_mode=2))
    yield name
    with node.channel() as channel:
        channel.queue_delete(name)


def test_what_is_durable_survives_a_kill(node: Broker, queue: str) -> None:
    url = node.url
    node.kill()
    assert not node.running
    assert not speaks_amqp(pika.URLParameters(url).port)
    node.start()
    assert node.url == url
    with node.channel() as channel:
        assert channel.basic_get(queue, auto_ack=True)[2] == b"kept"


def test_what_is_durable_survives_a_restart(node: Broker, queue: str) -> None:
    node.restart()
    assert Queue(queue, 1, 0) in node.queues()


def test_connections_can_be_closed(node: Broker) -> None:
    with node.channel() as channel:
        node.close_all_connections("for a test")
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="for a test"):
            channel.connection.process_data_events(time_limit=20)


def test_a_private_node_ends_with_the_process_that_started_it() -> None:
    """Also where that process is killed: its guard ends the node and removes its folder."""
    if find_sbin() is None:
        raise BrokerError("this test needs an installed rabbitmq-server")
    environ = {name: value for name, value in os.environ.items() if name != "ATASKS_TEST_AMQP_URL"}
    command = [sys.executable, "-m", "tests.broker", "run"]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        children = psutil.Process(process.pid).children(recursive=True)
        # Not its working directory, which in a chroot is another one from here.
        (folder,) = {child.environ()["HOME"] for child in children if child.name() == "epmd"}
        assert speaks_amqp(pika.URLParameters(url).port)
        process.kill()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert not speaks_amqp(pika.URLParameters(url).port)
    assert not Path(folder).exists()


def test_the_logs_of_a_private_node_can_be_kept(tmp_path: Path) -> None:
    sbin = find_sbin()
    if sbin is None:
        raise BrokerError("this test needs an installed rabbitmq-server")
    node = PrivateNode(sbin)
    node.start()
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "of an earlier run").touch()
    node.close(logs)
    assert "Starting broker" in (logs / "output").read_text()
    assert not (logs / "of an earlier run").exists()
    assert not node.running


def until_nobody_can_join(meeting: Path) -> None:
    """Return when a shared node ends: it has noticed that nobody uses it."""
    while (meeting / "node.json").exists():
        time.sleep(0.01)


def test_a_shared_node_ends_with_the_last_who_uses_it(tmp_path: Path) -> None:
    sbin = find_sbin()
    if sbin is None:
        raise BrokerError("this test needs an installed rabbitmq-server")
    first, second, third = (SharedNode(sbin, tmp_path) for _ in range(3))
    try:
        first.start()
        second.start()
        assert first.url == second.url
        with second.channel() as channel:
            channel.queue_declare("seen")
            assert [queue.name for queue in first.queues()] == ["seen"]
        for control in (first.stop, first.kill, first.restart):
            with pytest.raises(BrokerError, match="others use this broker"):
                control()
        folder = second.whereabouts["folder"]
        first.close(tmp_path / "logs")
        assert "Starting broker" in (tmp_path / "logs" / "output").read_text()
        assert [queue.name for queue in second.queues()] == ["seen"]
        second.close()
        until_nobody_can_join(tmp_path)
        third.start()  # waits until that one has ended, and starts another one
        assert third.url != second.url
        assert not speaks_amqp(second.port)
        assert not Path(folder).exists()
        assert third.queues() == []
    finally:
        for node in (first, second, third):
            node.close()
    until_nobody_can_join(tmp_path)
    with locked(tmp_path / "users", fcntl.LOCK_EX):
        assert not speaks_amqp(third.port)


def test_a_shared_node_ends_with_processes_that_are_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.brokers.private_node import find_sbin;"
        "from tests.brokers.shared_node import SharedNode;"
        "node = SharedNode(find_sbin(), Path(sys.argv[1])); node.start(); print(node.url, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = pika.URLParameters(process.stdout.readline().strip()).port
        assert speaks_amqp(port)
        process.kill()
    until_nobody_can_join(tmp_path)
    with locked(tmp_path / "users", fcntl.LOCK_EX):
        assert not speaks_amqp(port)
