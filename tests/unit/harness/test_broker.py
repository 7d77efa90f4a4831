"""The broker of the tests: which it is, and that it does what the fault tests ask of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest

from tests.broker import Broker, BrokerError, Container, NoBroker, PrivateNode, Queue, choose
from tests.brokers.private_node import find_sbin

ROOT = Path(__file__).parents[3]


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
def vhost_url(controllable_broker: Broker) -> Iterator[str]:
    """The URL of a virtual host where nothing else comes and goes."""
    url = controllable_broker.add_vhost()
    yield url
    controllable_broker.remove_vhost(url)


def name_of(vhost_url: str) -> str:
    return urlsplit(vhost_url).path.strip("/")


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
        done = run_command(controllable_broker.url)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Broker for the tests: Broker\n", "")

    def test_the_command_refuses_one_that_does_not_answer(self, unused_tcp_port: int) -> None:
        done = run_command(f"amqp://guest:secret@127.0.0.1:{unused_tcp_port}/")
        assert (done.returncode, done.stdout) == (1, "")
        assert "ATASKS_TEST_AMQP_URL does not answer" in done.stderr
        assert "secret" not in done.stderr


class TestGiven:
    def test_it_is_used_and_not_controlled(self, controllable_broker: Broker) -> None:
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
    def test_queues_lists_what_rabbitmqctl_lists(self, controllable_broker: Broker, vhost_url: str) -> None:
        with Broker(vhost_url).channel() as channel:
            for name in ("some", "others, with spaces"):
                channel.queue_declare(name)
            channel.confirm_delivery()
            channel.basic_publish("", "some", b"")
        listed = sorted(controllable_broker.queues(name_of(vhost_url)))
        assert listed == [Queue("others, with spaces", 0, 0), Queue("some", 1, 0)]
        assert listed == sorted(Broker.queues(controllable_broker, name_of(vhost_url)))

    def test_consumers_are_counted(self, controllable_broker: Broker, vhost_url: str) -> None:
        with Broker(vhost_url).channel() as channel:
            channel.queue_declare("some")
            channel.confirm_delivery()
            channel.basic_publish("", "some", b"")
            channel.basic_consume("some", lambda *delivery: None)
            assert controllable_broker.queues(name_of(vhost_url)) == [Queue("some", 1, 1)]

    def test_queues_of_an_unknown_vhost(self, controllable_broker: Broker) -> None:
        assert controllable_broker.queues("no such") == []

    def test_what_has_a_prefix_is_cleared_and_nothing_else(self, controllable_broker: Broker, prefix: str) -> None:
        """By either way: that of any broker, and that of one that can be asked more cheaply."""
        queues = [f"{prefix}.{name}" for name in ("delay.1", "q.one", "quorum")]
        exchanges = [f"{prefix}.{name}" for name in ("control", "delay.1", "due", "due.early", "events")]
        other = f"{prefix}s.control"
        for clear in (Broker.clear, type(controllable_broker).clear):
            with controllable_broker.channel() as channel:
                for name in (*queues, other):
                    kind = "quorum" if name.endswith("quorum") else "classic"
                    channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
                for name in (*exchanges, other):
                    channel.exchange_declare(name, "fanout", durable=True)
            assert sorted(clear(controllable_broker, prefix)) == queues
            assert clear(controllable_broker, prefix) == []
            listed = controllable_broker.ctl("list_exchanges", "--quiet", "--no-table-headers", "name").split()
            assert [name for name in listed if name.startswith(prefix)] == [other]
            left = [queue.name for queue in controllable_broker.queues()]
            assert [name for name in left if name.startswith(prefix)] == [other]
        with controllable_broker.channel() as channel:
            channel.queue_delete(other)
            channel.exchange_delete(other)

    def test_a_failing_command_is_an_error_that_says_why(self, controllable_broker: Broker) -> None:
        with pytest.raises(BrokerError, match=r"(?s)rabbitmqctl delete_vhost failed.*no such"):
            controllable_broker.ctl("delete_vhost", "no such")

    def test_a_virtual_host_of_its_own(self, controllable_broker: Broker) -> None:
        url = controllable_broker.add_vhost()
        with controllable_broker.channel() as other, Broker(url).channel() as channel:
            queue = other.queue_declare("", exclusive=True).method.queue
            assert channel.queue_declare("", exclusive=True).method.message_count == 0
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
                channel.queue_declare(queue, passive=True)
        controllable_broker.remove_vhost(url)
        with pytest.raises(pika.exceptions.ProbableAccessDeniedError, match="not found"), Broker(url).channel():
            pass

    def test_what_cannot_be_evaluated_is_an_error_and_the_next_is_evaluated(
        self, controllable_broker: Broker
    ) -> None:
        for code in ("no full stop", "rabbit:nothing(1)."):
            with pytest.raises(BrokerError, match=re.escape(code)):
                controllable_broker.evaluate(code)
        assert controllable_broker.evaluate("1 + 1.").strip() == "2"
