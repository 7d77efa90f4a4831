"""`atasks doctor`: the checks of a fleet, and the faults that they find."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import click

from atasks.tracking.queries import CallInfo, WorkerInfo
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.shown import clean, show_json

__all__ = ["COMMANDS", "differences"]

CLOCK_SECONDS = 5.0
"""By how much the clock of a worker may differ from this one."""


@click.command("doctor")
@fleet_command
@click.option("--queue", "queues", metavar="Q", multiple=True, help="A queue that needs workers; may be repeated.")
def doctor_command(place: Place, queues: tuple[str, ...]) -> int:
    """Find what is wrong with a fleet; exit code 1 if something is.

    It finds workers with another codec or version than most, clocks that are 5 s and more apart, queues without
    workers (those of --queue, and those that running calls await), and a user whom the broker does not permit
    what a caller needs.
    """

    async def look() -> list[str]:
        async with place.fleet() as fleet:
            began = time.time()
            infos = await fleet.workers()
            calls = await fleet.calls()
            problems = differences(infos, began, time.time())
            served = {queue for info in infos for queue in info.queues}
            problems += _unserved(sorted({*queues} - served), calls.queued, served)
            known = served | {*queues} | {call.queue for call in calls.queued}
            problems += [
                f"queue {queue!r} is paused: resume it (atasks resume {queue})"
                for queue in await fleet.paused(sorted(known))
            ]
            return problems

    try:
        problems = run_on(look)
    except CommandError as error:
        if error.exit is not Exit.REFUSED:
            raise
        problems = [f"{error}: docs/security.md says what a user must be permitted"]
    if place.as_json:
        show_json({"problems": problems})
    else:
        for problem in problems:
            click.echo(clean(problem))
        if not problems:
            say("nothing is wrong, as far as the workers and the broker tell")
    return Exit.FAILED if problems else Exit.OK


def differences(infos: Sequence[WorkerInfo], asked: float, answered: float) -> list[str]:
    """Return the differences between the workers. They were asked and had answered at these times (wall clock)."""
    if not infos:
        return ["no worker has answered: start one (atasks run MODULE --mode server)"]
    problems: list[str] = []
    for what, values in (
        ("codec", {info.id: info.codec for info in infos}),
        ("version of atasks", {info.id: info.version for info in infos}),
    ):
        usual = Counter(values.values()).most_common(1)[0][0]
        problems += [
            f"worker {name} has {what} {value!r}, and most have {usual!r}: start it with the same"
            for name, value in values.items()
            if value != usual
        ]
    for info in infos:
        off = info.now - answered if info.now > answered else min(info.now - asked, 0.0)
        if abs(off) >= CLOCK_SECONDS:
            problems.append(
                f"the clock of worker {info.id} on {info.host} is {off:+.1f} s from this one: set both right (NTP)"
            )
    return problems


def _unserved(wanted: Sequence[str], queued: Sequence[CallInfo], served: set[str]) -> list[str]:
    waiting = Counter(call.queue for call in queued if call.queue not in served)
    found = {**dict.fromkeys(wanted, 0), **waiting}
    return [
        f"queue {queue!r} has no workers{f', and {count} calls wait' if count else ''}: start some for it"
        for queue, count in found.items()
    ]


COMMANDS = (doctor_command,)
