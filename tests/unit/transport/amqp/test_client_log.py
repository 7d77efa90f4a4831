"""The lines that the client library of the broker logs by itself."""

from __future__ import annotations

import logging

import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

LINES = ["Unhandled message %r returning", "message_id if None on returned message %r"]


@pytest.mark.parametrize("line", LINES)
def test_no_line_has_the_body_of_a_message(line: str) -> None:
    header = ContentHeader(0, 6, Basic.Properties(message_id="an-id"))
    message = DeliveredMessage(Basic.Return(312, "NO_ROUTE"), header, b"secret", None)  # type: ignore[arg-type]
    logger = logging.getLogger("aiormq.channel")  # whatever its level is, and whoever hears it
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, line, (message,), None)
    assert logger.filter(record)
    assert record.getMessage() == line.replace("%r", "'of 6 bytes'")
    assert "secret" not in record.getMessage()
