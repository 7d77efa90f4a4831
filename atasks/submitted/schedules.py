"""Schedules: atasks that are called again and again, by whichever worker keeps the times."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Struct, structs

from atasks.arrays import UNREADABLE, read_each
from atasks.current import new_call_id
from atasks.errors import AtasksError, NotConnected, NotSupported, UnknownRun
from atasks.options import TaskOptions, validate_name
from atasks.outlast import shield
from atasks.submitted.tries import tries_of, whole
from atasks.timing import Timing
from atasks.transport.records.contract import GENERATION
from atasks.transport.schedules import CallMaker, Schedules
from atasks.wire import RUN_TRIES, plain

if TYPE_CHECKING:
    from atasks.router import Router
    from atasks.transport.contract import Transport
    from atasks.wire import Call

__all__ = ["Clock", "Schedule", "Ticker", "list_schedules", "remove_schedule", "set_schedule"]

T = TypeVar("T")

logger = logging.getLogger("atasks.schedules")

LATE_SECONDS: Final = 60.0
"""A tick that is later than this is missed."""
MAX_MISSED: Final = 100
"""Missed ticks of one schedule that are made later."""
SPAN_SECONDS: Final = 2.0 * 3600
"""The time in which ticks that were missed are looked for at first; then in four times as much, until there are
enough of them."""
LAST_MOMENT: Final = 2.0**37
"""Seconds since 1970: a year that dates can still be told of."""
MAX_ID: Final = 64
MAX_FLAWS: Final = 3
"""Flaws of schedules that a line of the log tells."""
KEEP_SECONDS: Final = 60.0
"""For how long the record of a tick's call is kept at least: nobody else makes that tick meanwhile."""
WRONG_SECONDS: Final = 24 * 3600.0
"""A last tick that is so far in the future was noted by a clock that was wrong."""
LOOK_SECONDS: Final = 10.0
"""Clocks are set, and a word may be missed: nobody sleeps for longer than this."""
END_SECONDS: Final = 2.0
"""Seconds that a turn which has begun may take when its worker drains."""
PAUSE: Final = 1.0
"""Seconds after a failure, before the next try."""
_KEPT: Final = ("queue", "timeout", "delivery", "max_attempts", "priority", "durable", "keep")
"""The options of an atask that its schedule keeps: the worker that keeps the times may not know the atask."""


class Schedule(Struct, kw_only=True):
    """A schedule, as it was found: `await atasks.schedules()`."""

    name: str
    task: str
    every: float | str
    """Seconds, or a cron expression."""
    tz: str
    catch_up: bool
    overlap: str
    defined: bool
    """True if the schedule is that of an `@atask(every=...)`."""
    since: float
    """When it was made, in seconds since 1970."""
    last: float | None = None
    """The time of its last tick, in seconds since 1970."""
    last_id: str | None = None
    """The id of the call that was made then."""
    payload: bytes
    codec: str
    options: dict[str, Any]
    tries: bytes = b""
    """The arguments of the call which makes the tries of one of its calls; empty: there is no `retry`. A leader
    that does not know of this makes the calls themselves, of which each is one try."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what makes no sense: the table may have been written by anybody."""
        validate_name(self.name, "the name of a schedule")
        validate_name(self.task, "the name of an atask")
        with suppress(NotSupported):  # cronsim is missing here, and may be there where the times are kept
            _ = self.timing
        for moment in (self.since, self.last):
            if moment is not None and not 0 <= moment <= LAST_MOMENT:
                raise ValueError(f"{moment!r} is no time of a schedule: seconds since 1970")
        if self.last_id is not None and not (0 < len(self.last_id) <= MAX_ID and plain(self.last_id)):
            raise ValueError("the id of the last call is none")
        if not self.options.keys() <= set(_KEPT):
            raise ValueError(f"the options of a schedule are {', '.join(_KEPT)}")
        TaskOptions().with_changes(self.options)

    @property
    def timing(self) -> Timing:
        """The times of the schedule."""
        return Timing(self.every, self.tz, self.catch_up, self.overlap)  # type: ignore[arg-type]  # it is checked

    @property
    def done(self) -> float:
        """Until when its ticks were made, in seconds since 1970."""
        return self.since if self.last is None else self.last

    @property
    def next(self) -> float | None:
        """The time of its next tick, in seconds since 1970; None: there is none."""
        return self.timing.after(max(time.time(), self.done))

    def is_as(self, other: Schedule) -> bool:
        """Tell whether both are the same but for what has happened so far."""
        return structs.replace(self, since=0.0, last=None, last_id=None) == structs.replace(
            other, since=0.0, last=None, last_id=None
        )


