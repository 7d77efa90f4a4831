"""Every decoder of bytes that come from elsewhere, and what it may raise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

import atasks
from atasks import DecodeError, MsgpackCodec, ZstdCodec, wire
from atasks.failures.failures import decode_failure, encode_failure
from atasks.transport.backends.local import frames
from atasks.wire import Reply, Status
from tests.fuzz.mutations import Mutations
from tests.fuzz.samples import ENVELOPES, FRAMES

__all__ = ["DECODERS", "Found", "run"]

SLOW: Final = 2.0
"""Seconds of processor time for one input, past which it is reported."""


@dataclass
class Found:
    """What a run of inputs has brought to light."""

    inputs: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def _complete(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()
    raise AssertionError("a decoder waits for something")


_msgpack = MsgpackCodec("fuzz-decoders")
_zstd = ZstdCodec(_msgpack)


def _envelopes(body: bytes) -> None:
    try:
        wire.decode(body)
    except DecodeError:
        wire.salvage(body)
        raise


def _frame(body: bytes) -> None:
    try:
        frames.decode(body)
    except frames.UNREADABLE:
        frames.salvage(body)
        raise


def _failure(body: bytes) -> None:
    error = _complete(decode_failure(body, _msgpack))
    assert isinstance(error, BaseException)
    str(error), repr(error)


DECODERS: Final[dict[str, tuple[Callable[[bytes], Any], tuple[type[BaseException], ...]]]] = {
    "envelopes": (_envelopes, (DecodeError,)),
    "frames": (_frame, frames.UNREADABLE),
    "endings": (lambda body: wire.ending(Reply(1, "x", Status.FAILED, body)), ()),
    "failures": (_failure, (DecodeError,)),
    "msgpack": (lambda body: _complete(_msgpack.decode(body)), (Exception,)),
    "zstd": (lambda body: _complete(_zstd.decode(body)), (Exception,)),
}
"""By name: what decodes, and what it may raise. A codec may raise any Exception; the router maps it."""


def _failures() -> list[bytes]:
    """Exceptions as they travel."""
    errors: list[BaseException] = [
        ValueError("a message", 5),
        UnicodeDecodeError("utf-8", b"bytes", 0, 1, "reason"),
        OSError(2, "no such file", "name"),
        SyntaxError("bad", ("file", 1, 2, "text")),
        ExceptionGroup("several", [KeyError("k"), TypeError("t")]),
        atasks.RemoteError("module.Name", "a message", "a traceback"),
    ]
    return [_complete(encode_failure(error, _msgpack, hop="a hop")) for error in errors]


def samples(name: str) -> list[bytes]:
    """Valid inputs of that decoder."""
    match name:
        case "frames":
            return FRAMES
        case "failures":
            return _failures()
        case "zstd":
            return [_complete(_zstd.encode(value)) for value in (5, "x" * 100_000, [{"a": 1}] * 5000)]
        case _:
            return [*ENVELOPES, msgspec.msgpack.encode(["a message", 3])]


def run(name: str, seed: int, inputs: int, seconds: float) -> Found:
    """Give one decoder so many inputs, for at most so many seconds."""
    decode, expected = DECODERS[name]
    dice = Mutations(seed, samples(name))
    found = Found()
    until = time.monotonic() + seconds
    while found.inputs < inputs and time.monotonic() < until:
        body = dice.body()
        found.inputs += 1
        started = time.thread_time()
        try:
            decode(body)
        except expected:
            found.refused += 1
        except BaseException as error:
            found.faults.append(
                f"{name}, input {found.inputs} of seed {seed}: {type(error).__name__}: {error} ({body[:80]!r})"
            )
        if (took := time.thread_time() - started) > SLOW:
            found.faults.append(f"{name}, input {found.inputs} of seed {seed}: {took:.1f} s for {len(body)} bytes")
    return found
