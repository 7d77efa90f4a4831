"""The worker's side: takes the calls that the hub hands out, and says how many more there may be."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from atasks.options import Executor
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.messages import (
    Deliver,
    GiveBack,
    Handed,
    Ping,
    Pong,
    Serve,
    Settled,
    Slots,
    Stop,
)
from atasks.wire import Call, Cancel, Credit, End, Item, Query, Reply, Report

if TYPE_CHECKING:
    from atasks.transport.server import Server

__all__ = ["Serving"]

MAX_SEEN: Final = 8
"""Workers that may look for an atask before the call is answered with `UnknownTask`."""


class Serving:
    """Feeds one worker over a link to a hub.

    Whenever something leaves, and something has changed, the hub is told for how many calls the worker has a slot,
    and for how many blocking functions its pools have a place.
    So it never sits on a call that another worker could start, but for those that were under way when a parked
    call resumed; those go back to the hub if they wait for long.
    """

    def __init__(
        self, worker: Server, queues: Sequence[str], link: Conversation, answer_here: Callable[[Reply], bool]
    ) -> None:
        """`answer_here(reply)` is True if the call was made in this process, and its await has the reply now."""
        self.answer_here = answer_here
        self._settled: list[str] = []
        """Calls that it was true of, and of which the hub is to be told."""
        self.worker = worker
        self.queues = list(queues)
        self.link = link
        self._received = 0
        self._told = Slots(0, 0)
        self._places = worker.pools.places
        self._serving = False
        self._numbers = itertools.count(1)
        self._unanswered = False
        """True if no answer to a question will come."""
        self._questions: dict[int, asyncio.Future[bool]] = {}
        link.last_word = self._slots

    # -- life

    def start(self) -> None:
        """Have calls handed out from now on."""
        self._serving = True
        self._told = Slots(0, self._received)
        worker, served = self.worker, self.worker.served
        self.link.send(
            Serve(worker.id, self.queues, served.executors, True, served.attempts, served.subscriptions)
        )

    async def stop(self) -> None:
        """Return when no more calls can come."""
        if self._serving:
            self._serving = False
            self.link.send(Stop())
            await self.others()

    async def others(self, seen: Sequence[str] = ()) -> bool:
        """Return True if each queue has another worker, not counting those in `seen`; False if the hub is gone.
        Messages sent before this are with the hub when this returns."""
        if self.link.closed or self._unanswered:
            return False
        number = next(self._numbers)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.link.send(Ping(number, list(seen)))
        try:
            return await answer
        finally:
            del self._questions[number]

    def expect_no_answers(self) -> None:
        """The hub says nothing any more: whoever waits for its answer goes on."""
        self._unanswered = True
        for answer in self._questions.values():
            if not answer.done():
                answer.set_result(False)

    def lost(self) -> None:
        """The hub is gone, and with it whoever awaits the calls in hand."""
        self.expect_no_answers()
        for run in self.worker.runs:
            self.worker.cancel(run.call.id)

    # -- what arrives

    def deliver(self, message: Deliver) -> None:
        """A call."""
        self._received += 1
        call = message.call
        self.worker.deliver(
            call,
            _Handed(self, message.queue or self.queues[0]),
            message.alone,
            partial(self._begin, call.id) if message.alone else None,
        )

    async def _begin(self, call_id: str) -> bool:
        """A last attempt has the worker for itself: let the hub know, and its caller, before it runs. It may kill
        this process, and that of the hub if it is the same."""
        self.link.send(Handed(call_id))
        await self.others()
        return not self.link.closed

    def _asked(self, query: Query) -> None:
        """A question about this worker."""
        found = self.worker.answer(self.queues, query)
        if found is not None:
            self.link.send(found, len(found.content))

    def told(self, message: Cancel | Credit | Pong | Query) -> None:
        """Calls that nobody awaits any more, what was taken of a stream, the answer to a question, or one about
        this worker."""
        if isinstance(message, Query):
            self._asked(message)
            return
        if isinstance(message, Credit):
            self.worker.streams.credit(message)
            return
        if isinstance(message, Cancel):
            for call_id in message.ids:
                # Else the run has ended: a call of that id that comes now is awaited anew.
                if self.worker.holds(call_id):
                    self.worker.cancel(call_id)
            return
        answer = self._questions.get(message.number)
        if answer is not None and not answer.done():
            answer.set_result(message.others)

    def settle(self, call_id: str) -> None:
        """A call has ended whose await has its reply. The hub is told together with what the awaiting call does
        next, which is most often another call."""
        if not self._settled:
            asyncio.get_running_loop().call_soon(self._tell_settled)
        self._settled.append(call_id)

    def _tell_settled(self) -> None:
        settled, self._settled = self._settled, []
        self.link.send(Settled(settled))

    # -- slots

    def overfull(self) -> None:
        """Calls have waited here for a slot: any worker may have them."""
        self.worker.give_back_unstarted()

    def lacks_place(self, executor: Executor) -> None:
        """Calls wait here for a place in a pool: the hub hands them to whoever has one."""
        self.worker.give_back_unstarted(executor)

    def _slots(self) -> Slots | None:
        """Return the message that corrects the hub's guess of the free slots; None: it guesses right."""
        if not self._serving or self._settled or self.is_guessed:  # who has a reply may take the slot again
            return None
        places = self._places
        threads, processes = places["thread"].free, places["process"].free
        self._told = Slots(self.worker.room, self._received, threads, processes)
        return self._told

    @property
    def is_guessed(self) -> bool:
        """True if the hub's guess of the free slots and places is right."""
        told, places = self._told, self._places
        return (
            self.worker.room == told.free - (self._received - told.received)
            and places["thread"].free == told.threads
            and places["process"].free == told.processes
        )


class _Handed(Struct, eq=False):
    """A call in hand."""

    serving: Serving
    queue: str

    def reply(self, reply: Reply | End) -> None:
        serving = self.serving
        if type(reply) is Reply and serving.answer_here(reply):
            serving.settle(reply.id)
        else:
            serving.link.send(reply, len(reply.payload))

    def send(self, envelope: Item | End | Report) -> None:
        size = sum(map(len, envelope.payloads)) if isinstance(envelope, Item) else 0
        self.serving.link.send(envelope, size)

    def drop(self) -> None:
        """The hub has told that nobody awaits it."""

    def give_back(self, call: Call, executor: Executor | None = None) -> None:
        self.serving.link.send(GiveBack(call, executor), len(call.payload))

    async def pass_on(self, call: Call) -> Call | None:
        seen = [*(call.seen or ()), self.serving.worker.id]
        if len(seen) > MAX_SEEN or not await self.serving.others(seen):
            return None
        call.seen = seen
        return call
