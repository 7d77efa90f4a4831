"""`atasks keys`: make and check the keys that seal messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from atasks.errors import InvalidKeys
from atasks.signing import keyfile
from atasks_cli.exits import CommandError, Exit

__all__ = ["COMMANDS"]


@click.group("keys")
def keys_command() -> None:
    """Make and check the keys that seal messages: docs/security.md."""


@keys_command.command("new")
@click.argument("name")
@click.argument("words", metavar="[serve] [encrypt] [tasks=...] [queues=...] [max_attempts=N]", nargs=-1)
def new_key_command(name: str, words: tuple[str, ...]) -> None:
    """Print a line for a new key, to be appended to files: atasks keys new shop >> shop.keys

    NAME has 1 to 32 of a-z, 0-9, dot and hyphen. The words behind it are what the owner of the key may do.
    """
    with _usage_errors():
        click.echo(keyfile.new_line(name, *words))


@keys_command.command("check")
@click.argument("file", type=click.Path())
def check_keys_command(file: str) -> None:
    """Say which keys a file holds, without their secrets, or what is wrong with it."""
    with _usage_errors():
        keys, _ = keyfile.read(file)
    for number, key in enumerate(keys):
        click.echo(f"{key.describe()}{'' if number else '  (seals)'}")


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except InvalidKeys as error:
        raise CommandError(Exit.USAGE, str(error)) from None


COMMANDS = (keys_command,)
