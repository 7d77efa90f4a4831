"""Bodies of messages in pieces: the bytes are those of the message format, and large payloads are not copied."""

from __future__ import annotations

from typing import Any

import pytest

from atasks import CloudpickleCodec, DecodeError, MsgpackCodec, wire
from atasks.codecs.base import as_bytes, taken
from atasks.codecs.pieces import Pieces
from atasks.signing import Key, seal, seal_apart
from atasks.transport.backends.amqp.broker.bodies import body_of, envelopes_of
from atasks.wire import VERSION, Call, Item, Reply, Status

LARGE = bytes(range(256)) * 2**13


def call(payload: Any) -> Call:
    return Call(VERSION, "an id", "module.ünï", payload, "cloudpickle", headers={"a note": "of a middleware"})


def reply(payload: Any) -> Reply:
    return Reply(VERSION, "an id", 0, payload, "cloudpickle", "a worker", 17)


@pytest.mark.parametrize("envelope", [call, reply])
@pytest.mark.parametrize("pieces", [[LARGE], [b"\x80", LARGE, b"."], [memoryview(LARGE)[3:], b"", LARGE, LARGE]])
def test_a_body_in_pieces_is_that_of_the_message_format(envelope: Any, pieces: list[Any]) -> None:
    item = envelope(Pieces(pieces))
    body = body_of([item])
    assert isinstance(body, Pieces)
    assert bytes(body) == wire.encode([envelope(b"".join(pieces))]) == wire.encode([item])
    assert [each for each in body.buffers() if len(each) > 1000] == [each for each in pieces if len(each) > 1000]
    assert wire.decode(bytes(body)) == [envelope(b"".join(pieces))]


def test_a_body_of_several_calls_is_in_one_piece() -> None:
    calls = [call(b"abc"), call(Pieces([LARGE]))]
    assert body_of(calls) == wire.encode([call(b"abc"), call(LARGE)])


async def test_what_may_be_written_to_is_copied_before_it_is_sent() -> None:
    codec = CloudpickleCodec()
    grows = bytearray(LARGE)
    pieces: Any = as_bytes(await codec.pieces((LARGE, grows)), codec, Pieces.still)
    assert isinstance(pieces, Pieces)
    assert any(each is LARGE for each in pieces.buffers())
    grows[:3] = b"new"
    assert await codec.decode(bytes(pieces)) == (LARGE, bytearray(LARGE))


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_seal_of_pieces_is_that_of_the_bytes(encrypted: bool) -> None:
    key = Key("a", b"s" * 32, serve=True, encrypt=encrypted)
    body = Pieces([b"the ", LARGE, b" body"])
    before, sealed = seal_apart(key, body, 17, "request", "queue", "replies", "id")
    if encrypted:
        assert len(before + bytes(sealed)) > len(body)
    else:
        assert sealed is body
        assert before + bytes(sealed) == seal(key, bytes(body), 17, "request", "queue", "replies", "id")


@pytest.mark.parametrize("envelope", [call, reply])
@pytest.mark.parametrize("wrap", [bytes, memoryview])
async def test_a_large_payload_that_arrives_is_a_view_of_the_body(envelope: Any, wrap: Any) -> None:
    codec = CloudpickleCodec()
    content = await codec.encode((LARGE, bytearray(LARGE)))
    body = wire.encode([envelope(content)])
    (found,) = envelopes_of(wrap(body), len(body))
    payload: Any = found.payload  # type: ignore[union-attr]
    assert type(payload) is memoryview
    assert payload.obj is body
    assert payload == content
    assert taken(payload, codec) is payload
    assert taken(payload, MsgpackCodec("another")) == content
    assert type(taken(payload, MsgpackCodec("another"))) is bytes
    value = await codec.decode(payload)
    assert value == (LARGE, bytearray(LARGE))
    assert [type(each) for each in value] == [bytes, bytearray]
    assert wire.encode([found]) == body


@pytest.mark.parametrize(
    "body",
    [
        wire.encode([call(b"small")]),
        wire.encode([call(LARGE), call(LARGE)]),
        wire.encode([Reply(VERSION, "an id", Status.RAISED, LARGE, "cloudpickle")]),
        wire.encode([Item(VERSION, "an id", 0, [LARGE])]),
        wire.encode([Call(VERSION, "an id", "name", b"abc", "c", context={"name": LARGE})]),
    ],
)
def test_other_bodies_are_decoded_as_always(body: bytes) -> None:
    assert envelopes_of(body, len(body)) == wire.decode(body)


@pytest.mark.parametrize("cut", [1, 2, 10, 60, len(LARGE)])
def test_a_large_body_that_is_damaged_is_refused_as_always(cut: int) -> None:
    body = wire.encode([call(LARGE)])
    for damaged in (body[:-cut], body[:cut] + b"\xc1" + body[cut:], body + b"\x00" * cut, body[cut:]):
        with pytest.raises(DecodeError) as expected:
            wire.decode(damaged)
        with pytest.raises(DecodeError) as found:
            envelopes_of(damaged, 2**30)
        assert str(found.value).split(" (")[0] == str(expected.value).split(" (")[0]
    with pytest.raises(DecodeError, match="at most 1000 are read"):
        envelopes_of(body, 1000)
