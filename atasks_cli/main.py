"""The command line: `atasks run ...` and the other commands."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

import click

import atasks
from atasks.supervisor.tether import Tether
from atasks_cli.destination import TransportName
from atasks_cli.durations import Finite
from atasks_cli.exits import MEANINGS, CommandError, Exit
from atasks_cli.messages import configure_logging, discard_output, output_is_unread, say, show_traceback
from atasks_cli.running import run_targets
from atasks_cli.settings import AMQP_URL
from atasks_cli.size import Size

__all__ = ["main"]

EXAMPLES = """\b
Examples:
  atasks run tour.py                        run aiomain() of tour.py, calls in this process
  atasks run app.tasks --workers 4          run aiomain(), calls run in four worker processes
  atasks run app/tasks.py --mode server     serve the atasks of app/tasks.py over RabbitMQ
  atasks run app.tasks --mode server --workers 4       in four processes, which are replaced when they die
  atasks run app.tasks --mode client        run aiomain() of the module against those workers
  atasks run app.tasks -o n=5 -o name=Ann   as aiomain(n=5, name="Ann")
"""

CODES = "\b\nExit codes:\n" + "".join(f"  {code:3}  {meaning}\n" for code, meaning in MEANINGS.items())


FAMILIES: Final = {
    "calling": ("call",),
    "calls": ("ps", "tree", "stack", "cancel"),
    "completion": ("completion",),
    "dead": ("dead",),
    "doctor": ("doctor",),
    "keys": ("keys",),
    "live": ("watch", "top", "timeline"),
    "queues": ("pause", "resume", "purge"),
    "runs": ("runs",),
    "schedules": ("schedules",),
    "web": ("web",),
    "workers": ("ping", "inspect"),
}
"""Module -> the names of its `COMMANDS`. It is imported when one of them is used: `atasks run` needs none."""


class OneLineGroup(click.Group):
    """A group whose every error is one line on stderr that begins with `atasks: error:`, and whose commands are
    imported when they are used."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        kwargs.setdefault("prog_name", "atasks")
        stdout = sys.stdout
        try:
            code = super().main(*args, **kwargs)
        except click.UsageError as error:
            code = _usage(error)
        except click.ClickException as error:
            code = _fail(Exit.USAGE, error.format_message())
        except CommandError as error:
            code = _fail(error.exit, str(error))
        except (click.Abort, KeyboardInterrupt):
            code = Exit.INTERRUPTED
        except SystemExit:  # click ends so at a broken pipe, and stands in for stdout
            sys.stdout = stdout
            if not output_is_unread():
                raise
            code = Exit.UNREAD
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `| head -1` has what it wants
            code = Exit.UNREAD
        if code == Exit.UNREAD:
            discard_output()
        sys.exit(int(code or 0))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(name for names in FAMILIES.values() for name in names)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module, names in FAMILIES.items():
            if cmd_name in names and cmd_name not in self.commands:
                for command in import_module(f"atasks_cli.{module}").COMMANDS:
                    self.add_command(command)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            if args[0].endswith(".py") or Path(args[0]).exists():
                ctx.fail(f"no such command: {args[0]}; did you mean atasks run {args[0]}?")
            for name in self.list_commands(ctx):  # for click, which looks for one with a name like this
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


def _fail(code: Exit, message: str) -> Exit:
    say(f"error: {' '.join(message.split())}")
    return code


def _usage(error: click.UsageError) -> Exit:
    if type(error).__name__ == "NoArgsIsHelpError":  # click >= 8.2: `atasks` alone
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    path = error.ctx.command_path if error.ctx is not None else "atasks"
    return _fail(Exit.USAGE, f"{error.format_message().rstrip('.')} (see {path} --help)")


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(atasks.__version__, prog_name="atasks", message="%(prog)s %(version)s")
def main() -> None:
    """Await coroutines on other processes and hosts."""


