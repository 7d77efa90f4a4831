"""Copies of calls that wait for the word of their callers: may they start?"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Generic, TypeVar

from atasks import wire
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.wire import VERSION, Call, Claim, Grant

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.delivery import CallDelivery
    from atasks.transport.backends.amqp.worker.station import Station

__all__ = ["ClaimAnswer", "CopyClaim", "Question", "Waiting"]

T = TypeVar("T")


class ClaimAnswer(enum.Enum):
    """The answers of a caller to a worker that has a copy of its call."""

    NO = enum.auto()
    """One copy too many: do not start it."""
    OVER = enum.auto()
    """Nobody awaits the call."""
    YES = enum.auto()
    """The copy may start."""
    BEGUN = enum.auto()
    """The copy may start, and a worker has begun this last attempt: this one, or one that had the copy before."""
    HERE = enum.auto()
    """The copy may start, and this worker has begun this last attempt: its question has been granted before."""
    SILENCE = enum.auto()
    """Nothing, for long: it starts without a word, and a last attempt that was delivered before may have begun."""
    BACK = enum.auto()
    """Nothing, and the worker takes no more calls: the copy goes back."""


class Waiting(Generic[T]):
    """Deliveries of a call that wait for an answer."""

    def __init__(self, deliveries: list[CallDelivery]) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.deliveries = deliveries

    async def answered(self, seconds: float) -> bool:
        """Return True if there is an answer within so many seconds."""
        await asyncio.wait([self.answer], timeout=seconds)
        return self.answer.done()

    def tell(self, answer: T) -> None:
        """The answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_result(answer)


class CopyClaim(Waiting[ClaimAnswer]):
    """The deliveries of one copy of a call, of which its caller is asked whether it may start, or begin."""

    def __init__(
        self,
        call: Call,
        deliveries: list[CallDelivery],
        again: bool,
        epoch: int,
        run: int = 0,
        begins: bool = False,
    ) -> None:
        super().__init__(deliveries)
        self.call = call
        self.copy = deliveries[0].request.copy
        """The name of the copy."""
        self.reply_to = deliveries[0].request.reply_to
        self.again = again
        """True if the broker had delivered one of the copies before."""
        self.epoch = epoch
        """The epoch of the link at that time: over another link the broker delivers the copies again, perhaps
        to another worker."""
        self.run = run
        """Which beginning was asked for, counted over this worker; 0: none was yet."""
        self.begins = begins
        self.question: Question | None = None
        """The latest question that was sent over this link."""

    @property
    def arrived(self) -> bool:
        """The last question is at the broker."""
        return self.question is not None and self.question.arrived

    def was_delivered_before(self, epoch: int) -> bool:
        """Return True if another worker had the copy, or may have it by now: the link by which it came is gone."""
        return self.again or self.epoch != epoch

    def answer_of(self, grant: Grant) -> ClaimAnswer:
        """Return the answer that a grant stands for."""
        if not grant.granted:
            return ClaimAnswer.OVER if grant.over else ClaimAnswer.NO
        if not grant.begun:
            return ClaimAnswer.YES
        if self.run and grant.run == self.run:
            return ClaimAnswer.HERE
        # The caller is of an older version: it grants each beginning to whoever asks, and names no run.
        if grant.run is None:
            return ClaimAnswer.HERE if self.begins else ClaimAnswer.YES if self.run else ClaimAnswer.BEGUN
        return ClaimAnswer.NO if self.begins else ClaimAnswer.BEGUN  # it has begun at another worker


class Question(Outgoing):
    """A claim on its way to the caller. It says what is true when it leaves, and is not sent again if its link is
    lost: it is asked anew then."""

    __slots__ = ("_station", "arrived", "claim", "ended")

    def __init__(self, station: Station, claim: CopyClaim) -> None:
        key = claim.deliveries[0].request.key
        super().__init__(b"", claim.reply_to, station.question(), mandatory=False, key=key)
        self._station = station
        self.claim = claim
        self.arrived = False
        """True once the broker has the question."""
        self.ended = False
        """True once nothing more becomes of the question."""

    def prepare(self) -> bool:
        claim, station = self.claim, self._station
        if claim.answer.done():
            self.ended = True
            return False
        self.properties.reply_to = station.control  # that of this link
        call, request = claim.call, claim.deliveries[0].request
        again, worker = claim.was_delivered_before(station.epoch), station.worker.id
        self.body = wire.encode(
            [
                Claim(
                    VERSION,
                    call.id,
                    call.attempt,
                    claim.copy,
                    worker,
                    claim.begins,
                    again,
                    claim.run,
                    request.over,
                )
            ]
        )
        return True

    def confirmed(self) -> None:
        self.arrived = self.ended = True

    def refused(self) -> None:
        self.ended = True

    def lost(self) -> bool:
        self.ended = True
        return False
