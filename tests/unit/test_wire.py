"""Wire format v1: every envelope, what is refused, and what can be saved of a bad message."""

from __future__ import annotations

import contextlib
import os
import random
import time
import tracemalloc
from typing import Any

import msgspec
import pytest

from atasks import wire
from atasks.errors import DecodeError
from atasks.wire import (
    AT_MOST_ONCE,
    Ask,
    Call,
    Cancel,
    Claim,
    Credit,
    End,
    Envelope,
    Grant,
    Held,
    Item,
    Kept,
    Reply,
    Report,
    Status,
    Up,
    decode,
    encode,
    salvage,
)

FULL_CALL = Call(
    1, "id-1", "module.task", b"\x00payload", "pickle", 1500, 1_700_000_000_000, 2, 5, AT_MOST_ONCE, 1, "root",
    "parent", ["worker"], 64, {"trace": b"\x01"}, b"signature", True, "shop", "first", 2,
    {"request": "r-1"}, True,
)  # fmt: skip

ENVELOPES: list[Envelope] = [
    Call(1, "id", "task", b"", "pickle"),
    FULL_CALL,
    Reply(1, "id", Status.VALUE, b"value"),
    Reply(1, "id", Status.RAISED, b"failure", "pickle", "host.1", 123, True),
    Cancel(1, ["a", "b"]),
    Ask(1, []),
    Held(1, ["a"], "host.1"),
    Up(1, "default", "gpu", "host.1"),
    Kept(1, "run-1.3", "gpu", 86_400_000),
    Claim(1, "id", 2, "host.1-5", "host.2"),
    Grant(1, "id", "host.1-5", True),
    Credit(1, "id", 5, 1024),
    Item(1, "id", 10, [b"a", b"b"], "pickle"),
    End(1, "id", 12, Reply(1, "id", Status.VALUE, b"")),
    Report(1, "id", 3, 10.5, "pages", 2),
]
TAGS = {
    Call: 1,
    Reply: 2,
    Cancel: 3,
    Ask: 4,
    Held: 5,
    Up: 6,
    Credit: 7,
    Item: 8,
    End: 9,
    Kept: 10,
    Claim: 11,
    Grant: 12,
    Report: 13,
}


def plain(body: bytes) -> list[Any]:
    """The body as a reader in any language sees it."""
    decoded: list[Any] = msgspec.msgpack.decode(body)
    return decoded


def message(*envelopes: Any) -> bytes:
    return msgspec.msgpack.encode(list(envelopes))


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: type(envelope).__name__)
def test_round_trip(envelope: Envelope) -> None:
    body = encode([envelope])
    assert decode(body) == [envelope]
    ((tag, version, *_),) = plain(body)
    assert (tag, version) == (TAGS[type(envelope)], 1)


def test_a_message_holds_any_number_and_mixture() -> None:
    assert decode(encode(ENVELOPES)) == ENVELOPES
    assert decode(encode([])) == []


def test_the_fields_of_a_call_in_their_order() -> None:
    assert plain(encode([FULL_CALL])) == [
        [1, 1, "id-1", "module.task", b"\x00payload", "pickle", 1500, 1_700_000_000_000, 2, 5, 1, 1, "root",
         "parent", ["worker"], 64, {"trace": b"\x01"}, b"signature", True, "shop", "first", 2,
         {"request": "r-1"}, True]
    ]  # fmt: skip


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: type(envelope).__name__)
def test_fields_of_a_later_revision_are_ignored(envelope: Envelope) -> None:
    (fields,) = plain(encode([envelope]))
    every = [getattr(envelope, name) for name in envelope.__struct_fields__]
    full = msgspec.msgpack.decode(msgspec.msgpack.encode([fields[0], *every]))
    assert decode(message([*full, "new", {"field": [1]}])) == [envelope]


def test_headers_are_for_those_who_know_of_them() -> None:
    with_headers = Call(1, "id", "task", b"", "pickle", headers={"a": "b"})
    older = Call(1, "id", "task", b"", "pickle")
    (fields,) = plain(encode([with_headers]))
    assert decode(message(fields[:22])) == [older], "an older caller sends none, and an older reader ignores them"
    for headers in ({"a": 1}, {"": "b"}, {"a": "b" * 65_537}, {str(n): "" for n in range(65)}, ["a"]):
        with pytest.raises(DecodeError):
            decode(message([*fields[:22], headers]))


