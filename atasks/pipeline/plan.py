"""The plan of a run: its stages, and the bounds that apply to what enters each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atasks.pipeline.flow.channel import Channel, Inlet
from atasks.pipeline.flow.crew import Crew
from atasks.pipeline.flow.items import AsyncItems
from atasks.pipeline.flow.ordering import Admission, Window, Within, admitted

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine
    from atasks.pipeline.pipeline import Stage

__all__ = ["CustomCrew", "Step", "depth_after", "open_stages", "plan"]


@dataclass
class Step:
    """A stage in the plan of one run."""

    stage: Stage
    windows: list[Admission]
    """Those of later stages that put these items in order."""
    own: Window | None
    depth: int
    """The length of the lineages that enter the step."""
    branches: list[list[Step]] = field(default_factory=list)
    """The plans of a fork."""
    entering: list[Admission] = field(default_factory=list)
    """The windows that apply to what enters it."""


def depth_after(stages: Iterable[Stage], depth: int) -> int:
    """Return the length of lineages behind these stages, if it is `depth` before them."""
    for stage in stages:
        depth = 1 if stage.resets else depth + stage.deepens
    return depth


def plan(stages: Sequence[Stage], after: Sequence[Admission] = (), depth: int = 1) -> list[Step]:
    """The steps of a run: `entering` of the first one is what applies to the source."""
    depths = [depth]
    for stage in stages:
        depths.append(depth_after((stage,), depths[-1]))
    steps: list[Step] = []
    windows = list(after)
    for stage, entry in zip(reversed(stages), depths[-2::-1], strict=True):
        step = Step(stage, windows, stage.make_window(), entry)
        through = [] if stage.resets else windows
        step.entering = [*through] if step.own is None else [step.own, *through]
        for position, branch in enumerate(stage.branches()):
            outer = [Within(window, entry, position) for window in through]
            step.branches.append(plan(branch, outer, entry))
            step.entering += [window for window in step.branches[-1][0].entering if window not in outer]
        steps.append(step)
        windows = step.entering
    return steps[::-1]


def open_stages(engine: Engine, inlet: Inlet, steps: Iterable[Step], total: int | None = None) -> Inlet:
    """Start the stages, one behind the other, and return where the items of the last one come out. `total` is how
    many go in, if that is known."""
    for step in steps:
        stage, first = step.stage, len(engine.crews)
        inlet = stage.open(engine, inlet, step)
        for crew in engine.crews[first : first + 1]:  # the crews behind it belong to the pipelines in a fork
            crew.total = total if stage.counts else None
        total = 1 if stage.makes_one else total if stage.one_to_one else None
    return inlet


class CustomCrew(Crew):
    """One worker that runs a `Stage.run`."""

    def __init__(
        self, engine: Engine, stage: Stage, inlet: Inlet, outlet: Channel, windows: Sequence[Admission]
    ) -> None:
        super().__init__(engine, stage.name, inlet, outlet)
        self._stage = stage
        self._windows = windows

    async def work(self, index: int) -> None:
        stream = AsyncItems(self.inlet)
        self.streams = (stream,)
        number = 0
        made = self._stage.run(stream)
        try:
            async for item in made:
                if self._windows:
                    await admitted(self._windows, (number,))
                await self.outlet.put(((number,), item))
                number += 1
                self.finished += 1
        finally:
            aclose = getattr(made, "aclose", None)
            if aclose is not None:
                await aclose()
