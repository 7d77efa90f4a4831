"""The names and arguments of every queue and exchange. They are fixed: a broker refuses to change them later."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable
from typing import Any, Final, Literal

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldTable

from atasks.errors import InvalidName
from atasks.options import EXECUTORS, MAX_PRIORITY, Executor, validate_queue
from atasks.policies.limit import MAX_KEY, PLAIN_KEY
from atasks.signing import Kind
from atasks.transport.records.contract import base_of, record_of

__all__ = ["CHANNEL_ADDRESS", "Topology"]

MAX_NAMES: Final = 200
"""Characters of prefix, namespace and queue together: the rest of 255 is for the id of a worker in the name of a
lease queue, and for the id of a call in that of a record."""
REPLY_EXPIRES_MS: Final = 300_000
"""Milliseconds for which the reply queue of a caller that is gone is kept."""
LEASE_TTL_MS: Final = 1_000
LEASE_QUEUE_EXPIRES_MS: Final = 60_000
"""Milliseconds for which the lease queue of a worker that is gone is kept; its messages leave it within a
second."""
MAX_USER: Final = 100
"""Characters of the name of a user in that of a queue; the hash of a longer one stands there."""
DEAD_LETTERS: Final = 10_000
DEAD_LETTER_TTL_MS: Final = 7 * 24 * 3600 * 1000
UNIQUE_EXPIRES_MS: Final = 24 * 3600 * 1000
"""Milliseconds for which the mark of a `unique` key is kept unused: the call of such a mark waits, or was lost."""
WATCH_MESSAGES: Final = 1_000
"""Messages, of many events each, that wait for who watches."""
MAX_BYTES: Final = 255
"""Bytes of the name of a queue."""
LIKE_BESIDE_LIMIT: Final = re.compile(
    rf"(\.(places|rate|cooling|amendment|changes|lock)|:{PLAIN_KEY.pattern})\.*\Z"
)
"""The end of the name of a limit that could be a queue beside another one's definition, or that of a value of its
key. A dot behind it makes it distinct, also from that of a limit whose name has the dot."""
BESIDE: Final = (".solo", ".early", *(f".{executor}" for executor in EXECUTORS))
"""Endings of the names of the queues beside a work queue."""
RESERVED: Final = "amq."
"""The beginning of the names of queues and exchanges that RabbitMQ lets nobody declare."""
CHANNEL_ADDRESS: Final = "amq.rabbitmq.reply-to"
"""The beginning of the names that RabbitMQ takes for the address of a channel, an Erlang term in Base64. A channel
that publishes to such a name, or asks for it, crashes if the rest is no such term, and its connection with it."""
DELIVERY_LIMIT: Final = 1_000_000
"""Quorum queues: RabbitMQ 4 drops a message after 20 deliveries unless told otherwise. Attempts are counted in the
envelope, so the broker's count must never be reached."""


