"""Commands about the calls of a fleet: `ps`, `tree`, `stack`, `cancel`."""

from __future__ import annotations

import click

from atasks.tracking.fleet import FleetCalls
from atasks.tracking.queries import MAX_DEPTH, CallInfo, Chain, StackOf
from atasks.tracking.waits import cycles
from atasks.wire import counted
from atasks_cli.durations import Seconds
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, one_of, run_on
from atasks_cli.messages import say
from atasks_cli.shown import age, clean, short, show_json, show_table

__all__ = ["COMMANDS"]


@click.command("ps")
@fleet_command
@click.option("--task", metavar="G", default="", help="Only calls of atasks whose name matches: 'shop.*'.")
@click.option("--queue", metavar="Q", default="", help="Only calls of this queue.")
@click.option("--older", metavar="AGE", type=Seconds(), default=0.0, help="Only calls made so long ago: 60s, 2h.")
@click.option("--state", type=click.Choice(["waiting", "running", "parked"]), help="Only calls in this state.")
@click.option("--limit", metavar="N", type=click.IntRange(1, 1000), default=1000, help="Calls of each worker.")
def ps_command(place: Place, task: str, queue: str, older: float, state: str | None, limit: int) -> int:
    """List the calls that the workers hold, and those that these await, the oldest first.

    A call that a program awaits and that waits in its queue at the broker is at no worker yet: `atasks top` counts
    those.
    """

    async def look() -> tuple[FleetCalls, list[str]]:
        async with place.fleet() as fleet:
            found = await fleet.calls(task=task, state=state or "", older=older, limit=limit)
            queues = {call.queue for call in [*found.calls, *found.queued]} | ({queue} if queue else set())
            return found, await fleet.paused(sorted(queues))

    found, paused = run_on(look)
    calls = [*found.calls, *found.queued]
    if queue:
        calls = [call for call in calls if call.queue == queue]
    calls.sort(key=lambda call: -call.age)
    if place.as_json:
        show_json({"calls": calls, "left_out": found.left_out, "workers": found.workers, "paused": paused})
        return Exit.OK
    columns = ("ID", "ATASK", "STATE", "AGE", "RAN", "ATTEMPT", "QUEUE", "WORKER", "PROGRESS")
    rows = [
        (
            short(call.id),
            call.task,
            call.state,
            age(call.age),
            age(call.ran),
            f"{call.attempt}/{call.max_attempts}",
            call.queue,
            call.worker or "-",
            call.progress,
        )
        for call in calls
    ]
    show_table(columns, rows)
    _say_of(found)
    for name in paused:
        say(f"queue {name!r} is paused: atasks resume {name}")
    return Exit.OK


def _say_of(found: FleetCalls) -> None:
    if not found.workers:
        say("no worker has answered")
    if found.left_out:
        say(f"left out: {counted(found.left_out, 'more call')} (--limit)")


@click.command("tree")
@click.argument("call_id", metavar="[ID]", required=False)
@fleet_command
def tree_command(place: Place, call_id: str | None) -> int:
    """Show which call awaits which, over all workers; with an ID, or its beginning, the tree that it is in.

    Calls that wait for each other's tokens of limits are named below.
    """

    async def look() -> FleetCalls:
        async with place.fleet() as fleet:
            return await fleet.calls()

    found = run_on(look)
    everything = calls = [*found.calls, *found.queued]
    if call_id is not None:
        root = one_of(calls, call_id).root
        calls = [call for call in calls if call.root == root]
    tops = _tops(calls)
    circles = cycles(everything)
    if place.as_json:
        show_json(
            {"tops": [top.id for top in tops], "calls": calls, "left_out": found.left_out, "cycles": circles}
        )
        return Exit.OK
    children: dict[str | None, list[CallInfo]] = {}
    for call in calls:
        children.setdefault(call.parent, []).append(call)
    for top in tops:
        _draw(top, children, "", "")
    names = {call.id: f"{call.task} {short(call.id)}" for call in everything}
    for circle in circles:
        click.echo("deadlock: these calls wait for each other, and none of them can go on:")
        for wait in circle:
            held = f"a token of limit {wait.limit!r}, which is held by " if wait.limit else ""
            click.echo(clean(f"  {names[wait.call]} waits for {held}{names[wait.awaits]}"))
        click.echo("  cancel one of them (atasks cancel ID), and take tokens of limits in one order everywhere")
    _say_of(found)
    return Exit.OK


