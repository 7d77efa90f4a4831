"""The link that there is, or the next one: what is begun over one link goes on over the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from atasks.errors import AtasksError, NotConnected
from atasks.outlast import shield
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link

__all__ = ["Links"]

T = TypeVar("T")

LOST_SECONDS: Final = 1.0
"""Seconds within which an error that means the loss of the link makes itself known as that."""


class Links:
    """One link after the other, for operations that may wait for the next one."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._link: asyncio.Future[Link] | None = None
        self._closed = False

    def attach(self, link: Link) -> None:
        """Work over this link from now on."""
        self._closed = False
        self._awaited().set_result(link)

    def detach(self) -> None:
        """The link is gone: wait for the next one."""
        if not self._closed:
            self._awaited()

    def close(self, reason: str) -> None:
        """There will be no other link: what waits for one ends in NotConnected."""
        self._closed = True
        link = self._awaited()
        link.set_exception(NotConnected(reason))
        link.exception()  # nobody may be waiting

    def _awaited(self) -> asyncio.Future[Link]:
        if self._link is None or self._link.done():
            self._link = asyncio.get_running_loop().create_future()
        return self._link

    async def link(self) -> Link:
        """Return the link, as soon as there is one. Raises NotConnected."""
        if self._link is None:
            raise NotConnected("this transport is not connected: await its connect() first")
        return await shield(self._link)

    async def do(self, operation: Callable[[Link], Awaitable[T]]) -> T:
        """Do it over the link that there is, and again over the next one if that one gets lost."""
        while True:
            link = await self.link()
            try:
                return await operation(link)
            except AtasksError:
                raise
            except CLIENT_ERRORS as error:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOST_SECONDS):
                        await shield(link.lost)
                if not link.lost.done():
                    raise map_error(error, self._urls[0]) from error
                if (
                    self._link is not None
                    and self._link.done()
                    and self._link.exception() is None
                    and self._link.result() is link
                ):
                    self.detach()  # the transport has not noticed yet