class Topology:
    """Names and arguments under one prefix, for one namespace."""

    def __init__(
        self,
        prefix: str,
        namespace: str,
        queue_type: Literal["classic", "quorum"] = "classic",
        max_priority: int | None = None,
    ) -> None:
        self.prefix = validate_queue(prefix, "prefix")
        if prefix.startswith(RESERVED):
            raise InvalidName(f"prefix={prefix!r}: RabbitMQ keeps names that begin with {RESERVED!r} to itself")
        self.namespace = validate_queue(namespace, "namespace")
        if queue_type not in ("classic", "quorum"):
            raise ValueError(f"queue_type={queue_type!r}: 'classic' or 'quorum'")
        if max_priority is not None and max_priority not in range(1, MAX_PRIORITY + 1):
            raise ValueError(f"max_priority={max_priority!r}: 1 to {MAX_PRIORITY}, or None for none")
        if max_priority is not None and queue_type == "quorum":
            raise ValueError("max_priority needs queue_type='classic': quorum queues take no x-max-priority")
        self.queue_type = queue_type
        self.max_priority = max_priority
        self.check("q")
        self._work = f"{prefix}.q."
        self._records = (f"{prefix}.run.", f"{prefix}.unique.", f"{prefix}.schedules.")
        self._runs = f"{prefix}.run.{namespace}."
        self._locks = f"{prefix}.lock.{namespace}."
        self.control = f"{prefix}.control"
        """The direct exchange between callers and workers."""
        self.watch = f"{prefix}.watch"
        """The topic exchange by which workers tell of themselves while somebody watches them."""
        self.events = f"{prefix}.events"
        """The topic exchange of what is published for whoever handles it. It is also the reply address of that:
        there is no such queue."""
        self.dead = f"{prefix}.dead"
        """The queue of what could neither be read nor answered."""
        self.due = f"{prefix}.due"
        """The exchange of delayed calls that are due."""
        self.due_early = f"{prefix}.due.early"
        """The exchange of those whose work queue does not take them: no worker has declared it."""
        self.schedules = f"{prefix}.schedules.{namespace}"
        """The queue of the table of schedules."""
        self.nobody = f"{prefix}.nobody"
        """The reply address of a call of which nothing is kept. There is no such queue."""
        self.stored = f"{prefix}.stored"
        """The reply address of a call whose record is in a database. There is no such queue."""

    def check(self, queue: str) -> str:
        """The work queue, if the names of all that may be declared for it fit. Raises InvalidName: RabbitMQ has no
        name of more than 255 bytes, and would answer one by closing the connection."""
        length = len(self.prefix) + len(self.namespace) + len(queue)
        if length > MAX_NAMES:
            raise InvalidName(
                f"prefix, namespace and queue have {length} characters together: at most {MAX_NAMES}, as RabbitMQ "
                f"takes names of at most {MAX_BYTES} bytes (prefix {self.prefix!r}, namespace {self.namespace!r}, "
                f"queue {queue!r})"
            )
        return queue

    def work(self, queue: str) -> str:
        """The broker's name of a work queue."""
        return f"{self.prefix}.q.{self.namespace}.{queue}"

    def solo(self, queue: str) -> str:
        """The queue of last attempts beside a work queue."""
        return f"{self.work(queue)}.solo"

    def pool(self, queue: str, executor: Executor) -> str:
        """The queue beside a work queue of calls that wait for a place in a pool."""
        return f"{self.work(queue)}.{executor}"

    def paused(self, queue: str) -> str:
        """The queue that marks a work queue as paused: nothing is ever put into it."""
        return f"{self.prefix}.paused.{self.namespace}.{queue}"

    def delay(self, level: int) -> str:
        """The queue that holds delayed calls for the time of this level, and the exchange before it."""
        return f"{self.prefix}.delay.{level}"

    def early(self, queue: str) -> str:
        """The queue of calls that were submitted before any worker has declared their work queue."""
        return f"{self.work(queue)}.early"

    def early_lock(self, queue: str) -> str:
        """The queue that only the link has over which these calls are moved. Callers may declare it, too."""
        return f"{self.prefix}.run.{self.namespace}.early:{queue}"

    def paused_arguments(self) -> dict[str, Any]:
        """Arguments of such a queue."""
        return {"x-queue-type": "classic"}

    def early_arguments(self) -> dict[str, Any]:
        """Arguments of such a queue: whoever submits declares it, and knows nothing of the workers to come."""
        return {"x-queue-type": "classic"}

    def all(self, queue: str) -> list[str]:
        """A work queue, and all that may be beside it."""
        return [
            self.work(queue),
            self.solo(queue),
            self.early(queue),
            *(self.pool(queue, executor) for executor in EXECUTORS),
        ]

    def new_reply_queue(self, user: str) -> str:
        """A name for a reply queue of a caller that connects as this user of the broker."""
        return f"{self.prefix}.r.{_spelled(user)}.{uuid.uuid4().hex}"

    def is_reply_queue(self, name: str) -> bool:
        """Return True for the name of a reply queue of a caller."""
        return name.startswith(f"{self.prefix}.r.")

    def are_of_one_caller(self, name: str, other: str) -> bool:
        """Return True if both are the same reply queue, or reply queues of one user; those of older callers
        name none."""
        if name == other:
            return True
        both = self.is_reply_queue(name) and self.is_reply_queue(other)
        return both and name.rpartition(".")[0] == other.rpartition(".")[0]

    def is_control_queue(self, name: str) -> bool:
        """Return True for the name of a queue of control messages for a worker."""
        return name.startswith(f"{self.prefix}.c.")

    def control_queue(self, worker_id: str, epoch: int) -> str:
        """The queue of control messages for one connection of one worker. It is exclusive: after a half-open drop
        the broker may still hold the one of the connection before."""
        return f"{self.prefix}.c.{worker_id}.{epoch}"

    def up_key(self, queue: str) -> str:
        """Routing key of `Up`: callers listen."""
        return f"up:{self.namespace}:{queue}"

    def queue_key(self, queue: str) -> str:
        """Routing key of what concerns every worker of a queue."""
        return f"queue:{self.namespace}:{queue}"

    def watch_key(self, token: str) -> str:
        """Routing key of events for who watches under that token."""
        return f"{self.namespace}:{token}"

    def watch_queue(self, token: str) -> str:
        """The queue of who watches under that token."""
        return f"{self.prefix}.w.{self.namespace}.{token}"

    def watch_arguments(self) -> dict[str, Any]:
        """Arguments of such a queue: where its owner is slow, the oldest events go."""
        return {"x-queue-type": "classic", "x-max-length": WATCH_MESSAGES, "x-overflow": "drop-head"}

    @property
    def all_key(self) -> str:
        """Routing key of what concerns every worker of the namespace."""
        return f"all:{self.namespace}"

    def worker_key(self, worker_id: str) -> str:
        """Routing key of what concerns one worker."""
        return f"worker:{worker_id}"

    def lease(self, queue: str, worker_id: str, epoch: int) -> str:
        """The queue by which a worker keeps its long calls of a work queue, for one connection: the node of a
        cluster that holds the one of the connection before may be down."""
        return f"{self.prefix}.l.{self.namespace}.{queue}.{worker_id}.{epoch}"

    def lease_arguments(self, queue: str) -> dict[str, Any]:
        """Arguments of a lease queue: what is not held goes to the work queue after a second."""
        return {
            "x-queue-type": "classic",
            "x-message-ttl": LEASE_TTL_MS,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.work(queue),
            "x-expires": LEASE_QUEUE_EXPIRES_MS,
        }

    def event_key(self, event: str) -> str:
        """The routing key of an event; a queue that is bound by it gets no other one."""
        return f"{self.namespace}.{event}".replace("#", "+23")

    def every_worker(self, worker_id: str, epoch: int) -> str:
        """The queue of the events that a worker handles because every worker does, for one connection."""
        return f"{self.prefix}.e.{worker_id}.{epoch}"

    def kept(self, call_id: str) -> str:
        """The queue of a record, and the routing key of how the call ended."""
        return f"{self._runs}{base_of(call_id) or record_of(call_id)}"

    def kept_steps(self, call_id: str) -> str:
        """The routing key of the other replies in a record."""
        return f"{self.kept(call_id)}:steps"

    def lock(self, journal: str) -> str:
        """The queue that only the run has which works at this journal. It is the reply address of the calls that
        the run makes, and gets a copy of each reply that goes into the journal."""
        return f"{self._locks}{journal}"

    def journal(self, reply_to: str) -> str | None:
        """The name of the journal to which this reply address belongs; None: to none."""
        if reply_to.startswith(self._locks):
            return reply_to[len(self._locks) :]
        if reply_to.startswith(self._runs) and reply_to.endswith(":steps"):  # that of an older worker's run
            return reply_to[len(self._runs) : -len(":steps")]
        return None

    def unique(self, call_id: str) -> str:
        """The queue that marks the `unique` key of this call as taken."""
        return f"{self.prefix}.unique.{self.namespace}.{base_of(call_id)}"

    def unique_arguments(self, delay: float) -> dict[str, Any]:
        """Arguments of such a queue: of those who put a message into it the first one has the key."""
        return {
            "x-queue-type": "classic",
            "x-max-length": 1,
            "x-overflow": "reject-publish",
            "x-expires": min(UNIQUE_EXPIRES_MS + int(delay * 1000), 2**32 - 1),
        }

    def is_kept(self, reply_to: str) -> bool:
        """Return True for the reply address of a call that nobody awaits: a record, nobody, or an event's."""
        return reply_to in (self.nobody, self.events) or self.is_record(reply_to)

    def is_record(self, reply_to: str) -> bool:
        """Return True for the reply address of a call whose ending goes to a record, at the broker or in a
        database, or into a journal."""
        return reply_to == self.stored or reply_to.startswith((self._runs, self._locks))

    def reply_exchange(self, reply_to: str) -> str:
        """The exchange for what is sent to this address: several may wait for replies that go to a record, and
        listen there."""
        return self.control if reply_to.startswith(self._runs) else ""

    def way(self, reply_to: str, properties: Basic.Properties) -> tuple[str, str]:
        """The exchange and the routing key of replies to this address. Those to a lock go into its journal, and
        name the lock in their properties: the broker gives it a copy, if it is there."""
        if not reply_to.startswith(self._locks):
            return self.reply_exchange(reply_to), reply_to
        copies: FieldTable = {"CC": [reply_to]}
        properties.headers = copies
        return "", f"{self._runs}{reply_to[len(self._locks) :]}"

    def place(self, exchange: str, name: str) -> tuple[Kind, str] | None:
        """Return the kind and the destination that the seal of such a message names. For the queues beside a
        work queue the destination is the work queue. None: an announcement, which has no seal."""
        if self.is_sealed_as_record(name):
            return "record", name.removesuffix(":steps")
        if exchange == self.events:
            return "request", f"{exchange} {name}"
        if exchange == self.watch:
            return "control", f"{exchange} {name}"
        if exchange == self.control:
            return None if name.startswith("up:") else ("control", f"{exchange} {name}")
        if name.startswith(self._work):
            for beside in BESIDE:
                name = name.removesuffix(beside)
            return "request", name
        if name.startswith(f"{self.prefix}.e."):
            return "request", name
        return "control" if name.startswith(f"{self.prefix}.c.") else "reply", name

    def is_sealed_as_record(self, name: str) -> bool:
        """Return True for the name of a queue whose messages are sealed for whoever reads a record."""
        return name.startswith(self._records)

    def arrival(self, queue: str) -> Callable[[DeliveredMessage], tuple[Kind, str] | None]:
        """Return a function that gives the `place` of a message that has come into a queue of this process,
        directly or from the exchange."""
        direct = self.place("", queue)
        exchanges = (self.control, self.events, self.watch)

        def place(message: DeliveredMessage) -> tuple[Kind, str] | None:
            exchange = message.exchange
            if not exchange or exchange not in exchanges:
                return direct
            return self.place(exchange, message.routing_key or "")

        return place

    def arrival_at_lock(self, message: DeliveredMessage) -> tuple[Kind, str] | None:
        """The `place` of a message that has come into the queue of a lock, directly or as a copy of what went into
        the journal. Its consumer has the name of the journal."""
        delivery: Any = message.delivery
        journal = delivery.consumer_tag or ""
        kept = self.kept(journal)
        return self.place("", kept if delivery.routing_key == kept else self.lock(journal))

    def kept_arguments(self, expires_ms: int) -> dict[str, Any]:
        """Arguments of the queue of a record: one reader at a time."""
        return {"x-queue-type": "classic", "x-expires": expires_ms, "x-single-active-consumer": True}

    def limit(self, name: str, key: str | None) -> str:
        """The definition of a limit, or of one value of its key, and the beginning of the names of its tokens.
        Raises InvalidName if these are longer than RabbitMQ takes, or would be for the longest value."""
        whole = f"{self.prefix}.limit.{self.namespace}.{name}"
        if LIKE_BESIDE_LIMIT.search(name):
            whole += "."
        longest = len(whole) + len(".amendment") + (0 if key is None else 1 + MAX_KEY)
        if longest > MAX_BYTES:
            raise InvalidName(
                f"limit {name!r} needs queues with names of up to {longest} characters, and RabbitMQ takes "
                f"{MAX_BYTES}: shorten its name, prefix {self.prefix!r} or namespace {self.namespace!r}"
            )
        return whole if key is None else f"{whole}:{key}"

    def work_arguments(self) -> dict[str, Any]:
        """Arguments of work queues and of those beside them."""
        arguments: dict[str, Any] = {
            "x-queue-type": self.queue_type,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.dead,
        }
        if self.queue_type == "quorum":
            arguments["x-delivery-limit"] = DELIVERY_LIMIT
        if self.max_priority is not None:
            arguments["x-max-priority"] = self.max_priority
        return arguments

    def reply_arguments(self) -> dict[str, Any]:
        """Arguments of reply queues."""
        return {"x-queue-type": "classic", "x-expires": REPLY_EXPIRES_MS}

    def dead_arguments(self) -> dict[str, Any]:
        """Arguments of the dead queue."""
        return {"x-queue-type": "classic", "x-max-length": DEAD_LETTERS, "x-message-ttl": DEAD_LETTER_TTL_MS}


def _spelled(user: str) -> str:
    """The name of a user within that of a queue: in letters and digits, and no user's is the beginning of
    another's with a dot behind it."""
    spelled = re.sub("[^A-Za-z0-9_-]", lambda found: "".join(f"+{byte:02X}" for byte in found[0].encode()), user)
    return spelled if len(spelled) <= MAX_USER else hashlib.sha256(user.encode()).hexdigest()
