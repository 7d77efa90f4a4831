"""One connected epoch: two connections with their channels."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar
from weakref import ref

import aio_pika
from aio_pika.abc import AbstractConnection as AioPikaConnection
from aiormq.abc import AbstractChannel, AbstractConnection, ConsumerCallback, DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.base import Frame
from pamqp.commands import Basic, Queue
from pamqp.common import FieldTable
from pamqp.frame import marshal
from yarl import URL

from atasks import forks
from atasks.errors import TransportError
from atasks.outlast import is_cancelled, outlast, shield
from atasks.transport.backends.amqp.broker.errors import CLIENT_ERRORS, NoAnswer, is_down, map_error, server_name
from atasks.transport.backends.amqp.broker.frame_reader import FrameReader
from atasks.transport.backends.amqp.broker.frames import SOCKETS, FrameWriter, takes_frames
from atasks.transport.backends.amqp.broker.topology import CHANNEL_ADDRESS

__all__ = ["Link", "guard", "refused_with_reason", "shielded", "together"]

logger = logging.getLogger("atasks.amqp")

T = TypeVar("T")

_Begun = tuple[Channel, FrameWriter]
"""A channel that is in use, and what writes over it."""

SAID_HERE: Final = (
    "Cancelling cause reader exited abnormally",
    "Unexpected connection close from remote",
    "error when creating transport",
)
"""Beginnings of messages that the client library logs with a traceback, of errors that it raises too: atasks logs
each failure in one line."""


LOG_FRAMES: Final = os.environ.get("ATASKS_LOG_FRAMES") == "1"
"""True if the client library may log each frame, with the payloads of calls: it reads and writes all of them
then."""


def _is_news(record: logging.LogRecord) -> bool:
    if record.levelno <= logging.DEBUG and not LOG_FRAMES:
        return False
    return not str(record.msg).startswith(SAID_HERE) or logger.isEnabledFor(logging.DEBUG)


def _hide_payload(record: logging.LogRecord) -> bool:
    """Let a line pass without the body of the message that it is about."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            f"of {len(item.body)} bytes" if isinstance(item, DeliveredMessage) else item for item in record.args
        )
    return True


logging.getLogger("aiormq.connection").addFilter(_is_news)
logging.getLogger("aiormq.channel").addFilter(_hide_payload)

HEARTBEAT: Final = 30
SETTLE_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 15.0
CLOSE_SECONDS: Final = 5.0
LOCK: Final[FieldTable] = {"x-queue-type": "classic"}
"""The arguments of the queue of a lock."""
MAX_CHANNELS: Final = 65_535
"""The channels of a connection to a broker that names no number."""
SPARES: Final = 8
"""Channels for declarations. The broker answers that of something durable when it is on its disk, and writes what
comes over several channels at once."""


class _Sockets(TransportFactory):
    """Opens connections that forked children do not share, and whose frames are read here."""

    reader: FrameReader
    writer: asyncio.StreamWriter

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure = url.scheme == "amqps"
        reader, writer = await (TLSTransportFactory if secure else TCPTransportFactory)().create(url, **kwargs)
        forks.withhold(writer.get_extra_info("socket").fileno())
        self.reader, self.writer = FrameReader(reader), writer
        return reader, writer


