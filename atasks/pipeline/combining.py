"""The functions that order, gather, multiply and merge streams, and runs of sources."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeVar, Unpack, overload

from atasks.checks import validate_count, validate_seconds
from atasks.pipeline.flow.source import IterableSource, MergedSource
from atasks.pipeline.pipeline import Batches, InOrder, Pipeline, Whole
from atasks.pipeline.progress import Progress
from atasks.pipeline.run import Many, One, Run, check_progress
from atasks.pipeline.stages.fork import MAX_WAYS, ForkStage
from atasks.pipeline.stages.functions import make_group
from atasks.pipeline.stages.options import GroupOptions
from atasks.pipeline.stages.order import DEFAULT_WINDOW, CollectStage, OrderedStage

__all__ = [
    "collect",
    "drain",
    "fork",
    "from_iterable",
    "group",
    "merge",
    "ordered",
]

T = TypeVar("T")
A = TypeVar("A")
X = TypeVar("X")

Items = Iterable[X] | AsyncIterable[X]


def ordered(window: int = DEFAULT_WINDOW) -> InOrder:
    """Items in the order of their lineage, each as soon as it is its turn; nothing waits for the end.

    Args:
        window: At most so many items of the source are admitted past the one whose turn it is, and at most so many
            children of the branch that is being put in order.

    Raises:
        ValueError: It is below 1.

    Example:
        ```python
        from atasks.pipeline import map, ordered

        async def double(n: int) -> int:
            return 2 * n

        print(await (range(3) | map(double, workers=3) | ordered()))  # [0, 2, 4]
        ```
    """
    return InOrder(OrderedStage(_count("window", window)))


@overload
def collect(n: None = None) -> Whole: ...
@overload
def collect(n: int, *, seconds: float | None = None) -> Batches: ...
def collect(n: int | None = None, *, seconds: float | None = None) -> Any:
    """The whole stream as one list, in the order of the lineage; with `n`, lists of so many items.

    Args:
        n: So many items are in a list; the last one may be shorter. None: all.
        seconds: A list goes on so many seconds after its first item has come, at the latest.

    Raises:
        ValueError: `n` is below 1, `seconds` is not above 0, or there are seconds without `n`.

    Example:
        ```python
        from atasks.pipeline import collect, from_iterable

        print(await (from_iterable(range(5)) | collect(2)))  # [[0, 1], [2, 3], [4]]
        ```
    """
    if n is None:
        if seconds is not None:
            raise ValueError("collect(seconds=...) needs n, the most items of a list: collect(100, seconds=1.0)")
        return Whole(CollectStage())
    if seconds is not None:
        seconds = validate_seconds("seconds", seconds)
    return Batches(CollectStage(_count("n", n), seconds))


def group(
    *functions: Callable[[X], Any], skip_errors: bool = False, **options: Unpack[GroupOptions]
) -> Pipeline[[X], tuple[Any, ...], One]:
    """Each item goes to every member at once; a tuple of their results goes on.

    Args:
        *functions: Functions, which run where `stage` would run them, or pipelines: `after(f, bind=...)` is one
            with arguments of its own.
        skip_errors: True: the result of a member that fails is None. Else the others are cancelled.
        **options: Those of `StageOptions` that a group has.

    Example:
        ```python
        from atasks.pipeline import group

        print(await ([-3] | group(abs, str)))  # [(3, '-3')]
        ```
    """
    return Pipeline(make_group(functions, skip_errors, options))


def fork(*pipelines: Pipeline[[X], T, Any]) -> Pipeline[[X], T, Many]:
    """Every item goes to each of the pipelines; what comes out goes on as it comes.

    An item is handed to one pipeline after the other, so the slowest one sets the pace. In the order of the
    lineage the results of the first pipeline come first, for each item; where pipelines differ in how often they
    branch, or one collects or joins, it is the order in which they come.

    Args:
        *pipelines: Pipelines with stages, at most 100.

    Raises:
        TypeError: One is no pipeline.
        ValueError: There is none, one has no stages, or there are too many.

    Example:
        ```python
        from atasks.pipeline import fork, map

        print(sorted(await ([-3] | fork(map(abs), map(int)))))  # [-3, 3]
        ```
    """
    if not pipelines:
        raise ValueError("fork needs at least one pipeline")
    if len(pipelines) > MAX_WAYS:
        raise ValueError(
            f"fork takes at most {MAX_WAYS} pipelines, not {len(pipelines)}: make several items of each one "
            "with flat_map, and one stage that handles them all"
        )
    given: tuple[Any, ...] = pipelines
    for pipeline in given:
        if not isinstance(pipeline, Pipeline):
            hint = "fork(*pipelines)" if isinstance(pipeline, (list, tuple)) else "fork(stage(f), ...)"
            raise TypeError(f"fork takes pipelines, not {type(pipeline).__name__}: write {hint}")
        if not pipeline.stages:
            raise ValueError("fork takes pipelines with stages, and one has none")
    return Pipeline(ForkStage(tuple(pipeline.stages for pipeline in pipelines)))


def merge(*sources: Items[X], progress: Progress | bool | None = None) -> Run[X, Many]:
    """The items of several sources, or runs, as they arrive. One of each is pulled ahead.

    Args:
        *sources: Iterables, async iterables and runs.
        progress: How the run shows its progress; True: on the standard error.

    Example:
        ```python
        from atasks.pipeline import merge

        print(sorted(await merge([1, 3], [2, 4])))  # [1, 2, 3, 4]
        ```
    """
    return Run(MergedSource([IterableSource(source) for source in sources]), (), progress=check_progress(progress))


def from_iterable(
    source: Items[X], *, inline: bool = False, progress: Progress | bool | None = None
) -> Run[X, Many]:
    """A run over the items of an iterable, or of an async iterable; `source | pipeline` is the same for most.

    Sequences, sets, mappings, arrays and `itertools.count` are pulled on the event loop, other iterables in a
    thread, because a generator may block.

    Args:
        source: The items.
        inline: True: nothing is pulled in a thread.
        progress: How the run shows its progress; True: on the standard error.

    Guarantees:
        The run closes generators at its end.
    """
    return Run(IterableSource(source, inline), (), progress=check_progress(progress))


async def drain(*runs: Run[Any, Any], progress: Progress | bool | None = None) -> None:
    """Consume the runs at once, and keep nothing. The first error ends them all, and is raised.

    Args:
        *runs: The runs.
        progress: How they show their progress; True: on the standard error.

    Raises:
        TypeError: One is no run.

    Example:
        ```python
        from atasks.pipeline import drain, from_iterable, map

        seen: list[int] = []
        await drain(from_iterable([1, 2]) | map(seen.append), from_iterable([3]) | map(seen.append))
        print(sorted(seen))  # [1, 2, 3]
        ```
    """
    check_progress(progress)
    given: tuple[Any, ...] = runs
    for one in given:
        if not isinstance(one, Run):
            hint = "call it, or give it a source" if isinstance(one, Pipeline) else "write drain(*runs) for a list"
            raise TypeError(f"drain takes runs, not {type(one).__name__}: {hint}")
    tasks = [
        asyncio.ensure_future(_drain(run if progress is None else run.options(progress=progress))) for run in runs
    ]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for pending in tasks:
            pending.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _drain(run: Run[Any, Any]) -> None:
    async for _ in run:
        pass


def _count(name: str, value: Any) -> int:
    validate_count(name, value)
    return int(value)
