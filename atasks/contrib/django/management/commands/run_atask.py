"""`manage.py run_atask`: a worker of the project, or its aiomain()."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import click
from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from atasks import interpreters
from atasks.contrib.django.apps import MODULES
from atasks.contrib.django.settings import Namespace, read
from atasks.supervisor.tether import Tether
from atasks_cli import exits
from atasks_cli.main import run_command
from atasks_cli.running import run_targets

__all__ = ["Command"]

LOGGING = {"verbosity", "log_level", "log_format", "log_config"}
"""Parameters of `atasks run` that Django has its own ways for."""
SHORT = {"mode": "-M", "transport": "-T", "url": "-U"}
"""The short options of atasks 0.0.x."""
TRANSPORTS = {"loopback": "loopback", "amqp": "amqp", "amqps": "amqp", "unix": "unix", "local": "local"}
"""Scheme of a URL -> name of its transport."""
HELP = {
    "mode": "loopback: run aiomain(), calls run in this process. server: serve the atasks until SIGINT, SIGTERM "
    "or SIGHUP. client: run aiomain(), calls run on workers. Default: server, where the URL is one of a broker or "
    "a socket; else as atasks run has it.",
    "url": "The transport's URL. Default: that of ATASKS.",
    "concurrency": "Calls that run at once. Default: that of ATASKS, else 100.",
    "threads": "Blocking functions that run at once in threads. Default: that of ATASKS.",
    "reload": "Start again when a file of the loaded modules changes. A server does, where DEBUG is True.",
}
"""Descriptions that are others than those of `atasks run`."""
BOOT = (
    "import json, sys; config = json.loads(sys.argv.pop()); sys.path[:] = config['path']; "
    "import django; django.setup(); from django.core.management import call_command; "
    "call_command('run_atask', *config['targets'], **config['options'])"
)
"""The program of a worker process of a command that was called by another program."""


class Command(BaseCommand):
    """Serves the atasks of the project, or runs the aiomain() of modules."""

    help = (
        "Serve the atasks of files or modules, or run their aiomain(), as `atasks run` does. Without arguments: "
        "those of the modules tasks and atasks of all installed apps."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of `atasks run`."""
        parser.add_argument("targets", nargs="*", metavar="FILE_OR_MODULE")
        for option in _options():
            _add(parser, option)
        parser.add_argument("--noreload", action="store_true", help="Do not reload, although DEBUG is True.")
        parser.add_argument(
            "-L",
            "--loggers",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
            help="Let these loggers log from INFO on; with -v 2 from DEBUG on. LOGGING says where to.",
        )

    def handle(self, *names: Any, **options: Any) -> None:
        """Run it until a signal ends it. Raises CommandError, with the exit code of `atasks run`."""
        targets = [*names, *options.pop("targets", ())] or _modules_of_apps()
        for name in options.pop("loggers"):
            logging.getLogger(name).setLevel(logging.DEBUG if options["verbosity"] > 1 else logging.INFO)
        namespace = _namespace(options["namespace"])
        chosen = {name: options[name] for name in (option.name for option in _options()) if name}
        other = chosen["mode"] == "loopback" or chosen["transport"] not in (None, TRANSPORTS.get(namespace.scheme))
        if chosen["url"] is None and not other:
            chosen["url"] = namespace.url if isinstance(namespace.url, str) else namespace.url[0]
            chosen["nodes"] = () if isinstance(namespace.url, str) else namespace.url
        chosen["mode"] = chosen["mode"] or _mode(chosen)
        serves = chosen["mode"] == "server"
        if serves or chosen["mode"] == "loopback":
            for size, value in namespace.sizes.items():
                chosen[size] = value if chosen[size] is None else chosen[size]
        by_hand = chosen["reload"]
        chosen["reload"] = by_hand or (serves and settings.DEBUG and not options["noreload"] and _can_reload())
        command_line = getattr(self, "_called_from_command_line", False)
        try:
            code = run_targets(
                targets,
                Tether.inherited(),
                verbosity=max(0, options["verbosity"] - 1),
                command=None if command_line else _command(targets, options),
                transport_options={} if ":" in (chosen["transport"] or "") else namespace.options,
                **chosen,
            )
        except exits.CommandError as error:
            raise CommandError(str(error), returncode=error.exit) from error
        if code and command_line:
            sys.exit(code)
        if code:
            meaning = exits.MEANINGS.get(exits.Exit(code), "") if code in set(exits.Exit) else "a signal"
            raise CommandError(f"run_atask has ended with exit code {int(code)}: {meaning}", returncode=int(code))


