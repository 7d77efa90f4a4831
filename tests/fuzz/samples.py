"""One valid message of each kind, to be changed."""

from __future__ import annotations

from typing import Final, get_args

import msgspec

from atasks import wire
from atasks.submitted import schedules
from atasks.tracking import queries
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
    Sent,
    Up,
)

__all__ = ["ARGUMENTS", "ENVELOPES", "FRAMES", "NAMESPACE", "call"]

V: Final = wire.VERSION
QUESTIONS: Final[list[queries.Question]] = [
    queries.Ping(),
    queries.Inspect("calls", 10, "echo*", "running", 1.5, ["an-id"]),
    queries.Stack("an-id"),
    queries.CancelCalls(["an-id"]),
    queries.Watch(["started", "ended"], 0.5, 5.0, ["an-id"]),
    queries.LookAtQueues(),
    queries.LookAtSchedules(),
    queries.FindTasks(["echo"]),
]
ANSWERS: Final[list[queries.Answer]] = [
    queries.Done("a problem"),
    queries.Cancelled(["an-id"]),
    queries.TasksFound("svc", ["echo"]),
    queries.Events(0, 0, [queries.Event("started", 1.5, "an-id", "echo", "an-id")]),
]
NAMESPACE: Final = "fuzz"
ARGUMENTS: Final = msgspec.msgpack.encode([[5], {}])
SCHEDULES: Final = [
    schedules.Schedule(
        name=name,
        task="echo",
        every=every,
        tz="Europe/Berlin",
        catch_up=catch_up,
        overlap="skip",
        defined=False,
        since=1_790_000_000.0,
        last=1_790_000_100.0,
        last_id="an-id",
        payload=ARGUMENTS,
        codec="msgpack",
        options={"queue": "default", "timeout": 5.0, "max_attempts": 3},
    )
    for name, every, catch_up in (("period", 30.0, False), ("cron", "*/5 * * * *", True))
]
TABLES: Final = [msgspec.msgpack.encode(SCHEDULES), msgspec.msgpack.encode(SCHEDULES[:1])]
"""Tables of schedules."""


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
    Held(V, ["an-id"], "a-worker", "a-token", [5], [("another-id", "echo")]),
    Up(V, NAMESPACE, "default", "a-worker"),
    Credit(V, "another-id", 5, 100),
    Item(V, "another-id", 0, [b"\x01", b"\x02"], "msgpack", "a-worker"),
    Item(V, "another-id", 0, []),
    End(V, "another-id", 2, _REPLY),
    Kept(V, "an-id", "default", 60_000),
    Claim(V, "an-id", 2, "a-copy", "a-worker", again=True),
    Grant(V, "an-id", "a-copy", True),
    Report(V, "an-id", 3, 10.5, "pages", 2),
    Sent(V, ["an-id", "another-id"]),
    *(Query(V, "a-token", queries.encode(question)) for question in QUESTIONS),
    *(QueryAnswer(V, "a-token", "a-worker", queries.encode(answer)) for answer in ANSWERS),
]

ENVELOPES: Final = [wire.encode([envelope]) for envelope in _EVERYTHING] + [wire.encode(list(_EVERYTHING))]
"""Bodies of AMQP messages."""

_FRAMES: list[messages.Message] = [
    messages.Hello(messages.PROTOCOL, NAMESPACE, 7),
    messages.Serve("a-worker", ["default"], {"in_a_thread": "thread"}),
    messages.Request("default", _CALLS[0]),
    messages.Settled(["an-id"]),
    messages.Slots(3, 4),
    messages.Read(1, "an-id"),
    messages.Watch("an-id", True),
    messages.Touch(2, "an-id"),
    messages.Bye(),
    messages.GiveBack(_CALLS[0]),
    messages.Ping(1),
    messages.Begin(2, "default", _CALLS[0], 0, True, 60_000),
    messages.Add(3, "an-id", _REPLY),
    messages.OpenJournal(4, "a-journal", "an-id"),
    messages.Note(5, "a-journal", _REPLY),
    messages.Request("default", _CALLS[0], journal="a-journal"),
    messages.DropJournal("a-journal", "an-id"),
    messages.Where(["an-id"]),
    messages.Publish(6, _CALLS[0]),
    messages.TakeToken(7, "another-limit", "a-key", 2, 5, 1.5),
    messages.Begun(7),
    messages.GiveToken(7),
    messages.ReadTable(8),
    messages.Swap(9, b"", TABLES[0]),
    messages.Stand(True),
    *(messages.Steer(10, "another", order) for order in ("look", "pause", "resume", "purge")),
    messages.Handed("an-id"),
    messages.Stop(),
    *(envelope for envelope in _EVERYTHING if isinstance(envelope, get_args(messages.Message))),
]
FRAMES: Final = [frames.encode([frame]) for frame in _FRAMES] + [frames.encode(list(_FRAMES))]
"""Bodies of the frames of a hub's socket."""
