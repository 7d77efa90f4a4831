"""The longest and the most tangled functions of the standard library, found by a pipeline of four stages.

    atasks run scenarios/pipeline.py [-o top=10] [-o packages=asyncio,json]
    atasks run scenarios/pipeline.py -o local=true          without workers: in threads and processes here
    atasks run scenarios/pipeline.py --mode server          on each host, with the same Python
    atasks run scenarios/pipeline.py --mode client          prints the same table

The first three stages are atasks, so with workers they read, parse and measure there; what they do they do as well
here, as plain functions. Those that parse do it in processes: the threads of one would take turns, and CPython
before 3.11.8 and 3.12.2 may fail where two of them construct syntax trees (gh-106905). The last stage gathers what
comes out. Progress goes to the standard error: a bar for each stage on a terminal (with `pip install rich`), lines
elsewhere.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from atasks import atask
from atasks.pipeline import Pipeline, flat_map, map, stage
from scenarios.stdlib_stats import LIBRARY, NOT_THE_LIBRARY

DECISIONS = (
    ast.If | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.IfExp | ast.match_case | ast.BoolOp
)


@dataclass(frozen=True)
class Source:
    """A file's content. Its path is relative to the library of whoever reads it."""

    path: str
    text: bytes


@dataclass(frozen=True)
class Function:
    """A function, and what was measured of it."""

    path: str
    name: str
    lines: int
    decisions: int = 0


@dataclass(frozen=True)
class Parsed:
    """The functions of a file, each with its code."""

    path: str
    functions: tuple[tuple[Function, str], ...]


@dataclass
class Summary:
    """Findings of all files."""

    files: int = 0
    functions: list[Function] = field(default_factory=list)


def files(packages: str) -> Iterator[str]:
    """The source files of the packages and modules of these names, or of all of them, in order."""
    names = set(filter(None, packages.split(",")))
    for path in sorted(LIBRARY.rglob("*.py")):
        inner = path.relative_to(LIBRARY)
        if NOT_THE_LIBRARY.isdisjoint(inner.parts) and (not names or inner.parts[0].removesuffix(".py") in names):
            yield inner.as_posix()


@atask(executor="thread")
def read(path: str) -> Source:
    """The file."""
    return Source(path, (LIBRARY / path).read_bytes())


@atask(executor="process")
def parse(source: Source) -> Parsed:
    """Return the functions of a file. A file that cannot be parsed (the library's tests have some) has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences and the like: not ours to mend
            tree = ast.parse(source.text, source.path)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Parsed(source.path, ())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found.append((Function(source.path, node.name, lines), ast.unparse(node)))
    return Parsed(source.path, tuple(found))


@atask(executor="process")
def measure(parsed: Parsed) -> list[Function]:
    """Count the decisions that each of the functions makes."""
    measured = []
    for function, code in parsed.functions:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decisions = sum(isinstance(node, DECISIONS) for node in ast.walk(ast.parse(code)))
        measured.append(Function(function.path, function.name, function.lines, decisions))
    return measured


def aggregate(files: Iterator[list[Function]]) -> Summary:
    """Everything in one: called once, with the stream of what the files have."""
    summary = Summary()
    for functions in files:
        summary.files += 1
        summary.functions += functions
    return summary


def survey(*, local: bool) -> Pipeline[[str], Summary, Any]:
    """The pipeline: called with names of packages, it gives the summary."""

    def here_or_there(task: Any) -> Callable[[Any], Any]:
        function: Callable[[Any], Any] = task.local if local else task
        return function

    return (
        flat_map(files)
        | map(here_or_there(read), workers=8)
        | map(here_or_there(parse), workers=4, multiprocess=local)
        | map(here_or_there(measure), workers=4, multiprocess=local)
        | stage(aggregate, join=True)
    )


def table(summary: Summary, top: int) -> str:
    """The longest functions, those with most decisions, and how many there were."""
    lines = [f"{len(summary.functions):,} functions in {summary.files:,} files"]
    for title, key in (("lines", "lines"), ("decisions", "decisions")):
        lines += ["", f"most {title}:"]
        ranked = sorted(summary.functions, key=lambda item: (-getattr(item, key), item.path, item.name))
        lines += [f"{getattr(item, key):>6}  {item.name}  {item.path}" for item in ranked[:top]]
    return "\n".join(lines)


async def aiomain(mode: str, top: int = 10, packages: str = "", local: bool = False, **options: Any) -> None:
    """Print the table, and show progress meanwhile."""
    if mode == "server":
        return
    print(table(await survey(local=local)(packages).options(progress=True), top))
