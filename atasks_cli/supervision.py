"""The supervisor's side of --workers, --reload and the limits of worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from atasks import forks
from atasks.connection import connect
from atasks.errors import TransportError, WorkersFailed
from atasks.supervisor.supervisor import Supervisor
from atasks.wire import counted
from atasks_cli.exits import CommandError, Exit, explain
from atasks_cli.messages import say
from atasks_cli.reload import Watcher
from atasks_cli.runner import probes
from atasks_cli.settings import Mode, Settings
from atasks_cli.signals import Signals

__all__ = ["Supervision", "supervise"]

MARGIN = 15.0
"""Seconds past the grace in which a worker may clean up and close its connections: see docs/shutdown.md."""

MENDED_BY_CHANGE = {Exit.LOAD, Exit.USAGE, Exit.WORKERS}
"""Exits that another version of the modules may put right."""


@dataclass(frozen=True)
class Supervision:
    """The settings of a supervisor and of its workers."""

    workers: int
    reload: bool
    max_calls: int | None
    max_memory: int | None
    """Bytes."""

    @classmethod
    def make(
        cls, mode: Mode, workers: int | None, reload: bool, max_calls: int | None, max_memory: int | None
    ) -> Supervision:
        """Return what these options of the command ask for, one of which is given. Raises a CommandError outside
        of server mode."""
        if mode != "server":
            asked = {
                "--workers": workers,
                "--reload": reload,
                "--max-calls-per-worker": max_calls,
                "--max-memory-per-worker": max_memory,
            }
            option = next(option for option, value in asked.items() if value)
            raise CommandError(
                Exit.USAGE, f"{option} is for --mode server, and this is --mode {mode}: leave it out"
            )
        return cls(workers or 1, reload, max_calls, max_memory)


def supervise(settings: Settings, supervision: Supervision, command: Sequence[str] | None = None) -> int:
    """Run a command (None: this very one) in worker processes until a signal; the exit code. Raises a
    CommandError."""
    with probes(settings.http), asyncio.Runner() as runner:
        return runner.run(_supervise(settings, supervision, command or [sys.executable, *sys.orig_argv[1:]]))


async def _supervise(settings: Settings, supervision: Supervision, command: Sequence[str]) -> int:
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(Watcher()) if supervision.reload else None

        def hear(number: int, kind: str, values: list[Any]) -> None:
            if kind == "files" and watcher is not None:
                watcher.add(values[0])

        on_end: Callable[[int], None] | None = None
        if settings.transport == "unix":  # its hub is here, and outlives the workers
            try:
                transport = await stack.enter_async_context(connect(settings.url, hub=True, workers=0))
            except TransportError as error:
                raise explain(error) from error
            from atasks.transport.backends.local import LocalTransport  # not for `atasks run` without such workers

            assert isinstance(transport, LocalTransport)
            on_end = transport.process_ended
        supervisor = Supervisor(command, supervision.workers, on_output=_relay, on_report=hear, on_end=on_end)
        stop = asyncio.Event()
        signals = Signals(stop.set)
        signals.last = supervisor.kill
        await stack.enter_async_context(supervisor)
        if settings.has_keys:
            loop = asyncio.get_running_loop()
            forks.handle_signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(_hang_up, supervisor))
        running = asyncio.create_task(_run(supervisor, watcher, settings.grace + MARGIN))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        except WorkersFailed as error:
            raise explain(error) from error
        finally:
            running.cancel()
            stopped.cancel()
            await asyncio.wait({running, stopped})
        if supervisor.processes:
            say(f"draining {_workers(supervisor)}, for at most {settings.grace:g} s; Ctrl-C again to exit at once")
            await supervisor.stop(settings.grace + MARGIN)
    return Exit.OK


def _hang_up(supervisor: Supervisor) -> None:
    """Have the workers read their file of keys again."""
    for process in supervisor.processes:
        if process.serving:  # one that starts reads it anyway, and would not survive the signal yet
            process.signal(signal.SIGHUP)


async def _run(supervisor: Supervisor, watcher: Watcher | None, patience: float) -> None:
    """Keep the workers serving. With a watcher, start them again on each change; `patience`: seconds to drain."""
    if watcher is None:
        await _serve(supervisor)
        return
    while True:
        watcher.forget_changes()
        serving = asyncio.create_task(_serve(supervisor))
        change = asyncio.create_task(watcher.change())
        try:
            await asyncio.wait({serving, change}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
            serving.cancel()
            await asyncio.wait({serving, change})
        files = await _mended(serving, watcher) if change.cancelled() else change.result()
        say(f"{_shown(files)} changed: starting {_workers(supervisor)} again")
        await supervisor.stop(patience)


async def _serve(supervisor: Supervisor) -> None:
    await supervisor.start()
    plural = supervisor.count > 1
    what = supervisor.processes[0].serves
    say(f"{_workers(supervisor)} {'serve' if plural else 'serves'} {what}{' each' * plural}; Ctrl-C to drain")
    await supervisor.wait()


async def _mended(serving: asyncio.Task[None], watcher: Watcher) -> list[str]:
    """The workers cannot serve: the files whose change may help, once there was one. Raises why, if none can."""
    try:
        await serving
    except WorkersFailed as error:
        failure = explain(error)
        if failure.exit not in MENDED_BY_CHANGE or not watcher.files:
            raise
        say(f"{failure}; waiting for a change")
    return await watcher.change(beside=True)


def _workers(supervisor: Supervisor) -> str:
    return counted(supervisor.count, "worker")


def _shown(files: Sequence[str]) -> str:
    name = os.path.relpath(files[0])
    return name if len(files) == 1 else f"{name} and {len(files) - 1} more"


def _relay(number: int, lines: bytes) -> None:
    """Write the lines that a worker has written to stderr, under its number; lines of JSON have it in them."""
    prefix = f"[worker {number}] ".encode()
    shown = [line if line.startswith(b"{") else prefix + line for line in lines.splitlines(keepends=True)]
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
        sys.stderr.flush()
        sys.stderr.buffer.write(b"".join(shown))
        sys.stderr.buffer.flush()
