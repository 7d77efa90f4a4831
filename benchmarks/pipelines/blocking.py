"""Plain functions in the threads and processes of pipelines, and of their peers: `SYSTEM WORK`.

Run in the environment of the system; the library is imported by its own function.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["WORKS", "may"]

MIB = 1 << 20
RUNS = 10

WORKS = {
    "threads": ("3 000 items, two stages of a thread", 3000),
    "processes": ("3 000 items, one stage of two processes", 3000),
    "large": ("100 items of 1 MiB, two stages of a process", 100),
    "start": ("one item, two stages of a process", 1),
}
"""The name of each work, and how many items it has."""


def add_one(x: int) -> int:
    return x + 1


def same(x: bytes) -> bytes:
    return x


def items_of(work: str, number: int) -> Iterable[object]:
    return [bytes(MIB)] * number if work == "large" else range(number)


def atasks(work: str, number: int) -> Iterable[object]:
    from atasks.pipeline import map

    items: Any = items_of(work, number)
    if work == "processes":
        return items | map(add_one, multiprocess=True, workers=2)
    function, apart = (same if work == "large" else add_one), work != "threads"
    return items | map(function, multiprocess=apart) | map(function, multiprocess=apart)


def pyper(work: str, number: int) -> Iterable[object]:
    from pyper import task

    source = task(items_of, branch=True, throttle=64)
    if work == "processes":
        return (source | task(add_one, workers=2, multiprocess=True, throttle=64))(work, number)
    function, apart = (same if work == "large" else add_one), work != "threads"
    first = task(function, multiprocess=apart, throttle=64)
    return (source | first | task(function, multiprocess=apart, throttle=64))(work, number)


def pypeln(work: str, number: int) -> Iterable[object]:
    import pypeln as pl

    items: Any = items_of(work, number)
    if work == "processes":
        return pl.process.map(add_one, items, workers=2, maxsize=64)
    function = same if work == "large" else add_one
    module = pl.thread if work == "threads" else pl.process
    return module.map(function, module.map(function, items, maxsize=64), maxsize=64)


def pool(work: str, number: int) -> Iterable[object]:
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    items: Any = items_of(work, number)
    if work == "processes":
        with ProcessPoolExecutor(2) as both:
            yield from both.map(add_one, items)
        return
    function = same if work == "large" else add_one
    kind = ThreadPoolExecutor if work == "threads" else ProcessPoolExecutor
    with kind(1) as first, kind(1) as second:
        yield from second.map(function, first.map(function, items))


def pool_in_chunks(work: str, number: int) -> Iterable[object]:
    """The pool without a bound on what it has in hand."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as both:
        yield from both.map(add_one, range(number), chunksize=32)


def may(name: str, work: str) -> bool:
    """Return True if the system does this work."""
    return name != "pool_in_chunks" or work == "processes"


def cpu() -> float:
    """The CPU seconds of this process, of its children, and of those that they have waited for. Those of children
    that live are known to 10 ms."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + sum(map(_cpu_of, _children()))


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended just now
            yield from (task / "children").read_text().split()


def _cpu_of(pid: str) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # it was waited for just now
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Do the work once, and then `RUNS` times, of which the mean is measured."""
    run: Callable[[str, int], Iterable[object]] = globals()[sys.argv[1]]
    work = sys.argv[2]
    number = WORKS[work][1]
    sum(1 for _ in run(work, 1))
    begun, used = time.perf_counter(), cpu()
    found = [sum(1 for _ in run(work, number)) for _ in range(RUNS)]
    seconds, used = time.perf_counter() - begun, cpu() - used
    if set(found) != {number}:
        raise SystemExit(f"{found} results of {number} items")
    print(json.dumps({"items": number, "seconds": seconds / RUNS, "cpu": used / RUNS}))


if __name__ == "__main__":
    main()
