"""`manage.py atask`: one call from the shell."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from atasks.definitions import ATask
from atasks_cli import exits
from atasks_cli.calling import as_json, find_task
from atasks_cli.settings import parse_options, parse_value

__all__ = ["Command"]


class Command(BaseCommand):
    """Calls an atask, and writes its result as JSON."""

    help = "Call an atask, and write its result as JSON; of a stream, each item as a line."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of `atasks call`."""
        parser.add_argument("target", metavar="FILE_OR_MODULE:ATASK")
        parser.add_argument("arguments", nargs="*", metavar="ARG", help="JSON if it parses, else text.")
        parser.add_argument(
            "-o", "--option", action="append", default=[], metavar="KEY=VALUE", help="An argument by its name."
        )
        parser.add_argument("--timeout", type=float, metavar="S", help="Seconds that the call may take.")
        parser.add_argument("--submit", action="store_true", help="Do not wait: write the id of the call.")

    def handle(self, *names: Any, **options: Any) -> None:
        """Make the call, over the connection that ATASKS describes. Raises CommandError."""
        try:
            task = find_task(options["target"])
            args = [parse_value(text) if isinstance(text, str) else text for text in options["arguments"]]
            kwargs = parse_options(options["option"], ())
        except exits.CommandError as error:
            raise CommandError(str(error), returncode=error.exit) from error
        try:
            if options["timeout"] is not None:
                task = task.options(timeout=options["timeout"])
            if options["submit"]:
                if not isinstance(task, ATask):
                    raise CommandError(
                        "a stream is not submitted: leave --submit out", returncode=exits.Exit.USAGE
                    )
                self.stdout.write(task.submit.sync(*args, **kwargs).id)
            elif isinstance(task, ATask):
                self.stdout.write(as_json(task.sync(*args, **kwargs)))
            else:
                for item in task.sync(*args, **kwargs):  # type: ignore[attr-defined]
                    self.stdout.write(as_json(item))
        except CommandError:
            raise
        except Exception as error:  # of the call, or the atask's own
            raise CommandError(f"{type(error).__name__}: {error}") from error
