"""The caller's side: awaits leave here, and what workers answer arrives here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from aiormq.tools import awaitable
from pamqp.common import FieldTable

from atasks import wire
from atasks.current import serving
from atasks.errors import DecodeError
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.bodies import envelopes_of
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import answered, guard, refused_with_reason
from atasks.transport.backends.amqp.caller.control import ControlMessages
from atasks.transport.backends.amqp.caller.delays import DelayedCalls
from atasks.transport.backends.amqp.caller.early_calls import EarlyCalls
from atasks.transport.backends.amqp.caller.full_queues import FullQueues
from atasks.transport.backends.amqp.caller.grants import Grants
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls, heard_of
from atasks.transport.backends.amqp.caller.presence import WorkerPresence
from atasks.transport.backends.amqp.caller.probe import probe
from atasks.transport.backends.amqp.caller.requests import Requests
from atasks.transport.backends.amqp.caller.run_times import RunTimes
from atasks.transport.backends.amqp.seals import opening
from atasks.transport.pending import PUT_OFF
from atasks.transport.whereabouts import placed
from atasks.wire import Claim, End, Held, Item, QueryAnswer, Reply, Report, Status, Up

if TYPE_CHECKING:
    from aiormq.abc import ConsumerCallback, DeliveredMessage

    from atasks.transport.backends.amqp.session import Session
    from atasks.transport.pending import Pending

__all__ = ["Calling"]

logger = logging.getLogger("atasks.amqp")

REPLIES_WAIT: Final = 0.02
"""Seconds for which acknowledgements of replies wait for each other: what comes again is known, and dropped."""


class Calling:
    """Sends the calls of one transport, and listens to its reply queue."""

    def __init__(
        self,
        session: Session,
        heard: Callable[[Reply, bool], None],
        missed: Callable[[Sequence[Pending]], None],
    ) -> None:
        """`heard(reply, by_worker)` is called with replies that no await is for. `by_worker`: a worker has sealed
        it, where messages are sealed. `missed(pendings)` is called with calls that no worker has any more."""
        self.session = session
        self._heard = heard
        self._run_times = RunTimes()
        self.control = ControlMessages(session)
        self.requests = Requests(session, self._run_times, self)
        self.overdue = OverdueCalls(session, self.requests, self.control, missed)
        self.presence = WorkerPresence(session, self.requests, self.overdue)
        self._full_queues = FullQueues(session)
        self._grants = Grants(session, self.control)
        self._early_calls = EarlyCalls(session, self.requests, self.presence)
        self.returned = self.presence.returned
        self.early = self._early_calls.take
        self._delayed_calls = DelayedCalls(session, self.requests)
        self.delayed = self._delayed_calls.take
        self.refused = self._full_queues.refused
        self.suspect = self.overdue.suspect
        at_locks = opening(session.seals, self._on_inbox, session.topology.arrival_at_lock, self._acknowledge)
        self.at_locks: ConsumerCallback = awaitable(at_locks)  # which would be done for each of them else
        """Takes messages from the queues of locks, whose consumers are named as their journals."""
        if session.seals is not None:
            session.seals.keys.replaced = self._key_replaced
        self.prober: asyncio.Task[None] | None = None
        """Asks whether workers know this side's key, once."""
        self._asking: asyncio.Task[None] | None = None
        self._tag: str | None = None
        self._acks: Acks | None = None
        self._moved = False
        """True if the reply queue was replaced, and the pending calls were not sent again since."""
        self._bad_replies = 0

    # -- life

    def start(self, *, serves: bool) -> None:
        """Ask for calls that are overdue from now on. `serves`: there is a worker here, which knows the keys."""
        self._asking = asyncio.create_task(self.overdue.run(), name="atasks inquiry")
        self._early_calls.restart()
        seals = self.session.seals
        if seals is not None and not serves:
            self.prober = asyncio.create_task(probe(self.session, seals), name="atasks probe")

    async def close(self) -> None:
        """End what runs in the background: every await has ended."""
        self._full_queues.close()
        background = [task for task in (self._asking, self.prober) if task is not None]
        for task in background:
            task.cancel()
        if background:
            await asyncio.wait(background)
        await self.overdue.close()
        await self._early_calls.close()
        await self._delayed_calls.close()

    async def listen(self, link: Link, epoch: int) -> None:
        """Consume the reply queue over a new link, the `epoch`th one, and listen to workers that come."""
        session = self.session
        topology, inbox = session.topology, link.inbox
        if epoch > 1 and not await self._finds_reply_queue(link):
            session.new_reply_queue()
            self._moved = True
        name = session.reply_queue
        self._acks = Acks(inbox, REPLIES_WAIT)
        # After a half-open drop the broker may still know the old consumer: the newer one gets everything.
        priority: FieldTable = {"x-priority": epoch}
        # That of calls which name none is one of them before there is a call: who may not bind it hears that here.
        queues = {session.queue, *(session.queue_of(pending.options) for pending in session.pendings.values())}
        receive = opening(session.seals, self._on_inbox, topology.arrival(name), self._acknowledge)
        async with answered(f"consume queue {name!r}", session.timeout / 2), refused_with_reason(inbox):
            # Only the last of them waits for the broker, which does nothing of it after what it refuses.
            await guard(
                inbox.exchange_declare(topology.control, exchange_type="direct", durable=True, nowait=True)
            )
            arguments = topology.reply_arguments()
            await guard(inbox.queue_declare(name, durable=True, nowait=True, arguments=arguments))
            for queue in queues:
                await guard(inbox.queue_bind(name, topology.control, topology.up_key(queue), nowait=True))
            consumed = await guard(inbox.basic_consume(name, receive, arguments=priority))
        self._tag = consumed.consumer_tag
        self.presence.listening |= queues

    async def _finds_reply_queue(self, link: Link) -> bool:
        """Return True if the reply queue can still be used: it may have been deleted, or its node of the
        cluster may be down. In that case RabbitMQ 3 says that the queue does not exist, and RabbitMQ 4 does
        not answer."""
        try:
            async with asyncio.timeout(self.session.timeout / 2):
                return await link.queue_state(self.session.reply_queue) is not None
        except TimeoutError:
            return False

    def resume(self) -> None:
        """The new link is in use: send again what the loss of the old one may have cost."""
        pendings = list(self.session.pendings.values())
        if self._moved:
            self._moved = False
            unknown = [item for item in pendings if item.receiver is None or not item.receiver.begun]
            self.requests.resend([item for item in unknown if not item.address], "the reply queue is gone")
            for item in pendings:
                if item.receiver is not None and item.receiver.begun:
                    item.receiver.ask()  # its worker goes on, at the new address
        else:  # an announcement may have been missed
            self.requests.resend([item for item in pendings if item.unheard], "a worker may have come meanwhile")
        self.presence.settle()

    def suspend(self) -> None:
        """The link is gone: nothing of it may be acknowledged on another one."""
        self.presence.reset()
        self._tag = None
        if self._acks is not None:
            self._acks.close()
            self._acks = None

    async def leave(self, link: Link) -> None:
        """Consume no more, and delete the reply queue."""
        await self._early_calls.leave()
        if self._tag is not None:
            await guard(link.inbox.basic_cancel(self._tag))
        await guard(link.inbox.queue_delete(self.session.reply_queue))

    # -- calls

    def post(self, pending: Pending) -> None:
        """Send the call, without waiting."""
        session = self.session
        if session.seals is not None and serving.get() is not None:
            session.seals.mark(pending)
        queue = session.queue_of(pending.options)
        if queue not in self.presence.listening:
            session.topology.check(queue)
            self.presence.listens(queue)
        self.requests.send(pending, last=True)

    def _key_replaced(self, name: str) -> None:
        """Go on under the key of this name with the calls that it has sealed: to workers, another one is somebody
        else's."""
        for pending in self.session.pendings.values():
            if pending.key is None and pending.since and pending.since != PUT_OFF:
                pending.key = name

    def seek(self, pending: Pending) -> None:
        """Await a call that was sent before: workers are asked for it, and it is sent again if none has it."""
        queue = self.session.queue_of(pending.options)
        if queue not in self.presence.listening:
            self.presence.listens(self.session.topology.check(queue))
        pending.confirmed = True
        self.overdue.suspect([pending])

    def withdraw(self, pending: Pending) -> None:
        """The await of the call has ended: tell the workers."""
        queue = self.session.queue_of(pending.options)
        self.presence.forget(queue, pending)
        self.control.cancel(queue, pending.call.id, pending.key)

    # -- what arrives

    def _on_inbox(self, message: DeliveredMessage) -> None:
        """Only parses and hands over: the client library cancels its callbacks when the channel closes."""
        session = self.session
        try:
            envelopes = envelopes_of(message.body, session.max_message)
        except DecodeError as error:
            envelopes = wire.salvage(message.body, session.max_message).envelopes
            self._bad_replies += 1
            if self._bad_replies == 1:
                logger.error(
                    "a bad message on the reply queue was dropped (%s); this process logs no further ones", error
                )
        news = False
        if session.seals is not None and not session.seals.is_answer(message):
            news = session.seals.is_news(message)
            envelopes = session.seals.for_caller(message, envelopes, session.pendings, news)
        for envelope in envelopes:
            if isinstance(envelope, Reply):
                pending = self._awaited(envelope.id, news)
                if pending is not None:
                    self._run_times.observe(pending.call.task, envelope.run_us, envelope.parked, envelope.work_us)
                    if envelope.status == Status.WORKER_LOST:
                        self.withdraw(pending)  # if it was sent again, another copy may wait in the queue still
                        pending.answered(placed(envelope, pending.last_run))
                    else:
                        pending.answered(envelope)
                else:
                    self._heard(envelope, session.seals is None or session.seals.serves(message))
            elif isinstance(envelope, (Item, End, Report)):
                self._on_run(envelope)
            elif isinstance(envelope, Up):
                self.presence.heard(envelope.queue)
            elif isinstance(envelope, Held):
                self.overdue.heard(envelope)
            elif isinstance(envelope, QueryAnswer):
                if (asked := session.asked.get(envelope.token)) is not None:
                    asked(envelope)
            elif isinstance(envelope, Claim) and session.is_open:  # else it knows of no call any more
                self._grants.claimed(envelope)
        self._acknowledge(message)

    def _awaited(self, call_id: str, news: bool) -> Pending | None:
        """The call that a reply is for, if that is awaited here. News of a record end no await, but for those of
        calls whose replies go into a journal."""
        pending = self.session.pendings.get(call_id)
        return None if pending is None or pending.kept or (news and not pending.address) else pending

    def _acknowledge(self, message: DeliveredMessage) -> None:
        acks = self._acks
        if acks is not None and acks.channel is message.channel:
            acks.ack(message.delivery_tag or 0)

    def _on_run(self, envelope: Item | End | Report) -> None:
        """Items of a stream, its end, or how far a call is."""
        pending = self.session.pendings.get(envelope.id)
        if pending is not None:
            heard_of(pending)
            if isinstance(envelope, Report):
                pending.reported(envelope)
            elif pending.receiver is not None:
                pending.receiver.receive(envelope)
        elif isinstance(envelope, Item) and not envelope.payloads:  # it asks: nobody wants the stream any more
            self.control.refuse(envelope)
