"""The lines that the client library of the broker logs by itself."""

from __future__ import annotations

import logging

import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

import atasks.transport.backends.amqp.broker.link as link

LINES = ["Unhandled message %r returning", "message_id if None on returned message %r"]


@pytest.mark.parametrize("line", LINES)
def test_no_line_has_the_body_of_a_message(line: str, caplog: pytest.LogCaptureFixture) -> None:
    header = ContentHeader(0, 6, Basic.Properties(message_id="an-id"))
    message = DeliveredMessage(Basic.Return(312, "NO_ROUTE"), header, b"secret", None)  # type: ignore[arg-type]
    logging.getLogger(link.Channel.__module__).error(line, message)
    assert "secret" not in caplog.text
    assert "of 6 bytes" in caplog.text
