"""Consuming a run: from a coroutine, or from a thread without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atasks.caller.background import Background, enter_background
from atasks.current import serving
from atasks.errors import PipelineError
from atasks.pipeline.flow.channel import Inlet, Mark, Token
from atasks.pipeline.flow.engine import Engine
from atasks.pipeline.flow.items import Abandoned, SyncItems
from atasks.pipeline.flow.source import Source
from atasks.pipeline.plan import open_stages, plan

if TYPE_CHECKING:
    from atasks.pipeline.pipeline import Stage
    from atasks.pipeline.progress import Progress, Watch

__all__ = ["AsyncRun", "SyncRun"]


class _Execution:
    """The common part of both kinds of runs: the engine, started in its event loop."""

    def __init__(self, source: Source, stages: Sequence[Stage], progress: Progress | bool | None) -> None:
        self._source = source
        self._stages = stages
        self._progress = progress
        self._watch: Watch | None = None
        self.engine: Engine | None = None
        self.over = False

    def open(self) -> Inlet:
        """Start; to be called in the event loop."""
        engine = self.engine = Engine()
        steps = plan(self._stages)
        inlet = engine.outlet = self._source.open(engine, steps[0].entering if steps else [])
        total = self._source.length() if self._progress else None
        outlet = engine.outlet = open_stages(engine, inlet, steps, total)
        if self._progress:
            from atasks.pipeline.progress import watch

            self._watch = watch(engine, self._progress)
        return outlet

    async def aclose(self) -> None:
        """End everything, and wait until it has."""
        self.over = True
        if self.engine is not None:
            await self.engine.aclose()
        if self._watch is not None:
            self._watch.finish()

    def forget(self) -> None:
        """Nobody wants more: end everything soon. May be called from any thread."""
        if not self.over:
            self.over = True  # first, because a thread may be about to start it
            if self.engine is not None:
                self.engine.call_soon(self.end)

    def end(self) -> None:
        """End everything at once; to be called in the event loop."""
        if self.engine is not None:
            self.engine.abort()
        if self._watch is not None:
            self._watch.finish()


class AsyncRun(_Execution):
    """A run that a coroutine consumes."""

    def iterator(self, *, indexed: bool) -> AsyncIterator[Any]:
        """The items as they come."""
        return _AsyncIterator(self, indexed)

    async def collect(self) -> list[Token]:
        """All tokens with a value, as they came."""
        if self.over:
            return []
        outlet = self.open()
        items = outlet.items
        tokens: list[Token] = []
        try:
            while (token := await outlet.take()) is not None:
                tokens.append(token)
                while items:
                    tokens.append(items.popleft())
                    if outlet.putters:
                        outlet.wake_putter()
        finally:
            await self.aclose()
        if outlet.error is not None:
            raise outlet.error
        return [token for token in tokens if type(token[1]) is not Mark]


class _AsyncIterator:
    """The items of a run. Forgetting it ends the run: that is what a `break` does."""

    def __init__(self, execution: AsyncRun, indexed: bool) -> None:
        self._execution = execution
        self._indexed = indexed
        self._outlet: Inlet | None = None

    def __aiter__(self) -> _AsyncIterator:
        return self

    async def __anext__(self) -> Any:
        outlet = self._outlet
        if self._execution.over:
            raise StopAsyncIteration
        try:
            if outlet is None:
                outlet = self._outlet = self._execution.open()
            while True:
                token: Token | None
                if outlet.items:
                    token = outlet.items.popleft()
                    if outlet.putters:
                        outlet.wake_putter()
                else:
                    token = await outlet.take()
                    if token is None:
                        break
                if type(token[1]) is not Mark:
                    return token if self._indexed else token[1]
        except BaseException:
            await self._execution.aclose()
            raise
        await self._execution.aclose()
        if outlet.error is not None:
            raise outlet.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the run at once, and wait until it has ended."""
        await self._execution.aclose()

    def __del__(self) -> None:
        self._execution.forget()


class SyncRun(_Execution):
    """A run that a thread without an event loop consumes.

    It executes in the background loop, where `connect_sync` connects; in a thread that serves a call, in the loop
    of that call's worker.
    """

    def __init__(self, source: Source, stages: Sequence[Stage], progress: Progress | bool | None) -> None:
        super().__init__(source, stages, progress)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._background: Background | None = None
        """The background whose loop that is, while this run uses it."""

    def iterator(self, *, indexed: bool) -> Iterator[Any]:
        """The items as they come."""
        return _SyncIterator(self, indexed)

    def start(self) -> SyncItems:
        """Start it, and return the stream of its items."""
        run = serving.get()
        if run is not None and not run.ended:
            self._loop = run.loop
        else:
            self._background = enter_background()
            self._loop = self._background.loop

        async def open_() -> Inlet:
            outlet = self.open()
            if self.over:  # a Ctrl-C has come while the thread waited for this
                self.end()
            return outlet

        outlet = asyncio.run_coroutine_threadsafe(open_(), self._loop).result()
        assert self.engine is not None
        return SyncItems(self.engine, outlet)

    def close(self) -> None:
        """End everything, and wait until it has."""
        engine = self.engine
        try:
            if engine is not None and not self.over:
                asyncio.run_coroutine_threadsafe(self.aclose(), engine.loop).result()
            self.over = True
        except BaseException:  # a Ctrl-C: it ends without being waited for
            self.forget()
            raise
        self._leave(wait=True)

    def forget(self) -> None:
        self.over = True  # first, because it may be about to start
        if self._loop is not None:
            # By nothing that is imported: the interpreter, which may be ending, has taken that away.
            try:
                self._loop.call_soon_threadsafe(self.end)
            except RuntimeError:  # the loop has closed
                return

    def end(self) -> None:
        super().end()
        self._leave(wait=False)

    def _leave(self, *, wait: bool) -> None:
        background, self._background = self._background, None
        if background is not None:
            background.leave(wait=wait)


class _SyncIterator:
    """The items of a run. Forgetting it ends the run."""

    def __init__(self, execution: SyncRun, indexed: bool) -> None:
        self._execution = execution
        self._indexed = indexed
        self._stream: SyncItems | None = None

    def __iter__(self) -> _SyncIterator:
        return self

    def __next__(self) -> Any:
        if self._execution.over:
            raise StopIteration
        try:
            if self._stream is None:
                self._stream = self._execution.start()
            item = next(self._stream)
        except Abandoned:
            if self._execution.over:  # closed by another thread
                raise StopIteration from None
            self._execution.forget()
            raise PipelineError("the event loop of this run has ended: items are missing") from None
        except Exception:  # the end of the stream, or its error
            self._execution.close()
            raise
        except BaseException:  # a Ctrl-C: nothing is waited for
            self._execution.forget()
            raise
        return (self._stream.lineage, item) if self._indexed else item

    def close(self) -> None:
        """End the run at once, and wait until it has ended."""
        self._execution.close()

    def __del__(self) -> None:
        if not self._execution.over:
            self._execution.forget()
