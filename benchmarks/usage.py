"""CPU seconds and memory of one process, or of all that it started."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

__all__ = ["Usage"]

RESET_PEAK = "5"
"""Text that makes Linux count a process's peak anew, if it is written to `clear_refs`."""


class Usage:
    """CPU seconds and peak memory of some processes, which may come and go."""

    def __init__(self, processes: Callable[[], list[psutil.Process]]) -> None:
        self._processes = processes

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Return the usage of that process alone."""
        return cls(lambda: [psutil.Process(pid)])

    @classmethod
    def below(cls, pid: int) -> Usage:
        """Return the usage of all descendants of that process, without itself."""
        return cls(lambda: psutil.Process(pid).children(recursive=True))

    @classmethod
    def together(cls, *usages: Usage) -> Usage:
        """Return the usage of the processes of all these."""
        return cls(lambda: [process for usage in usages for process in usage._processes()])

    def exists(self) -> bool:
        """Return True if there is any process."""
        return bool(self._processes())

    def cpu(self) -> float:
        """CPU seconds so far, in steps of a clock tick (10 ms on Linux)."""
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def reset_peak(self) -> None:
        """Count the peak of memory anew, where the system can (Linux)."""
        for process in self._processes():
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text(RESET_PEAK)

    def peak(self) -> int:
        """Bytes of memory at the peak since the last reset; elsewhere than on Linux, now.

        Pages that processes share are counted for each of them.
        """
        total = 0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                total += _peak(process)
        return total


def _peak(process: psutil.Process) -> int:
    if sys.platform == "linux":
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return int(process.memory_info().rss)
