"""The RabbitMQ that the tests talk to.

`choose()` takes the first of these that applies:

1. the broker named by `$ATASKS_TEST_AMQP_URL`: a `Broker`. It is used, and not controlled;
2. a `PrivateNode` of an installed RabbitMQ: started by the tests from its server script (searched in the usual
   places, or in the folder `$ATASKS_TEST_RABBITMQ_SBIN`), with a node name, ports and folders of its own;
3. a `Container`, where a Docker engine answers;

and raises `NoBroker`, which says what to do, where none does: tests never skip for want of a broker.

`python -m tests.broker` says which it would be (exit code 3: none; 1: one was given and does not answer);
`python -m tests.broker run` runs it until interrupted and prints its URL.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.brokers.base import URL_VARIABLE, Broker, BrokerError, Queue
from tests.brokers.container import Container, docker_answers
from tests.brokers.private_node import PrivateNode, find_sbin

__all__ = ["Broker", "BrokerError", "Container", "NoBroker", "PrivateNode", "Queue", "choose", "running"]


class NoBroker(BrokerError):
    """There is no broker for the tests to use; the message says how to get one."""

    def __init__(self) -> None:
        super().__init__(
            "There is no RabbitMQ for the tests. Do one of these:\n"
            "  - install it (Debian, Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq):\n"
            "    the tests then start a private node, and leave one that is running alone;\n"
            "  - start a Docker engine: the tests then start a container;\n"
            f"  - set {URL_VARIABLE}=amqp://user:password@host/ to a broker that the tests may use."
        )


def choose(
    environ: Mapping[str, str] = os.environ,
    sbin: Callable[[], Path | None] = find_sbin,
    docker: Callable[[], bool] = docker_answers,
) -> Broker:
    """The broker that the tests use, not started; see the top. Raises `NoBroker` if there is none."""
    url = environ.get(URL_VARIABLE)
    if url:
        return Broker(url)
    folder = sbin()
    if folder is not None:
        return PrivateNode(folder)
    if docker():
        return Container()
    raise NoBroker


@contextlib.contextmanager
def running() -> Iterator[Broker]:
    """The broker that the tests use, running; one that the tests run ends with the block."""
    broker = choose()
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


def main(arguments: Sequence[str]) -> int:
    """See the top."""
    logging.disable()  # what pika logs of a failure, the error says
    try:
        if list(arguments) == ["run"]:
            with running() as broker, contextlib.suppress(KeyboardInterrupt):
                print(broker.url, flush=True)
                signal.pause()
        else:
            broker = choose()
            if not broker.controllable:
                broker.start()
            print(f"Broker for the tests: {type(broker).__name__}")
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, NoBroker) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
