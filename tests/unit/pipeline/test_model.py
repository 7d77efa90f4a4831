"""Random pipelines give what a model in plain Python says: iterated, awaited, and on the workers. None hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

import atasks
from atasks import atask
from atasks.pipeline import flat_map
from tests.unit.pipeline.generated import ATASK, PROCESSES, pipelines, sources
from tests.unit.pipeline.model import Source, Spec, Stream, build_all
from tests.unit.pipeline.model_functions import make_functions

NAMESPACE = "model"
PATIENCE = float(os.environ.get("ATASKS_PIPELINE_PATIENCE", "60"))
"""Seconds for one run: one that takes longer hangs."""
CASES = int(os.environ.get("ATASKS_PIPELINE_CASES", "0"))
"""The number of cases to try; by default few, and always the same ones."""
MOST = 8000 if CASES else 2500
"""Items between two stages: pipelines that make more are left out."""

functions = make_functions(partial(atask, namespace=NAMESPACE))


@atask(namespace=NAMESPACE, name="model-numbers")
async def numbers(length: int) -> list[int]:
    return list(range(length))


def bounded(cases: int) -> Any:
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    return settings(
        max_examples=CASES or cases,
        derandomize=not CASES,
        deadline=None,
        database=None,
        phases=[*phases, Phase.shrink] if CASES else phases,  # where it hangs, shrinking takes long
        suppress_health_check=list(HealthCheck),
    )


def expected(specs: Sequence[Spec], stream: Stream) -> Stream:
    """The stream that comes out at the end. Pipelines that would take too long are left out."""
    for spec in specs:
        stream = spec.apply(stream)
        assume(stream.items is None or len(stream.items) <= MOST)
    return stream


Outcome = tuple[list[Any], BaseException | None]
"""The items, and what was raised behind them."""


def ended(coroutine: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Run the coroutine, and return its outcome. Raises an AssertionError if it hangs."""

    reports: list[Any] = []

    async def main() -> Outcome:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        async with asyncio.timeout(PATIENCE) as limit:
            try:
                return await coroutine
            except TimeoutError:
                if limit.expired():
                    raise AssertionError("it hangs") from None
                raise
            except Exception as error:
                return [], error

    outcome = asyncio.run(main())
    assert not reports, "the event loop was told of something"
    return outcome


async def iterated(run: Any) -> Outcome:
    items: list[Any] = []
    try:
        async for item in run:
            items.append(item)  # noqa: PERF401 - those before an error count
    except Exception as error:
        return items, error
    return items, None


def iterated_here(run: Any) -> Outcome:
    items: list[Any] = []
    found: list[Exception | None] = []

    def iterate() -> None:
        try:
            for item in run:
                items.append(item)  # noqa: PERF402 - those before an error count
        except Exception as error:
            found.append(error)
        else:
            found.append(None)

    thread = threading.Thread(target=iterate, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it hangs"
    return items, found[0]


@bounded(50)
@given(sources(), pipelines(), st.sampled_from(("await", "async for", "for")))
def test_a_run_gives_what_the_model_says(source: Source, specs: tuple[Spec, ...], how: str) -> None:
    stream = expected(specs, source.stream())
    pipeline = build_all(specs, functions)

    async def use() -> Outcome:
        run = source.open(functions) | pipeline
        return await iterated(run) if how == "async for" else (await run, None)

    items, error = iterated_here(source.open(functions) | pipeline) if how == "for" else ended(use())
    note(f"gave {items}")
    stream.check(items, error, arrival=how != "await")


@bounded(6)
@given(sources(plain=True), pipelines(PROCESSES, 0, longest=3))
def test_a_run_with_processes_gives_what_the_model_says(source: Source, specs: tuple[Spec, ...]) -> None:
    stream = expected(specs, source.stream())
    items, error = ended(iterated(source.open(functions) | build_all(specs, functions)))
    note(f"gave {items}")
    stream.check(items, error, arrival=True)


@bounded(20)
@given(st.integers(0, 40), pipelines(ATASK, 2))
def test_a_submitted_run_gives_what_the_model_says(length: int, specs: tuple[Spec, ...]) -> None:
    stream = expected(specs, Source(length).stream())
    pipeline = flat_map(numbers) | build_all(specs, functions)
    one = False
    for spec in specs:
        one = spec.makes_one or (one and spec.one_to_one)

    async def submitted() -> Outcome:
        async with atasks.connect("loopback:", namespace=NAMESPACE):
            result = await (await pipeline.submit(length))
            return ([result] if one else result), None

    items, error = ended(submitted())
    note(f"gave {items}")
    stream.check(items, error, arrival=False)
