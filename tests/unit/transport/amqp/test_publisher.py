"""The frames that are written without the client library."""

# Private attributes: `_method`: its frames leave in one piece with those of the message.

from __future__ import annotations

import pytest
from pamqp import frame
from pamqp.commands import Basic

from atasks.transport.backends.amqp.broker.publisher import _method


@pytest.mark.parametrize("mandatory", [True, False])
@pytest.mark.parametrize("key", ["", "atasks.q.default", "é" * 127, "x" * 255])
@pytest.mark.parametrize("exchange", ["", "atasks.control", "x" * 127])
def test_a_publish_frame_is_that_of_the_client_library(exchange: str, key: str, mandatory: bool) -> None:
    expected = frame.marshal(Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), 3)
    assert _method(3, exchange, key, mandatory) == expected


@pytest.mark.parametrize(("exchange", "key"), [("", "x" * 256), ("", "é" * 128), ("x" * 256, "")])
def test_a_name_that_no_frame_can_have_is_refused(exchange: str, key: str) -> None:
    with pytest.raises(ValueError, match="more than 255 bytes"):
        _method(3, exchange, key, True)
