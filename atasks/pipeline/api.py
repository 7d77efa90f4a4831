"""The functions that make pipelines, and runs of sources."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from atasks.pipeline.forks import ForkStage
from atasks.pipeline.functions import make_group, make_stage
from atasks.pipeline.options import GroupOptions, PlainOptions, StageOptionsDict
from atasks.pipeline.pipeline import Batches, InOrder, Pipeline, Whole
from atasks.pipeline.progress import Progress
from atasks.pipeline.run import Many, One, Run, check_progress
from atasks.pipeline.shaping import DEFAULT_WINDOW, CollectStage, OrderedStage
from atasks.pipeline.source import IterableSource, MergedSource

__all__ = [
    "after",
    "collect",
    "drain",
    "each",
    "filter",
    "flat_map",
    "fork",
    "from_iterable",
    "group",
    "map",
    "merge",
    "ordered",
    "stage",
]

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
X = TypeVar("X")

Items = Iterable[X] | AsyncIterable[X]


class StageDecorator(Protocol):
    """What `@stage(...)` with options returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Pipeline[P, T, One]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Pipeline[P, T, One]: ...


class BranchDecorator(Protocol):
    """What `@stage(branch=True)` returns."""

    @overload
    def __call__(self, function: Callable[P, AsyncIterable[T] | Iterable[T]], /) -> Pipeline[P, T, Many]: ...
    @overload
    def __call__(
        self, function: Callable[P, Awaitable[AsyncIterable[T] | Iterable[T]]], /
    ) -> Pipeline[P, T, Many]: ...


@overload
def stage(
    function: Callable[P, AsyncIterable[T]], /, *, branch: Literal[True], **options: Unpack[PlainOptions]
) -> Pipeline[P, T, Many]: ...
@overload
def stage(
    function: Callable[P, Awaitable[Items[T]]], /, *, branch: Literal[True], **options: Unpack[PlainOptions]
) -> Pipeline[P, T, Many]: ...
@overload
def stage(
    function: Callable[P, Iterable[T]], /, *, branch: Literal[True], **options: Unpack[PlainOptions]
) -> Pipeline[P, T, Many]: ...
@overload
def stage(
    function: Callable[[AsyncIterator[X]], AsyncIterable[T]],
    /,
    *,
    branch: Literal[True],
    join: Literal[True],
    **options: Unpack[StageOptionsDict],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[[Iterator[X]], Iterable[T]],
    /,
    *,
    branch: Literal[True],
    join: Literal[True],
    **options: Unpack[StageOptionsDict],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[[AsyncIterator[X]], Coroutine[Any, Any, T]],
    /,
    *,
    join: Literal[True],
    **options: Unpack[StageOptionsDict],
) -> Pipeline[[X], T, One]: ...
@overload
def stage(
    function: Callable[[Iterator[X]], T],
    /,
    *,
    join: Literal[True],
    **options: Unpack[StageOptionsDict],
) -> Pipeline[[X], T, One]: ...
@overload
def stage(  # type: ignore[overload-overlap]  # a coroutine function is also a function
    function: Callable[P, Coroutine[Any, Any, T]],
    /,
    *,
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[PlainOptions],
) -> Pipeline[P, T, One]: ...
@overload
def stage(
    function: Callable[P, T],
    /,
    *,
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[PlainOptions],
) -> Pipeline[P, T, One]: ...
@overload
def stage(
    function: Callable[..., AsyncIterable[T]], /, *, branch: Literal[True], **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, Many]: ...
@overload
def stage(
    function: Callable[..., Awaitable[Items[T]]], /, *, branch: Literal[True], **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, Many]: ...
@overload
def stage(
    function: Callable[..., Iterable[T]], /, *, branch: Literal[True], **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, Many]: ...
