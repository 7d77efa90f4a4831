"""Errors of calls that were lost say where the calls were."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator

import pytest

import atasks
from atasks import CallConnectionLost, CallTimeout, WorkerLost, atask, wire
from atasks.transport.whereabouts import Whereabouts, last_seen, lost_at, timed_out


async def test_a_stream_that_a_block_leaves_says_where_it_ran(namespace: str) -> None:
    @atask(namespace=namespace)
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with atasks.serve("loopback:", namespace=namespace) as worker:
        stream = numbers()
        assert await anext(stream) == 1
    with pytest.raises(CallConnectionLost, match=r"was left: .*; when last seen, it ran at worker") as caught:
        await anext(stream)
    assert (caught.value.waited_for, caught.value.worker) == ("run", worker.id)
    assert caught.value.ran is not None


def test_what_they_say_survives_copies() -> None:
    where = Whereabouts("run", "gpu", "w1", 2.5, 10.0, awaits=("id-1", "app.inner"))
    call = wire.Call(1, "id", "app.outer", b"", "pickle", 3000)
    for error in (
        timed_out(call, where, 10.0),
        lost_at(WorkerLost("it died", 3), where),
        lost_at(CallConnectionLost("it is gone"), where),
    ):
        assert str(error).endswith("it ran at worker w1 for 2.5 s, and awaited 'app.inner' (call id-1)")
        for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (each.waited_for, each.worker, each.ran, each.awaited) == ("run", "w1", 2.5, "id-1")
            assert str(each) == str(error)
    assert CallTimeout().awaited is None
    assert WorkerLost().waited_for is None


def test_what_is_not_known_is_not_said() -> None:
    assert str(lost_at(WorkerLost("it died", 3), None)) == "it died"
    assert last_seen(wire.Ending("it died", 3)) is None
    known = last_seen(wire.Ending("it died", 3, "w1"))
    assert known is not None
    assert str(lost_at(WorkerLost("it died", 3), known)) == "it died; when last seen, it ran at worker w1"
