"""The end of a call, as everybody hears of it who does not await it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atasks import wire
from atasks.call_log import log_end
from atasks.failures.failures import failure_text, raised_type
from atasks.tracking.counters import ENDINGS
from atasks.wire import Reply, Status
from atasks.worker.held_call import RETURNED, HeldCall

if TYPE_CHECKING:
    from atasks.tracking.watching import Watching

__all__ = ["log_ending", "settle_unanswered", "tell_ending"]

LATE_SECONDS: Final = 0.1
"""A call whose await ends so long before its deadline, or later, has met it: its caller's timer was first."""


def settle_unanswered(run: HeldCall) -> None:
    """Give a call back that has no reply, if another worker must run it; else nobody is told of it."""
    deliveries = run.deliveries
    if run.reason in RETURNED and deliveries:
        run.call.ran |= run.sender is not None
        # Through the last delivery: the earlier ones may be of a connection that is gone.
        deliveries[-1].give_back(run.call)
        deliveries = deliveries[:-1]
    for delivery in deliveries:
        delivery.drop()


def log_ending(run: HeldCall, reply: Reply | None) -> None:
    """Write the line of this call in the log of calls; `reply` None: its await has ended before."""
    late = run.deadline is not None and run.loop.time() >= run.deadline - LATE_SECONDS
    log_end(run.call, reply, worker=run.worker.id, queue=run.queue, ran=run.ran, late=late)


def tell_ending(watching: Watching, run: HeldCall, reply: Reply | None) -> None:
    """Tell those who watch the worker how a call has ended."""
    if reply is None:
        if run.reason in RETURNED:
            watching.held("given_back", run)
        else:
            watching.ended(run, "withdrawn")
        return
    kind = text = ""
    if reply.status == Status.RAISED:
        kind, text = raised_type(reply.payload), failure_text(reply.payload)
    elif reply.status:
        text = wire.ending(reply).message
    watching.ended(run, ENDINGS[reply.status], kind, text)
