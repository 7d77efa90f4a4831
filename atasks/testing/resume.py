"""Calls that resume: what one run has done, the next one does not do again."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from atasks import (
    Diverged,
    EncodeError,
    NotSupported,
    PayloadTooLarge,
    Retry,
    RetryAfter,
    TransportError,
    current_call,
    event,
    once,
    sleep,
)
from atasks.current import serving
from atasks.pipeline import map
from atasks.resume import journal
from atasks.testing.cases import Cases
from atasks.testing.site import Site, soon, until

__all__ = ["ResumeCases"]

AGAIN = Retry(on=(ConnectionError,), attempts=3, wait=0.0, jitter=0.0)
"""A second run, without the death of a worker: each try of a call goes on where the one before it ended."""


class Steps:
    """An atask that notes its calls."""

    def __init__(self, site: Site) -> None:
        self.made: list[Any] = []

        @site.atask(name="step")
        async def step(n: Any, fail: bool = False) -> Any:
            self.made.append(n)
            if fail:
                raise KeyError(n)
            return [n]

        self.step = step


def interrupted(run: int = 1) -> None:
    """End the run that asks, if it is that one."""
    if current_call().try_ == run:
        raise ConnectionError("this run ends here")


class ResumeCases(Cases):
    """Each case interrupts a call of `resume=True` at least once, and looks at what is done again."""

    async def test_calls_that_have_ended_are_not_made_again(self, site: Site) -> None:
        steps = Steps(site)

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> Any:
            first = await steps.step(1)
            interrupted(1)
            both = await asyncio.gather(*(steps.step(n) for n in (2, 3, 1)))
            interrupted(2)
            return first, both, await steps.step(4)

        async with site.open():
            if self._keeps_no_journals(site):
                with pytest.raises(NotSupported, match="keeps no journals"):
                    await soon(parent())
                return
            assert await soon(parent()) == ([1], [[2], [3], [1]], [4])
            first, *together, last = steps.made
            assert (first, sorted(together), last) == (1, [1, 2, 3], 4)  # those of a gather run in any order
            await self._nothing_is_left(site)

    async def test_who_looks_sees_which_steps_were_done_before(self, site: Site) -> None:
        steps = Steps(site)
        seen: list[str] = []

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> None:
            await steps.step(1)
            await once(int)
            await once(random.random)
            await steps.step(2)
            run = serving.get()
            seen.append(str(run and run.progress))
            interrupted()

        async with site.open():
            if self._keeps_no_journals(site):
                return
            await soon(parent())
            name, local = steps.step.name, "builtins.int, random.Random.random"
            assert seen == ["None", f"4 of its steps found in its journal: 2 {name}, {local}"]

    async def test_the_tries_of_an_event_go_on_where_the_one_before_ended(self, site: Site) -> None:
        steps = Steps(site)
        drawn: list[int] = []
        handled = asyncio.Event()

        @event(namespace=site.namespace)
        async def paid(n: int) -> None: ...

        @paid.on(group="books", resume=True, retry=AGAIN)
        async def book(n: int) -> None:
            await steps.step(n)
            await once(drawn.append, n)
            interrupted(1)
            await steps.step(n + 1)
            interrupted(2)
            handled.set()

        async with site.open():
            if self._keeps_no_journals(site):
                return
            await paid(1)
            await soon(handled.wait())
            assert steps.made == [1, 2]
            assert drawn == [1]
            await self._nothing_is_left(site)

    async def test_a_retry_whose_condition_fails_costs_its_worker_nothing(self, site: Site) -> None:
        steps = Steps(site)

        def wanted(error: Exception) -> bool:
            raise LookupError("the condition")

        @site.atask(resume=True, retry=Retry(on=wanted, wait=0.0, jitter=0.0))
        async def parent() -> None:
            await steps.step(1)
            interrupted()

        async with site.open():
            if self._keeps_no_journals(site):
                return
            with pytest.raises(LookupError, match="the condition"):
                await soon(parent())
            await self._nothing_is_left(site)

    async def test_a_full_journal_takes_no_more_steps(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal, "MAX_BYTES", 3000)
        steps = Steps(site)

        @site.atask(resume=True)
        async def parent(local: bool) -> Any:
            for n in range(4):
                await steps.step(f"{n}" * 1000)
            return await (once(steps.made.append, "more") if local else steps.step("more"))

        async with site.open():
            if self._keeps_no_journals(site):
                return
            for local in (False, True):
                with pytest.raises(
                    PayloadTooLarge,
                    match=r"the results in the journal of .* have \d+ bytes, over the limit of 3000",
                ):
                    await soon(parent(local))
            assert "more" not in steps.made

    async def test_an_exception_of_its_own_is_raised_again(self, site: Site) -> None:
        steps = Steps(site)

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> Any:
            with pytest.raises(KeyError, match="7"):
                await steps.step(7, fail=True)
            interrupted()
            return await steps.step(8)

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(parent()) == [8]
            assert steps.made == [7, 8]

    async def test_branches_find_their_calls_in_any_order(self, site: Site) -> None:
        steps = Steps(site)

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> Any:
            async def branch(name: str, pause: float) -> Any:
                await asyncio.sleep(pause)
                return [await steps.step(f"{name}{n}") for n in range(3)]

            late = 0.02 if current_call().try_ == 1 else 0.0
            found = await asyncio.gather(branch("a", late), branch("b", 0.02 - late))
            interrupted()
            return found

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(parent()) == [[[f"{name}{n}"] for n in range(3)] for name in "ab"]
            assert sorted(steps.made) == ["a0", "a1", "a2", "b0", "b1", "b2"]

    async def test_calls_within_calls_resume_too(self, site: Site) -> None:
        steps = Steps(site)

        @site.atask(resume=True, retry=AGAIN)
        async def inner(n: int) -> Any:
            found = await steps.step(n)
            interrupted()
            return found

        @site.atask(resume=True, retry=AGAIN)
        async def outer() -> Any:
            found = await asyncio.gather(inner(1), inner(2))
            interrupted()
            return found

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(outer()) == [[1], [2]]
            assert sorted(steps.made) == [1, 2]
            await self._nothing_is_left(site)

    async def test_calls_of_stages_and_of_threads_are_steps(self, site: Site) -> None:
        steps = Steps(site)

        @site.atask(resume=True, retry=AGAIN)
        async def staged() -> Any:
            found = await (range(4) | map(steps.step, workers=2))
            interrupted()
            return found

        @site.atask(resume=True, retry=AGAIN, executor="thread")
        def threaded() -> Any:
            found = steps.step.sync("a"), steps.step.sync("a")
            interrupted()
            return found

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert sorted(await soon(staged())) == [[n] for n in range(4)]
            assert sorted(steps.made) == [0, 1, 2, 3]
            assert await soon(threaded()) == (["a"], ["a"])
            assert steps.made[4:] == ["a", "a"]

    async def test_a_local_step_is_done_once_and_its_exception_is_kept(self, site: Site) -> None:
        drawn: list[int] = []

        async def draw(n: int) -> int:
            drawn.append(n)
            if n > 5:
                raise LookupError(f"{n} is too much")
            return n + len(drawn)

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> Any:
            values = [await once(draw, 1), await once(draw, n=1), await once(draw, 1)]
            with pytest.raises(LookupError, match="6 is too much"):
                await once(draw, 6)
            interrupted()
            return values, await once(lambda: 5)

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(parent()) == ([2, 3, 4], 5)
            assert drawn == [1, 1, 1, 6]
            with pytest.raises(LookupError, match="7 is too much"):
                await once(draw, 7)  # outside of a call: it is just called

    async def test_local_steps_are_told_apart_by_what_they_use_and_what_they_do(self, site: Site) -> None:
        """Branches that took turns otherwise were given each other's results, and a lambda that of another one."""

        @site.atask(resume=True, retry=AGAIN)
        async def parent(names: list[str]) -> Any:
            run = current_call().try_ or 1

            async def branch(number: int, name: str) -> Any:
                def local() -> str:
                    return f"local {name}"

                await asyncio.sleep(0.02 * (number if run == 1 else len(names) - number))
                as_partial = await once(partial("{} {}".format, "partial"), name)
                filled = await once(partial(partial("{} {}".format, "filled"), name))
                defaults: list[Callable[[], str]] = [lambda name=name: f"default {name}"]  # type: ignore[misc]
                return await once(local), as_partial, filled, await once(defaults[0]), await once(lambda: name)

            found = await asyncio.gather(*(branch(*each) for each in enumerate(names)))
            if run == 1:
                await once(lambda: "of the code before")
            last = await once(lambda: "of the code now")
            interrupted()
            return found, last

        async with site.open():
            if self._keeps_no_journals(site):
                return
            found = [(f"local {n}", f"partial {n}", f"filled {n}", f"default {n}", n) for n in "ab"]
            assert await soon(parent(["a", "b"])) == (found, "of the code now")

    async def test_a_call_without_a_result_is_made_again(self, site: Site) -> None:
        """The code has not changed: with `strict` too, and where a later step has ended."""
        steps, made = Steps(site), list[str]()

        async def first_in_vain(ending: str) -> Any:
            made.append(ending)
            if len(made) % 2 == 0:
                return ending
            return threading.Lock() if "unencodable" in ending else await asyncio.Event().wait()

        remote = site.atask(name="first_in_vain")(first_in_vain)

        @site.atask(resume="strict", retry=AGAIN)
        async def parent(ending: str) -> Any:
            first = current_call().try_ == 1
            there = remote.options(timeout=0.3 if first and ending == "late" else 60)
            call = asyncio.ensure_future(once(first_in_vain, ending) if "local" in ending else there(ending))
            if first and "cancelled" in ending:
                await until(lambda: made[-1:] == [ending], "it runs")
                call.cancel()
            await asyncio.wait([call])
            await steps.step(ending)
            interrupted()
            return await call

        async with site.open():
            if self._keeps_no_journals(site):
                return
            endings = ["cancelled", "late", "unencodable", "local, cancelled", "local, unencodable"]
            for ending in endings:
                assert await soon(parent(ending)) == ending
                assert made[-2:] == [ending, ending]
            assert (len(made), steps.made) == (10, endings)

    @pytest.mark.parametrize("ending", ["raised", "unencodable"])
    async def test_the_tries_of_a_step_are_not_made_or_waited_for_again(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, ending: str
    ) -> None:
        """The code has not changed: so with `strict` a step that is new need not wait for the second try."""
        monkeypatch.setattr(journal, "STRICT_SECONDS", 0.2)
        steps, tries = Steps(site), list[int | None]()

        @site.atask
        async def flaky() -> Any:
            tries.append(current_call().try_)
            if len(tries) > 1:
                return "made"
            if ending == "raised":
                raise RetryAfter(1.0)
            return threading.Lock()

        again = Retry(on=EncodeError, wait=1.0, jitter=0.0)

        @site.atask(resume="strict", retry=AGAIN)
        async def parent() -> Any:
            call = asyncio.ensure_future(flaky.options(retry=again)())
            if current_call().try_ == 1:
                await call
            interrupted()
            return await asyncio.gather(call, steps.step("new"))

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(parent()) == ["made", ["new"]]
            assert tries == [1, 2]
            await self._nothing_is_left(site)

    async def test_a_new_step_waits_while_one_is_made_again_that_has_others_behind_it(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The code has not changed: a run with `strict` looks at the new step when it can tell."""
        monkeypatch.setattr(journal, "STRICT_SECONDS", 0.2)
        steps, begun = Steps(site), list[str]()

        async def slow(ending: str) -> None:
            begun.append(ending)
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                if "not cancelled" not in ending:
                    raise

        remote = site.atask(name="slow")(slow)

        @site.atask(resume="strict", retry=AGAIN)
        async def parent(ending: str) -> Any:
            first = current_call().try_ == 1

            async def branch() -> None:
                call = asyncio.ensure_future(once(slow, ending) if "local" in ending else remote(ending))
                if first:
                    await until(lambda: ending in begun)
                    call.cancel()
                    await asyncio.wait([call])
                else:
                    await call
                await steps.step("behind it")

            if first:
                await branch()
            interrupted()
            await asyncio.gather(branch(), steps.step("new"))

        async with site.open():
            if self._keeps_no_journals(site):
                return
            endings = ["cancelled", "not cancelled", "cancelled, local"]
            for ending in endings:
                await soon(parent(ending))
            assert steps.made == ["behind it", "new"] * len(endings)

    async def test_a_pause_goes_on_where_it_was(self, site: Site) -> None:
        loop = asyncio.get_running_loop()
        begun: list[float] = []

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> float:
            begun.append(loop.time())
            pause = asyncio.ensure_future(sleep(1.0))
            if current_call().try_ == 1:
                await asyncio.wait([pause], timeout=0.5)
                pause.cancel()
            interrupted()
            await pause
            return loop.time()

        async with site.open():
            if self._keeps_no_journals(site):
                return
            ended = await soon(parent())
            assert len(begun) == 2
            assert 0.99 <= ended - begun[0] < begun[1] + 1.0 - begun[0]

    async def test_a_key_names_a_call_whatever_its_arguments(self, site: Site) -> None:
        steps = Steps(site)

        @site.atask(resume=True, retry=AGAIN)
        async def parent() -> Any:
            found = await steps.step.options(key="order")(f"order at {current_call().try_}")
            interrupted()
            return found

        @site.atask(resume=True)
        async def twice() -> Any:
            await steps.step.options(key="order")(1)
            await steps.step.options(key="order")(2)

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(parent()) == ["order at 1"]
            assert steps.made == ["order at 1"]
            with pytest.raises(ValueError, match="key='order' names two calls of step with different arguments"):
                await soon(twice())

    async def test_changed_inputs_are_a_warning_or_with_strict_an_error(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        steps = Steps(site)

        async def body() -> Any:
            found = await steps.step(f"made at {current_call().try_}")
            interrupted()
            return found

        loose = site.atask(name="loose", resume=True, retry=AGAIN)(body)
        strict = site.atask(name="strict", resume="strict", retry=AGAIN)(body)
        async with site.open():
            if self._keeps_no_journals(site):
                return
            with caplog.at_level(logging.WARNING, "atasks.resume"):
                assert await soon(loose()) == ["made at 2"]
            assert "did not find step in its journal, and did not ask for all that it has (1 left)" in caplog.text
            with pytest.raises(Diverged, match=r"strict called step, which it had not done before, .*\(1 left\)"):
                await soon(strict())

    async def test_a_stream_is_read_again_only_if_it_can_be_replayed(self, site: Site) -> None:
        begun: list[str] = []

        @site.atask
        async def lossy() -> AsyncIterator[int]:
            begun.append("lossy")
            yield 1

        @site.atask(replayable=True)
        async def steady() -> AsyncIterator[int]:
            begun.append("steady")
            yield 2

        @site.atask(resume=True, retry=AGAIN)
        async def replays() -> Any:
            found = [item async for item in steady()]
            interrupted()
            return found

        @site.atask(resume=True, retry=AGAIN)
        async def loses() -> Any:
            found = [item async for item in lossy()]
            interrupted()
            return found

        async with site.open():
            if self._keeps_no_journals(site):
                return
            assert await soon(replays()) == [2]
            with pytest.raises(Diverged, match=r"reads stream .*lossy again"):
                await soon(loses())
            assert begun == ["steady", "steady", "lossy"]

    async def test_a_call_that_makes_no_calls_has_no_journal(self, site: Site) -> None:
        @site.atask(resume=True)
        async def plain(n: int) -> int:
            return n

        async with site.open():
            assert await soon(plain(3)) == 3  # over every transport
            assert site.worker.transport.journals is None or not self._journals(site)

    async def test_cancelling_the_call_ends_its_calls_and_its_journal(self, site: Site) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        @site.atask
        async def child() -> None:
            begun.set()
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()

        @site.atask(resume=True)
        async def parent() -> None:
            await child()

        async with site.open():
            if self._keeps_no_journals(site):
                return
            task = asyncio.create_task(parent())
            await soon(begun.wait())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await soon(ended.wait())
            await self._nothing_is_left(site)

    async def test_a_drained_worker_leaves_its_steps_to_the_next_one(self, site: Site) -> None:
        steps = Steps(site)
        begun = asyncio.Event()

        @site.atask(resume=True)
        async def parent() -> Any:
            first = await steps.step(1)
            second = await once(lambda: len(steps.made))
            begun.set()
            await sleep(0.2)
            return first, second, await steps.step(2)

        async with site.open():
            if self._keeps_no_journals(site):
                return
            task = asyncio.create_task(parent())
            await soon(begun.wait())
            try:
                await site.serve()
            except TransportError:  # one worker is all that this transport may have
                task.cancel()
                await asyncio.wait([task])
                return
            await site.worker.drain(0)
            assert await soon(task) == ([1], 1, [2])
            assert steps.made == [1, 2]

    def _keeps_no_journals(self, site: Site) -> bool:
        return site.worker.transport.journals is None

    def _journals(self, site: Site) -> set[str]:
        """The names of the journals that a worker works at."""
        journals: Any = site.worker.transport.journals
        at_work: dict[str, Any] = getattr(journals, "_open", None) or getattr(journals, "_journals", {})
        return set(at_work)

    async def _nothing_is_left(self, site: Site) -> None:
        await until(lambda: not self._journals(site), "the journals are dropped")
