"""The broker of the tests: which it is, and that it does what the fault tests ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import psutil
import pytest

from tests.broker import Broker, BrokerError, Container, NoBroker, PrivateNode, Queue, choose
from tests.brokers.ports import speaks_amqp
from tests.brokers.private_node import find_sbin

ROOT = Path(__file__).parents[2]


def no_docker() -> bool:
    return False


def must_not_be_asked() -> bool:
    raise AssertionError("an earlier choice applies")


def run_command(url: str) -> subprocess.CompletedProcess[str]:
    """`python -m tests.broker` where this broker is given."""
    environ = {**os.environ, "ATASKS_TEST_AMQP_URL": url}
    command = [sys.executable, "-m", "tests.broker"]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def queue(controllable_broker: Broker) -> Iterator[str]:
    """The name of a durable queue that holds one persistent message."""
    name = f"test-{uuid.uuid4().hex}"
    controllable_broker.start()
    with controllable_broker.channel() as channel:
        channel.confirm_delivery()
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "classic"})
        channel.basic_publish("", name, b"kept", pika.BasicProperties(delivery_mode=2))
    yield name
    with controllable_broker.channel() as channel:
        channel.queue_delete(name)


class TestChoice:
    def test_a_given_broker_comes_first(self) -> None:
        chosen = choose({"ATASKS_TEST_AMQP_URL": "amqp://a/b"}, lambda: Path("/sbin"), must_not_be_asked)
        assert type(chosen) is Broker
        assert chosen.url == "amqp://a/b"
        assert not chosen.controllable

    def test_an_installed_one_comes_second(self) -> None:
        chosen = choose({}, lambda: Path("/sbin"), must_not_be_asked)
        assert isinstance(chosen, PrivateNode)
        assert not chosen.running

    def test_a_container_comes_third(self) -> None:
        chosen = choose({"ATASKS_TEST_AMQP_URL": ""}, lambda: None, lambda: True)
        assert isinstance(chosen, Container)
        assert not chosen.running

    def test_without_any_it_says_what_to_do(self) -> None:
        with pytest.raises(NoBroker, match=r"(?s)apt-get install rabbitmq-server.*Docker.*ATASKS_TEST_AMQP_URL="):
            choose({}, lambda: None, no_docker)

    def test_the_folder_of_the_scripts_can_be_named(self, tmp_path: Path) -> None:
        assert find_sbin({"ATASKS_TEST_RABBITMQ_SBIN": str(tmp_path)}) == tmp_path

    def test_a_server_on_the_path_is_found_after_the_usual_places(self, tmp_path: Path) -> None:
        server = tmp_path / "rabbitmq-server"
        server.write_text("#!/bin/sh\n")
        server.chmod(0o755)
        installed = find_sbin({"PATH": "/nowhere"})
        assert find_sbin({"PATH": str(tmp_path)}) == (installed or tmp_path)

    def test_the_command_says_which_it_is(self, controllable_broker: Broker) -> None:
        controllable_broker.start()
        done = run_command(controllable_broker.url)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Broker for the tests: Broker\n", "")

    def test_the_command_refuses_one_that_does_not_answer(self, unused_tcp_port: int) -> None:
        done = run_command(f"amqp://guest:secret@127.0.0.1:{unused_tcp_port}/")
        assert (done.returncode, done.stdout) == (1, "")
        assert "ATASKS_TEST_AMQP_URL does not answer" in done.stderr
        assert "secret" not in done.stderr


class TestGiven:
    def test_it_is_used_and_not_controlled(self, controllable_broker: Broker) -> None:
        controllable_broker.start()
        given = Broker(controllable_broker.url)
        given.start()
        assert given.running
        for control in (given.stop, given.kill, given.restart, given.queues, given.close_all_connections):
            with pytest.raises(BrokerError, match="unset ATASKS_TEST_AMQP_URL"):
                control()
        given.close()
        given.start()

    def test_one_that_does_not_answer_is_named_by_its_variable(self, unused_tcp_port: int) -> None:
        with pytest.raises(BrokerError, match="ATASKS_TEST_AMQP_URL does not answer"):
            Broker(f"amqp://guest:secret@127.0.0.1:{unused_tcp_port}/").start()


class TestControl:
    def test_queues_lists_what_rabbitmqctl_lists(self, controllable_broker: Broker, queue: str) -> None:
        listed = controllable_broker.queues()
        assert Queue(queue, 1, 0) in listed
        assert sorted(listed) == sorted(Broker.queues(controllable_broker))

    def test_consumers_are_counted(self, controllable_broker: Broker, queue: str) -> None:
        with controllable_broker.channel() as channel:
            channel.basic_consume(queue, lambda *delivery: None)
            assert Queue(queue, 1, 1) in controllable_broker.queues()

    def test_queues_of_an_unknown_vhost(self, controllable_broker: Broker) -> None:
        controllable_broker.start()
        assert controllable_broker.queues("no such") == []

    def test_what_is_durable_survives_a_kill(self, controllable_broker: Broker, queue: str) -> None:
        url = controllable_broker.url
        controllable_broker.kill()
        assert not controllable_broker.running
        assert not speaks_amqp(pika.URLParameters(url).port)
        controllable_broker.start()
        assert controllable_broker.url == url
        with controllable_broker.channel() as channel:
            assert channel.basic_get(queue, auto_ack=True)[2] == b"kept"

    def test_what_is_durable_survives_a_restart(self, controllable_broker: Broker, queue: str) -> None:
        controllable_broker.restart()
        assert Queue(queue, 1, 0) in controllable_broker.queues()

    def test_a_failing_command_is_an_error_that_says_why(self, controllable_broker: Broker) -> None:
        controllable_broker.start()
        with pytest.raises(BrokerError, match=r"(?s)rabbitmqctl delete_vhost failed.*no such"):
            controllable_broker.ctl("delete_vhost", "no such")

    def test_connections_can_be_closed(self, controllable_broker: Broker) -> None:
        controllable_broker.start()
        with controllable_broker.channel() as channel:
            controllable_broker.close_all_connections("for a test")
            with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="for a test"):
                channel.connection.process_data_events(time_limit=20)

    def test_a_virtual_host_of_its_own(self, controllable_broker: Broker, queue: str) -> None:
        controllable_broker.start()
        url = controllable_broker.add_vhost()
        with Broker(url).channel() as channel:
            assert channel.queue_declare("", exclusive=True).method.message_count == 0
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
                channel.queue_declare(queue, passive=True)


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
        (folder,) = {child.cwd() for child in children if child.name() == "epmd"}
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
