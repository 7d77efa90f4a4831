"""Processes that a test may kill. Each is reaped in the end, whatever became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import atasks
from tests.waiting import DEADLINE

__all__ = ["Process"]


class Process:
    """`python -m module arguments...` with this interpreter and these sources; warnings are errors in it.

    `sources`: the directory of another `atasks`, which takes the place of this one there."""

    def __init__(self, module: str, *arguments: str, sources: Path | None = None) -> None:
        root = Path(atasks.__file__).parent.parent
        path = [sources, root] if sources else [root]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it is closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=path[0],
            env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": os.pathsep.join(map(str, path))},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self.pid = self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """The text that the process wrote to stdout and stderr."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")  # it goes on writing at its end

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """End it, if it still runs."""
        if self.running:
            self.process.kill()
        self.process.wait()
        self._output.close()
