# The signatures of api.py, for type checkers: every way to call its functions, and what they then give.

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, Unpack, overload

from atasks.pipeline.flow.arguments import Bound
from atasks.pipeline.pipeline import Pipeline
from atasks.pipeline.run import Many, One
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

Items: TypeAlias = Iterable[X] | AsyncIterable[X]

class StageDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Pipeline[P, T, One]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Pipeline[P, T, One]: ...

class BranchDecorator(Protocol):
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
@overload
def after(
    function: Callable[[], Coroutine[Any, Any, T]], /, **options: Unpack[StageOptionsDict]
) -> Pipeline[[Any], T, One]: ...
@overload
def after(function: Callable[[], T], /, **options: Unpack[StageOptionsDict]) -> Pipeline[[Any], T, One]: ...
@overload
def after(function: Callable[..., Any], /, **options: Unpack[StageOptionsDict]) -> Pipeline[[Any], Any, One]: ...
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
