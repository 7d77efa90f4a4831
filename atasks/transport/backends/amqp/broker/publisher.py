"""Publishes over a channel with confirms, without a task, a lock or a future per message."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from aiormq.channel import Channel
from aiormq.exceptions import PublishError

from atasks.signing import CONTENT_TYPE as SEALED
from atasks.transport.backends.amqp.broker.content import BODY_FRAME, METHOD_FRAME, header_frame
from atasks.transport.backends.amqp.broker.frames import Frame, FrameWriter

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.broker.outgoing import Outgoing
    from atasks.transport.backends.amqp.seals import Seals

__all__ = ["Publisher"]

logger = logging.getLogger("atasks.amqp")

FRAME_HEAD: Final = Struct(">BHI").pack
FRAME_END: Final = b"\xce"
METHOD_HEAD: Final = Struct(">BHIHHH").pack
"""Type, channel and size of the frame; class and method; a reserved number."""
PUBLISH: Final = (60, 40)
METHOD_SIZE: Final = 9
"""Bytes of the method without the two names."""
FRAME_OVERHEAD: Final = 8
"""Bytes of a frame besides its content: type, channel, size and end (AMQP 0-9-1, section 2.3.5)."""


class Publisher:
    """The publishing half of a channel. The client library's `Channel.basic_publish` does the same, with a
    coroutine to be driven per message, which costs several times as much and two more turns of the event loop.

    It keeps to what the channel offers: the write queue, where `basic_publish` puts its frames, and
    `confirmations`, where it keeps what is to be told of each message. Nothing else may publish over the channel.
    """

    def __init__(
        self, channel: Channel, ended: Callable[[Outgoing, Callable[[], None]], None], seals: Seals | None = None
    ) -> None:
        """`ended(message, ending)` is called once for each message of which the broker tells something. `seals`
        seal what is published; None: it is published as it is."""
        self._seals = seals
        self._channel = channel
        self._ended = ended
        self._writer = FrameWriter(channel)
        self._body_size = channel.connection.connection_tune.frame_max - FRAME_OVERHEAD
        self._closed = False

    def publish(self, messages: list[Outgoing]) -> list[tuple[Outgoing, Exception]]:
        """Write them behind what was published before. Never waits. Returns those that cannot be written, and why:
        they are not counted, so that each confirm is still for the message that has its number."""
        channel = self._channel
        frames: list[bytes] = []
        in_pieces: list[Frame] = []
        failed: list[tuple[Outgoing, Exception]] = []
        for message in messages:
            try:
                content, large = self._frames(message)
            except Exception as error:  # a text that is no UTF-8, or too long: the client library has many words
                failed.append((message, error))
                continue
            channel.delivery_tag += 1
            tag = channel.delivery_tag
            message_id = message.properties.message_id
            assert message_id, "a returned message is found by its id"
            confirmation: Any = _Confirmation(self, message)
            channel.confirmations[tag] = confirmation
            channel.message_id_delivery_tag[message_id] = tag
            frames.append(content)
            if large:
                in_pieces += *[(each,) for each in frames], *large
                frames.clear()
        if in_pieces:
            self._writer.write_pieces(in_pieces)
        if frames:
            self._writer.write(frames)
        return failed

    def _frames(self, message: Outgoing) -> tuple[bytes, list[Frame]]:
        """Method, header and body frames: in one piece, but for a body that takes several frames."""
        number, size = self._channel.number, self._body_size
        seals = self._seals
        before, body = (b"", message.body) if seals is None else seals.sealed(message)
        pieces = (body,) if isinstance(body, bytes) else body.buffers()
        left = len(before) + len(body)
        head = _method(number, message.exchange, message.routing_key, message.mandatory)
        header = header_frame(number, message.properties, left, SEALED if before else None)
        if left > size:
            return head + header, _in_pieces(number, size, left, (before, *pieces))
        if not left:
            return head + header, []
        return b"".join((head, header, FRAME_HEAD(BODY_FRAME, number, left), before, *pieces, FRAME_END)), []

    def told(self, message: Outgoing, ending: Callable[[], None]) -> None:
        """The broker has said what became of a message. Never raises: the channel's reader calls it."""
        ids, message_id = self._channel.message_id_delivery_tag, message.properties.message_id
        if message_id is not None:
            ids.pop(message_id, None)
        if not self._closed:
            try:
                self._ended(message, ending)
            except Exception:
                logger.exception("an answer of the broker could not be handled: report the traceback")

    def close(self) -> None:
        """The channel is gone: what it may still tell does not count."""
        self._closed = True
        self._writer.close()


class _Confirmation:
    """Stands where the channel keeps the future of a message's confirm, and has as much of a future's interface as
    the channel uses."""

    __slots__ = ("_message", "_publisher")

    def __init__(self, publisher: Publisher, message: Outgoing) -> None:
        self._publisher = publisher
        self._message = message

    def done(self) -> bool:
        return False

    def set_result(self, _: object) -> None:
        self._publisher.told(self._message, self._message.confirmed)

    def set_exception(self, error: BaseException) -> None:
        ending = self._message.returned if isinstance(error, PublishError) else self._message.refused
        self._publisher.told(self._message, ending)


def _in_pieces(channel: int, size: int, left: int, pieces: Sequence[bytes | memoryview]) -> list[Frame]:
    """The frames of a body of `left` bytes, with up to `size` each. None of them is copied."""
    frames: list[Frame] = []
    frame: list[bytes | memoryview] = []
    room = 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            if not room:
                room = min(size, left)
                left -= room
                frame = [FRAME_HEAD(BODY_FRAME, channel, room)]
                frames.append(frame)
            frame.append(rest[:room])
            room, rest = room - len(frame[-1]), rest[room:]
            if not room:
                frame.append(FRAME_END)
    return frames


@functools.lru_cache(maxsize=64)  # of few queues that have many messages; each journal has a key of its own
def _method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The frame of `Basic.Publish` (AMQP 0-9-1, section 1.8.3.7)."""
    name, key = exchange.encode(), routing_key.encode()
    if len(name) > 255 or len(key) > 255:
        raise ValueError("the name of an exchange, or a routing key, has more than 255 bytes")
    head = METHOD_HEAD(METHOD_FRAME, channel, METHOD_SIZE + len(name) + len(key), *PUBLISH, 0)
    return b"%b%c%b%c%b%c\xce" % (head, len(name), name, len(key), key, mandatory)
