"""A process, as the hub knows it: a caller, a worker, or both."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Final

from atasks.options import EXECUTORS, Executor
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.hub.queue import OWN, QueuedCall, WorkQueue
from atasks.transport.backends.local.messages import Hold, Slots
from atasks.turns import Turns
from atasks.wire import Credit

__all__ = ["Peer"]

MAX_QUEUED: Final = 64 * 2**20
"""Bytes of one caller's calls that may wait at the hub: past it, the caller is told to hold."""


class Peer:
    """One process and one namespace."""

    def __init__(self, link: Conversation, pid: int, look: Callable[[Peer], None]) -> None:
        """`look(peer)` is called when it may have a call that is to run alone, and might not before."""
        self.link = link
        self.namespace: str | None = None
        """None until it has said `Hello`."""
        self.pid = pid
        self.expected: asyncio.TimerHandle | None = None
        """Until when it has to say it."""
        # as a caller
        self.queued_bytes = 0
        """Bytes of its calls that wait in queues."""
        self.stalled: OrderedDict[str, QueuedCall] = OrderedDict()
        """Calls that are not handed out because it is slow to read the replies that it has."""
        self._on_hold = False
        # as a reader of records
        self.watching: set[str] = set()
        """Calls of whose records it wants news."""
        self.unread: deque[Callable[[], object]] = deque()
        """Answers to its questions that are held back while it is slow to read."""
        # as a worker
        self.credits: dict[str, Credit] = {}
        """The latest of each of its streams, while it is slow to read."""
        self.worker_id = ""
        self.begins = False
        """True if the worker says when a last attempt begins."""
        self.first_queue = ""
        """The one that it named first: where calls come from if nothing else is said."""
        self.queues: list[WorkQueue] = []
        """Those it serves, or, while it drains, served."""
        self.room = 0
        """The number of calls that the worker may be handed now; less than 0: it has more than it can start."""
        self.alone: QueuedCall | None = None
        """The call that it has, or is about to have, in a slot for itself."""
        self.turns = Turns(asyncio.get_running_loop(), partial(look, self))
        self._together = 0
        """Calls that it has, but for those that are to run alone."""
        self._handed = 0
        self._alone_number = 0
        self._places: dict[Executor | None, int] = {}
        """For how many more blocking functions its pools have a place."""
        self._under_way: dict[Executor, deque[int]] = {executor: deque() for executor in EXECUTORS}
        """Blocking calls that it was handed, and that its last `Slots` did not count yet, by their numbers."""

    def expect_no_hello(self) -> None:
        """End the wait for its `Hello`: the timer would keep it alive, with the buffer for its messages."""
        if self.expected is not None:
            self.expected.cancel()
            self.expected = None

    @property
    def own_queue(self) -> str:
        """The name of the queue of what this worker alone is to run; no other one has a space in it."""
        return f"{OWN}{self.worker_id}"

    def room_for(self, queue: WorkQueue) -> int:
        """Return the number of calls of this queue that the worker may be handed now."""
        return self.room if queue.executor is None else min(self.room, self._places.get(queue.executor, 0))

    def may_have_alone(self, others: bool) -> bool:
        """Return True if the worker may be handed a call now that runs alone. `others` says that there are
        calls that need not."""
        return self.alone is None and not self.turns.resting(others or self._together > 0)

    def answer(self, send: Callable[[], object]) -> None:
        """Send an answer that may be large, when the process reads what it was sent before."""
        self.unread.append(send)
        self.answer_on()

    def answer_on(self) -> None:
        """Send answers that were held back: the process reads."""
        while self.unread and not self.link.clogged:
            self.unread.popleft()()

    def forget_answers(self) -> None:
        """Hold no answers back any more: the process is gone."""
        self.unread.clear()

    def hand(self, queued: QueuedCall) -> None:
        """Count a call that it is handed now."""
        self._handed += 1
        self.room -= 1
        executor = queued.queue.executor
        if executor is not None:
            self._places[executor] -= 1
            self._under_way[executor].append(self._handed)
        if queued.alone:
            self.alone = queued
            self.room = 0
            self._alone_number = self._handed
            self.turns.begin_alone()
        else:
            self._together += 1

    def told(self, slots: Slots) -> None:
        """Take in how many calls the worker could start; some calls may have been on their way to it when it
        said so."""
        self.room = slots.free - (self._handed - slots.received)
        for executor, places in zip(EXECUTORS, (slots.threads, slots.processes), strict=True):
            under_way = self._under_way[executor]
            while under_way and under_way[0] <= slots.received:
                under_way.popleft()
            self._places[executor] = places - len(under_way)
        if slots.received < self._alone_number:  # the worker does not know yet that a call must run alone
            self.room = min(self.room, 0)

    def let_go(self, queued: QueuedCall) -> None:
        """Forget a call that the worker no longer has."""
        if self.alone is queued:
            self.alone = None
            self.turns.end_alone()
        else:
            self._together -= 1
            self.turns.other_ended()

    def check_room(self) -> None:
        """Tell the peer to hold its requests, if too many of them wait. Called when it has sent one that waits."""
        if self.queued_bytes > MAX_QUEUED and not self._on_hold:
            self._on_hold = True
            self.link.send(Hold(True))

    def may_send_again(self) -> None:
        """Less waits now: tell it to go on, if it was told to hold."""
        if self._on_hold and self.queued_bytes < MAX_QUEUED // 2:
            self._on_hold = False
            self.link.send(Hold(False))
