"""Calls that have been pending for long: does a worker hold them?

A request that the broker confirmed can still vanish: its queue may be deleted or purged, a policy may drop it, and
a message that is not persistent does not survive the broker. Nobody tells the caller, so the caller asks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from atasks.errands import Errands
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.other_queues import OtherQueues
from atasks.transport.pending import Pending
from atasks.transport.unserved import Unserved
from atasks.transport.whereabouts import Whereabouts
from atasks.wire import AT_MOST_ONCE, VERSION, Ask, Held, Query, QueryAnswer

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.caller.control import ControlMessages
    from atasks.transport.backends.amqp.caller.requests import Requests
    from atasks.transport.backends.amqp.session import Session

__all__ = ["OverdueCalls", "heard_of"]

logger = logging.getLogger("atasks.amqp")

IDS_AT_ONCE: Final = 1000
QUICK_ROUNDS: Final = 3
"""Two unanswered questions, and the conclusion."""
EARLY_SECONDS: Final = 3.0
"""Seconds after which workers are asked for a call of which nothing was heard, if nothing waits in its queue."""
SOONER_SECONDS: Final = 1.0
"""Seconds after which they are asked where the queue has lost a call lately."""
LOSING_SECONDS: Final = 120.0
"""For how long a queue that has lost a call may be expected to lose another one."""
KNOWN_SECONDS: Final = 2.0
"""For how long it is believed where a call is."""
MAX_QUESTIONS: Final = 64
"""Questions whose answers are counted at once."""


class OverdueCalls:
    """Asks the workers for calls that are pending for long, to notice those that are lost.

    A call that all workers of its queue say twice not to have, while the queue is empty, is lost: it is sent
    again. Workers of older versions do not say so. So it is lost too if it is pending for longer than `patience`
    seconds, and no worker says, twice, that it holds it, while its queue is empty; only then does a call that may
    run at most once end in `CallConnectionLost`. Where calls got lost, because of a policy say, it asks sooner.

    Warns where nothing serves the queue of calls that are pending.
    """

    patience = 30.0
    pause = 2.0
    """Seconds between two rounds."""
    quick_pause = 1.0
    """Seconds between rounds after there was a reason to ask."""

    def __init__(
        self,
        session: Session,
        requests: Requests,
        control: ControlMessages,
        missed: Callable[[Sequence[Pending]], None],
    ) -> None:
        """`missed(pendings)` is called with lost calls before they are sent again."""
        self._session = session
        self._missed = missed
        self._requests = requests
        self._reason = asyncio.Event()
        self._questions: dict[str, _Question] = {}
        """By token: those of the last round."""
        self._numbers = itertools.count(1)
        self._losing: dict[str, float] = {}
        """Queue -> when it lost a call."""
        self._control = control
        self._unserved = Unserved(logger, OtherQueues(session.queue, self._question))
        self._locating: dict[str, list[Pending]] = {}
        """Queue -> calls whose deadlines are near."""
        self._errands = Errands("atasks whereabouts")

    async def run(self) -> None:
        """Ask, round after round, until cancelled."""
        quick = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self.quick_pause, self.pause) if quick else self.pause):
                    await self._reason.wait()
            quick = QUICK_ROUNDS if self._reason.is_set() else max(0, quick - 1)
            self._reason.clear()
            try:
                if await self._round():
                    quick = max(quick, 1)
            except CLIENT_ERRORS as error:  # the link went: after the reconnect there is another round
                logger.debug("the connection ended a round of questions to workers: %s", error)
            except Exception:  # without more rounds no lost call would end
                logger.exception("a round of questions to workers failed: the next one asks again")

    def suspect(self, pendings: Iterable[Pending]) -> None:
        """These calls may be lost: ask for them now."""
        for pending in pendings:
            pending.since = -math.inf
        self._reason.set()

    async def _round(self) -> bool:
        """Ask once for all calls that are overdue. Returns True if the next round should come soon."""
        now = asyncio.get_running_loop().time()
        questions, self._questions = self._questions, {}
        queues: dict[str, list[Pending]] = {}
        homeless: dict[str, list[Pending]] = {}
        for pending in list(self._session.pendings.values()):
            if pending.unheard:
                homeless.setdefault(self._session.queue_of(pending.options), []).append(pending)
            elif pending.confirmed and now - pending.since >= min(SOONER_SECONDS, self.patience):
                queues.setdefault(self._session.queue_of(pending.options), []).append(pending)
        for queue, pendings in homeless.items():
            self._unserved.see(queue, pendings, now)
        soon = False
        for queue, pendings in queues.items():
            losing = now - self._losing.get(queue, -math.inf) < LOSING_SECONDS
            early = min(SOONER_SECONDS if losing else EARLY_SECONDS, self.patience)
            overdue = [pending for pending in pendings if now - pending.since >= self._patience(pending, early)]
            if not overdue:
                continue
            empty, workers = await self._is_empty(queue), await self._workers(queue)
            paused = workers == 0 and await self.is_paused(queue)
            for question in questions.values():  # nobody consumes a paused queue, and workers may have its calls
                if question.queue == queue and len(question.workers) >= workers and not paused:
                    question.deny()
            if workers == 0:
                waiting = [pending for pending in overdue if pending.where is None]
                self._unserved.see(queue, waiting, now, paused=paused)
            overdue = [item for item in overdue if empty or now - item.since >= self.patience]
            lost = [
                pending
                for pending in overdue
                if (pending.denied >= 2 and pending.call.delivery != AT_MOST_ONCE and not paused)
                or (pending.asked >= 2 and now - pending.since >= self.patience + 2 * self.pause and not paused)
            ]
            if lost and empty:
                self._losing[queue] = now
                self._missed(lost)
                self._requests.resend(lost, f"queue {queue!r} lost the call")
            asked = [pending for pending in overdue if pending.confirmed]
            for key in {pending.key for pending in asked}:
                self._ask(queue, [pending for pending in asked if pending.key == key], key)
            soon = soon or any(pending.where is None for pending in asked)
        return soon

    def _patience(self, pending: Pending, early: float) -> float:
        """After how many seconds to ask for the call. What a worker has it keeps, or it is delivered again."""
        return self.patience if pending.where is not None and pending.where.worker else early

    def _ask(self, queue: str, pendings: list[Pending], key: str | None) -> None:
        for start in range(0, len(pendings), IDS_AT_ONCE):
            some = pendings[start : start + IDS_AT_ONCE]
            for pending in some:
                pending.asked += 1
            token = str(next(self._numbers))
            if len(self._questions) < MAX_QUESTIONS:
                self._questions[token] = _Question(queue, some)
            self._send(queue, some, token, key)

    def _send(self, queue: str, pendings: list[Pending], token: str, key: str | None) -> None:
        session = self._session
        session.outbox.put(
            session.control(
                [Ask(VERSION, [pending.call.id for pending in pendings], token)],
                session.topology.queue_key(queue),
                key,
                message_id=f"ask:{pendings[0].call.id}",
                reply_to=session.reply_queue,
            )
        )

    def _question(self, query: Query, heard: Callable[[QueryAnswer], object]) -> None:
        """Ask all workers of the namespace."""
        if self._session.link is not None:
            self._session.asked[query.token] = heard
            self._control.ask(query)

    async def _is_empty(self, queue: str) -> bool:
        """Return True if no call waits in the queue: one that does is not lost, however long it waits."""
        link, topology = self._session.link, self._session.topology
        if link is None:
            return False
        for name in topology.all(queue):
            state = await link.queue_state(name)
            if state is not None and state[0]:
                return False
        return True

    async def _workers(self, queue: str) -> int:
        """Return the number of workers that serve the queue. Its solo queue tells: workers consume that all the
        time."""
        link = self._session.link
        state = None if link is None else await link.queue_state(self._session.topology.solo(queue))
        if state is not None and not state[1]:  # a quorum queue may say 0 consumers for a moment
            state = None if link is None else await link.queue_state(self._session.topology.solo(queue))
        return 0 if state is None else state[1]

    async def is_paused(self, queue: str) -> bool:
        """Return True if workers leave the calls of the queue there until it is resumed."""
        link = self._session.link
        return link is not None and await link.queue_state(self._session.topology.paused(queue)) is not None

    # -- answers

    def heard(self, answer: Held) -> None:
        """A worker holds these calls, and none of the others that it was asked for."""
        question = self._questions.get(answer.token)
        if question is not None:
            question.workers.add(answer.worker)
        now = asyncio.get_running_loop().time()
        unknown = itertools.repeat(None)
        for call_id, ran, awaits in zip(
            answer.ids, answer.ran_ms or unknown, answer.awaits or unknown, strict=False
        ):
            pending = self._session.pendings.get(call_id)
            if pending is not None:
                heard_of(pending)
                begun = ran is None or ran >= 0
                pending.where = Whereabouts(
                    "run" if begun else "turn",
                    self._session.queue_of(pending.options),
                    answer.worker,
                    ran / 1000 if ran is not None and begun else None,
                    now,
                    awaits=awaits,
                )
                if begun:
                    pending.ran_at = pending.where
                if pending.receiver is not None:
                    pending.receiver.ask(answer.worker)

    # -- deadlines

    def locate(self, pending: Pending) -> None:
        """Find out where the call is: its deadline is near. With others of this turn of the event loop."""
        if not self._locating:
            asyncio.get_running_loop().call_soon(self._locate)
        self._locating.setdefault(self._session.queue_of(pending.options), []).append(pending)

    def _locate(self) -> None:
        located, self._locating = self._locating, {}
        now = asyncio.get_running_loop().time()
        for queue, pendings in located.items():
            for pending in pendings:
                if pending.where is not None and now - pending.where.told > KNOWN_SECONDS:
                    pending.where = None
                if pending.where is None and self._session.link is None:
                    pending.where = Whereabouts("connection")
                elif pending.where is None and not pending.confirmed and not pending.unheard:
                    pending.where = Whereabouts("connection", queue)
            for key in {pending.key for pending in pendings}:
                some = [pending for pending in pendings if pending.key == key]
                for start in range(0, len(some), IDS_AT_ONCE):
                    self._send(queue, some[start : start + IDS_AT_ONCE], "", key)
            self._errands.start(self._look(queue, pendings))

    async def _look(self, queue: str, pendings: list[Pending]) -> None:
        """Look at the queue of calls that no worker has."""
        link, topology = self._session.link, self._session.topology
        with suppress(*CLIENT_ERRORS):
            workers = await self._workers(queue)
            state = None if link is None else await link.queue_state(topology.work(queue))
            waiting = 0 if state is None else state[0]
            waits_for: Literal["turn", "worker", "resume"] | None = "turn" if waiting else None
            if not workers:
                waits_for = "resume" if await self.is_paused(queue) else "worker"
            for pending in pendings:
                if pending.where is None and link is not None:
                    elsewhere = self._unserved.elsewhere([pending])
                    pending.where = Whereabouts(waits_for, queue, waiting=waiting, elsewhere=elsewhere)

    async def close(self) -> None:
        """Look for nothing any more."""
        await self._errands.cancel()


class _Question:
    """A question to the workers of a queue, and the workers that have answered."""

    __slots__ = ("_asked", "queue", "workers")

    def __init__(self, queue: str, pendings: list[Pending]) -> None:
        self.queue = queue
        self.workers: set[str] = set()
        self._asked = [(pending, pending.asked) for pending in pendings]

    def deny(self) -> None:
        """All of them have: what none holds is held by none."""
        for pending, asked in self._asked:
            if pending.asked == asked:  # nothing was heard of it since
                pending.denied += 1


def heard_of(pending: Pending) -> None:
    """A worker holds this call."""
    pending.since = asyncio.get_running_loop().time()
    pending.asked = pending.denied = 0
