"""The fork server of this program: started when the first child is wanted."""

from __future__ import annotations

import atexit
import marshal
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Final

from atasks import forks, interpreters
from atasks.fork_server.forked import Forked
from atasks.fork_server.serving import LONGEST
from atasks.fork_server.surroundings import surroundings

__all__ = ["ask", "pids"]

_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from atasks.fork_server.serving import serve; "
    "exec(serve(int(sys.argv[1])))"
)


def _has_all() -> bool:
    """Return True if this system can do what it takes."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            watch = os.pidfd_open(os.getpid())
            try:
                signal.pidfd_send_signal(watch, 0)
                return True
            finally:
                os.close(watch)
    return False


def ask(
    modules: Sequence[str], text: str, words: Sequence[str], descriptors: Sequence[int], *, session: bool
) -> Forked | None:
    """Ask for a child that runs a text as `python -c` would, with an empty stdin. Return it, which has still to
    begin, or None: it has to be started in another way. May block for the time in which a process is started.

    Args:
        modules: What the text imports that starts no thread: the server does that.
        text: The program.
        words: `sys.argv` has them from its third item on; the second one has the numbers of the descriptors.
        descriptors: What the child has open, beside stdout and stderr of this process.
        session: Whether it leads a session of its own.
    """
    if not _possible:
        return None
    try:
        if not (os.get_inheritable(1) and os.get_inheritable(2)):  # another file has the place of a closed stdout
            return None
        server = _fitting()
        return None if server is None else server.ask(modules, text, [*words], descriptors, session)
    except (OSError, RuntimeError, ValueError):
        return None


def pids() -> set[int]:
    """Return the numbers of the server and of those that are to end."""
    with _lock:
        return {process.pid for process in (*_left, *([] if _server is None else [_server.process]))}


class _Server:
    """One server."""

    def __init__(self, around: Hashable) -> None:
        self.around = around
        """The surroundings of the thread that has started it."""
        self._control, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        forks.withhold(self._control.fileno())
        nothing = subprocess.DEVNULL  # children have the stdout and stderr of the program
        try:
            with there:
                path = [os.path.abspath(str(each)) for each in sys.path]
                command = [*interpreters.command(), "-c", _PROGRAM, str(there.fileno()), *path]
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the program
                try:
                    self.process = subprocess.Popen(
                        command, pass_fds=[there.fileno()], stdin=nothing, stdout=nothing, stderr=nothing
                    )
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:
            self._control.close()
            raise

    def may_be_seen(self) -> bool:
        """Tell whether it lives, and has no rights that this process has given up, of which `surroundings` does
        not tell: the kernel has this one look at processes alone that have no more than it has."""
        try:
            os.readlink(f"/proc/{self.process.pid}/exe")
        except OSError:
            return False
        return True

    def ask(
        self, modules: Sequence[str], text: str, words: list[str], descriptors: Sequence[int], session: bool
    ) -> Forked | None:
        """Ask for a child, as `ask` says. Raises OSError if this server has died, or has too much to do."""
        count = 4 + len(descriptors)
        mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        request = marshal.dumps(([*modules], text, words, session, mask, count))
        if len(request) > LONGEST:
            return None
        child = Forked(self.failed)
        try:
            with child.there:
                directory = os.open(".", os.O_PATH | os.O_DIRECTORY)  # whatever its name is now
                try:
                    socket.send_fds(
                        self._control, [request], [child.there.fileno(), directory, 1, 2, *descriptors]
                    )
                finally:
                    os.close(directory)
        except BaseException:
            child.close()
            raise
        return child

    def failed(self, silent: bool) -> None:
        """The server has not forked a child that was asked for: there is none for these surroundings from now on.
        A silent one is killed, because it keeps what it was sent open."""
        global _unfit
        _unfit = self.around
        if silent:
            self.process.kill()

    def leave(self) -> None:
        """Have it end, once its children have ended."""
        self._control.close()
        _left.append(self.process)


_possible = _has_all()
_lock = threading.Lock()
_server: _Server | None = None
_unfit: Hashable = None
"""The surroundings of a server that could not fork."""
_left: list[subprocess.Popen[bytes]] = []
"""Servers that are to end."""


def _fitting() -> _Server | None:
    """The server, or a new one in the place of one that has not what this thread has now; None: there can be none.
    Raises OSError and RuntimeError."""
    global _server
    around = surroundings()
    with _lock:
        _left[:] = [process for process in _left if process.poll() is None]
        server = _server
        if server is not None and not (server.around == around != _unfit and server.may_be_seen()):
            server.leave()
            server = _server = None
        if server is None and around != _unfit:
            server = _server = _Server(around)
            if not server.may_be_seen():  # none may
                server.failed(silent=True)
                return None
        return server


@atexit.register
def _leave() -> None:
    """The program ends: so do its servers, and no other one is started."""
    global _possible, _server
    _possible = False
    server, _server = _server, None
    if server is not None:
        server.leave()
    for process in _left:
        process.kill()
    for process in _left:
        process.wait()


def _after_fork() -> None:
    """The server is the parent's: this process may have one of its own."""
    global _lock, _server
    _lock = threading.Lock()
    for process in (*_left, *([] if _server is None else [_server.process])):
        process.returncode = 0  # nobody here is to wait for it
    if _server is not None:
        _server.leave()
    _left.clear()
    _server = None


os.register_at_fork(after_in_child=_after_fork)
