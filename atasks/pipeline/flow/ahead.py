"""The items that a thread takes by itself: two hops for each, between it and the event loop, would be slow. For
the same reason a process is sent several quick calls together."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from atasks.pipeline.flow.channel import Channel, Inlet, Lineage, Mark, Token
from atasks.pipeline.flow.child import ChildMessage, message
from atasks.pipeline.flow.threads import Outcome, Thread, drop

if TYPE_CHECKING:
    from atasks.pipeline.flow.processes import Process

__all__ = ["Ahead", "ProcessAhead"]

MOST: Final = 64
"""Calls that are sent to a process together."""
SECONDS: Final = 0.002
"""Seconds that they are expected to take together."""
BYTES: Final = 1 << 15
"""Bytes that they are expected to have together."""
STALLED: Final = 0.02
"""Seconds without an answer after which those that have not begun are asked for. They come back if the process has
been with one call for a while: else the machine is busy."""


class Ahead:
    """Calls a function in a thread, for the item that it is given and then for those that are at hand.

    The event loop is told of each outcome at once if it waits for it. The thread stops, and waits for the next
    item that it is given, where there is none at hand or no room for one more result, and after a call that has
    raised or has returned an awaitable: the event loop then says what follows.
    """

    def __init__(self, call: Callable[[Any, Lineage], Any], inlet: Inlet, outlet: Channel) -> None:
        self.tokens: deque[Token] = deque()
        """Those that the thread has taken, and for which `outcome` was not called yet. There are marks among them,
        for which it is not called."""
        self._call = call
        self._inlet = inlet
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        self._outcomes: deque[Outcome] = deque()
        """Those of the calls behind which the thread goes on."""
        self._job: asyncio.Future[Outcome] | None = None
        """The calls that the thread makes. The result is the outcome of the last call."""
        self._bell: asyncio.Future[None] | None = None
        """Set while the event loop waits for an outcome."""
        self._over = False
        self.has_place = False
        """There is a place in the outlet for the outcome that was returned last."""

    async def outcome(self, thread: Thread, value: Any, lineage: Lineage) -> Outcome:
        """Return what became of the call for the next of `tokens`, or for an item that was taken elsewhere."""
        if self.has_place:  # the stage has put it there meanwhile
            self.has_place = False
            self._outlet.places.pop()
            if self._outlet.putters:
                self._outlet.wake_putter()
        if self._job is None:
            self._job = thread.submit(self._run, value, lineage)
            self._job.add_done_callback(self._ended)
        try:
            while not self._outcomes:
                if self._job.done():  # all other outcomes came before
                    job, self._job = self._job, None
                    return job.result()
                self._bell = self._loop.create_future()
                if not self._outcomes:
                    await self._bell
        except asyncio.CancelledError:
            self._over = True
            if self._job is not None and not self._job.cancel():
                drop(self._job.result())
            raise
        self.has_place = True
        return self._outcomes.popleft()

    def _run(self, value: Any, lineage: Lineage) -> Any:
        """Run in the thread."""
        while True:
            result = self._call(value, lineage)
            if inspect.isawaitable(result) or (token := self._next()) is None:
                return result
            self._outcomes.append((True, result))
            self._tell()
            lineage, value = token
            del token, result

    def _next(self) -> Token | None:
        """Take the next item, and the marks before it, if there is room for the outcome of the call that ended."""
        places, out = self._outlet.places, self._outlet.items
        places.append(None)
        while not self._over and len(out) + len(places) <= self._outlet.capacity:
            token = self._inlet.pull()
            if token is None:
                break
            self.tokens.append(token)
            if type(token[1]) is not Mark:
                return token
        places.pop()
        return None

    def _tell(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            try:
                self._loop.call_soon_threadsafe(_ring, bell)
            except RuntimeError:  # the loop has closed: nobody wants more
                self._over = True

    def _ended(self, job: object) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            _ring(bell)


class ProcessAhead(Ahead):
    """Sends an item to a process, together with those behind it that are at hand, if they are small and calls are
    quick.

    What the process has not begun goes back to the inlet, so that any worker takes it: when a call has failed,
    when the process has died, when results are large, and when a call takes long. The event loop is given the
    outcomes until then. Items keep their room in the inlet until they have begun.
    """

    def __init__(self, process: Callable[[], Process], inlet: Inlet, outlet: Channel) -> None:
        super().__init__(self._ask, inlet, outlet)
        self._process = process
        self._seconds = self._bytes = float("inf")
        """The seconds and the bytes that a call takes: too many rather than too few, and at first they are not
        known."""
        self._sent: deque[Token] = deque()
        """Tokens that the inlet has lent, and that have neither begun nor gone back."""
        self._begun = 0
        """Tokens that were lent and have begun, of which the inlet was not told."""
        self._gave_back = False
        """The event loop has to take the next item: one that was given back, before those behind it."""

    def _ask(self, value: Any, lineage: Lineage) -> Any:
        """Have the process call the function for this item, and for others. Return the last result, or raise."""
        self._gave_back = False
        process = self._process()
        calls = [message(ChildMessage.CALL, value, lineage)]
        try:
            refused = self._add(calls)
            returned, result = self._called(process, calls, refused)
        finally:
            self._give_back()
        if returned:
            return result
        try:
            raise result
        finally:
            del result, refused  # no cycle through this frame

    def _called(self, process: Process, calls: list[list[bytes | memoryview]], refused: Outcome | None) -> Outcome:
        """Make the calls, emit all outcomes but the last one, and return that. `refused`: that of another item,
        behind the calls."""
        outcomes: deque[Outcome] = deque()
        left = len(calls)
        process.call_all(calls)
        while left > 1 and process.is_slow(STALLED):
            taken, some = process.take_back()
            outcomes.extend(some)
            if taken:
                self._give_back(taken + (refused is not None))
                refused = None
            left -= taken + self._emit(outcomes, left - taken - 1)
            if taken:
                break
        some, last = process.answer_all()
        outcomes.extend(some)
        if last is not None and len(outcomes) < left:  # else it has died behind the last one
            outcomes.append(last)
        done = len(calls) - left + len(outcomes)
        if refused is not None and done == len(calls) and outcomes[-1][0]:
            outcomes.append(refused)
        size = max(sum(len(piece) for call in calls for piece in call) / len(calls), process.answered / done)
        self._measure(process.seconds / done, size)
        self._emit(outcomes, len(outcomes) - 1)
        return outcomes.pop()

    def _measure(self, seconds: float, size: float) -> None:
        if self._seconds != float("inf"):
            seconds, size = max(seconds, (self._seconds + seconds) / 2), max(size, (self._bytes + size) / 2)
        self._seconds, self._bytes = max(seconds, 1e-9), size

    def _add(self, calls: list[list[bytes | memoryview]]) -> Outcome | None:
        """Add calls that are at hand, where the results of those before them have room. Return what is raised for
        an item behind them that cannot be sent."""
        inlet, outlet = self._inlet, self._outlet
        places, out = outlet.places, outlet.items
        free = outlet.capacity - len(out) - len(places)
        most = min(MOST, SECONDS / self._seconds, BYTES / self._bytes, 1 + free / 2)
        while len(calls) < most:
            places.append(None)
            has_room = not self._over and len(out) + len(places) <= outlet.capacity
            token = inlet.lend() if has_room else None
            if token is None:
                places.pop()
                break
            self._sent.append(token)
            lineage, value = token
            if type(value) is Mark:
                places.pop()
                continue
            try:
                calls.append(message(ChildMessage.CALL, value, lineage))
            except Exception as error:
                return False, error
        return None

    def _emit(self, outcomes: deque[Outcome], most: int) -> int:
        """Give so many outcomes, behind each of which another call has begun, to the event loop, or as many as
        there are. Return their number."""
        number = 0
        while outcomes and number < most:
            token = self._sent.popleft()
            self._begun += 1
            self.tokens.append(token)
            if type(token[1]) is not Mark:
                self._outcomes.append(outcomes.popleft())
                number += 1
        if number:
            self._tell()
        return number

    def _give_back(self, items: int | None = None) -> None:
        """Give the last ones of so many items back, or all that have not begun."""
        back: deque[Token] = deque()
        number = 0
        while self._sent and number != items:
            back.appendleft(self._sent.pop())
            number += type(back[0][1]) is not Mark
        begun, self._begun = self._begun, 0
        if not back and not begun:
            return
        self._gave_back = self._gave_back or bool(back)

        def settle() -> None:
            self._inlet.settle(begun, back)
            for _ in range(number):
                self._outlet.places.pop()
                self._outlet.wake_putter()

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop has closed: nobody wants more
            self._over = True

    def _next(self) -> Token | None:
        return None if self._gave_back or self._process().ended else super()._next()


def _ring(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)
