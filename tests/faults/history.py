"""Histories of tests: runs, as workers put them on record, and endings of awaits; and if the two fit together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

from atasks import ATask, AtasksError, CallConnectionLost, CallTimeout, WorkerLost, current_call
from tests.waiting import DEADLINE

__all__ = ["Await", "Delivery", "History", "Recorder", "RunRecord", "begun_again", "settled"]

Delivery = Literal["at_least_once", "at_most_once"]


class Recorder:
    """The worker's pen. A line is written with one system call to a file that is opened for appending, so lines of
    several processes do not mix, and what is written survives the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._pid = os.getpid()
        self._running = 0
        self._peak = 0

    def close(self) -> None:
        os.close(self._file)

    def _write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    @contextlib.contextmanager
    def run(self, key: str) -> Iterator[None]:
        """Put a run on record: that it starts, and how it ends."""
        call = current_call()
        self._write("start", key, call.id, call.attempt, self._pid, time.monotonic())
        try:
            with self.counted():
                yield
        except asyncio.CancelledError:
            self._write("cancelled", key, call.id, call.attempt, self._pid, time.monotonic())
            raise
        except BaseException:
            self._write("raised", key, call.id, call.attempt, self._pid, time.monotonic())
            raise
        else:
            self._write("end", key, call.id, call.attempt, self._pid, time.monotonic())

    def safe(self, name: str) -> None:
        """Put on record that the end of a call, by its id, or of a local step, by its key, is safe."""
        self._write("safe", name, time.monotonic())

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a run among those that run at once in this process, and put the highest count on record."""
        self._up()
        try:
            yield
        finally:
            self._running -= 1

    @contextlib.contextmanager
    def parked(self) -> Iterator[None]:
        """Do not count a run meanwhile."""
        self._running -= 1
        try:
            yield
        finally:
            self._up()

    def _up(self) -> None:
        self._running += 1
        if self._running > self._peak:
            self._peak = self._running
            self._write("peak", self._peak, self._pid)


@dataclass
class RunRecord:
    """A run that was started."""

    key: str
    call_id: str
    attempt: int
    pid: int
    began: float = 0.0
    """By the monotonic clock of the machine."""
    ended: float = 0.0
    ending: str | None = None
    """"end", "raised" or "cancelled"; None: it was cut off, or still runs."""


class _Resent(logging.Handler):
    """Counts the calls that are sent again."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        self._counts.update(re.findall(r", call (\S+) is sent again", record.getMessage()))


class Await(NamedTuple):
    """An await that has ended."""

    key: str
    delivery: Delivery
    value: Any
    error: BaseException | None


class _Records(NamedTuple):
    runs: list[RunRecord]
    peaks: dict[int, int]
    safe: dict[str, float]


