"""A handler of an event, as transports know it."""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct, structs

from atasks.wire import AT_LEAST_ONCE, AT_MOST_ONCE, Call

if TYPE_CHECKING:
    from atasks.options import TaskOptions

__all__ = ["Subscription"]


class Subscription(Struct, array_like=True, frozen=True):
    """Says which atask handles an event, and by which queue its calls come."""

    event: str
    task: str
    """The name of the atask that handles it."""
    queue: str | None
    """The work queue of its group; None: every worker handles the event."""
    timeout_ms: int | None = None
    max_attempts: int = 3
    delivery: Annotated[int, Meta(ge=0, le=1)] = AT_LEAST_ONCE

    @classmethod
    def of(cls, event: str, task: str, queue: str | None, options: TaskOptions) -> Subscription:
        """The subscription of an atask with these options."""
        timeout_ms = None if options.timeout is None else max(1, round(options.timeout * 1000))
        once = options.delivery == "at_most_once"
        return cls(event, task, queue, timeout_ms, options.max_attempts, AT_MOST_ONCE if once else AT_LEAST_ONCE)

    def call(self, published: Call, worker: str = "") -> Call:
        """The call of the handler that this event makes, at that worker if every worker handles it. Its id is the
        same whenever the event is delivered, and not that of another handler or worker. Its time begins now: an
        event may have waited for a worker. Its key is its id: the worker makes the tries."""
        call_id = blake2b(f"{published.id} {self.task} {worker}".encode(), digest_size=16).hexdigest()
        return structs.replace(
            published,
            id=call_id,
            key=call_id,
            task=self.task,
            sent_ms=int(time.time() * 1000),
            timeout_ms=self.timeout_ms,
            max_attempts=self.max_attempts,
            delivery=self.delivery,
        )
