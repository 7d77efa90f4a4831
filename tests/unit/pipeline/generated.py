"""Strategies that draw the specs of random pipelines."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.unit.pipeline.model import (
    Call,
    Collect,
    Fork,
    Group,
    Join,
    Nested,
    Ordered,
    Regroup,
    Source,
    Spec,
)

__all__ = ["pipelines", "sources"]

LONG = (64, 65, 200, 1024, 1025, 1030, 2000, 3000)
LOCAL = ("coroutine", "thread", "inline")
ATASK = ("atask",)
PROCESSES = ("thread", "process", "process")

windows = st.sampled_from((1, 2, 3, 10, 1024))
workers = st.sampled_from((1, 1, 2, 3, 9, None))
few = st.sampled_from((1, 1, 2))
salts = st.integers(0, 9)


@st.composite
def calls(
    draw: st.DrawFn, hows: tuple[str, ...], *, first: bool = False, role: str | None = None, counted: bool = False
) -> Call:
    """A stage that calls a function; for the `first` one of a pipeline that is called, with one worker. `counted`:
    it may have `max_errors`, because the model knows all items of the stage."""
    role = role or draw(
        st.sampled_from(("map", "map", "filter", "filter", "flat_map", "flat_map", "each", "after"))
    )
    modulus = 0 if role == "after" else draw(st.sampled_from((0, 0, 0, 0, 2, 7, 50)))
    return Call(
        role,
        draw(salts),
        modulus,
        draw(st.sampled_from((True, True, True, False))) if modulus else draw(st.booleans()),
        draw(st.sampled_from(hows)),
        1 if first else draw(few if hows is PROCESSES else workers),
        draw(st.sampled_from((None, 64, 1, 2, 0))),
        draw(st.sampled_from((None, None, None, 0, 1, 5, 0.0, 0.1, 0.5, 1.0))) if counted else None,
    )


def stages(
    hows: tuple[str, ...], level: int, *, first: bool = False, counted: bool = True
) -> st.SearchStrategy[Spec]:
    """One stage, with others inside of it as deep as `level` says."""
    local = hows is not ATASK
    found: list[st.SearchStrategy[Any]] = [
        calls(hows, first=first, counted=counted),
        calls(hows, first=first, counted=counted),
        calls(hows, first=first, counted=counted),
        st.builds(Ordered, windows),
    ]
    if not first:
        sizes = st.sampled_from((None, 1, 2, 7, 1500))
        how = st.just("inline" if local else "atask")
        found += [st.builds(Collect, sizes), st.builds(Regroup, sizes, how), st.builds(Regroup, sizes, how)]
    if not first and local:
        firsts = st.sampled_from((None, None, 0, 1, 5))
        found.append(st.builds(Join, firsts, st.sampled_from(("coroutine", "thread")), st.sampled_from((1, 1, 2))))
    if level:
        ways = st.lists(pipelines(hows, level - 1, longest=3, counted=False), min_size=1, max_size=3)
        found += [st.builds(Fork, ways.map(tuple))] * 3
        inner = pipelines(hows, level - 1, first=True, longest=3, counted=counted)
        one = st.just(1) if first else workers
        found.append(st.builds(Nested, inner, st.booleans(), one))
        member = st.one_of(calls(hows, first=True, role="map").map(lambda call: (call,)), inner)
        found.append(st.builds(Group, st.lists(member, min_size=1, max_size=3).map(tuple), st.booleans(), one))
    return st.one_of(found)


@st.composite
def pipelines(
    draw: st.DrawFn,
    hows: tuple[str, ...] = LOCAL,
    level: int = 2,
    *,
    first: bool = False,
    longest: int = 6,
    counted: bool = True,
) -> tuple[Spec, ...]:
    """The stages of a pipeline: with `first` it can be called with arguments. `counted`: see `calls`."""
    begin = (draw(stages(hows, level, first=True, counted=counted)),) if first else ()
    more = stages(hows, level, counted=counted)
    return begin + tuple(draw(st.lists(more, min_size=0 if first else 1, max_size=longest)))


@st.composite
def sources(draw: st.DrawFn, *, plain: bool = False) -> Source:
    """Sources of items: often of few items, sometimes of more than a window."""
    if not plain and draw(st.integers(0, 7)) == 7:
        part = st.tuples(sources(plain=True), pipelines(level=1, longest=2))
        return Source(parts=tuple(draw(st.lists(part, max_size=3))))
    length = draw(st.one_of(st.integers(0, 20), st.integers(0, 20), st.integers(0, 60), st.sampled_from(LONG)))
    return Source(length, draw(st.sampled_from(("list", "generator", "async", "inline"))))
