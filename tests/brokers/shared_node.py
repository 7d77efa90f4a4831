"""A node of an installed RabbitMQ that the processes of one test run share.

A node takes eight seconds of processor time to start, so a run of several processes starts one and not one for
each of them. Nobody owns it: `python -m tests.brokers.shared_node FOLDER` starts it and keeps it, unseen, for as
long as any process has the file `users` in that folder locked, and then removes it. A lock ends with the process
that has it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.brokers.base import BrokerError
from tests.brokers.private_node import PrivateNode, find_sbin

__all__ = ["SharedNode", "locked"]

ROOT = Path(__file__).parents[2]


class SharedNode(PrivateNode):
    """The node of a folder, as one of those that share it.

    It may be asked everything. It can be neither stopped nor killed, because others use it: `close()` leaves it,
    and it ends when the last one has left.
    """

    stoppable = False

    def __init__(self, sbin: Path, meeting: Path) -> None:
        """`meeting`: the folder by which those who share it find each other."""
        super().__init__(sbin, ports=(0, 0, 0))
        self._meeting = meeting
        self._using: contextlib.ExitStack | None = None

    @property
    def running(self) -> bool:
        return self._using is not None

    def start(self) -> None:
        """Share it; the first one starts it."""
        if self.running:
            return
        with locked(self._meeting / "starting", fcntl.LOCK_EX), contextlib.ExitStack() as stack:
            # Where the last one has just left, this waits until the node has ended and its `node.json` is removed.
            stack.enter_context(locked(self._meeting / "users", fcntl.LOCK_SH))
            found = self._meeting / "node.json"
            if not found.exists():
                command = [sys.executable, "-m", "tests.brokers.shared_node", str(self._meeting)]
                done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    raise BrokerError(f"the broker could not be started\n{done.stderr}".rstrip())
            self._join(json.loads(found.read_text()))
            self._using = stack.pop_all()

    def _join(self, whereabouts: dict[str, Any]) -> None:
        self.name, self.url = whereabouts["name"], whereabouts["url"]
        self.port, self._epmd_port, self._dist_port = whereabouts["ports"]
        self._folder = Path(whereabouts["folder"])

    def stop(self) -> None:
        raise BrokerError("others use this broker: ask for one that may be stopped")

    def kill(self) -> None:
        self.stop()

    def close(self, logs: Path | None = None) -> None:
        """Leave it. Its logs so far become the contents of the folder `logs`, if named."""
        if self._using is None:
            return
        self._end(signal.SIGKILL)  # there is only what this process asks through
        self._keep_logs(logs)
        self._using.close()
        self._using = None


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[IO[bytes]]:
    """The file, locked until it is closed, as it is at the end of the block."""
    with path.open("ab") as file:
        fcntl.flock(file, how)
        yield file


def keep(meeting: Path, say: IO[str]) -> None:
    """Start a node, close `say` when it runs or say what went wrong, and end the node when nobody uses it."""
    sbin = find_sbin()
    if sbin is None:
        say.write("rabbitmq-server is not installed")
        return
    node = PrivateNode(sbin)
    found = meeting / "node.json"
    try:
        node.start()
        found.write_text(json.dumps(node.whereabouts))
        say.close()
        with locked(meeting / "users", fcntl.LOCK_EX):
            found.unlink()
            node.close()
    except BrokerError as error:
        say.write(str(error))
    finally:
        node.close()


def main(meeting: Path) -> int:
    """Return when the node runs: a process in the background keeps it."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        with os.fdopen(read) as said:
            problem = said.read()
        sys.stderr.write(problem)
        return 1 if problem else 0
    os.setsid()  # a Ctrl-C is for the tests, which may use the broker until they have ended
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(read)
    with os.fdopen(write, "w") as say:
        keep(meeting, say)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
