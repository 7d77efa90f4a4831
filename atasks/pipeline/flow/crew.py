"""The workers of a stage: they take tokens from its inlet and put tokens into its outlet."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from atasks.errors import AbortPipeline, PipelineError
from atasks.outlast import is_cancelled
from atasks.pipeline.flow.channel import END, GAP, Channel, Inlet, Lineage, Mark, Token
from atasks.pipeline.flow.failing import FailedBefore, add_note, deliverable
from atasks.pipeline.flow.invocation import told
from atasks.pipeline.flow.items import AsyncItems, SyncItems
from atasks.pipeline.flow.ordering import Admission, admitted
from atasks.pipeline.flow.runners import ApartRunner

if TYPE_CHECKING:
    from atasks.pipeline.flow.ahead import Ahead
    from atasks.pipeline.flow.engine import Engine
    from atasks.pipeline.flow.runners import LoopRunner
    from atasks.pipeline.stages.functions import CallingStage

__all__ = ["Crew", "FunctionCrew"]

SAMPLE = 100
"""A share of errors is that of so many items at least, while there may be more."""
PATIENCE = 0.005
"""Seconds for which functions that never wait may keep the event loop before others have a turn."""


class Crew(ABC):
    """Tasks that make one stage's outlet from its inlet. The outlet ends when the last of them has returned."""

    streams: Sequence[AsyncItems | SyncItems] | None = None
    """The streams that users' code reads, each as far as it likes; None: the tasks take all of the inlet."""

    def __init__(self, engine: Engine, name: str, inlet: Inlet, outlet: Channel) -> None:
        self.engine = engine
        self.name = name
        self.inlet = inlet
        self.outlet = outlet
        self.size = 0
        """Workers that have been started."""
        self.aheads: list[Ahead] = []
        """Those of its workers that take items by themselves."""
        self.finished = 0
        """Other items that it is done with."""
        self.dropped = 0
        """Items that it has dropped for an error."""
        self.total: int | None = None
        """The number of items in all, if that is known."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        outlet.add_producer(self.stop)

    @property
    def done(self) -> int:
        """Items that the stage is done with."""
        return self.finished + sum(ahead.put for ahead in self.aheads)

    def start(self) -> None:
        """Start the first worker, or more."""
        self.hire()

    @abstractmethod
    async def work(self, index: int) -> None:
        """Run one worker, until the inlet ends."""

    def hire(self) -> None:
        """Start another worker."""
        task = self.engine.spawn(self._employ(self.size))
        self.size += 1
        self._tasks.add(task)
        task.add_done_callback(self._left)

    def stop(self) -> None:
        """End at once, and all that is upstream."""
        if not self._stopping:
            self._stopping = True
            for task in self._tasks:
                task.cancel()
            self.inlet.stop()

    def fail(self, error: BaseException, note: str | None) -> None:
        """Give the error to the consumer, behind what was emitted, and end at once what makes more."""
        error = deliverable(error)
        if note is not None:
            add_note(error, note)
        if self.outlet.ended and self.outlet.error is None:  # nobody wants more
            self.engine.report(error, f"stage {self.name!r} of a pipeline raised on its end")
        self.outlet.fail(error)
        self.stop()

    def is_own(self, error: BaseException) -> bool:
        """Return True if the error came from a user's code, and not from the end of this run."""
        if isinstance(error, asyncio.CancelledError):
            return not self._stopping and not is_cancelled()
        return not isinstance(error, GeneratorExit) or not self._stopping

    async def _employ(self, index: int) -> None:
        try:
            await self.work(index)
        except BaseException as error:
            if not self.is_own(error):
                raise
            self.fail(error, self.note())

    def note(self, lineage: Lineage | None = None) -> str:
        """Describe the place of an error."""
        place = f"in stage {self.name!r}"
        return place if lineage is None else f"{place}, at item {lineage}"

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and not self._stopping:  # not by this run: the loop is closing, say
            self.fail(
                PipelineError(f"the event loop ended before stage {self.name!r} did: items are missing"), None
            )
        if not self._tasks:
            self.inlet.stop()
            self.close()

    def close(self) -> None:
        """End the outlet, as the inlet has ended: all is done. An error that nobody has come to is none."""
        streams = self.streams
        self.outlet.close(self.inlet.error if streams is None or any(one.at_end for one in streams) else None)


