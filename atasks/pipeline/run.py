"""One lazy execution of a pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from atasks.caller.background import refuse_in_loop
from atasks.errors import PipelineError
from atasks.pipeline.consuming import AsyncRun, SyncRun
from atasks.pipeline.flow.channel import Lineage, Token
from atasks.pipeline.flow.source import Source
from atasks.pipeline.pipe import Pipe

if TYPE_CHECKING:
    from atasks.pipeline.pipeline import Batches, InOrder, Stage, Whole
    from atasks.pipeline.progress import Progress

__all__ = ["Many", "One", "Run"]

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
X = TypeVar("X")


class One:
    """For type checkers: awaiting the run gives its one item."""


class Many:
    """For type checkers: awaiting the run gives a list of its items."""


class Run(Generic[T, K]):
    """One execution of a pipeline, which begins when it is first awaited or iterated, and can be used once.

    `await run` gives the value of a pipeline that was called with arguments and makes one of them; anything else
    is a list in the order of the lineage. `async for`, and `for` where no event loop runs, give items as they
    come.

    A failure arrives behind the items that were emitted before it, as the same exception, with a note that names
    stage and item; everything else ends at once. So it does when the iteration is left, closed, cancelled, or
    forgotten: nothing of it runs on, but a function in a thread, whose result nobody gets.
    """

    def __init__(
        self,
        source: Source,
        stages: Sequence[Stage],
        *,
        called: bool = False,
        indexed: bool = False,
        progress: Progress | bool | None = None,
    ) -> None:
        self._source = source
        self._stages = tuple(stages)
        # Only a call says that there is one item; whoever gives a source gets a list.
        self._called = called
        self._indexed = indexed
        self._progress = progress
        self._used = False
        self._execution: AsyncRun | SyncRun | None = None
        self._begun: AsyncIterator[T] | Iterator[T] | None = None
        """The iterator that `next` and `anext` go on with."""

    # -- using it

    @overload
    def __await__(self: Run[X, One]) -> Generator[Any, None, X]: ...
    @overload
    def __await__(self: Run[X, Many]) -> Generator[Any, None, list[X]]: ...
    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    def __aiter__(self) -> AsyncIterator[T]:
        if isinstance(self._begun, AsyncIterator):
            return self._begun
        return self._start().iterator(indexed=self._indexed)

    def __iter__(self) -> Iterator[T]:
        refuse_in_loop("iterating a run with `for`", "write `async for` or `anext`, or await it,")
        if isinstance(self._begun, Iterator):
            return self._begun
        execution = SyncRun(self._source, self._stages, self._progress)
        self._use(execution)
        return execution.iterator(indexed=self._indexed)

    async def __anext__(self) -> T:
        """The next item: a run that is begun so goes on as long as it is known, or to its end. `async for` then
        gives the rest."""
        self._begun = aiter(self)
        return await anext(self._begun)

    def __next__(self) -> T:
        """Return the next item, where no event loop runs."""
        self._begun = iter(self)
        return next(self._begun)

    async def one(self) -> T:
        """The one item. Raises PipelineError if there is none, or more than one: then the rest is not awaited."""
        found: list[T] = []
        async for item in self:
            found.append(item)
            if len(found) > 1:
                raise PipelineError("one() is for one item, and the run has several items: iterate or await it")
        if not found:
            raise PipelineError("one() is for one item, and this is a run without items: await it")
        return found[0]

    async def aclose(self) -> None:
        """End it at once, and wait until it has ended. A run that has not begun never will."""
        self._used = True
        if isinstance(self._execution, AsyncRun):
            await self._execution.aclose()

    def close(self) -> None:
        """End a run that is used with `next` and `for`."""
        self._used = True
        if isinstance(self._execution, SyncRun):
            self._execution.close()

    async def __aenter__(self) -> Run[T, K]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- making another one of it

    def indexed(self) -> Run[tuple[Lineage, T], Many]:
        """Return this run with items that are `(lineage, item)`."""
        return Run(self._source, self._stages, indexed=True, progress=self._progress)

    def options(self, *, progress: Progress | bool | None) -> Run[T, K]:
        """Return this run with progress: True shows a bar per stage, a callable gets the state of all stages."""
        return Run(
            self._source,
            self._stages,
            called=self._called,
            indexed=self._indexed,
            progress=check_progress(progress),
        )

    @overload
    def __or__(self, other: InOrder) -> Run[T, K]: ...
    @overload
    def __or__(self, other: Whole | Batches) -> Run[list[T], Many]: ...
    @overload
    def __or__(self, other: Callable[[T], Run[U, Any]]) -> Run[U, Many]: ...
    @overload
    def __or__(self, other: Callable[[Run[T, K]], U]) -> U: ...
    def __or__(self, other: Any) -> Any:
        if isinstance(other, Pipe):
            return NotImplemented  # its `__ror__` calls `followed_by`
        return other(self) if callable(other) else NotImplemented

    def followed_by(self, stages: Sequence[Stage]) -> Run[Any, Any]:
        """Return this run with more stages. Raises PipelineError if it has begun."""
        self._unused()
        return Run(self._source, (*self._stages, *stages), called=self._called, progress=self._progress)

    def __repr__(self) -> str:
        names = " | ".join(stage.name for stage in self._stages)
        return f"<run of {names or 'no stages'}{', used' if self._used else ''}>"

    # -- within

    def _unused(self) -> None:
        if self._used:
            raise PipelineError("a run can be used once: call the pipeline again")

    def _use(self, execution: AsyncRun | SyncRun) -> None:
        self._unused()
        self._used = True
        self._execution = execution

    def _start(self) -> AsyncRun:
        execution = AsyncRun(self._source, self._stages, self._progress)
        self._use(execution)
        return execution

    async def _result(self) -> Any:
        tokens: list[Token] = await self._start().collect()
        tokens.sort(key=itemgetter(0))
        if self._indexed:
            return tokens
        if not (self._called and gives_one(self._stages)):
            return [value for _, value in tokens]
        if len(tokens) != 1:
            raise PipelineError(f"the run gave {len(tokens)} items where one was expected")
        return tokens[0][1]


def gives_one(stages: Sequence[Stage]) -> bool:
    """Return True if exactly one item comes out for one that comes in."""
    one = True
    for stage in stages:
        one = stage.makes_one or (one and stage.one_to_one)
    return one


def check_progress(progress: Any) -> Any:
    """The option, if it is one."""
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress is True or a callable, not {type(progress).__name__}")
    return progress
