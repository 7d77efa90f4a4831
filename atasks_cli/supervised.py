"""The worker's side of --workers, --reload and the limits of worker processes."""

from __future__ import annotations

import asyncio
import os
import resource
import sys

import atasks
from atasks.supervisor.tether import Tether
from atasks_cli.exits import CommandError, Exit
from atasks_cli.reload import files_of, project_files
from atasks_cli.size import shown_size
from atasks_cli.supervision import Supervision

__all__ = ["Supervised"]

PERIOD = 0.5
"""Seconds between two looks at the limits."""


class Supervised:
    """A worker process that a supervisor has started."""

    def __init__(self, tether: Tether, supervision: Supervision) -> None:
        self.tether = tether
        self._supervision = supervision
        # Lines leave when they are written: nothing is lost if the process is killed, and none of them are mixed.
        # With $PYTHONUNBUFFERED each word that is printed would leave by itself.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]  # the real ones can do that

    def failed(self, error: CommandError) -> None:
        """Tell the supervisor why this process ends before it serves."""
        if self._supervision.reload and error.__cause__ is not None and error.__cause__.__cause__ is not None:
            self.tether.report("files", [*project_files(), *files_of(error.__cause__.__cause__)])
        self.tether.failed(str(error), error.exit)

    def ready(self, what: str) -> None:
        """Tell the supervisor that this process serves. Raises a CommandError if it is over its limits already."""
        limit, size = self._supervision.max_memory, resident()
        if limit is not None and size >= limit:
            raise CommandError(
                Exit.USAGE,
                f"--max-memory-per-worker {shown_size(limit)}: a worker takes {shown_size(size)} before its first "
                "call; allow more",
            )
        if self._supervision.reload:
            self.tether.report("files", project_files())
        self.tether.ready(what)

    async def watch(self, worker: atasks.Worker) -> None:
        """Have this process replaced once it is over a limit; tell of the modules that calls import."""
        supervision, loaded = self._supervision, len(sys.modules)
        while True:
            await asyncio.sleep(PERIOD)
            calls, size = supervision.max_calls, supervision.max_memory
            if calls is not None and worker.started >= calls:
                self.tether.retire(f"it has started {worker.started} calls (--max-calls-per-worker {calls})")
            if size is not None and (now := resident()) >= size:
                self.tether.retire(f"it takes {shown_size(now)} (--max-memory-per-worker {shown_size(size)})")
            if supervision.reload and loaded != len(sys.modules):
                loaded = len(sys.modules)
                self.tether.report("files", project_files())


def resident() -> int:
    """Bytes of memory that this process takes; where the system does not tell, the most that it ever took."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
