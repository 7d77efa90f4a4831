"""The memory of a worker process: what a large payload leaves stays for the next, and what is imported first stays
as it is."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["imports_that_stay", "keep_freed_memory"]

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 64 * 2**20
"""Free memory that stays with the process at the end of a heap: as much as the C library comes to by itself where
it has seen that large blocks come and go. It is no bound: each thread may have a heap, and a block in use at the
end of one keeps all free memory below it."""
OWN_BLOCK_BYTES: Final = 32 * 2**20
"""From so many bytes on a block is memory of its own, which goes back to the system at once."""


def keep_freed_memory() -> None:
    """Have this process, which serves calls, keep memory that it frees, of blocks below `OWN_BLOCK_BYTES`.

    It keeps `KEPT_BYTES` at the end of each heap, and what is free below a block in use.

    A call frees its arguments, its result and the pickles of both at its end. glibc gives so much memory back at
    once, and the system has to hand out each page of it anew, and to clear it, for the next call. Nothing changes
    where the environment says how it is to be (`GLIBC_TUNABLES`, `MALLOC_..._`), with another C library,
    or where Python has no `ctypes`.
    """
    if sys.platform != "linux" or any(
        name == "GLIBC_TUNABLES" or (name.startswith("MALLOC_") and name.endswith("_")) for name in os.environ
    ):
        return
    try:
        import ctypes  # which other programs need not wait for

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):  # a Python without it, or another C library
        return
    mallopt(M_MMAP_THRESHOLD, OWN_BLOCK_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def imports_that_stay() -> Iterator[None]:
    """Import inside of this block with the garbage collector off. It never looks through what is there at the end.

    What is imported stays: it is tens of thousands of objects. To look through them again and again takes a tenth
    of the time in which a worker starts, and later time of the calls, whenever all objects are looked through.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
