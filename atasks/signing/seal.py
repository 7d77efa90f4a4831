"""A seal: which key says that a message is its own, and was for here.

    0xC1 | format | length of key id | key id | issued_ms (8 bytes) | MAC (32 bytes) | body

Format 1 has the body as it is without a seal, format 2 encrypts it. 0xC1 begins no MessagePack, so who knows
nothing of seals refuses such a message. `docs/wire.md` says what the MAC is made of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from hmac import compare_digest
from struct import Struct, error
from typing import Final, Literal, Protocol

from atasks.signing.cipher import decrypt, encrypt
from atasks.signing.keys import ENCRYPTED, MAGIC, MAX_NAME, NAME, PLAIN, Key

__all__ = ["CONTENT_TYPE", "Kind", "SealError", "Unsealed", "seal", "seal_apart", "unseal"]

CONTENT_TYPE: Final = "application/vnd.atasks.v1.sealed+msgpack"
LABELS: Final = {PLAIN: b"atasks seal 1", ENCRYPTED: b"atasks seal 2"}
MAC: Final = 32
TIME: Final = 8
SIZE: Final = 4
"""Bytes of the length of a field."""
START: Final = bytes((MAGIC,))

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
    said = message_id.encode()
    _, encrypted, pack, before, behind = _covered(key.start, kind, destination, reply_to, len(said))
    time = issued_ms.to_bytes(TIME, "big")
    if encrypted:
        body = encrypt(key.secret, bytes(body), pack(before, time, behind, said, LAST, 0)[:-SIZE])
    head = pack(before, time, behind, said, LAST, len(body))
    mac = key.mac(head, body) if isinstance(body, bytes) else key.mac(head, *body.buffers())
    return b"%b%b%b" % (key.start, time, mac), body


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
    if data[:1] != START:
        raise Unsealed("unsealed")
    try:
        split, size = SPLIT[data[2]]
        start, time, mac = split(data)
    except (IndexError, error):  # as of a name that is too long, and of a message that is too short
        raise SealError("unreadable seal") from None
    said = message_id.encode()
    name, encrypted, pack, before, behind = _covered(start, kind, destination, reply_to, len(said))
    key = find(name)
    if key is None:
        raise SealError("unknown key")
    body = memoryview(data)[size:]
    head = pack(before, time, behind, said, LAST, len(body))
    if key.name != name or not compare_digest(key.mac(head, body), mac):
        raise SealError("wrong seal")
    issued_ms = int.from_bytes(time, "big")
    return key, issued_ms, mac, _decrypted(key, body, head[:-SIZE]) if encrypted else body


def _decrypted(key: Key, body: memoryview, head: bytes) -> bytes:
    try:
        return decrypt(key.secret, body, head)
    except ImportError:
        raise SealError("encrypted, and cryptography is not installed") from None
    except ValueError:
        raise SealError("wrong seal") from None


@functools.lru_cache(maxsize=1024)  # many messages have all this in common
def _covered(
    start: bytes, kind: Kind, destination: str, reply_to: str, id_size: int
) -> tuple[str, bool, Callable[..., bytes], bytes, bytes]:
    """Return the name of the key of a message that begins with `start`, True if its body is encrypted, and what
    packs all that the MAC covers but the body: the bytes before the time and behind it, which follow here, the id
    of so many bytes, `LAST`, and the size of the body. Each field is behind its length, so that none runs into the
    next."""
    name = start[3:].decode("ascii", "replace")
    label = LABELS.get(start[1])
    if label is None or not NAME.fullmatch(name):
        raise SealError("unreadable seal")
    before = label + _field(name.encode()) + TIME.to_bytes(SIZE, "big")
    behind = b"".join([_field(text.encode()) for text in (kind, destination, reply_to)]) + id_size.to_bytes(
        SIZE, "big"
    )
    pack = Struct(f">{len(before)}s{TIME}s{len(behind)}s{id_size}s{len(LAST)}sI").pack
    return name, start[1] == ENCRYPTED, pack, before, behind


def _field(content: bytes) -> bytes:
    return len(content).to_bytes(SIZE, "big") + content


LAST: Final = _field(CONTENT_TYPE.encode())
SPLIT: Final = [
    (Struct(f"{3 + size}s{TIME}s{MAC}s").unpack_from, 3 + size + TIME + MAC) for size in range(MAX_NAME + 1)
]
"""For each length of the name of a key: what divides a seal into the bytes up to the time, that and the MAC; and
where the body begins."""
