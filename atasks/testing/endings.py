"""Deadlines, cancellation, and calls that nobody can serve."""

from __future__ import annotations

import asyncio

import pytest

from atasks import CallCancelled, CallTimeout, NotSupported, NoWorker, UnknownTask, current_call
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon

__all__ = ["EndingCases"]


class EndingCases(Cases):
    """An await that ends with neither a value nor the atask's own exception ends as it should, and in time."""

    async def test_timeout(self, site: Site) -> None:
        ended = asyncio.Event()

        @site.atask(timeout=1)  # time enough to start
        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with site.open():
            with pytest.raises(CallTimeout, match="forever") as caught:
                await soon(forever())
            assert isinstance(caught.value, TimeoutError)
            await soon(ended.wait())  # the remote run was cancelled

    async def test_calls_have_all_of_their_time(self, site: Site) -> None:
        @site.atask(timeout=1.5)
        async def forever() -> None:
            await asyncio.Event().wait()

        async with site.open():
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(CallTimeout, match="forever"):
                await soon(forever())
            assert loop.time() - began > 1.45

    async def test_timeout_is_inherited(self, site: Site) -> None:
        ended = asyncio.Queue[str]()

        @site.atask
        async def inner() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.put_nowait("inner")

        @site.atask
        async def middle() -> None:
            try:
                await inner()
            finally:
                ended.put_nowait("middle")

        @site.atask
        async def outer() -> None:
            try:
                await middle()
            finally:
                ended.put_nowait("outer")

        async with site.open():
            with pytest.raises(CallTimeout, match="outer"):
                await soon(outer.options(timeout=2)())  # time enough for all three to start
            assert {await soon(ended.get()) for _ in range(3)} == {"inner", "middle", "outer"}

    async def test_nested_call_has_no_more_time_than_its_parent(self, site: Site) -> None:
        @site.atask(timeout=100_000)
        async def inner() -> float:
            deadline = current_call().deadline
            assert deadline is not None
            return deadline

        @site.atask(timeout=1000)
        async def outer() -> tuple[float, float]:
            deadline = current_call().deadline
            assert deadline is not None
            return deadline, await inner()

        async with site.open():
            mine, its = await soon(outer())
            assert its < mine + 1000

    async def test_nested_timeout_is_the_parents_to_handle(self, site: Site) -> None:
        @site.atask(timeout=0.1)
        async def inner() -> None:
            await asyncio.Event().wait()

        @site.atask
        async def outer() -> str:
            try:
                await inner()
            except CallTimeout as error:
                return type(error).__name__
            return "no error"

        async with site.open(concurrency=1):
            assert await soon(outer()) == "CallTimeout"

    async def test_timeout_of_a_call_that_waits_for_a_slot(self, site: Site) -> None:
        gate, started = asyncio.Event(), asyncio.Event()
        finished = []

        @site.atask
        async def block() -> None:
            started.set()
            await gate.wait()

        @site.atask
        async def work(n: int) -> int:
            await asyncio.sleep(0)
            finished.append(n)
            return n

        async with site.open(concurrency=1):
            blocking = asyncio.create_task(block())
            await soon(started.wait())
            with pytest.raises(CallTimeout):
                await soon(work.options(timeout=0.05)(1))
            gate.set()
            await soon(blocking)
            assert await soon(work(2)) == 2
            if "cancel" in site.caller.supports:
                assert finished == [2]

    async def test_asyncio_timeout(self, site: Site) -> None:
        ended, release = asyncio.Event(), asyncio.Event()
        scope = asyncio.timeout(30)

        @site.atask
        async def work() -> None:
            try:
                # Not before: a call that is withdrawn from its queue does not run at all.
                scope.reschedule(asyncio.get_running_loop().time() + 0.05)
                await release.wait()
            finally:
                ended.set()

        async with site.open():
            with pytest.raises(TimeoutError) as caught:
                async with scope:
                    await work()
            assert type(caught.value) is TimeoutError
            if "cancel" not in site.caller.supports:
                release.set()
            await soon(ended.wait())

    async def test_cancelling_the_await(self, site: Site) -> None:
        running, release = asyncio.Event(), asyncio.Event()
        ended = asyncio.Queue[tuple[str, bool]]()

        @site.atask
        async def leaf() -> None:
            try:
                running.set()
                await release.wait()
                ended.put_nowait(("leaf", False))
            except asyncio.CancelledError:
                ended.put_nowait(("leaf", True))
                raise

        @site.atask
        async def root() -> None:
            try:
                await leaf()
                ended.put_nowait(("root", False))
            except asyncio.CancelledError:
                ended.put_nowait(("root", True))
                raise

        async with site.open():
            task = asyncio.create_task(root())
            await soon(running.wait())
            task.cancel()
            await asyncio.wait([task], timeout=30)
            assert task.cancelled()
            remote = "cancel" in site.caller.supports
            if not remote:
                release.set()  # the run goes on, and ends by itself
            assert {await soon(ended.get()) for _ in range(2)} == {("leaf", remote), ("root", remote)}

    async def test_cancelling_before_the_call_starts(self, site: Site) -> None:
        gate, started = asyncio.Event(), asyncio.Event()
        finished = []

        @site.atask
        async def block() -> None:
            started.set()
            await gate.wait()

        @site.atask
        async def work(n: int) -> int:
            await asyncio.sleep(0)
            finished.append(n)
            return n

        async with site.open(concurrency=1):
            blocking = asyncio.create_task(block())
            await soon(started.wait())
            waiting = asyncio.create_task(work(1))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting], timeout=30)
            assert waiting.cancelled()
            gate.set()
            await soon(blocking)
            assert await soon(work(2)) == 2
            if "cancel" in site.caller.supports:
                assert finished == [2]

    async def test_cancelling_one_of_several_awaits(self, site: Site) -> None:
        gate, started = asyncio.Event(), asyncio.Semaphore(0)

        @site.atask
        async def work(n: int) -> int:
            started.release()
            await gate.wait()
            return n

        async with site.open():
            tasks = [asyncio.create_task(work(n)) for n in range(3)]
            for _ in tasks:
                await soon(started.acquire())
            tasks[1].cancel()
            await asyncio.wait([tasks[1]], timeout=30)
            gate.set()
            assert await soon(asyncio.gather(*tasks, return_exceptions=True)) != [0, 1, 2]
            assert (tasks[0].result(), tasks[1].cancelled(), tasks[2].result()) == (0, True, 2)

    async def test_run_that_cancels_itself(self, site: Site) -> None:
        @site.atask
        async def leave(how: str) -> str:
            match how:
                case "raise":
                    raise asyncio.CancelledError
                case "cancel":
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                    await asyncio.Event().wait()
            return "stayed"

        async with site.open(concurrency=1):
            for how in ("raise", "cancel"):
                task = asyncio.create_task(leave(how))
                with pytest.raises(CallCancelled, match="leave"):
                    await soon(task)
                assert not task.cancelled()
            assert await soon(leave("no")) == "stayed"

    async def test_unknown_task(self, site: Site) -> None:
        @site.atask(name="app.tasks.resize")
        async def resize() -> int:
            return 1

        async with site.open(concurrency=1):
            with pytest.raises(UnknownTask, match=r"'app\.tasks\.resise'.*'app\.tasks\.resize'") as caught:
                await soon(site.router.send_request("app.tasks.resise"))
            assert isinstance(caught.value, LookupError)
            assert await soon(resize()) == 1

    async def test_no_worker(self, site: Site) -> None:
        ran = []

        @site.atask(on_no_worker="error")
        async def work() -> None:
            ran.append(1)

        async with site.open(serve=False):
            with pytest.raises(NoWorker if "no_worker" in site.caller.supports else NotSupported):
                await soon(work())
            assert ran == []

    async def test_call_waits_for_a_worker(self, site: Site) -> None:
        @site.atask
        async def double(n: int) -> int:
            return 2 * n

        async with site.open(serve=False):
            tasks = [asyncio.create_task(double(n)) for n in range(3)]
            await asyncio.sleep(0)
            await site.serve()
            assert await soon(asyncio.gather(*tasks)) == [0, 2, 4]

    async def test_waiting_for_a_worker_ends_at_the_deadline(self, site: Site) -> None:
        finished = []

        @site.atask
        async def work(n: int) -> int:
            await asyncio.sleep(0)
            finished.append(n)
            return n

        async with site.open(serve=False):
            with pytest.raises(CallTimeout):
                await soon(work.options(timeout=0.1)(1))
            await site.serve()
            assert await soon(work(2)) == 2
            if "cancel" in site.caller.supports:
                assert finished == [2]

    async def test_worker_with_calls_in_hand_is_drained(self, site: Site) -> None:
        started, gate = asyncio.Event(), asyncio.Event()

        @site.atask
        async def work() -> str:
            started.set()
            await gate.wait()
            return "finished"

        async with site.open():
            task = asyncio.create_task(work())
            await soon(started.wait())
            draining = asyncio.create_task(site.worker.drain(grace=30))
            await asyncio.sleep(0)
            gate.set()
            assert await soon(task) == "finished"
            await soon(draining)
