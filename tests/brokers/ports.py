"""Ports of the loopback interface, and waiting for what listens on them."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.brokers.base import BrokerError

__all__ = ["accepts", "free_ports", "speaks_amqp", "wait_for"]

START_TIMEOUT = 180.0
"""Seconds. A node is ready after about four; a loaded machine may take many times as long."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on.

    None of them is of the range that the system gives to outgoing connections: a broker that is down for a moment
    must find its port free when it comes back.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def speaks_amqp(port: int) -> bool:
    """True if a broker on this loopback port answers AMQP's greeting: the last thing that RabbitMQ starts."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame: connection.start
    except OSError:
        return False


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def wait_for(
    ready: Callable[[], bool], process: subprocess.Popen[bytes] | None, name: str, folder: Path | None
) -> None:
    """Ask until it is ready; raises `BrokerError` with what it printed last if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            why = "ended while it started" if ended else f"was not ready after {START_TIMEOUT:.0f} s"
            output = (folder / "log" / "output").read_text(errors="replace")[-2000:] if folder else ""
            raise BrokerError(f"{name} {why}\n{output}".rstrip())
        time.sleep(0.05)
