"""The work of `atasks run`, once its options are known and logging is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atasks.errors import LoadError
from atasks.process_setup import run as prepare_process
from atasks.supervisor.tether import Tether
from atasks_cli import runner
from atasks_cli.aiomain import find
from atasks_cli.exits import CommandError, Exit
from atasks_cli.messages import show_traceback
from atasks_cli.settings import Mode, Settings, parse_options

if TYPE_CHECKING:
    from atasks_cli.supervised import Supervised

__all__ = ["run_targets"]


def run_targets(
    targets: Sequence[str],
    tether: Tether | None,
    *,
    mode: Mode | None,
    pairs: Sequence[str],
    verbosity: int,
    use_uvloop: bool,
    workers: int | None,
    max_calls: int | None,
    max_memory: int | None,
    reload: bool,
    process_setup: str | None,
    command: Sequence[str] | None = None,
    transport_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> int:
    """Load files or modules, run or serve what they define, and return the exit code.

    `tether` is that of this process, if a supervisor started it. The others are the options of `atasks run`, and:
    `command`, which a supervisor starts for each worker process (None: the command line of this process),
    `transport_options`, further options of the transport, and `nodes`, all URLs of a broker that has several.

    Raises a CommandError; in a process that a supervisor started it tells that one instead.
    """
    supervised: Supervised | None = None
    try:
        settings = Settings.make(
            mode, verbosity=verbosity, workers=workers, targets=targets, options=transport_options, **options
        )
        supervised_workers = None if settings.transport == "local" else workers
        offered = settings.for_aiomain()
        given = parse_options(pairs, offered)
        loop_factory = _uvloop() if use_uvloop else None
        if supervised_workers or reload or max_calls or max_memory:
            from atasks_cli.supervised import Supervised
            from atasks_cli.supervision import Supervision, supervise

            supervision = Supervision.make(settings.mode, supervised_workers, reload, max_calls, max_memory)
            if tether is None:
                return supervise(settings, supervision, command)
            supervised = Supervised(tether, supervision)
        if process_setup is not None:
            _prepare(process_setup)
        aiomains = find(runner.load_all(targets, settings), offered, given)
        return runner.run(settings, aiomains, loop_factory, supervised)
    except CommandError as error:
        if verbosity >= 2 and error.__cause__ is not None:
            show_traceback(error.__cause__, whole=True)
        if supervised is not None:
            supervised.failed(error)
            return error.exit
        raise
    except KeyboardInterrupt:  # while a module loads; click would print an empty line
        return Exit.INTERRUPTED


def _prepare(setup: str) -> None:
    """Call the function of --process-setup. Raises a CommandError."""
    try:
        prepare_process(setup)
    except LoadError as error:
        raise CommandError(Exit.LOAD, str(error)) from error
    except ValueError as error:
        raise CommandError(Exit.USAGE, str(error).replace("process_setup=", "--process-setup ")) from None


def _uvloop() -> Callable[[], Any]:
    try:
        import uvloop
    except ImportError:
        raise CommandError(Exit.USAGE, "uvloop is not installed: pip install uvloop") from None
    factory: Callable[[], Any] = uvloop.new_event_loop
    return factory
