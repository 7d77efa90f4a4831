"""The ways in which one worker of a stage runs its function: on the event loop, or in a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
)
from collections.abc import (
    Set as AbstractSet,
)
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from atasks.pipeline.flow.ahead import Ahead
from atasks.pipeline.flow.arguments import WorkerInfo
from atasks.pipeline.flow.channel import Channel, Inlet, Lineage
from atasks.pipeline.flow.invocation import Start, call_hook, iterator_of
from atasks.pipeline.flow.threads import Thread, report_failure

if TYPE_CHECKING:
    from atasks.pipeline.stages.functions import FunctionStage
    from atasks.policies.limit import Limit
    from atasks.transport.limits.contract import Token as LimitToken

__all__ = ["ApartRunner", "LimitedRunner", "LoopRunner", "ThreadRunner", "in_memory", "next_or_end"]

ENDED = object()
"""The value that `next_or_end` returns at the end."""

_IN_MEMORY = (Sequence, AbstractSet, Mapping, MappingView, deque, itertools.count, itertools.repeat)


def in_memory(iterable: Any) -> bool:
    """Return True if iterating cannot block: the event loop does it itself, and not a thread."""
    return isinstance(iterable, _IN_MEMORY) or hasattr(iterable, "__array_interface__")


def next_or_end(iterator: Iterator[Any]) -> Any:
    """`next`, but that the end is a value: a StopIteration cannot pass through a coroutine."""
    return next(iterator, ENDED)


class LoopRunner:
    """Runs coroutine functions, atasks, pipelines, and plain functions that are `inline`: on the event loop."""

    def __init__(self, stage: FunctionStage, index: int) -> None:
        self.stage = stage
        self.info = WorkerInfo(stage.name, index)
        self.simple: Callable[[Any], Any] | None = None
        """The stage's function, where awaiting it with the item is all there is to do."""
        self.ready: Callable[[], Coroutine[Any, Any, None]] | None = None
        """A function whose coroutine is awaited before each call, if there is one. Its time is not the call's
        time, and an exception of it ends the run."""
        self._state: Mapping[str, Any] = {}
        self._started = False
        self._call: Callable[[Any, Lineage], Any]

    async def start(self) -> None:
        """Run `on_start`, if there is one. Raises what it raises."""
        stage = self.stage
        if stage.on_start is not None:
            state = await self._settled(await self._run_hook(stage.on_start, {}))
            if state is not None and not isinstance(state, Mapping):
                raise TypeError(
                    f"on_start of stage {stage.name!r} returns a dict of arguments or None, "
                    f"not {type(state).__name__}"
                )
            self._state = state or {}
        self._started = True
        self._call = stage.invocation.prepare(self._state, self.info)
        if stage.timeout is None and stage.is_coroutine and stage.invocation.is_plain(self._state, self.info):
            self.simple = stage.function

    def ahead(self, inlet: Inlet, outlet: Channel, *, marks: bool) -> Ahead | None:
        """Return what takes items from the inlet by itself, and puts results into the outlet, while `call` is
        called for an item; None: nothing does. If it is there, `call` returns what the stage keeps."""
        return None

    async def close(self, *, hurry: bool) -> None:
        """Run `on_done`, if `on_start` has succeeded, and end. In a hurry nothing waits for what still runs."""
        if self._started and self.stage.on_done is not None:
            self._started = False
            await self._settled(await self._run_hook(self.stage.on_done, self._state))

    def left(self) -> list[Coroutine[Any, Any, None]]:
        """Return coroutines that return when nothing is left of what was closed, or could not be closed well: the
        run ends after that, and the next stage need not wait."""
        return []

    async def call(self, value: Any, lineage: Lineage) -> Any:
        """Call the function for an item, within its time, and return its result."""
        if self.stage.timeout is None:
            return await self._result(value, lineage)
        return await self._within(self.stage.timeout, self._result, value, lineage)

    def stream(self, value: Any, lineage: Lineage) -> AsyncIterator[Any]:
        """Call the function of a branch for an item, within its time, and yield what it yields. The caller
        closes the iterator, if it can be closed."""
        if self.stage.is_coroutine and self.stage.timeout is None:
            made = self._call(value, lineage)
            return aiter(made) if hasattr(made, "__aiter__") else self._items(lambda: made)
        return self._items(self._call, value, lineage)

    # -- what differs between runners

    async def _invoke(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may block."""
        return function(*args)

    async def _run_hook(self, hook: Callable[..., Any], state: Mapping[str, Any]) -> Any:
        return call_hook(hook, state, self.info)

    def _iterate(self, iterable: Iterable[Any]) -> AsyncGenerator[Any, None]:
        return _iterate_here(iterator_of(iterable, self.stage.name))

    # -- what does not

    async def _within(self, seconds: float | None, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await function(*args)
        except TimeoutError as error:
            if limit.expired():
                raise self._too_late() from error.__cause__
            raise

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"{self.stage.name!r} took longer than its timeout of {self.stage.timeout} s")

    async def _result(self, value: Any, lineage: Lineage) -> Any:
        return await self._settled(await self._invoke(self._call, value, lineage))

    async def _begin(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function and return the object to iterate. A run of a pipeline can be awaited too: it is
        iterated."""
        made = await self._invoke(function, *args)
        return made if hasattr(made, "__aiter__") else await self._settled(made)

    async def _settled(self, result: Any) -> Any:
        """Return a result, awaited first if it is awaitable."""
        return await result if inspect.isawaitable(result) else result

    async def _items(self, function: Callable[..., Any], *args: Any) -> AsyncGenerator[Any, None]:
        clock = asyncio.get_running_loop().time
        left = self.stage.timeout
        begun = clock()
        made = await self._within(left, self._begin, function, *args)
        iterator = self._as_iterator(made)
        try:
            if left is None:
                async for item in iterator:
                    yield item
                return
            while True:
                left -= clock() - begun
                begun = clock()
                item = await self._within(left, _next_or_end, iterator)
                if item is ENDED:
                    return
                left -= clock() - begun
                yield item
                begun = clock()  # the time that it took to emit the item is not the function's
        finally:
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()

    def _as_iterator(self, made: Any) -> AsyncIterator[Any]:
        if hasattr(made, "__aiter__"):
            iterator: AsyncIterator[Any] = aiter(made)
            return iterator
        return _iterate_here(iterator_of(made, self.stage.name)) if in_memory(made) else self._iterate(made)


class LimitedRunner(LoopRunner):
    """Calls as another runner does, with a token of a limit. The wait for it is not the call's time."""

    def __init__(self, runner: LoopRunner, limit: Limit) -> None:
        self.simple = None
        self.stage = runner.stage
        self.ready = runner.ready
        self._runner = runner
        self._limit = limit

    async def start(self) -> None:
        await self._runner.start()

    async def close(self, *, hurry: bool) -> None:
        await self._runner.close(hurry=hurry)

    def left(self) -> list[Coroutine[Any, Any, None]]:
        return self._runner.left()

    async def call(self, value: Any, lineage: Lineage) -> Any:
        token = await self._token(value)
        try:
            return await self._runner.call(value, lineage)
        finally:
            token.release()

    async def stream(self, value: Any, lineage: Lineage) -> AsyncIterator[Any]:
        token = await self._token(value)
        try:
            made = self._runner.stream(value, lineage)
            try:
                async for item in made:
                    yield item
            finally:
                aclose = getattr(made, "aclose", None)
                if aclose is not None:
                    await aclose()
        finally:
            token.release()

    async def _token(self, value: Any) -> LimitToken:
        args, kwargs = (value.args, value.kwargs) if type(value) is Start else ((value,), {})
        return await self._limit.take(*args, **kwargs)


class ApartRunner(LoopRunner):
    """Calls as another runner does, with the context variables of its own for each item: what one sets, others do
    not see. It costs tasks, so functions that set none do without it."""

    def __init__(self, runner: LoopRunner, clean: contextvars.Context) -> None:
        self._runner = runner
        self._clean = clean

    async def call(self, value: Any, lineage: Lineage) -> Any:
        return await _in_context(self._clean.copy(), self._runner.call(value, lineage))

    async def stream(self, value: Any, lineage: Lineage) -> AsyncIterator[Any]:
        variables = self._clean.copy()
        made = self._runner.stream(value, lineage)
        try:
            while (item := await _in_context(variables, _next_or_end(made))) is not ENDED:
                yield item
        finally:
            if hasattr(made, "aclose"):
                await _in_context(variables, _close(made))


async def _in_context(variables: contextvars.Context, coroutine: Coroutine[Any, Any, Any]) -> Any:
    # Not by the loop's task factory, which may be one that takes no context.
    return await asyncio.Task(coroutine, loop=asyncio.get_running_loop(), context=variables)


async def _close(iterator: Any) -> None:
    await iterator.aclose()


async def _next_or_end(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, ENDED)


async def _iterate_here(iterator: Iterator[Any]) -> AsyncGenerator[Any, None]:
    try:
        for item in iterator:
            yield item
    finally:
        if isinstance(iterator, GeneratorType):
            iterator.close()


class ThreadRunner(LoopRunner):
    """Runs plain functions in a thread of its own."""

    def __init__(self, stage: FunctionStage, index: int) -> None:
        super().__init__(stage, index)
        self._thread = Thread(f"atasks-{stage.name}-{index}")
        self._variables = contextvars.copy_context()
        """The context of the item that is worked on."""
        self._ahead: Ahead | None = None

    def ahead(self, inlet: Inlet, outlet: Channel, *, marks: bool) -> Ahead | None:
        if self.stage.timeout is None:  # else the event loop has to know when each call begins
            keep = None if self.stage.keep is None else self._keep
            self._ahead = self._made_ahead(keep, inlet, outlet, marks)
        return self._ahead

    def _made_ahead(self, *args: Any) -> Ahead:
        return Ahead(self._call_once, *args)

    async def call(self, value: Any, lineage: Lineage) -> Any:
        ahead = self._ahead
        if ahead is None:
            return await super().call(value, lineage)
        try:
            returned, result = await ahead.outcome(self._thread, value, lineage)
        except asyncio.CancelledError:
            self._given_up()
            raise
        if returned:
            if not ahead.waits:
                return result
            result = await result
            return result if self.stage.keep is None else self.stage.keep(ahead.at[1], result)
        try:
            raise result
        finally:
            del result  # no cycle through this frame

    def _call_once(self, value: Any, lineage: Lineage) -> Any:
        """Call the function in its thread. A context variable that is set for one item is not seen by the next."""
        variables = self._variables = self._thread.variables()
        return variables.run(self._call, value, lineage)

    def _keep(self, value: Any, result: Any) -> Any:
        """Return what the stage keeps, in the context in which the function was called."""
        assert self.stage.keep is not None
        return self._variables.run(self.stage.keep, value, result)

    def _given_up(self) -> None:
        """Nobody waits for the function any more."""

    async def close(self, *, hurry: bool) -> None:
        hook = self.stage.on_done
        try:
            if hurry and self._thread.busy and not inspect.iscoroutinefunction(hook):
                if self._started and hook is not None:  # it has its turn when the function has returned
                    self._started = False
                    self._submit_end(call_hook, hook, self._state, self.info)
            else:
                await super().close(hurry=hurry)
        finally:
            self._thread.close()

    async def _invoke(self, function: Callable[..., Any], *args: Any) -> Any:
        # A context variable that is set for one item is not seen by the next.
        variables = self._variables = self._thread.variables()
        if self._thread.busy:  # together with the function that took too long: its thread ends when it returns
            self._thread.close()
            self._thread = Thread(f"atasks-{self.stage.name}-{self.info.index}", self._thread.variables())
        return await self._thread.call(variables.run, function, *args)

    async def _run_hook(self, hook: Callable[..., Any], state: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(hook):
            return call_hook(hook, state, self.info)
        end = self.stage.on_done
        if hook is not self.stage.on_start or end is None or inspect.iscoroutinefunction(end):
            return await self._thread.call(call_hook, hook, state, self.info)
        begun: list[Mapping[str, Any]] = []

        def on_start() -> Any:
            result = call_hook(hook, state, self.info)
            begun.append(result or {})
            return result

        def on_done() -> None:
            if begun:
                call_hook(end, begun[0], self.info)

        try:
            return await self._thread.call(on_start)
        except asyncio.CancelledError:
            # `on_start` goes on in the thread: `on_done` runs behind it, and ends what it began.
            self._submit_end(on_done)
            raise

    def _submit_end(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `on_done` when its turn in the thread has come. The run is over, and nobody waits for it."""
        ended = self._thread.submit(function, *args)
        report_failure(ended, f"on_done of stage {self.stage.name!r} raised")

    async def _iterate(self, iterable: Iterable[Any]) -> AsyncGenerator[Any, None]:
        thread, run = self._thread, self._variables.run
        iterator = await thread.call(run, iterator_of, iterable, self.stage.name)
        try:
            while (item := await thread.call(run, next_or_end, iterator)) is not ENDED:
                yield item
        finally:
            if isinstance(iterator, GeneratorType):
                if thread.busy:  # it runs after the function that was given up
                    closed = thread.submit(run, iterator.close)
                    report_failure(closed, f"a generator of stage {self.stage.name!r} raised on its end")
                else:
                    await thread.call(run, iterator.close)
