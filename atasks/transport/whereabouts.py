"""Where a call is that has not ended, as far as its caller knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from atasks.errors import CallTimeout
from atasks.wire import Call, Reply

if TYPE_CHECKING:
    from atasks.transport.server import HeldRun

__all__ = ["Whereabouts", "found_at", "timed_out", "whereabouts_by"]


class Whereabouts(Struct, gc=False):
    """The place of a call that has not ended, and what it waits for there."""

    waits_for: Literal["connection", "worker", "turn", "run"] | None
    """For a connection that takes it, for a worker that serves its queue, for its turn there, or for its run to
    end; None: for a worker that has it and does not answer."""
    queue: str = ""
    worker: str = ""
    """The name of the worker that has the call."""
    ran: float | None = None
    """Seconds of its run, when this was told."""
    told: float = 0.0
    """When (event loop time)."""
    waiting: int = 0
    """The number of calls that wait in the queue."""

    def words(self, ran: float | None) -> str:
        """A clause that says it."""
        if self.waits_for is None:
            return f"a worker of queue {self.queue!r} has it and does not answer: is its event loop blocked?"
        if self.waits_for == "connection":
            return (
                f"the broker has not taken it for queue {self.queue!r}: has it an alarm of memory or disk?"
                if self.queue
                else "it waited for the connection, which is lost"
            )
        if self.waits_for == "worker":
            return f"it waited for a worker, and nothing serves queue {self.queue!r}"
        if self.waits_for == "run":
            since = "" if ran is None else f" for {ran:.1f} s"
            return f"it ran at worker {self.worker}{since}"
        if self.worker:
            return f"it waited for a slot at worker {self.worker}"
        return f"it waited for its turn in queue {self.queue!r}, where {self.waiting} calls wait"


def timed_out(call: Call, where: Whereabouts | None = None, now: float | None = None) -> CallTimeout:
    """The error of a call whose deadline passed; `now` is in event loop time, and None if that was just told."""
    text = f"{call.task} did not finish within {(call.timeout_ms or 0) / 1000:g} s"
    if where is None:
        return CallTimeout(text)
    ran = where.ran if where.ran is None or now is None else where.ran + now - where.told
    return CallTimeout(
        f"{text}: {where.words(ran)}", waited_for=where.waits_for, worker=where.worker or None, ran=ran
    )


def found_at(worker: str, run: HeldRun, now: float) -> Whereabouts:
    """Where a call is that the worker of that id has, in this process."""
    ran = run.ran
    return Whereabouts("turn" if ran is None else "run", "", worker, ran, now)


def whereabouts_by(reply: Reply) -> Whereabouts | None:
    """Where the worker had the call that says that its deadline has passed."""
    if not reply.worker:
        return None
    if not reply.run_us:
        return Whereabouts("turn", worker=reply.worker)
    return Whereabouts("run", worker=reply.worker, ran=reply.run_us / 1e6)
