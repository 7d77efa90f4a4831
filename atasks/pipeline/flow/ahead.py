"""The items that a thread takes by itself: two hops for each, between it and the event loop, would be slow. For
the same reason a process is sent several quick calls together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from inspect import isawaitable
from itertools import repeat
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

from atasks.pipeline.flow.channel import Channel, Inlet, Lineage, Mark, Token
from atasks.pipeline.flow.messages import to_calls
from atasks.pipeline.flow.threads import Outcome, Thread, drop

if TYPE_CHECKING:
    from atasks.pipeline.flow.processes import Process

__all__ = ["Ahead", "ProcessAhead"]

MOST: Final = 256
"""Calls that are sent to a process together."""
SECONDS: Final = 0.002
"""Seconds that they are expected to take together."""
BYTES: Final = 1 << 15
"""Bytes that they are expected to have together."""
WAITING_SECONDS: Final = 0.01
"""Seconds that calls are expected to take whose results wait together, where so many more may wait."""
WAITING_BYTES: Final = 1 << 18
"""Bytes that these results are expected to have."""
STALLED: Final = 0.02
"""Seconds without an answer after which those that have not begun are asked for. All come back if the process has
been with one call for a while. Else they are slower than was expected, or the machine is busy: half of them do."""

_PLAIN: Final = frozenset({str, bytes, bytearray, int, float, bool, type(None), tuple, list, dict, set, frozenset})
"""The types of most results: such a result is not to be awaited."""


class Ahead:
    """Calls a function in a thread, for the item that it is given and then for those that are at hand, and puts
    their results into the outlet.

    The thread stops where there is no item at hand or no room for one more result, and after a call that has
    raised or has returned an awaitable: the event loop then says what follows.
    """

    def __init__(
        self,
        call: Callable[[Any, Lineage], Any],
        keep: Callable[[Any, Any], Any] | None,
        inlet: Inlet,
        outlet: Channel,
        marks: bool,
    ) -> None:
        """`keep`: see `CallingStage`. `marks`: they travel."""
        self.at: Token = ((), None)
        """The item of the last call."""
        self.waits = False
        """The result of the last call is to be awaited."""
        self.put = 0
        """Calls whose results the thread has put."""
        self._call = call
        self._keep = keep
        self._inlet = inlet
        self._outlet = outlet
        self._marks = marks
        self._loop = asyncio.get_running_loop()
        self._told = False
        """The event loop has been told to wake those that wait, and has not done it."""
        self._over = False

    @property
    def has_place(self) -> bool:
        """There is a place in the outlet for the result of the last call: see `Channel.places`."""
        return False

    def next_sent(self) -> Token | None:
        """Return the item that has to be the next one, and give the place up for the result before it."""
        return None

    async def outcome(self, thread: Thread, value: Any, lineage: Lineage) -> Outcome:
        """Call the function for this item and for others. Return what became of the call for the last one, which
        is `at`. One that `waits` is as it was returned, and any other one is what the stage keeps."""
        self.at, self.waits = (lineage, value), False
        job = thread.submit(self._run, self.at)
        try:
            return await job
        except asyncio.CancelledError:
            self._over = True
            if not job.cancel():
                drop(job.result())
            raise
        finally:
            self._wake()  # the thread may have put results and not told, or have given up a place

    def _run(self, token: Token) -> Any:
        """Run in the thread. The result is that of the last call."""
        call, keep, marks, outlet = self._call, self._keep, self._marks, self._outlet
        out, places, takers, putters, others = (
            outlet.items,
            outlet.places,
            outlet.takers,
            outlet.putters,
            self._inlet.putters,
        )
        # Of this class no object is to be awaited. To ask that of each result costs more than a quick call.
        known: type | None = None
        while True:
            self.at = token
            lineage, value = token
            if type(value) is Mark:
                result: Any = value
            else:
                result = call(value, lineage)
                lineage, value = self.at  # it may have been called for others too
                if type(result) is not known:
                    if isawaitable(result):
                        self.waits = True
                        return result
                    # Another object of the class may be one: a generator, or a proxy of something else.
                    varies = type(result) is GeneratorType or result.__class__ is not type(result)
                    known = None if varies else type(result)
                if keep is not None:
                    result = keep(value, result)
            following = self._next()
            if following is None:
                return result
            if marks or type(result) is not Mark:
                out.append((lineage, result))
            places.pop()
            if type(value) is not Mark:
                self.put += 1
            token = following
            del result
            if (takers or putters or others) and not self._told and not self.has_place:  # else more follow at once
                self._tell()

    def _next(self) -> Token | None:
        """Take the next token, if there is one, and a place for the result of the call that ended."""
        outlet = self._outlet
        outlet.places.append(None)
        if not self._over and not outlet.ended and len(outlet.items) + len(outlet.places) <= outlet.capacity:
            token = self._inlet.pull()
            if token is not None:
                return token
        outlet.places.pop()
        return None

    def _tell(self) -> None:
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop has closed: nobody wants more
            self._over = True

    def _wake(self) -> None:
        self._told = False
        self._outlet.wake_takers()
        self._outlet.wake_putters()
        self._inlet.wake_putters()


class ProcessAhead(Ahead):
    """Sends an item to a process, together with those behind it that are at hand, if they are small and calls are
    quick.

    What the process has not begun goes back to the inlet, so that any worker takes it: when a call has failed,
    when the process has died, when results are large, and when a call takes long. Results are put until then.
    Items keep their room in the inlet until they have begun.
    """

    def __init__(self, process: Callable[[], Process], *args: Any) -> None:
        super().__init__(self._ask, *args)
        self._process = process
        self._seconds = self._bytes = float("inf")
        """The seconds and the bytes that a call takes: too many rather than too few, and at first they are not
        known."""
        self._outcomes: Iterator[Outcome] = iter(())
        """Those of the calls that were sent together."""
        self._sent: deque[Token] = deque()
        """Tokens that the inlet has lent, and that have neither begun nor gone back. Each has a place in the
        outlet for the result of the one before it, and so has each of `_begun`."""
        self._begun: deque[Token] = deque()
        """Tokens of calls that have begun, in whose turn `_outcomes` has what became of them."""
        self._settled = 0
        """Tokens that were lent and have begun, of which the inlet was not told."""
        self._gave_back = False
        """The event loop has to take the next item: one that was given back, before those behind it."""

    @property
    def has_place(self) -> bool:
        return bool(self._begun)

    def next_sent(self) -> Token | None:
        if not self._begun:
            return None
        self._outlet.places.pop()
        self._outlet.wake_putter()
        return self._begun.popleft()

    def _next(self) -> Token | None:
        if self._begun:
            return self._begun.popleft()
        return None if self._gave_back or self._process().ended else super()._next()

    def _ask(self, value: Any, lineage: Lineage) -> Any:
        """Return the result of the process, or raise: for an item that was sent already, or for this one, which is
        sent now together with others."""
        outcome = next(self._outcomes, None)
        if outcome is None:
            self._outcomes = self._called(value, lineage)
            outcome = next(self._outcomes)
        returned, result = outcome
        if returned:
            return result
        try:
            raise result
        finally:
            del result, outcome  # no cycle through this frame

    def _called(self, value: Any, lineage: Lineage) -> Iterator[Outcome]:
        """Have the process call the function for this item and for others, and yield what became of it, one by
        one, but for results that are put at once. The token behind an outcome is in `_begun` by then."""
        self._gave_back = False
        process = self._process()
        try:
            items = [(lineage, value), *(token for token in self._lent() if type(token[1]) is not Mark)]
            calls, error = to_calls(items, process.wants_lineages)
            refused: Outcome | None = None
            if error is not None:
                if not calls:
                    raise error
                refused = False, error  # it is the outcome of another item, behind the calls
            if len(calls) < len(items):
                self._give_back(len(items) - len(calls) - (refused is not None))
            lineages = [lineage for lineage, _ in items[: len(calls)]] if process.wants_lineages else ()
            sent = process.call_all(calls, lineages)
            made = left = len(calls)
            outcomes: deque[Outcome] = deque()
            while left > 1 and process.is_slow(STALLED):
                taken, some = process.take_back()
                outcomes.extend(some)
                if taken:
                    self._give_back(taken + (refused is not None))
                    refused = None
                ended = min(len(outcomes), left - taken - 1)  # the last one waits for the answer of the process
                made -= taken
                left -= taken + ended
                self._begin(ended)
                for _ in range(ended):
                    yield outcomes.popleft()
            some, last = process.answer_all()
            outcomes.extend(some)
            if last is not None and len(outcomes) < left:  # else it has died behind the last one
                outcomes.append(last)
            done = made - left + len(outcomes)
            if refused is not None and done == len(calls) and outcomes[-1][0]:
                outcomes.append(refused)
            self._measure(process.seconds / done, max(sent / len(calls), process.answered / done))
            self._begin(len(outcomes) - 1)
        finally:
            self._give_back()
        self._put_all(outcomes)
        while outcomes:
            yield outcomes.popleft()

    def _put_all(self, outcomes: deque[Outcome]) -> None:
        """Put the results but for the last one, if all of them are such that nothing is to be asked of them."""
        begun = self._begun
        if self._keep is not None or len(outcomes) - 1 != len(begun) or not begun:
            return
        if not _PLAIN.issuperset(type(result) for _, result in outcomes):
            return
        last, following = outcomes.pop(), begun.pop()
        lineages = [self.at[0], *(lineage for lineage, _ in begun)]
        self.at = following
        self._outlet.items.extend(zip(lineages, [result for _, result in outcomes], strict=True))
        for _ in outcomes:
            self._outlet.places.pop()
        self.put += len(outcomes)
        outcomes.clear()
        begun.clear()
        outcomes.append(last)

    def _begin(self, calls: int) -> None:
        """So many more calls have begun."""
        if calls == len(self._sent):  # and there are no marks among them
            self._begun.extend(self._sent)
            self._sent.clear()
            self._settled += calls
            return
        while calls:
            token = self._sent.popleft()
            self._settled += 1
            self._begun.append(token)
            calls -= type(token[1]) is not Mark

    def _measure(self, seconds: float, size: float) -> None:
        if self._seconds != float("inf"):
            seconds, size = max(seconds, (self._seconds + seconds) / 2), max(size, (self._bytes + size) / 2)
        self._seconds, self._bytes = max(seconds, 1e-9), size
        self._outlet.fit(min(WAITING_SECONDS / self._seconds, WAITING_BYTES / size))

    def _lent(self) -> list[Token]:
        """Take tokens that are at hand, whose calls will be quick and small, and where the results of those before
        them have room."""
        outlet = self._outlet
        places, out = outlet.places, outlet.items
        free = outlet.capacity - len(out) - len(places)
        most = int(min(MOST, SECONDS / self._seconds, BYTES / self._bytes, 1 + free / 2)) - 1
        if most < 1 or self._over:
            return []
        places.extend(repeat(None, most))
        excess = len(out) + len(places) - outlet.capacity  # other workers may have been quicker
        tokens = self._inlet.lend(most if excess <= 0 else max(0, most - int(excess)))
        for _ in range(most - len(tokens)):
            places.pop()
        self._sent.extend(tokens)
        return tokens

    def _give_back(self, items: int | None = None) -> None:
        """Give the last ones of so many items back, or all that have not begun."""
        back: deque[Token] = deque()
        number = 0
        while self._sent and number != items:
            back.appendleft(self._sent.pop())
            number += type(back[0][1]) is not Mark
        begun, self._settled = self._settled, 0
        if not back and not begun:
            return
        self._gave_back = self._gave_back or bool(back)

        def settle() -> None:
            self._inlet.settle(begun, back)
            for _ in back:
                self._outlet.places.pop()
            self._outlet.wake_putters()

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop has closed: nobody wants more
            self._over = True
