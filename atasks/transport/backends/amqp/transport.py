"""The AMQP transport: a connection to the broker, and a caller's and a worker's side that talk over it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from aiormq.abc import ConsumerCallback
from aiormq.exceptions import ChannelInvalidStateError

from atasks.checks import from_environment
from atasks.errors import InvalidURL, NotConnected, NotSupported, TransportError
from atasks.options import EXECUTORS, Executor, TaskOptions, validate_queue, validate_seconds
from atasks.original import as_before
from atasks.pauses import pauses
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, map_error
from atasks.transport.backends.amqp.broker.link import Link
from atasks.transport.backends.amqp.broker.outbox import Outbox
from atasks.transport.backends.amqp.broker.refusals import Refusal
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.amqp.caller.calling import Calling
from atasks.transport.backends.amqp.caller.listening import listening
from atasks.transport.backends.amqp.checks import BrokerChecks
from atasks.transport.backends.amqp.connection import BACKOFF, Connection
from atasks.transport.backends.amqp.dead import dead_queue
from atasks.transport.backends.amqp.events import Publishing
from atasks.transport.backends.amqp.journals import AMQPJournals
from atasks.transport.backends.amqp.limits.limits import AMQPLimits
from atasks.transport.backends.amqp.records import AMQPRecords
from atasks.transport.backends.amqp.schedules import AMQPSchedules
from atasks.transport.backends.amqp.seals import Seals
from atasks.transport.backends.amqp.session import Session, State
from atasks.transport.backends.amqp.steering import Steering
from atasks.transport.backends.amqp.url import checked, split, user_of
from atasks.transport.backends.amqp.worker.delivery import CallDelivery
from atasks.transport.backends.amqp.worker.serving import Serving
from atasks.transport.call_transport import CallTransport
from atasks.transport.delivery import Delivery
from atasks.transport.pending import Pending, PlainPending
from atasks.transport.records.contract import DEFAULT_EXPIRES
from atasks.transport.stream_receiver import StreamReceiver
from atasks.wire import Call, Credit, Query, QueryAnswer, Reply

if TYPE_CHECKING:
    from atasks.codecs.pieces import Pieces
    from atasks.tracking.steering import DeadLetters, Purged
    from atasks.transport.backends.amqp.stored import StoredRecords
    from atasks.transport.server import Server

__all__ = ["AMQPTransport"]

logger = logging.getLogger("atasks.amqp")

ENVELOPE_BYTES: Final = 64 * 2**10
"""Bytes of a message that are kept for everything but the payload."""
MAX_MESSAGE_3: Final = 64 * 2**20 + ENVELOPE_BYTES
MAX_MESSAGE_4: Final = 16 * 2**20
"""Bytes that RabbitMQ 4 takes unless it is told otherwise. No version says what it takes before it refuses a
message."""
CLOSE_SECONDS: Final = 5.0
LEAVING_ERRORS: Final = (*CLIENT_ERRORS, TransportError)
STAYS: Final = "queues of this process stay at the broker until they expire, since they could not be removed: %s"
SPARES_OF_WORKER: Final = 2 + len(EXECUTORS) + 1
"""Channels over which a worker declares the queues of its first work queue, and looks for the mark of a pause."""
WHOLE_ATTEMPTS: Final = 3
"""The number of times that a worker tries to begin with all of its queues."""


class AMQPTransport(CallTransport):
    """Calls over RabbitMQ 3.10 to 4.x: durable work queues, publisher confirms, and a reply queue of its own.

    `url` is one URL, or several to be tried in turn. Processes that share a broker and a `prefix` see each other's
    calls. `queue` is the work queue of atasks that name none. `queue_type` ("classic" or "quorum") and
    `max_priority` (None, or 1..3) are how workers declare work queues, and cannot be changed while a queue exists.
    `timeout` is in seconds, for one attempt to connect. `consumer_timeout` is the broker's setting of that name,
    in seconds: calls may run for longer. `keep_runs` is for how many seconds the results of a pipeline's run,
    submitted over this transport, are kept when nobody uses them. `records` is the URL of the PostgreSQL
    database that keeps them ("": the broker does; None: $ATASKS_RECORDS, if it is set). `keys` is the path of a
    file of keys ("": none; None: $ATASKS_KEYS, if it is set): messages are sealed then, and a worker refuses
    unsealed ones unless `unsealed` is "accept".

    A dropped connection is restored, with growing pauses; awaits go on: what was not confirmed is sent again, and
    at-least-once calls are sent again if their reply queue is gone.
    """

    supports = CallTransport.supports | {"streams", "events", "reports"}
    redelivers: ClassVar[bool] = True
    measures_work: ClassVar[bool] = True

    @as_before
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
        records: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        unsealed: Literal["refuse", "accept"] = "refuse",
    ) -> None:
        if "://" in namespace and isinstance(url, str):  # as for atasks 0.0.3, where the namespace came first
            url, namespace = namespace, url
        topology = Topology(prefix, namespace, queue_type, max_priority)
        urls = [checked(item) for item in ([url] if isinstance(url, str) else url)]
        self.queue = topology.check(validate_queue(queue))
        self.consumer_timeout = validate_seconds("consumer_timeout", consumer_timeout)
        seals = Seals.from_file(keys, unsealed, topology)
        session = self.session = Session(
            topology,
            user_of(urls[0]),
            urls,
            Outbox(self._limit, seals, self._mute),
            seals,
            queue=self.queue,
            timeout=validate_seconds("timeout", timeout),
            max_message=MAX_MESSAGE_3,
        )
        self._records = AMQPRecords(session, self, keep_runs)
        super().__init__(namespace)  # registers the transport; one that is refused above is not registered
        self._stored = self._in_database(records)
        self.records = self._stored or self._records
        self._journals = AMQPJournals(
            session, self._records, self, self._after_reply, self._has, self._is_first, self._moved, self._is_over
        )
        self.journals = self._journals
        self._limits = AMQPLimits(session, self.consumer_timeout)
        self.limits = self._limits
        self._events = Publishing(session)
        self._pending, self._asked = session.pendings, session.asked
        self._schedules = AMQPSchedules(session, self.consumer_timeout)
        self.schedules = self._schedules
        self.calling = Calling(session, self._heard, self._journals.missed)
        self._steering = Steering(session, self.calling.control, self._stored)
        self.checks = BrokerChecks(session)
        """Looks for what is wrong at the broker."""
        self.serving: Serving | None = None
        self._will_serve = False
        self._connection = Connection(session, self._set_up, self._let_go, self._failed)
        self._ending = asyncio.Lock()
        """Held from the last words to the closed connection."""
        self._epoch = 0

    def _in_database(self, url: str | None) -> StoredRecords | None:
        """The records in the database of that URL, or in that of $ATASKS_RECORDS; None: there is none."""
        if url is None:
            url = from_environment("ATASKS_RECORDS", InvalidURL, "give the URL of a database", "records")
        if not url:
            return None
        try:
            from atasks.transport.backends.amqp.stored import StoredRecords
            from atasks.transport.records.postgres.database import Database
        except ImportError:
            raise NotSupported(
                "records in PostgreSQL need psycopg: pip install 'psycopg[binary]', or leave records= and "
                "$ATASKS_RECORDS out"
            ) from None
        topology, timeout = self.session.topology, self.session.timeout
        database = Database(url, topology.prefix, topology.namespace, timeout)
        return StoredRecords(database, self.session, self, self._records)

    @property
    def seals(self) -> Seals | None:
        """The keys that seal and open messages; None: they are not sealed."""
        return self.session.seals

    @property
    def is_connected(self) -> bool:
        return self.session.link is not None

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
        session = self.session
        if session.state is not State.CLOSED:
            raise TransportError("this transport is connected already")
        session.new_reply_queue()
        if self._stored is not None:
            await self._stored.database.open()
        try:
            link = await self._connection.open()
        except BaseException:
            await self._close_database("the transport could not connect")
            raise
        session.state = State.OPEN
        self._opened()
        self._connection.keep(link)
        self.calling.start(serves=self._will_serve)

    async def disconnect(self) -> None:
        if not self._connection.is_open:
            async with self._ending:  # somebody else may be at it
                return
        reason = "the transport was disconnected"
        said = False
        try:
            if self._connection.is_kept:
                await self._closing(reason)
            said = True
        except LEAVING_ERRORS as error:
            logger.info(STAYS, error)
        finally:
            async with self._ending:
                if self._connection.is_open:
                    await self._leave(reason, speaks=said)

    async def _leave(self, reason: str, *, speaks: bool) -> None:
        """End every await and close everything; where it `speaks`, after the last words."""
        session, connection = self.session, self._connection
        try:
            self._end(State.CLOSING, reason)
            self.calling.control.flush()
            # Else the event loop is ending, and nothing can be sent any more.
            if speaks and connection.is_kept:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await connection.end(self._last_words)
        except LEAVING_ERRORS as error:
            logger.info(STAYS, error)
        finally:
            await connection.stop()
            self._events.close(reason)
            await self._journals.close()
            await self._limits.close()
            await self.calling.close()
            if self.serving is not None:
                await self.serving.close()
            await self._close_database(reason)
            await connection.close()
            session.state = State.CLOSED

    async def _last_words(self, link: Link) -> None:
        await self.session.outbox.flushed()
        await self.calling.leave(link)

    def _end(self, state: State, reason: str) -> None:
        """Every await ends, and there will be no others."""
        self.session.state = state
        self._closed(reason)
        self.session.links.close(reason)
        self._records.close()
        self._limits.refuse(reason)

    async def _close_database(self, reason: str) -> None:
        if self._stored is not None:
            await self._stored.database.close(reason)

    async def _set_up(self, link: Link) -> None:
        """Declare and consume over a new link, then send what waits. The order matters: nobody may be told of this
        caller before its reply queue is consumed, and no call may be lost between two reply queues."""
        session = self.session
        self._epoch += 1
        session.max_message = MAX_MESSAGE_4 if link.server_version >= (4,) else MAX_MESSAGE_3
        self._limit(session.max_message)
        if self._will_serve:  # while the reply queue is consumed
            link.spares.add(SPARES_OF_WORKER)
        await self.calling.listen(link, self._epoch)
        await self._records.restore(link)
        if self.serving is not None:
            await self.serving.resume(link)
        self._connection.attach(link)
        session.outbox.attach(link)
        self._records.wake_all()
        self._limits.attach(link)
        await self._schedules.restore(link)
        if self._epoch > 1:
            self._journals.attach()
        self.calling.resume()

    def _limit(self, size: int) -> None:
        """The broker takes messages of up to so many bytes."""
        self.session.outbox.limit = size
        self.max_payload = size - min(ENVELOPE_BYTES, size // 4)

    def _mute(self, refusal: Refusal) -> bool:
        """This user may not write to the default exchange any more. A worker gives up its connection over that: it
        could tell nobody how calls end, and others take what it has in hand."""
        link = self.session.link
        if self.serving is None or link is None:
            return False
        self.serving.muted = True
        link.lose(f"{refusal.reason}: this worker serves again when its user may write there")
        return True

    def _failed(self, error: BaseException | None) -> None:
        """Nothing restores the connection any more: say so loudly, and end every await."""
        logger.critical(
            "the transport failed and connects no more, so every await ends: report the traceback",
            exc_info=error,
        )
        self._end(State.FAILED, f"the transport failed ({type(error).__name__})")
        if self.serving is not None:
            self.serving.worker.fail(TransportError(f"the transport failed ({type(error).__name__}: {error})"))

    def _let_go(self) -> None:
        """The link is gone: let go of everything of it."""
        self.calling.suspend()
        self._journals.detach()
        self._limits.detach()
        self._schedules.detach()
        if self.serving is not None:
            self.serving.suspend()
        self.session.outbox.detach()

    # -- calls

    def begin_request(self, call: Call, options: TaskOptions) -> PlainPending | None:
        if options.on_no_worker == "error":
            return None
        return super().begin_request(call, options)

    # Any coroutine will do: pyright takes that of an `async def` for a narrower type.
    def request(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, call: Call, options: TaskOptions
    ) -> Coroutine[Any, Any, Reply]:
        if options.on_no_worker == "error" and self._refusal is None:
            return self._request_served(call, options)
        return super().request(call, options)

    async def _request_served(self, call: Call, options: TaskOptions) -> Reply:
        await self.calling.presence.require_worker(self.session.queue_of(options))
        return await super().request(call, options)

    async def open_stream(self, receiver: StreamReceiver) -> None:
        if receiver.options.on_no_worker == "error" and self._refusal is None:
            await self.calling.presence.require_worker(self.session.queue_of(receiver.options))
        await super().open_stream(receiver)

    async def require_worker(self, queue: str) -> None:
        """Raise NoWorker unless something serves the queue."""
        await self.calling.presence.require_worker(queue)

    def withdraw(self, queue: str, call_id: str, key: str | None) -> None:
        """Tell the workers of the queue that a submitted call need not run any more."""
        self.calling.control.cancel(queue, call_id, key)

    async def publish(self, call: Call) -> None:
        await self._events.publish(call)

    def keep(self, payload: Pieces) -> bytes | Pieces:
        return payload.still()

    def _room(self) -> asyncio.Future[None] | None:
        return self.session.outbox.room()

    def _post(self, pending: Pending) -> None:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        self.calling.post(pending)

    def _seek(self, pending: Pending) -> None:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        self.calling.seek(pending)

    def _locate(self, pending: Pending) -> None:
        self.calling.overdue.locate(pending)

    def _is_located(self, pending: Pending) -> bool:
        where = pending.where  # that of a call which seems to be in its queue may still come from a worker
        return where is not None and (bool(where.worker) or where.waits_for in ("connection", "worker", "resume"))

    def _withdraw(self, pending: Pending) -> None:
        self.calling.withdraw(pending)

    async def queue_states(self, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for queue in queues:
            link = self.session.link
            if link is not None:
                with suppress(*CLIENT_ERRORS):
                    state = await link.queue_state(self.session.topology.work(queue))
                    if state is not None:
                        found[queue] = state
        return found

    async def pause_queue(self, queue: str) -> None:
        await self._steering.pause(queue)

    async def resume_queue(self, queue: str) -> None:
        await self._steering.resume(queue)

    async def paused_queues(self, queues: Sequence[str]) -> list[str]:
        return await self._steering.paused(queues)

    async def purge_queue(self, queue: str) -> Purged:
        return await self._steering.purge(queue)

    def dead_letters(self) -> AbstractAsyncContextManager[DeadLetters]:
        return dead_queue(self.session)

    async def dead_count(self) -> int:
        return await self._steering.dead_count()

    @asynccontextmanager
    async def listen(self, token: str, heard: Callable[[QueryAnswer], object]) -> AsyncIterator[None]:
        async with listening(self.session, token, heard):
            yield

    def send_events(self, token: str, worker: str, content: bytes, voice: str | None) -> bool:
        return self.serving is not None and self.serving.telling.put(token, content, voice)

    def _send_query(self, query: Query) -> None:
        self.calling.control.ask(query)

    def _grant(self, credit: Credit, worker: str) -> None:
        self.calling.control.grant(credit, worker)

    # -- serving

    @property
    def refused(self) -> dict[str, int]:
        return {} if self.session.seals is None else dict(self.session.seals.refused)

    def will_serve(self) -> None:
        self._will_serve = True
        if self.session.seals is not None:
            self.session.seals.require_serve()

    async def serve(self, worker: Server, queues: Sequence[str] | None = None) -> None:
        if self.serving is not None:
            if self.serving.worker is not worker:
                raise TransportError("this transport serves a worker already: use one transport for each worker")
            await self.serving.restart()
            return
        if self.session.seals is not None:
            self.session.seals.require_serve()
        if self.calling.prober is not None:
            self.calling.prober.cancel()  # it is a worker itself
        link = self.session.link
        if link is None:
            raise NotConnected(self._refusal or "the connection is lost just now: try again")
        names = worker.served.queues(self.queue) if queues is None else map(validate_queue, queues)
        serving = Serving(
            self.session,
            worker,
            [self.session.topology.check(name) for name in names],
            self._records,
            self._journals,
            self._stored,
            consumer_timeout=self.consumer_timeout,
            look_at_schedules=self._schedules.look_for_table,
        )
        try:
            await self._begin(serving, link)
        except BaseException as error:
            await serving.close()
            if isinstance(error, CLIENT_ERRORS):
                raise map_error(error, self.session.urls[0]) from error
            raise
        self.serving = serving
        if self._stored is not None:
            self._stored.database.clean()

    async def _begin(self, serving: Serving, link: Link) -> None:
        """Declare and consume for the first time. If the connection is lost over it, do it over the next one, for
        `timeout` seconds: RabbitMQ 3.10 closes the connection (541) of who consumes a quorum queue that another
        worker has just declared. A queue that fails again and again is left out, and so is one about which the
        broker does not answer: that takes long, so a worker that has left out one more tries again in any case."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.session.timeout
        left_out = 0
        for attempt, pause in enumerate(pauses(*BACKOFF), 1):
            try:
                await serving.resume(link)
                return
            except (ConnectionError, TimeoutError, ChannelInvalidStateError) as error:
                before, left_out = left_out, len(serving.unavailable)
                if loop.time() >= until and left_out <= before:
                    raise
                logger.warning("worker %s cannot serve yet: %s", serving.worker.id, error)
                serving.suspend()
                if attempt < WHOLE_ATTEMPTS and not isinstance(error, TimeoutError):
                    serving.unavailable.forgive()
                    left_out = 0
                self._connection.lose(link, f"serving failed: {error}")
            await asyncio.sleep(pause)
            link = await self._connection.link()

    async def serve_also(self, worker: Server, queues: Sequence[str]) -> None:
        if self.serving is not None:
            names = [self.session.topology.check(validate_queue(name)) for name in queues]
            try:
                await self.serving.serve_also(names)
            except CLIENT_ERRORS as error:
                raise map_error(error, self.session.urls[0]) from error

    async def serve_no_more(self, worker: Server, queue: str) -> None:
        if self.serving is not None:
            with suppress(*CLIENT_ERRORS):  # the link is gone, and its consumers with it
                await self.serving.serve_no_more(queue)

    async def stop_serving(self, worker: Server) -> None:
        if self.serving is not None:
            await self.serving.stop()

    async def has_other_workers(self, worker: Server) -> bool:
        return self.serving is not None and await self.serving.has_other_workers()

    async def flush(self) -> None:
        if self.serving is not None:
            self.serving.replies.flush()
        if not self._connection.is_kept:
            return  # the event loop is ending: nothing can be sent any more
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.session.outbox.flushed()
                if self.serving is not None:
                    await self.serving.acknowledged()
                await self._journals.flushed()
        except TimeoutError:
            if left := len(self.session.outbox):
                logger.error("%d messages could not be sent before the transport closed: they are dropped", left)
            else:
                logger.warning("the broker had not answered everything when the transport closed")

    def _heard(self, reply: Reply, by_worker: bool) -> None:
        """A reply has come that no await is for."""
        self._records.heard(reply)
        if by_worker:
            self._journals.heard(reply)

    def _after_reply(self, call_id: str, do: Callable[[bool], None]) -> None:
        """Do it when the reply to a call that is served here is safe: see `Replies.after`."""
        if self.serving is None:
            do(True)
        else:
            self.serving.replies.after(call_id, do)

    def _has(self, call_id: str) -> bool:
        """Return True unless a call in hand came over a link that was lost, has not come again, and was not left
        to this worker by the one that was given it."""
        run = None if self.serving is None else self.serving.worker.find(call_id)
        if run is None or self.serving is None or call_id in self.serving.station.left_here:
            return True
        return any(isinstance(each, CallDelivery) and each.request.in_hand for each in run.deliveries)

    def _is_first(self, call_id: str) -> bool:
        """Return True unless a call in hand may have been given to a worker before, or shares a journal."""
        run = None if self.serving is None else self.serving.worker.find(call_id)
        if run is None:
            return True
        delivery = run.deliveries[-1]
        return (
            not run.call.key
            and len(run.deliveries) == 1
            and isinstance(delivery, CallDelivery)
            and delivery.request.in_hand
            and not delivery.request.came_again
            and not delivery.request.is_copy_of(run.call)
        )

    def _moved(self, call_id: str, ended: bool) -> None:
        """Another worker has been given a call that is in hand here."""
        if self.serving is not None:
            self.serving.worker.moved(call_id, ended)

    async def _is_over(self, call_id: str) -> bool:
        """Look if a call has ended elsewhere that is in hand as a copy: see `KeptCalls.is_over` and
        `Attempts.is_over`."""
        serving = self.serving
        return serving is not None and (
            await serving.kept.is_over(call_id) or await serving.attempts.is_over(call_id)
        )

    def suspect(self, pendings: Sequence[Pending]) -> None:
        """These calls may be lost: workers are asked for them, and those that none has are sent again."""
        self.calling.suspect(pendings)

    @property
    def at_locks(self) -> ConsumerCallback:
        """Takes messages from the queues of locks, whose consumers are named as their journals."""
        return self.calling.at_locks

    def waited(self, call: Call, delivery: Delivery | None) -> float:
        if self.serving is None or not isinstance(delivery, CallDelivery):
            return 0.0
        return self.serving.station.clocks.waited(delivery.request.reply_to, call.sent_ms)

    def slots_changed(self, worker: Server) -> None:
        if self.serving is not None:
            self.serving.station.adapt_window()

    def overfull(self, worker: Server) -> None:
        if self.serving is not None and self.serving.station.window is not None:
            self.serving.station.window.overfull()

    def lacks_place(self, worker: Server, executor: Executor) -> None:
        if self.serving is not None:
            self.serving.lacks_place(executor)
