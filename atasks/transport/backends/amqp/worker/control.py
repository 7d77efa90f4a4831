"""Control messages to one worker: what callers, and other workers, tell and ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from aiormq.abc import DeliveredMessage

from atasks import wire
from atasks.errors import DecodeError
from atasks.tracking.queries import LookAtQueues, LookAtSchedules, decode_question
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.seals import key_of
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.backends.amqp.worker.queries import answer_query
from atasks.wire import VERSION, Ask, Cancel, Credit, End, Grant, Held, Query, Reply

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.worker.attempts import Attempts
    from atasks.transport.backends.amqp.worker.doubts import Doubts
    from atasks.transport.backends.amqp.worker.paused_queues import PausedQueues
    from atasks.transport.backends.amqp.worker.replies import Replies
    from atasks.transport.backends.amqp.worker.station import Station
    from atasks.transport.backends.amqp.worker.telling import Telling

__all__ = ["ControlQueue"]


class ControlQueue:
    """Reads the control queue of one worker, and answers what is asked there."""

    def __init__(
        self,
        station: Station,
        queues: Sequence[str],
        *,
        attempts: Attempts,
        doubts: Doubts,
        replies: Replies,
        telling: Telling,
        paused: PausedQueues,
        look_at_schedules: Callable[[], None],
    ) -> None:
        self._station = station
        self._worker = station.worker
        self._queues = queues
        self._attempts = attempts
        self._doubts = doubts
        self._replies = replies
        self._telling = telling
        self._paused = paused
        self._look_at_schedules = look_at_schedules

    def receive(self, message: DeliveredMessage) -> None:
        """Do what a message asks for. A bad one is counted, and what can be read of it is done."""
        limit = self._station.session.max_message
        try:
            envelopes = wire.decode(message.body, limit)
        except DecodeError as error:
            self._worker.count_bad(str(error))
            envelopes = wire.salvage(message.body, limit).envelopes
        if self._station.session.seals is not None:
            envelopes = self._station.session.seals.for_worker(message, envelopes, self._worker)
        for envelope in envelopes:
            if isinstance(envelope, Cancel):
                for call_id in envelope.ids:
                    self._worker.cancel(call_id)
                    self._doubts.withdrawn(call_id)
            elif isinstance(envelope, Ask):
                self._answer(envelope, message.header.properties.reply_to, key_of(message))
            elif isinstance(envelope, Held):
                for name in envelope.ids:
                    self._attempts.told(name, None)
            elif isinstance(envelope, Grant):
                self._attempts.granted(envelope)
                self._doubts.told(envelope)
            elif isinstance(envelope, Credit):
                self._credit(envelope, message.header.properties.reply_to)
            elif isinstance(envelope, (Reply, End)):
                self._attempts.told(envelope.id, envelope)
            elif isinstance(envelope, Query):
                self._hear(envelope, message)

    def _hear(self, query: Query, message: DeliveredMessage) -> None:
        """Answer a question; one that is about paused queues once they have been looked at."""
        answer = partial(answer_query, self._station, self._telling, self._queues, query, message)
        match decode_question(query.content):
            case LookAtQueues():
                self._paused.look_soon(answer)
            case LookAtSchedules():
                self._look_at_schedules()
            case _:
                answer()

    def _credit(self, credit: Credit, reply_to: str | None) -> None:
        """The consumer of a stream says what it has taken, and where it is."""
        if not reply_to or self._is_for(credit.id, reply_to):
            if reply_to:
                self._readdress(credit.id, reply_to)
            self._worker.streams.credit(credit)

    def _readdress(self, call_id: str, reply_to: str) -> None:
        """The consumer of a stream says where it is: its reply queue may be another one by now."""
        run = self._worker.find(call_id)
        if run is not None:
            for delivery in run.deliveries:
                if isinstance(delivery, CallDelivery):
                    delivery.request.answer(reply_to, delivery.request.key)

    def _is_for(self, call_id: str, reply_to: str) -> bool:
        """Return True if that is the address of the caller of a call that is in hand here, or has ended here
        lately, or of another process of the same user: nobody else is told of it. Anybody may ask for a call
        whose replies are kept."""
        topology = self._station.session.topology
        run = self._worker.find(call_id) or self._worker.streams.run(call_id)
        if run is not None:
            found = [item.request.reply_to for item in run.deliveries if isinstance(item, CallDelivery)]
        elif (addressee := self._replies.addressee(call_id)) is not None:
            found = [addressee]
        else:
            found = self._doubts.holds(call_id)
        return any(topology.is_record(name) or topology.are_of_one_caller(name, reply_to) for name in found)

    def _held(self, names: list[str], token: str) -> Held:
        """The answer that these calls are in hand here: for how long each has run, and what it awaits."""
        runs = [self._worker.find(name) for name in names]
        times = (None if run is None else run.ran for run in runs)
        ran_ms = [-1 if ran is None else int(ran * 1000) for ran in times]
        awaits = [None if run is None else run.awaited for run in runs]
        return Held(VERSION, names, self._worker.id, token, ran_ms, awaits)

    def _answer(self, question: Ask, reply_to: str | None, key: str) -> None:
        """Say which of the calls are in hand here, and send the replies of those that finished again: to a worker,
        and to who made them. Who asks for none under a seal wants to know whether its key is known here."""
        if not reply_to:
            return
        by_worker = self._station.session.topology.is_control_queue(reply_to)
        names = dict.fromkeys(question.ids)
        told = [name for name in names if by_worker or self._is_for(name, reply_to)]
        held = [name for name in told if self._worker.holds(name) or self._doubts.holds(name)]
        held += [name for name in names if self._attempts.holds(name, not by_worker) and name not in held]
        if by_worker:  # it drops what it was given
            self._station.left_here.update(filter(self._worker.holds, held))
        if held or question.token or (key and not names):
            body = wire.encode([self._held(held, question.token)])
            self._station.put(Outgoing(body, reply_to, self._station.properties(1), mandatory=False, key=key))
        finished = (self._worker.finished(name) for name in told)
        self._replies.send_again(reply_to, [reply for reply in finished if reply is not None], key)