def _tops(calls: list[CallInfo]) -> list[CallInfo]:
    """Those whose parents are not among them."""
    held = {call.id for call in calls}
    return sorted((call for call in calls if call.parent not in held), key=lambda call: -call.age)


def _draw(call: CallInfo, children: dict[str | None, list[CallInfo]], first: str, rest: str) -> None:
    todo = [(call, first, rest)]
    while todo:  # deep trees must not end the recursion of Python
        call, first, rest = todo.pop()
        click.echo(f"{first}{_line(call)}")
        # Two workers may have a call, or one says so: what is below it is drawn once.
        below = sorted(children.pop(call.id, []), key=lambda child: -child.age)
        for index, child in reversed(list(enumerate(below))):
            last = index == len(below) - 1
            todo.append((child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")))
        if call.cut:
            click.echo(f"{rest}   (it awaits more calls than are shown)")


def _line(call: CallInfo) -> str:
    where = f"at {call.worker}" if call.worker else f"in queue {call.queue!r}"
    ran = "" if call.ran is None else f", ran {age(call.ran)}"
    attempt = f", attempt {call.attempt}" if call.attempt > 1 else ""
    left = "" if call.left is None else f", {age(max(call.left, 0))} left"
    progress = f", {call.progress}" if call.progress else ""
    tokens = [f", waits for limit {wanted.limit!r}" for wanted in call.wants]
    tokens += [f", holds limit {name!r}" for name in call.holds]
    since = f"made {age(call.age)} ago{ran}"
    return clean(
        f"{call.task} {short(call.id)}  {call.state} {where}, {since}{attempt}{left}{progress}{''.join(tokens)}"
    )


@click.command("stack")
@click.argument("call_id", metavar="ID")
@fleet_command
def stack_command(place: Place, call_id: str) -> int:
    """Show where in its code a call is: the frames of its coroutines, and of the tasks that it waits for."""

    async def look() -> StackOf | None:
        async with place.fleet() as fleet:
            if len(call_id) < 32:
                call = one_of((await fleet.calls()).calls, call_id)
                return await fleet.stack(call.id)
            return await fleet.stack(call_id)

    found = run_on(look)
    if found is None:
        raise CommandError(Exit.FAILED, f"no worker that answered holds call {call_id!r}")
    if place.as_json:
        show_json(found)
        return Exit.OK
    click.echo(_line(found.call))
    for chain in found.chains:
        _show(chain, "  ")
    for awaited in found.call.awaits:
        click.echo(f"  awaits {clean(awaited.task)} {short(awaited.id)}, made {age(awaited.age)} ago")
    return Exit.OK


def _show(chain: Chain, indent: str) -> None:
    click.echo(f"{indent}task {clean(chain.name)}")
    for frame in chain.frames:
        click.echo(f"{indent}  {clean(frame)}")
    click.echo(f"{indent}  waits for {clean(chain.waits_for)}")
    if len(indent) < 4 * MAX_DEPTH:
        for child in chain.children:
            _show(child, indent + "    ")


@click.command("cancel")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@fleet_command
def cancel_command(place: Place, ids: tuple[str, ...]) -> int:
    """End calls: their awaits end in CallCancelled.

    A call that no worker holds ends when a worker gets it within 10 minutes; its ID must be whole.
    """

    async def act() -> tuple[list[str], list[str]]:
        async with place.fleet() as fleet:
            whole = [call_id for call_id in ids if len(call_id) >= 32]
            begun = [call_id for call_id in ids if len(call_id) < 32]
            if begun:
                found = await fleet.calls()
                calls = [*found.calls, *found.queued]
                whole += [one_of(calls, beginning).id for beginning in begun]
            return whole, await fleet.cancel(whole)

    asked, ended = run_on(act)
    if place.as_json:
        show_json({"cancelled": ended, "later": [call_id for call_id in asked if call_id not in ended]})
        return Exit.OK
    for call_id in asked:
        state = "cancelled" if call_id in ended else "at no worker: it ends when one gets it, within 10 minutes"
        click.echo(f"{clean(call_id)}  {state}")
    return Exit.OK


COMMANDS = (ps_command, tree_command, stack_command, cancel_command)
