"""What a worker process was running when it died: notes in memory that outlives it.

The supervisor makes a `BlackBox` for each process and passes its file descriptor on. The process notes every call
that starts in it with a `Recorder`, and crosses it out when the call ends. That is a write to memory which both
share, well below a microsecond, so that it is done for each call, also for one that kills the process at once.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from atasks.wire import Call

__all__ = ["BlackBox", "Recorder", "install", "installed"]

RECORD: Final = struct.Struct("<Q184s")
"""A number that rises with every call, or 0 for a free record; then the call's id and the atask's name."""
NUMBER: Final = struct.Struct("<Q")
RECORDS: Final = 512
SIZE: Final = RECORD.size * (RECORDS + 1)
"""Bytes. The first record only counts the calls for which there was no record."""


class BlackBox:
    """The supervisor's side: what one process has noted. It can be read while the process lives, and after."""

    def __init__(self) -> None:
        self.fd = _new_file()
        """To be inherited by the process."""
        os.ftruncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)

    def read(self) -> tuple[list[tuple[str, str]], int]:
        """(call id, name of the atask) of the calls noted, the latest first, and how many more there are."""
        unnoted: int = NUMBER.unpack_from(self._map, 0)[0]
        records = [RECORD.unpack_from(self._map, offset) for offset in range(RECORD.size, SIZE, RECORD.size)]
        calls: list[tuple[str, str]] = []
        for _, text in sorted((record for record in records if record[0]), reverse=True):
            call_id, _, name = text.rstrip(b"\0").decode(errors="replace").partition(" ")
            calls.append((call_id, name))
        return calls, unnoted

    def close(self) -> None:
        """Let go of the memory; the process keeps its own hold on it."""
        self._map.close()
        os.close(self.fd)


class Recorder:
    """The worker's side. The calls past `RECORDS` at once are counted and not named. Not thread-safe."""

    def __init__(self, fd: int) -> None:
        """`fd` is that of a `BlackBox`."""
        self._map = mmap.mmap(fd, SIZE)
        self._free = list(range(SIZE - RECORD.size, 0, -RECORD.size))
        self._offsets: dict[str, int] = {}
        self._number = 0

    def enter(self, call: Call) -> None:
        """The call starts."""
        if self._free:
            self._number += 1
            self._offsets[call.id] = offset = self._free.pop()
            RECORD.pack_into(self._map, offset, self._number, f"{call.id} {call.task}".encode())
        else:
            self._offsets[call.id] = 0
            self._count_unnoted(1)

    def leave(self, call: Call) -> None:
        """The call has ended; nothing happens if it never started."""
        offset = self._offsets.pop(call.id, None)
        if offset:
            NUMBER.pack_into(self._map, offset, 0)
            self._free.append(offset)
        elif offset == 0:
            self._count_unnoted(-1)

    def _count_unnoted(self, more: int) -> None:
        NUMBER.pack_into(self._map, 0, NUMBER.unpack_from(self._map, 0)[0] + more)


_recorder: Recorder | None = None


def install(fd: int) -> None:
    """Have the workers of this process note their calls in the `BlackBox` of this file descriptor."""
    global _recorder
    _recorder = Recorder(fd)


def installed() -> Recorder | None:
    """The recorder of this process; None where nobody would read it."""
    return _recorder


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("atasks-blackbox")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
