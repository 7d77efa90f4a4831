"""The reports of a run, on their way to who watches its call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from atasks.progress import PAUSE_SECONDS
from atasks.wire import VERSION, Report

if TYPE_CHECKING:
    from atasks.progress import Progress
    from atasks.worker.held_call import HeldCall

__all__ = ["Reporter"]


class Reporter:
    """Hands on the progress of one run: the latest one each time, ten times a second at most, and the last one
    before the run ends.

    It keeps one report, however many there are, and waits for nobody.
    """

    __slots__ = ("_awake", "_run", "_timer", "_told")

    def __init__(self, run: HeldCall) -> None:
        self._run = run
        self._told: Progress | None = None
        """The one that was handed on last."""
        self._timer: asyncio.TimerHandle | None = None
        self._awake = False
        """True if it looks soon for what is new."""

    def changed(self) -> None:
        """There is a new report. Called in any thread."""
        if not self._awake:
            self._awake = True
            if asyncio._get_running_loop() is self._run.loop:
                self._look()
            else:
                self._run.loop.call_soon_threadsafe(self._look)

    def finish(self) -> None:
        """Hand on the last one: the run ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell()

    def _look(self) -> None:
        if self._run.ended:
            return
        self._timer = None
        self._awake = False  # before it looks: what a thread says from now on wakes it again
        if self._tell():
            self._awake = True
            self._timer = self._run.loop.call_later(PAUSE_SECONDS, self._look)

    def _tell(self) -> bool:
        """Hand the latest report on, unless that was done."""
        run, progress = self._run, self._run.progress
        if progress is None or progress is self._told:
            return False
        self._told = progress
        call = run.call
        if call.reports and "reports" in run.worker.transport.supports:
            done, total, note, attempt, _ = progress
            run.deliveries[-1].send(Report(VERSION, call.id, done, total, note, attempt))
        if run.worker.watching is not None:
            run.worker.watching.reported(run, progress)
        return True
