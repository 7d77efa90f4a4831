"""`atasks doctor`: the checks of a fleet, and the faults that they find."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from atasks.namespaces import namespaces
from atasks.tracking.fleet import Fleet
from atasks.tracking.queries import CallInfo, WorkerInfo
from atasks.tracking.waits import cycles
from atasks.wire import counted
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.shown import clean, show_json
from atasks_cli.workers import clock_offset

if TYPE_CHECKING:
    from atasks.transport.backends.amqp import AMQPTransport

__all__ = ["COMMANDS", "differences"]

CLOCK_SECONDS = 5.0
"""By how much the clock of a worker may differ from this one."""


@click.command("doctor")
@fleet_command
@click.option("--queue", "queues", metavar="Q", multiple=True, help="A queue that needs workers; may be repeated.")
@click.option(
    "--management",
    metavar="URL",
    help="The HTTP API of RabbitMQ's management plugin. Default: port 15672 of the broker's host, if it answers.",
)
def doctor_command(place: Place, queues: tuple[str, ...], management: str | None) -> int:
    """Find what is wrong with a fleet; exit code 1 if something is.

    It finds workers with another codec or version than most, clocks that are 5 s and more apart, queues without
    workers (those of --queue, and those that running calls await), paused ones, calls that wait for each other,
    policies of the broker that take calls away, and a user whom the broker does not permit what workers need. What
    it could not look at it says.
    """

    from atasks.transport.backends.amqp import AMQPTransport  # the other commands are there sooner without it

    async def look() -> tuple[list[str], list[str]]:
        async with place.transport() as transport:
            fleet = Fleet(transport, place.timeout, place.expect)
            began = time.time()
            infos = await fleet.workers()
            calls = await fleet.calls()
            problems = differences(infos, began, time.time())
            served = {queue for info in infos for queue in info.queues}
            problems += _unserved(sorted({*queues} - served), calls.queued, served)
            problems += _deadlocks(calls.calls)
            known = sorted(served | {*queues} | {call.queue for call in calls.queued})
            for queue in await fleet.paused(known):
                problems.append(f"queue {queue!r} is paused: resume it (atasks resume {queue})")
            if not isinstance(transport, AMQPTransport):
                return problems, []
            found, unseen = await _at_broker(transport, place.url, management, known or [transport.queue])
            return problems + found, unseen

    unseen: list[str] = []
    try:
        problems, unseen = run_on(look)
    except CommandError as error:
        if error.exit is not Exit.REFUSED:
            raise
        problems = [f"{error}: {_permitted(place.url, place.prefix)}"]
    if place.as_json:
        show_json({"problems": problems, "unseen": unseen})
    else:
        for problem in problems:
            click.echo(clean(problem))
        for text in unseen:
            say(f"not looked at: {text}")
        if not problems:
            say("nothing is wrong, as far as the workers and the broker tell")
    return Exit.FAILED if problems else Exit.OK


def _permitted(url: str, prefix: str | None) -> str:
    """The advice for a user whom the broker has refused."""
    from atasks.transport.backends.amqp import AMQPTransport

    try:
        checks = AMQPTransport.from_url(url, "doctor", {} if prefix is None else {"prefix": prefix}).checks
    finally:
        namespaces.unregister("doctor")
    return f"docs/security.md says what a user must be permitted; what a worker needs: {checks.permission()}"


async def _at_broker(
    transport: AMQPTransport, url: str, management: str | None, queues: list[str]
) -> tuple[list[str], list[str]]:
    """Return what is wrong at the broker, and what could not be looked at there."""
    from atasks_cli.policies import Unseen, faults, read_policies

    checks, problems, unseen = transport.checks, [], []
    try:
        policies = await asyncio.to_thread(read_policies, url, management, checks.virtual_host)
        problems += faults(policies, checks.names(queues))
    except Unseen as error:
        if management is not None:
            problems.append(str(error))
        look = f"rabbitmqctl list_policies -p {checks.virtual_host}"
        unseen.append(
            f"the policies of the broker, as {error}: give --management URL, or look yourself ({look}). What was "
            "tried: whether 200 messages stay for 1.5 s in queues with names like those of the fleet"
        )
    for queue in queues:
        found = await checks.probe(queue, fill=bool(unseen))
        problems += [problem for problem in found if problem not in problems]
        if any("may not" in problem for problem in found):
            break  # it is the same for the others
    return problems, unseen


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
        off = clock_offset(info, asked, answered)
        if abs(off) >= CLOCK_SECONDS:
            problems.append(
                f"the clock of worker {info.id} on {info.host} is {off:+.1f} s from this one: set both right (NTP)"
            )
    return problems


def _unserved(wanted: Sequence[str], queued: Sequence[CallInfo], served: set[str]) -> list[str]:
    waiting = Counter(call.queue for call in queued if call.queue not in served)
    found = {**dict.fromkeys(wanted, 0), **waiting}
    waits = {queue: f"{counted(count, 'waiting call')} and " if count else "" for queue, count in found.items()}
    return [f"queue {queue!r} has {calls}no workers: start some for it" for queue, calls in waits.items()]


def _deadlocks(calls: Sequence[CallInfo]) -> list[str]:
    names = {call.id: f"{call.task} {call.id}" for call in calls}
    return [
        f"{len(circle)} calls wait for each other, none of which can go on: {names[circle[0].call]} and others; "
        "atasks tree shows them, and atasks cancel ends one"
        for circle in cycles(calls)
    ]


COMMANDS = (doctor_command,)
