"""Putting items in the order of their lineage again, as they come, and keeping what waits for that in bounds."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from atasks.errors import PipelineError
from atasks.pipeline.flow.channel import END, Lineage, Token

__all__ = ["Admission", "Sequencer", "Window", "Within", "admitted", "inserted"]


HELD_PER_PLACE: Final = 1000
"""Items that may wait for their turn, for each place of the window."""


class Sequencer:
    """Takes tokens in any order and gives them back in the order of their lineage, each as soon as it is its turn.

    Every lineage must come, as a value, as a gap, or as children with an end behind them: what is missing is
    waited for. What waits in it is bounded where items are admitted (see `Window`), but for the children of
    branches whose turn has not come: nothing may wait for the sake of those. There may be so many of them that no
    branch which ends in a reasonable time makes more.
    """

    def __init__(self, most: int = sys.maxsize) -> None:
        """`most`: of the tokens that wait."""
        self._most = most
        self.expected: Lineage = (0,)
        """The lineage whose turn it is, or the turn of its first descendant."""
        self._waiting: list[tuple[Lineage, int, Token]] = []
        self._numbers = itertools.count()  # so that values are never compared

    def push(self, token: Token) -> Iterable[Token]:
        """Take a token; gives those whose turn has come, marks too. Raises PipelineError if too many wait."""
        if not self._is_next(token[0]):
            if len(self._waiting) >= self._most:
                raise PipelineError(
                    f"{self._most} items wait for their turn behind item {self.expected}: a branch that does not "
                    "end cannot be put in order behind another item. Bound it, put it in order where nothing else "
                    "is, or give a larger window: ordered(window)"
                )
            heapq.heappush(self._waiting, (token[0], next(self._numbers), token))
            return ()
        if not self._waiting:
            self._advance(token)
            return (token,)
        heapq.heappush(self._waiting, (token[0], next(self._numbers), token))
        return self._ready()

    def end(self) -> None:
        """No more will come. Raises PipelineError if there are still tokens whose turn never came."""
        if self._waiting:
            raise PipelineError(
                f"item {self.expected} never came, so the {len(self._waiting)} behind it have no place in the "
                "order: this is a fault of atasks, please report it with the pipeline"
            )

    def _ready(self) -> Iterator[Token]:
        waiting = self._waiting
        while waiting and self._is_next(waiting[0][0]):
            token = heapq.heappop(waiting)[2]
            self._advance(token)
            yield token

    def _advance(self, token: Token) -> None:
        lineage = token[0][:-1] if token[1] is END else token[0]
        self.expected = (*lineage[:-1], lineage[-1] + 1)

    def _is_next(self, lineage: Lineage) -> bool:
        depth = len(self.expected)
        return lineage[:depth] == self.expected and not any(lineage[depth:])


class Admission(Protocol):
    """Says which items may enter."""

    def admits(self, lineage: Lineage) -> bool:
        """Return True if an item of this lineage may enter."""
        ...

    async def admit(self, lineage: Lineage) -> None:
        """Wait until an item of this lineage may enter."""


class Window:
    """The bound on items that are admitted ahead of the one whose turn it is: `size` items of the source, or
    children of the branch that the item belongs to.

    Only the admission waits. Later stages never do for the sake of the order, so what the order waits for is never
    behind something that waits for it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sequencer = Sequencer(size * HELD_PER_PLACE)
        self._open = False
        self._waiters: list[asyncio.Future[None]] = []

    def admits(self, lineage: Lineage) -> bool:
        if self._open:
            return True
        expected = self.sequencer.expected
        depth = len(lineage) - 1
        if len(expected) > depth:
            return expected[:depth] != lineage[:depth] or lineage[depth] < expected[depth] + self.size
        begins = lineage[: len(expected)] == expected and not any(lineage[len(expected) : depth])
        return not begins or lineage[depth] < self.size

    async def admit(self, lineage: Lineage) -> None:
        while not self.admits(lineage):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def moved(self) -> None:
        """The order has gone on: let those who wait look again."""
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def open(self) -> None:
        """Nothing is put in order here any more: let everything in."""
        self._open = True
        self.moved()


class Within:
    """A window behind a fork, for the items within one of its pipelines: those have not been given the number of
    the pipeline yet, by which the order behind the fork knows them."""

    def __init__(self, window: Admission, depth: int, position: int) -> None:
        self._window = window
        self._depth = depth
        self._position = position

    def admits(self, lineage: Lineage) -> bool:
        return self._window.admits(inserted(lineage, self._depth, self._position))

    async def admit(self, lineage: Lineage) -> None:
        await self._window.admit(inserted(lineage, self._depth, self._position))


def inserted(lineage: Lineage, depth: int, number: int) -> Lineage:
    """The lineage with another number at this depth."""
    return (*lineage[:depth], number, *lineage[depth:])


async def admitted(windows: Sequence[Admission], lineage: Lineage) -> None:
    """Wait until every window admits an item of this lineage."""
    for window in windows:
        if not window.admits(lineage):
            await window.admit(lineage)
