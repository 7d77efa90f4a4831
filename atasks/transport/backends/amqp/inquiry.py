"""Calls that have been pending for long: does a worker hold them?

A request that the broker confirmed can still vanish: its queue may be deleted or purged, a policy may drop it, and
a message that is not persistent does not survive the broker. Nobody tells the caller, so the caller asks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from atasks import wire
from atasks.transport.backends.amqp.link import CLIENT_ERRORS
from atasks.transport.backends.amqp.outbox import Outgoing
from atasks.transport.base import Pending
from atasks.wire import CONTENT_TYPE, VERSION, Ask, Held

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.transport import AMQPTransport

__all__ = ["Inquiry"]

logger = logging.getLogger("atasks.amqp")

IDS_AT_ONCE: Final = 1000
QUICK_ROUNDS: Final = 3
"""Two unanswered questions, and the conclusion."""


class Inquiry:
    """Asks the workers for every call that is pending for longer than `patience` seconds. One that no worker says
    it holds, twice, while its queue is empty, is lost: it is sent again, or ends in `CallConnectionLost` if it may
    run at most once."""

    patience = 30.0
    pause = 5.0
    """Seconds between two rounds."""
    quick_pause = 1.0
    """The same, after there was a reason to ask."""

    def __init__(self, transport: AMQPTransport) -> None:
        self._transport = transport
        self._reason = asyncio.Event()

    async def run(self) -> None:
        """Ask, round after round, until cancelled."""
        quick = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.quick_pause if quick else self.pause):
                    await self._reason.wait()
            quick = QUICK_ROUNDS if self._reason.is_set() else max(0, quick - 1)
            self._reason.clear()
            try:
                await self._round()
            except CLIENT_ERRORS as error:  # the link went: after the reconnect there is another round
                logger.debug("a round of questions was cut short: %s", error)

    def suspect(self, pendings: Iterable[Pending]) -> None:
        """These calls may be lost: ask for them now."""
        for pending in pendings:
            pending.since = -math.inf
        self._reason.set()

    async def _round(self) -> None:
        now = asyncio.get_running_loop().time()
        overdue: dict[str, list[Pending]] = {}
        for pending in self._transport.pendings():
            if pending.confirmed and now - pending.since >= self.patience:
                overdue.setdefault(self._transport.queue_of(pending.options), []).append(pending)
        for queue, pendings in overdue.items():
            lost = [pending for pending in pendings if pending.asked >= 2]
            if lost and await self._is_empty(queue):
                self._transport.requests.resend(lost, f"queue {queue!r} lost the call")
            for key in {pending.key for pending in pendings}:
                self._ask(queue, [item for item in pendings if item.confirmed and item.key == key], key)

    def _ask(self, queue: str, pendings: list[Pending], key: str | None) -> None:
        topology = self._transport.topology
        for start in range(0, len(pendings), IDS_AT_ONCE):
            some = pendings[start : start + IDS_AT_ONCE]
            for pending in some:
                pending.asked += 1
            properties = Basic.Properties(
                content_type=CONTENT_TYPE,
                message_id=f"ask:{some[0].call.id}",
                reply_to=self._transport.reply_queue,
                delivery_mode=1,
            )
            body = wire.encode([Ask(VERSION, [pending.call.id for pending in some])])
            self._transport.outbox.put(
                Outgoing(
                    body,
                    topology.queue_key(queue),
                    properties,
                    exchange=topology.control,
                    mandatory=False,
                    key=key,
                )
            )

    async def _is_empty(self, queue: str) -> bool:
        """Whether no call waits in the queue: one that does is not lost, however long it waits."""
        link, topology = self._transport.link, self._transport.topology
        if link is None:
            return False
        for name in topology.all(queue):
            state = await link.queue_state(name)
            if state is not None and state[0]:
                return False
        return True

    def heard(self, answer: Held) -> None:
        """A worker holds these calls."""
        for call_id in answer.ids:
            pending = self._transport.pending(call_id)
            if pending is not None:
                self.heard_of(pending)
                if pending.inflow is not None:
                    pending.inflow.ask(answer.worker)

    def heard_of(self, pending: Pending) -> None:
        """A worker holds this call."""
        pending.since = asyncio.get_running_loop().time()
        pending.asked = 0
