"""Commands that act on a queue of a fleet: `pause`, `resume`, `purge`."""

from __future__ import annotations

import sys
from difflib import get_close_matches

import click

from atasks.checks import validate_queue
from atasks.tracking.fleet import Fleet
from atasks.tracking.steering import Purged
from atasks.wire import counted
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.shown import show_json

__all__ = ["COMMANDS", "confirmed"]


def _checked(queue: str) -> str:
    try:
        return validate_queue(queue, "QUEUE")
    except ValueError as error:
        raise CommandError(Exit.USAGE, str(error)) from None


def confirmed(yes: bool, question: str) -> None:
    """Return if `--yes` was given, or a person says so. Raises a CommandError where there is none to ask."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise CommandError(Exit.USAGE, f"{question} Nobody is here to ask: add --yes")
    if not click.confirm(question, err=True):
        raise CommandError(Exit.FAILED, "nothing was done")


@click.command("pause")
@click.argument("queue", metavar="QUEUE")
@fleet_command
def pause_command(place: Place, queue: str) -> int:
    """Have workers take no new calls of a queue, until it is resumed.

    Calls that have begun end. Those that wait go on waiting, as do calls of this queue that running calls make.
    It stays paused for workers that come later, and when workers or the broker restart; around a hub it ends with
    the hub.
    """
    _pause(place, _checked(queue), True)
    return Exit.OK


@click.command("resume")
@click.argument("queue", metavar="QUEUE")
@fleet_command
def resume_command(place: Place, queue: str) -> int:
    """Have workers take calls of a paused queue again."""
    _pause(place, _checked(queue), False)
    return Exit.OK


def _pause(place: Place, queue: str, on: bool) -> None:
    async def act() -> tuple[list[str], bool]:
        async with place.fleet() as fleet:
            was = bool(await fleet.paused([queue]))
            return await (fleet.pause if on else fleet.resume)(queue), was

    workers, was = run_on(act)
    if place.as_json:
        show_json({"queue": queue, "paused": on, "was_paused": was, "workers": workers})
        return
    state = "paused" if on else "resumed"
    if was == on:
        state = "paused, as it was" if on else "not paused, and was not"
    takes = "takes" if len(workers) == 1 else "take"
    said = f"{counted(len(workers), 'worker')} {takes} {'no new calls of it' if on else 'its calls'}"
    if not workers:
        said = "no worker of it has answered" + ("; it is paused for those that come" if on else "")
    click.echo(f"queue {queue} is {state}: {said}")


@click.command("purge")
@click.argument("queue", metavar="QUEUE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@fleet_command
def purge_command(place: Place, queue: str, yes: bool) -> int:
    """End the calls that wait in a queue: their awaits, and the records of submitted ones, end in CallCancelled.

    Calls that a worker has go on, and so do those that come meanwhile: pause the queue first if there are many.
    Exit code 1 if some could not be ended, or there is no such queue.
    """
    queue = _checked(queue)
    confirmed(yes, f"End all calls that wait in queue {queue!r} of namespace {place.namespace!r}?")

    async def act() -> Purged:
        async with place.fleet() as fleet:
            found = await fleet.purge(queue)
            if not found.known:
                raise CommandError(Exit.FAILED, await _unknown(fleet, queue, place.namespace))
            return found

    found = run_on(act)
    if place.as_json:
        show_json({"queue": queue, "purged": found.calls, "unreadable": found.unreadable, "left": found.left})
    else:
        click.echo(f"{counted(found.calls, 'call')} of queue {queue} ended")
        if found.unreadable:
            say(f"now in the dead queue, for they could not be read: {counted(found.unreadable, 'message')}")
        if found.left:
            say(
                f"still there: {counted(found.left, 'message')} whose seals are not known here (--keys), or whose "
                "callers' queues are full"
            )
    return Exit.FAILED if found.left else Exit.OK


async def _unknown(fleet: Fleet, queue: str, namespace: str) -> str:
    """A line about a queue that is not there, with those that workers serve."""
    served = sorted({name for info in await fleet.workers() for name in info.queues})
    near = get_close_matches(queue, served, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"workers serve {', '.join(map(repr, served)) or 'none'}"
    return f"there is no queue {queue!r} in namespace {namespace!r}; {hint}"


COMMANDS = (pause_command, resume_command, purge_command)
