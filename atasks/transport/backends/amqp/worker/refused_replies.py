"""`RefusedReplies`: replies that the reply queues of callers refused, because a policy bounds them
(`max-length`, `overflow=reject-publish`)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from atasks.transport.backends.amqp.worker.replies import MessageToCaller

__all__ = ["RefusedReplies"]

logger = logging.getLogger("atasks.amqp")

PAUSES: Final = (0.01, 1.0)
"""Seconds before a queue that has refused a message is sent it again: at first, and at most."""
PATIENCE: Final = 60.0
"""Seconds for which a queue may refuse everything. After that its caller has to ask."""
MAX_BYTES: Final = 16 * 2**20
"""Bytes of messages that wait here, those of all callers. Past it what is refused waits to be asked for."""
CROWD: Final = 500
"""Messages that wait here until they are many. A worker remembers 2 000 replies for callers that ask."""


class RefusedReplies:
    """Sends each queue what it refused again, one message at a time, and what comes for it meanwhile behind that.

    The requests of such replies are acknowledged: unacknowledged, those of one caller whose queue is small would
    take the whole window from the others. If this process dies, or gives up, callers ask for the calls. So where
    many replies wait, no further requests are acknowledged before their replies are safe.
    """

    def __init__(self, put: Callable[[MessageToCaller], None]) -> None:
        self._put = put
        self._lines: dict[str, _Line] = {}
        """Reply queue -> what waits for it."""
        self._bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def takes(self, message: MessageToCaller) -> bool:
        """Keep this message if it must wait behind others here. Returns False if it should be sent. What goes to a
        record or a journal should in any case: those who wait get it although the queue refuses it."""
        if message.is_copied:
            return False
        line = self._lines.get(message.routing_key) if self._lines else None
        return line is not None and self._keep(message, line)

    @property
    def is_crowded(self) -> bool:
        """Return True if so many messages wait here that replies among them may be forgotten before they are asked
        for."""
        return sum(len(line.waiting) for line in self._lines.values()) > CROWD

    def holds(self, queue: str) -> bool:
        """Return True if something waits here for that reply queue."""
        return queue in self._lines

    def add(self, message: MessageToCaller) -> None:
        """Keep a message that its queue has refused."""
        line = self._lines.get(message.routing_key)
        if line is None:
            line = self._lines[message.routing_key] = _Line(asyncio.get_running_loop().time())
            self._empty.clear()
        if line.sent is message:
            line.waiting.popleft()
            halves = message.halves()  # for a message that is larger than the bound there never is room
            line.waiting.extendleft(reversed(halves))
            self._bytes += sum(half.size for half in halves) - message.size
            self._later(message.routing_key, line)
        elif not self._keep(message, line):
            self._forget_empty(message.routing_key, line)
        elif line.sent is None and line.timer is None:
            self._later(message.routing_key, line)

    def ended(self, message: MessageToCaller, *, gone: bool = False) -> None:
        """The broker has taken it, or it cannot be sent; gone: there is no such queue any more."""
        line = self._lines.get(message.routing_key)
        if line is None or line.sent is not message:
            return
        if gone:
            for other in line.waiting:
                if other is not message:
                    other.settle()
            self._give_up(message.routing_key, line)
            return
        line.sent = None
        line.waiting.popleft()
        self._bytes -= message.size
        line.pause, line.since = PAUSES[0], asyncio.get_running_loop().time()
        if line.waiting:
            self._send(line)
        else:
            self._forget_empty(message.routing_key, line)

    async def flushed(self) -> None:
        """Return when nothing waits here."""
        await self._empty.wait()

    def close(self) -> None:
        """Give up what waits."""
        for queue, line in list(self._lines.items()):
            self._give_up(queue, line)

    def _keep(self, message: MessageToCaller, line: _Line) -> bool:
        if self._bytes + message.size > MAX_BYTES:
            return False
        self._bytes += message.size
        line.waiting.append(message)
        return True

    def _later(self, queue: str, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        line.sent = None
        if loop.time() - line.since > PATIENCE:
            logger.warning(
                "reply queue %r has refused replies for %g s: its caller must ask for them", queue, PATIENCE
            )
            self._give_up(queue, line)
            return
        line.timer = loop.call_later(line.pause, self._send, line)
        line.pause = min(2 * line.pause, PAUSES[1])

    def _send(self, line: _Line) -> None:
        line.timer = None
        line.sent = line.waiting[0]
        self._put(line.sent)

    def _give_up(self, queue: str, line: _Line) -> None:
        if line.timer is not None:
            line.timer.cancel()
        self._bytes -= sum(message.size for message in line.waiting)
        line.waiting.clear()
        self._forget_empty(queue, line)

    def _forget_empty(self, queue: str, line: _Line) -> None:
        if not line.waiting:
            self._lines.pop(queue, None)
            if not self._lines:
                self._empty.set()


class _Line:
    """The messages that wait for one reply queue."""

    __slots__ = ("pause", "sent", "since", "timer", "waiting")

    def __init__(self, now: float) -> None:
        self.waiting: deque[MessageToCaller] = deque()
        self.sent: MessageToCaller | None = None
        """The first one of them, where it is under way."""
        self.timer: asyncio.TimerHandle | None = None
        """Sends it later."""
        self.pause = PAUSES[0]
        self.since = now
        """When the queue took something, or has first refused something."""
