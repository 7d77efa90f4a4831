"""The socket that a hub listens on: private to its user, and held by one hub at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
from typing import Final

from atasks import forks
from atasks.errors import ListenFailed

__all__ = ["SocketFile", "peer_pid", "trusts"]

LOCAL_PEERCRED: Final = 1
"""macOS: the option, of level 0, that tells who is at the other end."""
LOCAL_PEERPID: Final = 2
"""macOS: the one that tells which process connected."""


class SocketFile:
    """A bound socket, and a lock on the file `<path>.lock`, which says that a live process has it.

    The lock ends with the process, however that ends. So a socket without a lock is stale, and taken over.
    """

    def __init__(self, path: str) -> None:
        """Bind it. Raises ListenFailed, whose message says what to do."""
        self.path = path
        try:
            self._lock = _lock(path + ".lock")
        except OSError as error:
            raise ListenFailed(f"cannot listen at {path}: {_lock_advice(error, path)}") from error
        try:
            if os.path.lexists(path) and not _is_socket(path):
                raise ListenFailed(
                    f"cannot listen at {path}: it exists and is no socket; remove it, or name another"
                )
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                self.socket.bind(path)
                os.chmod(path, 0o600)  # nobody can connect before it is told to listen
                self.socket.setblocking(False)
                forks.withhold(self.socket.fileno())
            except BaseException:
                self.socket.close()
                raise
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError) and not isinstance(error, ListenFailed):
                raise ListenFailed(f"cannot listen at {path}: {_advice(error, path)}") from error
            raise

    def close(self) -> None:
        """Remove it. Whoever is connected stays so."""
        with contextlib.suppress(OSError):  # somebody removed it, or its directory
            os.unlink(self.path)
        self.socket.close()
        self._unlock()

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path + ".lock")  # while it is locked: who waits for it finds that it is another file
        os.close(self._lock)


def _lock(path: str) -> int:
    """The file, locked. Raises BlockingIOError if another process has it locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not _is_lock(os.fstat(file)):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    forks.withhold(file)
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed between the two, by a hub that ended


def _is_lock(found: os.stat_result) -> bool:
    """Return True if this may be the file of a hub: those are empty."""
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.lstat(path).st_mode)


def _lock_advice(error: OSError, path: str) -> str:
    """Return the advice for a lock that cannot be had: its file may be another user's, or no file of a hub."""
    lock = path + ".lock"
    with contextlib.suppress(OSError):
        found = os.lstat(lock)
        if not _is_lock(found):
            return f"{lock} is no lock of a server; remove it, or name another path"
        if isinstance(error, PermissionError):
            return f"{lock} is of another user (uid {found.st_uid}); have it removed, or name another path"
    return _advice(error, path)


def _advice(error: OSError, path: str) -> str:
    directory = os.path.dirname(path)
    match error:
        case BlockingIOError():
            return "another process serves there; stop it, or name another path"
        case FileNotFoundError():
            return f"there is no directory {directory}; make it, or name another path"
        case PermissionError():
            return f"{directory} is not writable for this user; name another path"
        case _:
            return f"{error.strerror or error}; name another path"


def trusts(connected: socket.socket) -> bool:
    """Return True if the other end of a Unix socket is a process of this user, or of root."""
    uid = _peer_uid(connected)
    return uid is None or uid in (os.geteuid(), 0)


def peer_pid(connected: socket.socket) -> int:
    """Which process connected a Unix socket, as this one sees it; 0 where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is not None:
        return int(struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, 12))[0])
    if sys.platform.startswith("darwin"):
        return connected.getsockopt(0, LOCAL_PEERPID)
    return 0


def _peer_uid(connected: socket.socket) -> int | None:
    """Return the user id at the other end; None where the system does not tell, and the mode of the file must
    do."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is not None:
        _, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, 12))
        return int(uid)
    if sys.platform.startswith("darwin"):
        version_and_uid = connected.getsockopt(0, LOCAL_PEERCRED, 76)[:8]
        return int(struct.unpack("2I", version_and_uid)[1])
    return None
