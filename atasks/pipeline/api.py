"""The functions that make pipelines of one stage, which calls a function."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from atasks.pipeline.flow.invocation import Bound, name_of
from atasks.pipeline.pipeline import Pipeline
from atasks.pipeline.run import Many, One
from atasks.pipeline.stages.functions import make_stage
from atasks.pipeline.stages.options import PlainOptions, StageOptionsDict

__all__ = [
    "after",
    "each",
    "filter",
    "flat_map",
    "map",
    "stage",
]

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")
X = TypeVar("X")

Items = Iterable[X] | AsyncIterable[X]


class StageDecorator(Protocol):
    """The decorator that `@stage(...)` with options returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Pipeline[P, T, One]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Pipeline[P, T, One]: ...


class BranchDecorator(Protocol):
    """The decorator that `@stage(branch=True)` returns."""

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
    function: Callable[Concatenate[X, ...], AsyncIterable[T]],
    /,
    *,
    bind: Bound[()],
    branch: Literal[True],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[Concatenate[A, X, ...], AsyncIterable[T]],
    /,
    *,
    bind: Bound[A],
    branch: Literal[True],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[Concatenate[X, ...], Awaitable[Items[T]]],
    /,
    *,
    bind: Bound[()],
    branch: Literal[True],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[Concatenate[A, X, ...], Awaitable[Items[T]]],
    /,
    *,
    bind: Bound[A],
    branch: Literal[True],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[Concatenate[X, ...], Iterable[T]],
    /,
    *,
    bind: Bound[()],
    branch: Literal[True],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[Concatenate[A, X, ...], Iterable[T]],
    /,
    *,
    bind: Bound[A],
    branch: Literal[True],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def stage(
    function: Callable[Concatenate[X, ...], Coroutine[Any, Any, T]],
    /,
    *,
    bind: Bound[()],
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def stage(
    function: Callable[Concatenate[A, X, ...], Coroutine[Any, Any, T]],
    /,
    *,
    bind: Bound[A],
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def stage(
    function: Callable[Concatenate[X, ...], T],
    /,
    *,
    bind: Bound[()],
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def stage(
    function: Callable[Concatenate[A, X, ...], T],
    /,
    *,
    bind: Bound[A],
    branch: Literal[False] = False,
    join: Literal[False] = False,
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
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
    """Like `stage`, but the function is called without the item, once for each one that arrives."""
    return Pipeline(make_stage(function, options, takes_item=False))


@overload
def map(  # type: ignore[overload-overlap]
    function: Callable[P, Coroutine[Any, Any, T]], /, **options: Unpack[PlainOptions]
) -> Pipeline[P, T, One]: ...
@overload
def map(function: Callable[P, T], /, **options: Unpack[PlainOptions]) -> Pipeline[P, T, One]: ...
@overload
def map(
    function: Callable[Concatenate[X, ...], Coroutine[Any, Any, T]],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def map(
    function: Callable[Concatenate[A, X, ...], Coroutine[Any, Any, T]],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def map(
    function: Callable[Concatenate[X, ...], T],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def map(
    function: Callable[Concatenate[A, X, ...], T],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, One]: ...
@overload
def map(
    function: Callable[..., Coroutine[Any, Any, T]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[..., T, One]: ...
@overload
def map(function: Callable[..., T], /, **options: Unpack[StageOptionsDict]) -> Pipeline[..., T, One]: ...
def map(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """`stage(function)`: the function's result for each item."""
    _refuse_data("map", function, misplaced)
    return Pipeline(make_stage(function, options))


@overload
def filter(function: Callable[[X], Any], /, **options: Unpack[PlainOptions]) -> Pipeline[[X], X, Many]: ...
@overload
def filter(
    function: Callable[Concatenate[X, ...], Any],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], X, Many]: ...
@overload
def filter(
    function: Callable[Concatenate[A, X, ...], Any],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], X, Many]: ...
@overload
def filter(function: Callable[..., Any], /, **options: Unpack[StageOptionsDict]) -> Pipeline[..., Any, Many]: ...
def filter(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """The items for which the function gives something true."""
    _refuse_data("filter", function, misplaced)
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
    function: Callable[Concatenate[X, ...], AsyncIterable[T]],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def flat_map(
    function: Callable[Concatenate[A, X, ...], AsyncIterable[T]],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def flat_map(
    function: Callable[Concatenate[X, ...], Awaitable[Items[T]]],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def flat_map(
    function: Callable[Concatenate[A, X, ...], Awaitable[Items[T]]],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def flat_map(
    function: Callable[Concatenate[X, ...], Iterable[T]],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
@overload
def flat_map(
    function: Callable[Concatenate[A, X, ...], Iterable[T]],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], T, Many]: ...
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
def flat_map(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """`stage(function, branch=True)`: what the function yields for each item, one by one."""
    _refuse_data("flat_map", function, misplaced)
    return Pipeline(make_stage(function, options, branch=True))


@overload
def each(function: Callable[P, Any], /, **options: Unpack[PlainOptions]) -> Pipeline[P, Any, Many]: ...
@overload
def each(
    function: Callable[Concatenate[X, ...], Any],
    /,
    *,
    bind: Bound[()],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], Any, Many]: ...
@overload
def each(
    function: Callable[Concatenate[A, X, ...], Any],
    /,
    *,
    bind: Bound[A],
    **options: Unpack[PlainOptions],
) -> Pipeline[[X], Any, Many]: ...
@overload
def each(function: Callable[..., Any], /, **options: Unpack[StageOptionsDict]) -> Pipeline[..., Any, Many]: ...
def each(function: Any, /, *misplaced: Any, **options: Any) -> Any:
    """The function is called with each item for its effect; nothing goes on."""
    _refuse_data("each", function, misplaced)
    return Pipeline(make_stage(function, options, role="each"))


def _refuse_data(name: str, function: Any, misplaced: tuple[Any, ...]) -> None:
    """Raise a TypeError if it was called as the builtin `map` is."""
    if misplaced:
        f = name_of(function) if callable(function) else "f"
        raise TypeError(f"{name}({f}) makes a pipeline, which is given its data by |: write data | {name}({f})")
