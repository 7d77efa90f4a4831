"""Stages that put items in order, and that gather them into lists."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from atasks.pipeline.channel import Channel, Inlet, Mark, Token
from atasks.pipeline.crew import Crew
from atasks.pipeline.ordering import Window
from atasks.pipeline.stages import Stage, Step

if TYPE_CHECKING:
    from atasks.pipeline.engine import Engine

__all__ = ["DEFAULT_WINDOW", "CollectStage", "OrderedStage"]

DEFAULT_WINDOW = 1024


@dataclass(frozen=True)
class OrderedStage(Stage):
    """Gives items in the order of their lineage, each as soon as it is its turn."""

    window: int = DEFAULT_WINDOW

    name = "ordered"
    one_to_one = True
    resets = False

    def make_window(self) -> Window:
        return Window(self.window)

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        assert step.own is not None
        outlet = Channel(1)
        engine.add(_OrderedCrew(engine, self.name, inlet, outlet, step.own, marks=bool(step.windows)))
        return outlet


class _OrderedCrew(Crew):
    def __init__(
        self, engine: Engine, name: str, inlet: Inlet, outlet: Channel, window: Window, marks: bool
    ) -> None:
        super().__init__(engine, name, inlet, outlet)
        self._window = window
        self._marks = marks

    async def work(self, index: int) -> None:
        window, outlet = self._window, self.outlet
        while (token := await self.inlet.take()) is not None:
            for ready in window.sequencer.push(token):
                if type(ready[1]) is not Mark:
                    self.done += 1
                    await outlet.put(ready)
                elif self._marks:
                    await outlet.put(ready)
            window.moved()


@dataclass(frozen=True)
class CollectStage(Stage):
    """Gathers items into lists, in the order of their lineage."""

    size: int | None = None
    """Items in a list; None: all of them in one."""

    name = "collect"

    @property
    def makes_one(self) -> bool:  # type: ignore[override]
        return self.size is None

    def make_window(self) -> Window | None:
        return None if self.size is None else Window(max(DEFAULT_WINDOW, self.size))

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        outlet = Channel(1)
        engine.add(_CollectCrew(engine, self.name, inlet, outlet, self.size, step.own))
        return outlet

    def check_first(self) -> None:
        raise ValueError("collect() gathers a stream, and is the first stage: write source | collect()")


class _CollectCrew(Crew):
    def __init__(
        self,
        engine: Engine,
        name: str,
        inlet: Inlet,
        outlet: Channel,
        size: int | None,
        window: Window | None,
    ) -> None:
        super().__init__(engine, name, inlet, outlet)
        self._size = size
        self._window = window

    async def work(self, index: int) -> None:
        if self._window is not None and self._size is not None:
            await self._batches(self._window, self._size)
            return
        tokens: list[Token] = []
        while (token := await self.inlet.take()) is not None:
            if type(token[1]) is not Mark:
                tokens.append(token)
                self.done += 1
        if self.inlet.error is None:
            tokens.sort(key=itemgetter(0))
            await self.outlet.put(((0,), [value for _, value in tokens]))

    async def _batches(self, window: Window, size: int) -> None:
        batch: list[Any] = []
        number = 0
        while (token := await self.inlet.take()) is not None:
            for _, value in window.sequencer.push(token):
                if type(value) is Mark:
                    continue
                batch.append(value)
                self.done += 1
                if len(batch) == size:
                    await self.outlet.put(((number,), batch))
                    batch, number = [], number + 1
            window.moved()
        if batch:
            await self.outlet.put(((number,), batch))
