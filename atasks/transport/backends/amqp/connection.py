"""The connection to the broker: one link after the other, for as long as a transport is connected."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Final

from aiormq.exceptions import AMQPChannelError

from atasks.errors import TransportError
from atasks.outlast import shield
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error, server_name
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.questions import guard
from atasks.transport.backends.amqp.session import Session

__all__ = ["BACKOFF", "Connection"]

logger = logging.getLogger("atasks.amqp")

UNDO_SECONDS: Final = 1.0
"""Seconds that a connection that could not be set up may take to remove what it has declared."""
LAST_SECONDS: Final = 2.0
"""Seconds for the last words over another link than the one that was lost."""
BACKOFF: Final = (0.05, 15.0)
"""Seconds before the first and, at most, before any later attempt to reconnect."""
STABLE_SECONDS: Final = 5.0
"""A link that is lost within so many seconds is no reason to try the next one sooner."""


class Connection:
    """Opens a link, and the next one whenever it is lost, with growing pauses, until `stop`.

    `set_up(link)` restores over a new link what the transport has there, and calls `attach` when it may be used.
    `let_go()` is called when a link is lost, and `failed(error)` if nothing restores the connection any more.
    """

    def __init__(
        self,
        session: Session,
        set_up: Callable[[Link], Awaitable[None]],
        let_go: Callable[[], None],
        failed: Callable[[BaseException | None], None],
    ) -> None:
        self._session = session
        self._set_up = set_up
        self._let_go = let_go
        self._failed = failed
        self._last_link: Link | None = None
        """The link opened last: to be closed in the end, whatever became of it."""
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """True from `keep` to `stop`."""
        return self._keeper is not None

    @property
    def is_kept(self) -> bool:
        """True while a lost link is restored; False also when the event loop is ending."""
        return self._keeper is not None and not self._keeper.done()

    async def open(self) -> Link:
        """Open the first link, and set it up. Raises TransportError: then nothing of it is left."""
        session = self._session
        link = await self._open()
        try:
            await self._set_up(link)
        except BaseException as error:
            with suppress(*CLIENT_ERRORS):  # the queue may exist by now, although no answer has come
                async with asyncio.timeout(UNDO_SECONDS):
                    await guard((await link.open_channel()).queue_delete(session.reply_queue))
            await link.close()
            if isinstance(error, CLIENT_ERRORS):
                raise map_error(error, session.urls[0]) from error
            raise
        return link

    def keep(self, link: Link) -> None:
        """Restore the connection from now on, whenever its link is lost."""
        self._keeper = asyncio.create_task(self._keep(link), name="atasks connection")
        self._keeper.add_done_callback(self._on_keeper_done)

    def attach(self, link: Link) -> None:
        """Say that this link may be used: it is set up so far."""
        self._session.link = link
        self._session.links.attach(link)

    def lose(self, link: Link, reason: str) -> None:
        """Have the next link opened, unless that has happened already."""
        if self._session.link is link:
            self._session.links.detach()
            link.lose(reason)

    async def link(self) -> Link:
        """The link, as soon as there is one. Raises NotConnected, and TimeoutError when the time for one attempt
        to connect is over."""
        async with asyncio.timeout(self._session.timeout):
            return await self._session.links.link()

    async def stop(self) -> None:
        """Restore no link any more."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])

    async def end(self, last_words: Callable[[Link], Coroutine[Any, Any, None]]) -> None:
        """Restore no link any more, and say the last words: over the link or, where it is lost, over another one,
        on which nothing is restored. Raises one of `CLIENT_ERRORS`, or TransportError, if they cannot be said:
        what the broker refuses here it would refuse there.

        Whatever else might declare the reply queue again has ended before the words, which remove it.
        """
        await self.stop()
        link = self._session.link
        if link is not None:
            try:
                await _while_there(link, last_words(link))
            except CLIENT_ERRORS as error:
                if isinstance(error, AMQPChannelError) and not link.lost.done():
                    raise
            else:
                return
        async with asyncio.timeout(LAST_SECONDS):
            if self._last_link is not None:
                await self._last_link.close()
            self._detach()
            link = await self._open()
            self._session.outbox.attach(link)
            await _while_there(link, last_words(link))

    async def close(self) -> None:
        """Close the last link."""
        if self._last_link is not None:
            await self._last_link.close()
        self._detach()

    def _detach(self) -> None:
        """The link is gone: nothing of it may be acknowledged on another one."""
        self._session.link = None
        self._session.links.detach()
        self._let_go()

    async def _open(self) -> Link:
        self._last_link = await Link.open(self._session.urls, f"atasks {os.getpid()}", self._session.timeout)
        return self._last_link

    async def _keep(self, link: Link) -> None:
        """Restore the connection whenever it is lost, ever later if it is lost soon after that."""
        loop = asyncio.get_running_loop()
        waits = pauses(*BACKOFF)
        while True:
            since = loop.time()
            reason = await shield(link.lost)
            logger.warning("the connection to RabbitMQ at %s is lost: %s", link.server, reason)
            self._detach()
            await link.close()
            if loop.time() - since >= STABLE_SECONDS:
                waits = pauses(*BACKOFF)
            link = await self._reconnect(waits)
            logger.warning("the connection to RabbitMQ at %s is restored", link.server)

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled():
            self._failed(keeper.exception())

    async def _reconnect(self, waits: Iterator[float]) -> Link:
        for pause in waits:
            await asyncio.sleep(pause)
            link: Link | None = None
            try:
                link = await self._open()
                # A broker that is recovering a quorum queue may never answer the one who asks to consume it.
                async with asyncio.timeout(self._session.timeout):
                    await self._set_up(link)
            except (*CLIENT_ERRORS, TransportError) as error:
                where = " or ".join(map(server_name, self._session.urls)) if link is None else link.server
                reason = str(error) or "the broker does not answer"
                logger.warning("the connection to RabbitMQ at %s cannot be restored yet: %s", where, reason)
                if link is not None:
                    await link.close()
                    self._detach()
            else:
                return link
        raise AssertionError("there is no last pause")


async def _while_there(link: Link, operation: Coroutine[Any, Any, None]) -> None:
    """Await what would never end once the link is lost. Raises ConnectionError then."""
    task = asyncio.ensure_future(operation)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look
    try:
        await asyncio.wait((task, link.lost), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionError(link.lost.result())
        await task
    finally:
        task.cancel()
        await asyncio.wait((task,))
