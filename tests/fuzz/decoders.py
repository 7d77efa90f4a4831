"""Every decoder of bytes that come from elsewhere, and what it may raise."""

# Private attributes: `schedules._decoded` and `_due`, `journal._read`: what reads foreign bytes.

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

import atasks
from atasks import DecodeError, MsgpackCodec, ZstdCodec, wire
from atasks.arrays import UNREADABLE
from atasks.failures.failures import decode_failure, encode_failure
from atasks.pipeline import collect, fork, map
from atasks.pipeline.submitted import blueprint, journal
from atasks.signing import Key, SealError, seal, unseal
from atasks.submitted import schedules
from atasks.tracking import queries
from atasks.transport.backends.local import frames
from atasks.wire import Reply, Status
from tests.fuzz.mutations import Mutations
from tests.fuzz.samples import ANSWERS, ENVELOPES, FRAMES, QUESTIONS, TABLES
from tests.fuzz.worker import echo, in_a_thread

__all__ = ["DECODERS", "Found", "run"]

KEY: Final = Key("fuzz", bytes(range(32)))
RUNS: Final = [map(echo), map(echo) | collect(5), map(in_a_thread, workers=3) | fork(map(echo), map(echo))]
SLOW: Final = 2.0
"""Seconds of processor time for one input, past which it is reported."""


@dataclass
class Found:
    """The result of a run of inputs."""

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
    str(error), repr(error), traceback.format_exception(error)


def _described(question: object) -> None:
    """Look at the question as an answer does: that must be cheap, whatever the question says."""
    if isinstance(question, queries.Inspect):
        fnmatchcase("module.echo", question.task)


def _seal(body: bytes) -> None:
    unseal({KEY.name: KEY}.get, body, "request", "a-queue", "a-reply-queue", "an-id")


def _table(body: bytes) -> None:
    """A table of schedules, and what whoever keeps the times makes of it."""
    now = 1_790_000_400.0
    for entry in schedules._decoded(body):
        schedules._due(entry, now)
        entry.timing.after(now)


def _stages(body: bytes) -> None:
    try:
        content = msgspec.msgpack.decode(body)
    except UNREADABLE:
        return
    blueprint.read(content)


DECODERS: Final[dict[str, tuple[Callable[[bytes], Any], tuple[type[BaseException], ...]]]] = {
    "envelopes": (_envelopes, (DecodeError,)),
    "frames": (_frame, frames.UNREADABLE),
    "endings": (lambda body: wire.ending(Reply(1, "x", Status.FAILED, body)), ()),
    "failures": (_failure, (DecodeError,)),
    "msgpack": (lambda body: _complete(_msgpack.decode(body)), (Exception,)),
    "zstd": (lambda body: _complete(_zstd.decode(body)), (Exception,)),
    "questions": (lambda body: _described(queries.decode_question(body)), ()),
    "answers": (lambda body: queries.decode_answer(body), ()),
    "seals": (_seal, (SealError,)),
    "schedules": (_table, ()),
    "runs": (_stages, (DecodeError,)),
    "notes": (lambda body: journal._read(msgspec.msgpack.decode(body)), (DecodeError, *UNREADABLE)),
}
"""By name: what decodes, and what it may raise. A codec may raise any Exception; the router maps it."""


def _doubling(depth: int) -> BaseException:
    """An exception whose parts refer to each other again and again: whoever shows it shows them as often."""
    error: BaseException = ImportError("no name", name="no_such_module", path="p")
    for _ in range(depth):
        error = ValueError(error, error)
    return error


def _failures() -> list[bytes]:
    """Exceptions as they travel."""
    errors: list[BaseException] = [
        ValueError("a message", 5),
        UnicodeDecodeError("utf-8", b"bytes", 0, 1, "reason"),
        OSError(2, "no such file", "name"),
        SyntaxError("bad", ("file", 1, 2, "text")),
        ExceptionGroup("several", [KeyError("k"), TypeError("t")]),
        _doubling(7),
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
        case "questions":
            return [queries.encode(question) for question in QUESTIONS]
        case "answers":
            return [queries.encode(answer) for answer in ANSWERS]
        case "seals":
            place = ("request", "a-queue", "a-reply-queue", "an-id")
            return [seal(KEY, body, 1_790_000_000_000, *place) for body in ENVELOPES]
        case "schedules":
            return TABLES
        case "runs":
            return [msgspec.msgpack.encode(blueprint.blueprint(stages.stages)) for stages in RUNS]
        case "notes":
            return [msgspec.msgpack.encode({"attempt": 1, "notes": [(1, [[0, 1]], 5, False)]})]
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
