"""The stage that gives every item to several pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atasks.pipeline.channel import END, Channel, Inlet, Mark
from atasks.pipeline.crew import Crew
from atasks.pipeline.stages import Stage, Step, depth_after, open_stages

if TYPE_CHECKING:
    from atasks.pipeline.engine import Engine

__all__ = ["ForkStage"]


@dataclass(frozen=True)
class ForkStage(Stage):
    """Gives every item to each of several pipelines, and what comes out of them as it comes.

    Items that one pipeline drops or multiplies, and another one does not, keep their place in the order: behind an
    item come the results of the first pipeline, then those of the second. Where a pipeline numbers its items anew,
    or one has more branches than another, the order is that in which they come.
    """

    pipelines: tuple[tuple[Stage, ...], ...]

    name = "fork"

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
        engine.add(_ForkCrew(engine, self.name, inlet, outlet, entries, marks))
        for position, (entry, steps) in enumerate(zip(entries, step.branches, strict=True)):
            exit_ = open_stages(engine, entry, steps)
            _ExitCrew(engine, exit_, outlet, inlet, position, step, numbers).start()
        return outlet


class _ForkCrew(Crew):
    """Hands out the items."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        inlet: Inlet,
        outlet: Channel,
        entries: Sequence[Channel],
        marks: bool,
    ) -> None:
        super().__init__(engine, name, inlet, outlet)
        self._entries = entries
        self._marks = marks
        for entry in entries:
            entry.add_producer(self._stop_if_unwanted)

    async def work(self, index: int) -> None:
        try:
            while (token := await self.inlet.take()) is not None:
                lineage, value = token
                for entry in self._entries:
                    await entry.put(token)
                self.done += 1
                if self._marks and type(value) is not Mark:
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
        self._numbers = numbers

    async def work(self, index: int) -> None:
        depth, numbers = self._depth, self._numbers
        while (token := await self.inlet.take()) is not None:
            lineage, value = token
            if numbers is None:
                await self.outlet.put(((*lineage[:depth], self._position, *lineage[depth:]), value))
            elif type(value) is not Mark:
                await self.outlet.room()
                await self.outlet.put(((next(numbers),), value))
        if self.inlet.error is not None and self.inlet.error is not self._origin.error:
            self.fail(self.inlet.error, None)  # its own, and not one that all pipelines will come to
