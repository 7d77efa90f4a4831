"""Why a message cannot be sent: what the broker says when it closes a channel over one, or what is found here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiormq.exceptions import AMQPChannelError
from msgspec import Struct

from atasks.errors import CallError, CallRefused, PayloadTooLarge

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.outgoing import Outgoing

__all__ = ["Refusal"]

DEFAULT_EXCHANGE: Final = "amq.default"
"""The broker's name for the exchange whose name is empty."""
LIMIT: Final = re.compile(r"message size \d+ is larger than configured max size (\d+)")
EXCHANGE: Final = re.compile(r"exchange '([^']*)' in vhost")


class Refusal(Struct, frozen=True):
    """Why a message cannot be sent. At most one of `limit` and `exchange` is known."""

    reason: str
    """For people: the broker's own words, if it has said anything."""
    limit: int | None = None
    """Bytes that a message may have, where it has more."""
    exchange: str | None = None
    """The exchange that takes nothing from this user, or is not there."""

    @classmethod
    def of(cls, error: AMQPChannelError) -> Refusal:
        """Read the broker's reason from the error that closed the channel. It names the limit or the exchange,
        and no message."""
        reason = str(error.args[-1]) if error.args and error.args[-1] else type(error).__name__
        limit, exchange = LIMIT.search(reason), EXCHANGE.search(reason)
        if limit is not None:
            return cls(reason, limit=int(limit[1]))
        if exchange is not None:
            return cls(reason, exchange="" if exchange[1] == DEFAULT_EXCHANGE else exchange[1])
        return cls(reason)

    def concerns(self, message: Outgoing) -> bool:
        """Return True if the broker refuses this message too, for the same reason."""
        if self.limit is not None:
            return len(message.body) > self.limit
        return self.exchange is not None and message.exchange == self.exchange

    def error(self, what: str, size: int) -> CallError:
        """The error of whoever waits for `what`, whose message has `size` bytes."""
        if self.limit is not None:
            return PayloadTooLarge(
                f"{what} takes a message of {size} bytes, over the limit of {self.limit}, context variables "
                "included: pass a reference instead"
            )
        hint = ": give its user the permission to write there" if self.exchange is not None else ""
        return CallRefused(f"{what} cannot be sent ({self.reason}){hint}")