class Link:
    """Two connections to one broker: one publishes and one consumes, so that a publisher which the broker blocks
    can still acknowledge. `lost` is set when any of the connections or channels closes: then the whole link is.
    But if the broker closes `publish` alone, that is over a message, and costs no more than this channel."""

    def __init__(
        self, server: str, connections: Sequence[AioPikaConnection], readers: Sequence[FrameReader]
    ) -> None:
        self.server = server
        """host:port of the broker."""
        self._connections = connections
        self._readers = readers
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.publish: Channel
        """With publisher confirms: requests, replies and control messages leave here."""
        self.on_refusal: Callable[[AMQPChannelError], None] | None = None
        """Told when the broker has closed `publish` over a message. `open_publish` opens another one."""
        self.work: Channel
        """Work queues are consumed here."""
        self.inbox: Channel
        """The reply queue and the control queue are consumed here."""
        self._window = -1
        """The prefetch that new consumers of `work` have; -1: not known."""
        self._work_lock = asyncio.Lock()
        self._spares: list[Channel] = []
        """Channels for declarations that nothing is declared over just now."""
        self._are_added = False
        """True while more of them are opened ahead of their use."""
        self._declaring = asyncio.Semaphore(SPARES)
        self._last_numbers = [0 for _ in connections]
        """The numbers of the channels that were opened last, by connection."""

    @classmethod
    async def open(cls, urls: Sequence[str], name: str, timeout: float) -> Link:
        """A link to the first of the URLs that answers. Raises the mapped error of the last one."""
        error: TransportError | None = None
        for url in urls:
            try:
                async with asyncio.timeout(timeout):
                    return await _named(cls._open(url, name))
            except (AMQPError, ChannelInvalidStateError, OSError) as reason:
                error = map_error(reason, url)
        assert error is not None, "no URL was given"
        raise error

    @classmethod
    async def _open(cls, url: str, name: str) -> Link:
        address = URL(url)
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=str(HEARTBEAT))
        opened: list[AioPikaConnection] = []
        sockets = [_Sockets(), _Sockets()]
        try:
            for role, factory in zip(("publish", "consume"), sockets, strict=True):
                properties: FieldTable = {"connection_name": f"{name} {role}"}
                attempt = aio_pika.Connection(address, client_properties=properties)
                attempt.kwargs["transport_factory"] = factory
                opened.append(attempt)  # closed even if it cannot connect: its destructor would try to
            await together(*map(_connect, opened))
            if not LOG_FRAMES:
                for connection, factory in zip(opened, sockets, strict=True):
                    SOCKETS[_underlay(connection)] = ref(factory.writer)
            link = cls(server_name(url), opened, [factory.reader for factory in sockets])
            _, link.work, link.inbox = await together(link.open_publish(), link._channel(1), link._channel(1))
        except BaseException:
            await _close_all(opened)
            raise
        for connection in opened:
            _underlay(connection).closing.add_done_callback(link._on_closed)
        return link

    async def _channel(self, index: int) -> Channel:
        confirms = index == 0
        channel = await self._opened(index, confirms, on_return_raises=confirms)
        channel.closing.add_done_callback(self._on_publish_closed if confirms else self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_consumer_cancelled)
        if not LOG_FRAMES:
            self._readers[index].read(channel)
        return channel

    async def open_publish(self) -> Channel:
        """Open a channel for what leaves here, in the place of the one that was closed."""
        self.publish = await guard(self._channel(0))
        return self.publish

    def _on_publish_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        # Where the exchange is gone, so is what was bound to it: only a new link binds all of it.
        if (
            isinstance(error, AMQPChannelError)
            and not isinstance(error, ChannelNotFoundEntity)
            and self.on_refusal is not None
            and not self.lost.done()
        ):
            self.on_refusal(error)
        else:
            self._on_closed(closing)

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self.lose(f"{type(error).__name__}: {error}" if error is not None else "the connection was closed")

    def _on_consumer_cancelled(self, frame: Basic.Cancel) -> None:
        self.lose(f"the broker cancelled consumer {frame.consumer_tag}")

    def lose(self, reason: str) -> None:
        """Declare the link lost."""
        if not self.lost.done():
            self.lost.set_result(reason)

    @property
    def server_version(self) -> tuple[int, ...]:
        """The broker's version, (0,) if it does not say one."""
        properties = _underlay(self._connections[0]).server_properties or {}
        version = properties.get("version", "0")
        text = version.decode() if isinstance(version, bytes) else str(version)
        return tuple(int(part) for part in text.split(".")[:2] if part.isdigit()) or (0,)

    async def consume_work(self, name: str, callback: ConsumerCallback, window: int) -> str:
        """Consume a queue over `work`, with at most so many unacknowledged messages; 0: any number. Returns the
        consumer tag.

        A channel has one prefetch, which its next consumers take over: nobody may set another one in between.
        """
        async with self._work_lock:
            if window != self._window:
                self._window = -1
                await guard(self.work.basic_qos(prefetch_count=window))
                self._window = window
            consumed = await guard(self.work.basic_consume(name, callback))
        return consumed.consumer_tag or ""

    async def queue_state(self, name: str) -> tuple[int, int] | None:
        """(messages ready, consumers) of a queue, by passive declaration; None if there is no such queue, or none
        may be asked for by that name."""
        if name.startswith(CHANNEL_ADDRESS):
            return None
        try:
            async with self._spare() as channel:
                found = await guard(shielded(channel.queue_declare(queue=name, passive=True)))
        except ChannelNotFoundEntity:
            return None
        except ChannelLockedResource:  # another connection's exclusive queue: it exists
            return (0, 1)
        return (found.message_count or 0, found.consumer_count or 0)

    async def is_gone(self, name: str) -> bool:
        """Return True if there is no such queue; False too where its node of the cluster is down."""
        try:
            async with self._spare() as channel:
                await guard(shielded(channel.queue_declare(queue=name, passive=True)))
        except (ChannelNotFoundEntity, NoAnswer) as error:
            return not is_down(error)
        return False

    async def require_write(self) -> None:
        """Raise ChannelAccessRefused if this user may not write to the default exchange."""
        channel = await self.open_channel()
        async with refused_with_reason(channel):
            await guard(channel.basic_publish(b"", routing_key=f"nowhere.{os.urandom(8).hex()}"))
            await guard(channel.basic_qos(prefetch_count=1))  # it is answered after the message was looked at
        await guard(channel.close())

    async def declare_queue(
        self,
        name: str,
        arguments: FieldTable,
        exchange: str = "",
        keys: Sequence[str] = (),
        *,
        lock: str = "",
    ) -> tuple[int, int]:
        """Declare a durable queue, without losing the link if it exists with other arguments, and bind it, in one
        round trip. Returns (messages ready, consumers): messages that a consumer has are not ready.

        `lock`: the queue of a lock that is taken first. Raises ChannelLockedResource if another link has it; then
        nothing else has been done."""
        if lock or keys:
            return await self._declared(_declarations(name, arguments, exchange, keys, lock), name)
        async with self._spare() as channel:
            found = await guard(shielded(channel.queue_declare(name, durable=True, arguments=arguments)))
        return (found.message_count or 0, found.consumer_count or 0)

    def declare_at_once(
        self, name: str, arguments: FieldTable, exchange: str, keys: Sequence[str]
    ) -> Awaitable[tuple[int, int]]:
        """Do as `declare_queue`, but what is asked leaves before this returns, whatever else is to be done in this
        turn of the event loop, if a channel is at hand for that and no other frames wait to leave."""
        frames = _declarations(name, arguments, exchange, keys)
        return shielded(self._declared(frames, name, self._begin(frames)))

    async def _declared(self, frames: Sequence[Frame], name: str, begun: _Begun | None = None) -> tuple[int, int]:
        async with self._behind(frames, begun) as channel:
            found = await guard(shielded(channel.queue_declare(name, passive=True)))
        return (found.message_count or 0, found.consumer_count or 0)

    async def lock(self, lock: str) -> bool:
        """Declare a queue that is this link's alone, and goes with it. False: another one has it."""
        return await self.lock_at_once(lock)

    def lock_at_once(self, lock: str) -> Awaitable[bool]:
        """Do as `lock`. What is asked leaves before this returns, if a channel is at hand for that."""
        frames = [_locked(lock)]
        return shielded(self._locked(frames, self._begin(frames)))

    async def _locked(self, frames: Sequence[Frame], begun: _Begun | None) -> bool:
        try:
            await self._obeyed(frames, begun)
        except ChannelLockedResource:
            return False
        return True

    async def delete_queue(self, name: str, *, if_empty: bool = False) -> None:
        """Delete a queue, if it is there. `if_empty`: and if it holds nothing and nobody consumes it."""
        with suppress(ChannelPreconditionFailed):  # it is not empty, or in use
            async with self._spare() as channel:
                await guard(shielded(channel.queue_delete(name, if_empty=if_empty, if_unused=if_empty)))

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """Have what is published by this key come to the queue. Loses the link if one of the two is not there: a
        new one declares them."""
        try:
            async with self._spare() as channel:
                await guard(shielded(channel.queue_bind(queue, exchange, key)))
        except ChannelNotFoundEntity as error:
            self.lose(f"{type(error).__name__}: {error}")
            raise

    def bind_at_once(self, queue: str, exchange: str, key: str) -> Awaitable[None]:
        """Do as `bind`. What is asked leaves before this returns, if a channel is at hand for that."""
        frames = [Queue.Bind(queue=queue, exchange=exchange, routing_key=key, nowait=True)]
        return shielded(self._bound(frames, self._begin(frames)))

    async def _bound(self, frames: Sequence[Frame], begun: _Begun | None) -> None:
        try:
            await self._obeyed(frames, begun)
        except ChannelNotFoundEntity as error:
            self.lose(f"{type(error).__name__}: {error}")
            raise

    async def _obeyed(self, frames: Sequence[Frame], begun: _Begun | None) -> None:
        """Return when the broker has done what these frames ask. Raises the reason why it has not."""
        async with self._behind(frames, begun) as channel:
            await guard(shielded(channel.basic_qos(prefetch_count=0)))  # it is answered, and changes nothing

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        """Have it come there no more."""
        async with self._spare() as channel:
            await guard(shielded(channel.queue_unbind(queue, exchange, key)))

    async def declare_exchange(self, name: str, kind: str) -> None:
        """Declare a durable exchange, without losing the link if it exists as another one."""
        async with self._spare() as channel:
            await guard(shielded(channel.exchange_declare(name, exchange_type=kind, durable=True)))

    def has_spares(self, number: int) -> bool:
        """Return True if so many declarations can leave at once. False: they can soon, as a rule."""
        if self._declaring.locked():
            return False
        self._spares = [spare for spare in self._spares if takes_frames(spare)]
        missing = number - len(self._spares)
        if missing > 0 and not self._are_added:
            self._are_added = True
            shielded(self._add_spares(missing))
        return missing <= 0

    async def _add_spares(self, number: int) -> None:
        try:
            for _ in range(number):
                self._spares.append(await self.open_channel())
        finally:
            self._are_added = False

    def _begin(self, frames: Sequence[Frame]) -> _Begun | None:
        """Write frames over a channel that is at hand. None: there is none."""
        if self._declaring.locked() or not (self._spares and takes_frames(self._spares[-1])):
            return None
        channel = self._spares.pop()
        return channel, _written(frames, channel)

    @asynccontextmanager
    async def _behind(self, frames: Sequence[Frame], begun: _Begun | None) -> AsyncIterator[Channel]:
        """A channel over which these frames have left, none of which the broker answers. It takes what comes over
        a channel in its order; where it refuses something, it closes the channel, and does nothing that comes
        behind."""
        async with self._spare(begun and begun[0]) as channel:
            await guard((_written(frames, channel) if begun is None else begun[1]).flushed())
            yield channel

    @asynccontextmanager
    async def _spare(self, channel: Channel | None = None) -> AsyncIterator[Channel]:
        """A channel for a declaration, or this one: the broker closes that of one which it refuses."""
        async with self._declaring:
            if channel is None:
                self._spares = [spare for spare in self._spares if not spare.is_closed]
                channel = self._spares.pop() if self._spares else await self.open_channel()
            try:
                async with refused_with_reason(channel):
                    yield channel
            except BaseException:  # it may wait for the broker's answer still
                shielded(_close(channel))
                raise
            if len(self._spares) < SPARES:
                self._spares.append(channel)
            else:
                shielded(_close(channel))

    async def open_channel(self, confirms: bool = False) -> Channel:
        """Another channel, which may be closed without losing the link; `confirms`: of what is published there."""
        return await self._opened(1, confirms)

    async def open_unconfirmed(self) -> Channel:
        """A channel for what may get lost: it publishes without confirms, and may be closed without losing the
        link. It shares the connection that publishes, which alone a broker blocks that is short of memory."""
        return await self._opened(0, False)

    async def _opened(self, index: int, confirms: bool, *, on_return_raises: bool = False) -> Channel:
        """Open a channel on one of the connections. If the await is cancelled, the channel closes as soon as it is
        open.

        It is aiormq's: a connection keeps something of each channel of aio-pika that was closed, and one is opened
        for each record that is read.
        """
        if self._connections[index].transport is None:
            raise ConnectionError("the connection to the broker was lost")
        connection = _underlay(self._connections[index])

        async def open_next() -> AbstractChannel:
            number = self._next_number(index)  # nothing comes between this and its use
            return await connection.channel(number, confirms, on_return_raises=on_return_raises)

        opening = asyncio.ensure_future(guard(open_next()))

        def close(opened: asyncio.Future[Any]) -> None:
            if not opened.cancelled() and opened.exception() is None:
                shielded(_close(opened.result()))

        try:
            channel = await shielded(opening)
        except asyncio.CancelledError:  # a cancelled question would be logged
            opening.add_done_callback(close)
            raise
        assert isinstance(channel, Channel)
        return channel

    def _next_number(self, index: int) -> int:
        """A number for a channel, of those that are free the one after the last that was taken.

        The client library takes the number of a channel that the broker has just closed, and may open the next one
        before it has told the broker that it knows: the broker closes the connection over that, and over a number
        that is too high.
        """
        connection = _underlay(self._connections[index])
        most = connection.connection_tune.channel_max or MAX_CHANNELS
        for _ in range(most):
            self._last_numbers[index] = number = self._last_numbers[index] % most + 1
            if number not in connection.channels:
                return number
        raise ConnectionError(f"all {most} channels of the connection to the broker are in use")

    async def close(self) -> None:
        """Close both connections, within a few seconds."""
        self.lose("closed by this side")
        await _close_all(self._connections)