def test_fields_with_defaults_may_be_left_out() -> None:
    assert decode(message([1, 1, "id", "task", b"", "pickle"])) == [Call(1, "id", "task", b"", "pickle")]
    assert decode(message([2, 1, "id", 0, b""])) == [Reply(1, "id", 0, b"")]


@pytest.mark.parametrize("version", [0, 2, 9])
def test_another_version_is_refused_by_name(version: int) -> None:
    body = message([1, version, "id-7", "task", b"", "pickle"])
    with pytest.raises(
        DecodeError, match=f"wire version {version}: this side speaks version 1; upgrade the older"
    ):
        decode(body)
    (bad,) = salvage(body).bad
    assert (bad.id, bad.tag) == ("id-7", 1)
    assert f"wire version {version}" in bad.reason


def test_a_newer_version_of_other_fields_is_refused_by_name_too() -> None:
    (bad,) = salvage(message([1, 2, "id-7", {"all": "new"}])).bad
    assert bad.id == "id-7"
    assert "wire version 2" in bad.reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"plain text",
        message() + b"\x00",
        msgspec.msgpack.encode({"not": "a list"}),
        message(1),
        message([]),
        message([1]),
        message([99, 1, "id"]),
        message([1, 1, "id", "task", "text instead of bytes", "pickle"]),
        message([1, 1, "", "task", b"", "pickle"]),
        message([1, 1, "x" * 65, "task", b"", "pickle"]),
        message([1, 1, "id", "t" * 1025, b"", "pickle"]),
        message([1, 1, "id", "task", b"", "pickle", -1]),
        message([1, 1, "id", "task", b"", "pickle", 2**54]),
        message([1, 1, "id", "task", b"", "pickle", None, 0, 0]),
        message([1, 1, "id", "task", b"", "pickle", None, 0, 1, 3, 2]),
        message([1, 1, "id", "task", b"", "pickle", None, 0, 1, 3, 0, 0, None, None, ["w"] * 65]),
        message([3, 1, ["id", 5]]),
        b"\x91" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(body)
    decoded = salvage(body)
    assert decoded.envelopes == []
    assert len(decoded.bad) == 1
    assert decoded.bad[0].reason


def test_the_number_of_envelopes_is_bounded() -> None:
    one = Cancel(1, ["id"])
    assert len(decode(encode([one] * 1024))) == 1024
    body = encode([one] * 1025)
    with pytest.raises(DecodeError, match="a message of 1025 envelopes: at most 1024 are read"):
        decode(body)
    decoded = salvage(body)
    assert decoded.envelopes == []
    assert [bad.id for bad in decoded.bad] == [None]


MANY = 4_000_000
BOMBS = {
    "envelopes": b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY,
    "fields": b"\x91\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY,
    "fields behind a call": b"\x91\xdd"
    + (MANY + 5).to_bytes(4, "big")
    + b"\x01\x01\xa1a\xa1b\xc4\x00\xa1c"
    + b"\xc0" * 12
    + b"\x90" * (MANY - 13),
    "an id": b"\x91\x93\x01\x01\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY,
    "ids": b"\x91\x93\x03\x01\xdd" + MANY.to_bytes(4, "big") + b"\xa1a" * MANY,
    "nested": b"\x91\x93\x01\x01" + b"\x91" * MANY + b"\xc0",
    "maps": b"\x91\x93\x03\x01" + b"\x81\xa1a" * MANY + b"\xc0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_large_message_that_cannot_be_read_takes_neither_memory_nor_time(name: str) -> None:
    body = BOMBS[name]
    tracemalloc.start()
    try:
        began = time.process_time()
        with contextlib.suppress(DecodeError):
            decode(body)
        salvage(body)
        seconds = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body) + 2**20
    assert seconds < 2


def test_a_message_over_the_limit_is_not_looked_at() -> None:
    body = encode([Call(1, "id", "task", bytes(1000), "pickle")])
    assert decode(body, len(body)) == decode(body)
    with pytest.raises(DecodeError, match=f"a message of {len(body)} bytes: at most {len(body) - 1} are read"):
        decode(body, len(body) - 1)
    assert salvage(body, len(body) - 1).envelopes == []


def test_the_name_of_a_codec_is_bounded() -> None:
    """An error that names it is as long as the name."""
    for codec, fits in (("c" * 1024, True), ("c" * 1025, False)):
        for envelope in (Reply(1, "id", 0, b"", codec), Item(1, "id", 0, [b""], codec)):
            body = encode([envelope])
            assert salvage(body).envelopes == [envelope] * fits
            assert [flaw.id for flaw in salvage(body).bad] == ["id"] * (not fits)


