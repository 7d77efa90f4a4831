"""Random pipelines as plain data: what each does to a list, by plain Python, and the pipeline that it stands for.

A `Stream` says what is known of the items between two stages: which they are, and whether the order of their
lineage, and that in which they arrive, are determined. A pipeline is held to as much as is known.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atasks.pipeline import (
    Pipeline,
    PipelineError,
    bind,
    collect,
    flat_map,
    fork,
    from_iterable,
    group,
    merge,
    ordered,
    stage,
)
from tests.unit.pipeline.model_functions import BODIES, MAKERS, Boom, Functions, mixed

__all__ = [
    "Call",
    "Collect",
    "Fork",
    "Group",
    "Join",
    "Nested",
    "Ordered",
    "Regroup",
    "Source",
    "Spec",
    "Stream",
]


# -- what is known of a stream


@dataclass(frozen=True)
class Stream:
    """Items between two stages."""

    items: tuple[Any, ...] | None
    """In the order of lineage, if that is determined; None where nothing is known of them."""
    by_lineage: bool = True
    by_arrival: bool = True
    may_fail: bool = False
    must_fail: bool = False

    def arriving(self, workers: int | None) -> Stream:
        """Behind a stage with so many workers."""
        return self if workers == 1 else replace(self, by_arrival=False)

    def failing(self) -> Stream:
        return replace(self, may_fail=True, must_fail=True)

    def mapped(self, outcomes: Sequence[tuple[Sequence[Any], bool]], skip: bool) -> Stream:
        """With what became of each item: its results, and whether it failed."""
        stream = replace(self, items=tuple(result for results, _ in outcomes for result in results))
        return stream.failing() if not skip and any(failed for _, failed in outcomes) else stream

    def unknown(self) -> Stream:
        return Stream(None, by_lineage=False, by_arrival=False, may_fail=True, must_fail=self.must_fail)

    def renumbered(self) -> Stream:
        return replace(self, by_lineage=self.by_arrival)

    def check(self, items: Sequence[Any], error: BaseException | None, *, arrival: bool) -> None:
        """Raise an AssertionError if this cannot be what comes of it."""
        if error is not None:
            too_many = isinstance(error, PipelineError) and "max_errors" in str(error)
            assert too_many or isinstance(error, Boom), f"it raised {error!r}"
            assert self.may_fail, "it raised although no function does"
        else:
            assert not self.must_fail, "it did not raise although a function does"
        if self.items is None:
            return
        expected = list(self.items)
        if self.by_arrival if arrival else self.by_lineage:
            assert list(items) == expected[: len(items) if error is not None else None], "other items"
        else:
            missing = Counter(_texts(expected))
            missing.subtract(_texts(items))
            assert min(missing.values(), default=0) >= 0, "too many items"
            assert error is not None or not any(missing.values()), "items are missing"


def _texts(items: Sequence[Any]) -> list[str]:
    return [repr(item) for item in items]


# -- the specs of stages


@dataclass(frozen=True)
class Spec:
    """A stage."""

    one_to_one = False
    makes_one = False
    resets = False
    deepens = 0

    def apply(self, stream: Stream) -> Stream:
        """The stream that the stage makes of the items."""
        raise NotImplementedError

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        """The stage itself."""
        raise NotImplementedError


def apply_all(specs: Sequence[Spec], stream: Stream) -> Stream:
    for spec in specs:
        stream = spec.apply(stream)
    return stream


def build_all(specs: Sequence[Spec], functions: Functions) -> Pipeline[..., Any, Any]:
    return Pipeline(*itertools.chain.from_iterable(spec.build(functions).stages for spec in specs))


def gives_one(specs: Sequence[Spec]) -> bool:
    one = True
    for spec in specs:
        one = spec.makes_one or (one and spec.one_to_one)
    return one


def depth(specs: Sequence[Spec]) -> int:
    found = 1
    for spec in specs:
        found = 1 if spec.resets else found + spec.deepens
    return found


def awaited(specs: Sequence[Spec], item: Any) -> tuple[Any, Stream]:
    """The value of awaiting a call, if that is determined, and the stream of it."""
    stream = apply_all(specs, Stream((item,)))
    if stream.items is None or stream.must_fail:
        return None, stream
    return stream.items[0] if gives_one(specs) else list(stream.items), stream


@dataclass(frozen=True)
class Call(Spec):
    role: str = "map"
    salt: int = 0
    modulus: int = 0
    """The number of items of which about one fails; 0: none."""
    skip: bool = False
    how: str = "coroutine"
    workers: int | None = 1
    throttle: int | None = None
    most: float | None = None
    """`max_errors`, for one that skips."""

    @property
    def one_to_one(self) -> bool:  # type: ignore[override]
        return self.role in ("map", "after") and not self.skip

    @property
    def deepens(self) -> int:  # type: ignore[override]
        return int(self.role == "flat_map")

    def outcome(self, item: Any) -> tuple[Sequence[Any], bool]:
        """The results of an item, and True if it fails."""
        results: list[Any] = []
        body = BODIES[self.role]
        try:
            match self.role:
                case "flat_map":
                    if self.how == "atask":
                        results = list(body(self.salt, self.modulus, item))
                    else:
                        results.extend(body(self.salt, self.modulus, item))
                case "filter":
                    results = [item] if body(self.salt, self.modulus, item) else []
                case "each":
                    body(self.salt, self.modulus, item)
                case "after":
                    results = [self.salt]
                case _:
                    results = [body(self.salt, self.modulus, item)]
        except Boom:
            return results, True
        return results, False

    def apply(self, stream: Stream) -> Stream:
        stream = stream.arriving(self.workers)
        if stream.items is None:
            return stream.unknown()
        outcomes = [self.outcome(item) for item in stream.items]
        result, dropped = stream.mapped(outcomes, self.skip), sum(failed for _, failed in outcomes)
        if not self.skip or self.most is None:
            return result
        if isinstance(self.most, int):
            return result.failing() if dropped > self.most else result
        if dropped - self.most * len(outcomes) > 1e-6:
            return result.failing()
        # Among more than a hundred a share may have been too large for a while: that depends on the order.
        return replace(result, may_fail=True) if dropped > 100 * self.most else result

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        options: dict[str, Any] = {"skip_errors": self.skip, "throttle": self.throttle}
        if self.skip:
            options["max_errors"] = self.most
        if self.workers != 1 or self.how == "atask":
            options["workers"] = self.workers
        if self.how == "inline":
            options["inline"] = True
        if self.how == "process":
            options["multiprocess"] = True
        bound = bind(self.salt, self.modulus)
        return MAKERS[self.role](functions[self.role, self.how], bind=bound, **options)


@dataclass(frozen=True)
class Ordered(Spec):
    window: int = 1024
    one_to_one = True

    def apply(self, stream: Stream) -> Stream:
        return replace(stream, by_arrival=stream.by_lineage)

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        return ordered(self.window)


@dataclass(frozen=True)
class Collect(Spec):
    size: int | None = None
    resets = True

    @property
    def makes_one(self) -> bool:  # type: ignore[override]
        return self.size is None

    def apply(self, stream: Stream) -> Stream:
        if stream.items is None or not stream.by_lineage:
            return stream.unknown()
        items, size = list(stream.items), self.size
        lists = [items] if size is None else [items[at : at + size] for at in range(0, len(items), size)]
        if stream.must_fail:
            return stream.unknown()  # a batch may come before the error, and may not
        return replace(stream, items=tuple(lists), by_lineage=True, by_arrival=True)

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        return collect(self.size) if self.size is not None else collect()


@dataclass(frozen=True)
class Regroup(Spec):
    """Gathers lists and takes them apart again: no item gets lost, whatever the order is."""

    size: int | None = None
    how: str = "inline"
    resets = False
    deepens = 1

    def apply(self, stream: Stream) -> Stream:
        return replace(stream, by_arrival=stream.by_lineage)

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        function = functions["flatten", self.how]
        unpacked = flat_map(function, inline=True) if self.how == "inline" else flat_map(function, workers=1)
        return (collect(self.size) if self.size is not None else collect()) | unpacked


@dataclass(frozen=True)
class Group(Spec):
    members: tuple[tuple[Spec, ...], ...]
    lenient: bool = False
    workers: int | None = 1
    one_to_one = True

    def outcome(self, item: Any) -> tuple[Sequence[Any], bool] | None:
        results: list[Any] = []
        failed = False
        for member in self.members:
            value, stream = awaited(member, item)
            if stream.items is None or not stream.by_lineage or stream.may_fail != stream.must_fail:
                return None
            failed = failed or stream.must_fail
            results.append(None if stream.must_fail else value)
        return ([], True) if failed and not self.lenient else ([tuple(results)], False)

    def apply(self, stream: Stream) -> Stream:
        stream = stream.arriving(self.workers)
        if stream.items is None:
            return stream.unknown()
        outcomes = [self.outcome(item) for item in stream.items]
        if any(outcome is None for outcome in outcomes):
            return stream.unknown()
        return stream.mapped([outcome for outcome in outcomes if outcome is not None], False)

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        members = [build_all(member, functions) for member in self.members]
        return group(*members, skip_errors=self.lenient, workers=self.workers)


@dataclass(frozen=True)
class Fork(Spec):
    ways: tuple[tuple[Spec, ...], ...]

    @property
    def resets(self) -> bool:  # type: ignore[override]
        return len({depth(way) for way in self.ways}) > 1 or any(
            spec.resets or isinstance(spec, Regroup) for way in self.ways for spec in way
        )

    @property
    def deepens(self) -> int:  # type: ignore[override]
        return depth(self.ways[0])

    def apply(self, stream: Stream) -> Stream:
        if self.resets:
            results = [apply_all(way, stream) for way in self.ways]
            items = None if any(result.items is None for result in results) else ()
            merged: tuple[Any, ...] | None = items
            for result in results:
                if merged is not None and result.items is not None:
                    merged += result.items
            return Stream(
                merged,
                by_lineage=False,
                by_arrival=False,
                may_fail=any(result.may_fail for result in results),
                must_fail=any(result.must_fail for result in results),
            )
        if stream.items is None:
            return stream.unknown()
        found: list[Any] = []
        may_fail, must_fail, by_lineage = stream.may_fail, stream.must_fail, stream.by_lineage
        for item in stream.items:
            for way in self.ways:
                result = apply_all(way, Stream((item,)))
                if result.items is None:
                    return stream.unknown()
                found += result.items
                may_fail |= result.may_fail
                must_fail |= result.must_fail
                by_lineage &= result.by_lineage
        return Stream(tuple(found), by_lineage, False, may_fail, must_fail)

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        return fork(*(build_all(way, functions) for way in self.ways))


@dataclass(frozen=True)
class Nested(Spec):
    """A pipeline as a stage."""

    inner: tuple[Spec, ...]
    branch: bool = False
    workers: int | None = 1

    @property
    def one_to_one(self) -> bool:  # type: ignore[override]
        return not self.branch

    @property
    def deepens(self) -> int:  # type: ignore[override]
        return int(self.branch)

    def apply(self, stream: Stream) -> Stream:
        stream = stream.arriving(self.workers)
        if stream.items is None:
            return stream.unknown()
        found: list[Any] = []
        by_lineage, by_arrival = stream.by_lineage, stream.by_arrival
        may_fail, must_fail = stream.may_fail, stream.must_fail
        for item in stream.items:
            value, result = awaited(self.inner, item)
            if result.items is None or not (result.by_lineage or self.branch):
                return stream.unknown()
            may_fail |= result.may_fail
            must_fail |= result.must_fail
            if self.branch:
                by_lineage &= result.by_arrival
                by_arrival &= result.by_arrival
                found += result.items
            elif not result.must_fail:
                found.append(value)
        return Stream(tuple(found), by_lineage, by_arrival, may_fail, must_fail)

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        return stage(build_all(self.inner, functions), branch=self.branch, workers=self.workers)


@dataclass(frozen=True)
class Join(Spec):
    """Hands on the items as they come, all of them or the first ones."""

    first: int | None = None
    how: str = "coroutine"
    workers: int = 1
    resets = True

    def apply(self, stream: Stream) -> Stream:
        if self.first is None:
            return stream.arriving(self.workers).renumbered()
        if stream.items is None or stream.may_fail or not stream.by_arrival or self.workers != 1:
            return replace(stream.unknown(), must_fail=False)
        return replace(stream.renumbered(), items=stream.items[: self.first])

    def build(self, functions: Functions) -> Pipeline[..., Any, Any]:
        first = self.first

        def plain(items: Iterator[Any]) -> Iterator[Any]:
            return itertools.islice(items, first)

        async def coroutine(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
            left = first
            while left is None or left > 0:
                async for item in items:
                    yield item
                    break
                else:
                    return
                left = None if left is None else left - 1

        function = plain if self.how == "thread" else coroutine
        made: Pipeline[..., Any, Any] = stage(function, join=True, branch=True, workers=self.workers)
        return made


# -- where the items come from


@dataclass(frozen=True)
class Source:
    """So many numbers; or several sources, merged."""

    length: int = 0
    kind: str = "list"
    parts: tuple[tuple[Source, tuple[Spec, ...]], ...] = ()

    def stream(self) -> Stream:
        if not self.parts:
            return Stream(tuple(range(self.length)))
        found: tuple[Any, ...] | None = ()
        may_fail = must_fail = False
        for source, specs in self.parts:
            stream = apply_all(specs, source.stream())
            found = None if found is None or stream.items is None else found + stream.items
            may_fail |= stream.may_fail
            must_fail |= stream.must_fail
        return Stream(found, False, False, may_fail, must_fail)

    def open(self, functions: Functions) -> Any:
        """Make the left end of a pipeline."""
        if self.parts:
            return merge(*(source.open(functions) | build_all(specs, functions) for source, specs in self.parts))
        match self.kind:
            case "generator":
                return (item for item in range(self.length))
            case "async":
                return counted(self.length)
            case "inline":
                return from_iterable((item for item in range(self.length)), inline=True)
            case _:
                return range(self.length)


async def counted(length: int) -> AsyncIterator[int]:
    for item in range(length):
        if mixed(5, item) % 3 == 0:
            await asyncio.sleep(0)
        yield item
