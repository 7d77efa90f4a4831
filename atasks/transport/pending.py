"""A call whose await has not ended, as its transport knows it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from atasks import wire
from atasks.errors import CallConnectionLost, StreamLost, WorkerLost
from atasks.options import TaskOptions
from atasks.progress import Progress
from atasks.transport.whereabouts import Whereabouts, lost_at
from atasks.wire import Call, Reply, Report, Status

if TYPE_CHECKING:
    from atasks.transport.stream_receiver import StreamReceiver

__all__ = ["NOT_SENT", "PUT_OFF", "SPENT", "Pending", "PlainPending"]

PUT_OFF: Final = math.inf
"""The time of sending of a call that is not sent, and not asked for, until its journal was looked at."""

NOT_SENT: Final = wire.ended("", Status.CANCELLED, "not sent")
"""The answer to a call that was held until its journal is open, and is to be made in the ordinary way then."""

SPENT: Final = wire.ended("", Status.CANCELLED, "another call of this id has ended")
"""The answer to a call whose equal has ended for its caller alone: whoever makes it again gives it another id,
because a reply to the first one may be on its way."""


class Pending(Struct, eq=False):
    """A call whose await has not ended."""

    call: Call
    options: TaskOptions
    future: asyncio.Future[Reply]
    timer: asyncio.TimerHandle | None = None
    deadline: float | None = None
    """When the await ends at the latest (event loop time): the timer may be set to sooner. None: no deadline."""
    receiver: StreamReceiver | None = None
    """The receiver of the call's items; None: the call is no stream."""
    since: float = 0.0
    """When it was sent, or a worker last said that it holds it (event loop time); or `PUT_OFF`."""
    asked: int = 0
    """The number of times that workers were asked for the call since then."""
    where: Whereabouts | None = None
    """The whereabouts that were told last; None: they are not known."""
    ran_at: Whereabouts | None = None
    """The run that was told of last, which `where` is no more once its worker is dead; None: none was."""
    denied: int = 0
    """The number of times since then that all workers said that they do not have the call."""
    confirmed: bool = False
    """True once the broker has the request."""
    unheard: bool = False
    """True if the broker had no queue for the request: it waits for a worker that declares one."""
    copies: dict[int | str, str] | None = None
    """Attempt -> the one copy of its request that may start as this attempt; for a call that runs at most once,
    copy -> the one worker that may start it. None: nobody has asked."""
    begun: tuple[str, int] | None = None
    """The beginning of the last attempt: the worker, and which of its beginnings that is (0: it did not say)."""
    kept: bool = False
    """True if nobody awaits the call here: the await ends when the request is safe."""
    goes_on: bool = False
    """True if its await was cancelled, and the next run of the call that made it is to have its reply."""
    address: str = ""
    """The address of its replies, if they go into a record or a journal."""
    delay: float = 0.0
    """After how many seconds it may begin, if it is kept."""
    key: str | None = None
    """Under which key its messages are sealed, where they are: None: this side's own. Empty: under none."""
    began: float = 0.0
    """When its await began, by `time.perf_counter()`, if that is of `CallTransport.request`."""

    def __repr__(self) -> str:  # without the arguments, which a debugging event loop would log
        return f"<pending call {self.call.id} of {self.call.task!r}>"

    def answered(self, reply: Reply) -> None:
        """End the await with this reply, unless it ended already."""
        if not self.future.done():
            self.future.set_result(reply)

    def reported(self, report: Report) -> None:
        """The call says how far it is: tell who watches it. Dropped if nobody does, and if it makes no sense."""
        viewer = self.options.viewer
        if viewer is not None and not self.future.done() and _is_finite(report):
            progress = Progress(report.done, report.total, report.note, report.attempt, self.call.try_)
            viewer(progress)

    def handed_over(self) -> None:
        """The request of a kept call is safe: its await has ended."""
        self.answered(wire.ended(self.call.id, Status.VALUE, "kept"))

    @property
    def followed(self) -> bool:
        """True if the call is asked for only: it was submitted, and nothing here awaits it."""
        return self.kept and self.confirmed

    def lost(self, error: CallConnectionLost) -> None:
        """End the await of a call that was lost, and may run at most once."""
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the await with an error, unless it ended already."""
        if not self.future.done():
            if isinstance(error, (CallConnectionLost, StreamLost, WorkerLost)):
                lost_at(error, self.place)
            self.future.set_exception(error)

    @property
    def place(self) -> Whereabouts | None:
        """The whereabouts of the call, as far as they were told: by whoever had it, or by the broker."""
        seen = None if self.receiver is None else self.receiver.seen
        if seen is not None and (self.where is None or self.where.worker != seen.worker):
            return seen
        return self.where or self._beginning

    @property
    def last_run(self) -> Whereabouts | None:
        """The run of it that is known last, which may be over."""
        return self.ran_at or self._beginning

    @property
    def _beginning(self) -> Whereabouts | None:
        return None if self.begun is None else Whereabouts("run", self.options.queue or "", self.begun[0])


class PlainPending(Pending, gc=False):
    """A call of `CallTransport.request`. The garbage collector does not look at it, so nothing that it refers to
    may refer to it when its await has ended."""


def _is_finite(report: Report) -> bool:
    try:
        return math.isfinite(report.done) and (report.total is None or math.isfinite(report.total))
    except OverflowError:
        return False
