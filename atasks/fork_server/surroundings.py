"""The things that a process which is started has of its starter."""

from __future__ import annotations

import os
from collections.abc import Hashable

from atasks import interpreters

__all__ = ["surroundings"]

_OWN = "/proc/thread-self"
_STATUS = (
    b"Umask",
    b"Uid",
    b"Gid",
    b"Groups",
    b"SigIgn",
    b"Cap",
    b"NoNewPrivs",
    b"Seccomp",
    b"Cpus_allowed:",
    b"Mems_allowed:",
)
"""The beginnings of lines of a thread's status that tell what its children have of it."""
_FILES = ("limits", "cgroup", "oom_score_adj")
_NUMBERS = ((2, 4), (16, 17), (37, 39))
"""Numbers behind its name in its `stat`: its group and session, its niceness, and how it is scheduled."""


def surroundings() -> Hashable:
    """Return what a process which this thread starts would have of it, but for the working directory, open files
    and blocked signals: the interpreter's options, the environment, and what the kernel keeps and tells. Raises
    OSError and RuntimeError if it cannot be read.

    A fork server can stand in for this thread while it is what it was when it started the server.
    """
    with open(f"{_OWN}/status", "rb") as status:
        kept = [line for line in status if line.startswith(_STATUS)]
    for name in _FILES:
        with open(f"{_OWN}/{name}", "rb") as file:
            kept.append(file.read())
    with open(f"{_OWN}/stat", "rb") as file:
        numbers = file.read().rpartition(b")")[2].split()
    for begin, end in _NUMBERS:
        kept += numbers[begin:end]
    kept += [os.readlink(f"{_OWN}/ns/{name}".encode()) for name in sorted(os.listdir(f"{_OWN}/ns"))]
    root = os.stat("/")
    return *interpreters.command(), frozenset(os.environ.items()), *kept, root.st_dev, root.st_ino
