"""One valid message of each kind, to be changed."""

from __future__ import annotations

from typing import Final

import msgspec

from atasks import wire
from atasks.transport.backends.local import frames, messages
from atasks.wire import (
    Ask,
    Call,
    Cancel,
    Claim,
    Credit,
    End,
    Grant,
    Held,
    Item,
    Kept,
    Query,
    QueryAnswer,
    Reply,
    Report,
    Up,
)

__all__ = ["ARGUMENTS", "ENVELOPES", "FRAMES", "NAMESPACE", "call"]

V: Final = wire.VERSION
NAMESPACE: Final = "fuzz"
ARGUMENTS: Final = msgspec.msgpack.encode([[5], {}])


def call(id: str, task: str = "echo", attempt: int = 1, max_attempts: int = 3, sent_ms: int = 0) -> Call:
    """A call of an atask that gives its argument back, with arguments for `MsgpackCodec`."""
    return Call(V, id, task, ARGUMENTS, "msgpack", None, sent_ms, attempt, max_attempts)


_CALLS = [call("an-id"), call("another-id", "numbers"), call("a-third", "in_a_thread", 3, 3)]
_CALLS[1].credit = 64
_REPLY = Reply(V, "an-id", wire.Status.VALUE, msgspec.msgpack.encode(5), "msgpack", "a-worker")
_EVERYTHING: list[wire.Envelope] = [
    *_CALLS,
    _REPLY,
    Reply(V, "an-id", wire.Status.RAISED, b"\x91\x90", "msgpack"),
    wire.ended("an-id", wire.Status.WORKER_LOST, "a message", "a-worker", 3),
    Cancel(V, ["an-id"]),
    Ask(V, ["an-id", "another-id"]),
    Held(V, ["an-id"], "a-worker"),
    Up(V, NAMESPACE, "default", "a-worker"),
    Credit(V, "another-id", 5, 100),
    Item(V, "another-id", 0, [b"\x01", b"\x02"], "msgpack", "a-worker"),
    Item(V, "another-id", 0, []),
    End(V, "another-id", 2, _REPLY),
    Kept(V, "an-id", "default", 60_000),
    Claim(V, "an-id", 2, "a-copy", "a-worker", again=True),
    Grant(V, "an-id", "a-copy", True),
    Report(V, "an-id", 3, 10.5, "pages", 2),
    Query(V, "a-token", b"\x81\xa4type\xa4ping"),
    QueryAnswer(V, "a-token", "a-worker", b"\x80"),
]

ENVELOPES: Final = [wire.encode([envelope]) for envelope in _EVERYTHING] + [wire.encode(list(_EVERYTHING))]
"""Bodies of AMQP messages."""

_FRAMES: list[messages.Message] = [
    messages.Hello(messages.PROTOCOL, NAMESPACE, 7),
    messages.Serve("a-worker", ["default"], {"in_a_thread": "thread"}),
    messages.Request("default", _CALLS[0]),
    messages.Slots(3, 4),
    messages.Read(1, "an-id"),
    messages.Watch("an-id", True),
    messages.Touch(2, "an-id"),
    messages.Bye(),
    messages.GiveBack(_CALLS[0]),
    messages.Ping(1),
    messages.Begin(2, "default", _CALLS[0], 0, True, 60_000),
    messages.Add(3, "an-id", _REPLY),
    *_EVERYTHING,
]
FRAMES: Final = [frames.encode([frame]) for frame in _FRAMES] + [frames.encode(list(_FRAMES))]
"""Bodies of the frames of a hub's socket."""
