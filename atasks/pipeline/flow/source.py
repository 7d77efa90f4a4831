"""The source of the items of a run."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from types import GeneratorType
from typing import Any, Final

from atasks.outlast import is_cancelled
from atasks.pipeline.flow.channel import Channel, Inlet, Lineage, Token
from atasks.pipeline.flow.crew import Crew
from atasks.pipeline.flow.engine import Engine
from atasks.pipeline.flow.failing import add_note, deliverable
from atasks.pipeline.flow.invocation import Start
from atasks.pipeline.flow.ordering import Admission, admitted
from atasks.pipeline.flow.runners import ENDED, in_memory, next_or_end
from atasks.pipeline.flow.threads import Thread, report_failure
from atasks.pipeline.pipe import Pipe

__all__ = ["IterableSource", "MergedSource", "SingleSource", "Source", "check_source"]

PATIENCE: Final = 1.0
"""Seconds for which the end of a run waits for a generator that is making an item: it may block for ever."""

_PLAIN: Final = (range, list, tuple)
"""Iterating these is safe in any thread."""
_RAISED: Final = "what a pipeline took its items from raised on its end"


def check_source(source: object) -> None:
    """Raise a TypeError if it cannot be iterated in any way."""
    if isinstance(source, Pipe):
        raise TypeError("a pipeline is no source of items: call it, or give it a source, source | pipeline")
    if not isinstance(source, (Iterable, AsyncIterable)) and not hasattr(type(source), "__getitem__"):
        hint = "write stage(f) | pipeline" if callable(source) else "give an iterable or an async iterable"
        raise TypeError(f"{type(source).__name__} is no source of items: {hint}")


class Source:
    """A spec: `open` makes the inlet of the first stage of one run."""

    def open(self, engine: Engine, windows: Sequence[Admission]) -> Inlet:
        """Begin; nothing is pulled, and nothing of the user's runs, before an item is taken."""
        raise NotImplementedError

    def length(self) -> int | None:
        """Return the number of items, if that is known."""
        return None


