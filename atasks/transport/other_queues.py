"""Atasks that name no queue, where caller and worker have different queues for these."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from atasks.tracking import queries
from atasks.tracking.queries import MAX_NAMES, FindTasks, TasksFound
from atasks.wire import VERSION, Query, QueryAnswer

if TYPE_CHECKING:
    from atasks.transport.pending import Pending

__all__ = ["Ask", "OtherQueues"]

Ask = Callable[[Query, Callable[[QueryAnswer], object]], None]
"""Puts a question to all workers of a namespace, and hears each answer. Does nothing where nobody can be asked."""

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
"""Seconds between two questions for the same atask: each time twice as many, up to so many."""
FORGOTTEN_SECONDS: Final = 120.0
"""Seconds after a question in which its answer holds, and the next one waits for longer."""


class OtherQueues:
    """Asks the workers of a namespace from which queue they take the calls that nothing serves here, to say so in
    the warning: a queue that the transport of the worker alone names is one that no caller knows."""

    def __init__(self, queue: str, ask: Ask) -> None:
        """`queue` is that of calls that name none."""
        self._queue = queue
        self._ask = ask
        self._token = os.urandom(8).hex()
        self._asked: dict[str, tuple[float, float]] = {}
        """Atask -> when workers were asked for it (event loop time), and seconds until they are asked again."""
        self._found: dict[str, tuple[float, str, str]] = {}
        """Atask -> when workers were asked before one said that it serves it, that worker, and its queue."""

    def look(self, pendings: Sequence[Pending], now: float) -> None:
        """Nothing serves the queue of these calls."""
        names = {pending.call.task for pending in pendings if pending.options.queue is None}
        for known in (self._asked, self._found):
            for name in [name for name, (since, *_) in known.items() if now - since >= FORGOTTEN_SECONDS]:
                del known[name]
        asked = [name for name in sorted(names) if now >= sum(self._asked.get(name, ()))][:MAX_NAMES]
        for name in asked:
            _, pause = self._asked.get(name, (now, FIRST_SECONDS / 2))
            self._asked[name] = now, min(2 * pause, LONGEST_SECONDS)
        if asked:
            self._ask(Query(VERSION, self._token, queries.encode(FindTasks(asked))), self._heard)

    def hint(self, pendings: Sequence[Pending]) -> str:
        """Say which worker serves the atask of one of these calls, on which queue, and what to do; or nothing."""
        for pending in pendings:
            if pending.options.queue is None and (found := self._found.get(pending.call.task)) is not None:
                _, worker, queue = found
                return (
                    f"; worker {worker} serves {pending.call.task!r} on queue {queue!r}: name that queue at both "
                    f"sides, by queue={queue!r} of atasks.connect or @atask"
                )
        return ""

    def _heard(self, answer: QueryAnswer) -> None:
        found = queries.decode_answer(answer.content)
        if isinstance(found, TasksFound) and found.queue != self._queue:
            for name in found.names:
                if name in self._asked:
                    self._found[name] = self._asked[name][0], answer.worker, found.queue
