"""The worker processes that a program starts around its hub."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from atasks import interpreters, process_setup
from atasks.checks import validate_count
from atasks.errors import NotSupported, WorkersFailed
from atasks.logs import levels
from atasks.modules import MAIN_NAMES, main_name
from atasks.namespaces import namespaces
from atasks.options import WorkerOptions
from atasks.supervisor.supervisor import Supervisor

__all__ = ["WorkerProcesses", "check", "check_number"]

MAX_WORKERS: Final = 1000
"""Worker processes of one program."""

END_SECONDS: Final = 5.0
"""Seconds that a worker process has to end, beyond those to finish what it runs; then it is killed."""
BOOTSTRAP: Final = (
    # It is told when to end. Programs that it starts inherit SIG_IGN, and no handler that does nothing.
    "import signal, sys; "
    "[signal.getsignal(number) == signal.SIG_IGN or signal.signal(number, lambda *at: None)"
    " for number in (signal.SIGINT, signal.SIGHUP)]; "
    "import json; config = json.loads(sys.argv.pop()); sys.path[:] = config.pop('path'); "
    "sys.argv[:] = config.pop('argv')\n"
    "from atasks.allocation import imports_that_stay\n"
    "with imports_that_stay():\n"
    "    from atasks.local_worker import main\n"
    "main(**config)"
)
"""The program of a worker process: it finds the modules where this one does, atasks included."""


def check(options: WorkerOptions) -> None:
    """Refuse here what a worker process would refuse. Raises TypeError, ValueError."""
    for name, value in options.items():
        if name not in WorkerOptions.__annotations__:
            raise TypeError(f"unknown option {name!r}: known are {', '.join(WorkerOptions.__annotations__)}")
        if value is not None and name == "process_setup":
            process_setup.check(value)
        elif value is not None and name != "grace":
            validate_count(name, value)


def check_number(workers: Any) -> None:
    """Refuse a number of worker processes that cannot be. Raises TypeError, ValueError."""
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers is a number of processes, not {workers!r}")
    if not 0 <= workers <= MAX_WORKERS:
        raise ValueError(f"workers={workers if abs(workers) < 10**12 else '…'}: 0 to {MAX_WORKERS} processes")


class WorkerProcesses:
    """So many worker processes, each one replaced when it dies. They are fresh interpreters."""

    def __init__(
        self,
        count: int,
        socket: str,
        namespace: str,
        modules: Sequence[str] | None,
        options: WorkerOptions,
        on_end: Callable[[int], None],
    ) -> None:
        """`on_end` gets the pid of each process that has ended. Raises NotSupported if atasks are in no module."""
        self._grace = options.get("grace", 0.0)
        config = {
            "path": [entry or os.getcwd() for entry in sys.path],
            "argv": [str(word) for word in sys.argv],
            "modules": _modules(namespace) if modules is None else list(modules),
            "uvloop": type(asyncio.get_running_loop()).__module__.startswith("uvloop"),
            "socket": socket,
            "namespace": namespace,
            "grace": self._grace,
            "levels": levels(),
            **options,
            "process_setup": options.get("process_setup") or process_setup.remembered(),
        }
        command = [*interpreters.command(), "-c", BOOTSTRAP, json.dumps(config)]
        self._supervisor = Supervisor(command, count, on_end=on_end)

    @property
    def pids(self) -> list[int]:
        """The processes that live now."""
        return [process.pid for process in self._supervisor.processes]

    async def start(self, timeout: float) -> None:
        """Return when all of them serve. Raises WorkersFailed if they do not, within so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._supervisor.start()
        except TimeoutError:
            raise WorkersFailed(
                f"the worker processes were not ready in {timeout:g} s: do their modules take so long to import?"
            ) from None

    async def wait(self) -> None:
        """Return when it is stopped. Raises WorkersFailed when they die faster than they start."""
        await self._supervisor.wait()

    async def stop(self) -> None:
        """Have them drain and end; return when none is left."""
        await self._supervisor.stop(self._grace + END_SECONDS)


def _modules(namespace: str) -> list[str]:
    """The modules, or the file of a script, that define the atasks of the namespace."""
    registry = getattr(namespaces.get(namespace), "registry", None)
    items = [registry.get(name) for name in registry.names()] if registry is not None else []
    found = dict.fromkeys(item.task.module for item in items)
    if None in found:
        raise NotSupported(
            "worker processes cannot import what a prompt, a notebook, or a program without a file of its own "
            "defines: put the atasks into a module that it imports"
        )
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None) if getattr(main, "__spec__", None) is None else None
    if script is not None and found.keys() & {
        main_name(),
        *MAIN_NAMES,
    }:  # a file may have any name, so by its path
        return [os.path.abspath(script), *(name for name in found if name not in {main_name(), *MAIN_NAMES})]
    return list(found)
