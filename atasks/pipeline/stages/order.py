"""Stages that put items in order, and that gather them into lists."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from atasks.pipeline.flow.channel import Channel, Inlet, Mark, Token
from atasks.pipeline.flow.crew import Crew
from atasks.pipeline.flow.ordering import Admission, Window, admitted
from atasks.pipeline.pipeline import Stage
from atasks.pipeline.plan import Step

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine

__all__ = ["DEFAULT_WINDOW", "CollectStage", "OrderedStage"]

DEFAULT_WINDOW = 1024


@dataclass(frozen=True)
class OrderedStage(Stage):
    """Gives items in the order of their lineage, each as soon as it is its turn."""

    window: int = DEFAULT_WINDOW

    name = "ordered"
    counts = True
    one_to_one = True
    resets = False

    def make_window(self) -> Window:
        return Window(self.window)

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        assert step.own is not None
        outlet = Channel(1)
        engine.add(_OrderedCrew(engine, self.name, inlet, outlet, step.own, step.windows))
        return outlet


class _SequencingCrew(Crew):
    """Puts items in order, for which `window` bounds those that have entered."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        inlet: Inlet,
        outlet: Channel,
        window: Window,
        later: Sequence[Admission],
    ) -> None:
        super().__init__(engine, name, inlet, outlet)
        self.window = window
        self.later = later
        """The windows of later stages that put these items in order."""

    def stop(self) -> None:
        super().stop()
        self.window.open()  # other stages may go on, and nobody here puts their items in order

    async def work(self, index: int) -> None:
        await self.sequence()
        if self.inlet.error is None:
            self.window.sequencer.end()

    @abstractmethod
    async def sequence(self) -> None:
        """Put into the outlet what comes of the items, in their order."""


class _OrderedCrew(_SequencingCrew):
    async def sequence(self) -> None:
        window, outlet, marks = self.window, self.outlet, bool(self.later)
        while (token := await self.inlet.take()) is not None:
            for ready in window.sequencer.push(token):
                if type(ready[1]) is not Mark:
                    self.finished += 1
                    await outlet.put(ready)
                elif marks:
                    await outlet.put(ready)
            window.moved()


@dataclass(frozen=True)
class CollectStage(Stage):
    """Gathers items into lists, in the order of their lineage."""

    size: int | None = None
    """Items in a list; None: all of them in one."""
    seconds: float | None = None
    """The seconds for which a list waits for more items, from its first one on; None: for as long as it takes."""

    name = "collect"
    counts = True

    @property
    def makes_one(self) -> bool:  # type: ignore[override]
        return self.size is None

    def make_window(self) -> Window | None:
        return None if self.size is None else Window(max(DEFAULT_WINDOW, self.size))

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        outlet = Channel(1)
        if self.size is None:
            engine.add(_CollectCrew(engine, self.name, inlet, outlet))
        else:
            assert step.own is not None
            engine.add(
                _BatchCrew(engine, self.name, inlet, outlet, step.own, step.windows, self.size, self.seconds)
            )
        return outlet

    def check_first(self) -> None:
        raise ValueError("collect() gathers a stream, and is the first stage: write source | collect()")


class _CollectCrew(Crew):
    async def work(self, index: int) -> None:
        tokens: list[Token] = []
        while (token := await self.inlet.take()) is not None:
            if type(token[1]) is not Mark:
                tokens.append(token)
                self.finished += 1
        if self.inlet.error is None:
            tokens.sort(key=itemgetter(0))
            await self.outlet.put(((0,), [value for _, value in tokens]))


class _BatchCrew(_SequencingCrew):
    def __init__(
        self,
        engine: Engine,
        name: str,
        inlet: Inlet,
        outlet: Channel,
        window: Window,
        later: Sequence[Admission],
        size: int,
        seconds: float | None,
    ) -> None:
        super().__init__(engine, name, inlet, outlet, window, later)
        self._size = size
        self._seconds = seconds
        self._due = 0.0
        """When the list has waited for long enough, in event loop time."""
        self._number = 0
        self._batch: list[Any] = []

    async def sequence(self) -> None:
        window = self.window
        while (token := await self._take()) is not None:
            for _, value in window.sequencer.push(token):
                if type(value) is not Mark:
                    if not self._batch and self._seconds is not None:
                        self._due = self.engine.loop.time() + self._seconds
                    self._batch.append(value)
                    self.finished += 1
                    if len(self._batch) == self._size:
                        await self._emit()
            window.moved()
        if self._batch:
            await self._emit()

    async def _take(self) -> Token | None:
        """The next token; the list that has waited for long enough is emitted meanwhile."""
        if self._seconds is None:
            return await self.inlet.take()
        taking = self.engine.spawn(self.inlet.take())
        try:
            while not taking.done():
                left = self._due - self.engine.loop.time() if self._batch else None
                if left is not None and left <= 0:
                    await self._emit()
                else:
                    await asyncio.wait((taking,), timeout=left)
            return taking.result()
        finally:
            taking.cancel()

    async def _emit(self) -> None:
        lineage = (self._number,)
        await admitted(self.later, lineage)
        await self.outlet.put((lineage, self._batch))
        self._batch = []
        self._number += 1
