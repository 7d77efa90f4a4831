"""The work queues of a hub, and the way of calls from them to workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from weakref import WeakValueDictionary

from msgspec import structs

from atasks.options import EXECUTORS, Executor
from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.hub.queue import QueuedCall, Told, WorkQueue
from atasks.transport.backends.local.messages import Deliver, Handed

__all__ = ["WorkQueues"]

MAX_PAUSED: Final = 1000
"""Queues that may be paused at a time."""


class WorkQueues:
    """Every queue with calls or workers. A worker is handed calls from its queues while it has room for them."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str, Executor | None], WorkQueue] = {}
        """By namespace, name, and what the calls run in, if they need a place in a pool."""
        self._paused: set[tuple[str, str]] = set()
        """Namespace and name of those that are paused."""
        self._told: WeakValueDictionary[str, Told] = WeakValueDictionary()
        """By namespace: those of which a queue is there."""
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._queues)

    def clear(self) -> None:
        """Forget all of them."""
        self._queues.clear()
        self._paused.clear()

    def of(self, peer: Peer, name: str) -> WorkQueue:
        """The queue of that name that this peer means, made now if there is none."""
        assert peer.namespace is not None, "it was welcomed"
        queue = self._queues.get((peer.namespace, name, None))
        if queue is None:
            queue = WorkQueue(peer.namespace, name, self._told_in(peer.namespace))
            self._queues[peer.namespace, name, None] = queue
        return queue

    def _told_in(self, namespace: str) -> Told:
        told = self._told.get(namespace)
        if told is None:
            told = self._told[namespace] = Told()
        return told

    def learn(self, namespace: str, executors: Mapping[str, Executor], attempts: Mapping[str, int]) -> None:
        """A worker says what its atasks need."""
        self._told_in(namespace).learn(executors, attempts)

    def beside(self, queue: WorkQueue, executor: Executor) -> WorkQueue:
        """The queue beside this one of calls that need a place in such a pool. All workers of the one serve it."""
        beside = self._queues.get((queue.namespace, queue.name, executor))
        if beside is None:
            beside = WorkQueue(queue.namespace, queue.name, self._told_in(queue.namespace), executor)
            beside.paused = queue.paused
            self._queues[queue.namespace, queue.name, executor] = beside
            beside.workers += queue.workers
            for worker in queue.workers:
                worker.queues.append(beside)
        return beside

    def all_beside(self, peer: Peer, name: str) -> list[WorkQueue]:
        """The queues beside a work queue that there are."""
        assert peer.namespace is not None, "it was welcomed"
        found = (self._queues.get((peer.namespace, name, executor)) for executor in EXECUTORS)
        return [queue for queue in found if queue is not None]

    def pause(self, queue: WorkQueue, paused: bool) -> None:
        """Hand out no calls of the queue, and of those beside it, until that is undone. Nothing happens if very
        many are paused: a name is all that it takes, and each is kept until somebody resumes it."""
        name = queue.namespace, queue.name
        if not paused:
            self._paused.discard(name)
        elif len(self._paused) < MAX_PAUSED:
            self._paused.add(name)
        elif name not in self._paused:
            return
        for each in self.whole(queue):
            each.paused = paused
            if not paused:
                self.offer(each)
                self.tidy(each)

    def whole(self, queue: WorkQueue) -> list[WorkQueue]:
        """A work queue, and those beside it that there are."""
        beside = (self._queues.get((queue.namespace, queue.name, executor)) for executor in EXECUTORS)
        return [queue, *(each for each in beside if each is not None)]

    def put_back(self, queued: QueuedCall) -> None:
        """Let the call wait again, before its equals; its queue may have been forgotten meanwhile."""
        queue = queued.queue
        queued.queue = self._queues.setdefault((queue.namespace, queue.name, queue.executor), queue)
        queued.queue.push(queued, front=True)

    def tidy(self, queue: WorkQueue) -> None:
        """Forget a queue that has neither workers nor calls, and is not paused."""
        if not queue.workers and not queue.size and not queue.paused:
            self._queues.pop((queue.namespace, queue.name, queue.executor), None)

    def offer(self, queue: WorkQueue) -> None:
        """Calls wait in the queue: hand out what workers have room for, most to whoever has most."""
        for worker in sorted(queue.workers, key=lambda worker: -worker.room_for(queue)):
            self.fill(worker)

    def fill(self, worker: Peer) -> None:
        """Hand the worker as many of the calls that wait as it has room for, from its queues in turn."""
        queues = worker.queues
        for queue in queues:
            while worker.room_for(queue) > 0 and queue.size and not queue.paused and not worker.link.clogged:
                queued = queue.pop(worker)
                if queued is None:
                    break
                caller = queued.caller
                if caller is not None and caller.link.clogged:
                    caller.stalled[queued.call.id] = queued
                else:
                    self.hand(queued, worker)
        if len(queues) > 1:
            queues.append(queues.pop(0))

    def hand(self, queued: QueuedCall, worker: Peer) -> None:
        """Give the call to this worker."""
        queued.worker = worker
        if queued.begun:
            queued.begun = False
        queued.since = self._loop.time()
        worker.hand(queued)
        if queued.alone and not worker.begins:
            self.begin_alone(queued)
        call = queued.call
        if queued.deadline is not None:  # send the time that is left: clocks of two processes are not compared
            left = max(round((queued.deadline - self._loop.time()) * 1000), 0)
            call = structs.replace(call, timeout_ms=left)
        queue = queued.queue.name
        worker.link.send(Deliver(call, queued.alone, "" if queue == worker.first_queue else queue), queued.size)

    def begin_alone(self, queued: QueuedCall) -> None:
        """A last attempt begins: should its worker die now, it is lost."""
        queued.begun = True
        if queued.worker is not None:
            queued.worker.turns.begin_alone()  # before it waited
        if queued.caller is not None:
            queued.caller.link.send(Handed(queued.call.id))