class SingleSource(Source):
    """One item."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def open(self, engine: Engine, windows: Sequence[Admission]) -> Inlet:
        inlet = _HereInlet((self.item,), engine, ())
        inlet.called = type(self.item) is Start
        return inlet

    def length(self) -> int:
        return 1


class IterableSource(Source):
    """The items of an iterable, or of an async iterable. Belongs to one run: generators are closed at its end."""

    def __init__(self, iterable: Any, inline: bool = False) -> None:
        check_source(iterable)
        self.iterable = iterable
        self.inline = inline

    def open(self, engine: Engine, windows: Sequence[Admission]) -> Inlet:
        source = self.iterable
        if hasattr(type(source), "__aiter__"):
            return _AsyncInlet(source, engine, windows)
        if self.inline or in_memory(source):
            return _HereInlet(source, engine, windows)
        return _ThreadInlet(source, engine, windows)

    def length(self) -> int | None:
        try:
            return len(self.iterable)
        except Exception:  # it has no length, or raises when asked
            return None


class MergedSource(Source):
    """The items of several sources, as they arrive: that is their order."""

    def __init__(self, sources: Sequence[IterableSource]) -> None:
        self.sources = sources

    def open(self, engine: Engine, windows: Sequence[Admission]) -> Inlet:
        outlet = Channel(0)  # pulled only when somebody waits: so one item of each source is at hand, and no more
        numbers = itertools.count()
        for number, source in enumerate(self.sources):
            _Merger(engine, f"source {number}", source.open(engine, ()), outlet, windows, numbers).start()
        if not self.sources:
            outlet.close()
        return outlet

    def length(self) -> int | None:
        lengths = [source.length() for source in self.sources]
        return None if None in lengths else sum(length for length in lengths if length is not None)


class _Merger(Crew):
    def __init__(
        self,
        engine: Engine,
        name: str,
        inlet: Inlet,
        outlet: Channel,
        windows: Sequence[Admission],
        numbers: Iterator[int],
    ) -> None:
        super().__init__(engine, name, inlet, outlet)
        self._windows = windows
        self._numbers = numbers

    async def work(self, index: int) -> None:
        while (token := await self.inlet.take()) is not None:
            lineage = (next(self._numbers),)
            await admitted(self._windows, lineage)
            await self.outlet.put((lineage, token[1]))
        if self.inlet.error is not None:  # only its own error, and not the end that all sources share
            self.fail(self.inlet.error, f"in {self.name} of a merge")


class _SourceInlet:
    """Pulls one item when one is taken."""

    def __init__(self, engine: Engine, windows: Sequence[Admission]) -> None:
        self.items: deque[Token] = deque()  # what was lent and came back: nothing is pulled ahead
        self.putters: deque[asyncio.Future[None]] = deque()
        self.error: BaseException | None = None
        self.engine = engine
        self.ended = False
        self.called = False
        self._index = 0
        self._windows = windows
        self._pulling = asyncio.Lock()

    async def take(self) -> Token | None:
        async with self._pulling:
            lineage = (self._index,)
            if self._windows:
                await admitted(self._windows, lineage)
            if self.ended:
                return None
            try:
                item = await self._pull()
            except BaseException as error:
                if not self._is_own(error):
                    raise
                self._fail(error, lineage)
                return None
            if item is ENDED:
                self.ended = True
                return None
            self._index += 1
            return lineage, item

    def _is_own(self, error: BaseException) -> bool:
        """Return True if the source raised the error, and not the end of the run."""
        if self.ended:
            return False
        return not (isinstance(error, asyncio.CancelledError) and is_cancelled())

    async def _pull(self) -> Any:
        """The next item, or ENDED."""
        raise NotImplementedError

    def pull(self) -> Token | None:
        """Pull nothing: only the event loop knows how."""
        return None

    def lend(self, most: int) -> list[Token]:
        return []

    def settle(self, begun: int, back: Sequence[Token]) -> None:
        """Nothing is lent."""

    def wake_putter(self) -> None:
        """Nobody puts anything here."""

    def wake_putters(self) -> None:
        """Nobody puts anything here."""

    def stop(self) -> None:
        if not self.ended:
            self.ended = True
            self._release()

    def _release(self) -> None:
        """End what it pulls from."""

    def _fail(self, error: BaseException, lineage: Lineage) -> None:
        self.ended = True
        self.error = deliverable(error)
        add_note(self.error, f"in the source, at item {lineage}")


class _HereInlet(_SourceInlet):
    """Pulls on the event loop; what iterating calls no code of users for, threads pull themselves."""

    def __init__(self, iterable: Iterable[Any], engine: Engine, windows: Sequence[Admission]) -> None:
        super().__init__(engine, windows)
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None
        self._lock = threading.Lock()
        self._lent = 0
        """Tokens that are lent. Behind `_lock`."""
        self._takers: list[asyncio.Future[None]] = []
        """Those that wait for what is lent, at the end of the stream."""

    def pull(self) -> Token | None:
        return self._next() if type(self._iterable) in _PLAIN else None

    async def take(self) -> Token | None:
        while (token := self._next()) is None and not self.ended:
            await admitted(self._windows, (self._index,))
        while token is None and self._lent and self.error is None:
            waiter = asyncio.get_running_loop().create_future()
            self._takers.append(waiter)
            await waiter
            token = self._next()
        return token

    def lend(self, most: int) -> list[Token]:
        if type(self._iterable) not in _PLAIN:
            return []
        with self._lock:
            tokens = self._some(most)
            self._lent += len(tokens)
        return tokens

    def settle(self, begun: int, back: Sequence[Token]) -> None:
        with self._lock:
            self._lent -= begun + len(back)
            self.items.extendleft(reversed(back))
        takers, self._takers = self._takers, []
        for waiter in takers:
            if not waiter.done():
                waiter.set_result(None)

    def _next(self) -> Token | None:
        """The next token; None at the end, and while a window does not admit it."""
        with self._lock:
            return self._one()

    def _some(self, most: int) -> list[Token]:
        """The next tokens, so many at most. Behind `_lock`."""
        tokens: list[Token] = []
        if not self.items and not self.ended and not self._windows and self._iterator is not None:
            first = self._index
            tokens += zip(zip(range(first, first + most), strict=True), islice(self._iterator, most), strict=False)
            self._index += len(tokens)
        while len(tokens) < most and (token := self._one()) is not None:
            tokens.append(token)
        return tokens

    def _one(self) -> Token | None:
        """Like `_next`, behind `_lock`."""
        if self.items:
            return self.items.popleft()
        index = self._index
        if self.ended or (self._windows and not all(each.admits((index,)) for each in self._windows)):
            return None
        try:
            if self._iterator is None:
                self._iterator = iter(self._iterable)
            item = next(self._iterator)
        except StopIteration:
            self.ended = True
            return None
        except BaseException as error:
            self._fail(error, (index,))
            return None
        self._index = index + 1
        return (index,), item

    def _release(self) -> None:
        generator = _generator(self._iterable, self._iterator)
        if generator is not None:
            try:
                generator.close()
            except BaseException as error:
                self.engine.report(error, _RAISED)


class _ThreadInlet(_SourceInlet):
    """Pulls in a thread, because a generator may block."""

    def __init__(self, iterable: Iterable[Any], engine: Engine, windows: Sequence[Admission]) -> None:
        super().__init__(engine, windows)
        self._thread = Thread("atasks-source")
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None

    async def _pull(self) -> Any:
        if self._iterator is None:
            self._iterator = await self._thread.call(iter, self._iterable)
        item = await self._thread.call(next_or_end, self._iterator)
        if item is ENDED:
            self._thread.close()
        return item

    def _fail(self, error: BaseException, lineage: Lineage) -> None:
        super()._fail(error, lineage)
        self._thread.close()

    def _release(self) -> None:
        generator = _generator(self._iterable, self._iterator)
        if generator is not None:
            patience = PATIENCE if self._thread.busy else None
            closed = self._thread.submit(generator.close)
            report_failure(closed, _RAISED)
            self.engine.outlast(closed, patience)
        self._thread.close()


class _AsyncInlet(_SourceInlet):
    """Pulls from an async iterable."""

    def __init__(self, iterable: AsyncIterable[Any], engine: Engine, windows: Sequence[Admission]) -> None:
        super().__init__(engine, windows)
        self._iterable = iterable
        self._iterator: AsyncIterator[Any] | None = None

    async def _pull(self) -> Any:
        if self._iterator is None:
            self._iterator = aiter(self._iterable)
        return await anext(self._iterator, ENDED)

    def _release(self) -> None:
        begun = self._iterable if self._iterator is None else self._iterator
        if hasattr(begun, "aclose"):
            self.engine.spawn(self._close(begun))

    async def _close(self, begun: Any) -> None:
        async with self._pulling:  # a generator that runs cannot be closed
            try:
                await begun.aclose()
            except Exception as error:
                self.engine.report(error, _RAISED)


def _generator(iterable: Iterable[Any], iterator: Iterator[Any] | None) -> GeneratorType[Any, Any, Any] | None:
    """Return the generator to close at the end, if there is one."""
    begun = iterable if iterator is None else iterator
    return begun if isinstance(begun, GeneratorType) else None
