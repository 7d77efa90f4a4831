"""Takes from a forked child what belongs to its parent: open descriptors, and the handling of signals.

A fork copies both. As long as the child has a copy of a socket, the process at the other end does not see that
the parent is gone; and a child that handles SIGTERM as its parent does cannot be ended by it. Programs that are
started (`subprocess`, `spawn`) inherit neither.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

__all__ = ["Forked", "handle_signal", "leave", "tell", "withhold"]

_withheld: dict[int, tuple[int, int]] = {}
"""Descriptors that children do not get, and the file of each: when it is closed its number may be taken again."""
_taken: dict[int, tuple[Any, Any]] = {}
"""Signals that are handled here: by what, and what was done at them before."""


class Forked(Protocol):
    """An object that is told in a child that it is a copy."""

    def forked(self) -> None:
        """This process is a child: the original is in its parent."""
        ...


_told: WeakSet[Forked] = WeakSet()


def tell(item: Forked) -> None:
    """Have the copy of this object in each forked child be told that it is one. It is not kept alive for that."""
    _told.add(item)


def leave(error: BaseException | None = None) -> NoReturn:
    """End this process, a child, as the interpreter would with this exception, but without cleaning up: all that
    could be cleaned up is its parent's."""
    code: Any = 0
    try:
        if isinstance(error, SystemExit):
            code = 0 if error.code is None else error.code
            if not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        elif error is not None:
            code = 1
            import traceback  # for an error only

            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def withhold(descriptor: int) -> None:
    """Have children that are forked from now on not share what this descriptor is of: a socket, a pipe, a lock.

    They have an empty file in its place, so that copied objects which close it close nothing else. It need not be
    said when it is closed.
    """
    identity = _identity(descriptor)
    if identity[1]:  # some systems number no sockets
        _withheld[descriptor] = identity


def handle_signal(number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
    """Handle a signal in this process, and not in its children: they do what was done at it before.

    Belongs to the main thread, as `signal.signal`.
    """
    before = signal.signal(number, handler)
    _taken[number] = handler, _taken[number][1] if number in _taken else before


def _identity(descriptor: int) -> tuple[int, int]:
    state = os.fstat(descriptor)
    return state.st_dev, state.st_ino


class _Forking(threading.local):
    """The notes of a thread that forks."""

    def __init__(self) -> None:
        self.mask: set[int] = set()
        """The signals that were blocked in it before."""


_forking = _Forking()


def _before_fork() -> None:
    """A signal that the child gets before it has its own handlers would be lost: it waits."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _taken)


def _after_fork_here() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork() -> None:
    """In the child, whose only thread is its main thread."""
    for number, (handler, before) in _taken.items():
        if signal.getsignal(number) is handler:
            signal.signal(number, signal.SIG_DFL if before is None else before)
    if _taken:
        signal.set_wakeup_fd(-1)  # or a signal to the child would wake the event loop of its parent
    _taken.clear()
    for descriptor, identity in _withheld.items():
        with suppress(OSError):  # it was closed meanwhile
            if _identity(descriptor) == identity:
                _empty(descriptor)
    _withheld.clear()
    for item in list(_told):
        item.forked()
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _empty(descriptor: int) -> None:
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
    except OSError:  # no descriptors are left
        os.close(descriptor)
        return
    os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_here, after_in_child=_after_fork)
