"""A message on its way to the broker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pamqp.commands import Basic

from atasks.transport.backends.amqp.broker.refusals import Refusal

__all__ = ["Outgoing"]

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.bodies import Body

logger = logging.getLogger("atasks.amqp")


class Outgoing:
    """A message on its way to the broker. Subclasses say what each ending means.

    Exactly one of `confirmed`, `returned`, `refused` and `rejected` is called, unless `lost` or `stranded` says
    not to send it again.
    """

    __slots__ = ("body", "exchange", "key", "mandatory", "properties", "routing_key", "size")

    def __init__(
        self,
        body: Body,
        routing_key: str,
        properties: Basic.Properties,
        *,
        exchange: str = "",
        mandatory: bool = True,
        key: str | None = None,
    ) -> None:
        self.body = body
        self.size = len(body)
        """Bytes, or a good guess, while it waits."""
        self.routing_key = routing_key
        self.properties = properties
        self.exchange = exchange
        self.mandatory = mandatory
        self.key = key
        """Under which key it is sealed, where messages are: None: this side's own. Empty: under none."""

    @property
    def destination(self) -> str:
        """The name that its seal has for where it goes."""
        return self.routing_key

    def prepare(self) -> bool:
        """Called right before it is sent: False drops it."""
        return True

    def confirmed(self) -> None:
        """The message is safe at the broker."""

    def returned(self) -> None:
        """There is no queue to take it."""

    def refused(self) -> None:
        """The broker rejected it: its queue is full."""

    def rejected(self, refusal: Refusal) -> None:
        """The message cannot be sent: it cannot be written as a message, or the broker closes the channel over
        it."""
        logger.warning(
            "a message of %d bytes for %r was dropped: %s", len(self.body), self.routing_key[:100], refusal.reason
        )

    def stranded(self, arrived: bool) -> bool:
        """The broker closed the channel over another message, before it confirmed this one. `arrived`: this one
        had left before that one, and is there; else nobody knows. True: send it again."""
        return True

    def lost(self) -> bool:
        """The connection went before a confirm: it may or may not have arrived. True: send it again."""
        return True