def _options() -> list[click.Option]:
    """The options of `atasks run`, but those about logs."""
    found = [parameter for parameter in run_command.params if isinstance(parameter, click.Option)]
    return [option for option in found if option.name not in LOGGING]


def _add(parser: argparse.ArgumentParser, parameter: click.Option) -> None:
    """Add an option of `atasks run`."""
    assert parameter.name is not None, "options have names"
    words: dict[str, Any] = {
        "dest": parameter.name,
        "help": HELP.get(parameter.name, parameter.help or "").replace("%", "%%"),
    }
    names = [*parameter.opts, *([SHORT[parameter.name]] if parameter.name in SHORT else [])]
    if parameter.is_flag:
        parser.add_argument(*names, action="store_true", **words)
        return
    words |= {"metavar": parameter.metavar, "type": _converter(parameter)}
    if isinstance(parameter.type, click.Choice):
        words["metavar"] = "{" + ",".join(parameter.type.choices) + "}"
    if parameter.name == "pairs":
        parser.add_argument("--option", *names, nargs="+", action="extend", default=[], **words)
    elif parameter.multiple:
        parser.add_argument(*names, action="append", default=[], **words)
    else:
        default = "default" if parameter.name == "namespace" else None
        parser.add_argument(*names, default=default, **words)


def _converter(parameter: click.Option) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parameter.type.convert(text, parameter, None)
        except click.UsageError as error:
            raise argparse.ArgumentTypeError(error.message) from None

    return convert


def _modules_of_apps() -> list[str]:
    """The modules of the apps that were imported for their atasks. Raises CommandError if there is none."""
    names = [f"{app.name}.{module}" for app in apps.get_app_configs() for module in MODULES]
    found = [name for name in names if name in sys.modules]
    if not found:
        raise CommandError(
            "no app has a module tasks or atasks: write one, say shop/tasks.py, or name a file or a module",
            returncode=exits.Exit.USAGE,
        )
    return found


def _namespace(name: str) -> Namespace:
    """The namespace, as ATASKS describes it. Raises CommandError."""
    known = {namespace.name: namespace for namespace in read()}
    if name not in known:
        raise CommandError(
            f"ATASKS has no namespace {name!r}: it has {', '.join(map(repr, known))}", returncode=exits.Exit.USAGE
        )
    return known[name]


def _mode(chosen: dict[str, Any]) -> str | None:
    """The mode for a command that names none: a transport by which others can call makes it a server."""
    scheme = (chosen["url"] or chosen["transport"] or "").partition(":")[0].lower()
    if scheme in ("amqp", "amqps", "unix"):
        return "server"
    return "client" if scheme == "local" else None


def _can_reload() -> bool:
    """Return True if the library is installed that watches files."""
    from importlib.util import find_spec

    return find_spec("watchfiles") is not None


def _command(targets: list[str], options: dict[str, Any]) -> list[str]:
    """The command of a worker process, where this one's command line is another program's."""
    plain = {name: value for name, value in options.items() if isinstance(value, (str, int, float, bool, list))}
    config = {"path": sys.path, "targets": targets, "options": plain}
    return [*interpreters.command(), "-c", BOOT, json.dumps(config)]
