"""Reads the messages and the confirms of a channel where their bytes arrive."""

from __future__ import annotations

import inspect
import io
import logging
from itertools import takewhile
from struct import Struct
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from atasks.transport.backends.amqp.broker.content import BODY_FRAME, HEADER_FRAME, METHOD_FRAME, read_header
from atasks.transport.backends.amqp.broker.pattern import Pattern
from atasks.wire import MAX_BODY

__all__ = ["DELIVER", "DirectChannel", "routable"]

logger = logging.getLogger("atasks.amqp")

DELIVER: Final = 60 << 16 | 60
"""Class 60, method 60: a message is delivered (AMQP 0-9-1, section 1.8)."""
CONFIRMED: Final = (60 << 16 | 80,)
NACK, RETURN = 60 << 16 | 120, 60 << 16 | 50
MULTIPLE: Final = 1
"""The bit of a confirm that is about everything up to its tag."""
CLOSE, CLOSE_OK = 20 << 16 | 40, 20 << 16 | 41
METHOD: Final = Struct(">I").unpack_from
TAG_AND_BIT: Final = Struct(">QB").unpack_from
CONFIRM_BYTES: Final = 21
"""Bytes of a frame that confirms: what is around its content, the method, a tag, the bit."""
TAG: Final = 4
"""The offset of the consumer's tag in a method that delivers."""
SIZE, HEAD, AROUND = 3, 7, 8
"""The offsets of the size and of the content in a frame, and the bytes around its content."""
MAX_PATTERNS: Final = 64
LARGE: Final = 32 * 2**10
"""The bytes of a body that is put together at its own place, if it has more, but not more than `MAX_BODY`."""
TO_ASCII: Final = bytes(byte if byte < 128 else 0x3F for byte in range(256))