_decoder = msgspec.msgpack.Decoder(Schedule)
Change = Callable[[dict[str, Schedule]], None]


class Clock:
    """The time of day. Tests have one of their own."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return when the event is set, or so many seconds have passed."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass


def schedules_of(router: Router) -> Schedules:
    """Return what keeps the schedules of the namespace. Raises NotConnected, NotSupported."""
    transport = router.transport()
    if transport.schedules is None:
        raise NotSupported(f"{type(transport).__name__} keeps no schedules: connect to RabbitMQ or a hub")
    return transport.schedules


async def _read(store: Schedules) -> tuple[bytes, dict[str, Schedule]]:
    content = await store.read()
    return content, {item.name: item for item in _decoded(content)} if content else {}


_told_of = ""
"""The flaws of the table that was read last, which are in the log."""


def _decoded(content: bytes) -> list[Schedule]:
    """The schedules of a table. One that makes no sense is left out, and goes with the next change: it must cost
    the others nothing. The log says so once, for as long as the same is wrong."""
    global _told_of
    flaws: Counter[str] = Counter()

    def refuse(_: object, error: Exception) -> None:
        flaws[str(error) if len(flaws) < MAX_FLAWS else "others"] += 1

    try:
        found = read_each(content, _decoder.decode, refuse)
    except UNREADABLE as error:
        logger.error("the table of schedules cannot be read, and counts as empty: %s", error)
        return []
    what = "; ".join(f"{number} times {flaw}" for flaw, number in flaws.items())
    if what and what != _told_of:
        logger.error("schedules in the table cannot be used, and are left out: %s", what)
    _told_of = what
    return found


async def _change(store: Schedules, change: Change) -> None:
    """Have the table changed, whoever else changes it meanwhile."""
    while True:
        old, table = await _read(store)
        change(table)
        new = msgspec.msgpack.encode(list(table.values()))
        if new == old or await store.swap(old, new):
            return


async def set_schedule(
    router: Router,
    name: str,
    task: str,
    options: TaskOptions,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    timing: Timing,
    clock: Clock,
) -> None:
    """Keep a schedule of that name. See `atasks.schedule`."""
    store = schedules_of(router)
    new = await _made(router, name, task, options, args, kwargs, timing, clock.now(), defined=False)

    def change(table: dict[str, Schedule]) -> None:
        known = table.get(name)
        if known is None or not known.is_as(new):
            table[name] = new

    await _change(store, change)


async def _made(
    router: CallMaker,
    name: str,
    task: str,
    options: TaskOptions,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    timing: Timing,
    now: float,
    *,
    defined: bool,
) -> Schedule:
    validate_name(name, "the name of a schedule")
    tries = b""
    if options.retry is not None:
        tries = await router.encode_arguments(RUN_TRIES, tries_of(task, options, args, kwargs), {})
    return Schedule(
        name=name,
        task=task,
        every=timing.every,
        tz=timing.tz,
        catch_up=timing.catch_up,
        overlap=timing.overlap,
        defined=defined,
        since=now,
        payload=await router.encode_arguments(task, tuple(args), dict(kwargs)),
        codec=router.codec.name,
        options={option: getattr(options, option) for option in _KEPT},
        tries=tries,
    )


async def remove_schedule(router: Router, name: str) -> bool:
    """Keep no schedule of that name; False: there was none."""
    found: list[bool] = []

    def change(table: dict[str, Schedule]) -> None:
        found.append(table.pop(name, None) is not None)

    await _change(schedules_of(router), change)
    return found[-1]


async def list_schedules(router: Router) -> list[Schedule]:
    """The schedules of the namespace, by name."""
    _, table = await _read(schedules_of(router))
    return sorted(table.values(), key=lambda item: item.name)


class Ticker:
    """Makes the calls of the schedules while its worker is the one that keeps the times.

    A tick is submitted under an id that is the hash of its schedule and its time, so it is made once, although two
    workers may think that they keep the times, or one dies before it has noted the tick.
    """

    def __init__(
        self, router: CallMaker, transport: Transport, store: Schedules, clock: Clock | None = None
    ) -> None:
        self._router = router
        self._transport = transport
        self._store = store
        self._clock = clock or Clock()
        self._news = asyncio.Event()
        self._look = self._news.set

    async def run(self) -> None:
        """Keep the times whenever it is this worker's turn, until cancelled."""
        look = self._look
        try:
            is_table = await self._repeated(lambda: self._store.stand(look))
            await self._repeated(lambda: self._define(is_table))
            while True:
                self._news.clear()
                pause = LOOK_SECONDS
                if self._store.leads(look):
                    pause = await self._uncut(self._turn())
                await self._clock.wait(self._news, pause)
        finally:
            await self._store.withdraw(look)

    async def _uncut(self, turn: Coroutine[Any, Any, float]) -> float:
        """Await a turn to its end, or for some seconds, if it is cancelled: a call that is half submitted would
        hold up those after it until somebody notices."""
        task = asyncio.ensure_future(turn)
        try:
            return await shield(task)
        finally:
            await asyncio.wait([task], timeout=END_SECONDS)
            task.cancel()

    async def _repeated(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        while True:
            try:
                return await attempt()
            except (AtasksError, OSError) as error:
                logger.debug("schedules cannot be used yet: %s", error)
                await asyncio.sleep(PAUSE)

    async def _define(self, is_table: bool) -> None:
        """Keep the schedules that the atasks here have in their definitions, and none that they had before, if
        there is a table that could have these."""
        registry, now = self._router.registry, self._clock.now()
        own: dict[str, Schedule] = {}
        for name in registry.names():
            item = registry.get(name)
            timing = getattr(item, "timing", None)
            if item is not None and timing is not None:
                own[name] = await _made(self._router, name, name, item.options, (), {}, timing, now, defined=True)

        def change(table: dict[str, Schedule]) -> None:
            for name in [
                name for name, known in table.items() if known.defined and known.task in registry.names()
            ]:
                if name not in own:
                    del table[name]
            for name, new in own.items():
                if name not in table or not table[name].is_as(new):
                    table[name] = new

        if own or is_table:
            await _change(self._store, change)

    async def _turn(self) -> float:
        """Make the calls that are due. In how many seconds to look again."""
        try:
            _, table = await _read(self._store)
            now, pause = self._clock.now(), LOOK_SECONDS
            for schedule in table.values():
                if schedule.done > now + WRONG_SECONDS:
                    logger.warning(
                        "schedule %r had its last tick in the future: a clock was wrong; set all clocks right",
                        schedule.name,
                    )
                    await self._note(schedule, now, None)
                pause = min(pause, await self._keep(schedule, now))
        except (AtasksError, OSError) as error:
            logger.warning("this worker cannot keep the times of schedules for now, and tries again: %s", error)
            return PAUSE
        return pause

    async def _keep(self, schedule: Schedule, now: float) -> float:
        """Make the calls of one schedule that are due, whatever keeps it from that, and return in how many seconds
        to look at it again. Raises OSError, or NotConnected, if the others cannot be kept either."""
        try:
            await self._make(schedule, now)
            upcoming = schedule.timing.after(max(now, schedule.done))
        except (OSError, NotConnected):
            raise
        except (AtasksError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            logger.warning(
                "the calls of schedule %r cannot be made for now, and are tried again: %s", schedule.name, error
            )
            return PAUSE
        return LOOK_SECONDS if upcoming is None else max(upcoming - self._clock.now(), 0.0)

    async def _make(self, schedule: Schedule, now: float) -> None:
        due = _due(schedule, now)
        if not due:
            return
        if not schedule.catch_up:
            due = [due[-1]]
        call_id = schedule.last_id
        for tick in due[-MAX_MISSED:]:
            if not schedule.catch_up and now - tick > LATE_SECONDS:
                logger.warning(
                    "schedule %r missed a tick, %.0f s ago: no worker kept the times", schedule.name, now - tick
                )
            elif schedule.overlap == "skip" and await self._goes_on(call_id):
                logger.info("schedule %r skips a tick: the call of the one before has not ended", schedule.name)
            else:
                call_id = await self._submit(schedule, tick) or call_id
        await self._note(schedule, due[-1], call_id)

    async def _note(self, schedule: Schedule, last: float, call_id: str | None) -> None:
        """Put into the table what was done, unless the schedule is another one by now."""

        def change(table: dict[str, Schedule]) -> None:
            known = table.get(schedule.name)
            if known is not None and known.since == schedule.since and known.is_as(schedule):
                known.last, known.last_id = last, call_id

        await _change(self._store, change)
        schedule.last, schedule.last_id = last, call_id

    async def _goes_on(self, call_id: str | None) -> bool:
        """Tell whether that call waits or runs."""
        records = self._transport.records
        if call_id is None or records is None:
            return False
        try:
            record = await records.read(call_id)
        except UnknownRun:
            return False
        records.see_to(record)  # a call that is lost would keep all ticks after it from being made
        return record.ending is None

    async def _submit(self, schedule: Schedule, tick: float) -> str | None:
        """Have the call of a tick run; its id, whoever has submitted it. None: a middleware does not want it."""
        records = self._transport.records
        assert records is not None, "what keeps schedules keeps records"
        options = TaskOptions().with_changes({**schedule.options, "orphan": "run", "batch": False})
        options = options.with_changes({"keep": max(options.keep or 0.0, KEEP_SECONDS)})
        if schedule.tries:
            options = whole(options)
        digest = blake2b(f"{schedule.name}\0{tick:.6f}".encode(), digest_size=16).hexdigest()

        call_id = f"{digest}{GENERATION}{new_call_id()[:12]}"

        async def begin(call: Call) -> str:
            call.id = call_id
            return await records.begin(call, options, named=schedule.task)

        try:
            return await self._router.submit_encoded(
                schedule.task,
                schedule.tries or schedule.payload,
                schedule.codec,
                options,
                self._transport,
                begin,
                call_id,
                tries=bool(schedule.tries),
            )
        except (AtasksError, OSError, msgspec.MsgspecError):
            raise
        except Exception:
            logger.exception("schedule %r has lost a tick: a middleware raised", schedule.name)
            return None


def _due(schedule: Schedule, now: float) -> list[float]:
    """The ticks until now that were not made; more than `MAX_MISSED` of them, and not all, if there are many.
    A cron expression does not say how far apart its ticks are, and it may have had no worker for years."""
    earliest, span = _earliest(schedule, now), SPAN_SECONDS
    while True:
        begin = max(earliest, now - span)
        due = list(takewhile(lambda tick: tick <= now, schedule.timing.ticks(begin)))
        if begin == earliest or len(due) > MAX_MISSED:
            return due
        span *= 4


def _earliest(schedule: Schedule, now: float) -> float:
    """From where on to look for ticks: not for all that a short period has missed in a long time."""
    begin = schedule.done
    if schedule.catch_up:
        if isinstance(schedule.every, str):
            return begin
        return max(begin, now - (MAX_MISSED + 1) * schedule.every)
    return max(begin, now - LATE_SECONDS - (0.0 if isinstance(schedule.every, str) else schedule.every))