async def _connect(attempt: AioPikaConnection) -> None:
    """Connect. A cancellation waits a little until that has ended: in the middle of it, the client library may
    lose sight of a connection that is open already, and nobody could close it."""
    connecting = asyncio.ensure_future(attempt.connect())
    try:
        await shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait((connecting,), timeout=SETTLE_SECONDS)
        connecting.cancel()
        await asyncio.wait((connecting,))
        if not connecting.cancelled():
            connecting.exception()  # nobody else looks
        raise


def _locked(lock: str) -> Frame:
    return Queue.Declare(queue=lock, exclusive=True, nowait=True, arguments=LOCK)


def _declarations(
    name: str, arguments: FieldTable, exchange: str, keys: Sequence[str], lock: str = ""
) -> list[Frame]:
    """The lock, a queue, and its bindings."""
    frames: list[Frame] = [_locked(lock)] if lock else []
    frames.append(Queue.Declare(queue=name, durable=True, nowait=True, arguments=arguments))
    frames += (Queue.Bind(queue=name, exchange=exchange, routing_key=key, nowait=True) for key in keys)
    return frames


def _written(frames: Sequence[Frame], channel: Channel) -> FrameWriter:
    writer = FrameWriter(channel)
    writer.write([marshal(frame, channel.number) for frame in frames])
    return writer


