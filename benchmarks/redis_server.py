"""A Redis for the peers that keep results there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

from benchmarks.harness import VARIABLES
from benchmarks.load import BenchmarkFailed

__all__ = ["answers", "running"]

USUAL_PORT = 6379
STARTING = 10.0
"""Seconds in which a private one must answer."""


@contextlib.contextmanager
def running() -> Iterator[str | None]:
    """The URL of a Redis, or None if there is none.

    It is the one that `$ATASKS_BENCH_REDIS_URL` names, else the one at the usual port, else a private one of an
    installed redis-server, which ends with the block.
    """
    program = shutil.which("redis-server")
    named = os.environ.get(VARIABLES["redis"])
    if named:
        yield named
    elif answers(USUAL_PORT):
        yield f"redis://127.0.0.1:{USUAL_PORT}"
    elif program is None:
        yield None
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, start_new_session=True) as server:
            try:
                end = time.monotonic() + STARTING
                while not answers(port):
                    if server.poll() is not None or time.monotonic() > end:
                        raise BenchmarkFailed("the private redis-server does not start")
                    time.sleep(0.05)
                yield f"redis://127.0.0.1:{port}"
            finally:
                server.terminate()


def answers(port: int) -> bool:
    """Return True if something listens at this port of this host."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
