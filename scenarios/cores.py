"""A job for all cores: a picture of the Mandelbrot set, one call per tile, each in a process.

    atasks run scenarios/cores.py [-o width=900] [-o depth=500] [-o file=picture.png]
    atasks run scenarios/cores.py --processes 1                with one core; compare the times
    atasks run scenarios/cores.py --mode server                on each host
    atasks run scenarios/cores.py --mode client                draws with all of them

A tile is a plain function that computes and nothing else, so it runs beside the worker's event loop, in as many
processes as there are processors. Progress is a bar in a terminal (with `pip install rich`), and
plain lines elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atasks import atask

LEFT, TOP, SPAN = -2.2, 1.2, 3.2
"""Left edge, top edge and width of the picture in the complex plane."""
TILE = 60
"""Pixels, at most, of each side of a tile."""
PALETTE = (
    bytes(channel for n in range(255) for channel in (n * n // 255, n, min(255, 40 + 2 * n))) + b"\x00\x00\x00"
)
"""Colours by how soon a point escapes; the last one is for those that never do."""


@atask(executor="process")
def tile(x: int, y: int, columns: int, rows: int, width: int, depth: int) -> tuple[int, list[bytes]]:
    """The process that it was made in, and its rows, a byte per pixel."""
    scale = SPAN / width
    across = [LEFT + scale * (x + column) for column in range(columns)]
    down = [TOP - scale * (y + row) for row in range(rows)]
    return os.getpid(), [bytes(colour(complex(real, imaginary), depth) for real in across) for imaginary in down]


def colour(point: complex, depth: int) -> int:
    """The number of its colour: how soon it escapes in `depth` steps, 255 if it does not."""
    z = 0j
    for step in range(depth):
        if abs(z) > 2:
            return int(255 * (step / depth) ** 0.5)
        z = z * z + point
    return 255


async def picture(width: int, height: int, depth: int, done: Callable[[], None]) -> tuple[set[int], list[bytes]]:
    """The processes that took part, and the rows of the picture; `done` is called after each tile."""
    processes: set[int] = set()

    async def part(x: int, y: int) -> list[bytes]:
        pid, rows = await tile(x, y, min(TILE, width - x), min(TILE, height - y), width, depth)
        processes.add(pid)
        done()
        return rows

    columns = range(0, width, TILE)
    tiles = await asyncio.gather(*(part(x, y) for y in range(0, height, TILE) for x in columns))
    bands = [tiles[first : first + len(columns)] for first in range(0, len(tiles), len(columns))]
    return processes, [b"".join(parts) for band in bands for parts in zip(*band, strict=True)]


def png(rows: Sequence[bytes]) -> bytes:
    """A picture file of rows of numbers of colours."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    unfiltered = b"".join(b"\x00" + row for row in rows)
    chunks = (b"IHDR", header), (b"PLTE", PALETTE), (b"IDAT", zlib.compress(unfiltered)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of the file: its length, its kind, what is in it, and a checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A function to be called `total` times, which shows how far that is."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            pass
        else:
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task("tiles", total=total)
                yield lambda: bar.advance(task)
            return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done * 4 // total > (done - 1) * 4 // total:  # at each quarter
            print(f"{done} of {total} tiles", file=sys.stderr)

    yield advance


async def aiomain(
    mode: str, width: int = 600, height: int = 450, depth: int = 200, file: str = "mandelbrot.png", **options: Any
) -> None:
    """Draw it, and say how long that took and how many processes took part."""
    if mode == "server":
        return
    begun = time.perf_counter()
    with progress(-(-width // TILE) * -(-height // TILE)) as done:
        processes, rows = await picture(width, height, depth, done)
    took = time.perf_counter() - begun
    await asyncio.to_thread(Path(file).write_bytes, png(rows))
    crowd = "1 process" if len(processes) == 1 else f"{len(processes)} processes"
    print(f"{file}: {width} x {height} pixels, drawn by {crowd}")
    print(f"{took:.1f} s", file=sys.stderr)
