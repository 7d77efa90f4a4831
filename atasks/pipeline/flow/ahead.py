"""The items that a thread takes by itself, and those that it sends ahead to its process: two hops for each,
between it and the event loop, would be slow, and so would be a pause of the process after each."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from atasks.pipeline.flow.channel import Lineage, Mark, Token
from atasks.pipeline.flow.child import ChildMessage, message
from atasks.pipeline.flow.threads import Outcome, Thread, drop

if TYPE_CHECKING:
    from atasks.pipeline.flow.crew import FunctionCrew
    from atasks.pipeline.flow.processes import Process

__all__ = ["Ahead", "ProcessAhead"]

MOST: Final = 32
"""Items that are sent ahead of an answer."""
SECONDS: Final = 0.002
"""Seconds that they are expected to take together: items that take longer gain nothing from it."""
STALLED: Final = 0.005
"""Seconds after which a call that has others behind it loses them to whoever looks for items."""
SMALL: Final = 1 << 13
"""Bytes of a call, for it to be sent ahead and to have others sent ahead of its answer."""
ROOM: Final = 1 << 15
"""Bytes of the calls that are sent ahead. The process may read them only after it has sent a result, and the
thread reads that after it has sent them. So they have room in the socket, twice: the process may have as many to
read that were given back."""


class Ahead:
    """Calls a function in a thread, for the item that it is given and then for those that are at hand.

    The event loop is told of each outcome at once if it waits for it. The thread stops, and waits for the next
    item that it is given, where there is none at hand or no room for one more result, and after a call that has
    raised or has returned an awaitable: the event loop then says what follows.
    """

    def __init__(self, crew: FunctionCrew, call: Callable[[Any, Lineage], Any]) -> None:
        self.tokens: deque[Token] = deque()
        """Those that the thread has taken, and for which `outcome` was not called yet. There are marks among them,
        for which it is not called."""
        self._call = call
        self._inlet = crew.inlet
        self._outlet = crew.outlet
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
            self._emit((True, result))
            lineage, value = token
            del token, result

    def _emit(self, outcome: Outcome) -> None:
        """Give the outcome of a call behind which the thread goes on to the event loop."""
        self._outcomes.append(outcome)
        self._tell()

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
    """Asks a process for the items that a thread takes, and sends short ones that are at hand ahead of the answer,
    while all workers of the stage are busy.

    What a process has not begun is given back, so that others take it: when another worker has nothing to do; when
    another one looks for items and the call before them takes long; and when that call has failed, or the process
    has died. Until they begin, these items keep their room in the inlet.
    """

    def __init__(self, crew: FunctionCrew, process: Callable[[], Process]) -> None:
        super().__init__(crew, self._ask)
        self._process = process
        self._crew = crew
        self._taken: deque[Token] = deque()
        """Those that were not sent yet."""
        self._sent: deque[tuple[int, int, Token]] = deque()
        """Those that were sent ahead, with their numbers and bytes (0 for a mark), and of which nobody has
        said that they have begun."""
        self._since = 0.0
        """When the call before them began."""
        self._mean = 0.0
        """Seconds that a call takes, smoothed."""
        # Half of the room in the outlet is left to those that are done with an item, if it has any for two.
        self._most = min(MOST, crew.outlet.capacity / (2 * crew.limit))
        self._numbers = itertools.cycle(range(1, 256))
        crew.ahead.append(self)

    def give_back(self, *, waits: bool = False) -> bool:
        """Give what has not begun back to the inlet, and return True if that was any. `waits`: the process is dead
        or waits, and what it has said it would begin it will not."""
        crew, inlet, outlet = self._crew, self._inlet, self._outlet
        with crew.lock:
            if not self._sent and not self._taken:
                return False
            tickets = self._process().tickets
            free = len(tickets.take(256)) if tickets is not None and self._sent else 0
            begun = 0 if waits else sum(number > 0 for number, *_ in self._sent) - free
            kept: deque[tuple[int, int, Token]] = deque()
            while begun:
                kept.append(self._sent.popleft())
                begun -= kept[-1][0] > 0
            back = [*(token for *_, token in self._sent), *self._taken]
            self._sent = kept
            self._taken.clear()
            inlet.items.extendleft(reversed(back))  # first: no room may show that is not there
            for token in back:
                inlet.places.pop()
                if type(token[1]) is not Mark:
                    outlet.places.pop()

        def wake() -> None:
            for _ in back:
                inlet.wake_taker()
                outlet.wake_putter()

        if back:
            crew.engine.call_soon(wake)
        return bool(back)

    def _ask(self, value: Any, lineage: Lineage) -> Any:
        """Have the process call the function for an item, and then for those that were sent ahead meanwhile."""
        process = self._process()
        sent = message(ChildMessage.CALL, value, lineage)
        small = len(sent[0]) <= SMALL and not sent[1]
        try:
            process.send(sent)
            del sent, value
            while True:
                self._since = monotonic()
                self._relieve()
                if small:
                    self._send_ahead(process)
                try:
                    outcome: Outcome = True, process.answer()
                except Exception as error:
                    if not process.begun:
                        raise
                    outcome = False, error  # of a result that cannot be read: the process goes on behind it
                self._mean += (process.took - self._mean) / 8
                if not process.begun:
                    return outcome[1]
                self._goes_on(process.begun)
                self._emit(outcome)
                del outcome
        finally:
            self.give_back(waits=True)

    def _relieve(self) -> None:
        """Take back from other workers what is behind a call that takes long."""
        for other in self._crew.ahead:
            if (other._sent or other._taken) and self._since - other._since > STALLED:
                other.give_back()

    def _send_ahead(self, process: Process) -> None:
        """Send what is at hand, if all workers are busy, and little of what was sent is left."""
        crew, outlet, inlet, taken = self._crew, self._outlet, self._inlet, self._taken
        most = min(self._most, SECONDS / (self._mean + 1e-9))
        if self._mean > SECONDS or len(self._sent) > most / 2 or taken:
            return
        with crew.lock:
            while (
                crew.is_busy
                and not self._over
                and len(self._sent) + len(taken) < most
                and len(outlet.items) + len(outlet.places) < outlet.capacity
            ):
                inlet.places.append(None)
                if (token := inlet.pull()) is None:
                    inlet.places.pop()
                    break
                if type(token[1]) is not Mark:
                    outlet.places.append(None)
                taken.append(token)
        made: list[tuple[bytes, int]] = []
        room = ROOM - sum(size for _, size, _ in self._sent)
        for lineage, value in list(taken):
            content, number = b"", 0
            if type(value) is not Mark:
                try:
                    (content, aside), number = message(ChildMessage.CALL, value, lineage), next(self._numbers)
                except Exception:  # it is raised when it is the turn of this item
                    break
                room -= len(content)
                if len(content) > SMALL or aside or room < 0:
                    break
            made.append((content, number))
        with crew.lock:
            if not taken:  # they were given back meanwhile
                return
            for content, number in made:
                self._sent.append((number, len(content), taken.popleft()))
            made = [each for each in made if each[1]]
            if made:
                assert process.tickets is not None
                process.tickets.put(bytes(number for _, number in made))
        if made:
            process.send_ahead(made)

    def _goes_on(self, begun: int) -> None:
        """The process has begun the call of this number."""
        with self._crew.lock:
            number = 0
            while number != begun:
                number, _, token = self._sent.popleft()
                self._inlet.places.pop()
                self.tokens.append(token)


def _ring(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)
