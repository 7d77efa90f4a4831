"""SIGINT, SIGTERM and SIGHUP: the first one asks the command to end, a second one ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from atasks import forks

__all__ = ["Signals"]


class Signals:
    """Takes SIGINT, SIGTERM and SIGHUP over for the rest of the process; SIGHUP not if it is ignored (nohup).

    The first one calls `first` in the event loop; a second one ends the process with 128 + its number, whatever
    the process is doing: an aiomain that blocks, a drain, the interpreter's own shutdown. A second SIGHUP does
    nothing: a terminal that is closed sends it twice, itself and by its shell.
    """

    def __init__(self, first: Callable[[], object]) -> None:
        self.first = first
        """The function that the first signal calls in the event loop: no coroutine."""
        self.last: Callable[[], object] | None = None
        """The function that the second signal calls before the process ends: the signal handler calls it,
        whatever runs."""
        self.received: int | None = None
        """The number of the first signal, once it has come."""
        self._ending = False
        self._loop = asyncio.get_running_loop()
        # Not loop.add_signal_handler: its callbacks wait for the event loop's turn, which never comes while code
        # blocks it. A plain handler runs between two instructions of whatever is running.
        forks.handle_signal(signal.SIGTERM, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            forks.handle_signal(signal.SIGHUP, self._handle)
        # A Ctrl-C comes to forked children too. They go on, as do the running calls that they have a part in.
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGHUP:
            return
        if self.received is not None or self._loop.is_closed():
            for stream in (sys.stdout, sys.stderr):
                # broken, closed, or in the middle of a write that the signal interrupted
                with contextlib.suppress(OSError, RuntimeError, ValueError):
                    stream.flush()
            if self.last is not None:
                self.last()
            os._exit(128 + number)
        self.received = number
        self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Do what the first signal does, once; a signal that follows is the first one nevertheless."""
        if not self._ending:
            self._ending = True
            self.first()
