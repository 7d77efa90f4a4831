"""The transport that the command connects to or serves over: a URL's, or one of the program's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from atasks import Transport
from atasks.errors import AtasksError, InvalidURL
from atasks.modules import named
from atasks_cli.exits import CommandError, Exit, explain
from atasks_cli.settings import TRANSPORT_NAMES, Settings

__all__ = ["TransportName", "destination"]


class TransportName(click.Choice[str]):
    """The name of a transport, or a class of the program as MODULE:CLASS."""

    def __init__(self) -> None:
        super().__init__([*TRANSPORT_NAMES, "MODULE:CLASS"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ":" in str(value):
            return str(value)
        return super().convert(value, param, ctx)


def destination(settings: Settings) -> tuple[str | Sequence[str] | Transport, dict[str, Any]]:
    """Find what `connect` and `serve` are to be given: the place, and the options of its transport.

    Raises a CommandError if a transport of the program cannot be made.
    """
    options = settings.transport_options
    if ":" not in settings.transport:
        return settings.where, options
    option = f"--transport {settings.transport}"
    try:
        cls = named(settings.transport)
    except AtasksError as error:
        raise explain(error) from error
    except ValueError as error:
        raise CommandError(Exit.USAGE, f"{option}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, Transport)):
        raise CommandError(Exit.USAGE, f"{option}: no subclass of atasks.Transport")
    try:
        if not settings.url:
            return cls(namespace=settings.namespace, **options), {}
        if getattr(cls.from_url, "__func__", None) is vars(Transport)["from_url"].__func__:
            raise CommandError(Exit.USAGE, f"{option}: {cls.__name__} takes no --url, it has no from_url()")
        return cls.from_url(settings.url, settings.namespace, options), {}
    except (InvalidURL, TypeError, ValueError) as error:
        raise CommandError(Exit.USAGE, f"{option}: {error}") from error