def test_the_reply_in_the_end_of_a_stream_has_this_version() -> None:
    with pytest.raises(DecodeError, match="wire version 2"):
        decode(encode([End(1, "id", 0, Reply(2, "id", 0, b""))]))


@pytest.mark.parametrize("kind", [Cancel, Ask])
def test_ids_of_one_question_are_bounded(kind: Any) -> None:
    ids = [f"id-{n}" for n in range(1000)]
    assert decode(encode([kind(1, ids)])) == [kind(1, ids)]
    with pytest.raises(DecodeError, match="length <= 1000"):
        decode(encode([kind(1, [*ids, "one more"])]))


ODD = ["\N{GRINNING FACE}" * 64, "a\nb", "a\x00", "a\x7f", "a\x1b[2J", "a\n", "\xe4", ""]


@pytest.mark.parametrize("text", ODD)
def test_ids_and_names_of_workers_are_printable_ascii(text: str) -> None:
    envelopes: list[Any] = [
        Call(1, text, "task", b"", "pickle"),
        Call(1, "id", "task", b"", "pickle", root=text),
        Call(1, "id", "task", b"", "pickle", parent=text),
        Call(1, "id", "task", b"", "pickle", seen=[text]),
        Reply(1, text, 0, b""),
        Cancel(1, [text]),
        Ask(1, ["id", text]),
        Held(1, ["id"], text),
        Up(1, "default", "default", text),
        Credit(1, text, 0, 0),
        Item(1, text, 0, []),
        End(1, text, 0, Reply(1, "id", 0, b"")),
        End(1, "id", 0, Reply(1, text, 0, b"")),
        Claim(1, "id", 2, text, "worker"),
        Claim(1, "id", 2, "copy", text),
        Grant(1, "id", text, True),
    ]
    if text:  # none may be named
        envelopes += [
            Reply(1, "id", 0, b"", worker=text),
            Item(1, "id", 0, [], worker=text),
            End(1, "id", 0, Reply(1, "id", 0, b"", worker=text)),
        ]
    for envelope in envelopes:
        body = encode([envelope])
        with pytest.raises(DecodeError):
            decode(body)
        found = salvage(body)
        assert found.envelopes == []
        assert found.bad[0].id != text


def test_salvage_keeps_the_good_ones_and_names_the_bad_ones() -> None:
    good = [Call(1, "good-1", "task", b"", "pickle"), Cancel(1, ["x"]), Call(1, "good-2", "task", b"", "pickle")]
    pieces = plain(encode(good))
    bad = [[1, 1, "bad-1", "task", "no bytes", "pickle"], [1, 2, "newer"], "nonsense", [77, 1, "unknown-tag"]]
    decoded = salvage(message(bad[0], pieces[0], bad[1], pieces[1], bad[2], pieces[2], bad[3]))
    assert decoded.envelopes == good
    assert [(item.id, item.tag) for item in decoded.bad] == [
        ("bad-1", 1),
        ("newer", 1),
        (None, None),
        ("unknown-tag", 77),
    ]


def test_no_bytes_whatever_raise_anything_else() -> None:
    chance, refused = random.Random(7), 0
    bodies = [encode(ENVELOPES), encode([FULL_CALL])]
    for _ in range(3000):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        for content in (bytes(body), bytes(body[: chance.randrange(len(body))]), os.urandom(40)):
            salvage(content)
            try:
                decode(content)
            except DecodeError:
                refused += 1
    assert refused > 1000


def test_errors_do_not_contain_payloads() -> None:
    body = message([1, 1, "id", "task", "the secret", "pickle"])
    with pytest.raises(DecodeError) as caught:
        decode(body)
    assert "secret" not in str(caught.value)
    assert "secret" not in salvage(body).bad[0].reason


def test_endings() -> None:
    reply = wire.ended("id", Status.WORKER_LOST, "it died", "host.1", attempts=3)
    assert (reply.id, reply.status, reply.worker) == ("id", Status.WORKER_LOST, "host.1")
    assert (wire.ending(reply).message, wire.ending(reply).attempts) == ("it died", 3)
    assert decode(encode([reply])) == [reply]


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x90", msgspec.msgpack.encode([1, 2, 3])])
def test_an_ending_that_cannot_be_read_says_so(payload: bytes) -> None:
    assert "cannot be read" in wire.ending(Reply(1, "id", Status.FAILED, payload)).message
