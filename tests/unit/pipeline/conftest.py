"""Fixtures for the tests of pipelines: kinds of stages, and a transport for those that are remote."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

import atasks
from atasks.testing import until
from tests.unit.pipeline.kinds import CONSUMERS, KINDS, Kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, namespace: str) -> Kind:
    """Each way in which a stage runs a function."""
    return Kind(request.param, namespace)


@pytest.fixture(autouse=True)
async def connected(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Transports for remote stages: one for this loop, and one for runs that a thread consumes."""
    if "kind" not in request.fixturenames or request.getfixturevalue("kind").name != "atask":
        yield
        return
    name = request.getfixturevalue("namespace")
    connected_sync = atasks.connect_sync("loopback:", namespace=name)
    await asyncio.to_thread(connected_sync.__enter__)
    async with atasks.connect("loopback:", namespace=name):
        yield
    await asyncio.to_thread(connected_sync.__exit__, None, None, None)


@pytest.fixture(params=CONSUMERS)
def how(request: pytest.FixtureRequest) -> str:
    """Each way in which a run is consumed."""
    return str(request.param)


@pytest.fixture(autouse=True)
async def no_leaked_stage_threads() -> AsyncIterator[None]:
    """Threads of stages are daemons, which the general check does not count."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("atasks-"):
            await until(lambda thread=thread: not thread.is_alive())
