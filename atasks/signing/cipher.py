"""Encryption of what is sealed: AES-256-GCM, each message under a key of its own."""

from __future__ import annotations

import functools
import hmac
import os
from typing import Any, Final

__all__ = ["can_encrypt", "decrypt", "encrypt"]

SALT: Final = 20
NONCE: Final = 12
LABEL: Final = b"atasks encryption 1"


def can_encrypt() -> bool:
    """Say whether the library that does it is installed (the extra `crypto`)."""
    try:
        _aes()
    except ImportError:
        return False
    return True


def encrypt(secret: bytes, content: bytes, bound: bytes) -> bytes:
    """The content, readable with the secret only: 20 bytes of salt, 12 of nonce, ciphertext, 16 of tag. `bound` is
    authenticated too, and is needed again. Salt and nonce are random, so any number of processes may share a
    secret."""
    random = os.urandom(SALT + NONCE)
    salt, nonce = random[:SALT], random[SALT:]
    sealed: bytes = _aes()(_derive(secret, salt)).encrypt(nonce, content, bound)
    return random + sealed


def decrypt(secret: bytes, data: bytes | memoryview, bound: bytes) -> bytes:
    """Return the bytes that `encrypt` was given. Raises ValueError if `data` comes from somewhere else, or was
    bound to something else."""
    salt, nonce = bytes(data[:SALT]), data[SALT : SALT + NONCE]
    if len(nonce) < NONCE:
        raise ValueError("too short to be encrypted content")
    try:
        content: bytes = _aes()(_derive(secret, salt)).decrypt(nonce, data[SALT + NONCE :], bound)
    except ImportError:
        raise
    except Exception as error:  # InvalidTag, which has no base but Exception
        raise ValueError("the content was not encrypted with this key") from error
    return content


def _derive(secret: bytes, salt: bytes) -> bytes:
    """HKDF-SHA-256 (RFC 5869) of 32 bytes: one block of its expansion."""
    return hmac.digest(_extract(secret), LABEL + salt + b"\x01", "sha256")


@functools.lru_cache(maxsize=256)
def _extract(secret: bytes) -> bytes:
    return hmac.digest(bytes(32), secret, "sha256")


@functools.cache
def _aes() -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM
