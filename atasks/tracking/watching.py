"""Events of a worker, for those who watch it: told while their leases last, and made by nobody else.

Where nobody watches, `Worker.watching` and `Transport.watching` are None, and that is all that a call pays for.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING, Final

from msgspec import structs

from atasks.tracking import queries
from atasks.tracking.queries import Event, Events, Watch

if TYPE_CHECKING:
    from atasks.progress import Progress
    from atasks.wire import Call, Query
    from atasks.worker.held_call import HeldCall
    from atasks.worker.worker import Worker

__all__ = ["Watching", "watch"]

TURN_SECONDS: Final = 0.1
"""For how long events are gathered before they leave together."""
MAX_GATHERED: Final = 2000
"""Events of one lease that may wait to leave; more are dropped, and counted."""
MAX_LEASES: Final = 8
ALL: Final = 2**32
"""The sample that has every tree of calls in it."""
MAX_SECONDS: Final = 60.0
TRACEBACK_CHARACTERS: Final = 4096


class _Lease:
    """One who watches."""

    __slots__ = (
        "count",
        "dropped",
        "everything",
        "gathered",
        "ids",
        "kinds",
        "owner",
        "sample",
        "token",
        "until",
        "voice",
    )

    def __init__(self, token: str, owner: str | None, voice: str | None) -> None:
        self.token = token
        self.owner = owner
        """Tracebacks are for calls of the key of that name only; None: for all."""
        self.voice = voice
        """Under which key events are sealed for it."""
        self.kinds: frozenset[str] = frozenset()
        self.ids: frozenset[str] = frozenset()
        """The calls that are told of, and their tries; empty: all."""
        self.sample = 0
        """The number of trees of calls that are told of, out of 2 ** 32."""
        self.everything = False
        """True if it is told of all calls."""
        self.until = 0.0
        """Event loop time."""
        self.count = 0
        """Events that it was to be told of so far: each has a number, so that gaps are seen."""
        self.dropped = 0
        self.gathered: list[Event] = []

    def wants(self, call: Call) -> bool:
        """Return True if it is told of this call."""
        if self.ids and call.id not in self.ids and call.key not in self.ids:
            return False
        return self.sample == ALL or zlib.crc32((call.root or call.id).encode()) < self.sample

    def gather(self, event: Event) -> None:
        """Have this event leave with the others of this turn."""
        if len(self.gathered) < MAX_GATHERED:
            self.count += 1
            self.gathered.append(event)
        else:
            self.dropped += 1


class Watching:
    """Gathers the events of one worker for those who watch it, and sends them ten times a second."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._leases: dict[str, _Lease] = {}
        self._by_kind: dict[str, list[_Lease]] = {}
        """Kind of event -> those who want some of it."""
        self._timer: asyncio.TimerHandle | None = None

    # -- leases

    def renew(self, query: Query, question: Watch, owner: str | None, voice: str | None) -> str:
        """Tell who asks of events from now on, for the seconds that the question names. Returns why that cannot
        be; empty: it can."""
        lease = self._leases.get(query.token)
        if question.lease <= 0:
            self._leases.pop(query.token, None)
            self._sort()
            return ""
        new = lease is None
        if lease is None:
            if len(self._leases) >= MAX_LEASES:
                return f"{MAX_LEASES} watch this worker already"
            lease = self._leases[query.token] = _Lease(query.token, owner, voice)
        lease.ids = frozenset(question.ids)
        lease.kinds = frozenset(question.kinds)
        lease.sample = int(min(max(question.sample, 0.0), 1.0) * ALL)
        lease.everything = lease.sample == ALL and not lease.ids
        self._sort()
        lease.until = self._worker.loop.time() + min(question.lease, MAX_SECONDS)
        worker = self._worker
        worker.watching = worker.transport.watching = self
        if self._timer is None:
            self._timer = worker.loop.call_later(TURN_SECONDS, self._turn)
        if new and lease.ids and "report" in lease.kinds:
            self._catch_up(lease)
        return ""

    def _sort(self) -> None:
        """Note who wants what, after a change."""
        self._by_kind = {}
        for lease in self._leases.values():
            for kind in lease.kinds:
                self._by_kind.setdefault(kind, []).append(lease)

    def _catch_up(self, lease: _Lease) -> None:
        """Tell how far the calls are that somebody watches from now on."""
        self._worker.look()
        for run in self._worker.runs:
            if run.progress is not None and lease.wants(run.call):
                lease.gather(self._report(run, run.progress))

    def stop(self) -> None:
        """Tell nobody any more."""
        self._leases.clear()
        self._by_kind.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._worker.watching = self._worker.transport.watching = None

    def _turn(self) -> None:
        """Send what was gathered, and end leases that nobody has renewed."""
        worker = self._worker
        if "report" in self._by_kind:
            worker.look()
        now = worker.loop.time()
        for lease in list(self._leases.values()):
            if lease.gathered:
                events, lease.gathered = lease.gathered, []
                content = queries.encode(Events(lease.count - len(events), lease.dropped, events))
                if not worker.transport.send_events(lease.token, worker.id, content, lease.voice):
                    lease.dropped += len(events)
            if lease.until <= now:
                del self._leases[lease.token]
                self._sort()
        self._timer = None
        if self._leases:
            self._timer = worker.loop.call_later(TURN_SECONDS, self._turn)
        else:
            self.stop()

    # -- events

    def sent(self, call: Call, queue: str) -> None:
        """A call was made here, over the worker's transport."""
        self._tell("sent", call, queue)

    def held(self, kind: str, run: HeldCall) -> None:
        """Something has happened to a call that the worker holds: it was received, started, parked, resumed, or
        given back."""
        call, event = run.call, None
        for lease in self._by_kind.get(kind, ()):
            if lease.everything or lease.wants(call):
                if event is None:
                    event = _event(kind, call, run.queue)
                lease.gather(event)

    def ended(self, run: HeldCall, status: str, error: str = "", traceback: str = "") -> None:
        """Tell that a run has ended with this status; with the type of the exception that it raised, and its
        traceback."""
        kind, call = "ended" if run.started else "refused", run.call
        takers = self._takers(kind, call)
        if not takers:
            return
        ran = time.perf_counter() - run.started if run.started else None
        event = Event(
            kind,
            time.time(),
            call.id,
            call.task,
            call.root or call.id,
            call.parent,
            run.queue,
            call.attempt,
            status,
            ran,
            error,
            traceback[-TRACEBACK_CHARACTERS:],
        )
        for lease in takers:
            own = not traceback or lease.owner in (None, call.by)
            lease.gather(event if own else structs.replace(event, traceback=""))

    def lost(self, call: Call) -> None:
        """Tell that a call was lost with another worker."""
        self._tell("lost", call, "")

    def reported(self, run: HeldCall, progress: Progress) -> None:
        """Tell the progress that a run reports."""
        takers = self._takers("report", run.call)
        if takers:
            event = self._report(run, progress)
            for lease in takers:
                lease.gather(event)

    def state(self, status: str) -> None:
        """The worker itself is in another state."""
        event = Event("worker", time.time(), "", "", status=status)
        for lease in self._by_kind.get("worker", ()):
            lease.gather(event)

    def _report(self, run: HeldCall, progress: Progress) -> Event:
        call = run.call
        done, total, note, _, try_ = progress
        return Event(
            "report",
            time.time(),
            call.id,
            call.task,
            call.root or call.id,
            call.parent,
            run.queue,
            call.attempt,
            progress=str(progress),
            done=done,
            total=total,
            note=note,
            try_=try_,
        )

    def _takers(self, kind: str, call: Call) -> list[_Lease]:
        """Those who are told that this has happened to the call: for nobody, no event is made."""
        return [lease for lease in self._by_kind.get(kind, ()) if lease.everything or lease.wants(call)]

    def _tell(self, kind: str, call: Call, queue: str) -> None:
        takers = self._takers(kind, call)
        if takers:
            event = _event(kind, call, queue)
            for lease in takers:
                lease.gather(event)


def _event(kind: str, call: Call, queue: str) -> Event:
    return Event(kind, time.time(), call.id, call.task, call.root or call.id, call.parent, queue, call.attempt)


def watch(worker: Worker, query: Query, question: Watch, owner: str | None, voice: str | None) -> str:
    """Have the worker tell who asks of its events. Returns why that cannot be; empty: it can."""
    watching = worker.watching or Watching(worker)
    return watching.renew(query, question, owner, voice)
