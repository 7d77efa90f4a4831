"""Atasks that name no queue, where caller and worker have different queues for these."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from atasks.errors import NoWorker
from atasks.tracking import queries
from atasks.tracking.queries import MAX_NAMES, FindTasks, TasksFound
from atasks.wire import VERSION, Query, QueryAnswer

if TYPE_CHECKING:
    from atasks.transport.pending import Pending

__all__ = ["Ask", "Elsewhere"]

Ask = Callable[[Query, Callable[[QueryAnswer], object]], None]
"""Puts a question to all workers of a namespace, and hears each answer."""

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
"""Seconds between two questions for the same atask: each time twice as many, up to so many."""
FORGOTTEN_SECONDS: Final = 120.0
"""Seconds after a question in which its answer holds, and the next one waits for longer."""
DEFAULT: Final = "default"
"""The queue of a program that names none."""


class Elsewhere:
    """Asks the workers of a namespace from which queue they take the calls that nothing serves here.

    A call ends in NoWorker if its program names no queue, the broker has never had the queue `default`, and a
    worker serves the atask on the queue that its own transport names: no worker as that one will ever come for it.
    """

    def __init__(self, queue: str, pendings: Mapping[str, Pending], ask: Ask) -> None:
        """`queue` is that of calls that name none, and `pendings` are all that are awaited here."""
        self._queue = queue
        self._pendings = pendings
        self._ask = ask
        self._token = os.urandom(8).hex()
        self._asked: dict[str, tuple[float, float]] = {}
        """Atask -> when workers were asked for it (event loop time), and seconds until they are asked again."""
        self._found: dict[str, tuple[float, str, str]] = {}
        """Atask -> when workers were asked before one said that it serves it, that worker, and its queue."""

    def look(self, pendings: Sequence[Pending], now: float) -> None:
        """Nothing serves the queue of these calls."""
        names = {pending.call.task for pending in pendings if pending.options.queue is None}
        if not names:
            return
        for known in (self._asked, self._found):
            for name in [name for name, (since, *_) in known.items() if now - since >= FORGOTTEN_SECONDS]:
                del known[name]
        self._end()
        asked = [name for name in sorted(names) if now >= sum(self._asked.get(name, ()))][:MAX_NAMES]
        for name in asked:
            _, pause = self._asked.get(name, (now, FIRST_SECONDS / 2))
            self._asked[name] = now, min(2 * pause, LONGEST_SECONDS)
        if asked:
            self._ask(Query(VERSION, self._token, queries.encode(FindTasks(asked))), self._heard)

    def hint(self, pendings: Sequence[Pending]) -> str:
        """Say which worker serves the atask of one of these calls, and on which queue; or nothing."""
        for pending in pendings:
            if pending.options.queue is None and (found := self._found.get(pending.call.task)) is not None:
                return f"; worker {found[1]} serves {pending.call.task!r} on queue {found[2]!r}"
        return ""

    def _heard(self, answer: QueryAnswer) -> None:
        found = queries.decode_answer(answer.content)
        if isinstance(found, TasksFound) and found.queue != self._queue:
            for name in found.names:
                if name in self._asked:
                    self._found[name] = self._asked[name][0], answer.worker, found.queue
            self._end()

    def _end(self) -> None:
        """End the calls for which no worker will come."""
        if self._queue == DEFAULT and self._found:
            for pending in list(self._pendings.values()):
                found = self._found.get(pending.call.task)
                if pending.unheard and pending.options.queue is None and found is not None:
                    pending.fail(_error(pending.call.task, found[1], found[2]))


def _error(task: str, worker: str, queue: str) -> NoWorker:
    return NoWorker(
        f"nothing serves queue {DEFAULT!r}, and worker {worker} serves {task!r} on queue {queue!r}: name that "
        f"queue at both sides, by queue={queue!r} of atasks.connect, ?queue={queue} of the URL, or "
        f"@atask(queue={queue!r})"
    )
