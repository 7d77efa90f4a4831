"""Runs the real command in a process of its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import atasks
from tests.busy import is_warning

LEFT_OUT = ("ATASKS_URL", "PYTHONASYNCIODEBUG", "PYTHONSTARTUP")
"""Variables that commands do not inherit. With asyncio's debug mode, stderr tells of a busy machine."""

PATIENCE = 60.0
"""Seconds after which a command that does not do what a test waits for has failed it."""


@dataclass(frozen=True)
class Done:
    """The end of a command: its exit code and its output, but for what a busy machine has it say."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """Return the message on stderr, which has to be one line, after `atasks: error: `."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("atasks: error: "), self.err
        return lines[0].removeprefix("atasks: error: ")


class Command:
    """A running command. Its output can be waited for line by line. If `merged`, stderr goes to stdout, in the
    order in which a terminal would show both. `read`: how many lines of stdout are read before it is closed.
    `program`: what the interpreter runs."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: dict[str, str] | None = None,
        merged: bool = False,
        read: int | None = None,
        program: Sequence[str] = ("-m", "atasks"),
    ) -> None:
        environ = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
        environ["PYTHONPATH"] = str(Path(atasks.__file__).parent.parent)
        environ["PYTHONWARNINGS"] = "error"
        environ["PYTHONUNBUFFERED"] = "1"
        environ["COLUMNS"] = "200"
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=cwd,
            env={**environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            text=True,
            # Under nohup, it would inherit that nothing comes of it when its terminal is closed.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self._read_at_most = read
        self._lines: queue.Queue[str] = queue.Queue()
        self._skipped: list[str] = []
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
            if pair[0] is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str] | None, lines: list[str]) -> None:
        assert stream is not None
        with stream:
            for line in stream:
                if stream is self.process.stderr and is_warning(line):
                    continue
                lines.append(line)
                self._lines.put(line)
                if stream is self.process.stdout and len(lines) == self._read_at_most:
                    return

    def wait_for(self, text: str) -> str:
        """The first line of stdout or stderr with this text that was not returned before, once there is one."""
        for line in self._skipped:
            if text in line:
                self._skipped.remove(line)
                return line
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} in {self._skipped}") from None
            if text in line:
                return line
            self._skipped.append(line)  # the order of lines of two streams says nothing

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self) -> Done:
        """Wait until it has ended."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return Done(code, "".join(self.out), "".join(self.err))

    def close(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
