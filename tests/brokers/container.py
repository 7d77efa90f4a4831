"""RabbitMQ in a container."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from tests.brokers.base import Broker, BrokerError
from tests.brokers.ports import free_ports, speaks_amqp, wait_for

__all__ = ["Container", "docker_answers"]

IMAGE = "rabbitmq:4"
STOP_TIMEOUT = 60


class Container(Broker):
    """RabbitMQ in a container of the Docker engine, on a port of the loopback interface that stays the same."""

    controllable = True
    stoppable = True

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self.port}/")
        self._container: Any = None
        self._running = False

    @property
    def running(self) -> bool:
        return self._running

    def start(self) -> None:
        if self._running:
            return
        if self._container is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # theirs, on import
                from testcontainers.core.container import DockerContainer

            # Without `loopback_users` the broker would refuse guest, who comes from outside the container.
            arguments = "-rabbit loopback_users []"
            container = DockerContainer(IMAGE, hostname="atasks-broker")
            container.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", arguments)
            container.ports["5672/tcp"] = ("127.0.0.1", self.port)
            self._container = container.start()
        else:
            self._container.get_wrapped_container().start()
        self._running = True
        wait_for(lambda: speaks_amqp(self.port), None, f"the container of {IMAGE}", None)

    def stop(self) -> None:
        self._container.get_wrapped_container().stop(timeout=STOP_TIMEOUT)
        self._running = False

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()
        self._running = False

    def close(self, logs: Path | None = None) -> None:
        container, self._container, self._running = self._container, None, False
        if container is None:
            return
        if logs is not None:
            shutil.rmtree(logs, ignore_errors=True)
            logs.mkdir()
            (logs / "output").write_bytes(b"".join(container.get_logs()))
        container.stop()

    def ctl(self, *arguments: str) -> str:
        code, output = self._container.get_wrapped_container().exec_run(["rabbitmqctl", *arguments])
        text: str = output.decode()
        if code:
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed: {text.strip()}")
        return text


def docker_answers() -> bool:
    """True if there is a Docker engine to run containers with."""
    import docker

    try:
        client = docker.from_env(timeout=10)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except docker.errors.DockerException:
        return False
    finally:
        client.close()
