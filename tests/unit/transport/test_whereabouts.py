"""Errors of calls that were lost say where the calls were."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

from atasks import CallConnectionLost, CallTimeout, WorkerLost, current_call, wire
from atasks.testing import Site, soon
from atasks.transport.loopback import LoopbackTransport
from atasks.transport.whereabouts import Whereabouts, last_seen, lost_at, timed_out


async def test_a_connection_that_is_left_says_where_the_call_was() -> None:
    site = Site(LoopbackTransport, shared=True)
    ids: list[str | None] = []
    began = asyncio.Event()

    @site.atask
    async def inner() -> None:
        ids.append(current_call().id)
        began.set()
        await asyncio.Event().wait()

    @site.atask
    async def outer() -> None:
        await inner()

    async with site.open():
        worker = site.worker.id
        task: asyncio.Task[None] = asyncio.create_task(outer())  # type: ignore[arg-type]
        await soon(began.wait())
        await site.caller.disconnect()
        with pytest.raises(
            CallConnectionLost, match=r"when last seen, it ran at worker .*, and awaited '.*inner'"
        ) as caught:
            await soon(task)
        await site.caller.connect()
    site.close()
    assert (caught.value.waited_for, caught.value.worker, caught.value.awaited) == ("run", worker, ids[0])
    assert caught.value.call_id is not None


async def test_a_drain_says_where_a_call_was_that_runs_at_most_once() -> None:
    site = Site(LoopbackTransport, shared=True)
    began = asyncio.Event()

    @site.atask(delivery="at_most_once")
    async def stay() -> None:
        began.set()
        await asyncio.Event().wait()

    async with site.open():
        worker = site.worker.id
        task: asyncio.Task[None] = asyncio.create_task(stay())  # type: ignore[arg-type]
        await soon(began.wait())
        await site.worker.drain(0)
        with pytest.raises(WorkerLost, match="cut off by its worker's shutdown; when last seen, it ran") as caught:
            await soon(task)
    site.close()
    assert (caught.value.waited_for, caught.value.worker, caught.value.attempts) == ("run", worker, 1)
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
