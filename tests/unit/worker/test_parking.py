"""Parking: a run that awaits calls holds no slot, and takes one again before it goes on."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

import atasks
from atasks.current import current_call
from atasks.definitions import ATask
from atasks.tasks import atask
from atasks.transport.loopback import LoopbackTransport
from atasks.worker import held_call
from atasks.worker.held_call import HeldCall
from atasks.worker.worker import Worker


@asynccontextmanager
async def worker_for(namespace: str, *, concurrency: int = 1, max_parked: int = 50_000) -> AsyncIterator[Worker]:
    options: dict[str, Any] = {"concurrency": concurrency, "max_parked": max_parked, "grace": 0}
    async with atasks.serve("loopback:", namespace=namespace, **options) as worker:
        yield worker
        assert (worker.slots.free, worker.parked, worker.held) == (concurrency, 0, 0)


def this_run() -> HeldCall:
    from atasks.current import serving

    run = serving.get()
    assert run is not None
    return run


async def test_a_parked_run_holds_no_slot(namespace: str) -> None:
    seen: list[tuple[int, int, int]] = []

    def look(run: HeldCall) -> None:
        seen.append((run.slots, run.awaits, run.worker.parked))

    @atask(namespace=namespace)
    async def inner(outer: bool = False) -> None:
        look(this_run())
        (other,) = [run for run in this_run().worker.runs if run is not this_run()]
        look(other)

    @atask(namespace=namespace)
    async def outer() -> None:
        look(this_run())
        await inner()
        look(this_run())

    async with worker_for(namespace):
        await outer()
    assert seen == [(1, 0, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0)]


async def test_several_awaits_park_once(namespace: str) -> None:
    parked: list[int] = []

    @atask(namespace=namespace)
    async def inner() -> None:
        parked.append(this_run().worker.parked)

    @atask(namespace=namespace)
    async def outer() -> None:
        await asyncio.gather(*(inner() for _ in range(5)))
        assert (this_run().slots, this_run().awaits) == (1, 0)

    async with worker_for(namespace):
        await outer()
    assert parked == [1] * 5


async def test_too_many_parked(namespace: str) -> None:
    @atask(namespace=namespace)
    async def depth(n: int) -> int:
        return 0 if n == 0 else 1 + await depth(n - 1)

    async with worker_for(namespace, max_parked=3):
        assert await depth(3) == 3
        with pytest.raises(atasks.TooManyParked, match="holds 3 parked calls, its limit; add workers"):
            await depth(4)
        assert await depth(3) == 3


async def test_too_many_parked_can_be_handled(namespace: str) -> None:
    @atask(namespace=namespace)
    async def depth(n: int) -> int:
        try:
            return 1 + await depth(n + 1)
        except atasks.TooManyParked:
            return 0

    async with worker_for(namespace, max_parked=7):
        assert await depth(0) == 7


async def test_a_caught_timeout_of_a_nested_await_leaves_the_run_with_a_slot(namespace: str) -> None:
    never = asyncio.Event()

    @atask(namespace=namespace)
    async def forever() -> None:
        await never.wait()

    @atask(namespace=namespace)
    async def outer() -> int:
        try:
            async with asyncio.timeout(0.01):
                await forever()
        except TimeoutError:
            return this_run().slots
        return -1

    async with worker_for(namespace):
        assert await outer() == 1


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_cancelled_while_it_waits_to_resume(namespace: str, cancellations: int) -> None:
    """A timeout of the user's that ends while the run waits for a slot must not let it run beside the slots."""
    quick_runs, blocked, go_on, leave = (asyncio.Event() for _ in range(4))
    slots: list[int] = []

    @atask(namespace=namespace)
    async def blocker() -> None:
        blocked.set()
        await leave.wait()

    @atask(namespace=namespace)
    async def quick() -> None:
        quick_runs.set()
        await go_on.wait()

    @atask(namespace=namespace)
    async def outer() -> int:
        run = this_run()
        nested = asyncio.create_task(quick())
        await blocked.wait()
        for _ in range(cancellations):
            await asyncio.sleep(0)
            nested.cancel()
        try:
            await nested
        except asyncio.CancelledError:
            slots.append(run.slots)
        return run.slots

    async with worker_for(namespace):
        call = asyncio.create_task(outer())
        await quick_runs.wait()
        other = asyncio.create_task(blocker())
        await asyncio.sleep(0)
        go_on.set()
        await blocked.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not slots
        leave.set()
        await other
        assert await call == 1
    assert slots == [1]


