"""A stage that nobody writes: it keeps what goes by, for a run on the workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from atasks.pipeline.flow.channel import Channel, Inlet, Mark, Token
from atasks.pipeline.flow.failing import deliverable
from atasks.pipeline.pipeline import Stage
from atasks.pipeline.plan import Step

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine

__all__ = ["TapStage"]


@dataclass(frozen=True)
class TapStage(Stage):
    """Hands on what it gets, and holds nothing back. When the stage before it has ended, `keep` is awaited with
    its items, in order of lineage, and the stage behind it ends after that: so stages are kept in their order. If
    it raises, the run ends with that at once, whatever the stages behind it are doing. If the run ends while the
    stage before it still gives items, `left` is called with those so far."""

    keep: Callable[[list[Any]], Awaitable[None]]
    left: Callable[[list[Any]], object]

    name = "kept"
    one_to_one = True
    resets = False

    def open(self, engine: Engine, inlet: Inlet, step: Step) -> Inlet:
        assert isinstance(inlet, Channel), "it is behind a stage"
        return _TapInlet(engine, inlet, self)


class _TapInlet:
    """Takes from another inlet, and remembers what it took."""

    called = False

    def __init__(self, engine: Engine, inlet: Channel, stage: TapStage) -> None:
        self.items: deque[Token] = deque()  # stays empty, so that every token goes through `take`
        self.putters: deque[asyncio.Future[None]] = deque()
        self.error: BaseException | None = None
        self._engine = engine
        self._inlet = inlet
        self._stage = stage
        self._taken: list[Token] = []
        self._stopped = False
        self._keeping: asyncio.Task[None] | None = None
        inlet.on_end = self._ended

    async def take(self) -> Token | None:
        token = await self._inlet.take()
        if token is None:
            if self._keeping is not None:
                await asyncio.wait([self._keeping])
            self.error = self._inlet.error
        elif self._keeping is None:
            self._taken.append(token)
        return token

    def _ended(self) -> None:
        """All is there, if not taken yet: the workers of the stage behind may be busy for long."""
        self._keeping = self._engine.spawn(self._keep(self._values()))
        self._taken.clear()

    def _values(self) -> list[Any]:
        """Return the items so far, in order of lineage."""
        tokens = [token for token in (*self._taken, *self._inlet.items) if type(token[1]) is not Mark]
        return [value for _, value in sorted(tokens, key=itemgetter(0))]

    async def _keep(self, values: list[Any]) -> None:
        try:
            await self._stage.keep(values)
        except Exception as error:
            self._engine.fail(deliverable(error))

    def pull(self) -> Token | None:
        return None

    def lend(self, most: int) -> list[Token]:
        return []

    def settle(self, begun: int, back: Sequence[Token]) -> None:
        pass  # nothing is lent

    def wake_putter(self) -> None:
        pass  # `take` of the other inlet does

    def wake_putters(self) -> None:
        pass

    def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        elif self._inlet.error is None and not self._stopped:
            self._stage.left(self._values())
        self._stopped = True
        self._inlet.stop()
