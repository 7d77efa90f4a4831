"""The hub: hands the calls of all callers to the workers of their queues, and the replies back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from atasks import wire
from atasks.options import MAX_WINDOW
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.hub.calls import RUN, HubCalls
from atasks.transport.backends.local.hub.events import HubEvents
from atasks.transport.backends.local.hub.limits import HubLimits
from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.hub.queue import QueuedCall, WorkQueue
from atasks.transport.backends.local.hub.queues import WorkQueues
from atasks.transport.backends.local.hub.reception import Reception
from atasks.transport.backends.local.hub.schedules import HubSchedules
from atasks.transport.backends.local.messages import (
    Add,
    Answer,
    Begin,
    Begun,
    Bye,
    DropJournal,
    GiveBack,
    GiveToken,
    Handed,
    NoneServes,
    Note,
    OpenJournal,
    Outcome,
    Ping,
    Pong,
    Publish,
    QueueState,
    Read,
    ReadTable,
    Request,
    Serve,
    Settled,
    Slots,
    Stand,
    Steer,
    Stop,
    Swap,
    TakeToken,
    There,
    Touch,
    Watch,
    Where,
)
from atasks.transport.records.store import DEFAULT_KEEP_BYTES
from atasks.wire import AT_MOST_ONCE, Cancel, Credit, End, Reply, Status

__all__ = ["Hub"]

logger = logging.getLogger("atasks.local")

CLOSE_SECONDS: Final = 5.0
"""Seconds that the others get to read what the hub sent before it was closed."""
ENVELOPE_BYTES: Final = 500
"""Bytes of a call in hand besides its payload, roughly."""
MAX_ASKERS: Final = 1000
"""Questions to workers whose answers are expected."""


class Hub:
    """Knows every call that has not ended. It keeps nothing anywhere else: what it knows ends with its process.

    A worker is handed a call when it has a slot for it, and never before. One whose connection closes is dead: its
    calls are handed to others, with one attempt more. A caller whose connection closes is gone: its calls are
    cancelled, or, if they say so, run without anybody to await them. What becomes of calls that are to be kept
    stays here, `keep_bytes` of it.
    """

    def __init__(self, keep_bytes: int = DEFAULT_KEEP_BYTES) -> None:
        self._queues = WorkQueues()
        self._calls = HubCalls(self._queues, keep_bytes)
        self._records = self._calls.records
        self._journals = self._calls.journals
        self._loop = asyncio.get_running_loop()
        self._events = HubEvents()
        self._schedules = HubSchedules(keep_bytes)
        self._askers: OrderedDict[str, Peer] = OrderedDict()
        """Token of a question to the workers -> who asked it."""
        self._asked: dict[Peer, set[str]] = {}
        """Calls that processes ask for in this turn of the event loop."""
        self._limits = HubLimits()
        handlers: dict[type[Any], Callable[[Peer, Any], None]] = {
            Request: self._request,
            Reply: self._reply,
            End: self._reply,
            Settled: self._settled,
            wire.Item: self._stream,
            wire.Report: self._report,
            Credit: self._credit,
            wire.Query: self._query,
            wire.QueryAnswer: self._query_answer,
            Slots: self._slots,
            Cancel: self._cancel,
            Where: self._where,
            GiveBack: self._give_back,
            Handed: self._begun,
            Serve: self._serve,
            Stop: self._stop,
            Ping: self._ping,
            Publish: self._publish,
            ReadTable: self._schedules.read,
            Swap: self._schedules.swap,
            Stand: self._schedules.stand,
            Steer: self._steer,
            Begin: self._begin,
            Add: self._records.add,
            Read: self._records.read,
            Touch: self._records.touch,
            Watch: self._records.watch,
            OpenJournal: self._journals.open,
            Note: self._journals.note,
            DropJournal: self._journals.drop,
            TakeToken: self._limits.take,
            Begun: self._limits.begun,
            GiveToken: self._limits.give,
        }
        self._reception = Reception(handlers, look=self._queues.fill, freed=self._freed, left=self._left)
        self.refusals = self._reception.refusals

    def __len__(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    @property
    def closed(self) -> bool:
        """True once the hub takes nothing from anybody any more."""
        return self._reception.closed

    @property
    def peers(self) -> list[Peer]:
        """The processes that are connected."""
        return self._reception.peers

    # -- the processes around it

    def attach(self, link: Conversation, pid: int = 0) -> None:
        """Converse with one more process; `pid` 0: its `Hello` will tell. Nothing is taken from it before that."""
        self._reception.attach(link, pid)

    def process_ended(self, pid: int) -> None:
        """A process has ended. Its connections do so too, when what it sent has been read: a child that a library
        forked may have them open."""
        self._reception.hang_up(pid)

    async def close(self) -> None:
        """Tell everybody that no call is running any more, and end every conversation.

        At-most-once calls that a worker has end in `WorkerLost`; everything else may be sent to the next hub.
        """
        self._reception.closed = True
        for queued in list(self._calls.values()):
            if queued.worker is not None and queued.call.delivery == AT_MOST_ONCE:
                self._calls.end(queued, queued.lost("was cut off when its hub was closed"))
        for peer in self.peers:
            peer.link.send(Bye())
        await asyncio.gather(*(peer.link.aclose(CLOSE_SECONDS) for peer in self.peers))
        self.peers.clear()
        self._calls.close()
        self._queues.clear()
        self._limits.close()

    def _left(self, peer: Peer) -> None:
        """A process is gone: let go of what it asked for, and of what it had."""
        self._leave(peer)
        peer.forget_answers()
        self._schedules.leave(peer)
        self._records.leave(peer)
        for token in [token for token, asker in self._askers.items() if asker is peer]:
            del self._askers[token]
        self._limits.leave(peer)
        self._calls.leave(peer)

    def _freed(self, peer: Peer) -> None:
        """Send on: the peer's socket has drained."""
        stalled = list(peer.stalled.values())
        peer.stalled.clear()
        for queued in reversed(stalled):
            self._queues.put_back(queued)
        for queue in {queued.queue for queued in stalled}:
            self._queues.offer(queue)
        self._queues.fill(peer)
        waiting = list(peer.credits.values())
        peer.credits.clear()
        for credit in waiting:
            if (running := self._calls.get(credit.id)) is not None and running.worker is peer:
                peer.link.send(credit)
        peer.answer_on()

    # -- as callers

    def _request(self, peer: Peer, message: Request) -> None:
        call = message.call
        queue = self._queues.of(peer, message.queue)
        if not message.wait and (not queue.workers or queue.paused):
            peer.link.send(NoneServes(call.id, queue.paused))
            self._queues.tidy(queue)
            return
        known = self._calls.get(call.id)
        if known is not None:
            self._request_again(peer, known, message)
            self._queues.tidy(queue)
            return
        if message.journal and (reply := self._journals.sent(peer, message.journal, call.id)) is not None:
            peer.link.send(reply, len(reply.payload))
            self._queues.tidy(queue)
            return
        if queue.executors and call.task in queue.executors:
            queue = self._queues.beside(queue, queue.executors[call.task])
        size = len(call.payload) + ENVELOPE_BYTES
        queued = self._calls[call.id] = QueuedCall(call, peer, queue, message.priority, size, peer.pid)
        # Set only what differs from most calls: to set an attribute of a Struct costs as much as a call does.
        if message.journal:
            queued.journal = message.journal
        if call.timeout_ms is not None:
            queued.deadline = self._loop.time() + call.timeout_ms / 1000
        if 1 < call.attempt >= queued.most:
            queued.alone = True
        worker = None if queue.paused or queued.alone or peer.link.clogged else queue.best(call, peer)
        if worker is not None and not queue.size:
            self._queues.hand(queued, worker)
        else:
            queue.push(queued)
            peer.check_room()
            if worker is not None or queued.alone or peer.link.clogged:  # what waits may be for another worker
                self._queues.offer(queue)

    def _request_again(self, peer: Peer, known: QueuedCall, message: Request) -> None:
        """A call of this id is in hand: whose process sent it may await it again, after a lost connection, and who
        works at its journal."""
        call = message.call
        if known.caller is peer:
            return
        its_own = known.owner == peer.pid or (known.journal and known.journal == message.journal)
        if known.caller is None and its_own and known.queue.namespace == peer.namespace:
            known.caller = peer
            if known.lane is not None:
                peer.queued_bytes += known.size
            return
        self.refusals.add("calls under the id of another one", latest=f"{call.id} by process {peer.pid}")
        refusal = "request refused: its id is that of a call of another process"
        peer.link.send(wire.ended(call.id, Status.FAILED, refusal))

    def _begin(self, peer: Peer, message: Begin) -> None:
        call = message.call
        queue = self._queues.of(peer, message.queue)
        reason = ""
        known = self._calls.get(call.id)
        if known is not None and not (known.kept and known.queue.namespace == peer.namespace):
            self._queues.tidy(queue)
            outcome, reason = Outcome.BAD, "request refused: its id is that of another call"
        elif known is not None or self._records.has(peer, call.id):  # its submitter has lost the answer
            self._queues.tidy(queue)
            outcome = Outcome.DONE
        elif message.again:
            outcome = self._records.again(peer, message)
            if outcome == Outcome.DONE:
                self._start_kept(message, queue)
            self._queues.tidy(queue)
        elif (holder := self._records.holder(peer, call.id)) is not None:
            self._queues.tidy(queue)
            outcome, reason = Outcome.TAKEN, holder
        elif not message.wait and (not queue.workers or queue.paused):
            self._queues.tidy(queue)
            outcome, reason = Outcome.NONE_SERVES, "paused" if queue.paused else ""
        elif not self._records.open(peer, message):
            self._queues.tidy(queue)
            outcome = Outcome.NO_ROOM
        else:
            self._start_kept(message, queue)
            outcome = Outcome.DONE
        peer.link.send(Answer(message.number, outcome, reason))

    def _start_kept(self, message: Begin, queue: WorkQueue) -> None:
        """Have a worker run the call of a record, when it is due."""
        call = message.call
        queued = self._calls[call.id] = QueuedCall(
            call, None, queue, message.priority, len(call.payload) + ENVELOPE_BYTES
        )
        queued.kept = True
        delay = call.sent_ms / 1000 - time.time()  # the hub and the submitter share the clock of this host
        if delay > 0:
            queued.delayed = self._loop.call_later(delay, self._due, queued, context=Context())
            self._queues.tidy(queue)
        else:
            queue.push(queued)
            self._queues.offer(queue)

    def _publish(self, peer: Peer, message: Publish) -> None:
        for name, subscription, worker in self._events.handlers(peer.namespace, message.call.task):
            call = subscription.call(message.call, worker)
            call.orphan = RUN
            queue = self._queues.of(peer, name)
            if call.task in queue.executors:
                queue = self._queues.beside(queue, queue.executors[call.task])
            if call.id not in self._calls:
                queued = self._calls[call.id] = QueuedCall(
                    call, None, queue, 0, len(call.payload) + ENVELOPE_BYTES
                )
                queue.push(queued)
                self._queues.offer(queue)
            self._queues.tidy(queue)
        peer.link.send(Answer(message.number, Outcome.DONE))

    def _due(self, queued: QueuedCall) -> None:
        """A call may begin that was delayed."""
        queued.delayed = None
        self._queues.put_back(queued)
        self._queues.offer(queued.queue)

    def _cancel(self, peer: Peer, message: Cancel) -> None:
        running: dict[int, tuple[Peer, list[str]]] = {}
        for call_id in message.ids:
            queued = self._calls.get(call_id)
            if queued is not None and queued.caller is peer:
                worker = queued.worker
                self._calls.forget(queued)
                if worker is not None:
                    running.setdefault(id(worker), (worker, []))[1].append(call_id)
        for worker, ids in running.values():
            for cancel in wire.cancels(ids):
                worker.link.send(cancel)

    def _where(self, peer: Peer, message: Where) -> None:
        if not self._asked:  # all calls are looked through: once a turn, however many ask
            self._loop.call_soon(self._tell_where)
        self._asked.setdefault(peer, set()).update(message.ids)

    def _tell_where(self) -> None:
        now, everything = self._loop.time(), set().union(*self._asked.values())
        calls = (queued.call for queued in self._calls.values())
        awaited = {call.parent: (call.id, call.task) for call in calls if call.parent in everything}
        asked, self._asked = self._asked, {}
        for peer, call_id in ((peer, call_id) for peer, ids in asked.items() for call_id in ids):
            queued = self._calls.get(call_id)
            if queued is not None and queued.caller is peer:
                worker, queue = queued.worker, queued.queue
                name = "" if worker is None else worker.worker_id
                ran_ms = 0 if worker is None else int((now - queued.since) * 1000)
                awaits = awaited.get(call_id)
                served = bool(queue.workers)
                peer.link.send(There(call_id, name, ran_ms, queue.size, served, awaits, queue.paused))

    def _steer(self, peer: Peer, message: Steer) -> None:
        """Pause, resume or purge a queue, or look at it."""
        queue = self._queues.of(peer, message.queue)
        ended = 0
        match message.order:
            case "pause" | "resume":
                self._queues.pause(queue, message.order == "pause")
            case "purge":
                ended = self._calls.purge(queue, self.peers)
        whole = self._queues.whole(queue)
        waiting = sum(each.size for each in whole)
        peer.link.send(QueueState(message.number, queue.paused, waiting, len(queue.workers), ended))
        for each in whole:
            self._queues.tidy(each)

    def _credit(self, peer: Peer, credit: Credit) -> None:
        queued = self._calls.get(credit.id)
        if queued is not None and queued.caller is peer:
            queued.ahead = queued.ahead_bytes = 0
            queued.window = max(queued.window, min(credit.window, MAX_WINDOW))
            worker = queued.worker
            if worker is not None and worker.link.clogged:
                known = worker.credits.get(credit.id)
                if known is not None and credit.again is None:
                    credit.again = known.again
                worker.credits[credit.id] = credit  # it makes up for the one before
            elif worker is not None:
                worker.link.send(credit)

    def _query(self, peer: Peer, query: wire.Query) -> None:
        """A question to the workers of its namespace: each answers for itself."""
        if self._askers.setdefault(query.token, peer) is not peer:
            return
        self._askers.move_to_end(query.token)
        if len(self._askers) > MAX_ASKERS:
            self._askers.popitem(last=False)
        for worker in self.peers:
            if worker.worker_id and worker.namespace == peer.namespace and not worker.link.clogged:
                worker.link.send(query)

    def _query_answer(self, peer: Peer, answer: wire.QueryAnswer) -> None:
        asker = self._askers.get(answer.token)
        if asker is not None and peer.namespace == asker.namespace and not asker.link.clogged:
            asker.link.send(answer, len(answer.content))

    # -- as workers

    def _serve(self, peer: Peer, message: Serve) -> None:
        self._leave(peer)
        peer.worker_id = message.worker
        peer.begins = message.begins
        peer.first_queue = message.queues[0] if message.queues else ""
        names = list(dict.fromkeys(message.queues))
        if self._events.serve(peer, message.subscriptions, set(names)):
            names.append(peer.own_queue)
        peer.queues = [
            queue
            for name in names
            for queue in (self._queues.of(peer, name), *self._queues.all_beside(peer, name))
        ]
        for queue in peer.queues:
            queue.workers.append(peer)
        assert peer.namespace is not None, "it was welcomed"
        self._queues.learn(peer.namespace, message.executors, message.attempts)

    def _stop(self, peer: Peer, _: Stop) -> None:
        self._leave(peer)

    def _leave(self, peer: Peer) -> None:
        """Hand it no more calls."""
        peer.room = 0
        self._events.leave(peer)
        for queue in peer.queues:
            if peer in queue.workers:
                queue.workers.remove(peer)
                if queue.own and queue.size:
                    for queued in [queued for queued in self._calls.values() if queued.queue is queue]:
                        if queued.worker is None:
                            self._calls.forget(queued)
                self._queues.tidy(queue)

    def _slots(self, peer: Peer, message: Slots) -> None:
        peer.told(message)
        if peer.room > 0:
            self._queues.fill(peer)

    def _begun(self, peer: Peer, message: Handed) -> None:
        queued = self._calls.get(message.id)
        if queued is not None and queued.worker is peer:
            self._queues.begin_alone(queued)

    def _stream(self, peer: Peer, items: wire.Item) -> None:
        queued = self._calls.get(items.id)
        if queued is not None and queued.worker is peer and queued.caller is not None and queued.goes_on(items):
            queued.caller.link.send(items, sum(map(len, items.payloads)))

    def _report(self, peer: Peer, report: wire.Report) -> None:
        """Pass on how far a call is, to a caller that reads: another one misses it."""
        queued = self._calls.get(report.id)
        if (
            queued is not None
            and queued.worker is peer
            and queued.caller is not None
            and not queued.caller.link.clogged
        ):
            queued.caller.link.send(report)

    def _reply(self, peer: Peer, reply: Reply | End) -> None:
        queued = self._calls.get(reply.id)
        if queued is not None and queued.worker is peer:
            self._calls.end(queued, reply)

    def _settled(self, peer: Peer, message: Settled) -> None:
        for call_id in message.ids:
            queued = self._calls.get(call_id)
            if queued is not None and queued.worker is peer and queued.caller is peer:
                self._calls.settle(queued)

    def _give_back(self, peer: Peer, message: GiveBack) -> None:
        queued = self._calls.get(message.call.id)
        if queued is not None and queued.worker is peer:
            peer.let_go(queued)
            queued.worker = None
            queued.call = message.call
            if queued.queue.own and not queued.queue.workers:  # its worker leaves
                del self._calls[queued.call.id]
                return
            if message.executor is not None and queued.queue.executor is None:
                self._queues.learn(queued.queue.namespace, {queued.call.task: message.executor}, {})
                queued.queue = self._queues.beside(queued.queue, message.executor)
                queued.queue.push(queued)  # they come in the order in which they were handed out
            else:
                self._queues.put_back(queued)
            self._queues.offer(queued.queue)

    def _ping(self, peer: Peer, message: Ping) -> None:
        queues = [
            self._queues.of(peer, queue.name) for queue in peer.queues if queue.executor is None and not queue.own
        ]
        others = bool(queues) and all(queue.served_beside(peer, message.seen) for queue in queues)
        for queue in queues:
            self._queues.tidy(queue)
        peer.link.send(Pong(message.number, others))
