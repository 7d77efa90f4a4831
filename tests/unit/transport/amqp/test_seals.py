"""Messages that are opened: nothing is done to what came, and nothing is made that nobody looks at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import DeliveredMessage
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from atasks import wire
from atasks.signing import CONTENT_TYPE as SEALED
from atasks.transport.backends.amqp.broker.content import Properties, header_frame
from atasks.transport.backends.amqp.broker.frame_reader import FrameReader
from atasks.transport.backends.amqp.broker.outgoing import Outgoing
from atasks.transport.backends.amqp.broker.pattern import Arrived
from atasks.transport.backends.amqp.broker.topology import Topology
from atasks.transport.backends.amqp.dead import Copy
from atasks.transport.backends.amqp.seals import Opened, Seals, as_it_came, content_type
from tests.keys import KeyFiles

QUEUE = "atasks.q.default.default"
METHOD = Basic.Deliver(consumer_tag="ctag", delivery_tag=7, exchange="", routing_key=QUEUE)


@pytest.fixture
def topology() -> Topology:
    return Topology("atasks", "default", "classic", None)


@pytest.fixture
def seals(tmp_path: Path, topology: Topology) -> Seals:
    seals = Seals.from_file(KeyFiles(tmp_path, shop="").worker, "refuse", topology)
    assert seals is not None
    return seals


def sealed(seals: Seals) -> bytes:
    """The body of a request with the id `an-id`."""
    before, body = seals.sealed(Outgoing(b"\x90", QUEUE, Properties(message_id="an-id", reply_to="replies")))
    return before + bytes(body)


async def test_a_message_that_is_opened_stays_as_it_came(seals: Seals, topology: Topology) -> None:
    header = ContentHeader(
        properties=Basic.Properties(message_id="an-id", reply_to="replies", content_type=SEALED)
    )
    came = DeliveredMessage(METHOD, header, sealed(seals), cast("Any", None))
    opened = seals.open(came, topology.arrival(QUEUE)(came))
    assert isinstance(opened, Opened)
    assert bytes(opened.body) == b"\x90"
    assert content_type(opened) == wire.CONTENT_TYPE
    assert (opened.delivery_tag, opened.redelivered, opened.routing_key) == (7, False, QUEUE)
    assert as_it_came(opened) is came
    assert content_type(came) == SEALED
    # A dead message goes back under its seal, although it was opened to show what is in it.
    assert Copy(came, QUEUE, "an-id", "nobody").properties.content_type == SEALED


async def test_nothing_is_made_of_the_method_of_a_message_that_is_like_others(
    seals: Seals, topology: Topology
) -> None:
    came: list[DeliveredMessage] = []
    channel = SimpleNamespace(number=1, consumers={"ctag": came.append})
    reader = FrameReader(asyncio.StreamReader())
    reader.read(cast("Any", channel))
    for _ in range(2):
        body = sealed(seals)
        properties = Properties.of("an-id", SEALED, 2, "replies")
        head = frame.marshal(METHOD, 1) + header_frame(1, properties, len(body))
        reader.feed(head + frame.marshal(ContentBody(body), 1))
    like = came[1]
    assert isinstance(like, Arrived)
    opened = seals.open(like, topology.arrival(QUEUE)(like))
    assert (opened.delivery_tag, opened.redelivered) == (7, False)
    assert "delivery" not in vars(like)
    assert (like.exchange, like.routing_key, opened.exchange, opened.routing_key) == ("", QUEUE, "", QUEUE)
