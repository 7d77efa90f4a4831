"""The program of a worker process of `local:` and of `atasks.serve(workers=...)`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

import atasks
from atasks import forks, logs, process_setup
from atasks import modules as loader
from atasks.allocation import keep_freed_memory
from atasks.connection import import_ahead
from atasks.errors import AtasksError, TransportError
from atasks.supervisor.tether import Tether
from atasks.wire import counted
from atasks.worker.leaving import EXIT_SECONDS, leave_within

__all__ = ["main"]

import_ahead("unix", serves=True)  # while nothing looks for garbage: see `BOOTSTRAP`

ORPHAN_SECONDS: Final = 10.0
"""Seconds that this process has to end by itself when the program that started it is gone."""
LOAD: Final = 3
"""The exit code where a module cannot be imported."""


def main(socket: str, modules: Sequence[str], uvloop: bool, levels: dict[str, Any], **options: Any) -> None:
    """Prepare this process, import the modules, and serve their atasks until told to drain, or until the hub
    is gone."""
    tether = Tether.inherited()
    assert tether is not None, "a supervisor starts it"
    tether.end_with_supervisor(ORPHAN_SECONDS)
    keep_freed_memory()
    try:
        if (setup := options["process_setup"]) is not None:
            process_setup.run(setup)
        _load(modules)
    except AtasksError as error:
        tether.failed(" ".join(str(error).split()), LOAD)
        raise SystemExit(LOAD) from None
    logs.adopt(levels, f"worker {tether.number}")
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop:
        import uvloop as library

        factory = library.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        until = runner.run(_serve(f"unix://{quote(socket)}", tether, options))
        leave_within(max(0.0, until - time.monotonic()) + EXIT_SECONDS, 0)  # leaving the runner waits for threads


def _load(modules: Sequence[str]) -> None:
    """Import them: a module by its dotted name, as the program did, a script by its file. Raises LoadError."""
    with loader.importing():
        for name in modules:
            if name.endswith(".py") or os.sep in name:
                loader.load(name)
            else:
                with loader.explained(name):
                    importlib.import_module(name)


async def _serve(url: str, tether: Tether, options: dict[str, Any]) -> float:
    """Serve until told to drain, or until the hub is gone. Returns when the grace is over (monotonic time)."""
    until = time.monotonic()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TransportError):  # the hub is gone, and this process ends with it
        async with atasks.serve(url, hub=False, **options) as worker:
            tether.ready(f"{counted(len(worker.tasks), 'atask')} in process {os.getpid()}")
            stopped = asyncio.create_task(tether.released())
            forks.handle_signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stopped.cancel))
            ended = asyncio.create_task(worker.wait())
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if ended.done():
                ended.exception()  # the worker has logged it
                await worker.drain(grace=0)  # nobody awaits what it runs
            else:
                until = time.monotonic() + options.get("grace", 30.0)
                ended.cancel()
    return until
