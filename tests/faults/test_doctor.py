"""`atasks doctor` finds what is wrong with a broker and with a fleet: each is made wrong here."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from atasks.transport.backends.amqp import AMQPTransport
from atasks_cli.policies import faults
from tests.broker import Broker, PrivateNode
from tests.cli.command import Done
from tests.cli.shell import Shell

TASKS = """
    from atasks import atask

    @atask(namespace="NAMESPACE", queue="shop.q")
    async def nothing():
        pass
"""
ODD = """
    import time
    import atasks
    from tasks import nothing

    atasks.__version__ = "0.0.1"
    atasks.MsgpackCodec("NAMESPACE")
    right = time.time
    time.time = lambda: right() + 6.0
"""
NOT_LOOKED_AT = r"the policies of the broker, as http://.+ does not answer .+ \(rabbitmqctl list_policies -p /\)"


class Clinic:
    """A fleet at a broker of its own, and the doctor."""

    def __init__(self, shell: Shell, node: Broker) -> None:
        self.shell = shell
        self.node = node
        self.namespace = f"clinic-{uuid.uuid4().hex[:8]}"
        self.url = node.url
        for name, text in (("tasks.py", TASKS), ("odd.py", ODD)):
            shell.write(name, text.replace("NAMESPACE", self.namespace))

    def serve(self, module: str) -> None:
        where = ("--mode", "server", "--namespace", self.namespace, "--url", self.url)
        self.shell.start("run", module, *where).wait_for("atasks: serving")

    def run(self, *arguments: str, url: str | None = None) -> Done:
        where = ("--namespace", self.namespace, "--url", url or self.url)
        return self.shell.run("doctor", *where, *arguments)

    def problems(self, *arguments: str, url: str | None = None) -> list[str]:
        done = self.run("--json", *arguments, url=url)
        found: dict[str, Any] = json.loads(done.out)
        assert done.code == (1 if found["problems"] else 0), done
        problems: list[str] = found["problems"]
        return problems


@pytest.fixture
def clinic(node: Broker, tmp_path: Path) -> Iterator[Clinic]:
    shell = Shell(tmp_path)
    clinic = Clinic(shell, node)
    yield clinic
    shell.close()
    with node.channel() as channel:
        for queue in node.queues():
            if clinic.namespace in queue.name:
                channel.queue_delete(queue.name)


@pytest.fixture
def policy(node: Broker, clinic: Clinic) -> Iterator[Any]:
    """Sets a policy for the work queues."""

    def set_policy(**definition: object) -> None:
        pattern = rf"^atasks\.q\.{clinic.namespace}\."
        rules = {name.replace("_", "-"): value for name, value in definition.items()}
        node.ctl("set_policy", "--apply-to", "queues", "--priority", "3", "wrong", pattern, json.dumps(rules))

    yield set_policy
    node.ctl("clear_policy", "wrong")


def test_a_fleet_with_differences(clinic: Clinic) -> None:
    for module in ("tasks.py", "tasks.py", "odd.py"):
        clinic.serve(module)
    found = clinic.problems("--queue", "shop.q", "--queue", "nobody-s", "--expect", "3")
    assert len(found) == 4, found
    codec, version, clock, unserved = found
    assert re.search(r"^worker \S+ has codec 'msgpack', and most have 'cloudpickle'", codec), codec
    assert re.search(r"^worker \S+ has version of atasks '0.0.1', and most have ", version), version
    assert re.search(r"^the clock of worker \S+ on \S+ is \+[56]\.\d s from this one", clock), clock
    assert unserved == "queue 'nobody-s' has no workers: start some for it"


def test_policies_are_tried_out(clinic: Clinic, policy: Any) -> None:
    clinic.serve("tasks.py")
    patience = ("--expect", "1", "--timeout", "20")
    policy(max_length=50)
    (problem,) = clinic.problems(*patience)
    assert "of 200 messages of 1 KiB in a queue of such a name 50 stayed; look for max-length" in problem
    policy(max_length=50, overflow="reject-publish")
    done = clinic.run(*patience)
    assert done.code == 0, done
    assert re.search(f"^atasks: not looked at: {NOT_LOOKED_AT}", done.err), done.err
    policy(message_ttl=500)
    (problem,) = clinic.problems(*patience)
    assert "messages in a queue of such a name expire within 1.5 s; look for message-ttl" in problem


def test_a_user_without_permissions(clinic: Clinic) -> None:
    clinic.serve("tasks.py")
    user, address = f"poor-{clinic.namespace}", urlsplit(clinic.url)
    url = f"amqp://{user}:secret@{address.hostname}:{address.port}/"
    clinic.node.ctl("add_user", user, "secret")
    try:
        everything = ".*"
        caller = rf"^atasks\.(control|events|r\.{user}\..*|run\..*)$"
        clinic.node.ctl("set_permissions", "-p", "/", user, caller, everything, everything)
        (problem,) = clinic.problems("--expect", "1", "--timeout", "20", url=url)
        assert problem.startswith(
            f"user '{user}' may not configure queue 'atasks.q.{clinic.namespace}.shop.q.probe-"
        )
        pattern = r"'^(atasks\..*|amq\.default)$'"
        assert problem.endswith(f"rabbitmqctl set_permissions -p / {user} {pattern} {pattern} {pattern}")
        clinic.node.ctl("set_permissions", "-p", "/", user, "^$", everything, everything)
        (problem,) = clinic.problems(url=url)
        assert f"refuses user '{user}'" in problem
        assert problem.endswith(f"rabbitmqctl set_permissions -p / {user} {pattern} {pattern} {pattern}")
    finally:
        clinic.node.ctl("delete_user", user)


def test_policies_are_read_where_the_broker_tells_them(clinic: Clinic, policy: Any) -> None:
    assert isinstance(clinic.node, PrivateNode)
    management = clinic.node.management()
    clinic.serve("tasks.py")
    patience = ("--expect", "1", "--timeout", "20", "--management", management)
    assert clinic.problems(*patience) == []
    policy(message_ttl=7_200_000, max_length=1_000_000)  # which no probe would find
    (problem,) = clinic.problems(*patience)
    expires = "message-ttl=7200000: what is in it expires: calls, replies, records, schedules, tokens of limits"
    drops = "max-length=1000000 without overflow=reject-publish: the oldest calls in it are dropped"
    queue = f"atasks.q.{clinic.namespace}.shop.q"
    assert problem == f"policy 'wrong' applies to queue '{queue}', {expires}; {drops}"
    policy(max_length=1_000_000, overflow="reject-publish")
    assert clinic.problems(*patience) == []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (problem,) = clinic.problems("--expect", "1", "--timeout", "20", "--management", address)
    assert problem.startswith(f"{address} does not answer")


@pytest.mark.parametrize(
    ("kind", "rules", "harm"),
    [
        *(
            (kind, {"message-ttl": 500}, "expires")
            for kind in ("q", "r", "run", "delay", "schedules", "unique", "limit")
        ),
        ("limit", {"max-length": 3, "overflow": "reject-publish"}, "tokens of a limit get lost"),
        ("limit", {"max-length-bytes": 10}, "tokens of a limit get lost"),
        ("delay", {"max-length": 3}, "oldest calls in it are dropped"),
        ("delay", {"max-length": 3, "overflow": "reject-publish"}, None),
        ("schedules", {"expires": 1000}, "deleted while nobody uses it"),
        ("unique", {"max-length": 3}, None),
        ("run", {"max-length": 3, "overflow": "reject-publish"}, None),
    ],
)
def test_policies_for_queues_of_each_kind(kind: str, rules: dict[str, object], harm: str | None) -> None:
    transport = AMQPTransport("amqp://localhost/", "default", prefix="shop")
    transport.session.new_reply_queue()
    policy = {"name": "p", "pattern": rf"^shop\.{kind}\.", "apply-to": "queues", "operator": False}
    found = faults([{**policy, "definition": rules}], transport.checks.names(["orders"]))
    assert (harm in found[0]) if harm is not None else not found
