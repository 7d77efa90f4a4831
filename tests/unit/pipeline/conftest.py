"""What the tests of pipelines share: kinds of stages, and a transport for those that are remote."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import pytest

import atasks
from tests.unit.pipeline.kinds import CONSUMERS, KINDS, Kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, namespace: str) -> Kind:
    """Each way in which a stage runs a function."""
    return Kind(request.param, namespace)


@pytest.fixture(autouse=True)
async def connected(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """A transport for remote stages."""
    if "kind" not in request.fixturenames or request.getfixturevalue("kind").name != "atask":
        yield
        return
    async with atasks.connect("loopback:", namespace=request.getfixturevalue("namespace")):
        yield


@pytest.fixture(params=CONSUMERS)
def how(request: pytest.FixtureRequest) -> str:
    """Each way in which a run is consumed. Remote stages are not consumed by a thread: it has no transport."""
    if request.param == "for" and "kind" in request.fixturenames:
        kind = request.getfixturevalue("kind")
        if kind.name == "atask":
            return "async for"
    return str(request.param)


@pytest.fixture(autouse=True)
def no_leaked_stage_threads() -> Iterator[None]:
    """Threads of stages are daemons, which the general check does not count."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("atasks-") and thread.name != "atasks-background":
            thread.join(30)
            assert not thread.is_alive(), f"{thread.name} runs on"
