"""Putting items in the order of their lineage again, as they come, and keeping what waits for that in bounds."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterator, Sequence

from atasks.pipeline.channel import END, Lineage, Token

__all__ = ["Sequencer", "Window", "admitted"]


class Sequencer:
    """Takes tokens in any order and gives them back in the order of their lineage, each as soon as it is its turn.

    Every lineage must come, as a value, as a gap, or as children with an end behind them: what is missing is
    waited for. It never refuses a token: what waits in it is bounded where items are admitted (see `Window`).
    """

    def __init__(self) -> None:
        self.expected: Lineage = (0,)
        """Whose turn it is: this lineage, or its first descendant."""
        self._waiting: list[tuple[Lineage, int, Token]] = []
        self._numbers = itertools.count()  # so that values are never compared

    def push(self, token: Token) -> Iterator[Token]:
        """Take a token; yields those whose turn has come, marks too. Nothing is lost if it is not used up."""
        heapq.heappush(self._waiting, (token[0], next(self._numbers), token))
        return self._ready()

    def _ready(self) -> Iterator[Token]:
        waiting = self._waiting
        while waiting and self._is_next(waiting[0][0]):
            lineage, _, token = heapq.heappop(waiting)
            done = lineage[:-1] if token[1] is END else lineage
            self.expected = (*done[:-1], done[-1] + 1)
            yield token

    def _is_next(self, lineage: Lineage) -> bool:
        depth = len(self.expected)
        return lineage[:depth] == self.expected and not any(lineage[depth:])


class Window:
    """How far ahead of the item whose turn it is others may be admitted: `size` items of the source, or children
    of the branch that it belongs to.

    Only the admission waits. Later stages never do for the sake of the order, so what the order waits for is never
    behind something that waits for it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sequencer = Sequencer()
        self._waiters: list[asyncio.Future[None]] = []

    def admits(self, lineage: Lineage) -> bool:
        """Whether an item of this lineage may enter."""
        expected = self.sequencer.expected
        depth = len(lineage) - 1
        if len(expected) > depth:
            return expected[:depth] != lineage[:depth] or lineage[depth] < expected[depth] + self.size
        begins = lineage[: len(expected)] == expected and not any(lineage[len(expected) : depth])
        return not begins or lineage[depth] < self.size

    async def admit(self, lineage: Lineage) -> None:
        """Wait until an item of this lineage may enter."""
        while not self.admits(lineage):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def moved(self) -> None:
        """The order has gone on: let those who wait look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


async def admitted(windows: Sequence[Window], lineage: Lineage) -> None:
    """Wait until every window admits an item of this lineage."""
    for window in windows:
        if not window.admits(lineage):
            await window.admit(lineage)