class DirectChannel:
    """A channel whose deliveries, confirms and returned messages go straight to whom they are for, in the order in
    which they arrived. The client library would do the same with three coroutines for each frame, two queues and a
    task for each message, in four turns of the event loop more.

    It keeps to what the channel offers: `consumers` and `confirmations`. Every other frame, the answers to
    commands among them, is left to the client library.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._method: Basic.Deliver | Basic.Return | None = None
        """The method of the message that has begun to arrive; None: none has."""
        self.reads_content = False
        """True if a message has begun to arrive: the next header and bodies of the channel are its own."""
        self._header = ContentHeader()
        self._body: list[bytes] = []
        self._missing = 0
        self._file: io.BytesIO | None = None
        """The place of a large body: a file gives its bytes away without a copy."""
        self._place = memoryview(b"")
        """The memory of the file."""
        self._frames = b"", b""
        """The contents of the frames before the body."""
        self._patterns: dict[tuple[int, bytes], Pattern] = {}
        """The sizes of these frames -> the latest pattern that has them."""
        self.is_open = True

    def take(self, kind: int, data: bytes | memoryview, start: int, end: int) -> int:
        """Deal with a frame in the data, a method, or what `reads_content` says, and with those behind it that
        belong to the same message, if they are there. Returns where the last one ends; 0: the frame is the client
        library's."""
        if kind == METHOD_FRAME:
            if end - start == CONFIRM_BYTES and METHOD(data, start + HEAD) == CONFIRMED:
                tag, bits = TAG_AND_BIT(data, start + HEAD + 4)
                self._confirm(tag, bits, True)
                return end
            pattern = self._patterns.get((end - start, bytes(data[end + SIZE : end + HEAD])))
            if pattern is not None and (found := pattern.read(data, start)) is not None:
                message, end = found
                self._give(pattern.consumer_tag, message)
                return end
            return end if self._take_method(bytes(data[start + HEAD : end - 1])) else 0
        if kind == BODY_FRAME and self._file is not None:
            self.go_on(memoryview(data)[start + HEAD : end - 1])
            return end
        content = bytes(data[start + HEAD : end - 1])
        if kind == HEADER_FRAME:
            self._header = header = read_header(content)
            self._missing = header.body_size
            self._frames = self._frames[0], content
            if LARGE < header.body_size <= MAX_BODY:
                self._file = io.BytesIO(bytes(header.body_size))
                self._place = self._file.getbuffer()
        else:
            self._body.append(content)
            self._missing -= len(content)
        if self._missing <= 0:
            self._hand_over()
        return end

    @property
    def is_large(self) -> bool:
        """True if the next frames are those of a large body: a part of one may be taken, and then `go_on`."""
        return self._file is not None

    def go_on(self, part: memoryview) -> None:
        """Copy more of a large body to its place."""
        if self._file is None:
            return  # whoever sent it sends more than was announced
        at = len(self._place) - self._missing
        part = part[: self._missing]
        self._place[at : at + len(part)] = part
        self._missing -= len(part)
        if self._missing == 0:
            self._place.release()
            self._body, self._file = [self._file.getvalue()], None
            self._hand_over()

    def _take_method(self, content: bytes) -> bool:
        (method,) = METHOD(content)
        if method == DELIVER:
            self._method, self.reads_content = _deliver(content), True
            self._frames = content, b""
        elif method == NACK:
            tag, bits = TAG_AND_BIT(content, 4)
            self._confirm(tag, bits, False)
        elif method == RETURN:
            self._method, self.reads_content = Basic.Return(), True
            self._method.unmarshal(content[4:])
        else:
            self.is_open = self.is_open and method not in (CLOSE, CLOSE_OK)
            return False
        return True

    def _confirm(self, tag: int, bits: int, taken: bool) -> None:
        """The broker has taken or refused a message, or all up to it. One that it has returned is told no more."""
        confirmations: dict[int, Any] = self._channel.confirmations
        for each in list(takewhile(tag.__ge__, confirmations)) if bits & MULTIPLE else (tag,):
            confirmation = confirmations.pop(each, None)
            if confirmation is None:
                continue
            if taken:
                confirmation.set_result(None)
            else:
                confirmation.set_exception(DeliveryError(None, Basic.Nack(each)))

    def _hand_over(self) -> None:
        """Give the message, which is whole, to its consumer, or to whoever published it."""
        method, self._method, self.reads_content = self._method, None, False
        body, self._body = self._body, []
        channel = self._channel
        assert method is not None
        message = DeliveredMessage.__new__(DeliveredMessage)  # which is frozen: its own way costs four calls
        message.__dict__.update(
            delivery=method,
            header=self._header,
            body=body[0] if len(body) == 1 else b"".join(body),
            channel=channel,
        )
        if isinstance(method, Basic.Return):
            self._return(method, message)
            return
        if len(body) == 1:
            self._learn(method)
        self._give(method.consumer_tag or "", message)

    def _learn(self, method: Basic.Deliver) -> None:
        """Read messages that are like this one in one step from now on."""
        names, header = self._frames
        pattern = Pattern.of(self._channel, method, names, header, self._header.properties)
        if pattern is None:
            return
        sizes = len(names) + AROUND, len(header).to_bytes(4)
        known = self._patterns.get(sizes)
        if known is None or not known.adopt(pattern):
            if len(self._patterns) >= MAX_PATTERNS:
                self._patterns.clear()
            self._patterns[sizes] = pattern

    def _give(self, consumer_tag: str, message: DeliveredMessage) -> None:
        """Give a message to its consumer."""
        consumer: Any = self._channel.consumers.get(consumer_tag)
        if consumer is None:
            return
        try:
            # The client library puts a coroutine function around one that is none.
            pending = getattr(consumer, "__wrapped__", consumer)(message)
            if pending is not None and inspect.iscoroutine(pending):
                self._channel.create_task(pending).add_done_callback(_log)
        except Exception:
            logger.exception("a message could not be received: report the traceback")

    def _return(self, method: Basic.Return, message: DeliveredMessage) -> None:
        """Tell whoever published a message that there is no queue for it."""
        channel = self._channel
        tag = channel.message_id_delivery_tag.get(self._header.properties.message_id or "")
        confirmation: Any = channel.confirmations.pop(tag or 0, None)
        if confirmation is not None:
            confirmation.set_exception(PublishError(message, method))


def _log(task: Any) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a message could not be received: report the traceback", exc_info=task.exception())


def _deliver(content: bytes) -> Basic.Deliver:
    """The method, unchecked: an exchange may have a longer name than the client library would give one."""
    method = Basic.Deliver.__new__(Basic.Deliver)
    at = 5 + content[TAG]
    start = at + 10
    stop = start + content[start - 1]
    method.consumer_tag = content[5:at].decode()
    try:
        method.exchange = content[start:stop].decode("ascii")
        method.routing_key = content[stop + 1 : stop + 1 + content[stop]].decode("ascii")
    except UnicodeDecodeError:
        return _deliver(routable(content))
    method.delivery_tag, redelivered = TAG_AND_BIT(content, at)
    method.redelivered = redelivered != 0
    return method


def routable(deliver: bytes) -> bytes:
    """The method that delivers a message, with nothing but ASCII in the names by which it was routed."""
    start = TAG + 1 + deliver[TAG] + 9  # where the exchange is: behind the consumer's tag, another tag and a bit
    if deliver[start:].isascii():
        return deliver
    exchange = deliver[start + 1 : start + 1 + deliver[start]]
    key = deliver[start + 1 + len(exchange) :]
    return deliver[: start + 1] + exchange.translate(TO_ASCII) + key[:1] + key[1:].translate(TO_ASCII)
