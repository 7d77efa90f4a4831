"""The calls that a hub has in hand, and each way in which one of them can end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from atasks.call_log import log_lost
from atasks.tracking.snapshots import count_lost
from atasks.transport.backends.local.hub.journals import HubJournals
from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.hub.queue import QueuedCall, WorkQueue
from atasks.transport.backends.local.hub.queues import WorkQueues
from atasks.transport.backends.local.hub.records import HubRecords
from atasks.wire import AT_MOST_ONCE, VERSION, Awaits, Cancel, End, Reply, purged

__all__ = ["RUN", "HubCalls"]

RUN: Final = 1
"""`Call.orphan`: let the run finish when its caller is gone."""


class HubCalls(dict[str, QueuedCall]):
    """Every call that has not ended, by its id. A call that ends leaves it, and its reply goes to whoever is to
    have it: its caller, its record, the journal of the call that makes it. Records and journals keep `keep_bytes`
    each.
    """

    def __init__(self, queues: WorkQueues, keep_bytes: int) -> None:
        super().__init__()
        self._queues = queues
        self._loop = asyncio.get_running_loop()
        self.records = HubRecords(keep_bytes, self._unwanted, self._in_hand)
        self.journals = HubJournals(keep_bytes, self._unawaited)

    def end(self, queued: QueuedCall, reply: Reply | End) -> None:
        """Take a call out that has ended with this reply, and pass the reply on."""
        self.settle(queued)
        if queued.kept and isinstance(reply, Reply):
            self.records.end(queued.queue.namespace, reply)
            return
        if queued.journal and isinstance(reply, Reply):
            self.journals.keep((queued.queue.namespace, queued.journal), reply)
        if queued.caller is not None:
            queued.caller.link.send(reply, len(reply.payload))

    def settle(self, queued: QueuedCall) -> None:
        """Take a call out that has ended, and whose caller knows."""
        del self[queued.call.id]
        if queued.worker is not None:
            queued.worker.let_go(queued)

    def forget(self, queued: QueuedCall) -> None:
        """Take a call out that nobody awaits any more."""
        del self[queued.call.id]
        if queued.worker is None:  # else it says so itself
            self.journals.over(queued.call.id)
        if queued.delayed is not None:
            queued.delayed.cancel()
        elif queued.worker is not None:
            queued.worker.let_go(queued)
        elif queued.caller is None or queued.caller.stalled.pop(queued.call.id, None) is None:
            queued.queue.remove(queued)
            self._queues.tidy(queued.queue)

    def withdraw(self, queued: QueuedCall) -> None:
        """Forget a call, and have its run end if it has begun."""
        worker = queued.worker
        self.forget(queued)
        if worker is not None:
            worker.link.send(Cancel(VERSION, [queued.call.id]))

    def orphan(self, queued: QueuedCall) -> None:
        """End or keep a call whose caller is gone."""
        if queued.call.orphan != RUN:
            self.withdraw(queued)
            return
        if queued.caller is not None and queued.caller.stalled.pop(queued.call.id, None) is not None:
            queued.caller = None
            self._queues.put_back(queued)
            self._queues.offer(queued.queue)
        queued.caller = None

    def again(self, queued: QueuedCall, awaited: Awaits | None = None) -> None:
        """The worker that had the call is dead: let another one have it, if there may be one more attempt, or if
        it has only waited there to be alone. `awaited`: a call that its run awaited."""
        call = queued.call
        worker = "" if queued.worker is None else queued.worker.worker_id
        queued.worker = None
        if queued.queue.own:  # no other worker may have it
            del self[call.id]
            return
        waited = queued.alone and not queued.begun and call.delivery != AT_MOST_ONCE
        if not waited and (call.delivery == AT_MOST_ONCE or call.attempt >= queued.most):
            ran = self._loop.time() - queued.since
            lost = queued.lost("will not run again: its worker died", worker, ran, awaited)
            log_lost(call, lost, queue=queued.queue.name)
            count_lost(call.task)
            self.end(queued, lost)
            self.journals.over(call.id)
            return
        if not waited:
            call.attempt += 1
            queued.alone = call.attempt == queued.most
        self._queues.put_back(queued)
        self._queues.offer(queued.queue)

    def purge(self, queue: WorkQueue, peers: Sequence[Peer]) -> int:
        """End the calls that wait in the queue, or until their callers, which are among the peers, read. Returns
        how many there were."""
        queues = self._queues.whole(queue)
        waiting = [queued for each in queues for queued in each.calls()]
        waiting += [queued for peer in peers for queued in peer.stalled.values() if queued.queue in queues]
        for queued in waiting:
            if queued.caller is None or queued.caller.stalled.pop(queued.call.id, None) is None:
                queued.queue.remove(queued)
            self.end(queued, purged(queued.call, queue.name))
        return len(waiting)

    def leave(self, peer: Peer) -> None:
        """Let go of the calls that a process awaited, which is gone, and hand those that it had to others."""
        awaited = {
            queued.call.parent: (queued.call.id, queued.call.task)
            for queued in self.values()
            if queued.caller is peer
        }
        for queued in list(self.values()):
            if queued.caller is peer:
                # Forgets the call, unless it runs on without a caller; also if the same process ran it.
                self.orphan(queued)
        for queued in reversed(list(self.values())):  # reversed, because each call is put before the others
            if queued.worker is peer:
                self.again(queued, awaited.get(queued.call.id))

    def close(self) -> None:
        """Forget everything: the hub is closed."""
        for queued in self.values():
            if queued.delayed is not None:
                queued.delayed.cancel()
        self.clear()
        self.records.close()

    # -- for records and journals

    def _in_hand(self, call_id: str) -> bool:
        """Return True if a worker has a call whose reply will be kept."""
        queued = self.get(call_id)
        return queued is not None and queued.kept and queued.worker is not None

    def _unwanted(self, call_id: str) -> None:
        """A call that was to be kept has ended otherwise, or its record is forgotten: it need not begin any more,
        and its run, if it has begun, need not end."""
        queued = self.get(call_id)
        if queued is not None and queued.kept:
            self.withdraw(queued)

    def _unawaited(self, ids: list[str]) -> None:
        """The journal of these calls is dropped: those that nobody awaits need not begin, and end if they run."""
        for call_id in ids:
            queued = self.get(call_id)
            if queued is not None and queued.caller is None:
                self.withdraw(queued)
