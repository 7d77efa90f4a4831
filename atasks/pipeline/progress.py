"""The progress of a run: for a callable, as a bar per stage, or as lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atasks.pipeline.flow.crew import Crew
    from atasks.pipeline.flow.engine import Engine

__all__ = ["OnDemand", "Progress", "StageProgress", "Watch", "described", "watch"]

INTERVAL = 0.1
"""Seconds between two looks."""


@dataclass(frozen=True)
class StageProgress:
    """The progress of one stage."""

    name: str
    done: int
    """Items that it is done with."""
    waiting: int
    """Results that wait for the next stage."""
    ended: bool
    """True once the stage has ended, for whatever reason."""
    total: int | None = field(default=None, compare=False)
    """The number of items that there will be, where the source has a length and no earlier stage drops or adds
    any."""
    left: float | None = field(default=None, compare=False)
    """Seconds until it is done with all, if it goes on as it did so far; None where the total is not known, or
    nothing is done yet."""
    dropped: int = 0
    """Those of the items done that `skip_errors` has dropped."""


Progress = Callable[[tuple[StageProgress, ...]], object]
"""Called with the state of all stages when it has changed, at most ten times a second, and at the end."""


class OnDemand:
    """A progress callable for others who ask when they like: nobody looks at the run by itself, but at its end."""

    def __init__(self, show: Progress, looks: set[Callable[[], None]]) -> None:
        """While the run goes on, `looks` has the function that brings up to date what `show` was told."""
        self.show = show
        self.looks = looks

    def __call__(self, state: tuple[StageProgress, ...]) -> object:
        return self.show(state)


class Watch:
    """Looks at a run from time to time, or when it is asked to, until it is told to finish."""

    def __init__(self, engine: Engine, show: Progress, end: Callable[[], object] | None = None) -> None:
        self._engine = engine
        self._show = show
        self._end = end
        self._over = False
        self._shown: tuple[StageProgress, ...] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began: dict[Crew, float] = {}
        """When a stage was first seen at work, in event loop time."""
        self._asked = partial(copy_context().run, self._tell)
        if isinstance(show, OnDemand):
            show.looks.add(self._asked)
            self._tell()
        else:
            self._look()

    def finish(self) -> None:
        """Look for the last time. May be called again; by the event loop's thread only."""
        if self._over:
            return
        self._over = True
        if isinstance(self._show, OnDemand):
            self._show.looks.discard(self._asked)
        if self._timer is not None:
            self._timer.cancel()
        self._tell()
        if self._end is not None:
            self._end()

    def _look(self) -> None:
        self._timer = self._engine.loop.call_later(INTERVAL, self._look)
        self._tell()

    def _tell(self) -> None:
        state = tuple(
            StageProgress(
                crew.name,
                crew.done,
                len(crew.outlet.items),
                crew.outlet.ended,
                crew.total,
                self._left(crew),
                crew.dropped,
            )
            for crew in self._engine.crews
        )
        if state != self._shown:
            self._shown = state
            try:
                self._show(state)
            except Exception as error:
                self._engine.report(error, "the progress callable of a pipeline raised")

    def _left(self, crew: Crew) -> float | None:
        began = self._began.setdefault(crew, self._engine.loop.time())
        if crew.total is None or not crew.done:
            return None
        return (self._engine.loop.time() - began) / crew.done * max(crew.total - crew.done, 0)


def watch(engine: Engine, progress: Progress | bool) -> Watch:
    """Begin to watch: True shows bars, or lines where there is no terminal or `rich` is not installed."""
    if not isinstance(progress, bool):
        return Watch(engine, progress)
    if sys.stderr is None:  # it was closed when the interpreter began
        return Watch(engine, lambda state: None)
    if sys.stderr.isatty():
        try:
            return _bars(engine)
        except ImportError:  # the extra `progress` is not installed
            pass
    return Watch(engine, Lines())


def _bars(engine: Engine) -> Watch:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    bars = Bars(*columns, *times, console=Console(stderr=True), auto_refresh=False)
    tasks: list[Any] = []

    def show(state: tuple[StageProgress, ...]) -> None:
        for number, stage in enumerate(state):
            if number == len(tasks):
                tasks.append(bars.add_task(stage.name, total=None))
            total = stage.done if stage.ended else stage.total
            bars.update(tasks[number], completed=stage.done, total=total, description=_titled(stage))
        bars.refresh()

    bars.start()
    return Watch(engine, show, bars.stop)


class Lines:
    """Prints a line per stage to the standard error, at first often, then less and less so."""

    def __init__(self) -> None:
        self._next = 0.0
        self._pause = 1.0

    def __call__(self, state: tuple[StageProgress, ...]) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next and not all(stage.ended for stage in state):
            return
        self._pause = min(60.0, 2 * self._pause)
        self._next = now + self._pause
        print("; ".join(map(described, state)), file=sys.stderr, flush=True)


def described(stage: StageProgress) -> str:
    """Say in words how far a stage is."""
    of = "" if stage.total is None or stage.ended else f" of {stage.total}"
    left = "" if stage.left is None or stage.ended else f", {stage.left:.0f} s left"
    dropped = f", {stage.dropped} dropped" if stage.dropped else ""
    return f"{stage.name}: {stage.done}{of}{dropped}{left}"


def _titled(stage: StageProgress) -> str:
    return f"{stage.name} ({stage.dropped} dropped)" if stage.dropped else stage.name
