"""The state that the page shows: live calls, failures, rates, workers and queues, built from events. No I/O.

Every collection is bounded, and the picture says what it left out. `Picture.take` is called for each event,
`snapshot` gives the whole state and `changes` the part that changed since a version, both ready for JSON.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, TypeGuard

from atasks.tracking import TaskCounts
from atasks.wire import counted

__all__ = ["Picture"]

LIVE: Final = 5000
"""Live calls kept. Later ones are counted."""
FAILURES: Final = 200
"""Kinds of failure kept, the latest first. Equal ones are counted."""
SPANS: Final = 2000
"""Ended runs kept for the timeline."""
TASKS: Final = 500
"""Atasks shown; the busiest ones, where there are more."""
WORKERS: Final = 1000
QUEUES: Final = 200
RATE_SECONDS: Final = 10
"""Length of the window over which a rate is computed."""
RECENT: Final = 300.0
"""Seconds for which a failure counts as wrong now."""
SLOW_SAMPLES: Final = 50
"""Ended runs that an atask must have before a call of it can be called slow."""
SLOW_SECONDS: Final = 1.0
"""Age below which no call is called slow."""
SILENT: Final = 15.0
"""Seconds without a sign after which a worker is shown as silent."""
FORGOTTEN: Final = 120.0
"""Seconds without a sign after which a worker is no longer shown."""
COUNTED: Final = 2000
"""Atasks whose counts are kept; those that began most often, where there are more."""
TEXT: Final = 300
"""Characters that are kept of a name or a text; of an id all 64, of a traceback `TRACEBACK`."""
TRACEBACK: Final = 4096
MAX_ID: Final = 64
REMOVED: Final = 20_000
"""Removals remembered, so that `changes` can name them."""
WELL: Final = frozenset({"value", "cancelled", "withdrawn", "given_back", "kept"})
"""Endings, by the names of the counters, that are no failures."""

Row = dict[str, Any]


class Picture:
    """The state of a fleet as a viewer has seen it since it began to watch. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.since = clock()
        """When the viewer began to watch, in seconds of the epoch."""
        self.version = 0
        self.connected = False
        self.reason = ""
        """Why there is no connection, in one sentence."""
        self.sample = 1.0
        """The share of the call trees that are watched."""
        self.dropped = 0
        """Events that workers dropped because there were too many."""
        self.gaps = 0
        """Events that were lost on the way to the viewer."""
        self.unshown = 0
        """Live calls that began while `LIVE` others were shown."""
        self.queues: list[Row] = []
        self.dead = 0
        """Messages that could be neither read nor answered."""
        self.runs: list[Row] = []
        """Submitted calls, and runs of pipelines, the latest first."""
        self.runs_note = ""
        """Why they cannot be listed, in one sentence."""
        self.named: set[str] = set()
        """Queues that events have named."""
        self.note = ""
        """The parts that cannot be shown here, and why."""
        self._calls: OrderedDict[str, Row] = OrderedDict()
        self._changed: dict[str, int] = {}
        self._removed: deque[tuple[int, str]] = deque(maxlen=REMOVED)
        self._cut = 0
        self._failures: OrderedDict[tuple[str, str, str], Row] = OrderedDict()
        self._spans: deque[Row] = deque(maxlen=SPANS)
        self._tasks: dict[str, TaskCounts] = {}
        self._counts: deque[tuple[float, dict[str, int]]] = deque()
        """When calls were counted, and how many had ended by then, by atask."""
        self._workers: OrderedDict[str, Row] = OrderedDict()

    def now(self) -> float:
        """Seconds of the epoch, by the clock of the picture."""
        return self._clock()

    # -- what comes in

    def take(self, event: Mapping[str, Any]) -> None:
        """Add one event: its `kind`, `time`, `worker`, `id`, `task`, `root`, `parent`, `attempt`, `queue`, and the
        fields of its kind. A kind that is not known, and a field that is missing, change nothing."""
        event = _cut(event)
        kind = event.get("kind")
        now = float(event.get("time") or self._clock())
        worker = str(event.get("worker") or "")
        if worker and kind != "sent":
            self._seen(worker, now)
        if kind == "worker":
            self._workers[worker].update({key: event[key] for key in event if key not in ("kind", "time")})
            return
        identity = event.get("id")
        if not _is_id(identity):
            return
        self.version += 1
        if event.get("queue") and len(self.named) < QUEUES:
            self.named.add(str(event["queue"]))
        match kind:
            case "sent" | "received" | "given_back":
                self._live(identity, event, "waiting", now)
            case "started":
                row = self._live(identity, event, "running", now)
                if row is not None:
                    row["started"] = now
            case "parked":
                self._live(identity, event, "parked", now)
            case "resumed":
                self._live(identity, event, "running", now)
            case "report":
                row = self._calls.get(identity)
                if row is not None:
                    row["note"] = str(event.get("note") or "")[:200]
                    self._changed[identity] = self.version
            case "ended" | "lost" | "refused":
                self._end(identity, event, str(event.get("status") or kind), now)

    def inspected(self, calls: Iterable[Mapping[str, Any]], since: int) -> None:
        """Add calls that were there before the viewer came, as workers describe them; known ones are brought up
        to date, so that a call whose events were lost is shown as it is.

        `since`: the `version` at which the workers were asked. Of a call that has changed or ended after it, the
        events know more than this.
        """
        newer = {known for known, version in self._changed.items() if version > since}
        for version, known in reversed(self._removed):
            if version <= since:
                break
            newer.add(known)
        for call in calls:
            identity = call.get("id")
            if _is_id(identity) and identity not in newer:
                self.version += 1
                now = self._clock()
                row = self._live(identity, _cut(call), str(call.get("state") or "running"), now)
                if row is not None:
                    row["queued"] = not call.get("worker")
                    row["since"] = min(row["since"], now - float(call.get("age") or 0.0))
                    if call.get("ran") is not None:
                        row.setdefault("started", now - float(call["ran"]))

    def only(self, worker: str, identities: Iterable[str], asked: float) -> None:
        """Forget the calls of this worker that it no longer holds, if nothing was heard of them since `asked`;
        worker "": those that `inspected` was told wait in a queue."""
        held = set(identities)
        for identity, row in list(self._calls.items()):
            known = row["worker"] == worker and (worker or row.get("queued"))
            if known and identity not in held and row["changed"] < asked:
                self._forget(identity)

    def _seen(self, worker: str, now: float) -> None:
        row = self._workers.get(worker)
        if row is None:
            row = self._workers[worker] = {"worker": worker}
            if len(self._workers) > WORKERS:
                self._workers.popitem(last=False)
        row["seen"] = max(now, row.get("seen", 0.0))

    def _live(self, identity: str, event: Mapping[str, Any], state: str, now: float) -> Row | None:
        row = self._calls.get(identity)
        if row is None:
            if len(self._calls) >= LIVE:
                self.unshown += 1
                return None
            row = self._calls[identity] = {"id": identity, "since": now, "task": "?", "worker": ""}
        for key in ("task", "root", "parent", "attempt", "queue", "worker", "awaits", "note"):
            value = event.get(key)
            if value not in (None, "") and not (key == "worker" and event.get("kind") == "sent"):
                row[key] = value
        row["state"] = state
        row["changed"] = now
        self._changed[identity] = self.version
        return row

    def _forget(self, identity: str) -> Row | None:
        row = self._calls.pop(identity, None)
        self.version += 1
        self._changed.pop(identity, None)
        if len(self._removed) == REMOVED:
            self._cut = self._removed[0][0]
        self._removed.append(
            (self.version, identity)
        )  # one that was never shown too: `inspected` may bring it yet
        return row

    def _end(self, identity: str, event: Mapping[str, Any], status: str, now: float) -> None:
        row = self._forget(identity) or {}
        task = str(event.get("task") or row.get("task") or "?")
        worker = str(event.get("worker") or row.get("worker") or "")
        started = row.get("started", now - float(event.get("run") or 0.0))
        failed = status not in WELL
        span = {"id": identity, "task": task, "worker": worker, "from": started, "to": now, "status": status}
        self._spans.append(span | {"parent": event.get("parent") or row.get("parent")})
        if failed:
            self._fail(identity, task, worker, status, event, now)

    def _fail(
        self, identity: str, task: str, worker: str, status: str, event: Mapping[str, Any], now: float
    ) -> None:
        kind = str(event.get("type") or status)
        key = (task, kind, _place(str(event.get("traceback") or "")))
        row = self._failures.pop(key, None) or {"task": task, "type": kind, "first": now, "count": 0}
        row["count"] += 1
        row.update(
            id=identity, worker=worker, last=now, status=status, traceback=str(event.get("traceback") or "")
        )
        self._failures[key] = row
        if len(self._failures) > FAILURES:
            self._failures.popitem(last=False)

    def count(self, tasks: Mapping[str, TaskCounts]) -> None:
        """Take the counters of all workers, by atask, as they are now."""
        now = self._clock()
        kept = heapq.nlargest(COUNTED, tasks.items(), key=lambda item: item[1].started)
        self._tasks = {name[:TEXT]: task for name, task in kept}
        self._counts.append((now, {name: sum(task.endings.values()) for name, task in self._tasks.items()}))
        while now - self._counts[0][0] > RATE_SECONDS and len(self._counts) > 2:
            self._counts.popleft()

    # -- what goes out

    def snapshot(self) -> Row:
        """The whole state."""
        return self._small() | {"full": True, "calls": list(self._calls.values()), "removed": []}

    def changes(self, since: int) -> Row:
        """The state, of the calls only those that changed after version `since`; all of them where that is too
        long ago."""
        if since < self._cut or since > self.version:
            return self.snapshot()
        calls = [self._calls[identity] for identity, version in self._changed.items() if version > since]
        removed = []
        for version, identity in reversed(self._removed):
            if version <= since:
                break
            removed.append(identity)
        return self._small() | {"full": False, "calls": calls, "removed": removed}

    def _small(self) -> Row:
        now = self._clock()
        for worker in [name for name, row in self._workers.items() if now - row["seen"] > FORGOTTEN]:
            del self._workers[worker]
        running: dict[str, int] = {}
        for row in self._calls.values():
            running[row["task"]] = running.get(row["task"], 0) + 1
        tasks = [self._task(name, running.get(name, 0)) for name in self._tasks]
        tasks.sort(key=lambda row: (-row["failed"], -row["rate"], row["task"]))
        return {
            "version": self.version,
            "since": self.since,
            "now": now,
            "connected": self.connected,
            "reason": self.reason,
            "sample": self.sample,
            "dropped": self.dropped,
            "gaps": self.gaps,
            "unshown": self.unshown,
            "note": self.note,
            "live": len(self._calls),
            "tasks": tasks[:TASKS],
            "workers": [row | {"silent": now - row["seen"] > SILENT} for row in self._workers.values()],
            "queues": self.queues,
            "dead": self.dead,
            "runs": self.runs,
            "runs_note": self.runs_note,
            "failures": list(reversed(self._failures.values())),
            "spans": list(islice(self._spans, max(0, len(self._spans) - 600), None)),
            "wrong": self._wrong(now),
        }

    def _task(self, name: str, running: int) -> Row:
        """The figures of one atask, from the counters of all workers."""
        task = self._tasks[name]
        (first, before), (last, after) = self._counts[0], self._counts[-1]
        rate = (after[name] - before.get(name, 0)) / (last - first) if last > first else 0.0
        return {
            "task": name,
            "running": running,
            "rate": max(rate, 0.0),  # the counts of a worker that has ended are gone with it
            "started": task.started,
            "ended": after[name],
            "failed": sum(number for status, number in task.endings.items() if status not in WELL),
            "p50": task.run.quantile(0.5),
            "p95": task.run.quantile(0.95),
            "wait95": task.wait.quantile(0.95),
        }

    def _wrong(self, now: float) -> list[Row]:
        """List the things that a person should look at first."""
        wrong: list[Row] = []
        if not self.connected:
            wrong.append({"what": "viewer", "text": self.reason or "this page is not connected to the broker yet"})
        for queue in self.queues:
            if queue.get("paused"):
                text = f"queue {queue['queue']} is paused, with {counted(queue['ready'], 'waiting call')}"
                wrong.append({"what": "queue", "id": queue["queue"], "text": text})
            elif not queue.get("consumers") and queue.get("ready"):
                text = f"queue {queue['queue']} has {counted(queue['ready'], 'waiting call')} and no worker"
                wrong.append({"what": "queue", "id": queue["queue"], "text": text})
        for row in self._workers.values():
            if now - row["seen"] > SILENT:
                text = f"worker {row['worker']} has been silent for {now - row['seen']:.0f} s"
                wrong.append({"what": "worker", "id": row["worker"], "text": text})
        for row in reversed(self._failures.values()):
            if now - row["last"] <= RECENT:
                text = f"{row['task']} ended in {row['type']}"
                wrong.append(
                    {"what": "failure", "id": row["id"], "text": text, "count": row["count"], "at": row["last"]}
                )
        limits = {name: _usual(task) for name, task in self._tasks.items()}
        slow = []
        for row in self._calls.values():
            limit = limits.get(row["task"])
            age = now - row.get("started", now)
            if (
                limit is not None and row["state"] == "running" and age > 2 * limit
            ):  # the limit is known within a factor of two
                slow.append((age, limit, row))
        slow.sort(key=lambda item: -item[0])
        for age, limit, row in slow[:5]:
            text = f"{row['task']} has run for {age:.1f} s; 99 of 100 end within {limit:.1f} s"
            wrong.append({"what": "slow", "id": row["id"], "text": text})
        if len(slow) > 5:
            text = f"{counted(len(slow) - 5, 'more call')} running longer than usual"
            wrong.append({"what": "slow", "text": text})
        return wrong


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID


def _cut(event: Mapping[str, Any]) -> Row:
    """The event, with the beginnings of its texts and lists: who sent it may have sent megabytes, and each browser
    gets all of the picture."""
    return {key: _beginning(value, TRACEBACK if key == "traceback" else TEXT) for key, value in event.items()}


def _beginning(value: Any, size: int) -> Any:
    if isinstance(value, str):
        return value[-size:] if size == TRACEBACK else value[:size]
    return [_beginning(item, size) for item in value[:QUEUES]] if isinstance(value, list) else value


def _usual(task: TaskCounts) -> float | None:
    """Seconds within which 99 of 100 runs end; None while too few have ended."""
    found = task.run.quantile(0.99) if task.run.count >= SLOW_SAMPLES else None
    return None if found is None else max(SLOW_SECONDS, found)


def _place(traceback: str) -> str:
    """The last line of a traceback that names a file: failures of one place are one row."""
    return next(
        (line.strip() for line in reversed(traceback.splitlines()) if line.lstrip().startswith("File ")), ""
    )
