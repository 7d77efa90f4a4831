"""Commands that show a fleet while it works: `watch`, `top`, `timeline`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import IO, Any, Final

import click
import msgspec

from atasks.tracking import TaskCounts
from atasks.tracking.fleet import Heard
from atasks.tracking.queries import KINDS, WorkerInfo
from atasks.tracking.snapshots import total
from atasks.wire import counted
from atasks_cli.durations import Finite, Seconds
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.shown import age, clean, harmless, in_terminal, short, show_json, show_table

__all__ = ["COMMANDS", "trace_of"]

NICE: Final = 10
"""By how much commands that look at a fleet all the time give way to it, where they share its processors."""
SPANS: Final = ("started", "parked", "resumed", "ended")
encode_json = msgspec.json.Encoder().encode
MAX_EVENTS: Final = 1_000_000
"""Events of one timeline."""


async def _follow(
    place: Place, kinds: Iterable[str], sample: float, seconds: float | None, take: Callable[[list[Heard]], bool]
) -> None:
    """Hand on what happens, for so many seconds; None: until this is cancelled, or `take` returns False."""
    _give_way()
    async with place.fleet() as fleet, aclosing(fleet.watch_together(list(kinds), sample=sample)) as turns:
        say(f"watching namespace {place.namespace!r}; Ctrl-C to end")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for together in turns:
                    if not take(together):
                        return


def _give_way() -> None:
    """Leave the processors to workers of the same machine, if there are some: they are slowed by nothing else."""
    with contextlib.suppress(AttributeError, OSError):  # there is no such thing here, or it is forbidden
        os.nice(NICE)


@click.command("watch")
@fleet_command
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only this kind; may be repeated.")
@click.option("--sample", metavar="PART", type=Finite(0, 1), default=1.0, help="This part of the trees.")
@click.option("--for", "seconds", metavar="AGE", type=Seconds(), help="End after this time: 10s, 5m.")
def watch_command(place: Place, kinds: tuple[str, ...], sample: float, seconds: float | None) -> int:
    """Write what happens, as it happens: a line for each event, until Ctrl-C. With --json, a JSON document each.

    Workers tell of events only while somebody watches. A tree of calls is watched whole or not at all.
    """

    line_of = _json_line if place.as_json else _line

    def take(together: list[Heard]) -> bool:
        missed = sum(heard.missed for heard in together)
        if missed:
            say(f"{missed} events were missed")
        click.echo(b"\n".join([line_of(heard) for heard in together]))
        return True

    with contextlib.suppress(KeyboardInterrupt):
        run_on(lambda: _follow(place, kinds or KINDS, sample, seconds, take))
    return Exit.OK


def _json_line(heard: Heard) -> bytes:
    return harmless(b'{"worker":' + encode_json(heard.worker) + b"," + encode_json(heard.event)[1:]).encode()


def _line(heard: Heard) -> bytes:
    event = heard.event
    at = time.strftime("%H:%M:%S", time.localtime(event.at)) + f".{int(event.at * 1000) % 1000:03}"
    words = [event.status, event.error, age(event.ran) if event.ran is not None else "", event.progress]
    rest = "".join(f" {word}" for word in words if word)
    return clean(f"{at} {event.kind:10} {event.task} {short(event.id)}{rest} at {heard.worker}").encode()


@click.command("timeline")
@fleet_command
@click.option(
    "-o", "output", metavar="FILE", required=True, type=click.File("w", lazy=False), help="Where to write."
)
@click.option(
    "--for", "seconds", metavar="AGE", type=Seconds(), help="Watch for this time. Default: until Ctrl-C."
)
@click.option("--sample", metavar="PART", type=Finite(0, 1), default=1.0, help="This part of the trees.")
def timeline_command(place: Place, output: IO[str], seconds: float | None, sample: float) -> int:
    """Watch what runs where, and write it as a trace: browsers' trace viewers (ui.perfetto.dev) open it."""
    found: list[Heard] = []
    missed = 0

    def take(together: list[Heard]) -> bool:
        nonlocal missed
        missed += sum(heard.missed for heard in together)
        found.extend(together)
        return len(found) < MAX_EVENTS

    with contextlib.suppress(KeyboardInterrupt):
        run_on(lambda: _follow(place, SPANS, sample, seconds, take))
    try:
        output.write(json.dumps(trace_of(found)))
        output.flush()
    except OSError as error:
        raise CommandError(Exit.FAILED, f"{output.name} cannot be written: {error.strerror}") from error
    say(f"{output.name} has {counted(len(found), 'event')}{f'; {missed} more were missed' if missed else ''}")
    if place.as_json:
        show_json({"file": output.name, "events": len(found), "missed": missed})
    return Exit.OK


