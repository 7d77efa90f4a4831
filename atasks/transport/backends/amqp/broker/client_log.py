"""Keeps from the log of the client library payloads, and lines of what atasks says itself."""

from __future__ import annotations

import logging
import os
from typing import Final

from aiormq.abc import DeliveredMessage

__all__ = ["LOG_FRAMES"]

logger = logging.getLogger("atasks.amqp")

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
