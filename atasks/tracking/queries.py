"""Questions to workers, and their answers: MessagePack maps within `wire.Query` and `wire.QueryAnswer`.

Readers ignore fields and kinds that they do not know, so workers and those who ask may be of different versions.
No answer has arguments or results of calls in it.
"""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

import sys
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from atasks.tracking.snapshots import TaskCounts

__all__ = [
    "KINDS",
    "MAX_CALLS",
    "MAX_DEPTH",
    "MAX_NAMES",
    "Answer",
    "Awaited",
    "CallInfo",
    "Calls",
    "CancelCalls",
    "Cancelled",
    "Chain",
    "Done",
    "Event",
    "Events",
    "FindTasks",
    "Inspect",
    "LookAtQueues",
    "LookAtSchedules",
    "Ping",
    "Pong",
    "Question",
    "Stack",
    "StackOf",
    "State",
    "TasksFound",
    "Wanted",
    "Watch",
    "WorkerInfo",
    "decode_answer",
    "decode_question",
    "encode",
]

MAX_CALLS: Final = 1000
"""Calls in one answer."""
KINDS: Final = (
    "sent",
    "received",
    "started",
    "parked",
    "resumed",
    "ended",
    "lost",
    "given_back",
    "refused",
    "report",
    "worker",
)
"""Kinds of events."""
MAX_PATTERN: Final = 1024
"""Characters of a pattern: to read one of `[` takes time by the square of its length."""
MAX_AWAITED: Final = 100
"""Calls that one call awaits, in an answer."""
MAX_NAMES: Final = 100
"""Atasks that one question names."""
MAX_DEPTH: Final = 100
"""Tasks below each other that are shown of one call; a worker tells of no more."""

MAX_TIME: Final = 1e11
"""Seconds: three thousand years."""

Ids = Annotated[list[str], Meta(max_length=1000)]
Seconds = Annotated[float, Meta(ge=0)]
"""No NaN either, which no time is later than."""
Time = Annotated[float, Meta(ge=-MAX_TIME, le=MAX_TIME)]
"""Seconds, or a wall clock, in an answer: anybody may have sent it, and calendars end."""
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
State = Literal["waiting", "running", "parked"]


class Ping(Struct, tag="ping"):
    """The question which workers there are. Answered by `Pong`."""


class Inspect(Struct, tag="inspect"):
    """The question for a worker's state, or for its calls. Answered by `WorkerInfo`, or by `Calls`."""

    what: Literal["worker", "calls"]
    limit: Annotated[int, Meta(ge=1, le=MAX_CALLS)] = MAX_CALLS
    """Calls in the answer, the oldest first."""
    task: Annotated[str, Meta(max_length=MAX_PATTERN)] = ""
    """Only calls of atasks whose name matches this pattern, as file names do: `shop.*`; empty: all."""
    state: str = ""
    """Only calls in this state; empty: all."""
    older: Seconds = 0.0
    """Only calls that were made so many seconds ago at least."""
    ids: Ids = []
    """Only these calls; empty: all."""


class Stack(Struct, tag="stack"):
    """Ask for the place in the code that this call is at. Answered by `StackOf` by the worker that holds it."""

    id: str


class CancelCalls(Struct, tag="cancel"):
    """End these calls: their awaits end in `CallCancelled`. Answered by `Cancelled`. Those that are in no worker's
    hand end when a worker gets them, for the next 10 minutes."""

    ids: Ids


class Watch(Struct, tag="watch"):
    """Tell of events from now on, for so many seconds; the same question with the same token renews that. Answered
    by `Done`; events come as `Events`."""

    kinds: Annotated[list[str], Meta(max_length=64)]
    """The kinds of events that are wanted, of `KINDS`."""
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Which part of the trees of calls is told of, 0 to 1: all events of a tree, on all workers, or none."""
    lease: Seconds = 10.0
    """0: tell no more."""
    ids: Ids = []
    """Only these calls, and the tries of them; empty: all."""


class LookAtQueues(Struct, tag="look-at-queues"):
    """A queue was paused or resumed at the broker: look which of yours are paused. Answered by `Done`, by workers
    that act as the broker says by then."""


class LookAtSchedules(Struct, tag="look-at-schedules"):
    """The namespace may have its first schedule: stand for keeping the times. Nobody answers."""


class FindTasks(Struct, tag="find-tasks"):
    """Ask which queue calls of these atasks are taken from if they name none. Answered by `TasksFound`, by workers
    that have one of them."""

    names: Annotated[list[str], Meta(max_length=MAX_NAMES)]


Question = Ping | Inspect | Stack | CancelCalls | Watch | LookAtQueues | LookAtSchedules | FindTasks


class Pong(Struct, tag="pong"):
    """The answer to `Ping`."""

    host: str
    pid: int
    queues: list[str]
    version: str = ""
    now: Time = 0.0
    """Wall clock, in seconds."""
    draining: bool = False


class WorkerInfo(Struct, tag="worker"):
    """A worker."""

    id: str
    host: str
    pid: int
    namespace: str
    queues: list[str]
    version: str
    """The version of atasks."""
    python: str
    codec: str
    transport: str
    now: Time
    """The worker's wall clock, in seconds."""
    uptime: Time
    draining: bool
    concurrency: int
    running: int
    parked: int
    waiting: int
    loop_lag: Time
    bad: int
    tasks: list[TaskCounts] = []
    """Counts of the atasks that it got calls of; of the busiest ones if there are more than `MAX_CALLS`."""
    refused: dict[str, int] = {}
    """Messages whose seals were refused, by the reason."""
    cut: bool = False
    """True if some atasks were left out."""


