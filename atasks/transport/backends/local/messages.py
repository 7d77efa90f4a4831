"""Messages between a hub and the processes around it.

Calls, replies and cancellations are the envelopes of wire v1; around them is what the hub needs to route them.
Both ends are of one version: `Hello` says so. `frames.py` makes bytes of messages.
"""

# Without `from __future__ import annotations`: msgspec, or typing, would compile each annotation at the import.

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from atasks import wire
from atasks.options import Executor
from atasks.policies.limit import MAX_KEY, MAX_NAME, MAX_PERIOD, MAX_TOKENS
from atasks.transport.subscription import Subscription
from atasks.wire import Awaits, Call, Cancel, Credit, End, Reply

__all__ = [
    "PROTOCOL",
    "Add",
    "Answer",
    "Begin",
    "Begun",
    "Bye",
    "Deliver",
    "DropJournal",
    "Found",
    "GiveBack",
    "GiveToken",
    "Handed",
    "Hello",
    "Hold",
    "JournalFound",
    "LookAtTable",
    "Message",
    "News",
    "NoneServes",
    "Note",
    "OpenJournal",
    "Outcome",
    "Ping",
    "Pong",
    "Publish",
    "QueueState",
    "Read",
    "ReadTable",
    "Refused",
    "Request",
    "Serve",
    "Settled",
    "Slots",
    "Stand",
    "Steer",
    "Stop",
    "Swap",
    "Table",
    "TakeToken",
    "There",
    "TokenTaken",
    "Touch",
    "Watch",
    "Welcome",
    "Where",
]

PROTOCOL: Final = 5
"""The version of the messages."""

MAX_NAMESPACE: Final = 1024
"""Characters of the name of a namespace."""
Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class Hello(Struct, array_like=True, tag=32, gc=False):
    """The first message of a process that connects."""

    protocol: int
    namespace: Annotated[str, Meta(max_length=MAX_NAMESPACE)]
    pid: int
    beside: bool = False
    """True if I take payloads beside their messages; see `beside.py`."""


class Welcome(Struct, array_like=True, tag=33, gc=False):
    """The hub's answer to `Hello`."""

    pid: int
    beside: bool = False
    """True if the hub takes payloads beside their messages."""
    shares: bool = False
    """True if payloads go both ways in shared memory: the hub has the lane that came with `Hello`."""


class Refused(Struct, array_like=True, tag=34, gc=False):
    """The hub's last message to a process that it does not understand."""

    reason: str


class Bye(Struct, array_like=True, tag=35, gc=False):
    """The hub's last message when it is closed: no call that is not answered by now has been started."""


class Request(Struct, array_like=True, tag=36, gc=False):
    """From a caller: have a worker of this queue run the call."""

    queue: str
    call: Call
    priority: int = 0
    wait: bool = True
    """True if the call may wait for a worker of the queue."""
    journal: str = ""
    """The journal into which its reply goes too; empty: into none."""


class NoneServes(Struct, array_like=True, tag=37, gc=False):
    """To a caller: the call did not want to wait for a worker, and there is none."""

    id: str
    paused: bool = False
    """True if there may be some, and the queue is paused."""


class Handed(Struct, array_like=True, tag=38, gc=False):
    """From a worker: the last attempt of this call has me for itself, and begins. To its caller: the same. Should
    the hub die with it, do not send it again."""

    id: str


class Hold(Struct, array_like=True, tag=39, gc=False):
    """To a caller: send no more requests for now (or do again); too much of what it sent waits for workers."""

    on: bool


class Serve(Struct, array_like=True, tag=40, gc=False):
    """From a worker: hand me calls of these queues. As many as `Slots` says, which follows."""

    worker: str
    queues: list[str]
    executors: dict[str, Executor] = {}
    """The executor of each atask that is a blocking function."""
    begins: bool = False
    """True if I say when a last attempt begins; else it begins when it is handed to me."""
    attempts: dict[str, int] = {}
    """The attempts of atasks whose own definition allows more than a call may ask for."""
    subscriptions: list[Subscription] = []
    """The handlers of events that this worker has."""


