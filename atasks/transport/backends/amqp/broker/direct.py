"""Reads the messages and the confirms of a channel where their bytes arrive."""

from __future__ import annotations

import inspect
import logging
from itertools import takewhile
from struct import Struct
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from atasks.transport.backends.amqp.broker.content import HEADER_FRAME, METHOD_FRAME, read_header

__all__ = ["DELIVER", "DirectChannel"]

logger = logging.getLogger("atasks.amqp")

DELIVER: Final = 60 << 16 | 60
"""Class 60, method 60: a message is delivered (AMQP 0-9-1, section 1.8)."""
ACK, NACK, RETURN = 60 << 16 | 80, 60 << 16 | 120, 60 << 16 | 50
MULTIPLE: Final = 1
"""The bit of a confirm that is about everything up to its tag."""
CLOSE, CLOSE_OK = 20 << 16 | 40, 20 << 16 | 41
METHOD: Final = Struct(">I").unpack_from
TAG_AND_BIT: Final = Struct(">QB").unpack_from


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
        self._header = ContentHeader()
        self._body: list[bytes] = []
        self._missing = 0
        self.is_open = True

    @property
    def reads_content(self) -> bool:
        """A message has begun to arrive: the next header and bodies of the channel are its own."""
        return self._method is not None

    def take(self, kind: int, content: bytes) -> bool:
        """Deal with the content of a frame. False: the frame is the client library's."""
        if kind == METHOD_FRAME:
            return self._take_method(content)
        if self._method is None:
            return False
        if kind == HEADER_FRAME:
            self._header = read_header(content)
            self._missing = self._header.body_size
        else:
            self._body.append(content)
            self._missing -= len(content)
        if self._missing <= 0:
            self._hand_over()
        return True

    def _take_method(self, content: bytes) -> bool:
        (method,) = METHOD(content)
        if method == DELIVER:
            self._method = _deliver(content)
        elif method in (ACK, NACK):
            tag, bits = TAG_AND_BIT(content, 4)
            self._confirm(tag, bits, method == ACK)
        elif method == RETURN:
            self._method = Basic.Return()
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
        method, self._method = self._method, None
        body, self._body = self._body, []
        channel = self._channel
        assert method is not None
        message = DeliveredMessage(method, self._header, body[0] if len(body) == 1 else b"".join(body), channel)
        try:
            if isinstance(method, Basic.Return):
                tag = channel.message_id_delivery_tag.get(self._header.properties.message_id or "")
                confirmation: Any = channel.confirmations.pop(tag or 0, None)
                if confirmation is not None:
                    confirmation.set_exception(PublishError(message, method))
                return
            consumer: Any = channel.consumers.get(method.consumer_tag or "")
            if consumer is None:
                return
            # The client library puts a coroutine function around one that is none.
            pending = getattr(consumer, "__wrapped__", consumer)(message)
            if inspect.iscoroutine(pending):
                channel.create_task(pending).add_done_callback(_log)
        except Exception:
            logger.exception("a message could not be received: report the traceback")


def _log(task: Any) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a message could not be received: report the traceback", exc_info=task.exception())


def _deliver(content: bytes) -> Basic.Deliver:
    """The method, unchecked: an exchange may have a longer name than the client library would give one."""
    method = Basic.Deliver()
    at = 5 + content[4]
    method.consumer_tag = content[5:at].decode()
    method.delivery_tag, redelivered = TAG_AND_BIT(content, at)
    method.redelivered = bool(redelivered)
    start = at + 10
    at = start + content[at + 9]
    method.exchange = content[start:at].decode()
    method.routing_key = content[at + 1 : at + 1 + content[at]].decode()
    return method