@main.command("run", epilog=f"{EXAMPLES}\n{CODES}")
@click.argument("targets", metavar="FILE_OR_MODULE...", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--mode",
    type=click.Choice(["loopback", "server", "client"]),
    help="loopback: run aiomain(), calls run in this process. server: serve the atasks until SIGINT, SIGTERM or "
    "SIGHUP. client: run aiomain(), calls run on workers. "
    "Default: loopback; client with --workers or --url local:.",
)
@click.option(
    "--url",
    metavar="URL",
    help=f"The transport's URL. Default: $ATASKS_URL, else {AMQP_URL}; loopback needs none.",
)
@click.option(
    "--transport",
    type=TransportName(),
    help="The transport by name, with its default URL; or a class of yours, as in shop.wires:Wire.",
)
@click.option(
    "--concurrency", metavar="C", type=click.IntRange(min=1), help="Calls that run at once. Default: 100."
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Blocking functions that run at once in threads. Default: as --concurrency, at most 100.",
)
@click.option(
    "--processes",
    metavar="N",
    type=click.IntRange(min=1),
    help="Blocking functions that run at once in processes. Default: one for each processor, at most as "
    "--concurrency.",
)
@click.option(
    "--queue",
    "queues",
    metavar="Q",
    multiple=True,
    help="Serve this queue; may be repeated. Default: the queues of the atasks.",
)
@click.option(
    "--namespace", metavar="NS", default="default", show_default=True, help="The namespace of the atasks."
)
@click.option(
    "-o",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option for aiomain(); may be repeated. The value is JSON if it parses, else text.",
)
@click.option(
    "--grace",
    metavar="S",
    type=Finite(min=0),
    help="Seconds for running calls to finish when a server drains. Default: 30.",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Serve in N processes, and replace those that die. Without --mode: run aiomain() with N of them.",
)
@click.option(
    "--max-calls-per-worker",
    "max_calls",
    metavar="N",
    type=click.IntRange(min=1),
    help="Replace a worker process after so many calls; it drains while its replacement serves.",
)
@click.option(
    "--max-memory-per-worker",
    "max_memory",
    metavar="SIZE",
    type=Size(),
    help="Replace a worker process that takes more: bytes, or with K, M or G, as in 500M.",
)
@click.option(
    "--keys",
    metavar="FILE",
    type=click.Path(),
    help="Seal messages with the keys in this file, over AMQP. Default: $ATASKS_KEYS, if it is set.",
)
@click.option(
    "--records",
    metavar="URL",
    help="Keep what becomes of submitted calls in this PostgreSQL database, over AMQP. Default: $ATASKS_RECORDS, "
    "if it is set.",
)
@click.option(
    "--unsealed",
    type=click.Choice(["refuse", "accept"]),
    help="What a server that has keys does with messages without a seal. Default: refuse.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Answer /healthz, /readyz and /metrics there, in server mode.",
)
@click.option(
    "--process-setup",
    metavar="MODULE:FUNCTION",
    help="Call this function first, in this process and in those that it starts: django:setup, say.",
)
@click.option("--reload", is_flag=True, help="Drain and start again when a file of the loaded modules changes.")
@click.option("-v", "verbosity", count=True, help="Log what happens; -vv logs everything, with tracebacks.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    help="Log from this level on: debug, info, warning, error or critical. Default: as -v says.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines of text, or a JSON object on each line.",
)
@click.option(
    "--log-config",
    metavar="FILE",
    type=click.Path(),
    help="Log as this file says, instead: TOML or JSON for Python's logging.config.dictConfig.",
)
@click.option("--uvloop", "use_uvloop", is_flag=True, help="Use uvloop's event loop.")
def run_command(
    targets: tuple[str, ...],
    verbosity: int,
    log_level: str | None,
    log_format: str,
    log_config: str | None,
    **options: Any,
) -> int:
    """Load files or modules, and run or serve what they define.

    Each FILE_OR_MODULE is a path (app/tasks.py) or a dotted name (app.tasks). Its aiomain(), if it has one, is
    called with mode, url, transport, namespace, concurrency, queue and grace, and with the options of -o: those
    that it accepts. In server mode aiomain() runs beside the worker, and its return ends nothing.
    """
    tether = Tether.inherited()
    try:
        configure_logging(
            verbosity,
            level=log_level,
            as_json=log_format == "json",
            config=log_config,
            worker=None if tether is None else tether.number,
        )
    except CommandError as error:
        if verbosity >= 2 and error.__cause__ is not None:
            show_traceback(error.__cause__, whole=True)
        raise
    return run_targets(targets, tether, verbosity=verbosity, **options)


@main.command(
    "health",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="Say whether the servers on this host are well; for probes.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def health_command(arguments: tuple[str, ...]) -> int:
    """Say whether the servers on this host are well; for probes."""
    from atasks_cli import health

    return health.main(arguments)
