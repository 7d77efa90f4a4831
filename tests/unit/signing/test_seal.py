"""Seals: what they cover, and that nothing else opens them."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import random

import pytest

from atasks import wire
from atasks.signing import CONTENT_TYPE, Key, Replays, SealError, seal, unseal
from atasks.signing.cipher import decrypt, encrypt

SECRET = bytes(range(32))
SHOP = Key("shop", SECRET)
OTHER = Key("other", bytes(range(1, 33)))
SECRETIVE = Key("shop", SECRET, encrypt=True)
NOW = 1_767_225_600_000
PLACE = ("request", "atasks.q.default.default", "atasks.r.0123", "3f2a-1")
BODIES = [b"", b"\x90", b"a body", bytes(range(256)) * 40, bytes(2**20)]


@pytest.mark.parametrize("key", [SHOP, SECRETIVE, Key("a", bytes(range(64))), Key("x" * 32, SECRET)])
@pytest.mark.parametrize("body", BODIES, ids=[str(len(body)) for body in BODIES])
def test_what_was_sealed_opens(key: Key, body: bytes) -> None:
    data = seal(key, body, NOW, *PLACE)
    found, issued_ms, mac, opened = unseal({key.name: key}.get, data, *PLACE)
    assert (found, issued_ms, opened) == (key, NOW, body)
    assert mac in data
    assert (body in data) != key.encrypt or len(body) < 2  # a byte may be anywhere in what is encrypted


def test_the_bytes_of_a_seal_are_those_of_the_specification() -> None:
    fields = [b"shop", NOW.to_bytes(8, "big"), *(text.encode() for text in PLACE), CONTENT_TYPE.encode(), b"\x90"]
    covered = b"atasks seal 1" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    mac = hmac.new(SECRET, covered, hashlib.sha256).digest()
    assert seal(SHOP, b"\x90", NOW, *PLACE) == b"\xc1\x01\x04shop" + NOW.to_bytes(8, "big") + mac + b"\x90"


@pytest.mark.parametrize("key", [SHOP, SECRETIVE])
def test_every_bit_counts(key: Key) -> None:
    data = seal(key, b"a body of some bytes", NOW, *PLACE)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(SealError):
                unseal(lambda _: key, bytes(changed), *PLACE)


def test_another_place_or_another_key_does_not_open_it() -> None:
    sealed = seal(SHOP, b"a body", NOW, *PLACE)
    for number, other in enumerate(("reply", "atasks.q.default.other", "atasks.r.0124", "3f2a-2")):
        place = [*PLACE]
        place[number] = other
        with pytest.raises(SealError, match="wrong seal"):
            unseal(lambda _: SHOP, sealed, *place)  # type: ignore[arg-type]
    for key in (OTHER, Key("shop", OTHER.secret), Key("other", SECRET)):
        with pytest.raises(SealError, match="wrong seal"):
            unseal(lambda _, key=key: key, sealed, *PLACE)  # type: ignore[misc]


def test_fields_do_not_run_into_each_other() -> None:
    sealed = seal(SHOP, b"", NOW, "request", "queue", "ab", "c")
    for reply_to, message_id in (("a", "bc"), ("abc", ""), ("", "abc")):
        with pytest.raises(SealError, match="wrong seal"):
            unseal(lambda _: SHOP, sealed, "request", "queue", reply_to, message_id)


def test_the_format_is_covered() -> None:
    data = bytearray(seal(SECRETIVE, b"a body", NOW, *PLACE))
    data[1] = 1
    with pytest.raises(SealError, match="wrong seal"):
        unseal(lambda _: SHOP, bytes(data), *PLACE)


UNSEALED = [b"", b"\x90", wire.encode([wire.Cancel(1, ["an-id"])]), b"{}", b"\x00\xc1"]
UNREADABLE = [
    b"\xc1",
    b"\xc1\x01",
    b"\xc1\x01\x04shop",
    b"\xc1\x00\x04shop" + bytes(80),
    b"\xc1\x03\x04shop" + bytes(80),
    b"\xc1\x01\x00" + bytes(80),
    b"\xc1\x01\x21" + b"a" * 33 + bytes(80),
    b"\xc1\x01\x04SHOP" + bytes(80),
    b"\xc1\x01\x04sh\xffp" + bytes(80),
    b"\xc1\x01\x04sh\np" + bytes(80),
    b"\xc1\x01\x04shop" + bytes(39),
]


@pytest.mark.parametrize(("reason", "bodies"), [("unsealed", UNSEALED), ("unreadable seal", UNREADABLE)])
def test_what_is_no_seal_is_refused(reason: str, bodies: list[bytes]) -> None:
    for body in bodies:
        with pytest.raises(SealError, match=reason):
            unseal(lambda _: SHOP, body, *PLACE)


def test_random_bytes_are_refused() -> None:
    source = random.Random(7)
    for _ in range(2_000):
        data = b"\xc1\x01\x04shop" * source.randrange(2) + source.randbytes(source.randrange(200))
        with pytest.raises(SealError):
            unseal(lambda _: SHOP, data, *PLACE)


def test_a_reader_that_knows_no_seals_refuses_one_in_a_line() -> None:
    data = seal(SHOP, wire.encode([wire.Cancel(1, ["an-id"])]), NOW, *PLACE)
    assert wire.salvage(data).envelopes == []
    assert "\n" not in wire.salvage(data).bad[0].reason


def test_encryption_hides_the_body_and_is_never_the_same_twice() -> None:
    first, second = (seal(SECRETIVE, b"the secret of secrets", NOW, *PLACE) for _ in range(2))
    assert b"secret" not in first
    assert first[-20:] != second[-20:]


def test_encrypted_content_is_bound() -> None:
    data = encrypt(SECRET, b"content", b"bound")
    assert decrypt(SECRET, data, b"bound") == b"content"
    for secret, content, bound in (
        (SECRET, data, b"other"),
        (OTHER.secret, data, b"bound"),
        (SECRET, data[:-1], b"bound"),
        (SECRET, data[:20], b"bound"),
        (SECRET, b"", b"bound"),
    ):
        with pytest.raises(ValueError, match="encrypted"):
            decrypt(secret, content, bound)


def test_a_secret_shows_nowhere() -> None:
    key = Key("shop", SECRET, serve=True, tasks=["a.*"], queues=["q"], max_attempts=2)
    assert repr(key) == "<Key shop serve tasks=a.* queues=q max_attempts=2>"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)
    with pytest.raises(ValueError, match="at least 32") as caught:
        Key("shop", b"short secret")
    assert "short" not in str(caught.value)


def test_what_a_key_may_do() -> None:
    key = Key("shop", SECRET, tasks=["shop.*", "web.index"], queues=["slow*"])
    assert [key.may_call(task) for task in ("shop.a", "shop.a.b", "web.index", "web.indexes", "Shop.a", "")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert key.may_use("slower")
    assert not key.may_use("default")
    assert SHOP.may_call("anything")
    assert SHOP.may_use("anything")


def test_a_seal_that_came_before_is_known_for_a_while() -> None:
    """For 10 seconds or until 3 others have come, and for no longer than twice that."""
    replays = Replays(size=3, seconds=10)
    macs = [bytes([number]) * 32 for number in range(20)]
    assert not replays.seen(macs[0], 0)
    assert replays.seen(macs[0], 9)
    assert not replays.seen(macs[1], 9.5)
    assert replays.seen(macs[1], 19)
    assert not replays.seen(macs[0], 20.5)
    assert not replays.seen(macs[1], 60), "all of it is too old after a while of silence"
    for number, mac in enumerate(macs[2:]):
        assert not replays.seen(mac, 61)
        assert all(replays.seen(each, 61) for each in macs[max(2, number) : number + 3])
        assert len(replays) <= 6
    assert not replays.seen(macs[2], 61)
