"""One connected epoch: two connections with their channels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from weakref import ref

import aio_pika
from aio_pika.abc import AbstractConnection as AioPikaConnection
from aiormq.abc import AbstractChannel, AbstractConnection, ConsumerCallback
from aiormq.channel import Channel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelClosed,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.base import Frame
from pamqp.commands import Basic, Queue
from pamqp.common import FieldTable
from yarl import URL

from atasks import forks
from atasks.errors import TransportError
from atasks.outlast import apart, shield
from atasks.transport.backends.amqp.broker.client_log import LOG_FRAMES
from atasks.transport.backends.amqp.broker.errors import (
    CLIENT_ERRORS,
    NoAnswer,
    NoChannel,
    is_down,
    map_error,
    server_name,
)
from atasks.transport.backends.amqp.broker.frame_reader import FrameReader
from atasks.transport.backends.amqp.broker.frames import SOCKETS, limit_buffer
from atasks.transport.backends.amqp.broker.questions import (
    close_channel,
    close_quietly,
    guard,
    named,
    refused_with_reason,
    shielded,
    together,
)
from atasks.transport.backends.amqp.broker.spares import Begun, Spares, written
from atasks.transport.backends.amqp.broker.topology import CHANNEL_ADDRESS

__all__ = ["Link"]

HEARTBEAT: Final = 30
SETTLE_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 5.0
GIVEN_UP: Final = "a channel was closed by this side: a question over it was cancelled, or had no answer"
"""The client library closes the channel of such a question, and gives neither code nor text then."""
LOCK: Final[FieldTable] = {"x-queue-type": "classic"}
"""The arguments of the queue of a lock."""
MAX_CHANNELS: Final = 65_535
"""The channels of a connection to a broker that names no number."""
MAX_FRAME: Final = 131_072
"""The bytes of a frame for a broker that names no number: the client library would leave no room for a body."""


class _Sockets(TransportFactory):
    """Opens connections that forked children do not share, and whose frames are read here."""

    reader: FrameReader
    writer: asyncio.StreamWriter

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure = url.scheme == "amqps"
        reader, writer = await (TLSTransportFactory if secure else TCPTransportFactory)().create(url, **kwargs)
        forks.withhold(writer.get_extra_info("socket").fileno())
        limit_buffer(writer.transport)
        self.reader, self.writer = FrameReader(reader), writer
        self.reader.attach(writer.transport)
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
        self.spares = Spares(self.open_channel)
        self._last_numbers = [0 for _ in connections]
        """The numbers of the channels that were opened last, by connection."""

    @classmethod
    async def open(cls, urls: Sequence[str], name: str, timeout: float) -> Link:
        """A link to the first of the URLs that answers. Raises the mapped error of the last one."""
        error: TransportError | None = None
        for url in urls:
            try:
                async with asyncio.timeout(timeout):
                    return await named(cls._open(url, name))
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
            for connection in opened:
                tune = _underlay(connection).connection_tune
                tune.frame_max = tune.frame_max or MAX_FRAME
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
        if isinstance(error, ChannelClosed) and error.args[:1] == (None,):
            self.lose(GIVEN_UP)
        else:
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
            async with self.spares.one() as channel:
                found = await guard(shielded(channel.queue_declare(queue=name, passive=True)))
        except ChannelNotFoundEntity:
            return None
        except ChannelLockedResource:  # another connection's exclusive queue: it exists
            return (0, 1)
        return (found.message_count or 0, found.consumer_count or 0)

    async def is_gone(self, name: str) -> bool:
        """Return True if there is no such queue; False too where its node of the cluster is down."""
        try:
            async with self.spares.one() as channel:
                await guard(shielded(channel.queue_declare(queue=name, passive=True)))
        except (ChannelNotFoundEntity, NoAnswer) as error:
            return not is_down(error)
        return False

    async def require_write(self, *exchanges: str) -> None:
        """Raise ChannelAccessRefused if this user may not write to one of these. While the broker blocks who
        publishes, this waits, and nothing but what publishes does: the other connection is not blocked over it."""
        channel = await self.open_unconfirmed()
        try:
            async with refused_with_reason(channel):
                for exchange in exchanges:
                    key = f"nowhere.{os.urandom(8).hex()}"
                    await guard(channel.basic_publish(b"", exchange=exchange, routing_key=key))
                await named(channel.basic_qos(prefetch_count=0))  # it is answered after these were looked at
        finally:
            shielded(close_quietly(channel))

    async def require_lock(self, lock: str) -> None:
        """Raise ChannelAccessRefused if this user may not take a lock, such as this one, and listen at it."""
        async with self.spares.one() as channel:
            listening = Basic.Consume(queue=lock, consumer_tag=lock, nowait=True)
            giving_back = (Basic.Cancel(consumer_tag=lock, nowait=True), Queue.Delete(queue=lock, nowait=True))
            await guard(written([_locked(lock), listening, *giving_back], channel).flushed())
            await guard(shielded(channel.basic_qos(prefetch_count=0)))  # it is answered after that was looked at

    async def declare_queue(
        self,
        name: str,
        arguments: FieldTable,
        exchange: str = "",
        keys: Sequence[str] = (),
    ) -> tuple[int, int]:
        """Declare a durable queue, without losing the link if it exists with other arguments, and bind it, in one
        round trip. Returns (messages ready, consumers): messages that a consumer has are not ready."""
        if keys:
            bindings = (Queue.Bind(queue=name, exchange=exchange, routing_key=key, nowait=True) for key in keys)
            return await self._declared([_declaration(name, arguments), *bindings], name)
        async with self.spares.one() as channel:
            found = await guard(shielded(channel.queue_declare(name, durable=True, arguments=arguments)))
        return (found.message_count or 0, found.consumer_count or 0)

    def declare_at_once(self, name: str, arguments: FieldTable) -> Awaitable[tuple[int, int]]:
        """Do as `declare_queue`, but what is asked leaves before this returns, whatever else is to be done in this
        turn of the event loop, if a channel is at hand for that and no other frames wait to leave."""
        frames = [_declaration(name, arguments)]
        return shielded(self._declared(frames, name, self.spares.begin(frames)))

    async def _declared(self, frames: Sequence[Frame], name: str, begun: Begun | None = None) -> tuple[int, int]:
        async with self.spares.behind(frames, begun) as channel:
            found = await guard(shielded(channel.queue_declare(name, passive=True)))
        return (found.message_count or 0, found.consumer_count or 0)

    async def lock(self, lock: str) -> bool:
        """Declare a queue that is this link's alone, and goes with it. False: another one has it."""
        return await self.lock_at_once(lock)

    def lock_at_once(self, lock: str) -> Awaitable[bool]:
        """Do as `lock`. What is asked leaves before this returns, if a channel is at hand for that."""
        frames = [_locked(lock)]
        return shielded(self._locked(frames, self.spares.begin(frames)))

    async def _locked(self, frames: Sequence[Frame], begun: Begun | None) -> bool:
        try:
            async with self.spares.behind(frames, begun) as channel:
                await guard(shielded(channel.basic_qos(prefetch_count=0)))  # it is answered, and changes nothing
        except ChannelLockedResource:
            return False
        return True

    def listen(self, lock: str, tag: str, receive: ConsumerCallback) -> None:
        """Have `receive` called with what comes to the queue of this lock, which this link has. `tag`: the name of
        the consumer. The broker's answer is not waited for: what comes meanwhile waits in the queue."""
        if tag not in self.inbox.consumers:
            self.inbox.consumers[tag] = receive
            written([Basic.Consume(queue=lock, consumer_tag=tag, nowait=True)], self.inbox)

    async def unlock(self, lock: str, tag: str) -> None:
        """Listen no more at this lock, which this link has, and give it back: over one channel, since the broker
        would tell a consumer whose queue goes first, and that costs the link."""
        if self.inbox.consumers.pop(tag, None) is not None:
            written([Basic.Cancel(consumer_tag=tag, nowait=True)], self.inbox)
        await guard(shielded(self.inbox.queue_delete(lock)))

    async def delete_queue(self, name: str, *, if_empty: bool = False) -> None:
        """Delete a queue, if it is there. `if_empty`: and if it holds nothing and nobody consumes it."""
        with suppress(ChannelPreconditionFailed):  # it is not empty, or in use
            async with self.spares.one() as channel:
                await guard(shielded(channel.queue_delete(name, if_empty=if_empty, if_unused=if_empty)))

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """Have what is published by this key come to the queue. Loses the link if one of the two is not there: a
        new one declares them."""
        try:
            async with self.spares.one() as channel:
                await guard(shielded(channel.queue_bind(queue, exchange, key)))
        except ChannelNotFoundEntity as error:
            self.lose(f"{type(error).__name__}: {error}")
            raise

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        """Have it come there no more."""
        async with self.spares.one() as channel:
            await guard(shielded(channel.queue_unbind(queue, exchange, key)))

    async def declare_exchange(self, name: str, kind: str) -> None:
        """Declare a durable exchange, without losing the link if it exists as another one."""
        async with self.spares.one() as channel:
            await guard(shielded(channel.exchange_declare(name, exchange_type=kind, durable=True)))

    async def open_channel(self, confirms: bool = False) -> Channel:
        """Another channel, which may be closed without losing the link; `confirms`: of what is published there."""
        return await self._opened(1, confirms)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[Channel]:
        """A channel for this block alone. If the block fails, its closing is not waited for: the broker may have
        left a question open there."""
        channel = await self.open_channel()
        try:
            yield channel
        except BaseException:
            shielded(close_quietly(channel))
            raise
        await close_channel(channel)

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

        opening = apart(guard(open_next()), "atasks channel")  # the channel has tasks in its context

        def close(opened: asyncio.Future[Any]) -> None:
            if not opened.cancelled() and opened.exception() is None:
                shielded(close_quietly(opened.result()))

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
        raise NoChannel(f"all {most} channels of a connection are in use")

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


def _declaration(name: str, arguments: FieldTable) -> Frame:
    return Queue.Declare(queue=name, durable=True, nowait=True, arguments=arguments)


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
