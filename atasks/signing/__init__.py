"""Sealed messages: keys, the files that hold them, and what a seal covers. Nothing here knows of a transport."""

from __future__ import annotations

from atasks.signing.keyring import Keyring
from atasks.signing.keys import Key
from atasks.signing.replays import Replays
from atasks.signing.seal import CONTENT_TYPE, Body, Kind, SealError, Unsealed, seal, seal_apart, unseal

__all__ = [
    "CONTENT_TYPE",
    "Body",
    "Key",
    "Keyring",
    "Kind",
    "Replays",
    "SealError",
    "Unsealed",
    "seal",
    "seal_apart",
    "unseal",
]
