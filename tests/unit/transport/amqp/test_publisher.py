"""The frames that are written without the client library."""

# Private attributes: `_method` and `Publisher._frames`: its frames leave with those of the message.
# `Publisher._body_size`, `_channel` and `_seals`: all that the frames of a message depend on.

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.publisher import Publisher, _method


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


@pytest.mark.parametrize("size", [0, 1, 24, 25, 55, 56, 99, 100, 101, 155, 156, 157, 200, 1000])
@pytest.mark.parametrize("seal", [None, b"", b"a seal of 45 bytes that is not to be copied.."])
def test_a_body_leaves_whole_behind_its_seal_in_frames_of_the_size_that_was_agreed(
    seal: bytes | None, size: int
) -> None:
    body, before = bytes(range(256)) * 4, seal or b""
    publisher: Any = Publisher.__new__(Publisher)
    publisher._body_size, publisher._channel = 100, SimpleNamespace(number=3)
    publisher._seals = None if seal is None else SimpleNamespace(sealed=lambda message: (seal, message.body))
    message = Outgoing(body[:size], "queue", Basic.Properties(message_id="id"))
    head, large = publisher._frames(message)
    data = b"".join([head, *(piece for each in large for piece in each)])
    found: list[Any] = []
    while data:
        count, channel, each = frame.unmarshal(data)
        assert channel == 3
        found.append(each)
        data = data[count:]
    assert isinstance(found[0], Basic.Publish)
    assert isinstance(found[1], ContentHeader)
    assert found[1].body_size == len(before) + size
    assert all(isinstance(each, ContentBody) for each in found[2:])
    parts = [each.value for each in found[2:]]
    assert b"".join(parts) == before + body[:size]
    assert all(len(part) == 100 for part in parts[:-1])
    assert all(0 < len(part) <= 100 for part in parts)
