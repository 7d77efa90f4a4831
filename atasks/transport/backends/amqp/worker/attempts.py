"""Calls that were delivered before: which attempt comes next, whether it may start, and when a call is lost."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from atasks import wire
from atasks.call_log import log_lost
from atasks.errands import Errands
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.worker.caller_watch import CANCEL
from atasks.transport.backends.amqp.worker.claims import (
    ClaimAnswer,
    CopyClaim,
    Question,
    Waiting,
)
from atasks.transport.backends.amqp.worker.consumer import Wait
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.wire import AT_MOST_ONCE, VERSION, Ask, Call, End, Grant, Reply, Status, describe

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.server import HeldRun

__all__ = ["Attempts"]

logger = logging.getLogger("atasks.amqp")

ASK_SECONDS: Final = 1.0
PROMPT_SECONDS: Final = 0.25
"""Within which a caller answers that is connected and not busy."""
MAX_ASIDE: Final = 100
"""Calls of silent callers that are put aside at once; each costs the broker two messages a second."""
ASK_ROUNDS: Final = 3
"""Rounds in which workers are asked for a call before it is declared lost."""
GONE_ROUNDS: Final = 2
"""Consecutive checks that must miss the reply queue before its caller counts as gone. See `CallerWatch` for why
one is not enough."""
AGAIN_SECONDS: Final = 2.0
"""A first attempt that began so long after it was sent may have been sent again by its caller."""
MAX_SILENT: Final = 1000
"""Callers that are remembered to be silent. To forget one costs time only."""


class Attempts:
    """Counts the attempts of calls, and sees to it that each after the first one is started once.

    A call that was delivered before is published again, at the next attempt, and what it came by is acknowledged.
    A connection that is cut between the two, or a worker that dies there, leaves two copies of it at the broker.
    So whoever receives a later attempt asks its caller before starting it: the caller grants each attempt to one
    copy, and the others are dropped. If it is silent for `patience` seconds of connection, the copy starts;
    if it is gone by then, as its reply queue tells, only one with `orphan="run"` does.

    The last attempt is lost with its worker, if it has begun there: when it has the worker for itself, it is
    claimed once more, and the caller remembers that. A worker may die before, of a call that still ran. A
    beginning is granted to one worker: the next one has it only with a copy that says that the other one gave it
    back. While the caller is silent the copy waits aside, and the worker runs other calls.

    A copy may wait here for its turn while another one ends the call. If it resumes, its caller is asked once more
    before its first step: the call may have ended so that its journal is gone.
    """

    patience = 30.0

    def __init__(self, station: Station) -> None:
        self._station = station
        self._questions: dict[str, Waiting[Reply | End | None]] = {}
        """Id of a call, and of the copy of it, that may be lost -> what the other workers are asked."""
        self._claims: dict[str, CopyClaim] = {}
        """Id of a copy -> what its caller is asked."""
        self._beginnings: dict[str, CopyClaim] = {}
        """Claims of last attempts that are about to begin."""
        self._begun: dict[str, list[CopyClaim]] = {}
        """Id of a call that runs here -> what its caller is asked before its first step."""
        self._runs = 0
        """Last attempts that have asked to begin."""
        self._silent: dict[str, float] = {}
        """Reply queue -> since when a caller was asked without an answer (event loop time)."""
        self._errands = Errands("atasks attempt")
        self._stopped = False

    def take(self, call: Call, delivery: CallDelivery, again: bool) -> bool:
        """Deal with a call that was delivered before, or is at a later attempt. False: it is the worker's.

        `again`: the broker has delivered this message before. It says so of every message after a crash of its
        own, so attempts are counted in the envelope."""
        request = delivery.request
        # A copy of it may be a replayed recording.
        sealed_once = call.delivery == AT_MOST_ONCE and bool(request.key)
        if (not again and call.attempt == 1 and not sealed_once) or self._station.worker.knows(call.id):
            return False
        claim, question = self._claims.get(request.copy), self._questions.get(call.id)
        answerable = (
            (call.attempt > 1 or sealed_once)
            and bool(request.copy)
            and not self._station.is_kept(request.reply_to)
        )
        last = call.attempt >= call.max_attempts
        begins = last and request.consumer.solo and call.delivery != AT_MOST_ONCE
        if claim is not None:  # the copy was delivered once more meanwhile, over the next link
            claim.deliveries.append(delivery)
            claim.again = claim.again or (again and begins)
        elif again and question is not None:
            question.deliveries.append(delivery)
        elif answerable and (begins or not again):
            # Counted at once, as below: what comes next over this consumer depends on it.
            wait = Wait(request.consumer)
            self._errands.start(self._claim(call, self._new_claim(call, [delivery], again), wait))
        elif not again:  # there is nobody to ask, or no use in asking
            return False
        elif last or call.delivery == AT_MOST_ONCE or call.credit:
            self._errands.start(self._ask_before(call, [delivery], Wait(request.consumer, aside=True)))
        else:
            self._try_again(call, delivery)
        return True

    def stop(self) -> None:
        """The worker takes no more calls: those that wait for the word of their callers go back."""
        self._stopped = True
        for claim in self._claims.values():
            claim.tell(ClaimAnswer.BACK)

    def restart(self) -> None:
        """Take calls again, over a new link."""
        self._stopped = False

    async def ended(self) -> None:
        """Return when nothing is asked any more."""
        for errand in list(self._errands):
            await asyncio.wait([errand])

    def _try_again(self, call: Call, delivery: CallDelivery) -> None:
        logger.debug("%s was delivered before: attempt %d is next", describe(call), call.attempt + 1)
        delivery.charge(call)

    # -- may it start?

    def _new_claim(self, call: Call, deliveries: list[CallDelivery], again: bool) -> CopyClaim:
        request = deliveries[0].request
        claim = self._claims[request.copy] = CopyClaim(call, deliveries, again, self._station.epoch)
        if self._stopped:
            claim.tell(ClaimAnswer.BACK)
        return claim

    async def _claim(self, call: Call, claim: CopyClaim, wait: Wait) -> None:
        request = claim.deliveries[0].request
        consumer = request.consumer
        try:
            answer = await self._ask_caller(claim, wait)
        finally:
            del self._claims[request.copy]
            wait.end()
        again = claim.was_delivered_before(self._station.epoch)
        if answer in (ClaimAnswer.NO, ClaimAnswer.OVER):
            copy = request.copy
            logger.debug("%s, attempt %d, does not start: copy %s is surplus", describe(call), call.attempt, copy)
            for each in claim.deliveries:
                each.drop()
            if answer is ClaimAnswer.OVER:
                self._station.worker.over(call)
        elif answer is ClaimAnswer.BACK and again and not claim.run:  # it may have begun elsewhere
            for each in claim.deliveries:
                each.requeue()
        elif answer is ClaimAnswer.BACK:
            *others, last = claim.deliveries
            last.give_back(call)
            for each in others:
                each.drop()
        elif answer in (ClaimAnswer.BEGUN, ClaimAnswer.SILENCE) and again:
            wait = Wait(consumer, aside=True)
            self._station.adapt_window()
            await self._ask_before(call, claim.deliveries, wait)
        else:
            permit = partial(self._begin, call, claim, answer) if consumer.solo else None
            for each in claim.deliveries:  # the first delivery starts the run, which adopts the other deliveries
                self._station.worker.deliver(call, each, consumer.solo, permit)
        self._station.adapt_window()

    async def _ask_caller(self, claim: CopyClaim, wait: Wait | None) -> ClaimAnswer:
        """Ask the caller about its copy, and return its answer; if the caller stays silent, the answer that
        silence stands for. `wait`: that of the copy; None: it has begun."""
        call, reply_to, loop = claim.call, claim.reply_to, asyncio.get_running_loop()
        if len(self._silent) >= MAX_SILENT:
            self._silent.clear()
        silent = loop.time() - self._silent.setdefault(reply_to, loop.time()) > PROMPT_SECONDS
        if wait is not None and silent and claim.deliveries[0].request.consumer.away < MAX_ASIDE:
            self._put_aside(wait)
        missing = 0
        while True:
            self._ask(claim)
            if wait is not None and not (wait.aside or await claim.answered(PROMPT_SECONDS)):
                self._put_aside(wait)
            if await claim.answered(ASK_SECONDS):
                self._silent.pop(reply_to, None)
                return claim.answer.result()
            if not claim.arrived:  # there is no link, or the broker takes nothing for now
                self._silent[reply_to] = loop.time()
            state = await self._reply_queue(reply_to)
            missing = missing + 1 if state is None else 0
            # Without an answer it does not start: its caller may have sent the call again.
            once = call.delivery == AT_MOST_ONCE
            if missing == GONE_ROUNDS:  # the caller is gone, or sends the call again with another reply queue
                return ClaimAnswer.NO if call.orphan == CANCEL or once else ClaimAnswer.SILENCE
            logger.debug("%s, attempt %d, waits until its caller lets it start", describe(call), call.attempt)
            self._station.adapt_window()
            if loop.time() >= self._silent.setdefault(reply_to, loop.time()) + self.patience:
                # Without a consumer it is gone, as `CallerWatch` has it. One that comes back sends the call again.
                gone = call.orphan == CANCEL and state is not None and not state[1]
                return ClaimAnswer.NO if gone or once else ClaimAnswer.SILENCE

    def _put_aside(self, wait: Wait) -> None:
        """Stop counting this claim against the window: its caller is slow or gone. (A worker that died was
        itself the caller of many such calls.)"""
        if not wait.aside:
            wait.put_aside()
            self._station.adapt_window()

    async def _reply_queue(self, name: str) -> tuple[int, int] | None:
        """(messages, consumers) of a reply queue, None if it is missing; with a consumer where that is unknown."""
        link = self._station.link
        if link is not None:
            with suppress(*CLIENT_ERRORS):
                return await link.queue_state(name)
        return (0, 1)

    def granted(self, grant: Grant) -> None:
        """A caller says whether a copy may start."""
        beginning = self._beginnings.get(grant.copy)
        for asked in (self._claims.get(grant.copy), beginning, *self._begun.get(grant.id, ())):
            if asked is not None:
                self._station.clocks.learn(asked.reply_to, grant.now_ms)
                answer = asked.answer_of(grant)
                if answer is not ClaimAnswer.YES or asked is not beginning:  # which asked something else before
                    asked.tell(answer)

    async def _begin(self, call: Call, claim: CopyClaim, answer: ClaimAnswer | None) -> bool:
        """A last attempt has the worker for itself: whether it may begin. Where its caller has answered before and
        is silent now, it waits aside, and the worker goes on with other calls. If it has begun elsewhere, what it
        came by goes back to the broker: the worker where it began may be gone by now."""
        worker, again = self._station.worker, claim.was_delivered_before(self._station.epoch)
        if not claim.run:
            self._runs += 1
            claim.run = self._runs
        name = f"{worker.id}:{claim.run}"
        run = worker.find(call.id)
        if run is not None:
            for each in run.deliveries:
                if isinstance(each, CallDelivery):
                    each.beginning = name
        beginning = CopyClaim(call, claim.deliveries, again, claim.epoch, claim.run, begins=True)
        self._ask(beginning)
        if answer not in (
            ClaimAnswer.HERE,
            ClaimAnswer.SILENCE,
        ):  # with these two answers nothing is left to ask
            copy = claim.deliveries[0].request.copy
            self._beginnings[copy] = beginning
            try:
                answer = beginning.answer.result() if await beginning.answered(ASK_SECONDS) else None
            finally:
                del self._beginnings[copy]
        if answer in (ClaimAnswer.HERE, ClaimAnswer.SILENCE):
            return True
        run = worker.find(call.id)
        if run is not None:
            deliveries = [item for item in run.deliveries if isinstance(item, CallDelivery)]
            run.deliveries = ()
            if answer is None:
                aside = self._new_claim(call, deliveries, again or len(deliveries) > len(claim.deliveries))
                aside.run = claim.run
                self._errands.start(self._claim(call, aside, Wait(deliveries[0].request.consumer, aside=True)))
            else:
                for each in deliveries:
                    each.requeue()
        return False

    # -- has it ended?

    async def is_over(self, call_id: str) -> bool:
        """Return True if nobody awaits a call any more that runs here, may have run elsewhere, and has made no
        step: it waited for its turn while another copy of it ended. Its caller is asked, which reads the reply to
        that copy before the question. False where it is silent or gone, and for calls that nobody awaits."""
        run = self._station.worker.find(call_id)
        delivery = None if run is None else run.deliveries[0]
        if run is None or not isinstance(delivery, CallDelivery) or not self._may_be_over(run, delivery):
            return False
        claim = CopyClaim(run.call, [delivery], True, self._station.epoch)
        if run.call.attempt == 1:
            claim.copy = call_id  # as `Doubts` asks: each copy of a first attempt may begin
        asked = self._begun.setdefault(call_id, [])  # by each that opens the journal
        asked.append(claim)
        try:
            return await self._ask_caller(claim, None) is ClaimAnswer.OVER
        finally:
            asked.remove(claim)
            if not asked:
                self._begun.pop(call_id, None)

    def _may_be_over(self, run: HeldRun, delivery: CallDelivery) -> bool:
        """Return True if the caller of a call that has begun here can be asked for it, and there is a reason to:
        another worker may have had it. A caller sends a call again after some seconds, or when it has lost its
        connection. The second message says so; while the first one waits for a slot the other may be run."""
        request, station, call = delivery.request, self._station, run.call
        if call.delivery == AT_MOST_ONCE or station.is_kept(request.reply_to):
            return False
        if call.attempt > 1:
            return bool(request.copy)
        here = asyncio.get_running_loop().time() - request.received
        waited = station.clocks.waited(request.reply_to, call.sent_ms) if call.sent_ms else 0.0
        return request.came_again or call.ran or max(waited, here) - (run.ran or 0.0) > AGAIN_SECONDS

    # -- is it lost?

    async def _ask_before(self, call: Call, deliveries: list[CallDelivery], wait: Wait) -> None:
        """A call that may not be started again: unless a worker still runs it, or has finished it, it is lost. Or
        a stream, which would be torn from a worker that runs it still. A worker whose connection was cut needs a
        moment to come back, so it is asked for more than once."""
        # Only a later attempt has a copy of its own: the message of a first one may be that of other calls too.
        request = deliveries[0].request
        names = [call.id, request.copy] if call.attempt > 1 and request.copy else [call.id]
        question = Waiting[Reply | End | None](deliveries)
        self._questions.update(dict.fromkeys(names, question))
        again = call.delivery != AT_MOST_ONCE and call.attempt < call.max_attempts
        lost = None if again else self._worker_lost(call)
        reply: Reply | End | None = lost
        station = self._station
        for _ in range(ASK_ROUNDS):
            key = station.session.topology.queue_key(request.consumer.queue)
            ask = station.session.control(
                [Ask(VERSION, names)], key, request.voice, message_id=station.number(), reply_to=station.control
            )
            station.put(ask)
            if await question.answered(ASK_SECONDS):
                reply, again = question.answer.result(), False
                break
        wait.end()
        for name in names:
            self._questions.pop(name, None)
        if again:
            self._try_again(call, question.deliveries.pop())
        if lost is not None and reply is lost:  # else whoever answered has said and counted how it ended
            station.worker.count_lost(call)
            log_lost(call, lost, queue=request.consumer.queue)
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
        """Return True if a copy, by its id, waits here for its caller's answer; or, for a caller, if this worker
        finds out about its call.

        Two workers that find out about one call do not hold it for each other: then both would drop it.
        """
        return name in self._claims or (asked_by_caller and name in self._questions)

    def _worker_lost(self, call: Call) -> Reply:
        times = f"{call.attempt} workers" if call.attempt > 1 else "the worker"
        message = f"{times} died with task {call.task!r}, call {call.id}: it will not run again"
        return wire.ended(call.id, Status.WORKER_LOST, message, attempts=call.attempt)

    def _ask(self, claim: CopyClaim) -> None:
        """Ask its caller, once more if what was asked has arrived at the broker, or is lost."""
        if self._station.link is None:
            claim.question = None
        elif claim.question is None or claim.question.ended:
            claim.question = Question(self._station, claim)
            self._station.put(claim.question)
