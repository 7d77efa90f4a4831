"""Commands about the workers of a fleet: `ping`, `inspect`."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from atasks.tracking.queries import Pong, WorkerInfo
from atasks.wire import counted
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.shown import age, clean, show_json, show_table

__all__ = ["COMMANDS", "clock_offset"]


def clock_offset(info: WorkerInfo, asked: float, answered: float) -> float:
    """Return by how many seconds the clock of the worker is ahead of this one, at least. It was asked, and had
    answered, at these times (wall clock)."""
    return info.now - answered if info.now > answered else min(info.now - asked, 0.0)


@click.command("ping")
@fleet_command
@click.option("--queue", metavar="Q", default="", help="Only workers of this queue.")
def ping_command(place: Place, queue: str) -> int:
    """Say which workers are there. Ends with exit code 1 if nobody answers, or fewer than --expect."""

    async def look() -> dict[str, Pong]:
        async with place.fleet() as fleet:
            return await fleet.ping(queue=queue, expect=place.expect)

    found = run_on(look)
    if place.as_json:
        show_json(found)
    else:
        rows = [
            (
                name,
                pong.host,
                str(pong.pid),
                pong.version,
                ",".join(pong.queues),
                "draining" if pong.draining else "",
            )
            for name, pong in sorted(found.items())
        ]
        show_table(("WORKER", "HOST", "PID", "VERSION", "QUEUES", "STATE"), rows)
    if len(found) < (place.expect or 1):
        expected = f", and {place.expect} were expected" if place.expect else ""
        say(f"{counted(len(found), 'worker')} answered within {place.timeout:g} s{expected}")
        return Exit.FAILED
    return Exit.OK


@click.command("inspect")
@click.argument("worker", metavar="[WORKER]", default="")
@fleet_command
def inspect_command(place: Place, worker: str) -> int:
    """Show a worker, or all of them: versions, queues, what runs there, and the counts of each atask."""

    asked = answered = 0.0

    async def look() -> tuple[list[WorkerInfo], list[str]]:
        nonlocal asked, answered
        async with place.fleet() as fleet:
            asked = time.time()
            infos = await fleet.workers(worker=worker)
            answered = time.time()
            return infos, await fleet.paused(sorted({queue for info in infos for queue in info.queues}))

    found, paused = run_on(look)
    if worker and not found:
        raise CommandError(Exit.FAILED, f"worker {worker!r} does not answer: atasks ping lists those that do")
    if place.as_json:
        show_json([_with_paused(info, paused) for info in found])
        return Exit.OK
    for index, info in enumerate(found):
        if index:
            click.echo("")
        _show(info, paused, clock_offset(info, asked, answered))
    if not found:
        say("no worker has answered")
    return Exit.OK


def _with_paused(info: WorkerInfo, paused: list[str]) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(info)
    return content | {"paused": [queue for queue in info.queues if queue in paused]}


def _show(info: WorkerInfo, paused: list[str], offset: float) -> None:
    state = ", draining" if info.draining else ""
    queues = [f"{queue} (paused)" if queue in paused else queue for queue in info.queues]
    lines = {
        "worker": f"{info.id}{state}",
        "process": f"{info.pid} on {info.host}, up for {age(info.uptime)}",
        "versions": f"atasks {info.version}, Python {info.python}, codec {info.codec}",
        "queues": f"{', '.join(queues)} of namespace {info.namespace}, by {info.transport}",
        "calls": f"{info.running} running, {info.parked} parked, {info.waiting} waiting, {info.concurrency} slots",
        "event loop": f"{age(info.loop_lag)} for a turn",
        "clock": f"{offset:+.1f} s from this one",
        "refused": ", ".join(
            f"{number} {reason}" for reason, number in ({"unreadable": info.bad} | info.refused).items() if number
        )
        or "nothing",
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':12}{clean(value)}")
    rows = [
        (
            task.task,
            str(task.received),
            str(task.started),
            " ".join(f"{name}={number}" for name, number in task.endings.items()),
            age(task.wait.quantile(0.5)),
            age(task.wait.quantile(0.95)),
            age(task.run.quantile(0.5)),
            age(task.run.quantile(0.95)),
        )
        for task in info.tasks
    ]
    if rows:
        show_table(("ATASK", "RECEIVED", "STARTED", "ENDED", "WAIT P50", "P95", "RUN P50", "P95"), rows)


COMMANDS = (ping_command, inspect_command)