class FunctionCrew(Crew):
    """The workers of a stage that calls a function."""

    def __init__(
        self,
        engine: Engine,
        stage: CallingStage,
        inlet: Inlet,
        outlet: Channel,
        windows: Sequence[Admission],
    ) -> None:
        super().__init__(engine, stage.name, inlet, outlet)
        self.stage = stage
        self.windows = windows
        """The windows of the stages further down that put items in order: where there are any, marks travel."""
        self._idle = 0
        """Workers that wait for a token, or are about to."""
        self._limit = float("inf") if stage.workers is None else stage.workers
        self._children = 0
        """The number of items that a join has emitted."""
        self._last_error: Exception | None = None
        """The one for which an item was dropped last."""

    def start(self) -> None:
        # Others begin when they are needed: 64 tasks for 3 items are a waste. But a join, or a hook, must run a
        # known number of times.
        stage = self.stage
        known = stage.join or stage.on_start is not None or stage.on_done is not None
        for _ in range(stage.workers if known and stage.workers is not None else 1):
            self.hire()

    def hire(self) -> None:
        self._idle += 1
        super().hire()

    async def work(self, index: int) -> None:
        runner = self.stage.employ(index)
        hurry = True
        try:
            await runner.start()
            if self.stage.join:
                await self._join(runner, index)
            elif self.stage.branch:
                await self._branch(runner)
            else:
                ahead = runner.ahead(self.inlet, self.outlet, marks=bool(self.windows))
                if ahead is None:
                    await self._items(runner)
                else:
                    self.aheads.append(ahead)
                    try:
                        await self._behind(runner, ahead)
                    finally:  # it holds its last item
                        self.aheads.remove(ahead)
                        self.finished += ahead.put
            hurry = self.outlet.error is not None
        finally:
            await self._dismiss(runner, hurry)

    async def _dismiss(self, runner: LoopRunner, hurry: bool) -> None:
        try:
            try:
                await runner.close(hurry=hurry)
            finally:
                for left in runner.left():
                    self.engine.spawn(left)
        except BaseException as error:
            if not hurry or not self.is_own(error):
                raise
            # The run has ended already, with an error or because nobody wants more.
            self.engine.report(error, f"on_done of stage {self.name!r} raised")

    async def _items(self, runner: LoopRunner) -> None:
        """One call after the other, each with one result."""
        stage, inlet, outlet = self.stage, self.inlet, self.outlet
        ready: deque[Token] = inlet.items if runner.ready is None else deque()
        out, capacity, takers, putters = outlet.items, outlet.capacity, outlet.takers, inlet.putters
        places = outlet.places
        simple, call = None if inlet.called else runner.simple, runner.call
        keep, marks = stage.keep, bool(self.windows)
        limit = self._limit
        alone = limit == 1 and runner.ready is None  # then nobody needs to know that it is idle
        take = inlet.take if alone else partial(self._take, runner.ready)
        has_changed, clean = _has_changed, copy_context()
        beats, pause = 0, monotonic() + PATIENCE
        self._idle -= 1
        while True:
            token = ready.popleft() if ready else await take()
            if token is None:
                return
            if putters:
                inlet.wake_putter()
            if not self._idle and self.size < limit:
                self.hire()
            lineage, value = token
            if type(value) is Mark:
                result: Any = value
            else:
                try:
                    result = await simple(value) if simple is not None else await call(value, lineage)
                    if keep is not None:
                        result = keep(value, result)
                except BaseException as error:
                    if not await self._skips(error, lineage, value):
                        return
                    result = GAP
                self.finished += 1
                if has_changed(clean):
                    simple, call, clean = None, ApartRunner(runner, clean).call, copy_context()
            if marks or type(result) is not Mark:
                if len(out) + len(places) >= capacity:
                    await outlet.room()
                out.append((lineage, result))
                if takers:
                    outlet.wake_taker()
            beats += 1
            if not beats & 15 and monotonic() > pause:
                await asyncio.sleep(0)
                pause = monotonic() + PATIENCE

    async def _behind(self, runner: LoopRunner, ahead: Ahead) -> None:
        """Like `_items`, for items behind which a thread does not go on by itself."""
        outlet, marks = self.outlet, bool(self.windows)
        call, clean = runner.call, copy_context()
        self._idle -= 1
        while (token := ahead.next_sent() or await self._take(runner.ready)) is not None:
            self.inlet.wake_putter()
            if not self._idle and self.size < self._limit:
                self.hire()
            try:
                result = await call(token[1], token[0])
                lineage, value = ahead.at
            except BaseException as error:
                lineage, value = ahead.at
                if not await self._skips(error, lineage, value):
                    return
                result = GAP
            self.finished += type(value) is not Mark
            if _has_changed(clean):
                call, clean = ApartRunner(runner, clean).call, copy_context()
            if marks or type(result) is not Mark:
                if not ahead.has_place:
                    await outlet.room()
                outlet.items.append((lineage, result))
                outlet.wake_takers()

    async def _take(self, ready: Callable[[], Coroutine[Any, Any, None]] | None) -> Token | None:
        self._idle += 1
        token = await self.inlet.take()
        self._idle -= 1
        if ready is not None and token is not None:
            await ready()
        return token

    async def _skips(self, error: BaseException, lineage: Lineage | None, value: Any) -> bool:
        """Return True if the item is dropped for this error; otherwise the stage has failed."""
        if not self.is_own(error):
            raise error
        error = deliverable(error)
        dropped = self.stage.skip_errors and isinstance(error, Exception) and not isinstance(error, AbortPipeline)
        if not dropped:
            self.fail(error, self.note(lineage))
            return False
        assert isinstance(error, Exception), "else it is not dropped"
        self.dropped += 1
        self._last_error = error
        handler = self.stage.on_error
        if handler is not None and not isinstance(error, FailedBefore):
            try:
                await told(handler, value, error)
            except BaseException as raised:
                if not self.is_own(raised):
                    raise
                self.fail(raised, f"in on_error of stage {self.name!r}, at item {lineage}")
                return False
        if self._has_dropped_too_many(max(self.done + 1, SAMPLE)):
            self._fail_for_errors()
            return False
        return True

    def _has_dropped_too_many(self, items: int) -> bool:
        """Return True if `max_errors` of the stage is less than what it has dropped of so many items."""
        most = self.stage.options.max_errors
        if most is None:
            return False
        return self.dropped > most if isinstance(most, int) else self.dropped - most * items > 1e-6

    def _fail_for_errors(self) -> None:
        most = self.stage.options.max_errors
        of = f" of {max(self.done, self.dropped)}" if isinstance(most, float) else ""
        error = PipelineError(f"{self.dropped}{of} items have failed, and max_errors is {most}")
        error.__cause__ = self._last_error
        self.fail(error, self.note())

    def close(self) -> None:
        if not self._stopping and self.inlet.error is None and self._has_dropped_too_many(self.done):
            self._fail_for_errors()
        super().close()

    async def _branch(self, runner: LoopRunner) -> None:
        """One call after the other, each with a stream of results."""
        call, clean = runner.stream, copy_context()
        self._idle -= 1
        while (token := await self._take(runner.ready)) is not None:
            if not self._idle and self.size < self._limit:
                self.hire()
            lineage, value = token
            if type(value) is Mark:
                await self.outlet.put(token)
                continue
            children, failed = await self._emit_all(call(value, lineage), lineage)
            if _has_changed(clean):
                call, clean = ApartRunner(runner, clean).stream, copy_context()
            if failed is not None and not await self._skips(failed, lineage, value):
                return
            self.finished += 1
            if self.windows:
                await self.outlet.put(((*lineage, children), END))

    async def _emit_all(
        self, stream: AsyncIterator[Any], lineage: Lineage, first: int = 0
    ) -> tuple[int, BaseException | None]:
        """Emit the children of an item: how many there were, and what ended them too early."""
        outlet, windows = self.outlet, self.windows
        out, places, capacity = outlet.items, outlet.places, outlet.capacity
        number, pause = first, monotonic() + PATIENCE
        try:
            async for child in stream:
                token = ((*lineage, number), child)
                if windows:
                    await admitted(windows, token[0])
                if len(out) + len(places) >= capacity:
                    await outlet.room()
                out.append(token)
                if outlet.takers:
                    outlet.wake_taker()
                number += 1
                if not number & 15 and monotonic() > pause:
                    await asyncio.sleep(0)
                    pause = monotonic() + PATIENCE
        except BaseException as error:
            if not self.is_own(error):
                raise
            return number, error
        finally:
            aclose = getattr(stream, "aclose", None)
            if aclose is not None:
                await aclose()
        return number, None

    async def _join(self, runner: LoopRunner, index: int) -> None:
        """One call, with the stream."""
        stream = AsyncItems(self.inlet) if self.stage.is_coroutine else SyncItems(self.engine, self.inlet)
        self.streams = (*(self.streams or ()), stream)
        try:
            if self.stage.branch:
                await self._emit_joined(runner.stream(stream, ()))
            else:
                result = await runner.call(stream, ())
                await self.outlet.put(((index,), result))
        except BaseException as error:
            if not self.is_own(error):
                raise
            if error is self.inlet.error:
                self.fail(error, None)  # it has its note
            elif await self._skips(error, stream.lineage, None):
                if self.windows and not self.stage.branch:
                    await self.outlet.put(((index,), GAP))
                return
        self.finished += 1

    async def _emit_joined(self, stream: AsyncIterator[Any]) -> None:
        """All workers of a join count what they emit together: the order is that in which items came."""
        try:
            async for item in stream:
                await self.outlet.room()
                number = self._children
                self._children += 1
                if self.windows:
                    await admitted(self.windows, (number,))
                await self.outlet.put(((number,), item))
        finally:
            aclose = getattr(stream, "aclose", None)
            if aclose is not None:
                await aclose()


def _has_changed(variables: Context) -> bool:
    """Return True if a context variable has another value here than there."""
    try:
        return copy_context() != variables
    except Exception:  # of a value that was compared, so it is another one
        return True