class Awaited(Struct):
    """A call that another one awaits."""

    id: str
    task: str
    queue: str
    age: Time
    """Seconds since it was made."""


class Wanted(Struct):
    """A limit of which a call waits for a token."""

    limit: str
    """The name of the limit; behind a colon, for a limit with a key, a hash of its value."""
    at_once: int
    """The number of tokens that there are at one time; 0: any number, as only a rate bounds them."""


class CallInfo(Struct):
    """A call that a worker holds."""

    id: str
    task: str
    worker: str
    state: State
    """`waiting`: not started; `parked`: it awaits other calls."""
    queue: str
    age: Time
    """Seconds since it was made, by the clocks of its caller and of its worker."""
    ran: Time | None = None
    """Seconds since it began; None: it has not."""
    attempt: int = 1
    max_attempts: int = 3
    left: Time | None = None
    """Seconds until its deadline; None: it has none."""
    parent: str | None = None
    """The call that awaits it; None: a program does, or nobody."""
    root: str = ""
    """The call at the top of the chain: its own id if none awaits it."""
    progress: str = ""
    """The latest report of the call's progress."""
    awaits: list[Awaited] = []
    """Calls that it awaits now."""
    cut: bool = False
    """True if the call awaits more than those."""
    wants: list[Wanted] = []
    """Limits of which it waits for a token."""
    holds: list[str] = []
    """Limits of which it holds a token."""


class Calls(Struct, tag="calls"):
    """The calls that a worker holds, the oldest first."""

    calls: list[CallInfo]
    total: int
    """The number of calls that match the question."""

    @property
    def cut(self) -> bool:
        """True if some calls were left out."""
        return self.total > len(self.calls)


class Chain(Struct):
    """A task of a call, from its outermost coroutine to what it waits for."""

    name: str
    frames: list[str]
    """`file:line in function`, the outermost first."""
    waits_for: str
    children: "list[Chain]" = []
    """Tasks of the same call that it waits for, or that it has started."""


class StackOf(Struct, tag="stack-of"):
    """The answer to `Stack`."""

    id: str
    call: CallInfo
    chains: list[Chain]


class Cancelled(Struct, tag="cancelled"):
    """The answer to `CancelCalls`: those that ended here."""

    ids: list[str]


class Event(Struct, omit_defaults=True, gc=False):
    """Something that has happened to a call, or to a worker."""

    kind: str
    at: Time
    """Wall clock of the worker, in seconds."""
    id: str
    """The id of the call; empty: the event is the worker's."""
    task: str
    root: str = ""
    parent: str | None = None
    queue: str = ""
    attempt: int = 1
    status: str = ""
    """The ending of the call, or the state of the worker."""
    ran: Time | None = None
    """Seconds of its run, if it has ended."""
    error: str = ""
    """The type of the exception that it raised."""
    traceback: str = ""
    """The end of its traceback."""
    progress: str = ""
    """A report of the call in words; in the next fields, what it said."""
    done: int | Finite = 0
    total: int | Finite | None = None
    note: str = ""
    try_: int = 1
    """The try that the call is."""


class Events(Struct, tag="events"):
    """The events that a worker tells to those who watch it."""

    first: int
    """The number of the first of these events, counted from 0 for each who watches: gaps are events that got
    lost on the way."""
    dropped: int
    """The number of events that the worker has dropped so far, because there were too many."""
    events: list[Event]


class Done(Struct, tag="done"):
    """The order was carried out; or `problem` says why not."""

    problem: str = ""


class TasksFound(Struct, tag="tasks-found"):
    """The answer to `FindTasks`."""

    queue: Annotated[str, Meta(max_length=100)]
    """The queue of atasks that name none, at this worker."""
    names: Annotated[list[str], Meta(max_length=MAX_NAMES)]
    """Those of the atasks that name none, and that this worker has."""


Answer = Pong | WorkerInfo | Calls | StackOf | Cancelled | Done | Events | TasksFound

_question: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

encode = msgspec.msgpack.Encoder().encode


def decode_question(content: bytes) -> Question | None:
    """The question; None: it is of a kind that is not known here, or makes no sense."""
    try:
        return _question.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def decode_answer(content: bytes) -> Answer | None:
    """The answer; None: it is of a kind that is not known here, or makes no sense."""
    try:
        return _answer.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
