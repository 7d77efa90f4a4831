"""The values of an inlet as an iterator: for the function of a join, and for whoever consumes a run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any

from atasks.pipeline.flow.channel import Inlet, Lineage, Mark, Token

if TYPE_CHECKING:
    from atasks.pipeline.flow.engine import Engine

__all__ = ["Abandoned", "AsyncItems", "SyncItems"]


class Abandoned(BaseException):
    """Raised in a thread that waits for an item of a run that is over. Nobody hears of it."""


class AsyncItems:
    """The values, for code on the event loop. Raises the error of the stream at its end, if there is one."""

    at_end = False
    """True once the end was taken."""

    def __init__(self, inlet: Inlet) -> None:
        self._inlet = inlet
        self.lineage: Lineage | None = None
        """The lineage of the latest value."""

    def __aiter__(self) -> AsyncItems:
        return self

    async def __anext__(self) -> Any:
        inlet = self._inlet
        while True:
            if inlet.items:
                token: Token | None = inlet.items.popleft()
                if inlet.putters:
                    inlet.wake_putter()
            else:
                token = await inlet.take()
            if token is None:
                self.at_end = True
                if inlet.error is not None:
                    raise inlet.error
                raise StopAsyncIteration
            if type(token[1]) is not Mark:
                self.lineage = token[0]
                return token[1]


class SyncItems:
    """The values, for code in another thread than that of the event loop."""

    at_end = False
    """True once the end was taken."""

    def __init__(self, engine: Engine, inlet: Inlet) -> None:
        self._engine = engine
        self._inlet = inlet
        self.lineage: Lineage | None = None
        """The lineage of the latest value."""
        self._told = False
        """The event loop has been told to wake those that wait for room, and has not done it."""

    def __iter__(self) -> SyncItems:
        return self

    def __next__(self) -> Any:
        inlet = self._inlet
        while True:
            try:
                token: Token | None = inlet.items.popleft()
            except IndexError:
                token = self._wait()
            else:
                if inlet.putters and not self._told:
                    self._told = True
                    self._engine.call_soon(self._wake)
            if token is None:
                self.at_end = True
                if inlet.error is not None:
                    raise inlet.error
                raise StopIteration
            if type(token[1]) is not Mark:
                self.lineage = token[0]
                return token[1]

    def _wake(self) -> None:
        self._told = False
        self._inlet.wake_putters()

    def _wait(self) -> Token | None:
        try:
            return self._engine.run_from_thread(self._inlet.take).result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise Abandoned from None