@overload
def stage(
    function: Callable[..., Coroutine[Any, Any, T]],
    /,
    *,
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[StageOptionsDict],
) -> Pipeline[..., T, One]: ...
@overload
def stage(
    function: Callable[..., T],
    /,
    *,
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[StageOptionsDict],
) -> Pipeline[..., T, One]: ...
@overload
def stage(*, branch: Literal[True], **options: Unpack[StageOptionsDict]) -> BranchDecorator: ...
@overload
def stage(
    *, branch: Literal[False] = False, join: Literal[False] = False, **options: Unpack[StageOptionsDict]
) -> StageDecorator: ...
def stage(function: Any = None, /, *, branch: bool = False, join: bool = False, **options: Any) -> Any:
    """A pipeline of one stage, which calls `function` with each item; also a decorator, bare or with options.

    An atask is awaited remotely, with up to 64 calls in flight. Anything else runs here, with one unless `workers`
    says otherwise: a coroutine function on the event loop, a plain function in threads of its own, or in processes
    (`multiprocess=True`), or on the event loop (`inline=True`). A pipeline runs once per item.

    With `branch=True` what the function yields, or the elements of what it returns, go on one by one. With
    `join=True` it is called once per worker, with the stream: an async iterator for a coroutine function or an
    async generator, an iterator for a plain function.

    Options are those of `StageOptions`. Raises TypeError or ValueError at once for what cannot work.
    """
    if function is None:
        return functools.partial(stage, branch=branch, join=join, **options)
    return Pipeline(make_stage(function, options, branch=branch, join=join))


