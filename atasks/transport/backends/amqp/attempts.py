"""Calls that were delivered before: which attempt comes next, whether it may start, and when a call is lost."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pamqp.commands import Basic

from atasks import wire
from atasks.run import describe
from atasks.transport.backends.amqp.callers import CANCEL
from atasks.transport.backends.amqp.inbound import CallDelivery
from atasks.transport.backends.amqp.link import CLIENT_ERRORS
from atasks.transport.backends.amqp.outbox import Outgoing
from atasks.wire import AT_MOST_ONCE, CONTENT_TYPE, VERSION, Ask, Call, Claim, End, Grant, Reply, Status

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.intake import Intake

__all__ = ["Attempts"]

logger = logging.getLogger("atasks.amqp")

T = TypeVar("T")

ASK_SECONDS: Final = 1.0
PROMPT_SECONDS: Final = 0.25
"""Within which a caller answers that is connected and not busy."""
MAX_ASIDE: Final = 100
"""Calls of silent callers that are put aside at once; each costs the broker two messages a second."""
ASK_ROUNDS: Final = 3
"""How often workers are asked for a call before it is declared lost."""
GONE_ROUNDS: Final = 2
"""How often a reply queue must be missing. Once is not enough: see `CallerWatch`."""
MAX_SILENT: Final = 1000
"""Callers that are remembered to be silent. To forget one costs time only."""


class Word(enum.Enum):
    """What a caller says to a worker that has a copy of its call."""

    NO = enum.auto()
    """It is one copy too many, or nobody awaits the call."""
    YES = enum.auto()
    """It may start."""
    BEGUN = enum.auto()
    """The same, of a last attempt, which a worker has begun: this one, or one that had the copy before."""


class Attempts:
    """Counts the attempts of calls, and sees to it that each after the first one is started once.

    A call that was delivered before is published again, at the next attempt, and what it came by is acknowledged.
    A connection that is cut between the two, or a worker that dies there, leaves two copies of it at the broker.
    So whoever receives a later attempt asks its caller before starting it: the caller grants each attempt to one
    copy, and the others are dropped. If it is silent for `patience` seconds of connection, the copy starts;
    if it is gone by then, as its reply queue tells, only one with `orphan="run"` does.

    The last attempt is lost with its worker, if it has begun there: when it has the worker for itself, it is
    claimed once more, and the caller remembers that. A worker may die before, of a call that still ran.
    """

    patience = 30.0

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._questions: dict[str, _Waiting[Reply | End | None]] = {}
        """Id of a call, and of the copy of it, that may be lost -> what the other workers are asked."""
        self._claims: dict[str, _Waiting[Word]] = {}
        """Id of a copy -> what its caller is asked."""
        self._beginnings: dict[str, asyncio.Future[Word]] = {}
        """The same, of last attempts that are about to begin."""
        self._silent: dict[str, float] = {}
        """Reply queue -> since when a caller was asked without an answer (event loop time)."""
        self._errands: set[asyncio.Task[None]] = set()
        self._stopped = False

    def take(self, call: Call, delivery: CallDelivery, again: bool) -> bool:
        """Deal with a call that was delivered before, or is at a later attempt. False: it is the worker's.

        `again`: the broker has delivered this message before. It says so of every message after a crash of its
        own, so attempts are counted in the envelope."""
        if (not again and call.attempt == 1) or self._intake.worker.knows(call.id):
            return False
        inbound = delivery.inbound
        claim, question = self._claims.get(inbound.copy), self._questions.get(call.id)
        answerable = call.attempt > 1 and bool(inbound.copy) and not inbound.kept
        last = call.attempt >= call.max_attempts
        begins = last and inbound.consumer.solo and call.delivery != AT_MOST_ONCE
        if claim is not None:  # it was delivered once more meanwhile, over the next link
            claim.deliveries.append(delivery)
            claim.again = claim.again or (again and begins)
        elif again and question is not None:
            question.deliveries.append(delivery)
        elif answerable and (begins or not again):
            # Counted at once, as below: what comes next over this consumer depends on it.
            inbound.consumer.claims += 1
            self._errand(self._claim(call, delivery, again))
        elif not again:  # nobody can be asked, or for nothing
            return False
        elif last or call.delivery == AT_MOST_ONCE or call.credit:
            inbound.consumer.away += 1
            self._errand(self._ask_before(call, [delivery]))
        else:
            self._try_again(call, delivery)
        return True

    def stop(self) -> None:
        """The worker takes no more calls: those that wait for the word of their callers go back."""
        self._stopped = True
        for claim in self._claims.values():
            claim.tell(Word.YES)

    def restart(self) -> None:
        """It takes calls again."""
        self._stopped = False

    async def ended(self) -> None:
        """Return when nothing is asked any more."""
        for errand in list(self._errands):
            await asyncio.wait([errand])

    def _errand(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name="atasks attempt")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _try_again(self, call: Call, delivery: CallDelivery) -> None:
        logger.debug("%s was delivered before: attempt %d is next", describe(call), call.attempt + 1)
        delivery.charge(call)

    # -- may it start?

    async def _claim(self, call: Call, delivery: CallDelivery, again: bool) -> None:
        intake, copy, epoch = self._intake, delivery.inbound.copy, self._intake.epoch
        claim = self._claims[copy] = _Waiting[Word]([delivery], again)
        consumer = delivery.inbound.consumer
        try:
            word = Word.YES if self._stopped else await self._ask_caller(call, delivery, claim)
        finally:
            del self._claims[copy]
            if claim.away:
                consumer.away -= 1
            else:
                consumer.claims -= 1
        if word is Word.NO:
            logger.debug(
                "%s, attempt %d, does not start: %s is one copy too many", describe(call), call.attempt, copy
            )
            for each in claim.deliveries:
                each.drop()
        elif word is Word.BEGUN and claim.again:
            consumer.away += 1
            self._adapt_window()
            await self._ask_before(call, claim.deliveries)
        elif self._stopped and claim.again:
            for each in claim.deliveries:
                each.requeue()
        elif self._stopped:
            *others, last = claim.deliveries
            last.give_back(call)
            for each in others:
                each.drop()
        else:
            permit = partial(self._begin, call, delivery, claim.again, epoch)
            for each in claim.deliveries:  # the first one starts it, and it adopts the others
                intake.worker.deliver(call, each, consumer.solo, permit)
        self._adapt_window()

    def _adapt_window(self) -> None:
        if self._intake.window is not None:
            self._intake.window.adapt_soon()

    async def _ask_caller(self, call: Call, delivery: CallDelivery, claim: _Waiting[Word]) -> Word:
        """What the caller says; if it stays silent, what is to be taken for its word."""
        intake, reply_to, loop = self._intake, delivery.inbound.reply_to, asyncio.get_running_loop()
        if len(self._silent) >= MAX_SILENT:
            self._silent.clear()
        silent = loop.time() - self._silent.setdefault(reply_to, loop.time()) > PROMPT_SECONDS
        if silent and delivery.inbound.consumer.away < MAX_ASIDE:
            self._put_aside(claim, delivery)
        missing = 0
        while True:
            if intake.link is None:
                self._silent[reply_to] = loop.time()
            else:
                self._send_claim(call, delivery, begins=False, again=claim.again)
            if not (claim.away or await claim.answered(PROMPT_SECONDS)):
                self._put_aside(claim, delivery)
            if await claim.answered(ASK_SECONDS):
                self._silent.pop(reply_to, None)
                return claim.answer.result()
            state = await self._reply_queue(reply_to)
            missing = missing + 1 if state is None else 0
            if missing == GONE_ROUNDS:  # its caller is gone, or sends it again with another reply queue
                return Word.NO if call.orphan == CANCEL else Word.BEGUN
            logger.debug("%s, attempt %d, waits for the word of its caller", describe(call), call.attempt)
            self._adapt_window()
            if loop.time() >= self._silent.setdefault(reply_to, loop.time()) + self.patience:
                # Without a consumer it is gone, as `CallerWatch` has it. One that comes back sends the call again.
                gone = call.orphan == CANCEL and state is not None and not state[1]
                return Word.NO if gone else Word.BEGUN

    def _put_aside(self, claim: _Waiting[Word], delivery: CallDelivery) -> None:
        """Its caller is slow to answer, or gone: other calls need not wait for it, last attempts neither. A worker
        that died leaves many of which it was the caller."""
        if not claim.away:
            claim.away = True
            delivery.inbound.consumer.claims -= 1
            delivery.inbound.consumer.away += 1
            self._adapt_window()

    async def _reply_queue(self, name: str) -> tuple[int, int] | None:
        """(messages, consumers) of a reply queue, None if it is missing; with a consumer where that is unknown."""
        link = self._intake.link
        if link is not None:
            with suppress(*CLIENT_ERRORS):
                return await link.queue_state(name)
        return (0, 1)

    def granted(self, grant: Grant) -> None:
        """A caller says whether a copy may start."""
        word = Word.NO if not grant.granted else Word.BEGUN if grant.begun else Word.YES
        claim, beginning = self._claims.get(grant.copy), self._beginnings.get(grant.copy)
        if claim is not None:
            claim.tell(word)
        if beginning is not None and word is not Word.YES and not beginning.done():
            beginning.set_result(word)  # YES would be the answer to an earlier question

    async def _begin(self, call: Call, delivery: CallDelivery, again: bool, epoch: int) -> bool:
        """A last attempt has the worker for itself: whether it may begin. A caller that has answered before and is
        silent now keeps it from that for some seconds only, if its reply queue is there. If it has begun
        elsewhere, what it came by goes back to the broker: the worker where it began may be gone by now."""
        intake, copy, reply_to = self._intake, delivery.inbound.copy, delivery.inbound.reply_to
        rounds, word = 0, Word.BEGUN
        beginning = self._beginnings[copy] = asyncio.get_running_loop().create_future()
        try:
            while rounds < ASK_ROUNDS and not beginning.done():
                if intake.link is not None:
                    self._send_claim(call, delivery, begins=True, again=again or intake.epoch != epoch)
                    rounds += 1
                await asyncio.wait([beginning], timeout=ASK_SECONDS)
            # Without its reply queue its caller is gone, or has sent it again with another one.
            gone = not beginning.done() and await self._reply_queue(reply_to) is None
            if beginning.done():
                word = beginning.result()
            elif gone and call.orphan == CANCEL:
                word = Word.NO
        finally:
            del self._beginnings[copy]
        run = intake.worker.find(call.id)
        if word is Word.NO and run is not None:
            deliveries, run.deliveries = run.deliveries, []
            for each in deliveries:
                if isinstance(each, CallDelivery):
                    each.requeue()
        return word is not Word.NO

    # -- is it lost?

    async def _ask_before(self, call: Call, deliveries: list[CallDelivery]) -> None:
        """A call that may not be started again: unless a worker still runs it, or has finished it, it is lost. Or
        a stream, which would be torn from a worker that runs it still. A worker whose connection was cut needs a
        moment to come back, so it is asked for more than once."""
        # Only a later attempt has a copy of its own: the message of a first one may be that of other calls too.
        inbound = deliveries[0].inbound
        names = [call.id, inbound.copy] if call.attempt > 1 and inbound.copy else [call.id]
        question = _Waiting[Reply | End | None](deliveries)
        self._questions.update(dict.fromkeys(names, question))
        again = call.delivery != AT_MOST_ONCE and call.attempt < call.max_attempts
        reply: Reply | End | None = None if again else self._worker_lost(call)
        consumer = inbound.consumer
        for _ in range(ASK_ROUNDS):
            key = self._intake.transport.topology.queue_key(consumer.queue)
            self._send(Ask(VERSION, names), key, control=True)
            if await question.answered(ASK_SECONDS):
                reply, again = question.answer.result(), False
                break
        consumer.away -= 1
        for name in names:
            self._questions.pop(name, None)
        if again:
            self._try_again(call, question.deliveries.pop())
        for each in question.deliveries:
            if reply is None:
                each.drop()  # whoever runs it replies
            else:
                each.reply(reply)

    def told(self, name: str, reply: Reply | End | None) -> None:
        """A worker answered: it holds the call, or its copy (None), or has finished it."""
        question = self._questions.get(name)
        if question is not None:
            question.tell(reply)

    def holds(self, name: str, asked_by_caller: bool) -> bool:
        """Whether a copy, by its id, waits here for its caller's word; or, for a caller, whether it is found out
        here what became of its call. Two workers that find out about one call do not hold it for each other: then
        both would drop it."""
        return name in self._claims or (asked_by_caller and name in self._questions)

    def _worker_lost(self, call: Call) -> Reply:
        times = f"{call.attempt} workers" if call.attempt > 1 else "the worker"
        message = f"{times} died with task {call.task!r}, call {call.id}: it will not run again"
        return wire.ended(call.id, Status.WORKER_LOST, message, self._intake.worker.id, call.attempt)

    def _send_claim(self, call: Call, delivery: CallDelivery, *, begins: bool, again: bool) -> None:
        inbound, worker = delivery.inbound, self._intake.worker
        claim = Claim(VERSION, call.id, call.attempt, inbound.copy, worker.id, begins, again)
        self._send(claim, inbound.reply_to)

    def _send(self, envelope: Ask | Claim, key: str, control: bool = False) -> None:
        intake = self._intake
        properties = Basic.Properties(
            content_type=CONTENT_TYPE, message_id=intake.number(), reply_to=intake.control, delivery_mode=1
        )
        exchange = intake.transport.topology.control if control else ""
        message = Outgoing(wire.encode([envelope]), key, properties, exchange=exchange, mandatory=False)
        intake.transport.outbox.put(message)


class _Waiting(Generic[T]):
    """Deliveries of a call that wait for an answer."""

    def __init__(self, deliveries: list[CallDelivery], again: bool = False) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.deliveries = deliveries
        self.again = again
        """Whether the broker had delivered one of them before."""
        self.away = False
        """Whether the caller that is asked is slow to answer: then nothing waits for it but this call."""

    async def answered(self, seconds: float) -> bool:
        """Whether there is an answer, within so many seconds."""
        await asyncio.wait([self.answer], timeout=seconds)
        return self.answer.done()

    def tell(self, answer: T) -> None:
        """The answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_result(answer)
