"""A seal: which key says that a message is its own, and was for here.

    0xC1 | format | length of key id | key id | issued_ms (8 bytes) | MAC (32 bytes) | body

Format 1 has the body as it is without a seal, format 2 encrypts it. 0xC1 begins no MessagePack, so who knows
nothing of seals refuses such a message. `docs/wire.md` says what the MAC is made of.
"""

from __future__ import annotations

import functools
import hmac
from typing import Final, Literal

from msgspec import Struct

from atasks.signing.cipher import decrypt, encrypt
from atasks.signing.keys import NAME, Key

__all__ = ["CONTENT_TYPE", "Kind", "SealError", "Sealed", "parse", "seal", "seal_apart", "verify"]

CONTENT_TYPE: Final = "application/vnd.atasks.v1.sealed+msgpack"
MAGIC: Final = 0xC1
PLAIN: Final = 1
ENCRYPTED: Final = 2
LABELS: Final = {PLAIN: b"atasks seal 1", ENCRYPTED: b"atasks seal 2"}
MAC: Final = 32
TIME: Final = 8

Kind = Literal["request", "reply", "control", "record"]
"""The purpose of a message: one of a kind is refused where another is expected."""


class SealError(ValueError):
    """A message is not sealed, or its seal is not what it should be. Its text is the reason, without contents."""


class Sealed(Struct, frozen=True, gc=False):
    """A message as it arrived. Nothing of it can be believed before `verify`."""

    key_id: str
    issued_ms: int
    """The wall clock of who sealed it, in milliseconds since 1970."""
    time: bytes
    """The 8 bytes of `issued_ms`, as they were sent."""
    encrypted: bool
    mac: bytes
    body: bytes | memoryview
    """A view of the bytes behind the seal: they are not copied."""


def seal(
    key: Key, body: bytes, issued_ms: int, kind: Kind, destination: str, reply_to: str = "", message_id: str = ""
) -> bytes:
    """The body under a seal of the key, good for one kind of message to one destination, with these properties."""
    return b"".join(seal_apart(key, body, issued_ms, kind, destination, reply_to, message_id))


def seal_apart(
    key: Key, body: bytes, issued_ms: int, kind: Kind, destination: str, reply_to: str = "", message_id: str = ""
) -> tuple[bytes, bytes]:
    """The two parts of what `seal` returns, for who copies them anyway: what precedes the body, and
    the body."""
    time = issued_ms.to_bytes(TIME, "big")
    head = _head(key.encrypt, key.name, time, kind, destination, reply_to, message_id)
    if key.encrypt:
        body = encrypt(key.secret, body, head)
    mac = key.mac(head + len(body).to_bytes(4, "big"), body)
    return b"".join((_start(key.encrypt, key.name), time, mac)), body


def parse(data: bytes) -> Sealed:
    """The parts of a sealed message, unverified. Raises SealError."""
    if not data or data[0] != MAGIC:
        raise SealError("unsealed")
    size = len(data)
    end = 3 + data[2] if size > 2 else 0
    start = end + TIME + MAC
    if size < start or not end:
        raise SealError("unreadable seal")
    key_id, encrypted = _beginning(data[:end])
    time = data[end : end + TIME]
    body = memoryview(data)[start:]
    return Sealed(key_id, int.from_bytes(time, "big"), time, encrypted, data[end + TIME : start], body)


@functools.lru_cache(maxsize=64)  # most messages come under few keys
def _beginning(data: bytes) -> tuple[str, bool]:
    """Return the id of the key, and whether the body is encrypted, of the first bytes of a message."""
    key_id = data[3:].decode("ascii", "replace")
    if data[1] not in LABELS or not NAME.fullmatch(key_id):
        raise SealError("unreadable seal")
    return key_id, data[1] == ENCRYPTED


def verify(
    key: Key, sealed: Sealed, kind: Kind, destination: str, reply_to: str = "", message_id: str = ""
) -> bytes | memoryview:
    """The body, if the key sealed it for here. Raises SealError."""
    head = _head(sealed.encrypted, sealed.key_id, sealed.time, kind, destination, reply_to, message_id)
    mac = key.mac(head + len(sealed.body).to_bytes(4, "big"), sealed.body)
    if key.name != sealed.key_id or not hmac.compare_digest(mac, sealed.mac):
        raise SealError("wrong seal")
    if not sealed.encrypted:
        return sealed.body
    try:
        return decrypt(key.secret, sealed.body, head)
    except ImportError:
        raise SealError("encrypted, and cryptography is not installed") from None
    except ValueError:
        raise SealError("wrong seal") from None


def _head(
    encrypted: bool, name: str, time: bytes, kind: Kind, destination: str, reply_to: str, message_id: str
) -> bytes:
    """Return the bytes that the MAC covers before the body: each field behind its length, so that none runs
    into the next."""
    said = message_id.encode()
    size = len(said).to_bytes(4, "big")
    return b"".join((_label(encrypted, name), time, _place(kind, destination, reply_to), size, said, LAST))


def _field(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


# What many messages have in common is made once.


@functools.lru_cache(maxsize=64)
def _start(encrypted: bool, name: str) -> bytes:
    """Return the first bytes of a sealed message, up to its time."""
    return bytes((MAGIC, ENCRYPTED if encrypted else PLAIN, len(name))) + name.encode()


@functools.lru_cache(maxsize=64)
def _label(encrypted: bool, name: str) -> bytes:
    """Return the label, the field of the name, and the length of the time."""
    return LABELS[ENCRYPTED if encrypted else PLAIN] + _field(name.encode()) + TIME.to_bytes(4, "big")


@functools.lru_cache(maxsize=1024)
def _place(kind: Kind, destination: str, reply_to: str) -> bytes:
    return b"".join([_field(text.encode()) for text in (kind, destination, reply_to)])


LAST: Final = _field(CONTENT_TYPE.encode())
