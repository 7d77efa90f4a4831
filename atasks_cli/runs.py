"""`atasks runs`: submitted calls, and runs of pipelines."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import click

from atasks.errors import AtasksError, CannotRetry, PipelineError, UnknownRun
from atasks.submitted.description import describe_run, moment, row_of, state_of
from atasks.submitted.handle import Handle, attach
from atasks.transport.records.contract import Records, RunInfo
from atasks.wire import counted
from atasks_cli.durations import Seconds
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.queues import confirmed
from atasks_cli.settings import check_records
from atasks_cli.shown import age, clean, show_json, show_table

__all__ = ["COMMANDS"]

ACTIONS: Final = ("list", "show", "retry", "drop")
MAX_LISTED: Final = 10_000


@click.command("runs")
@click.argument("action", type=click.Choice(ACTIONS), default="list", metavar="[list|show|retry|drop]")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@click.option("--since", metavar="TIME", type=Seconds(), help="Of the last seconds, or as 5m, 1h, 2d.")
@click.option("--failed", is_flag=True, help="Those only that have failed.")
@click.option("--task", metavar="G", default="*", help="Of atasks whose names fit, as in app.mail.*")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, MAX_LISTED),
    default=100,
    show_default=True,
    help="So many, the latest ones.",
)
@click.option("--records", metavar="URL", help="The database of records. Default: $ATASKS_RECORDS, if it is set.")
@click.option("--yes", is_flag=True, help="With drop: do not ask.")
@fleet_command
def runs_command(
    place: Place,
    action: str,
    ids: tuple[str, ...],
    since: float | None,
    failed: bool,
    task: str,
    limit: int,
    records: str | None,
    yes: bool,
) -> int:
    """List, show, retry or drop submitted calls and runs of pipelines.

    A list needs records in PostgreSQL; the other actions take ids, and work with records at the broker too.
    `retry` runs again what has failed, under the same id. `drop` forgets a record: a call that runs goes on.
    """
    if action == "list" and ids:
        raise CommandError(Exit.USAGE, "list shows all of them: say show, retry or drop before an ID")
    if action != "list" and not ids:
        raise CommandError(Exit.USAGE, f"{action}: give an ID, or several")
    if action != "list" and (since is not None or failed or task != "*"):
        raise CommandError(Exit.USAGE, f"--since, --failed and --task are for the list, and {action} takes ids")
    handles = [_handle(place, word) for word in ids]
    if action == "drop":
        confirmed(yes, f"Drop what is kept of {counted(len(handles), 'call')} for good?")

    async def act() -> int:
        options = {} if records is None else {"records": check_records(records)}
        async with place.transport(**options) as transport:
            kept = transport.records
            if kept is None:
                raise CommandError(Exit.USAGE, f"{place.url.partition(':')[0]}: keeps no records")
            if action == "list":
                _list(place, await kept.history(since=since, failed=failed, task=task, limit=limit), limit)
                return Exit.OK
            if action == "show":
                return await _show(place, kept, handles)
            if action == "retry":
                return await _each(place, "retried", handles, lambda handle: handle.retry())
            return await _each(place, "dropped", handles, lambda handle: kept.drop(handle.id))

    return run_on(act)


def _handle(place: Place, word: str) -> Handle[Any]:
    try:
        return attach(word) if word.startswith("atasks-run-") else Handle(word, place.namespace)
    except (ValueError, PipelineError) as error:
        raise CommandError(Exit.USAGE, str(error)) from None


def _list(place: Place, found: Sequence[RunInfo], limit: int) -> None:
    if place.as_json:
        show_json(
            {"runs": [{**row_of(info), "expires": info.expires} for info in found], "cut": len(found) == limit}
        )
        return
    now = time.time()
    columns = ("ID", "ATASK", "QUEUE", "SUBMITTED", "STATE", "TOOK", "WORKER")
    rows = [
        (
            info.id,
            info.task,
            info.queue,
            moment(info.submitted),
            state_of(info.status),
            age(max((info.ended or now) - max(info.submitted, info.due), 0.0)),
            info.worker or "-",
        )
        for info in found
    ]
    show_table(columns, rows)
    if len(found) == limit:
        say(f"there may be more: --limit {limit}")


async def _show(place: Place, records: Records, handles: Sequence[Handle[Any]]) -> int:
    """Show records; no arguments, and no results."""
    shown: list[dict[str, Any]] = []
    problems = 0
    for handle in handles:
        try:
            shown.append(await describe_run(handle.id, await records.read(handle.id)))
        except UnknownRun as error:
            problems += 1
            say(str(error))
    if place.as_json:
        show_json({"runs": shown})
        return Exit.FAILED if problems else Exit.OK
    for run in shown:
        for name, value in run.items():
            lines = str("-" if value is None else value).splitlines() or ["-"]
            click.echo(f"{name + ':':11} {clean(lines[0])}")
            for line in lines[1:]:
                click.echo(f"{'':11} {clean(line)}")
    return Exit.FAILED if problems else Exit.OK


async def _each(
    place: Place, what: str, handles: Sequence[Handle[Any]], act: Callable[[Handle[Any]], Awaitable[object]]
) -> int:
    done: list[str] = []
    problems: dict[str, str] = {}
    for handle in handles:
        try:
            await act(handle)
        except (CannotRetry, UnknownRun) as error:
            problems[handle.id] = str(error)
        except AtasksError as error:
            problems[handle.id] = f"{type(error).__name__}: {error}"
        else:
            done.append(handle.id)
    if place.as_json:
        show_json({what: done, "left": [{"id": name, "problem": problem} for name, problem in problems.items()]})
    else:
        for name in done:
            click.echo(f"{name} was {what}")
        for name, problem in problems.items():
            say(f"{name}: {problem}")
    return Exit.FAILED if problems else Exit.OK


COMMANDS = [runs_command]