def trace_of(found: Iterable[Heard]) -> dict[str, Any]:
    """Events as a trace of Chrome's format: a process for each worker, a row for each call that runs at a time."""
    workers: dict[str, int] = {}
    rows: dict[int, list[str | None]] = {}
    begun: dict[tuple[str, str], tuple[int, str, float]] = {}
    events: list[dict[str, Any]] = []
    for heard in found:
        event, worker = heard.event, heard.worker
        if worker not in workers:
            workers[worker] = pid = len(workers) + 1
            rows[pid] = []
            events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": worker}})
        pid, key = workers[worker], (worker, event.id)
        if key in begun:
            row, state, since = begun.pop(key)
            events.append(
                {
                    "ph": "X",
                    "name": event.task if state == "runs" else f"{event.task} (parked)",
                    "cat": state,
                    "pid": pid,
                    "tid": row + 1,
                    "ts": since * 1e6,
                    "dur": max((event.at - since) * 1e6, 0.0),
                    "args": {"id": event.id, "root": event.root, "status": event.status, "error": event.error},
                }
            )
            if event.kind == "ended":
                rows[pid][row] = None
                continue
        elif event.kind != "started":
            continue
        else:
            row = _row(rows[pid], event.id)
        begun[key] = row, "parked" if event.kind == "parked" else "runs", event.at
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _row(rows: list[str | None], call_id: str) -> int:
    """The first row that is free."""
    for index, used in enumerate(rows):
        if used is None:
            rows[index] = call_id
            return index
    rows.append(call_id)
    return len(rows) - 1


@click.command("top")
@fleet_command
@click.option("--every", metavar="AGE", type=Seconds(), default=1.0, help="Look so often.")
@click.option(
    "--rounds", metavar="N", type=click.IntRange(min=1), help="Look so often in all. Default: until Ctrl-C."
)
def top_command(place: Place, every: float, rounds: int | None) -> int:
    """Show what a fleet does, again each second: workers, and each atask's rate, times and failures."""

    async def follow() -> None:
        async with place.fleet() as fleet:
            before: tuple[float, dict[str, TaskCounts]] | None = None
            _give_way()
            number = 0
            while rounds is None or number < rounds:
                began = time.monotonic()
                infos = await fleet.workers()
                tasks = total(task for info in infos for task in info.tasks)
                names = sorted({queue for info in infos for queue in info.queues})
                queues, paused = await fleet.queue_states(names), await fleet.paused(names)
                now = time.monotonic()
                _show(place, infos, tasks, queues, paused, before, now)
                before = now, tasks
                number += 1
                if number != rounds:
                    await asyncio.sleep(max(every - (time.monotonic() - began), 0.0))

    with contextlib.suppress(KeyboardInterrupt):
        run_on(follow)
    return Exit.OK


FAILURES: Final = ("raised", "timed_out", "worker_lost", "failed", "unknown_task", "decode_error", "encode_error")


def _show(
    place: Place,
    infos: list[WorkerInfo],
    tasks: dict[str, TaskCounts],
    queues: dict[str, tuple[int, int]],
    paused: list[str],
    before: tuple[float, dict[str, TaskCounts]] | None,
    now: float,
) -> None:
    if place.as_json:
        show_json(
            {
                "workers": infos,
                "tasks": list(tasks.values()),
                "queues": {
                    name: {"ready": ready, "consumers": users, "paused": name in paused}
                    for name, (ready, users) in queues.items()
                },
            }
        )
        return
    if in_terminal():
        click.clear()
    running, parked, waiting = (
        sum(getattr(info, name) for info in infos) for name in ("running", "parked", "waiting")
    )
    slots = sum(info.concurrency for info in infos)
    click.echo(
        f"{time.strftime('%H:%M:%S')}  {counted(len(infos), 'worker')}, {counted(slots, 'slot')}: "
        f"{running} running, {parked} parked, {waiting} waiting"
    )
    if queues:
        click.echo("")
        show_table(
            ("QUEUE", "READY", "CONSUMERS", "STATE"),
            [
                (name, str(ready), str(users), "paused" if name in paused else "" if users else "no workers")
                for name, (ready, users) in queues.items()
            ],
        )
    click.echo("")
    rows = []
    for task in sorted(tasks.values(), key=lambda item: -item.started):
        ended = sum(task.endings.values())
        rate = "-"
        if before is not None and task.task in before[1]:
            rate = f"{(ended - sum(before[1][task.task].endings.values())) / max(now - before[0], 1e-3):.1f}/s"
        failures = sum(task.endings.get(name, 0) for name in FAILURES)
        times = [age(times.quantile(share)) for times in (task.wait, task.run) for share in (0.5, 0.95)]
        rows.append((task.task, rate, str(ended), str(failures), *times))
    show_table(("ATASK", "RATE", "ENDED", "FAILED", "WAIT P50", "P95", "RUN P50", "P95"), rows)
    click.echo("")
    show_table(
        ("WORKER", "RUNNING", "PARKED", "WAITING", "SLOTS", "LOOP", "UP"),
        [
            (
                info.id,
                str(info.running),
                str(info.parked),
                str(info.waiting),
                str(info.concurrency),
                age(info.loop_lag),
                age(info.uptime),
            )
            for info in infos
        ],
    )


COMMANDS = (watch_command, top_command, timeline_command)
