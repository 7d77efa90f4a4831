"""A child that a fork server forks, as the program sees it."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from atasks import forks
from atasks.fork_server.serving import CODE, PID

__all__ = ["CODE_PATIENCE", "PATIENCE", "Forked"]

PATIENCE: Final = 30.0
"""Seconds for a server to fork a child."""
CODE_PATIENCE: Final = 2.0
"""Seconds for it to tell the exit code of one that has ended."""
UNKNOWN: Final = 255
"""The exit code of a child whose server has died, or is silent."""


class Forked:
    """A child that a server was asked for, as `subprocess.Popen` is one. Its number belongs to nobody else until
    it is closed."""

    def __init__(self, failed: Callable[[bool], None]) -> None:
        """`failed` is called when there will be none: with True if the server is silent."""
        self.birth, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Can be read when the child has begun, and when its exit code has come; the server's end of that."""
        self.birth.setblocking(False)
        forks.withhold(self.birth.fileno())
        self.pid = 0
        self.returncode: int | None = None
        """The exit code, or minus the number of the signal that has ended it; None: nobody has waited for it."""
        self._failed = failed
        self._watch = -1
        self._lock = threading.Lock()

    def begin(self, patience: float = PATIENCE) -> bool:
        """Return True as soon as it has begun; False: there is none after so many seconds, and it is closed.
        Raises OSError if too many files are open; it is killed then."""
        silent = not _can_be_read(self.birth.fileno(), patience)
        try:
            data, descriptors, flags, _ = socket.recv_fds(self.birth, PID.size, 1)
        except OSError:
            data, descriptors, flags = b"", [], 0
        if descriptors:
            (self._watch,) = descriptors
            os.set_inheritable(self._watch, False)
            (self.pid,) = PID.unpack(data)
            return True
        if flags & socket.MSG_CTRUNC:  # no descriptor is free here, and the child runs
            (pid,) = PID.unpack(data)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            self.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.close()
        self._failed(silent)
        return False

    def fileno(self) -> int:
        """Return the descriptor that can be read when it has ended."""
        return self._watch

    def poll(self) -> int | None:
        """Return its exit code; None: it lives."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is not None:
            return self.returncode
        if not _can_be_read(self._watch, timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        _can_be_read(self.birth.fileno(), CODE_PATIENCE)
        return self.code()

    def code(self) -> int:
        """Return the exit code of a child that has ended, without waiting for it to come."""
        try:  # several threads may wait
            (code,) = CODE.unpack(self.birth.recv(CODE.size, socket.MSG_PEEK))
        except (OSError, struct.error):
            code = UNKNOWN
        self.returncode = code
        return int(code)

    def terminate(self) -> None:
        """Send it SIGTERM, if it lives."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of it, which has ended or is not wanted any more."""
        with self._lock:
            self.birth.close()
            if self._watch >= 0:
                os.close(self._watch)
                self._watch = -1

    def _signal(self, number: int) -> None:
        with self._lock, suppress(ProcessLookupError):
            if self._watch >= 0:
                signal.pidfd_send_signal(self._watch, number)


def _can_be_read(descriptor: int, timeout: float | None) -> bool:
    """Wait for so many seconds, and return True if there is something to read by then."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))
