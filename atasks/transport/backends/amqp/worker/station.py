"""`Station`: the common ground of the parts of a worker's side: the worker, its session, and the link that it
serves over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atasks.transport.backends.amqp.broker.content import Properties
from atasks.transport.backends.amqp.worker.clocks import Clocks
from atasks.transport.backends.amqp.worker.other_workers import OtherWorkers
from atasks.wire import CONTENT_TYPE

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.acks import Acks
    from atasks.transport.backends.amqp.broker.link import Link
    from atasks.transport.backends.amqp.broker.outgoing import Outgoing
    from atasks.transport.backends.amqp.journals import AMQPJournals
    from atasks.transport.backends.amqp.records import AMQPRecords
    from atasks.transport.backends.amqp.session import Session
    from atasks.transport.backends.amqp.worker.prefetch import Prefetch
    from atasks.transport.backends.amqp.worker.stored_replies import Store
    from atasks.transport.server import Server

__all__ = ["Station"]


class Station:
    """The link and queues of one worker. `Serving` writes what belongs to a link; all others read it."""

    def __init__(
        self,
        session: Session,
        worker: Server,
        records: AMQPRecords,
        journals: AMQPJournals,
        store: Store | None = None,
    ) -> None:
        self.session = session
        self.records = records
        """The records at the broker of calls that nobody awaits."""
        self.journals = journals
        """The journals of calls that resume."""
        self.store = store
        """The database that has other records; None: it is not known here."""
        self.worker = worker
        self.link: Link | None = None
        """The link that is served over; None while there is none."""
        self.acks: Acks | None = None
        """Acknowledgements of the messages from its work queues."""
        self.window: Prefetch | None = None
        self.epoch = 0
        """Counts the links."""
        self.control = ""
        """The queue of control messages over this link."""
        self.left_here: set[str] = set()
        """Calls of this worker that others were given since their link was lost, and leave to it."""
        self.clocks = Clocks()
        self.others = OtherWorkers(lambda: self.link)
        self._numbers = 0

    def put(self, message: Outgoing) -> None:
        """Send it at the end of this turn of the event loop."""
        self.session.outbox.put(message)

    def adapt_window(self) -> None:
        """Slots or claims have changed: look at the window soon."""
        if self.window is not None:
            self.window.adapt_soon()

    def number(self) -> str:
        """A message id of this worker's: returns are matched by it."""
        self._numbers += 1
        return f"{self.worker.id}-{self._numbers:x}"

    def properties(self, delivery_mode: int) -> Properties:
        """Those of a message to a caller."""
        return Properties.of(self.number(), CONTENT_TYPE, delivery_mode)

    def question(self) -> Properties:
        """Those of a question: the answer comes to the control queue."""
        properties = self.properties(1)
        properties.reply_to = self.control
        return properties

    def is_kept(self, reply_to: str) -> bool:
        """Return True if replies to that address go to a record or to nobody, and not to somebody who awaits
        the call."""
        return self.session.topology.is_kept(reply_to)
