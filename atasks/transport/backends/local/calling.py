"""The caller's side: which calls the hub has, and what it says of them."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import structs

from atasks import wire
from atasks.errors import CallConnectionLost, NoWorker, WorkerLost
from atasks.options import TaskOptions
from atasks.transport.backends.local.backpressure import Backpressure
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.lookout import Lookout
from atasks.transport.backends.local.messages import Handed, Hold, NoneServes, Request, There, Where
from atasks.transport.other_queues import Ask
from atasks.transport.pending import Pending
from atasks.transport.unserved import no_worker
from atasks.transport.whereabouts import Whereabouts
from atasks.wire import AT_MOST_ONCE, Credit

__all__ = ["Calling"]

RESENT_MS: Final = 50
"""A call that has so much less than its whole time was sent before, or has waited for room."""


class Calling:
    """Hands calls to the hub, and again to the next one if that is gone."""

    def __init__(self, path: str | None, queue: str, ask: Ask) -> None:
        self.queue = queue
        """The work queue of calls that name none."""
        self.pendings: dict[str, Pending] = {}
        """Id -> call that is awaited here."""
        self.backpressure = Backpressure()
        self._path = path
        self._link: Conversation | None = None
        """To the hub; None while there is none that has said welcome."""
        self._lookout = Lookout(self, ask)
        self._withdrawn: list[str] = []
        self._last_attempts: set[str] = set()
        """Calls whose last permitted attempt has begun."""

    # -- life

    def resume(self, link: Conversation) -> None:
        """There is a hub: send it what no other one has."""
        self._link = link
        for pending in list(self.pendings.values()):
            if not pending.future.done():
                self.post(pending)

    def lost(self, *, graceful: bool) -> None:
        """The hub is gone. `graceful`: it said that it had no call begun that was not answered."""
        if self._link is not None:
            self._link = None
            for pending in list(self.pendings.values()):
                if pending.confirmed:
                    self._hub_died_with(pending, graceful)
            self._last_attempts.clear()

    def _hub_died_with(self, pending: Pending, graceful: bool) -> None:
        """Settle a call after the hub has died: no one knows if a worker had begun it, unless the hub said that
        none had."""
        pending.confirmed = False
        call = pending.call
        if graceful and (pending.receiver is None or call.delivery != AT_MOST_ONCE):
            call.ran |= pending.receiver is not None  # its next run has to ask where to go on
            return
        last = call.attempt >= call.max_attempts
        if call.delivery == AT_MOST_ONCE:
            pending.fail(
                CallConnectionLost(
                    f"the hub is gone: whether {call.task} ran cannot be known, and it runs at most once"
                )
            )
        elif last and (call.attempt == 1 or call.id in self._last_attempts):
            message = f"task {call.task!r}, call {call.id}, will not run again: the process of its hub died"
            pending.fail(WorkerLost(message, call.attempt))
        elif not last:
            call.attempt += 1

    def close(self) -> None:
        """Every await has ended: nothing is looked at any more."""
        self._lookout.stop()

    # -- calls

    def queue_of(self, options: TaskOptions) -> str:
        """The work queue of calls with these options."""
        return options.queue or self.queue

    def post(self, pending: Pending) -> None:
        """Send the call; without a hub, when there is one."""
        if pending.confirmed or pending.future.done():
            return  # it was sent after a reconnect, while it waited for room
        options, link = pending.options, self._link
        wait = options.on_no_worker != "error"
        if link is None:
            if not wait:
                raise NoWorker(
                    f"the hub at {self._path} is gone, and nothing serves queue {self.queue_of(options)!r}"
                )
            return
        pending.confirmed = True
        call = pending.call
        if self._lookout.idle:
            self._lookout.start()
        if pending.deadline is not None and call.timeout_ms is not None:  # sent again, it has less time
            left = max(round((pending.deadline - asyncio.get_running_loop().time()) * 1000), 0)
            if call.timeout_ms - left > RESENT_MS:
                call = structs.replace(call, timeout_ms=left)
        request = Request(options.queue or self.queue, call, options.priority, wait, pending.address)
        link.send(request, len(call.payload))

    def withdraw(self, pending: Pending) -> None:
        """The await of the call has ended: tell the hub."""
        if pending.confirmed:
            if not self._withdrawn:
                asyncio.get_running_loop().call_soon(self._send_cancels)
            self._withdrawn.append(pending.call.id)

    def _send_cancels(self) -> None:
        withdrawn, self._withdrawn = self._withdrawn, []
        if self._link is not None:
            for cancel in wire.cancels(withdrawn):
                self._link.send(cancel)

    def grant(self, credit: Credit) -> None:
        """Say what was taken of a stream."""
        if self._link is not None:
            self._link.send(credit)

    def locate(self, pending: Pending) -> None:
        """Find out where the call is: its deadline is near."""
        if self._link is None:
            pending.where = Whereabouts("connection")
        else:
            self._lookout.locate(pending)

    def ask(self, ids: list[str]) -> None:
        """Ask the hub where these calls are."""
        if self._link is not None:
            self._link.send(Where(ids))

    # -- what arrives

    def told(self, message: NoneServes | There | Handed | Hold) -> None:
        """The hub says something of a call, or how much it may be sent."""
        match message:
            case NoneServes():
                pending = self.pendings.get(message.id)
                if pending is not None:
                    pending.fail(no_worker(self.queue_of(pending.options), paused=message.paused))
            case There():
                self._lookout.found(message)
            case Handed():
                self._last_attempts.add(message.id)
            case Hold():
                self.backpressure.hold(message.on)
