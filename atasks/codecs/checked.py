"""Encoding within a limit of bytes, and the words of the errors where that or decoding fails."""

from __future__ import annotations

from typing import Any

from atasks.codecs.base import Codec, as_bytes, ends_here
from atasks.errors import DecodeError, EncodeError, PayloadTooLarge

__all__ = ["encoded", "over_limit", "undecodable"]


def over_limit(what: str, size: int, limit: int, instead: str) -> str:
    """Return the text of the error for `what`, of `size` bytes, with the advice what to do `instead`."""
    return f"{what} {size} bytes, over the limit of {limit}: {instead}"


async def encoded(what: str, value: Any, codec: Codec, limit: int, instead: str) -> bytes:
    """Encode a value that errors call `what`.

    Raises EncodeError, and PayloadTooLarge above `limit` bytes, which says what to do `instead`.
    """
    try:
        payload = as_bytes(await codec.encode(value), codec)
    except EncodeError:
        raise
    except Exception as error:
        raise EncodeError(f"{what} cannot be encoded by {codec.name} ({type(error).__name__})") from error
    if len(payload) > limit:
        raise PayloadTooLarge(over_limit(f"{what} has", len(payload), limit, instead))
    return payload


def undecodable(what: str, codec: Codec, error: BaseException, reason: str) -> DecodeError | None:
    """Return the error to raise where decoding failed; None: raise `error` itself, which is such an error, or is
    meant for this task or program."""
    if isinstance(error, DecodeError) or ends_here(error):
        return None
    return DecodeError(f"{what} cannot be decoded by {codec.name} ({reason})")