async def test_a_task_that_outlives_its_call_parks_nothing(namespace: str) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[int]] = []

    @atask(namespace=namespace)
    async def double(n: int) -> int:
        return 2 * n

    @atask(namespace=namespace)
    async def outer() -> None:
        async def later() -> int:
            started.set()
            await go_on.wait()
            return await double(21)

        left.append(asyncio.create_task(later()))
        await started.wait()

    async with worker_for(namespace) as worker:
        await outer()
        go_on.set()
        assert await left[0] == 42
        assert worker.slots.free == 1


async def test_a_call_that_ends_while_its_task_awaits_gives_nothing_twice(namespace: str) -> None:
    release, inside = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    @atask(namespace=namespace)
    async def wait() -> None:
        inside.set()
        await release.wait()

    @atask(namespace=namespace)
    async def outer() -> None:
        left.append(asyncio.create_task(wait()))
        await inside.wait()

    async with worker_for(namespace, concurrency=2) as worker:
        await outer()
        assert (worker.parked, worker.slots.free) == (1, 1)
        release.set()
        await left[0]


@pytest.mark.parametrize("seed", range(10))
async def test_random_trees_and_cancellations_lose_no_slot(namespace: str, seed: int) -> None:
    """Calls that await calls, alone, together and in tasks of their own, some cancelled at any moment."""
    chance = random.Random(seed)
    concurrency = chance.randint(1, 3)
    running = 0

    async def work() -> None:
        """Do what a run does between awaits of calls, in its own task: it holds a slot."""
        nonlocal running
        run = this_run()
        if run.awaits == 0 and run.slots:
            running += 1
            try:
                assert running <= concurrency
                await asyncio.sleep(0)
            finally:
                running -= 1

    @atask(namespace=namespace)
    async def tree(depth: int) -> int:
        await work()
        if depth == 0:
            return 1
        how, width = chance.random(), chance.randint(1, 3)
        if how < 0.4:
            total = sum(await asyncio.gather(*(tree(depth - 1) for _ in range(width))))
        elif how < 0.7:
            total = sum([await tree(depth - 1) for _ in range(width)])
        else:
            tasks = [asyncio.create_task(tree(depth - 1)) for _ in range(width)]
            for _ in range(chance.randint(0, 6)):
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.wait(tasks)
            total = sum(not task.cancelled() for task in tasks)
        await work()
        return total

    async with worker_for(namespace, concurrency=concurrency):
        roots = [asyncio.create_task(tree(4)) for _ in range(6)]
        for _ in range(chance.randint(5, 200)):
            await asyncio.sleep(0)
            if chance.random() < 0.02:
                chance.choice(roots).cancel()
        for result in await asyncio.gather(*roots, return_exceptions=True):
            assert isinstance(result, (int, asyncio.CancelledError))
        for _ in range(200):  # cancelled runs end behind the cancelled awaits
            await asyncio.sleep(0)


class Thing:
    """An argument that can be watched."""


async def test_a_run_keeps_no_argument_that_its_function_has_let_go(namespace: str) -> None:
    watched: list[weakref.ref[Thing]] = []
    seen = asyncio.Event()

    @atask(namespace=namespace)
    async def use(thing: Thing) -> None:
        watched.append(weakref.ref(thing))
        del thing
        await asyncio.sleep(0)
        assert watched[0]() is None
        seen.set()

    async with worker_for(namespace):
        await use(Thing())
        assert seen.is_set()


