"""Random pipelines that are left, cancelled, closed, or fail at random points: nothing of them is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, note
from hypothesis import strategies as st

from atasks.pipeline import AbortPipeline, from_iterable, map, merge
from tests.unit.pipeline.generated import pipelines
from tests.unit.pipeline.model import Spec, build_all
from tests.unit.pipeline.model_functions import Boom
from tests.unit.pipeline.test_model import PATIENCE, bounded, functions

WAYS = ("break", "aclose", "cancel", "raise", "forget", "end", "for-break", "for-close")
FAULTS = ("nothing", "raise", "abort", "hang", "on_start", "on_done", "source")


class Stop(Exception):
    """The exception that the consumer raises."""


@dataclass
class Site:
    """A count of what was begun, and of what has ended."""

    fault: str
    at: int
    calls: int = 0
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self) -> bool:
        """Count a call, and return True if the fault must happen now."""
        with self.lock:
            self.calls += 1
            return self.calls == self.at

    def plain_source(self) -> Iterator[int]:
        self.opened.append("plain")
        try:
            for number in range(500):
                if self.fault == "source" and self.count():
                    raise Boom
                yield number
        finally:
            self.closed.append("plain")

    async def async_source(self) -> AsyncIterator[int]:
        self.opened.append("async")
        try:
            for number in range(500):
                await asyncio.sleep(0)
                if self.fault == "source" and self.count():
                    raise Boom
                yield number
        finally:
            self.closed.append("async")

    def source(self, kind: str) -> Any:
        match kind:
            case "plain":
                return self.plain_source()
            case "async":
                return self.async_source()
            case "inline":
                return from_iterable(self.plain_source(), inline=True)
            case _:
                return merge(self.plain_source(), self.async_source(), range(50))

    def on_start(self) -> dict[str, Any]:
        if self.fault == "on_start" and self.at % 2:
            raise Boom
        self.started.append(1)
        return {}

    def on_done(self) -> None:
        self.done.append(1)
        if self.fault == "on_done":
            raise Boom

    def happens(self) -> bool:
        if self.fault not in ("raise", "abort", "hang") or not self.count():
            return False
        if self.fault == "raise":
            raise Boom
        if self.fault == "abort":
            raise AbortPipeline("enough")
        return True

    async def coroutine(self, x: Any) -> Any:
        if self.happens():
            await asyncio.Event().wait()
        return x

    def plain(self, x: Any) -> Any:
        if self.happens():
            time.sleep(0.05)
        return x

    def stage(self, how: str, options: dict[str, Any]) -> Any:
        function = self.coroutine if how == "coroutine" else self.plain
        extra = {"timeout": 0.02} if self.fault == "hang" and how != "inline" else {}
        inline = {"inline": True} if how == "inline" else {}
        return map(function, on_start=self.on_start, on_done=self.on_done, **options, **extra, **inline)


def run_to(run: Any, way: str, after: int) -> BaseException | None:
    """Consume some items where no event loop runs, and leave."""
    found: list[BaseException | None] = []

    def consume() -> None:
        items = iter(run)
        try:
            for number, _ in enumerate(items):
                if number == after:
                    if way == "for-close":
                        items.close()
                    break
        except BaseException as error:
            found.append(error)
        else:
            found.append(None)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it hangs"
    return found[0]


async def use(run: Any, way: str, after: int) -> None:
    """Consume some items, and leave in this way."""
    if way == "cancel":
        task = asyncio.ensure_future(drained(run))
        for _ in range(3 * after):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]
        return
    number = 0
    async for _ in run:
        if number == after and way != "end":
            if way == "raise":
                raise Stop
            if way == "aclose":
                await run.aclose()
            break
        number += 1


async def drained(run: Any) -> None:
    async for _ in run:
        pass


def stage_threads(before: set[threading.Thread]) -> list[str]:
    begun = set(threading.enumerate()) - before
    return [thread.name for thread in begun if thread.name.startswith("atasks-")]


def gone(what: Callable[[], Any]) -> bool:
    """True if there is nothing of it soon."""
    end = time.monotonic() + 20
    while what() and time.monotonic() < end:
        time.sleep(0.002)
    return not what()


async def left(run: Any, way: str, after: int) -> tuple[BaseException | None, int]:
    """Consume the run, and return the error that the consumer got, and the number of tasks that stay."""
    before = asyncio.all_tasks()
    error: BaseException | None = None
    async with asyncio.timeout(PATIENCE):
        try:
            await use(run, way, after)
        except Exception as raised:
            error = raised
            error.__traceback__ = None
    del run
    gc.collect(0)
    for _ in range(2000):
        if not asyncio.all_tasks() - before:
            break
        await asyncio.sleep(0.005)
    return error, len(asyncio.all_tasks() - before)


@bounded(80)
@given(
    pipelines(level=1, longest=3),
    st.sampled_from(("coroutine", "thread", "inline")),
    st.fixed_dictionaries({"workers": st.sampled_from((1, 3)), "skip_errors": st.booleans()}),
    st.sampled_from(("plain", "async", "inline", "merge")),
    st.sampled_from(FAULTS),
    st.integers(1, 30),
    st.sampled_from(WAYS),
    st.integers(0, 30),
)
def test_nothing_is_left_behind(
    specs: tuple[Spec, ...],
    how: str,
    options: dict[str, Any],
    source: str,
    fault: str,
    at: int,
    way: str,
    after: int,
) -> None:
    site = Site(fault, at)
    before = set(threading.enumerate())
    middle = site.stage(how, options)

    def make() -> Any:
        return site.source(source) | middle | build_all(specs, functions)

    if way.startswith("for"):
        error, tasks = run_to(make(), way, after), 0
    else:
        error, tasks = asyncio.run(left(make(), way, after), debug=False)
    note(f"{error!r}, {site}")
    assert tasks == 0, "tasks are left"
    assert gone(lambda: stage_threads(before)), f"threads are left: {stage_threads(before)}"
    assert sorted(site.opened) == sorted(site.closed), "a source is open"
    assert len(site.started) == len(site.done), "on_done did not follow on_start"
    expected = isinstance(error, (Boom, Stop, AbortPipeline, TimeoutError)) or "max_errors" in str(error)
    assert error is None or expected, f"it raised {error!r}"
    if isinstance(error, Stop):
        assert way == "raise"
