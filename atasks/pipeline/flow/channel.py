"""The queue between two stages: bounded, of tokens, with direct access for the loops that are hot.

A token is `(lineage, value)`. A value that is a `Mark` stands for none: `GAP` where an item was dropped, `PAST`
for a gap from before a fork, within its pipelines, and `END` behind the last child of a branch, at the index that
the next child would have had. Marks travel only where a later stage puts items in order again, so that it does not
wait for what will never come.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Protocol

__all__ = ["END", "GAP", "PAST", "Channel", "Inlet", "Lineage", "Mark", "Token"]

Lineage = tuple[int, ...]
Token = tuple[Lineage, Any]


class Mark(enum.Enum):
    """Stands in a token for a value that there is not."""

    GAP = enum.auto()
    PAST = enum.auto()
    END = enum.auto()


GAP = Mark.GAP
PAST = Mark.PAST
END = Mark.END


class Inlet(Protocol):
    """The end of a `Channel`, or the source, from which the workers of a stage take tokens."""

    items: deque[Token]
    """Items that can be taken without waiting. Whoever takes from it directly wakes `putters` afterwards."""
    putters: deque[asyncio.Future[None]]
    called: bool
    """True if the only item is a `Start`: the arguments of a pipeline that was called."""
    error: BaseException | None
    """Why the stream ended, once `take` has given None; None for an ordinary end."""

    async def take(self) -> Token | None:
        """The next token, or None at the end of the stream."""

    def pull(self) -> Token | None:
        """A token that can be had at once, from any thread; None: there may be one for `take`. Whoever pulls has
        the event loop wake `putters` afterwards."""

    def lend(self, most: int) -> list[Token]:
        """Return so many tokens at most that can be had at once, from any thread. They keep their room, and the
        stream does not end, until the event loop calls `settle`."""
        ...

    def settle(self, begun: int, back: Sequence[Token]) -> None:
        """So many tokens that were lent are taken for good, and those of `back` are to be taken again."""

    def wake_putter(self) -> None:
        """Let one of `putters` go on, if there is room."""

    def wake_putters(self) -> None:
        """Let all of `putters` go on for which there is room."""

    def stop(self) -> None:
        """Nothing will be taken any more: end at once all that produces for it. May be called again."""


class Channel:
    """Tokens on their way from one stage to the next, at most `capacity` of them.

    With capacity 0 a token is put only while somebody waits for it. The end and the error come behind all tokens.
    Not safe for threads, but that tokens may be taken from `items` by other threads, and be put there: whoever
    does has the event loop wake those that wait for it.
    """

    called = False

    def __init__(self, capacity: float) -> None:
        self.items: deque[Token] = deque()
        self.capacity = capacity
        """Between `least` and `most`: `fit` changes it."""
        self.least = self.most = capacity
        self.error: BaseException | None = None
        self.ended = False
        self.stopped = False
        self.loop = asyncio.get_running_loop()
        self.takers: deque[asyncio.Future[None]] = deque()
        self.putters: deque[asyncio.Future[None]] = deque()
        self.places: deque[None] = deque()
        """One for each token that is sure to be put, and for which there is room therefore, and for each that is
        lent. Any thread changes it."""
        self.lent: deque[None] = deque()
        """One for each token that is lent. Any thread changes it."""
        self.on_end: Callable[[], object] | None = None
        """Called when all has been put, and nothing has failed."""
        self._stops: list[Callable[[], None]] = []
        self._producers = 0

    # -- taking

    async def take(self) -> Token | None:
        while True:
            try:  # another thread may have taken what was there a moment ago
                token = self.items.popleft()
            except IndexError:
                if self.ended and (not self.lent or self.stopped):
                    return None
            else:
                if self.putters:
                    self.wake_putter()
                return token
            waiter = self.loop.create_future()
            self.takers.append(waiter)
            if self.items:  # another thread has put one meanwhile, and may not have seen this one wait
                self.wake_taker()
            if self.putters:
                self.wake_putter()
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self.wake_taker()  # it was woken for a token that it will not take
                elif waiter in self.takers:
                    self.takers.remove(waiter)
                raise

    def pull(self) -> Token | None:
        try:
            return self.items.popleft()
        except IndexError:
            return None

    def lend(self, most: int) -> list[Token]:
        number = min(most, len(self.items))
        self.places.extend(repeat(None, number))
        self.lent.extend(repeat(None, number))
        tokens: list[Token] = []
        try:
            for _ in range(number):
                tokens.append(self.items.popleft())  # noqa: PERF401 - those before an error count
        except IndexError:  # another thread was quicker
            self.loop.call_soon_threadsafe(self.settle, number - len(tokens), ())
        if self.putters:  # one may have begun to wait while both counted
            self.loop.call_soon_threadsafe(self.wake_putters)
        return tokens

    def settle(self, begun: int, back: Sequence[Token]) -> None:
        for _ in range(begun + len(back)):
            self.places.pop()
            self.lent.pop()
        if not self.stopped:
            self.items.extendleft(reversed(back))
        for _ in range(len(self.takers)):
            self.wake_taker()
        self.wake_putters()

    def wake_takers(self) -> None:
        """Let as many of `takers` look again as there are items."""
        for _ in range(min(len(self.items), len(self.takers))):
            self.wake_taker()

    def wake_taker(self) -> None:
        """Let one of `takers` look again."""
        while self.takers:
            waiter = self.takers.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def stop(self) -> None:
        if self.stopped:
            return
        self.stopped = self.ended = True
        self.items.clear()
        for stop in self._stops:
            stop()
        self._wake_all()

    # -- putting

    def add_producer(self, stop: Callable[[], None]) -> None:
        """Another one that puts tokens and then calls `close`; `stop` ends it at once."""
        self._producers += 1
        self._stops.append(stop)

    def has_room(self) -> bool:
        """A token may be put."""
        if len(self.items) + len(self.places) < self.capacity:
            return True
        return len(self.items) < len(self.takers) or self.ended

    async def room(self) -> None:
        """Wait until a token may be put; it has to be put before anything else is awaited."""
        while not self.has_room():
            waiter = self.loop.create_future()
            self.putters.append(waiter)
            self.wake_putter()  # another thread may have taken one meanwhile, and not have seen this one wait
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self.wake_putter()
                elif waiter in self.putters:
                    self.putters.remove(waiter)
                raise

    async def put(self, token: Token) -> None:
        """Put a token as soon as there is room. After the end it is dropped."""
        if not self.has_room():
            await self.room()
        if not self.stopped:
            self.items.append(token)
            if self.takers:
                self.wake_taker()

    def wake_putter(self) -> None:
        if self.has_room():
            while self.putters:
                waiter = self.putters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return

    def wake_putters(self) -> None:
        free = self.capacity - len(self.items) - len(self.places)
        for _ in range(int(min(len(self.putters), free))):
            self.wake_putter()

    def fit(self, quick: float) -> None:
        """Have room for more tokens if all that were put are taken, but for at most so many; and for no more than
        that in any case. For any thread."""
        if self.most > self.least:
            quick = max(self.least, min(self.most, quick))
            self.capacity = min(quick, self.capacity if self.items else 2 * self.capacity)

    # -- the end

    def close(self, error: BaseException | None = None) -> None:
        """One of the producers puts no more; with an error if that is why. The last one ends the stream."""
        if self.error is None:
            self.error = error
        self._producers -= 1
        if self._producers <= 0 and not self.ended:
            self.ended = True
            if self.on_end is not None and self.error is None:
                self.on_end()
            self._wake_all()

    def fail(self, error: BaseException) -> None:
        """End the stream behind what was put, and all that produces for it at once."""
        if self.ended:
            return
        self.error = error
        self.ended = True
        for stop in self._stops:
            stop()
        self._wake_all()

    def _wake_all(self) -> None:
        for waiters in (self.takers, self.putters):
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
