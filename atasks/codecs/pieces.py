"""Pickles in pieces: what is large is not copied, or, within one host, in memory that processes share."""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import pickle
import sys
import weakref
from collections.abc import Sequence
from functools import cache
from mmap import MAP_PRIVATE, PROT_READ, PROT_WRITE
from typing import Any, Final

__all__ = ["SHARED_BYTES", "SHARES", "Pieces", "Shared"]

SHARED_BYTES: Final = 2**20
"""A piece of so many bytes is in shared memory, within one host."""
PIECE_BYTES: Final = 64 * 2**10
"""A pickle with a piece of so many bytes is in pieces: pickle gives those away without a copy."""
MAX_PIECES: Final = 64
"""Pieces of one payload that are in shared memory: a payload with more is bytes."""
MAX_SHARED: Final = 256
"""Pieces of shared memory that a process has a descriptor of: further payloads are bytes."""
SHARES: Final = hasattr(os, "memfd_create")
"""True if the system has memory without a name: it goes with the last process that has it, however that ends."""
SEALS: Final = 0 if not SHARES else fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""They forbid to change the memory and to cut it short: who reads it would find other bytes, or die of reading."""
ADVICE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)
"""The advice to use large pages; None: this system knows none."""
BLOCK: Final = 512
"""Bytes in which the system counts what a file takes."""
HUGE: Final = 2 * 2**20
"""Bytes of a large page of memory."""
NOWHERE: Final = 2 * sys.maxsize + 1
"""The address of memory that could not be mapped."""
NEXT_BUFFER: Final = b"\x97"
"""Pickle's instruction to take the next of the buffers that are given beside the pickle."""


class Shared:
    """Memory that others can have too, and nobody can change."""

    __slots__ = ("descriptor", "size")
    count = 0
    """The number of them in this process."""

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor. Raises OSError if it is not of such memory."""
        self.descriptor = descriptor
        Shared.count += 1
        found = os.fstat(descriptor)
        self.size = found.st_size
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS
        readable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)
        # Of large pages the system names no holes.
        there = min(os.lseek(descriptor, 0, os.SEEK_HOLE), found.st_blocks * BLOCK)
        if not (sealed and readable) or there < self.size:
            raise OSError("it may change or shrink, or may not be read, or some of it is not there yet")

    def __del__(self) -> None:
        Shared.count -= 1
        os.close(self.descriptor)

    @classmethod
    def copy(cls, piece: bytes | memoryview) -> Shared:
        """Return such memory with these bytes. Raises OSError."""
        descriptor = os.memfd_create("atasks payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def read(self) -> bytes:
        """Return the bytes, in memory of their own."""
        file = io.BytesIO(bytes(self.size))  # it gives its bytes away without a copy, once its buffer is released
        with file.getbuffer() as room:
            _advise(room)
            done = 0
            while done < self.size:
                done += os.preadv(self.descriptor, [room[done:]], done)
        return file.getvalue()

    def map(self) -> memoryview:
        """Return the memory itself, of which what is written to is copied first. Without a descriptor, which an
        `mmap` would keep for as long as somebody has a part of it."""
        system = _system()
        address = system and system.mmap(None, self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, self.descriptor, 0)
        if address in (None, NOWHERE):
            return memoryview(bytearray(self.read()))
        from ctypes import c_char

        memory = (c_char * self.size).from_address(address)
        weakref.finalize(memory, system.munmap, address, self.size).atexit = False
        return memoryview(memory).cast("B")


@cache
def _system() -> Any:
    """Return the functions of the system for memory, of which the `mmap` of Python does not give all; None where
    Python reaches no library of C."""
    try:
        from ctypes import CDLL, c_int, c_long, c_size_t, c_void_p

        system = CDLL(None)
    except (ImportError, OSError):
        return None
    system.mmap.restype = c_void_p
    system.mmap.argtypes = c_void_p, c_size_t, c_int, c_int, c_int, c_long
    system.munmap.argtypes = c_void_p, c_size_t
    system.madvise.argtypes = c_void_p, c_size_t, c_int
    return system


def _advise(room: memoryview) -> None:
    """Ask for large pages: memory that is fresh costs a fault for each page."""
    system = None if ADVICE is None else _system()
    if system is not None and len(room) > HUGE:
        from ctypes import addressof, c_char

        address = addressof(c_char.from_buffer(room))
        begin = -(-address // HUGE) * HUGE
        system.madvise(begin, (address + len(room) - begin) // HUGE * HUGE, ADVICE)


class Pieces:
    """A pickle in pieces: joined, they are the pickle. It stands in the place of the bytes of a payload."""

    __slots__ = ("pieces", "size")

    def __init__(self, pieces: Sequence[bytes | memoryview | Shared]) -> None:
        self.pieces = pieces
        self.size = sum(piece.size if isinstance(piece, Shared) else len(piece) for piece in pieces)

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers())

    def buffers(self) -> list[bytes | memoryview]:
        """The pieces as bytes, large ones without a copy."""
        return [piece.map() if isinstance(piece, Shared) else piece for piece in self.pieces]

    def still(self) -> Pieces:
        """Return pieces to which nobody can write: bytes themselves, and copies of others."""
        return Pieces([piece if _is_bytes(piece) else bytes(piece) for piece in self.buffers()])

    def shared(self) -> Pieces | bytes:
        """Return a copy whose large pieces others can have; the bytes if there can be none."""
        large = sum(not isinstance(piece, Shared) and len(piece) >= SHARED_BYTES for piece in self.pieces)
        if 0 < large <= MAX_PIECES and Shared.count + large <= MAX_SHARED:
            try:
                return Pieces([_shared(piece) for piece in self.pieces])
            except OSError:
                pass  # there is no memory of that kind, or no descriptor
        return bytes(self)

    def load(self) -> Any:
        """Return the object. Large bytes are copied once, and the memory of arrays is that which was sent."""
        pickled: list[bytes] = []
        buffers: list[bytes | memoryview] = []
        for piece in self.pieces:
            if not isinstance(piece, Shared):
                pickled.append(bytes(piece))
                continue
            before = pickled[-1] if pickled else b""
            size = piece.size.to_bytes(8, "little")
            if before.endswith(b"\x96" + size):  # BYTEARRAY8
                buffers.append(piece.map())
                pickled[-1:] = before[:-9], NEXT_BUFFER
            elif before.endswith(b"B" + size[:4]) and piece.size < 2**32:  # BINBYTES
                buffers.append(piece.read())
                pickled[-1:] = before[:-5], NEXT_BUFFER
            elif before.endswith(b"\x8e" + size):  # BINBYTES8
                buffers.append(piece.read())
                pickled[-1:] = before[:-9], NEXT_BUFFER
            else:  # a text
                pickled.append(piece.read())
        return pickle.loads(b"".join(pickled), buffers=buffers)


def _is_bytes(piece: bytes | memoryview) -> bool:
    return type(piece.obj if isinstance(piece, memoryview) else piece) is bytes


def _shared(piece: bytes | memoryview | Shared) -> bytes | Shared:
    if isinstance(piece, Shared):
        return piece
    return bytes(piece) if len(piece) < SHARED_BYTES else Shared.copy(piece)  # its owner may write to it
