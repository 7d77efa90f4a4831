"""The connection of commands that look at a fleet, and the options that they share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

import atasks
from atasks.checks import MAX_TIMEOUT
from atasks.errors import AtasksError
from atasks.options import validate_queue
from atasks.tracking.fleet import Fleet
from atasks.tracking.queries import CallInfo
from atasks.transport.call_transport import CallTransport
from atasks_cli.durations import Finite
from atasks_cli.exits import CommandError, Exit, explain
from atasks_cli.messages import configure_logging
from atasks_cli.settings import AMQP_URL

__all__ = ["Place", "fleet_command", "one_of", "run_on"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The address of a fleet, and how to look at it."""

    url: str
    namespace: str
    prefix: str | None
    keys: str | None
    timeout: float
    expect: int | None
    """The number of workers; None: nobody knows."""
    as_json: bool

    def __post_init__(self) -> None:
        try:
            validate_queue(self.namespace, "--namespace ")
            if self.prefix is not None:
                validate_queue(self.prefix, "--prefix ")
        except ValueError as error:
            raise CommandError(Exit.USAGE, str(error).replace(" =", " ")) from None

    @asynccontextmanager
    async def transport(self, **more: Any) -> AsyncIterator[CallTransport]:
        """A connection to it. `more`: options of `atasks.connect`."""
        scheme = self.url.partition(":")[0]
        if scheme not in ("amqp", "amqps", "unix"):
            alone = scheme in ("local", "loopback")
            why = "is seen by its own process alone" if alone else "has no workers that can be asked"
            raise CommandError(Exit.USAGE, f"--url {scheme}: {why}: give that of a broker or a socket")
        options: dict[str, Any] = {"hub": False} if scheme == "unix" else {}
        given = {"prefix": self.prefix, "keys": self.keys}
        options |= {name: value for name, value in given.items() if value is not None}
        async with atasks.connect(self.url, namespace=self.namespace, **options, **more) as transport:
            assert isinstance(transport, CallTransport)
            yield transport

    @asynccontextmanager
    async def fleet(self) -> AsyncIterator[Fleet]:
        """Open the fleet of workers, to ask them."""
        async with self.transport() as transport:
            yield Fleet(transport, self.timeout, self.expect)


def fleet_command(function: F) -> F:
    """Give a command the options that say which fleet it is about: it gets a `Place` first."""

    def command(
        *,
        url: str | None,
        namespace: str,
        prefix: str | None,
        keys: str | None,
        timeout: float,
        expect: int | None,
        as_json: bool,
        verbosity: int,
        **options: Any,
    ) -> Any:
        configure_logging(verbosity)
        place = Place(
            url or os.environ.get("ATASKS_URL") or AMQP_URL, namespace, prefix, keys, timeout, expect, as_json
        )
        return function(place, **options)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    options = [
        click.option("--url", metavar="URL", help=f"Where the fleet is. Default: $ATASKS_URL, else {AMQP_URL}."),
        click.option("--namespace", metavar="NS", default="default", show_default=True, help="Its namespace."),
        click.option(
            "--prefix", metavar="P", help="The prefix of its queues at the broker. Default: that of the URL."
        ),
        click.option(
            "--keys",
            metavar="FILE",
            type=click.Path(),
            help="A file of keys for sealed messages. Default: $ATASKS_KEYS.",
        ),
        click.option(
            "--timeout",
            metavar="S",
            type=Finite(0.01, MAX_TIMEOUT),
            default=1.0,
            show_default=True,
            help="Seconds to wait for answers.",
        ),
        click.option(
            "--expect",
            metavar="N",
            type=click.IntRange(min=1),
            help="Wait no longer when so many workers have answered.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Write JSON."),
        click.option("-v", "verbosity", count=True, help="Log what happens."),
    ]
    for option in reversed(options):
        option(command)
    return command  # type: ignore[return-value]


def run_on(work: Callable[[], Awaitable[T]]) -> T:
    """Run it in an event loop of its own. Raises a CommandError for what the library raises."""

    async def main() -> T:
        return await work()

    try:
        return asyncio.run(main())
    except CommandError:
        raise
    except AtasksError as error:
        raise explain(error) from error


def one_of(calls: list[CallInfo], beginning: str) -> CallInfo:
    """The call whose id begins so. Raises a CommandError if there is none, or more than one."""
    if not beginning:
        raise CommandError(Exit.USAGE, "an ID is empty: give that of a call, or its beginning")
    found = [call for call in calls if call.id.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    what = "no worker that answered holds a call" if not found else f"{len(found)} calls have an id"
    raise CommandError(Exit.FAILED, f"{what} that begins with {beginning!r}")
