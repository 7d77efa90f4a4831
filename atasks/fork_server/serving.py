"""The program of a fork server."""

from __future__ import annotations

import gc
import importlib
import io
import marshal
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["CODE", "LONGEST", "PID", "serve"]

LONGEST: Final = 1 << 16
"""Most bytes of a request."""
_LIBRARY: Final = os.path.dirname(os.__file__)
"""The folder of Python's own modules."""
_MOST: Final = 16
"""Most descriptors of a request."""
PID: Final = struct.Struct("=i")
"""The message of a child that has begun: its number. A descriptor of the process comes with it."""
CODE: Final = struct.Struct("=i")
"""The message when it has ended: its exit code, or minus the number of the signal that ended it."""


class _Request(NamedTuple):
    """A child that the program wants."""

    modules: list[str]
    """The modules that it imports in any case: the server does that for all children."""
    text: str
    words: list[str]
    """Arguments of the text, behind the numbers of the descriptors."""
    session: bool
    """True if it is to lead a session of its own."""
    mask: list[int]
    """The signals that are blocked in it, as in its starter. In the server all are."""
    size: int
    """The number of descriptors: of its birth, the working directory, stdout, stderr, and those for the text."""


class _Child:
    """A child, until it has ended and the program lets go of it."""

    def __init__(self, pid: int, birth: socket.socket) -> None:
        self.pid = pid
        self.birth: socket.socket | None = birth
        """The way to the program; None: it has let go."""
        self.watch: int | None = os.pidfd_open(pid)
        """A descriptor of the process; None: it has ended."""

    def has_ended(self) -> None:
        """Tell the program how, and leave the number to the child until it lets go."""
        assert self.watch is not None
        found = os.waitid(os.P_PIDFD, self.watch, os.WEXITED | os.WNOWAIT)
        assert found is not None
        code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        os.close(self.watch)
        self.watch = None
        if self.birth is not None:
            with suppress(OSError):
                self.birth.send(CODE.pack(code))

    def let_go(self) -> None:
        """The program wants to know no more of it."""
        assert self.birth is not None
        self.birth.close()
        self.birth = None

    def close(self) -> None:
        """Close what is open."""
        if self.birth is not None:
            self.birth.close()
        if self.watch is not None:
            os.close(self.watch)


def serve(control: int) -> str:
    """Fork a child for each request, until the program is gone, and end then. Returns in each child: the text that
    it runs, with `sys.argv` as that expects it."""
    os.chdir("/")  # where it keeps no file system from being unmounted
    action = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else there might be no exit codes
    server = _Server(socket.socket(fileno=control))
    request, descriptors = server.run()
    server.close()
    signal.signal(signal.SIGCHLD, action)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.mask)
    try:
        return _become(request, descriptors)
    except OSError:  # the program is gone
        os._exit(1)


def _become(request: _Request, descriptors: list[int]) -> str:
    """Make this process what was asked for, tell the program, and return the text."""
    birth, *places = descriptors[:4]
    if request.session:
        os.setsid()
    os.fchdir(places[0])
    os.dup2(places[1], 1)
    os.dup2(places[2], 2)
    for each in places:
        os.close(each)
    if isinstance(sys.stdout, io.TextIOWrapper) and os.isatty(1):
        sys.stdout.reconfigure(line_buffering=True)  # it was made for another file
    sys.path_importer_cache.clear()  # of folders as they were
    sys.argv[1:] = [" ".join(map(str, descriptors[4:])), *request.words]
    watch = os.pidfd_open(os.getpid())
    with socket.socket(fileno=birth) as program:
        socket.send_fds(program, [PID.pack(os.getpid())], [watch])
    os.close(watch)
    return request.text


def _import(name: str) -> None:
    """Import a module. One of Python's own is no file of a user that has its name; if there is none, children
    look for it themselves."""
    if name.partition(".")[0] not in sys.stdlib_module_names:
        importlib.import_module(name)
        return
    path, sys.path = sys.path, [_LIBRARY, os.path.join(_LIBRARY, "lib-dynload")]
    try:
        with suppress(Exception):
            importlib.import_module(name)
    finally:
        sys.path = path


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        """By the descriptors that tell of them: of the process, and of the way to the program."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> tuple[_Request, list[int]]:
        """Serve until the program is gone. Returns in each child: the request, and its descriptors."""
        asked = True
        while asked or any(child.birth is not None for child in self._children.values()):
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._heed(descriptor)
                    continue
                data, descriptors, *_ = socket.recv_fds(self._control, LONGEST, _MOST)
                asked = bool(data)
                if not asked:  # or another server has taken its place
                    self._poll.unregister(descriptor)
                    continue
                request = _Request(*marshal.loads(data))
                if self._fork(request, descriptors):
                    return request, descriptors
        os._exit(0)

    def close(self) -> None:
        """Close what is the server's, in a child."""
        self._control.close()
        for child in set(self._children.values()):
            child.close()

    def _fork(self, request: _Request, descriptors: list[int]) -> bool:
        """Fork a child. Returns True in that.

        The program sees that there is none when its birth is closed.
        """
        pid: int | None = None
        with suppress(Exception):
            if len(descriptors) == request.size:  # else too many files are open
                for module in request.modules:
                    _import(module)
                gc.freeze()  # what all children share
                # What other threads do would stay half done in a child.
                if len(os.listdir("/proc/self/task")) == 1:
                    pid = os.fork()
        if pid == 0:
            return True
        for each in descriptors[1:]:
            os.close(each)
        with suppress(IndexError):
            birth = socket.socket(fileno=descriptors[0])
            if pid is None:
                birth.close()
            else:
                self._watch(pid, birth)
        return False

    def _watch(self, pid: int, birth: socket.socket) -> None:
        try:
            child = _Child(pid, birth)
        except OSError:  # too many files are open
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            birth.close()
            return
        assert child.watch is not None
        # Of a hang-up it tells in any case.
        for descriptor, events in ((child.watch, select.POLLIN), (birth.fileno(), 0)):
            self._children[descriptor] = child
            self._poll.register(descriptor, events)

    def _heed(self, descriptor: int) -> None:
        """A child has ended, or the program has let go of it."""
        self._poll.unregister(descriptor)
        child = self._children.pop(descriptor)
        if descriptor == child.watch:
            child.has_ended()
        else:
            child.let_go()
        if child.watch is None and child.birth is None:
            os.waitpid(child.pid, 0)
