"""The AMQP transport: the life of the connection, and the caller's side of calls."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.common import FieldTable

from atasks import wire
from atasks.errors import (
    DecodeError,
    InvalidURL,
    NotConnected,
    TransportError,
)
from atasks.options import Executor, TaskOptions, validate_queue, validate_seconds
from atasks.transport.backends.amqp.broker.acks import Acks
from atasks.transport.backends.amqp.broker.link import CLIENT_ERRORS, Link, guard, map_error
from atasks.transport.backends.amqp.broker.outbox import Outbox
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.amqp.caller.control import ControlMessages
from atasks.transport.backends.amqp.caller.full_queues import FullQueues
from atasks.transport.backends.amqp.caller.overdue import OverdueCalls
from atasks.transport.backends.amqp.caller.presence import WorkerPresence
from atasks.transport.backends.amqp.caller.probe import probe
from atasks.transport.backends.amqp.caller.requests import Requests
from atasks.transport.backends.amqp.caller.run_times import RunTimes
from atasks.transport.backends.amqp.records import AMQPRecords
from atasks.transport.backends.amqp.seals import Seals, opening
from atasks.transport.backends.amqp.url import checked, split, user_of
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.backends.amqp.worker.serving import Serving
from atasks.transport.call_transport import CallTransport, Pending
from atasks.transport.delivery import Delivery
from atasks.transport.records.contract import DEFAULT_EXPIRES
from atasks.transport.stream_receiver import StreamReceiver
from atasks.wire import (
    Call,
    Claim,
    Credit,
    End,
    Held,
    Item,
    Reply,
    Status,
    Up,
)

if TYPE_CHECKING:
    from atasks.worker.worker import Worker

__all__ = ["AMQPTransport"]

logger = logging.getLogger("atasks.amqp")

ENVELOPE_BYTES: Final = 64 * 2**10
"""Of a message, for all that is not payload."""
MAX_MESSAGE_3: Final = 64 * 2**20 + ENVELOPE_BYTES
MAX_MESSAGE_4: Final = 16 * 2**20
"""What RabbitMQ 4 takes unless it is told otherwise. No version says what it takes before it refuses a message."""
CLOSE_SECONDS: Final = 5.0
UNDO_SECONDS: Final = 1.0
"""How long a connection that could not be set up may take to remove what it has declared."""
WHOLE_ATTEMPTS: Final = 3
"""How often a worker tries to begin with all of its queues."""
BACKOFF: Final = (0.05, 15.0)
"""Seconds before the first and, at most, before any later attempt to reconnect."""
STABLE_SECONDS: Final = 5.0
"""A link that is lost within so many seconds is no reason to try the next one sooner."""


class AMQPTransport(CallTransport):
    """Calls over RabbitMQ 3.10 to 4.x: durable work queues, publisher confirms, and a reply queue of its own.

    `url` is one URL, or several to be tried in turn. Processes that share a broker and a `prefix` see each other's
    calls. `queue` is the work queue of atasks that name none. `queue_type` ("classic" or "quorum") and
    `max_priority` (None, or 1..3) are how workers declare work queues, and cannot be changed while a queue exists.
    `timeout` is in seconds, for one attempt to connect. `consumer_timeout` is the broker's setting of that name,
    in seconds: calls may run for longer. `keep_runs` is for how many seconds the results of a pipeline's run,
    submitted over this transport, are kept when nobody uses them. `keys` is the path of a file of keys ("": none;
    None: $ATASKS_KEYS, if it is set): messages are sealed then, and a worker refuses unsealed ones unless
    `unsealed` is "accept".

    A dropped connection is restored, with growing pauses; awaits go on: what was not confirmed is sent again, and
    at-least-once calls are sent again if their reply queue is gone.
    """

    supports = CallTransport.supports | {"streams"}
    redelivers: ClassVar[bool] = True

    def __init__(
        self,
        url: str | Sequence[str] = "amqp://guest:guest@localhost/",
        namespace: str = "default",
        *,
        prefix: str = "atasks",
        queue: str = "default",
        queue_type: Literal["classic", "quorum"] = "classic",
        max_priority: int | None = None,
        timeout: float = 10.0,
        consumer_timeout: float = 1800.0,
        keep_runs: float = DEFAULT_EXPIRES,
        keys: str | os.PathLike[str] | None = None,
        unsealed: Literal["refuse", "accept"] = "refuse",
    ) -> None:
        self.topology = Topology(prefix, namespace, queue_type, max_priority)
        self.urls = [checked(item) for item in ([url] if isinstance(url, str) else url)]
        self.user = user_of(self.urls[0])
        """Who this is to the broker."""
        self.queue = self.topology.check(validate_queue(queue))
        self.timeout = validate_seconds("timeout", timeout)
        self.consumer_timeout = validate_seconds("consumer_timeout", consumer_timeout)
        self.seals = Seals.from_file(keys, unsealed, self.topology)
        """None: messages are not sealed."""
        self._kept = AMQPRecords(self, keep_runs)
        super().__init__(namespace)  # registers it: what is refused above is not
        self.records = self._kept
        self.outbox = Outbox(self._limit, self.seals)
        self.max_message = MAX_MESSAGE_3
        """Bytes of a message that is read here; the broker may take less: see `Outbox.limit`."""
        self.pace = RunTimes()
        self.requests = Requests(self)
        self.full_queues = FullQueues(self)
        self.link: Link | None = None
        """The connected epoch; None while there is none."""
        self._restored = asyncio.Event()
        """Whether there is one."""
        self._last_link: Link | None = None
        """The link opened last: to be closed in the end, whatever became of it."""
        self._intake: Serving | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.inquiry = OverdueCalls(self)
        self._inquirer: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._serves = False
        self.reply_queue = ""
        self._reply_tag: str | None = None
        self._reply_acks: Acks | None = None
        self._forsaken = False
        """Whether the reply queue was replaced, and what is awaited was not sent again since."""
        self._epoch = 0
        self._pause = BACKOFF[0]
        """Seconds before the next attempt to reconnect."""
        self.announcements = WorkerPresence(self)
        self.notices = ControlMessages(self)
        self._bad_replies = 0

    @classmethod
    def from_url(cls, url: str | Sequence[str], namespace: str, options: dict[str, Any]) -> AMQPTransport:
        """Options of this class may stand in the query of a URL: `amqp://host/?prefix=shop&queue_type=quorum`.
        Arguments go before them. What else is there (heartbeat, say) is for the client library."""
        urls, found = split([url] if isinstance(url, str) else url)
        try:
            return cls(urls, namespace, **{**found, **options})
        except ValueError as error:
            if found and not isinstance(error, InvalidURL):
                raise InvalidURL(f"an option in the URL is wrong: {error}") from None
            raise

    # -- life

    async def connect(self) -> None:
        if self._keeper is not None:
            raise TransportError("this transport is connected already")
        self.reply_queue = self.topology.new_reply_queue(self.user)
        link = await self._open()
        try:
            await self._set_up(link)
        except BaseException as error:
            with suppress(*CLIENT_ERRORS):  # it may exist by now, although nobody has heard so
                async with asyncio.timeout(UNDO_SECONDS):
                    await guard((await link.open_channel()).queue_delete(self.reply_queue))
            await link.close()
            if isinstance(error, CLIENT_ERRORS):
                raise map_error(error, self.urls[0]) from error
            raise
        self._opened()
        self._keeper = asyncio.create_task(self._keep(link), name="atasks connection")
        self._keeper.add_done_callback(self._on_keeper_done)
        self._inquirer = asyncio.create_task(self.inquiry.run(), name="atasks inquiry")
        if self.seals is not None and not self._serves:
            self._prober = asyncio.create_task(probe(self, self.seals), name="atasks probe")

    async def disconnect(self) -> None:
        if self._keeper is None:
            return
        self._closed("the transport was disconnected")
        self.notices.flush()
        link, keeper = self.link, self._keeper
        self._kept.close("the transport was disconnected")
        try:
            if link is not None:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.outbox.flushed()
                    if self._reply_tag is not None:
                        await guard(link.inbox.basic_cancel(self._reply_tag))
                    await guard(link.inbox.queue_delete(self.reply_queue))
        except CLIENT_ERRORS as error:
            logger.info("not everything could be cleaned up at the broker: %s", error)
        finally:
            self._keeper = None
            self.full_queues.close()
            background = [task for task in (keeper, self._inquirer, self._prober) if task is not None]
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await self.inquiry.close()
            if self._intake is not None:
                await self._intake.close()
            if self._last_link is not None:
                await self._last_link.close()
            self._detach()

    async def _open(self) -> Link:
        self._last_link = await Link.open(self.urls, f"atasks {os.getpid()}", self.timeout)
        return self._last_link

    async def _set_up(self, link: Link) -> None:
        """Declare and consume over a new link, then send what waits. The order matters: nobody may be told of this
        caller before its reply queue is consumed, and no call may be lost between two reply queues."""
        self._epoch += 1
        self.max_message = MAX_MESSAGE_4 if link.server_version >= (4,) else MAX_MESSAGE_3
        self._limit(self.max_message)
        if self._epoch > 1 and not await self._finds_reply_queue(link):
            self.reply_queue = self.topology.new_reply_queue(self.user)
            self._forsaken = True
        inbox = link.inbox
        await guard(inbox.exchange_declare(self.topology.control, exchange_type="direct", durable=True))
        await guard(inbox.queue_declare(self.reply_queue, durable=True, arguments=self.topology.reply_arguments()))
        self._reply_acks = Acks(inbox)
        # After a half-open drop the broker may still know the old consumer: the newer one gets everything.
        priority: FieldTable = {"x-priority": self._epoch}
        receive = opening(self.seals, self._on_inbox, self.topology.arrival(self.reply_queue), self._acknowledge)
        consumed = await guard(inbox.basic_consume(self.reply_queue, receive, arguments=priority))
        self._reply_tag = consumed.consumer_tag
        for queue in {self.queue_of(pending.options) for pending in self._pending.values()}:
            await self.announcements.bind(queue, link)
        await self._kept.restore(link)
        if self._intake is not None:
            await self._intake.resume(link)
        self.link = link
        self._restored.set()
        self.outbox.attach(link)
        self._kept.attach(link)
        pendings = self.pendings()
        if self._forsaken:
            self._forsaken = False
            unknown = [item for item in pendings if item.inflow is None or not item.inflow.begun]
            self.requests.resend([item for item in unknown if not item.kept], "the reply queue is gone")
            for item in pendings:
                if item.inflow is not None and item.inflow.begun:
                    item.inflow.ask()  # its worker goes on, at the new address
        else:  # an announcement may have been missed
            self.requests.resend([item for item in pendings if item.unheard], "a worker may have come meanwhile")
        self.announcements.settle()

    def _limit(self, size: int) -> None:
        """The broker takes messages of up to so many bytes."""
        self.outbox.limit = size
        self.max_payload = size - min(ENVELOPE_BYTES, size // 4)

    async def _finds_reply_queue(self, link: Link) -> bool:
        """Whether the reply queue can be used still: it may have been deleted, or its node of the cluster may be
        down. In that case RabbitMQ 3 says that it is not there, and RabbitMQ 4 does not answer."""
        try:
            async with asyncio.timeout(self.timeout / 2):
                return await link.queue_state(self.reply_queue) is not None
        except TimeoutError:
            return False

    async def _keep(self, link: Link) -> None:
        """Restore the connection whenever it is lost, ever later if it is lost soon after that."""
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            reason = await asyncio.shield(link.lost)
            logger.warning("connection lost: %s", reason)
            self._detach()
            await link.close()
            if loop.time() - since >= STABLE_SECONDS:
                self._pause = BACKOFF[0]
            link = await self._reconnect()
            logger.warning("connection restored")

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        """Nothing restores the connection any more: say so loudly, and end every await."""
        if not keeper.cancelled():
            error = keeper.exception()
            logger.critical("the connection is not restored any more", exc_info=error)
            self._closed(f"the transport failed ({type(error).__name__})")
            self._kept.close(f"the transport failed ({type(error).__name__})")
            if self._intake is not None:
                self._intake.worker.fail(TransportError(f"the transport failed ({type(error).__name__}: {error})"))

    async def _reconnect(self) -> Link:
        while True:
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # jitter: not every client at once
            self._pause = min(self._pause * 2, BACKOFF[1])
            link: Link | None = None
            try:
                link = await self._open()
                # A broker that is recovering a quorum queue may never answer the one who asks to consume it.
                async with asyncio.timeout(self.timeout):
                    await self._set_up(link)
            except (*CLIENT_ERRORS, TransportError) as error:
                logger.warning("cannot reconnect yet: %s", str(error) or "the broker does not answer")
                if link is not None:
                    await link.close()
                    self._detach()
            else:
                return link

    def _detach(self) -> None:
        """The link is gone: nothing of it may be acknowledged on another one."""
        self.link = None
        self._restored.clear()
        self.announcements.reset()
        self._kept.detach()
        if self._reply_acks is not None:
            self._reply_acks.close()
            self._reply_acks = None
        if self._intake is not None:
            self._intake.suspend()
        self.outbox.detach()

    # -- calls

    # Any coroutine will do: pyright takes that of an `async def` for a narrower type.
    def request(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, call: Call, options: TaskOptions
    ) -> Coroutine[Any, Any, Reply]:
        if options.on_no_worker == "error" and self._refusal is None:
            return self._request_served(call, options)
        return super().request(call, options)

    async def _request_served(self, call: Call, options: TaskOptions) -> Reply:
        await self.announcements.require_worker(self.queue_of(options))
        return await super().request(call, options)

    async def open_stream(self, inflow: StreamReceiver) -> None:
        if inflow.options.on_no_worker == "error" and self._refusal is None:
            await self.announcements.require_worker(self.queue_of(inflow.options))
        await super().open_stream(inflow)

    def _room(self) -> asyncio.Future[None] | None:
        return self.outbox.room()

    def queue_of(self, options: TaskOptions) -> str:
        """The work queue of a call."""
        return options.queue or self.queue

    def pendings(self) -> list[Pending]:
        """The calls that are awaited."""
        return list(self._pending.values())

    def pending(self, call_id: str) -> Pending | None:
        """The awaited call of that id."""
        return self._pending.get(call_id)

    @contextmanager
    def following(self, pending: Pending) -> Iterator[None]:
        """Ask for a call that is not awaited here, as for those that are, unless it is followed already."""
        known = self._pending.setdefault(pending.call.id, pending)
        try:
            yield
        finally:
            if known is pending:
                del self._pending[pending.call.id]

    def _post(self, pending: Pending) -> None:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        pending.kept = pending.call.id in self._kept.opening
        if self.seals is not None:
            self.seals.mark(pending)
        queue = self.queue_of(pending.options)
        if queue not in self.announcements.listening:
            self.topology.check(queue)
            self.announcements.listens(queue)
        self.requests.send(pending)

    def _locate(self, pending: Pending) -> None:
        self.inquiry.locate(pending)

    def _withdraw(self, pending: Pending) -> None:
        queue = self.queue_of(pending.options)
        self.announcements.forget(queue, pending)
        self.notices.cancel(queue, pending.call.id, pending.key)

    # -- what arrives for this caller

    async def _on_inbox(self, message: DeliveredMessage) -> None:
        """Only parses and hands over: the client library cancels its callbacks when the channel closes."""
        try:
            envelopes = wire.decode(message.body, self.max_message)
        except DecodeError as error:
            envelopes = wire.salvage(message.body, self.max_message).envelopes
            self._bad_replies += 1
            if self._bad_replies == 1:
                logger.error(
                    "a bad message on the reply queue was dropped, further ones will be silently: %s", error
                )
        news = False
        if self.seals is not None:
            news = self.seals.is_news(message)
            envelopes = self.seals.for_caller(message, envelopes, self._pending)
        for envelope in envelopes:
            if isinstance(envelope, Reply):
                pending = None if news else self._pending.get(envelope.id)
                if pending is not None and not pending.kept:
                    self.pace.observe(pending.call.task, envelope.run_us, envelope.parked)
                    if envelope.status == Status.WORKER_LOST:
                        self._withdraw(pending)  # if it was sent again, another copy may wait in the queue still
                    self._resolve(envelope)
                else:
                    self._kept.heard(envelope)
            elif isinstance(envelope, Item | End):
                self._on_stream(envelope)
            elif isinstance(envelope, Up):
                self.announcements.heard(envelope.queue)
            elif isinstance(envelope, Held):
                self.inquiry.heard(envelope)
            elif isinstance(envelope, Claim) and self._refusal is None:  # else it knows of no call any more
                self.requests.claimed(envelope)
        self._acknowledge(message)

    def _acknowledge(self, message: DeliveredMessage) -> None:
        acks = self._reply_acks
        if acks is not None and acks.channel is message.channel:
            acks.ack(message.delivery_tag or 0)

    def _on_stream(self, envelope: Item | End) -> None:
        pending = self._pending.get(envelope.id)
        if pending is not None:
            self.inquiry.heard_of(pending)
            self._take_in(envelope)
        elif isinstance(envelope, Item) and not envelope.payloads:  # it asks: nobody wants the stream any more
            self.notices.refuse(envelope)

    def _grant(self, credit: Credit, worker: str) -> None:
        self.notices.grant(credit, worker)

    # -- serving

    def will_serve(self) -> None:
        self._serves = True
        if self.seals is not None:
            self.seals.require_serve()

    async def serve(self, worker: Worker, queues: Sequence[str] | None = None) -> None:
        if self._intake is not None:
            if self._intake.worker is not worker:
                raise TransportError("this transport serves a worker already: use one transport for each worker")
            await self._intake.restart()
            return
        if self.seals is not None:
            self.seals.require_serve()
        if self._prober is not None:
            self._prober.cancel()  # it is a worker itself
        link = self.link
        if link is None:
            raise NotConnected(self._refusal or "the connection is lost just now: try again")
        names = worker.queues(self.queue) if queues is None else [validate_queue(queue) for queue in queues]
        intake = Serving(self, worker, [self.topology.check(name) for name in names])
        try:
            await self._begin(intake, link)
        except BaseException as error:
            await intake.close()
            if isinstance(error, CLIENT_ERRORS):
                raise map_error(error, self.urls[0]) from error
            raise
        self._intake = intake

    async def _begin(self, intake: Serving, link: Link) -> None:
        """Declare and consume for the first time. If the connection is lost over it, do it over the next one, for
        `timeout` seconds: RabbitMQ 3.10 closes the connection (541) of who consumes a quorum queue that another
        worker has just declared. A queue that fails again and again is left out."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeout
        pause, longest = BACKOFF
        for attempt in itertools.count(1):
            try:
                await intake.resume(link)
                return
            except (ConnectionError, TimeoutError, ChannelInvalidStateError) as error:
                if loop.time() >= until:
                    raise
                logger.warning("cannot serve yet: %s", error)
                intake.suspend()
                if attempt < WHOLE_ATTEMPTS:
                    intake.ailing.forgive()
                if self.link is link:  # not restored yet
                    self._restored.clear()
                    link.lose(f"serving failed: {error}")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, longest)
            async with asyncio.timeout(self.timeout):
                await self._restored.wait()
                while self.link is None:  # it was lost again before this went on
                    await self._restored.wait()
            link = self.link

    async def stop_serving(self, worker: Worker) -> None:
        if self._intake is not None:
            await self._intake.stop()

    async def has_other_workers(self, worker: Worker) -> bool:
        return self._intake is not None and await self._intake.has_other_workers()

    async def flush(self) -> None:
        if self._intake is not None:
            self._intake.flush()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.outbox.flushed()
                if self._intake is not None:
                    await self._intake.acknowledged()
        except TimeoutError:
            logger.error("%d messages could not be sent before the end", len(self.outbox))

    def waited(self, call: Call, delivery: Delivery | None) -> float:
        if self._intake is None or not isinstance(delivery, CallDelivery):
            return 0.0
        return self._intake.clocks.waited(delivery.inbound.reply_to, call.sent_ms)

    def slots_changed(self, worker: Worker) -> None:
        if self._intake is not None and self._intake.window is not None:
            self._intake.window.adapt_soon()

    def overfull(self, worker: Worker) -> None:
        if self._intake is not None and self._intake.window is not None:
            self._intake.window.overfull()

    def lacks_place(self, worker: Worker, executor: Executor) -> None:
        if self._intake is not None:
            self._intake.lacks_place(executor)
