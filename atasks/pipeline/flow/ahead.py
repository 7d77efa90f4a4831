"""The items that a thread takes by itself: two hops for each, between it and the event loop, would be slow."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

from atasks.pipeline.flow.channel import Channel, Inlet, Lineage, Mark, Token
from atasks.pipeline.flow.threads import Outcome, Thread, drop

__all__ = ["Ahead"]


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


def _ring(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)
