"""Workers that come and go, as a caller sees it: does one serve a queue, and which calls wait until one does?"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import guard
from atasks.transport.pending import Pending
from atasks.transport.unserved import no_worker

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
    from atasks.transport.backends.amqp.caller.requests import Requests
    from atasks.transport.backends.amqp.session import Session

__all__ = ["WorkerPresence"]

logger = logging.getLogger("atasks.amqp")

DEAF_SECONDS: Final = 1.0
CONSUMERS_KNOWN_FOR: Final = 1.0
"""Seconds for which "this queue has consumers" is believed."""


class WorkerPresence:
    """Listens for workers that declare a queue, and keeps the calls that the broker returned for want of one."""

    def __init__(self, session: Session, requests: Requests, overdue: OverdueCalls) -> None:
        self._session = session
        self._requests = requests
        self._overdue = overdue
        self.listening: set[str] = set()
        """Queues whose `Up` would reach this caller."""
        self._binding: dict[str, asyncio.Task[None]] = {}
        self._homeless: dict[str, dict[str, Pending]] = {}
        """Queue -> calls that wait for a worker to declare it."""
        self._deaf: dict[str, bool] = {}
        """Queue that was announced just now -> whether it was once more since."""
        self._served: dict[str, float] = {}
        """Queue -> until when it is believed to have consumers (event loop time)."""

    def reset(self) -> None:
        """The link is gone: nothing of what it was told holds on another one."""
        for task in self._binding.values():
            task.cancel()
        self._binding.clear()
        self.listening.clear()
        self._deaf.clear()
        self._served.clear()

    async def require_worker(self, queue: str) -> None:
        """Raise NoWorker unless something consumes the queue, InvalidName if there can be none."""
        self._session.topology.check(queue)
        loop = asyncio.get_running_loop()
        if self._served.get(queue, 0.0) > loop.time():
            return
        link = self._session.link
        if link is None:
            return  # it is sent after the reconnect, and the broker returns it if there is no queue
        # The consumers of the solo queue stay while those of the work queue are replaced.
        name = self._session.topology.solo(queue)
        try:
            for _ in range(2):  # a quorum queue may say 0 consumers for a moment
                state = await link.queue_state(name)
                if state is None:
                    break
                if state[1]:
                    self._served[queue] = loop.time() + CONSUMERS_KNOWN_FOR
                    return
            paused = await self._overdue.is_paused(queue)
        except CLIENT_ERRORS:
            return
        raise no_worker(queue, paused=paused)

    def returned(self, pending: Pending) -> None:
        """The broker has no such work queue: no worker ever declared it, or it was deleted."""
        queue = self._session.queue_of(pending.options)
        if pending.options.on_no_worker == "error":
            pending.fail(no_worker(queue))
        else:
            if self.listens(queue) and not self._homeless.get(queue):
                logger.warning("nothing serves queue %r yet: calls wait for a worker", queue)
            self._homeless.setdefault(queue, {})[pending.call.id] = pending
            pending.unheard = True

    def forget(self, queue: str, pending: Pending) -> None:
        """The await of this call has ended."""
        self._homeless.get(queue, {}).pop(pending.call.id, None)

    def settle(self) -> None:
        """Every call that waited here was sent again."""
        self._homeless.clear()

    def listens(self, queue: str) -> bool:
        """Return True if this caller would be told of a worker that declares the queue.

        If not yet, calls that the broker returned meanwhile are sent once more as soon as it would be: the
        announcement may have been missed.
        """
        if queue in self.listening:
            return True
        link = self._session.link
        if link is not None and queue not in self._binding:
            task = self._binding[queue] = asyncio.create_task(self.bind(queue, link), name="atasks bind")
            task.add_done_callback(lambda task: self._on_listening(task, queue))
        return False

    async def bind(self, queue: str, link: Link) -> None:
        """Listen to the announcements of a queue."""
        topology = self._session.topology
        await guard(link.inbox.queue_bind(self._session.reply_queue, topology.control, topology.up_key(queue)))
        self.listening.add(queue)

    def _on_listening(self, task: asyncio.Task[None], queue: str) -> None:
        if task.cancelled():
            return  # the link is lost: the next one binds anew
        error = task.exception()
        if error is not None:
            if self._session.link is not None:
                self._session.link.lose(f"cannot bind the reply queue: {error}")
            return
        del self._binding[queue]
        self._send_homeless(queue)

    def heard(self, queue: str) -> None:
        """A worker declared this queue, which was not there before: send what waits for it. Where messages are
        sealed anybody may say so still, and is listened to once a second."""
        if self._session.seals is None:
            self._settle(queue)
        elif queue in self.listening and queue not in self._deaf:
            self._settle(queue)
            self._deaf[queue] = False
            asyncio.get_running_loop().call_later(DEAF_SECONDS, self._listen_again, queue)
        elif queue in self._deaf:
            self._deaf[queue] = True

    def _listen_again(self, queue: str) -> None:
        if self._deaf.pop(queue, False):
            self.heard(queue)

    def _send_homeless(self, queue: str) -> None:
        for pending in self._homeless.pop(queue, {}).values():
            if not pending.future.done():
                self._requests.send(pending)

    def _settle(self, queue: str) -> None:
        session = self._session
        self._send_homeless(queue)
        # Others were lost with an earlier queue, or came right after this one was declared and are in good hands:
        # sent at once, the latter would run twice whenever a queue is declared for the first time.
        pendings = (item for item in session.pendings.values() if session.queue_of(item.options) == queue)
        self._overdue.suspect([item for item in pendings if item.confirmed])
