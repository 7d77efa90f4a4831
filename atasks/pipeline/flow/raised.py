"""Exceptions on their way from the process of a stage to its worker: taken apart as those of atasks are."""

from __future__ import annotations

import pickle
from typing import Any

from atasks.codecs.base import Codec
from atasks.failures.failures import decode_failure, encode_failure
from atasks.functions import run_at_once
from atasks.pipeline.flow.pickling import to_bytes

__all__ = ["packed", "rebuilt"]


class _Pickles(Codec):
    carries_types = True

    def __init__(self) -> None:
        self.namespace = ""  # of none: it is no namespace's codec

    async def encode(self, obj: Any) -> bytes:
        return to_bytes(obj)

    async def decode(self, content: bytes) -> Any:
        return pickle.loads(content)


def packed(error: Exception) -> bytes:
    """The bytes of an exception that the process has raised."""
    failure: bytes = run_at_once(encode_failure(error, _Pickles(), hop="in a process of the stage"))
    return failure


def rebuilt(failure: bytes) -> BaseException:
    """The exception that a child raised."""
    error: BaseException = run_at_once(decode_failure(failure, _Pickles()))
    return error
