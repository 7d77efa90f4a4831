"""A seal: which key says that a message is its own, and was for here.

    0xC1 | format | length of key id | key id | issued_ms (8 bytes) | MAC (32 bytes) | body

Format 1 has the body as it is without a seal, format 2 encrypts it. 0xC1 begins no MessagePack, so who knows
nothing of seals refuses such a message. `docs/wire.md` says what the MAC is made of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Final, Literal, Protocol

from atasks.signing.cipher import decrypt, encrypt
from atasks.signing.keys import ENCRYPTED, MAGIC, NAME, PLAIN, Key

__all__ = ["CONTENT_TYPE", "Kind", "SealError", "Unsealed", "seal", "seal_apart", "unseal"]

CONTENT_TYPE: Final = "application/vnd.atasks.v1.sealed+msgpack"
LABELS: Final = {PLAIN: b"atasks seal 1", ENCRYPTED: b"atasks seal 2"}
MAC: Final = 32
TIME: Final = 8

Kind = Literal["request", "reply", "control", "record"]
"""The purpose of a message: one of a kind is refused where another is expected."""


class InPieces(Protocol):
    """Bytes in pieces that are not joined."""

    def __len__(self) -> int: ...

    def __bytes__(self) -> bytes: ...

    def buffers(self) -> Sequence[bytes | memoryview]:
        """Return the pieces."""
        ...


Body = bytes | InPieces


class SealError(ValueError):
    """A message is not sealed, or its seal is not what it should be. Its text is the reason, without contents."""


class Unsealed(SealError):
    """A message has no seal."""


def seal(
    key: Key, body: bytes, issued_ms: int, kind: Kind, destination: str, reply_to: str = "", message_id: str = ""
) -> bytes:
    """The body under a seal of the key, good for one kind of message to one destination, with these properties."""
    before, sealed = seal_apart(key, body, issued_ms, kind, destination, reply_to, message_id)
    return before + bytes(sealed)


def seal_apart(
    key: Key, body: Body, issued_ms: int, kind: Kind, destination: str, reply_to: str = "", message_id: str = ""
) -> tuple[bytes, Body]:
    """The two parts of what `seal` returns, for who copies them anyway: what precedes the body, and
    the body, which may be in pieces."""
    _, encrypted, before, behind = _covered(key.start, kind, destination, reply_to)
    time, said = issued_ms.to_bytes(TIME, "big"), message_id.encode()
    head = b"".join((before, time, behind, len(said).to_bytes(4, "big"), said, LAST))
    if encrypted:
        body = encrypt(key.secret, bytes(body), head)
    pieces = (body,) if isinstance(body, bytes) else body.buffers()
    mac = key.mac(head + len(body).to_bytes(4, "big"), *pieces)
    return b"".join((key.start, time, mac)), body


def unseal(
    find: Callable[[str], Key | None],
    data: bytes,
    kind: Kind,
    destination: str,
    reply_to: str = "",
    message_id: str = "",
) -> tuple[Key, int, bytes, bytes | memoryview]:
    """The key of a sealed message, when that was sealed (in milliseconds since 1970, by the clock of who did it),
    the MAC, and the body, if the key sealed it for here. `find` knows keys by their names. Raises SealError.

    The body is a view of the bytes behind the seal, which are not copied, unless it was encrypted. This is one
    function and makes few objects: what opens the first message of a turn of the event loop is in no cache of the
    processor any more, and each of them cost about a microsecond there.
    """
    if not data or data[0] != MAGIC:
        raise Unsealed("unsealed")
    size = len(data)
    end = 3 + data[2] if size > 2 else 0
    start = end + TIME + MAC
    if size < start or not end:
        raise SealError("unreadable seal")
    name, encrypted, before, behind = _covered(data[:end], kind, destination, reply_to)
    key = find(name)
    if key is None:
        raise SealError("unknown key")
    time, said = data[end : end + TIME], message_id.encode()
    head = b"".join((before, time, behind, len(said).to_bytes(4, "big"), said, LAST))
    mac = data[end + TIME : start]
    body = memoryview(data)[start:]
    if key.name != name or not compare_digest(key.mac(head + len(body).to_bytes(4, "big"), body), mac):
        raise SealError("wrong seal")
    issued_ms = int.from_bytes(time, "big")
    return key, issued_ms, mac, _decrypted(key, body, head) if encrypted else body


def _decrypted(key: Key, body: memoryview, head: bytes) -> bytes:
    try:
        return decrypt(key.secret, body, head)
    except ImportError:
        raise SealError("encrypted, and cryptography is not installed") from None
    except ValueError:
        raise SealError("wrong seal") from None


@functools.lru_cache(maxsize=1024)  # many messages have all this in common
def _covered(start: bytes, kind: Kind, destination: str, reply_to: str) -> tuple[str, bool, bytes, bytes]:
    """Return the name of the key of a message that begins with `start`, True if its body is encrypted, and the
    bytes that the MAC covers before the time and behind it: each field behind its length, so that none runs into
    the next."""
    name = start[3:].decode("ascii", "replace")
    label = LABELS.get(start[1])
    if label is None or not NAME.fullmatch(name):
        raise SealError("unreadable seal")
    before = label + _field(name.encode()) + TIME.to_bytes(4, "big")
    behind = b"".join([_field(text.encode()) for text in (kind, destination, reply_to)])
    return name, start[1] == ENCRYPTED, before, behind


def _field(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


LAST: Final = _field(CONTENT_TYPE.encode())