class Settled(Struct, array_like=True, tag=94, gc=False):
    """From a worker, in the place of replies: these calls have ended, and I had made them; their awaits have the
    replies."""

    ids: list[str]


class Stop(Struct, array_like=True, tag=41, gc=False):
    """From a worker: hand me no more calls."""


class Slots(Struct, array_like=True, tag=42, gc=False):
    """From a worker: after `received` calls in all I could start so many more."""

    free: int
    received: int
    threads: int = 0
    """The most of the free ones that may run in threads."""
    processes: int = 0
    """The most of the free ones that may run in processes."""


class Deliver(Struct, array_like=True, tag=43, gc=False):
    """To a worker: run the call, beside nothing else if `alone`."""

    call: Call
    alone: bool = False
    queue: str = ""
    """The work queue where it waited; empty: the first one that the worker named."""


class GiveBack(Struct, array_like=True, tag=44, gc=False):
    """From a worker: another one may have the call, which was not started, or was cancelled."""

    call: Call
    executor: Executor | None = None
    """The pool in which the call waits for a place; so would all calls of its atask, which was not known at
    `Serve`."""


class Ping(Struct, array_like=True, tag=45, gc=False):
    """From a worker: say `Pong` when all I sent before is in your hands."""

    number: int
    seen: list[str] = []
    """Workers that do not count as others."""


class Pong(Struct, array_like=True, tag=46, gc=False):
    """To a worker: the answer to its `Ping`, after all that was sent to it before."""

    number: int
    others: bool
    """True if each of the worker's queues has another worker."""


class Outcome:
    """The outcome of a question to the records, in `Answer.outcome`."""

    DONE: Final = 0
    UNKNOWN: Final = 1
    """There is no such record."""
    NO_ROOM: Final = 2
    NONE_SERVES: Final = 3
    """The call did not want to wait for a worker, and there is none."""
    BAD: Final = 4
    """The question could not be read; `Answer.reason` says why."""
    TAKEN: Final = 5
    """Another call has the `unique` key of the one that was to begin; `Answer.reason` is its id."""


class Begin(Struct, array_like=True, tag=47, gc=False):
    """Open a record for this call, and have a worker of this queue run it, awaited by nobody."""

    number: int
    queue: str
    call: Call
    priority: int
    wait: bool
    """True if the call may wait for a worker of the queue."""
    expires_ms: int
    """0: no record is opened."""
    again: bool = False
    """True if the call takes the place of one that has ended, in the record of that one."""


class Add(Struct, array_like=True, tag=48, gc=False):
    """Put a reply into the record of the call of that id."""

    number: int
    id: str
    reply: Reply
    quiet: bool = False
    """True if watchers need not be told."""


class Read(Struct, array_like=True, tag=49, gc=False):
    """Send the record of that call: `Found`."""

    number: int
    id: str


class Touch(Struct, array_like=True, tag=50, gc=False):
    """Use the record of that call: its time begins anew."""

    number: int
    id: str


class Watch(Struct, array_like=True, tag=51, gc=False):
    """Send `News` of that call from now on, or do so no more."""

    id: str
    on: bool


class Answer(Struct, array_like=True, tag=52, gc=False):
    """The hub's answer to what had this number, unless that is `Found`."""

    number: int
    outcome: int
    reason: str = ""


class Found(Struct, array_like=True, tag=53, gc=False):
    """The record that was asked for with this number."""

    number: int
    queue: str
    expires_ms: int
    call: Call
    replies: list[Reply]


class News(Struct, array_like=True, tag=54, gc=False):
    """Something was put into the record of that call, or it was forgotten."""

    id: str
    ended: bool
    """True if there is no more to come."""


class OpenJournal(Struct, array_like=True, tag=90, gc=False):
    """From a worker: send me the journal of that name, at which I work for the call `owner`: `JournalFound`."""

    number: int
    name: str
    owner: str


class JournalFound(Struct, array_like=True, tag=91, gc=False):
    """The journal that was asked for with this number."""

    number: int
    replies: list[Reply]
    sent: list[str]
    """Calls that were sent."""
    spent: list[str]
    """Those of them that ended without a result of their own."""