@overload
def after(
    function: Callable[[], Coroutine[Any, Any, T]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[[Any], T, One]: ...
@overload
def after(function: Callable[[], T], /, **options: Unpack[StageOptionsDict]) -> Pipeline[[Any], T, One]: ...
@overload
def after(function: Callable[..., Any], /, **options: Unpack[StageOptionsDict]) -> Pipeline[[Any], Any, One]: ...
def after(function: Any, /, **options: Any) -> Any:
    """As `stage`, but the function is called without the item: once for each one that arrives."""
    return Pipeline(make_stage(function, options, takes_item=False))


@overload
def map(  # type: ignore[overload-overlap]
    function: Callable[P, Coroutine[Any, Any, T]], /, **options: Unpack[PlainOptions]
) -> Pipeline[P, T, One]: ...
@overload
def map(function: Callable[P, T], /, **options: Unpack[PlainOptions]) -> Pipeline[P, T, One]: ...
@overload
def map(
    function: Callable[..., Coroutine[Any, Any, T]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, One]: ...
@overload
def map(function: Callable[..., T], /, **options: Unpack[StageOptionsDict]) -> Pipeline[..., T, One]: ...
def map(function: Any, /, **options: Any) -> Any:
    """`stage(function)`: the function's result for each item."""
    return Pipeline(make_stage(function, options))


@overload
def filter(function: Callable[[X], Any], /, **options: Unpack[PlainOptions]) -> Pipeline[[X], X, Many]: ...
@overload
def filter(function: Callable[..., Any], /, **options: Unpack[StageOptionsDict]) -> Pipeline[..., Any, Many]: ...
def filter(function: Any, /, **options: Any) -> Any:
    """The items for which the function gives something true."""
    return Pipeline(make_stage(function, options, role="filter"))


@overload
def flat_map(
    function: Callable[P, AsyncIterable[T]], /, **options: Unpack[PlainOptions]
) -> Pipeline[P, T, Many]: ...
@overload
def flat_map(
    function: Callable[P, Awaitable[Items[T]]], /, **options: Unpack[PlainOptions]
) -> Pipeline[P, T, Many]: ...
@overload
def flat_map(function: Callable[P, Iterable[T]], /, **options: Unpack[PlainOptions]) -> Pipeline[P, T, Many]: ...
@overload
def flat_map(
    function: Callable[..., AsyncIterable[T]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, Many]: ...
@overload
def flat_map(
    function: Callable[..., Awaitable[Items[T]]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, Many]: ...
@overload
def flat_map(
    function: Callable[..., Iterable[T]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, Many]: ...
def flat_map(function: Any, /, **options: Any) -> Any:
    """`stage(function, branch=True)`: what the function yields for each item, one by one."""
    return Pipeline(make_stage(function, options, branch=True))


@overload
def each(function: Callable[P, Any], /, **options: Unpack[PlainOptions]) -> Pipeline[P, Any, Many]: ...
@overload
def each(function: Callable[..., Any], /, **options: Unpack[StageOptionsDict]) -> Pipeline[..., Any, Many]: ...
def each(function: Any, /, **options: Any) -> Any:
    """The function is called with each item for its effect; nothing goes on."""
    return Pipeline(make_stage(function, options, role="each"))


def ordered(window: int = DEFAULT_WINDOW) -> InOrder:
    """Items in the order of their lineage, each as soon as it is its turn; nothing waits for the end.

    At most `window` items of the source are admitted past the one whose turn it is, and at most so many children
    of the branch that is being put in order. Raises ValueError below 1.
    """
    return InOrder(OrderedStage(_count("window", window)))


@overload
def collect(n: None = None) -> Whole: ...
@overload
def collect(n: int) -> Batches: ...
def collect(n: int | None = None) -> Any:
    """The whole stream as one list, in the order of the lineage; with `n`, lists of so many items.

    The last list may be shorter. Raises ValueError for `n` below 1.
    """
    return Whole(CollectStage()) if n is None else Batches(CollectStage(_count("n", n)))


def group(
    *functions: Callable[[X], Any], skip_errors: bool = False, **options: Unpack[GroupOptions]
) -> Pipeline[[X], tuple[Any, ...], One]:
    """Each item goes to every member at once; a tuple of their results goes on.

    A member is a function, which runs where `stage` would run it, or a pipeline: `after(f, bind=...)` is one with
    arguments of its own. If one fails the others are cancelled; with `skip_errors` its result is None.
    """
    return Pipeline(make_group(functions, skip_errors, options))


def fork(*pipelines: Pipeline[[X], T, Any]) -> Pipeline[[X], T, Many]:
    """Every item goes to each of the pipelines; what comes out goes on as it comes.

    An item is handed to one pipeline after the other, so the slowest one sets the pace. In the order of the
    lineage the results of the first pipeline come first, for each item; where pipelines differ in how often they
    branch, or one collects or joins, it is the order in which they come. Raises TypeError or ValueError for what
    is no pipeline with stages.
    """
    if not pipelines:
        raise ValueError("fork needs at least one pipeline")
    for pipeline in pipelines:
        if not isinstance(pipeline, Pipeline):
            raise TypeError(f"fork takes pipelines, not {type(pipeline).__name__}: write fork(stage(f), ...)")
        if not pipeline.stages:
            raise ValueError("fork takes pipelines with stages, and one has none")
    return Pipeline(ForkStage(tuple(pipeline.stages for pipeline in pipelines)))


def merge(*sources: Items[X], progress: Progress | bool | None = None) -> Run[X, Many]:
    """The items of several sources, or runs, as they arrive. One of each is pulled ahead."""
    return Run(MergedSource([IterableSource(source) for source in sources]), (), progress=check_progress(progress))


def from_iterable(
    source: Items[X], *, inline: bool = False, progress: Progress | bool | None = None
) -> Run[X, Many]:
    """A run over the items of an iterable, or of an async iterable; `source | pipeline` is the same for most.

    Sequences, sets, mappings, arrays and `itertools.count` are pulled on the event loop, other iterables in a
    thread, because a generator may block; with `inline=True` none is. The run closes generators at its end.
    """
    return Run(IterableSource(source, inline), (), progress=check_progress(progress))


async def drain(*runs: Run[Any, Any], progress: Progress | bool | None = None) -> None:
    """Consume the runs at once, and keep nothing. The first error ends them all, and is raised."""
    check_progress(progress)
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
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value}: at least 1")
    return value
