"""A stage that nobody writes: it keeps what goes by, for a run on the workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from atasks.pipeline.channel import Channel, Inlet, Mark, Token
from atasks.pipeline.crew import Crew
from atasks.pipeline.stages import Stage, Step

if TYPE_CHECKING:
    from atasks.pipeline.engine import Engine

__all__ = ["TapStage"]


@dataclass(frozen=True)
class TapStage(Stage):
    """Hands on what it gets. When the stage before it has ended, `keep` is awaited with all its items, in order of
    lineage, before this stage ends too: so stages are kept in their order."""

    tapped: str
    """The name of the stage before it."""
    keep: Callable[[list[Any]], Awaitable[None]]

    name = "kept"
    one_to_one = True
    resets = False

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        outlet = Channel(1)
        engine.add(_TapCrew(engine, self, inlet, outlet))
        return outlet


class _TapCrew(Crew):
    def __init__(self, engine: Engine, stage: TapStage, inlet: Inlet, outlet: Channel) -> None:
        super().__init__(engine, stage.tapped, inlet, outlet)
        self._keep = stage.keep

    async def work(self, index: int) -> None:
        tokens: list[Token] = []
        while (token := await self.inlet.take()) is not None:
            if type(token[1]) is not Mark:
                tokens.append(token)
            await self.outlet.put(token)
        if self.inlet.error is None:
            tokens.sort(key=itemgetter(0))
            await self._keep([value for _, value in tokens])