class Note(Struct, array_like=True, tag=92, gc=False):
    """From a worker: put this step into the journal of that name. To be answered."""

    number: int
    name: str
    reply: Reply


class DropJournal(Struct, array_like=True, tag=93, gc=False):
    """From a worker: the call of that journal is over."""

    name: str
    owner: str = ""
    """The call that opened it: another one that has opened it since keeps it. Empty: it is dropped in any case."""


class Where(Struct, array_like=True, tag=55, gc=False):
    """A caller: where are these calls?"""

    ids: list[str]


class There(Struct, array_like=True, tag=56, gc=False):
    """The whereabouts of a call."""

    id: str
    worker: str
    """The worker that has the call; empty: it waits in its queue."""
    ran_ms: int
    """For how long."""
    waiting: int
    """The number of calls that wait in the queue."""
    served: bool
    """True if the queue has workers."""
    awaits: Awaits | None = None
    """A call that its run awaits."""
    paused: bool = False
    """True if its queue is paused."""


class Publish(Struct, array_like=True, tag=70, gc=False):
    """An event, which has the name of the atask of this call: have its handlers run. To be answered."""

    number: int
    call: Call


class TakeToken(Struct, array_like=True, tag=57, gc=False):
    """Give me a token of this limit, as soon as there is one."""

    number: int
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    key: Annotated[str, Meta(max_length=MAX_KEY)] | None
    at_once: Tokens
    per_period: Tokens
    period: Annotated[float, Meta(ge=0, le=MAX_PERIOD)]
    """0: there is no rate."""


class TokenTaken(Struct, array_like=True, tag=58, gc=False):
    """The hub's answer to what had this number: here it is."""

    number: int
    refusal: str = ""
    """Why there will be none, if that is so."""


class Begun(Struct, array_like=True, tag=59, gc=False):
    """The work of the token of that number begins: a token of a rate is spent."""

    number: int


class GiveToken(Struct, array_like=True, tag=60, gc=False):
    """The token of that number is not needed any more, or not wanted."""

    number: int


class ReadTable(Struct, array_like=True, tag=71, gc=False):
    """A question for the table of schedules of my namespace, to be answered by `Table`."""

    number: int


class Table(Struct, array_like=True, tag=72, gc=False):
    """The table that was asked for with this number."""

    number: int
    content: bytes


class Swap(Struct, array_like=True, tag=73, gc=False):
    """Put the table `new` in the place of `old`. To be answered: `BAD` if it is another one by now."""

    number: int
    old: bytes
    new: bytes


class Stand(Struct, array_like=True, tag=74, gc=False):
    """From a worker: I would keep the times of schedules, or do so no more."""

    on: bool


class LookAtTable(Struct, array_like=True, tag=75, gc=False):
    """To a worker: you keep the times from now on, or the table has changed."""


class Steer(Struct, array_like=True, tag=76, gc=False):
    """Do this with a queue. To be answered by `QueueState`."""

    number: int
    queue: str
    order: Literal["look", "pause", "resume", "purge"]


class QueueState(Struct, array_like=True, tag=77, gc=False):
    """The state of the queue after the order that had this number."""

    number: int
    paused: bool
    waiting: int
    """Calls that wait there."""
    workers: int
    purged: int = 0
    """Calls that were ended."""


Message = (
    Hello
    | Welcome
    | Refused
    | Bye
    | Request
    | NoneServes
    | Handed
    | Hold
    | Serve
    | Settled
    | Stop
    | Slots
    | Deliver
    | GiveBack
    | Ping
    | Pong
    | Publish
    | ReadTable
    | Table
    | Swap
    | Stand
    | LookAtTable
    | Steer
    | QueueState
    | OpenJournal
    | JournalFound
    | Note
    | DropJournal
    | Begin
    | Add
    | Read
    | There
    | Touch
    | Watch
    | Where
    | Answer
    | Found
    | News
    | Reply
    | Cancel
    | wire.Item
    | wire.Report
    | End
    | Credit
    | wire.Query
    | wire.QueryAnswer
    | TakeToken
    | TokenTaken
    | Begun
    | GiveToken
)
