"""A session with the broker, which outlives connections: what both sides of a transport have in common."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atasks import wire
from atasks.transport.backends.amqp.broker.content import Properties
from atasks.transport.backends.amqp.broker.outbox import Outbox
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.links import Links
from atasks.wire import CONTENT_TYPE, Envelope, QueryAnswer

if TYPE_CHECKING:
    from atasks.options import TaskOptions
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.broker.topology import Topology
    from atasks.transport.backends.amqp.seals import Seals
    from atasks.transport.pending import Pending

__all__ = ["Session", "State"]


class State(enum.Enum):
    """The state of a transport's connection to its broker."""

    CLOSED = enum.auto()
    """Not connected, or no more."""
    OPEN = enum.auto()
    """Connected; while the link is lost it is being restored."""
    CLOSING = enum.auto()
    """Every await has ended, and what was declared is being removed."""
    FAILED = enum.auto()
    """No link, and nothing restores it any more."""


class Session:
    """Names and options of one transport, the link that it has now, what leaves over it, and who is awaited.

    The transport writes `state` and `link`; its caller's and its worker's side read them.
    """

    def __init__(
        self,
        topology: Topology,
        user: str,
        urls: Sequence[str],
        outbox: Outbox,
        seals: Seals | None,
        *,
        queue: str,
        timeout: float,
        max_message: int,
    ) -> None:
        self.topology = topology
        self.user = user
        """The user name at the broker."""
        self.urls = urls
        self.outbox = outbox
        self.seals = seals
        """None: messages are not sealed."""
        self.queue = queue
        """The work queue of calls that name none."""
        self.timeout = timeout
        """Seconds for one attempt to connect."""
        self.max_message = max_message
        """Bytes of a message that is read here; the broker may take less: see `Outbox.limit`."""
        self.state = State.CLOSED
        self.link: Link | None = None
        """The connected epoch; None while there is none."""
        self.links = Links(urls)
        """For what waits for the next one."""
        self.reply_queue = ""
        self.pendings: dict[str, Pending] = {}
        """Id -> call that is awaited here."""
        self.asked: dict[str, Callable[[QueryAnswer], object]] = {}
        """Token of a question to workers -> who wants the answers."""

    @property
    def is_open(self) -> bool:
        """Calls are awaited here."""
        return self.state is State.OPEN

    def new_reply_queue(self) -> None:
        """Take another name for the reply queue."""
        self.reply_queue = self.topology.new_reply_queue(self.user)

    def queue_of(self, options: TaskOptions) -> str:
        """The work queue of a call."""
        return options.queue or self.queue

    @contextmanager
    def following(self, pending: Pending) -> Iterator[None]:
        """Ask for a call that is not awaited here, as for those that are, unless it is followed already."""
        known = self.pendings.setdefault(pending.call.id, pending)
        try:
            yield
        finally:
            if known is pending:
                del self.pendings[pending.call.id]

    def control(
        self,
        envelopes: Sequence[Envelope],
        routing_key: str,
        key: str | None = None,
        *,
        message_id: str = "",
        reply_to: str | None = None,
    ) -> Outgoing:
        """A message for who listens by that routing key, under the seal of `key`. Nobody need be there."""
        properties = Properties(
            content_type=CONTENT_TYPE, message_id=message_id or routing_key, reply_to=reply_to, delivery_mode=1
        )
        exchange = self.topology.control
        return Outgoing(
            wire.encode(envelopes), routing_key, properties, exchange=exchange, mandatory=False, key=key
        )
