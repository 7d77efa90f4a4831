"""The stage that gives every item to several pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from atasks.pipeline.flow.channel import END, GAP, PAST, Channel, Inlet, Mark, Token
from atasks.pipeline.flow.crew import Crew
from atasks.pipeline.flow.ordering import admitted, inserted
from atasks.pipeline.pipeline import Stage
from atasks.pipeline.plan import Step, depth_after, open_stages

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine

__all__ = ["MAX_WAYS", "ForkStage"]

MAX_WAYS: Final = 100
"""Pipelines that a fork may have."""


@dataclass(frozen=True)
class ForkStage(Stage):
    """Gives every item to each of several pipelines, and what comes out of them as it comes.

    Items that one pipeline drops or multiplies, and another one does not, keep their place in the order: behind an
    item come the results of the first pipeline, then those of the second. Where a pipeline numbers its items anew,
    or one has more branches than another, the order is that in which they come.
    """

    pipelines: tuple[tuple[Stage, ...], ...]

    name = "fork"
    counts = True

    @property
    def resets(self) -> bool:  # type: ignore[override]
        depths = {depth_after(stages, 1) for stages in self.pipelines}
        return len(depths) > 1 or any(stage.resets for stages in self.pipelines for stage in stages)

    @property
    def deepens(self) -> int:  # type: ignore[override]
        return depth_after(self.pipelines[0], 1)

    def branches(self) -> Sequence[Sequence[Stage]]:
        return self.pipelines

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        outlet = Channel(0)
        numbers = itertools.count() if self.resets else None
        entries = [Channel(0) for _ in step.branches]
        marks = bool(step.windows) and numbers is None
        sorting = [entry for entry, steps in zip(entries, step.branches, strict=True) if _sorts(steps)]
        engine.add(_ForkCrew(engine, self.name, inlet, outlet, entries, sorting, marks))
        for position, (entry, steps) in enumerate(zip(entries, step.branches, strict=True)):
            exit_ = open_stages(engine, entry, steps)
            _ExitCrew(engine, exit_, outlet, inlet, position, step, numbers).start()
        return outlet


def _sorts(steps: Iterable[Step]) -> bool:
    """Return True if one of these steps puts items in order, or one of the pipelines in them."""
    return any(step.own is not None or any(map(_sorts, step.branches)) for step in steps)


def _passes_by(token: Token, depth: int) -> bool:
    """Return True for a mark of a branch before the fork: it stands for no item, so no pipeline makes anything
    of it. Only the order within a pipeline needs it."""
    lineage, value = token
    return type(value) is Mark and (len(lineage) < depth or (value is not GAP and len(lineage) == depth))


class _ForkCrew(Crew):
    """Hands out the items. Where a later stage puts them in order, the mark of each one's end follows, and marks
    that pass by go on from here."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        inlet: Inlet,
        outlet: Channel,
        entries: Sequence[Channel],
        sorting: Sequence[Channel],
        marked: bool,
    ) -> None:
        super().__init__(engine, name, inlet, outlet)
        self._entries = entries
        self._sorting = sorting
        """Those of the pipelines that put items in order themselves, and need marks for that."""
        self._marked = marked
        for entry in entries:
            entry.add_producer(self._stop_if_unwanted)

    async def work(self, index: int) -> None:
        try:
            while (token := await self.inlet.take()) is not None:
                lineage, value = token
                if type(value) is Mark:
                    # A gap goes on from here, and out of no pipeline: many forks would make many of one.
                    inner = (lineage, PAST if value is GAP else value)
                    for entry in self._sorting:
                        await entry.put(inner)
                    if self._marked:
                        await self.outlet.put(token)
                    continue
                for entry in self._entries:
                    await entry.put(token)
                self.finished += 1
                if self._marked:
                    await self.outlet.put(((*lineage, len(self._entries)), END))
        finally:
            for entry in self._entries:
                entry.close(self.inlet.error)

    def _stop_if_unwanted(self) -> None:
        """A pipeline that wants no more stops nothing while another one does."""
        if all(entry.stopped for entry in self._entries):
            self.stop()


class _ExitCrew(Crew):
    """Takes what comes out of one of the pipelines."""

    def __init__(
        self,
        engine: Engine,
        inlet: Inlet,
        outlet: Channel,
        origin: Inlet,
        position: int,
        step: Step,
        numbers: Iterator[int] | None,
    ) -> None:
        super().__init__(engine, step.stage.name, inlet, outlet)
        self._origin = origin
        self._position = position
        self._depth = step.depth
        self._windows = step.windows
        self._numbers = numbers

    async def work(self, index: int) -> None:
        depth, numbers = self._depth, self._numbers
        while (token := await self.inlet.take()) is not None:
            lineage, value = token
            if numbers is None:
                if not _passes_by(token, depth):
                    await self.outlet.put((inserted(lineage, depth, self._position), value))
            elif type(value) is not Mark:
                lineage = (next(numbers),)
                await admitted(self._windows, lineage)
                await self.outlet.put((lineage, value))
        if self.inlet.error is not None and self.inlet.error is not self._origin.error:
            # The error is its own: one from before the fork reaches the outlet once, by another way.
            self.fail(self.inlet.error, None)
