"""A broker as the tests see it."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pika
import pika.exceptions

__all__ = ["URL_VARIABLE", "Broker", "BrokerError", "Queue"]

URL_VARIABLE = "ATASKS_TEST_AMQP_URL"


class BrokerError(Exception):
    """The broker did not do what it was asked."""


class Queue(NamedTuple):
    """A queue of the broker."""

    name: str
    messages: int
    """Ready and unacknowledged ones."""
    consumers: int


class Broker:
    """A broker that somebody else runs. The other kinds, which the tests run, extend it."""

    controllable = False
    """True if `ctl`, `evaluate` and what is built on them work."""

    stoppable = False
    """True if `stop`, `kill` and `restart` work too."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def running(self) -> bool:
        """True if the broker was started and not stopped since."""
        return True

    def start(self) -> None:
        """Make it run unless it does, and return when it answers; raises `BrokerError` if it does not."""
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (pika.exceptions.AMQPError, OSError) as error:
            raise BrokerError(f"the broker named by {URL_VARIABLE} does not answer: {error!r}") from None

    def stop(self) -> None:
        """Stop it in good order. What is durable survives; `start()` runs it again at the same URL."""
        raise self._refuse("stop")

    def kill(self) -> None:
        """End it as a power failure would. What is durable survives; `start()` runs it again at the same URL."""
        raise self._refuse("kill")

    def restart(self) -> None:
        """Stop it in good order and start it again."""
        self.stop()
        self.start()

    def close(self, logs: Path | None = None) -> None:
        """End it, and remove what it has on disk; its logs become the contents of the folder `logs`, if named."""

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` with these arguments and return its output; raises `BrokerError` where it fails."""
        raise self._refuse("run rabbitmqctl on")

    def evaluate(self, code: str) -> str:
        """Evaluate these Erlang expressions, which end with a full stop, at the broker, and return the value as
        text."""
        return self.ctl("eval", code)

    def queues(self, vhost: str = "/") -> list[Queue]:
        """The queues of a virtual host."""
        columns = ("name", "messages", "consumers")
        rows = json.loads(self.ctl("list_queues", "--silent", "--formatter", "json", "--vhost", vhost, *columns))
        return [Queue(*(row[column] for column in columns)) for row in rows]

    def keys(self, exchange: str) -> list[str]:
        """The routing keys by which queues are bound to an exchange."""
        columns = ("source_name", "routing_key")
        rows = json.loads(self.ctl("list_bindings", "--silent", "--formatter", "json", *columns))
        return [row["routing_key"] for row in rows if row["source_name"] == exchange]

    def close_all_connections(self, reason: str = "closed by a test") -> None:
        """Have the broker close every client connection."""
        self.ctl("close_all_connections", reason)

    def silence_quorum_queue(self, name: str) -> None:
        """Stop what keeps a quorum queue, so that it has no leader, until `wake_quorum_queue`."""
        self._quorum_queue(name, "stop_server")

    def wake_quorum_queue(self, name: str) -> None:
        """Start it again."""
        self._quorum_queue(name, "restart_server")

    def _quorum_queue(self, name: str, action: str) -> None:
        queue = f'rabbit_misc:r(<<"/">>, queue, <<"{name}">>)'
        code = f"{{ok, Q}} = rabbit_amqqueue:lookup({queue}), ra:{action}(quorum_queues, amqqueue:get_pid(Q))."
        self.evaluate(code)

    def add_vhost(self) -> str:
        """The URL of a new virtual host, whose path is its name."""
        name = f"test-{uuid.uuid4().hex}"
        self.evaluate(f'ok = rabbit_vhost:add(<<"{name}">>, <<"tests">>).')
        self.permit("guest", name, ".*", ".*", ".*")
        return f"{self.url.rstrip('/')}/{name}"

    def remove_vhost(self, url: str) -> None:
        """Remove the virtual host that `add_vhost` gave this URL, with all that is in it."""
        name = urlsplit(url).path.removeprefix("/")
        self.evaluate(f'ok = rabbit_vhost:delete(<<"{name}">>, <<"tests">>).')

    def add_user(self, name: str) -> str:
        """The URL of a new user, whose password is "secret", who may do nothing yet."""
        self.evaluate(f'ok = rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"secret">>, <<"tests">>).')
        parts = urlsplit(self.url)
        return f"amqp://{name}:secret@{parts.hostname}:{parts.port}/"

    def permit(self, user: str, vhost: str, configure: str, write: str, read: str) -> None:
        """Set what a user may do."""
        words = (user, vhost, configure, write, read, "tests")
        terms = ", ".join('<<"' + word.replace("\\", "\\\\") + '">>' for word in words)
        self.evaluate(f"ok = rabbit_auth_backend_internal:set_permissions({terms}).")

    def remove_user(self, name: str) -> None:
        """Remove a user."""
        self.evaluate(f'ok = rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"tests">>).')

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A fresh connection's channel, of a client library that is not the one under test."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    def clear(self, prefix: str) -> list[str]:
        """Remove the queues and exchanges of a prefix; return the names of the queues."""
        names = [queue.name for queue in self.queues() if queue.name.startswith(f"{prefix}.")]
        with self.channel() as channel:
            for name in names:
                channel.queue_delete(name)
            for exchange in ("control", "events", "due", "due.early"):
                channel.exchange_delete(f"{prefix}.{exchange}")
            for name in names:
                if name.startswith(f"{prefix}.delay."):
                    channel.exchange_delete(name)  # each of these queues has one of its name
        return names

    def _refuse(self, verb: str) -> BrokerError:
        return BrokerError(f"cannot {verb} a broker that was given: unset {URL_VARIABLE} to run a private one")
