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
from atasks.signing import SealError
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


def like_others(*bodies: bytes, change: tuple[bytes, bytes] = (b"", b"")) -> Arrived:
    """The last of messages with these bodies, as a pattern has read it; `change`: of its header."""
    came: list[DeliveredMessage] = []
    channel = SimpleNamespace(number=1, consumers={"ctag": came.append})
    reader = FrameReader(asyncio.StreamReader())
    reader.read(cast("Any", channel))
    for body in bodies:
        header = header_frame(1, Properties.of("an-id", SEALED, 2, "replies"), len(body))
        if body is bodies[-1]:
            header = header.replace(*change)
        reader.feed(frame.marshal(METHOD, 1) + header + frame.marshal(ContentBody(body), 1))
    last = came[-1]
    assert isinstance(last, Arrived)
    return last


async def test_nothing_is_made_of_a_message_that_is_like_others_until_it_is_looked_at(
    seals: Seals, topology: Topology
) -> None:
    like = like_others(sealed(seals), sealed(seals))
    opened = seals.open(like, topology.arrival(QUEUE)(like))
    assert (opened.delivery_tag, opened.redelivered) == (7, False)
    assert not {"delivery", "header"} & (vars(like).keys() | vars(opened).keys())
    assert opened.header is opened.header is like.header
    assert (like.header.properties.message_id, like.header.properties.reply_to) == ("an-id", "replies")
    assert (like.exchange, like.routing_key, opened.exchange, opened.routing_key) == ("", QUEUE, "", QUEUE)


async def test_a_message_whose_id_is_no_text_is_refused(seals: Seals, topology: Topology) -> None:
    like = like_others(sealed(seals), sealed(seals), change=(b"an-id", b"an-\xff\xff"))
    with pytest.raises(SealError, match="unsealed"):
        seals.open(like, topology.arrival(QUEUE)(like))
    assert like.header.properties.message_id is None