@dataclass
class History:
    """Makes calls with keys and nonces of their own, and notes how each await ends."""

    path: Path
    """The file where workers put their runs on record."""
    awaits: list[Await] = field(default_factory=list)
    made: dict[str, Delivery] = field(default_factory=dict)
    nonces: dict[str, str] = field(default_factory=dict)
    resent: Counter[str] = field(default_factory=Counter)
    """Call id -> how often this process sent it again, as far as it was `listening`."""

    # -- calls

    async def call(
        self, task: ATask[..., Any], *args: Any, key: str | None = None, raises: bool = False, **options: Any
    ) -> Await:
        """Await `task.options(**options)(key, nonce, *args)` and note how it ended. Library errors and the atask's
        own are noted and not raised; a CancelledError is noted and raised."""
        delivery: Delivery = options.get("delivery", "at_least_once")
        key = key or uuid.uuid4().hex
        assert key not in self.made, "every call has a key of its own"
        self.made[key] = delivery
        nonce = self.nonces[key] = uuid.uuid4().hex
        value: Any = None
        error: BaseException | None = None
        try:
            value = await task.options(**options)(key, nonce, *args)
        except asyncio.CancelledError as cancelled:
            self.awaits.append(Await(key, delivery, None, cancelled))
            raise
        except Exception as raised:
            error = raised
        ended = Await(key, delivery, value, error)
        self.awaits.append(ended)
        return ended

    def start(self, count: int, task: ATask[..., Any], *args: Any, **options: Any) -> list[asyncio.Task[Await]]:
        """Start `count` calls at once."""
        return [asyncio.create_task(self.call(task, *args, **options)) for _ in range(count)]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count the calls that this process sends again, as its log tells."""
        logger = logging.getLogger("atasks.amqp")
        level, handler = logger.level, _Resent(self.resent)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    # -- what workers put on record

    def _records(self) -> _Records:
        runs: list[RunRecord] = []
        peaks: dict[int, int] = {}
        safe: dict[str, float] = {}
        live: dict[tuple[str, str, str, str], list[RunRecord]] = {}
        text = self.path.read_text() if self.path.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines():  # a line that is being written is for the next look
            word, *rest = line.split()
            if word == "peak":
                peaks[int(rest[1])] = int(rest[0])
                continue
            if word == "safe":
                safe.setdefault(rest[0], float(rest[1]))
                continue
            key, call_id, attempt, pid, *times = rest
            at = float(times[0]) if times else 0.0
            identity = (key, call_id, attempt, pid)
            if word == "start":
                run = RunRecord(key, call_id, int(attempt), int(pid), at)
                runs.append(run)
                live.setdefault(identity, []).append(run)
            else:
                run = live[identity].pop(0)
                run.ending, run.ended = word, at
        return _Records(runs, peaks, safe)

    def runs(self, key: str | None = None) -> list[RunRecord]:
        """The runs so far, of one call or of all, in the order of their starts."""
        return [run for run in self._records().runs if key in (None, run.key)]

    def safe(self) -> dict[str, float]:
        """When the end of a call, by its id, or of a local step, by its key, became safe, if it is on record."""
        return self._records().safe

    def peaks(self) -> dict[int, int]:
        """Process -> the most calls that ran in it at once, parked ones not counted."""
        return self._records().peaks

    def started(self) -> int:
        """The number of runs that have started."""
        return len(self._records().runs)

    # -- the checks

    def check(self) -> None:
        """Every promise that holds whatever failed; all breaches are named at once.

        Every await ended once. No result belongs to another call. A value, and an exception of the atask's own,
        come from a run that got there. At-most-once calls ran at most once. Each attempt was started at most once,
        and `WorkerLost(attempts=n)` means at most n runs; runs that were cancelled and given back do not count. A
        worker process does not run a call that it runs, or that it has finished, again.

        Each time that the caller sent a call again, not knowing whether it had arrived, allows for one run more.
        """
        problems = [f"{key}: {problem}" for key, problem in self.breaches()]
        assert not problems, f"{len(problems)} breaches\n" + "\n".join(problems[:20])

    def breaches(self) -> list[tuple[str, str]]:
        """The breaches that `check` finds: the keys of calls, and what is wrong with them."""
        problems: list[tuple[str, str]] = []
        endings = Counter(ended.key for ended in self.awaits)
        problems += [(key, f"the await ended {endings[key]} times") for key in self.made if endings[key] != 1]
        runs: dict[str, list[RunRecord]] = {}
        for run in self.runs():
            runs.setdefault(run.key, []).append(run)
        problems += [(key, "ran and was never called") for key in runs if key not in self.made]
        for ended in self.awaits:
            mine = runs.get(ended.key, [])
            problems += [(ended.key, f"{problem} ({_show(ended, mine)})") for problem in self._check(ended, mine)]
        return problems

    def _check(self, ended: Await, runs: list[RunRecord]) -> Iterator[str]:
        if len({run.call_id for run in runs}) > 1:
            yield "ran under several call ids"
        if ended.delivery == "at_most_once" and len(runs) > 1:
            yield f"at most once, and ran {len(runs)} times"
        charged = [run for run in runs if run.ending != "cancelled"]
        more = max((self.resent[run.call_id] for run in runs), default=0)
        if isinstance(ended.error, WorkerLost) and len(charged) > ended.error.attempts + more:
            yield f"WorkerLost({ended.error.attempts}) after {len(charged)} runs, sent again {more} times"
        for attempt, count in Counter(run.attempt for run in charged).items():
            if count > 1 + more:
                yield f"attempt {attempt} was started {count} times, sent again {more} times"
        yield from self._check_ending(ended, runs)
        pids = Counter(run.pid for run in charged)
        for pid, count in pids.items():
            if count > 1:
                yield f"worker {pid} ran it {count} times"

    def _check_ending(self, ended: Await, runs: list[RunRecord]) -> Iterator[str]:
        error = ended.error
        if error is None:
            if not isinstance(ended.value, tuple) or ended.value[:2] != (ended.key, self.nonces[ended.key]):
                yield "has the result of another call"
            elif not any(run.pid == ended.value[2] and run.ending == "end" for run in runs):
                yield "has a value that no run returned"
        elif isinstance(error, CallConnectionLost):
            if ended.delivery != "at_most_once":
                yield "at least once, and ended in CallConnectionLost"
        elif not isinstance(error, (AtasksError, asyncio.CancelledError)):
            if type(error).__name__ != "Failed":
                yield f"ended in a foreign error {error!r}"
            elif error.args != (ended.key, self.nonces[ended.key]):
                yield "has the exception of another call"
            elif not any(run.ending == "raised" for run in runs):
                yield "has an exception that no run raised"

    def completed(self) -> None:
        """Every await so far ended in a value."""
        failed = [ended for ended in self.awaits if ended.error is not None]
        assert not failed, f"{len(failed)} of {len(self.awaits)} did not complete; the first: {failed[0]!r}"

    def errors(self) -> Counter[str]:
        """The number of awaits that ended in each error; "value" counts the others."""
        return Counter("value" if item.error is None else type(item.error).__name__ for item in self.awaits)


def begun_again(runs: Iterable[RunRecord], safe: Mapping[str, float], times: int = 1) -> list[RunRecord]:
    """Those of the runs of a step that began although its end was safe. `safe`: call id -> when the broker had
    confirmed the reply, as its worker put it on record. An end that is not on record there may have been lost with
    its worker. `times`: so many calls are made of this step."""
    ends = sorted(safe.values())
    over = ends[times - 1] if len(ends) >= times else inf
    return [run for run in runs if run.began > min(over, safe.get(run.call_id, inf))]


def _show(ended: Await, runs: list[RunRecord]) -> str:
    lines = ", ".join(f"attempt {run.attempt} in {run.pid}: {run.ending or 'cut off'}" for run in runs)
    return f"{ended.delivery}, error {ended.error!r}, runs: {lines or 'none'}"


async def settled(
    awaitable: Awaitable[Any] | Coroutine[Any, Any, Any], what: str, timeout: float = DEADLINE
) -> Any:
    """The result of what must end by itself: an AssertionError if it hangs."""
    try:
        async with asyncio.timeout(timeout):
            return await awaitable
    except CallTimeout:
        raise
    except TimeoutError:
        raise AssertionError(f"{what} hangs: not done after {timeout:g} s") from None
