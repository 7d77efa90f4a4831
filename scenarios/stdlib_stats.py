"""Statistics of the standard library, counted on workers: one call per source file, one per directory.

    atasks run scenarios/stdlib_stats.py [-o top=20] [-o packages=asyncio,json]
    atasks run scenarios/stdlib_stats.py --mode server      on each host, with the same Python
    atasks run scenarios/stdlib_stats.py --mode client      prints the same table

A directory's call awaits the calls of its files and of its subdirectories, so the calls form a tree as deep as the
library; a directory that waits uses no concurrency slot. Paths are relative to the library of whoever reads them.
"""

from __future__ import annotations

import ast
import asyncio
import sys
import sysconfig
import time
import warnings
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from atasks import atask

LIBRARY = Path(sysconfig.get_path("stdlib"))
NOT_THE_LIBRARY = frozenset({"__pycache__", "dist-packages", "site-packages"})

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Counts:
    """Numbers that were counted in one file or in many."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    async_functions: int = 0
    classes: int = 0
    docstrings: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    """(path, reason) of each file that could not be parsed. It is in none of the counts."""

    @property
    def documented(self) -> float:
        """Percent of the modules, classes and functions that have a docstring."""
        places = self.files + self.classes + self.functions + self.async_functions
        return 100 * self.docstrings / places if places else 0.0


def total(parts: Iterable[Counts]) -> Counts:
    """Everything in one."""
    parts = list(parts)
    counted = {
        field.name: sum(getattr(part, field.name) for part in parts)
        for field in fields(Counts)
        if field.name != "skipped"
    }
    return Counts(**counted, skipped=tuple(sorted(file for part in parts for file in part.skipped)))


@atask(executor="process")
def source_file(path: str) -> Counts:
    """One file. In a process, because parsing blocks, and a worker's event loop has heartbeats to send; and
    a process parses one file at a time (CPython before 3.11.8 and 3.12.2 may fail at two: gh-106905)."""
    return count(path)


@atask
async def directory(path: str) -> Counts:
    """All that is in a directory."""
    return total(await asyncio.gather(*map(call, await entries(path))))


@atask
async def top_level() -> list[str]:
    """The modules and the packages that the library consists of."""
    return await entries("")


def call(path: str) -> Coroutine[Any, Any, Counts]:
    """The call that counts what is there."""
    return directory(path) if path.endswith("/") else source_file(path)


async def entries(path: str) -> list[str]:
    """The source files and the directories in a directory of the library, sorted; directories end in a slash."""
    return await asyncio.to_thread(look, path)


def look(path: str) -> list[str]:
    """Do the work of `entries`; block while the disk is busy."""
    found: list[str] = []
    for item in (LIBRARY / path).iterdir():
        if item.suffix == ".py" and item.is_file():
            found.append(f"{path}{item.name}")
        elif item.name not in NOT_THE_LIBRARY and item.is_dir() and not item.is_symlink():
            found.append(f"{path}{item.name}/")
    return sorted(found)


def count(path: str) -> Counts:
    """Parse a file and look at every node. What cannot be parsed is skipped, and says why."""
    try:
        source = (LIBRARY / path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences and the like: not ours to mend
            tree = ast.parse(source, path)  # bytes, so that it minds the file's own encoding
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        reason = getattr(error, "msg", None) or getattr(error, "strerror", None) or str(error)
        return Counts(skipped=((path, f"{type(error).__name__}: {reason}"),))
    counts = Counts(files=1, lines=len(source.splitlines()))
    for node in ast.walk(tree):
        counts.functions += isinstance(node, ast.FunctionDef)
        counts.async_functions += isinstance(node, ast.AsyncFunctionDef)
        counts.classes += isinstance(node, ast.ClassDef)
        counts.docstrings += isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None
    return counts


async def survey(packages: Sequence[str] = ()) -> dict[str, Counts]:
    """Return the counts of each package or module of the library by name; all of them unless some are named.

    Raises LookupError if there is none of a name.
    """
    paths = {path.rstrip("/").removesuffix(".py"): path for path in await top_level()}
    for name in packages:
        if name not in paths:
            raise LookupError(f"the standard library has no package or module {name!r}")
    names = packages or list(paths)
    counted = dict(zip(names, await asyncio.gather(*(call(paths[name]) for name in names)), strict=True))
    return {name: counts for name, counts in counted.items() if counts.files or counts.skipped}


HEADINGS = ("package", "files", "lines", "functions", "async", "classes", "documented", "skipped")


def table(survey: dict[str, Counts], top: int) -> str:
    """The largest packages first, then the others together, all together, and the files that were skipped."""
    ordered = sorted(survey.items(), key=lambda item: (-item[1].lines, item[0]))
    rows = [HEADINGS, *(row(name, counts) for name, counts in ordered[:top])]
    if ordered[top:]:
        rows.append(row(f"(others: {len(ordered[top:])})", total(counts for _, counts in ordered[top:])))
    everything = total(survey.values())
    rows.append(row("total", everything))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in rows]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    lines += [f"skipped {path}: {reason}" for path, reason in everything.skipped]
    return "\n".join(lines)


def row(name: str, counts: Counts) -> tuple[str, ...]:
    """One line of the table."""
    numbers = (counts.files, counts.lines, counts.functions, counts.async_functions, counts.classes)
    return name, *(f"{n:,}" for n in numbers), f"{counts.documented:.1f} %", str(len(counts.skipped))


async def aiomain(mode: str, top: int = 20, packages: str = "", **options: Any) -> None:
    """Print the table; how long it took goes to the standard error, so that tables can be compared."""
    if mode == "server":
        return
    begun = time.perf_counter()
    counted = await survey(packages.split(",") if packages else ())
    print(table(counted, top))
    print(f"{time.perf_counter() - begun:.1f} s", file=sys.stderr)
