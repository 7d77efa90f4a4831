"""The whereabouts of a call that has not ended, as far as its caller knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from msgspec import Struct

from atasks import wire
from atasks.errors import CallError, CallTimeout
from atasks.wire import Call, Ending, Reply

if TYPE_CHECKING:
    from atasks.transport.server import HeldRun

__all__ = ["Whereabouts", "found_at", "last_seen", "lost_at", "placed", "timed_out", "whereabouts_by"]


class Whereabouts(Struct, gc=False):
    """The place of a call that has not ended, and what it waits for there."""

    waits_for: Literal["connection", "worker", "resume", "turn", "run"] | None
    """For a connection that takes it, for a worker that serves its queue, for the end of a pause of that queue,
    for its turn there, or for its run to end; None: for a worker that has it and does not answer."""
    queue: str = ""
    worker: str = ""
    """The name of the worker that has the call."""
    ran: float | None = None
    """Seconds of its run, when this was told."""
    told: float = 0.0
    """When (event loop time)."""
    waiting: int = 0
    """The number of calls that wait in the queue; 0: it is not known."""
    awaits: tuple[str, str] | None = None
    """A call that its run awaits: its id, and its atask."""
    elsewhere: str = ""
    """Which worker serves its atask, where nothing serves its queue: a clause behind the others; or nothing."""

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
            return f"it waited for a worker, and nothing serves queue {self.queue!r}{self.elsewhere}"
        if self.waits_for == "resume":
            return f"it waited in queue {self.queue!r}, which is paused (atasks resume {self.queue})"
        if self.waits_for == "run":
            since = "" if ran is None else f" for {ran:.1f} s"
            awaits = "" if self.awaits is None else f", and awaited {self.awaits[1]!r} (call {self.awaits[0]})"
            return f"it ran at worker {self.worker}{since}{awaits}"
        if self.worker:
            return f"it waited for a slot at worker {self.worker}"
        others = f", where {self.waiting} calls wait" if self.waiting else ""
        return f"it waited for its turn in queue {self.queue!r}{others}"


def timed_out(call: Call, where: Whereabouts | None = None, now: float | None = None) -> CallTimeout:
    """The error of a call whose deadline passed; `now` is in event loop time, and None if that was just told."""
    text = f"{call.task} did not finish within {(call.timeout_ms or 0) / 1000:g} s"
    if where is None:
        return CallTimeout(text)
    ran = where.ran if where.ran is None or now is None else where.ran + now - where.told
    return CallTimeout(
        f"{text}: {where.words(ran)}",
        waited_for=where.waits_for,
        worker=where.worker or None,
        ran=ran,
        awaited=where.awaits and where.awaits[0],
    )


E = TypeVar("E", bound=CallError)


def lost_at(error: E, where: Whereabouts | None) -> E:
    """The error of a call that was lost, with where the call was when that was last known."""
    if where is not None and error.waited_for is None:
        error.waited_for, error.worker, error.ran = where.waits_for, where.worker or None, where.ran
        error.awaited = where.awaits and where.awaits[0]
        error.args = (f"{error.args[0]}; when last seen, {where.words(where.ran)}", *error.args[1:])
    return error


def placed(reply: Reply, where: Whereabouts | None) -> Reply:
    """The reply of a call that was lost, with where its caller knows that it was, if it names no worker: who finds
    out that a worker is dead was not told what it did."""
    if where is None or not where.worker or (ending := wire.ending(reply)).worker:
        return reply
    return wire.ended(
        reply.id,
        reply.status,
        ending.message,
        reply.worker,
        ending.attempts,
        last_worker=where.worker,
        ran=where.ran,
        awaits=where.awaits,
    )


def found_at(worker: str, run: HeldRun, now: float) -> Whereabouts:
    """The whereabouts of a call that the worker of that id has, in this process."""
    ran = run.ran
    return Whereabouts("turn" if ran is None else "run", "", worker, ran, now, awaits=run.awaited)


def whereabouts_by(reply: Reply) -> Whereabouts | None:
    """The whereabouts that the worker tells with a deadline that has passed; None: it tells none."""
    if not reply.worker:
        return None
    if not reply.run_us:
        return Whereabouts("turn", worker=reply.worker)
    return Whereabouts("run", worker=reply.worker, ran=reply.run_us / 1e6, awaits=wire.ending(reply).awaits)


def last_seen(ending: Ending) -> Whereabouts | None:
    """The whereabouts of the call that is lost; None: they are not known."""
    if not ending.worker:
        return None
    ran = None if ending.ran_ms < 0 else ending.ran_ms / 1000
    return Whereabouts("run", worker=ending.worker, ran=ran, awaits=ending.awaits)
