"""The command about schedules: `atasks schedules`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from atasks.router import get_router
from atasks.submitted.schedules import Schedule, list_schedules
from atasks_cli.exits import Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.shown import show_json, show_table

__all__ = ["COMMANDS"]


@click.command("schedules")
@fleet_command
def schedules_command(place: Place) -> int:
    """List the schedules, of definitions and of run time, with the times of their last and next calls (UTC)."""

    async def look() -> list[Schedule]:
        async with place.transport():
            return await list_schedules(get_router(place.namespace))

    found = run_on(look)
    if place.as_json:
        show_json([_plain(schedule) for schedule in found])
        return Exit.OK
    columns = ("NAME", "ATASK", "EVERY", "LAST", "NEXT", "MADE BY")
    rows = [
        (
            schedule.name,
            schedule.task,
            _every(schedule),
            _shown(schedule.last),
            _shown(schedule.next),
            "its definition" if schedule.defined else "schedule()",
        )
        for schedule in found
    ]
    show_table(columns, rows)
    return Exit.OK


def _every(schedule: Schedule) -> str:
    if isinstance(schedule.every, str):
        return f"{schedule.every} {schedule.tz}"
    return f"{schedule.every:g}s"


def _shown(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"


def _plain(schedule: Schedule) -> dict[str, Any]:
    """Everything but the arguments."""
    return {
        "name": schedule.name,
        "task": schedule.task,
        "every": schedule.every,
        "tz": schedule.tz,
        "catch_up": schedule.catch_up,
        "overlap": schedule.overlap,
        "defined": schedule.defined,
        "last": schedule.last,
        "next": schedule.next,
        "last_id": schedule.last_id,
    }


COMMANDS = [schedules_command]