@asynccontextmanager
async def refused_with_reason(channel: Channel) -> AsyncIterator[None]:
    """Raise the broker's reason where it has closed the channel over something whose answer nobody awaited: the
    client library says of what is sent next only that the channel is closed."""
    try:
        yield
    except ChannelInvalidStateError as error:
        closing = channel.closing
        await asyncio.wait((closing,), timeout=SETTLE_SECONDS)
        reason = closing.exception() if closing.done() and not closing.cancelled() else None
        if isinstance(reason, AMQPError):
            raise reason from error
        raise


async def _close(channel: Channel) -> None:
    with suppress(*CLIENT_ERRORS):
        await guard(channel.close())


def shielded(operation: Awaitable[T]) -> Awaitable[T]:
    """An operation that goes on when its await is cancelled: a cancelled one would close its channel. Nobody need
    come to await it."""
    task = asyncio.ensure_future(operation)
    outer = shield(task)
    for future in (task, outer):
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look
    return outer


async def together(*operations: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await several operations, which wait for the broker at the same time, and return what they do. Raises the
    error of the one that fails first, when all of them have ended: the others are cancelled."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            if not task.cancelling():  # a second time would cut short how it ends
                task.cancel()
        await outlast(asyncio.wait(tasks))
        raise


async def guard(operation: Awaitable[T]) -> T:
    """Await an operation of the client library, for a bounded time: a broker that comes up may leave a declaration
    without an answer. Raises one of `CLIENT_ERRORS`."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await _named(operation)
    except TimeoutError as error:
        raise NoAnswer(f"the broker gave no answer within {ANSWER_SECONDS:g} s") from error


async def _named(operation: Awaitable[T]) -> T:
    """Await it; the library's nameless ways to say that the connection is gone, a `CancelledError` while nobody
    cancelled the running task and an error of no class of its own, become a ConnectionError."""
    try:
        return await operation
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise ConnectionError("the connection to the broker was lost") from error
    except Exception as error:
        if type(error) not in (Exception, RuntimeError):
            raise
        raise ConnectionError("the connection to the broker was lost") from error


async def _close_all(connections: Sequence[AioPikaConnection]) -> None:
    async def close(connection: AioPikaConnection) -> None:
        with suppress(*CLIENT_ERRORS):
            async with asyncio.timeout(CLOSE_SECONDS):
                await guard(connection.close())

    await asyncio.gather(*map(close, connections))


def _underlay(connection: AioPikaConnection) -> AbstractConnection:
    if connection.transport is None:
        raise ConnectionError("the connection to the broker was lost")
    return connection.transport.connection
