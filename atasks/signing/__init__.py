"""Sealed messages: keys, the files that hold them, and what a seal covers. Nothing here knows of a transport."""

from __future__ import annotations

from atasks.signing.keyring import Keyring
from atasks.signing.keys import Key
from atasks.signing.replays import Replays
from atasks.signing.seal import CONTENT_TYPE, Kind, Sealed, SealError, parse, seal, seal_apart, verify

__all__ = [
    "CONTENT_TYPE",
    "Key",
    "Keyring",
    "Kind",
    "Replays",
    "SealError",
    "Sealed",
    "parse",
    "seal",
    "seal_apart",
    "verify",
]