async def test_a_call_in_flight_has_no_more_objects_than_a_task_that_awaits_a_future(namespace: str) -> None:
    """Objects count at which the garbage collector looks again and again. No worker has the call here."""
    count = 200

    @atask(namespace=namespace)
    async def nap() -> None: ...

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def objects(make: Callable[[], Coroutine[Any, Any, None]]) -> float:
        gc.collect()
        before = len(gc.get_objects())
        tasks = [asyncio.create_task(make()) for _ in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        found = len(gc.get_objects()) - before
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return round(found / count)

    transport = LoopbackTransport(namespace)
    await transport.connect()
    assert [await objects(nap) for _ in range(2)][1] == await objects(wait)
    await transport.disconnect()


@pytest.mark.parametrize(("resume", "bound"), [(False, 3900), (True, 4900)], ids=["plain", "resuming"])
async def test_a_call_that_sleeps_takes_little_memory(namespace: str, resume: bool, bound: int) -> None:
    """The bounds are for the call, its await, and its journal, all of which are in this process."""
    count = 300

    @atask(namespace=namespace, resume=resume)
    async def nap() -> None:
        await atasks.sleep(86_400)

    async with worker_for(namespace) as worker:

        async def asleep(wanted: int) -> list[asyncio.Task[None]]:
            naps = [asyncio.create_task(nap()) for _ in range(wanted)]
            while worker.parked < wanted:
                await asyncio.sleep(0)
            for _ in range(20):  # what they did before they fell asleep has ended
                await asyncio.sleep(0)
            gc.collect()
            return naps

        first = await asleep(10)
        for each in first:
            each.cancel()
        await asyncio.wait(first)
        while worker.parked:
            await asyncio.sleep(0)
        tracemalloc.start()
        try:
            naps = await asleep(count)
            taken = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        # The watchdog may look at the lines of a program that a busy machine lets wait: that is not counted.
        counted = [tracemalloc.Filter(True, f"*{name}") for name in ("/atasks/*", "/asyncio/*", "/contextlib.py")]
        used = sum(each.size for each in taken.filter_traces(counted).statistics("filename"))
        assert used / count < bound
        for each in naps:
            each.cancel()
        await asyncio.wait(naps)
        while worker.parked:
            await asyncio.sleep(0)


async def test_what_has_ended_is_gone_without_the_garbage_collector(namespace: str) -> None:
    """Also a run that called another one, one that raised, and one that was cancelled: a worker that leaves cycles
    behind has the collector run all the time."""

    @atask(namespace=namespace)
    async def fail() -> None:
        raise ValueError

    @atask(namespace=namespace)
    async def call() -> str:
        assert current_call().id is not None
        await asyncio.gather(fail(), return_exceptions=True)
        return "done"

    @atask(namespace=namespace, timeout=0.01)
    async def hang() -> None:
        await asyncio.Event().wait()

    def left() -> list[object]:
        """Runs, and views of atasks."""
        # By their types: an object of another library may run code when it is asked for its class.
        found = [item for item in gc.get_objects() if issubclass(type(item), (HeldCall, ATask))]
        return [
            item
            for item in found
            if (item.worker.namespace if isinstance(item, HeldCall) else item.namespace) == namespace
            and item not in (fail, call, hang)
        ]

    async with atasks.connect("loopback:", namespace=namespace):
        gc.collect()
        gc.disable()
        try:
            assert await asyncio.gather(*(call.options(max_attempts=2)() for _ in range(50))) == ["done"] * 50
            with pytest.raises(atasks.CallTimeout):
                await hang()
            while any(task.get_name().startswith("atask ") for task in asyncio.all_tasks()):
                await asyncio.sleep(0)
            assert left() == []
        finally:
            gc.enable()


async def test_the_work_of_a_run_is_what_it_does_with_a_slot(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopbackTransport, "measures_work", True)

    moments: list[float] = []

    @atask(namespace=namespace)
    async def inner() -> None:
        await asyncio.sleep(0.2)

    @atask(namespace=namespace)
    async def outer(seconds: float) -> float:
        moments.append(time.perf_counter())
        await asyncio.sleep(seconds)
        moments.append(time.perf_counter())
        await inner()
        moments.append(time.perf_counter())
        time.sleep(seconds)  # noqa: ASYNC251  # work
        moments.append(time.perf_counter())
        return this_run().worked()

    async with worker_for(namespace):
        for seconds in (0.0, 0.1):
            moments.clear()
            worked = await outer(seconds)
            before, waited, after = (later - earlier for earlier, later in pairwise(moments))
            assert before + after - 0.01 < worked < before + after + waited / 2


async def test_of_the_time_in_which_runs_wait_their_turn_each_has_a_part(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopbackTransport, "measures_work", True)
    monkeypatch.setattr(held_call, "LONGEST_WAIT", 60.0)  # of a busy machine; longer ones count in full

    @atask(namespace=namespace)
    async def inner() -> None:
        pass

    @atask(namespace=namespace)
    async def outer() -> float:
        time.sleep(0.002)  # noqa: ASYNC251  # work
        await asyncio.gather(inner(), inner())  # which tasks of their own await
        time.sleep(0.002)  # noqa: ASYNC251
        return this_run().worked()

    async with worker_for(namespace, concurrency=50):
        began = time.perf_counter()
        work = await asyncio.gather(*(outer() for _ in range(50)))
        took = time.perf_counter() - began
    assert took / 3 < sum(work) < 2 * took
    assert median(work) < took / 4  # a busy machine may take the processor from some of them


async def test_what_a_run_does_between_two_of_its_awaits_is_work(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopbackTransport, "measures_work", True)

    @atask(namespace=namespace)
    async def inner(n: int) -> None:
        await asyncio.sleep(0.1 * n)  # far longer than a busy machine keeps the run from its next step

    @atask(namespace=namespace)
    async def outer(apart: bool) -> tuple[float, float, float]:
        """Return the seconds that count as its work, those of what it did, and all that it took."""
        began, did = time.perf_counter(), 0.0

        async def one(n: int) -> None:
            nonlocal did
            await inner(n if apart else 0)
            since = time.perf_counter()
            time.sleep(0.005)  # noqa: ASYNC251  # work
            did += time.perf_counter() - since

        await asyncio.gather(*(one(n) for n in range(10)))
        return this_run().worked(), did, time.perf_counter() - began

    async with worker_for(namespace, concurrency=50):
        worked, did, _ = await outer(False)
        assert worked >= did - 0.001
        worked, did, took = await outer(True)
        assert did - 0.001 <= worked < (did + took) / 2


@pytest.mark.parametrize("resumed", [False, True])
async def test_sleeping_runs_have_no_part_of_the_work_of_another(
    namespace: str, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    monkeypatch.setattr(LoopbackTransport, "measures_work", True)

    @atask(namespace=namespace)
    async def inner() -> None:
        pass

    @atask(namespace=namespace)
    async def asleep() -> None:
        await asyncio.sleep(1)

    @atask(namespace=namespace)
    async def outer() -> float:
        if resumed:
            await asyncio.gather(inner(), inner())
        time.sleep(0.1)  # noqa: ASYNC251  # work
        if resumed:
            await asyncio.sleep(0)  # others have a turn
        await asyncio.gather(inner(), inner())  # which tasks of their own await
        return this_run().worked()

    async with worker_for(namespace, concurrency=100):
        sleepers = [asyncio.create_task(asleep()) for _ in range(90)]
        await asyncio.sleep(0.1)
        assert await outer() >= 0.095
        await asyncio.gather(*sleepers)
