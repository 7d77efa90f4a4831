"""`atasks dead`: messages that could be neither read nor answered."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from atasks.tracking.steering import DeadMessage
from atasks.wire import counted
from atasks_cli.exits import CommandError, Exit
from atasks_cli.fleet import Place, fleet_command, run_on
from atasks_cli.messages import say
from atasks_cli.queues import confirmed
from atasks_cli.shown import age, clean, escaped, show_json, show_table

__all__ = ["COMMANDS"]

ACTIONS: Final = ("list", "show", "retry", "drop")
MAX_SHOWN: Final = 64 * 2**10
"""Bytes of a payload that are shown; --json has all of them."""


@click.command("dead")
@click.argument("action", type=click.Choice(ACTIONS), default="list", metavar="[list|show|retry|drop]")
@click.argument("which", metavar="[N...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All messages.")
@click.option("--payload", is_flag=True, help="With show: its bytes too, escaped.")
@click.option("--yes", is_flag=True, help="With drop: do not ask.")
@fleet_command
def dead_command(
    place: Place, action: str, which: tuple[str, ...], everything: bool, payload: bool, yes: bool
) -> int:
    """List, show, retry or drop the messages that no worker could read or answer.

    N is the number of a message in the list, or its name, which stays the same when others leave the queue.
    `retry` puts a message back into the queue that it came from, `drop` forgets it for good. What is only looked
    at stays, also if this command is killed; while it looks, nobody else sees these messages.
    """
    if action == "list" and (which or everything):
        raise CommandError(Exit.USAGE, "list shows all messages: say show, retry or drop before N")
    if action != "list" and bool(which) == everything:
        raise CommandError(Exit.USAGE, f"{action}: give the numbers of messages, or --all")
    if payload and action != "show":
        raise CommandError(Exit.USAGE, "--payload is for show")
    if action == "drop":
        confirmed(yes, f"Drop {'all dead messages' if everything else counted(len(which), 'message')} for good?")

    async def act() -> tuple[list[DeadMessage], dict[int, str]]:
        async with place.fleet() as fleet, fleet.dead_letters() as dead:
            messages = list(dead.messages)
            chosen = messages if everything or action == "list" else _chosen(messages, which)
            problems = await dead.retry(chosen) if action == "retry" else {}
            for message in chosen if action == "drop" else ():
                await dead.drop(message)
            return chosen, problems

    messages, problems = run_on(act)
    if action in ("list", "show"):
        _show(place, action, messages, payload)
        return Exit.OK
    done = [message.number for message in messages if message.number not in problems]
    if place.as_json:
        left = [{"number": number, "problem": problem} for number, problem in problems.items()]
        show_json({"dropped" if action == "drop" else "retried": done, "left": left})
    else:
        what = "dropped" if action == "drop" else "back in their queues"
        click.echo(f"{what}: {counted(len(done), 'message')}")
        for number, problem in problems.items():
            say(f"message {number} stays: {problem}")
    return Exit.FAILED if problems else Exit.OK


def _chosen(messages: Sequence[DeadMessage], which: Sequence[str]) -> list[DeadMessage]:
    """The messages of these numbers or names. Raises a CommandError if one is not there: nothing is done then."""
    found: dict[int, DeadMessage] = {}
    for word in which:
        named = [message for message in messages if word in (str(message.number), message.name)]
        if not named:
            raise CommandError(
                Exit.FAILED, f"there is no message {clean(word)!r}: atasks dead lists them; nothing was done"
            )
        found[named[0].number] = named[0]
    return list(found.values())


def _show(place: Place, action: str, messages: Sequence[DeadMessage], payload: bool) -> None:
    if place.as_json:
        show_json({"messages": [_as_json(message, payload) for message in messages]})
    elif action == "show":
        for message in messages:
            _show_one(message, payload)
    else:
        columns = ("N", "NAME", "REASON", "AGE", "QUEUE", "SIZE", "ATASK", "CALL")
        rows = [
            (
                str(message.number),
                message.name or "-",
                message.reason or "-",
                _age(message),
                message.queue or "-",
                str(message.size),
                _several(message.tasks, message.sealed),
                _several(message.ids, False),
            )
            for message in messages
        ]
        show_table(columns, rows)
        if not messages:
            say("no message is there")


def _age(message: DeadMessage) -> str:
    return "-" if message.at is None else age(max(time.time() - message.at, 0.0))


def _several(texts: Sequence[str], sealed: bool) -> str:
    if not texts:
        return "(sealed)" if sealed else "-"
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"


def _as_json(message: DeadMessage, payload: bool) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(message)
    del content["body"]
    return content | {"payload": base64.b64encode(message.body).decode()} if payload else content


def _show_one(message: DeadMessage, payload: bool) -> None:
    at = "not known" if message.at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(message.at))
    lines = {
        "message": f"{message.number}, {message.name or 'without a name'}",
        "queue": message.queue or "not known",
        "reason": message.reason or "not known",
        "since": at,
        "size": f"{message.size} bytes{', sealed' if message.sealed else ''}",
        "atasks": ", ".join(message.tasks) or "cannot be read here",
        "calls": ", ".join(message.ids) or "cannot be read here",
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':10}{clean(value)}")
    if payload:
        click.echo(f"payload:  {escaped(message.body[:MAX_SHOWN])}")
        if message.size > MAX_SHOWN:
            say(f"{message.size - MAX_SHOWN} more bytes are shown by --json")


COMMANDS = (dead_command,)
