"""Names the call that blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from atasks.definitions import CALL
from atasks.tracking.counters import BUSY, LAG_ASKED, LAG_US

if TYPE_CHECKING:
    from atasks.tracking.counters import Row

__all__ = ["Watchdog"]

logger = logging.getLogger("atasks.worker")

ADVICE = '; @atask(executor="thread") on a plain function, or await asyncio.to_thread(...), lets others run'
LIMIT = 0.1
"""Seconds without a turn of the event loop that are reported."""
PERIOD = 0.03
IDLE_PROBES = 30
"""Probes without a call running after which the thread sleeps until the next call."""
STILL_BLOCKED = 10.0


class Watchdog:
    """A thread that asks the event loop for a sign of life while calls run, and logs what runs when none comes.

    It sleeps while no call runs. A block shorter than `LIMIT + PERIOD` may go unseen.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, cells: Row) -> None:
        """`cells`: the counters of the worker; it reads how many calls run, and writes how long a turn took."""
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._wake = threading.Event()
        self._answered = threading.Event()
        self._stopping = threading.Event()
        self._cells = cells
        self.asleep = True
        self._thread = threading.Thread(target=self._watch, name="atasks-watchdog", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A call has started: watch."""
        self.asleep = False
        self._wake.set()

    def stop(self) -> None:
        """End the thread, and return when it has ended."""
        self._stopping.set()
        self._wake.set()
        self._answered.set()
        self._thread.join()

    def _watch(self) -> None:
        idle = 0
        while not self._stopping.is_set():
            idle = 0 if self._cells[BUSY] else idle + 1
            if idle > IDLE_PROBES:
                self._wake.clear()
                self._cells[LAG_US] = 0
                self.asleep = True
                # else a call started in between and saw a thread that was awake, or `stop` woke it before it slept
                if not self._cells[BUSY] and not self._stopping.is_set():
                    self._wake.wait()
                self.asleep = False
                idle = 0
                continue
            self._answered.clear()
            asked = time.monotonic()
            self._cells[LAG_ASKED] = int(asked * 1_000_000)
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:  # the event loop is closed
                return
            if not self._answered.wait(LIMIT) and not self._stopping.is_set():
                self._report(asked)
            self._cells[LAG_US] = int((time.monotonic() - asked) * 1_000_000)
            self._cells[LAG_ASKED] = 0
            self._stopping.wait(PERIOD)

    def _report(self, asked: float) -> None:
        task = asyncio.current_task(self._loop)
        if task is None:  # the machine is busy, or a callback that belongs to no call
            self._until_answered()
            return
        frame = sys._current_frames().get(self._loop_thread)
        where = traceback.extract_stack(frame)[-1] if frame is not None else None
        place = f" at {where.filename}:{where.lineno} in {where.name}" if where is not None else ""
        del frame
        name, level = task.get_name(), logging.WARNING
        if not name.startswith(CALL):  # a task that a call made, or the program's own business
            name, level = f"something that is not a call ({name})", logging.INFO
        if not self._answered.wait(STILL_BLOCKED) and not self._stopping.is_set():
            logger.error(
                "%s has blocked the event loop for %.0f s now%s%s",
                name,
                time.monotonic() - asked,
                place,
                ADVICE if name.startswith(CALL) else "",
            )
            self._until_answered()
        logger.log(
            level,
            "%s blocked the event loop for %.0f ms%s: nothing else ran meanwhile, heartbeats included%s",
            name,
            (time.monotonic() - asked) * 1000,
            place,
            ADVICE if name.startswith(CALL) else "",
        )

    def _until_answered(self) -> None:
        while not self._answered.wait(STILL_BLOCKED):
            if self._loop.is_closed():  # it will never answer
                return
