"""The consumer of one queue, and its window."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiormq.abc import DeliveredMessage

from atasks.transport.backends.amqp.link import Link, guard, shielded

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.intake import Intake

__all__ = ["Consumer"]

logger = logging.getLogger("atasks.amqp")


class Consumer:
    """The live consumer of one queue, and how much of its window is in use."""

    def __init__(self, intake: Intake, queue: str, name: str, full_size: int, solo: bool) -> None:
        self.intake = intake
        self.queue = queue
        self.solo = solo
        """Whether it is the queue of last attempts, which run alone."""
        self.name = name
        """The broker's name of the queue."""
        self.full_size = full_size
        self.prefetch = full_size
        self.unfinished = 0
        """Messages of the live consumer whose calls have not all ended."""
        self.generation = 0
        self._link: Link | None = None
        self._tag: str | None = None

    @property
    def running(self) -> bool:
        """Whether the broker sends to it."""
        return self._tag is not None

    async def start(self, link: Link, prefetch: int) -> None:
        self._link = link
        self.generation += 1
        self.unfinished = 0
        self.prefetch = max(1, prefetch)
        await guard(link.work.basic_qos(prefetch_count=self.prefetch))
        self._tag = (await guard(link.work.basic_consume(self.name, self._on_message))).consumer_tag

    async def stop(self) -> None:
        """Wait for the broker's word: a cancel that does not would drop deliveries under way."""
        tag, self._tag = self._tag, None
        if tag is not None and self._link is not None:
            await guard(shielded(self._link.work.basic_cancel(tag)))

    async def _on_message(self, message: DeliveredMessage) -> None:
        try:
            await self.intake.receive(self, message)
        except Exception:
            logger.exception("a request could not be served")
            self.intake.fail(message)
