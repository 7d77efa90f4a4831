"""One call from the shell: `atasks call`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import click
import msgspec

import atasks
from atasks import modules as loader
from atasks.checks import MAX_TIMEOUT
from atasks.definitions import ATask, BaseTask, StreamTask
from atasks.errors import AtasksError, CallError, TransportError, closest
from atasks_cli.durations import Finite
from atasks_cli.exits import CommandError, Exit, explain
from atasks_cli.fleet import Place
from atasks_cli.messages import configure_logging
from atasks_cli.settings import AMQP_URL, parse_options, parse_value
from atasks_cli.shown import clean, harmless

__all__ = ["COMMANDS", "as_json", "find_task"]


@click.command("call", context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="FILE_OR_MODULE:ATASK", type=click.Path())
@click.argument("arguments", metavar="[ARG]...", nargs=-1)
@click.option("-o", "pairs", metavar="KEY=VALUE", multiple=True, help="An argument by its name; may be repeated.")
@click.option("--url", metavar="URL", help=f"Where its workers are. Default: $ATASKS_URL, else {AMQP_URL}.")
@click.option("--prefix", metavar="P", help="That of the queues at the broker. Default: that in the URL.")
@click.option(
    "--keys", metavar="FILE", type=click.Path(), help="A file of keys for sealed messages. Default: $ATASKS_KEYS."
)
@click.option("--timeout", metavar="S", type=Finite(0.001, MAX_TIMEOUT), help="Seconds that the call may take.")
@click.option("--progress", is_flag=True, help="Write what the call reports of itself to the standard error.")
@click.option("--json", is_flag=True, expose_value=False, help="Write JSON, as it does without this.")
@click.option("-v", "verbosity", count=True, help="Log what happens.")
def call_command(
    target: str,
    arguments: tuple[str, ...],
    pairs: tuple[str, ...],
    url: str | None,
    prefix: str | None,
    keys: str | None,
    timeout: float | None,
    progress: bool,
    verbosity: int,
) -> int:
    """Call an atask, and write its result as JSON; of a stream, each item as a line.

    An ARG is JSON if it parses, else text. What JSON does not have is written as Python shows it.
    """
    configure_logging(verbosity)
    task = find_task(target)
    args, kwargs = [parse_value(text) for text in arguments], parse_options(pairs, ())
    if progress and isinstance(task, StreamTask):
        raise CommandError(Exit.USAGE, f"--progress: {task.name} is a stream, whose items are its progress")
    if timeout is not None:
        task = task.options(timeout=timeout)
    where = url or os.environ.get("ATASKS_URL") or AMQP_URL
    place = Place(where, task.namespace, prefix, keys, 1.0, None, as_json=True)
    try:
        asyncio.run(_call(place, task, args, kwargs, progress))
    except CommandError:
        raise
    except TransportError as error:
        raise explain(error) from error
    except CallError as error:
        raise CommandError(Exit.FAILED, f"{type(error).__name__}: {error}") from error
    return Exit.OK


def find_task(target: str) -> BaseTask[..., Any]:
    """The atask of that name. Raises a CommandError."""
    module_name, _, name = target.rpartition(":")
    if not module_name:
        raise CommandError(Exit.USAGE, f"{target!r} names no atask: say MODULE:ATASK, as in app.tasks:add")
    try:
        module = loader.load(module_name)
    except AtasksError as error:
        raise explain(error) from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, (ATask, StreamTask)):
        return found
    near = closest(name, [key for key, value in vars(module).items() if isinstance(value, (ATask, StreamTask))])
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CommandError(Exit.USAGE, f"{name!r} is no atask in {module.__name__}{hint}")


async def _call(
    place: Place, task: BaseTask[..., Any], args: list[Any], kwargs: dict[str, Any], progress: bool
) -> None:
    try:
        make: Any = task.watch if progress and isinstance(task, ATask) else task
        called: Any = make(*args, **kwargs)
    except TypeError as error:
        raise CommandError(Exit.USAGE, str(error)) from error
    try:
        async with place.transport():
            await _await(called)
    finally:
        if isinstance(called, Coroutine):
            called.close()  # Python warns of one that was not awaited, as where there is no way to a worker


async def _await(called: Any) -> None:
    try:
        if isinstance(called, atasks.RemoteStream):
            async for item in called:
                _write(item)
        elif isinstance(called, atasks.WatchedCall):
            async with called:
                async for report in called.progress():
                    click.echo(clean(str(report)), err=True)
                _write(await called)
        else:
            _write(await called)
    except AtasksError:
        raise
    except Exception as error:  # the atask's own
        raise CommandError(Exit.FAILED, f"{type(error).__name__}: {error}") from error


def _write(result: Any) -> None:
    click.echo(as_json(result))


def as_json(result: Any) -> str:
    """Return a result as JSON; what JSON does not have is written as Python shows it."""
    return harmless(msgspec.json.encode(result, enc_hook=repr))


COMMANDS = (call_command,)
