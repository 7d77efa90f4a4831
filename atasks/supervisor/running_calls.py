"""Notes of the calls that a worker process runs, and what it counts, in memory that outlives the process.

The supervisor makes a `RunningCalls` for each process and passes its file descriptor on. The process notes every
call that starts in it with a `RunningCallsNotes`, and crosses it out when the call ends. Both share the memory, so
that takes a few writes and no system call, and is done for each call: also for one that kills the process at once.

The memory holds `RECORDS` numbers, as many records, and the counters of the workers (`atasks.tracking.counters`).
The number of a record rises with every call that starts, and is 0 while the record is free.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Final

from atasks.tracking.counters import TABLE_SIZE, Table

if TYPE_CHECKING:
    from atasks.wire import Call

__all__ = ["RunningCalls", "RunningCallsNotes", "install", "installed"]

RECORD: Final = struct.Struct("48s144s")
"""The call's id and the atask's name, cut to these lengths and padded with zeros."""
RECORDS: Final = 512
NUMBERS: Final = struct.Struct(f"@{RECORDS}Q")
COUNTERS: Final = NUMBERS.size + RECORDS * RECORD.size
"""The offset of the counters, in bytes."""
SIZE: Final = COUNTERS + TABLE_SIZE
"""Bytes."""


class RunningCalls:
    """The supervisor's side: what one process has noted. It can be read while the process lives, and after."""

    def __init__(self) -> None:
        self.fd = _new_file()
        """To be inherited by the process."""
        os.ftruncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)
        self.table = Table(memoryview(self._map)[COUNTERS:])
        """The counters of the process's workers."""

    def read(self) -> tuple[list[tuple[str, str]], int]:
        """(call id, name of the atask) of the calls noted, the latest first, and how many more there are."""
        numbers = NUMBERS.unpack_from(self._map)
        used = sorted(((number, index) for index, number in enumerate(numbers) if number), reverse=True)
        return [self._record(index) for _, index in used], max(self.table.busy - len(used), 0)

    def _record(self, index: int) -> tuple[str, str]:
        call_id, name = RECORD.unpack_from(self._map, NUMBERS.size + index * RECORD.size)
        return call_id.rstrip(b"\0").decode(errors="replace"), name.rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        """Let go of the memory; the process keeps its own hold on it."""
        self.table = Table()
        self._map.close()
        os.close(self.fd)


class RunningCallsNotes:
    """The worker's side. The calls past `RECORDS` at once are not named. Not thread-safe."""

    def __init__(self, fd: int) -> None:
        """`fd` is that of a `RunningCalls`."""
        memory = memoryview(mmap.mmap(fd, SIZE))
        self._numbers = memory[: NUMBERS.size].cast("Q")
        self._records = memory[NUMBERS.size : COUNTERS]
        self.table = Table(memory[COUNTERS:])
        """For the counters of the workers of this process."""
        self._free = list(range(RECORDS - 1, -1, -1))
        self._names: dict[str, bytes] = {}
        self._number = 0

    def enter(self, call: Call) -> int | None:
        """The call starts. Returns the record that names it; None: there is no free one."""
        if not self._free:
            return None
        record = self._free.pop()
        name = self._names.get(call.task)
        if name is None:
            name = self._names[call.task] = call.task.encode()
        RECORD.pack_into(self._records, record * RECORD.size, call.id.encode(), name)
        self._number += 1
        self._numbers[record] = self._number
        return record

    def leave(self, record: int) -> None:
        """The call of this record has ended."""
        self._numbers[record] = 0
        self._free.append(record)


_notes: RunningCallsNotes | None = None


def install(fd: int) -> None:
    """Have the workers of this process note their calls in the `RunningCalls` of this file descriptor."""
    global _notes
    _notes = RunningCallsNotes(fd)


def installed() -> RunningCallsNotes | None:
    """The notes of this process; None where nobody would read it."""
    return _notes


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("atasks-blackbox")
    import tempfile  # which Linux needs not wait for

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
