"""The coordinator of a submitted pipeline: a call that awaits the calls of its stages, and keeps the result of
each.

It holds no slot meanwhile. Stages that hand on many items run together, as one *stretch*. A stretch begins when
the result of the one before is safe. So if its worker dies, or drains, another one goes on behind the last stretch
that was kept, and makes none of the calls of the next one that are in the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from atasks.codecs.checked import encoded
from atasks.current import serving
from atasks.errors import AtasksError, WorkerLost
from atasks.pipeline.flow.failing import add_note
from atasks.pipeline.flow.invocation import Start
from atasks.pipeline.flow.source import IterableSource, SingleSource
from atasks.pipeline.pipeline import Stage
from atasks.pipeline.progress import OnDemand, StageProgress, described
from atasks.pipeline.run import Run, gives_one
from atasks.pipeline.stages.fork import ForkStage
from atasks.pipeline.stages.functions import CallingStage, FunctionStage
from atasks.pipeline.submitted.blueprint import StageSpec, build, read, tasks_of
from atasks.pipeline.submitted.journal import Journal, StageNotes, begin_id, notes_of
from atasks.pipeline.submitted.tap import TapStage
from atasks.router import Router
from atasks.submitted.handle import Kept, part_id, read_kept, step_id, step_value
from atasks.transport.records.contract import Record, Records, record_of, round_of
from atasks.wire import UNBOUNDED, VERSION, Reply, Status
from atasks.worker.held_call import HeldCall

__all__ = ["run_pipeline"]

logger = logging.getLogger("atasks.pipeline")

DEFAULT_DEATHS = 3
"""Workers that may die over a stage without atasks."""


async def run_pipeline(stages: Any, args: Any, kwargs: Any) -> Any:
    """The result of the run, or what it raises. For a run that has ended nothing is done."""
    run = serving.get()
    assert run is not None, "it is called by workers"
    records = run.worker.transport.records
    assert records is not None, "the submitter's transport has them, and it is of the same kind"
    run_id = record_of(run.call.id)
    async with records.watch(run_id, steps=False) as news:
        # The run is watched from here on: an end that others give it is noticed.
        record = await records.read(run_id)
        if record.has_ended(run.call.id):
            return None
        coordinator = _Coordinator(run, records, record, stages)
        work = asyncio.create_task(coordinator.work(args, kwargs))
        guard = asyncio.create_task(coordinator.guard(news))
        try:
            await asyncio.wait((work, guard), return_when=asyncio.FIRST_COMPLETED)
            return await (work if work.done() else guard)
        finally:
            for task in (work, guard):
                task.cancel()
            await asyncio.gather(work, guard, return_exceptions=True)


class _Coordinator:
    """One attempt at a run."""

    def __init__(self, run: HeldCall, records: Records, record: Record, stages: Any) -> None:
        self._id = record.id
        self._call_id = run.call.id
        self._first = round_of(run.call.id) * UNBOUNDED + 1
        """The first attempt since the run was submitted, or retried the last time."""
        self._attempt = self._first + run.call.attempt - 1
        self._report = run.current.report
        self._worker = run.worker
        router = run.worker.router
        assert isinstance(router, Router), "a worker needs less of it, and has it whole"
        self._router = router
        self._codec = router.codec
        self._records = records
        self._record = record
        self._specs = read(stages, router.namespace)
        self._stages: list[Stage] = [build(spec) for spec in self._specs]
        self._log: Record | None = None
        """The record as it was when no earlier attempt could note anything any more that counts."""

    async def guard(self, news: asyncio.Event) -> None:
        """Keep the record while the run goes on. Returns if the run was ended by somebody else."""
        while True:
            try:
                async with asyncio.timeout(self._record.expires / 3):
                    await news.wait()
            except TimeoutError:
                await self._records.touch(self._id)
                continue
            news.clear()
            if (await self._records.read(self._id)).has_ended(self._call_id):
                return

    async def work(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the stages that have no result yet."""
        kept: list[Kept] = []
        while (found := await self._kept(len(kept))) is not None:
            kept.append(found)
        stretches = _stretches(self._specs, self._stages)
        items: list[Any] = []
        for stretch in stretches:
            if stretch.stop <= len(kept):
                items = kept[stretch.stop - 1].items
            elif stretch.start == 0:
                stage = (await self._permitted(stretch, kept))[0]
                source = Start(tuple(args), dict(kwargs)) if stage.takes_arguments else args[0]
                items = await self._run(Run(SingleSource(source), (stage,), called=True))
                await self._keep(0, items)
            else:
                items = await self._flow(stretch, kept, items)
        return step_value(read_kept(self._result(len(self._stages) - 1, items)))

    async def _flow(self, stretch: range, kept: Sequence[Kept], items: Sequence[Any]) -> list[Any]:
        """Run a stretch over the items of the one before it, and return its items."""
        stages = await self._permitted(stretch, kept)
        limit = self._worker.transport.max_payload
        names = [stage.name for stage in self._stages]
        journal = Journal(self._records, self._id, self._attempt, self._codec, limit, names)
        if not gives_one(self._stages[: stretch.start]):
            renumbering = {number for number in stretch if self._stages[number].resets}
            journal.read(await self._notes(), stretch, self._first, renumbering)
            stages = [_remembering(stage, journal, number) for number, stage in zip(stretch, stages, strict=True)]
        flow: list[Stage] = []
        parts: dict[int, list[Any]] = {}
        for number, stage in zip(stretch, stages, strict=True):
            flow.append(stage)
            if len(kept) <= number < stretch.stop - 1:
                flow.append(TapStage(partial(self._keep, number), partial(parts.__setitem__, number)))
        writing = asyncio.create_task(journal.write())
        progress = OnDemand(self._tell, self._worker.looks)
        running = asyncio.create_task(self._run(Run(IterableSource(items), flow, progress=progress)))
        try:
            await asyncio.wait((running, writing), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await writing  # raises: the results of the items cannot be noted
            try:
                result = await running
            except Exception:
                await journal.finish(writing)  # for who retries the run
                await self._record_parts(parts)
                raise
        finally:
            for task in (writing, running):
                task.cancel()
            await asyncio.gather(writing, running, return_exceptions=True)
        await self._keep(stretch.stop - 1, result)
        return result

    def _tell(self, state: tuple[StageProgress, ...]) -> None:
        """Report how far the stages of the present stretch are: what the last one is done with, and the rest in
        words."""
        stages = [stage for stage in state if stage.name != TapStage.name]
        self._report(stages[-1].done, stages[-1].total, "; ".join(map(described, stages)))

    async def _run(self, run: Run[Any, Any]) -> list[Any]:
        return [item for _, item in await run.indexed()]

    async def _notes(self) -> list[Any]:
        """Return the notes of earlier attempts, for `Journal.read`."""
        if self._log is None:
            self._log = self._record
            if self._attempt > 1:
                await self._mark(begin_id(self._id, self._attempt))
                self._log = await self._records.read(self._id)
        router, call = self._router, self._record.call
        return [
            found if isinstance(found, int) else await router.outcome(found, call)
            for found in notes_of(self._log, self._id)
        ]

    async def _permitted(self, stretch: range, kept: Sequence[Kept]) -> list[Stage]:
        """The stages of a stretch, if they may run."""
        number = max(stretch.start, len(kept))  # the first stage whose result is not kept
        specs = [spec for each in stretch for spec in tasks_of(self._specs[each])]
        name = self._stages[number].name
        deaths = 0
        # Attempts count deliveries, and a worker may die before it begins: what has begun leaves a mark.
        place, round_ = step_id(self._id, number), self._first // UNBOUNDED
        if round_:  # a run that is retried by hand has all its attempts again
            place = f"{place}.retry{round_}"
        if number == len(kept) and self._attempt > max(kept[-1].attempt if kept else 1, self._first):
            marks = f"{place}.again."
            deaths = 1 + sum(reply_id.startswith(marks) for reply_id in self._record.replies)
            allowed = max((spec.options.max_attempts for spec in specs), default=DEFAULT_DEATHS)
            if deaths >= allowed:
                raise WorkerLost(
                    f"{deaths} workers died with stage {name!r} of run {self._id}: it will not run again", deaths
                )
            await self._mark(f"{marks}{deaths}")
        if any(spec.options.delivery == "at_most_once" for spec in specs):
            mark = f"{place}.begun"
            if mark in self._record.replies:
                raise WorkerLost(
                    f"the worker of run {self._id} ended while it ran stage {name!r}, which runs at most once: "
                    "the stage may or may not have run",
                    max(deaths, 1),
                )
            await self._mark(mark)
        if not deaths:
            return [self._stages[each] for each in stretch]
        return [build(self._specs[each], deaths) for each in stretch]

    async def _mark(self, mark: str) -> None:
        """Put on record that a stage is begun."""
        await self._records.add(self._id, Reply(VERSION, mark, Status.VALUE, b"", "", self._worker.id))

    async def _kept(self, number: int) -> Kept | None:
        """Return the result of a stage that an earlier attempt has kept, or None."""
        reply = self._record.replies.get(step_id(self._id, number))
        return None if reply is None else read_kept(await self._router.outcome(reply, self._record.call))

    async def _keep(self, number: int, items: list[Any]) -> None:
        """Make the result of a stage safe; that of the last one is the reply of this call."""
        if number + 1 < len(self._stages):
            try:
                await self._record_result(number, items)
            except Exception as error:
                add_note(error, f"in stage {self._stages[number].name!r}")
                raise

    async def _record_parts(self, parts: Mapping[int, list[Any]]) -> None:
        """Keep what stages have given so far which had not ended when a later one failed, as far as that is
        possible: the run ends with the failure."""
        for number, items in parts.items():
            try:
                await self._put(part_id(self._id, number, self._attempt), number, items)
            except (AtasksError, ValueError, TypeError) as error:
                logger.debug("the result of stage %d of run %s is not kept: %s", number, self._id, error)

    async def _record_result(self, number: int, items: list[Any]) -> None:
        await self._put(step_id(self._id, number), number, items)

    async def _put(self, reply_id: str, number: int, items: list[Any]) -> None:
        codec = self._codec
        payload = await encoded(
            f"the result of stage {self._stages[number].name!r}",
            self._result(number, items),
            codec,
            self._worker.transport.max_payload,
            "pass references, or run the pipeline here",
        )
        reply = Reply(VERSION, reply_id, Status.VALUE, payload, codec.name, self._worker.id)
        await self._records.add(self._id, reply)

    def _result(self, number: int, items: list[Any]) -> dict[str, Any]:
        """Return the entry of a stage in the record: its items, whether they are one value, and the attempt
        that made them."""
        return {"attempt": self._attempt, "one": gives_one(self._stages[: number + 1]), "items": items}


def _remembering(stage: Stage, journal: Journal, number: int) -> Stage:
    """The stage of this number, which makes no call that the journal knows."""
    if not isinstance(stage, CallingStage):
        return stage
    role = stage.role if isinstance(stage, FunctionStage) else "map"
    return replace(stage, notes=StageNotes(journal, number, role, stage.skip_errors))


def _stretches(specs: Sequence[StageSpec], stages: Sequence[Stage]) -> list[range]:
    """Which stages run together: those with many items between them, which are not the first ones.

    What fans one item out into many is whole before the next stage begins, so that its items have the same lineage
    whenever a coordinator begins again. A stage that runs at most once is alone, because it must not begin twice,
    and so is a fork, whose calls are not noted.
    """
    found: list[range] = []
    flowed = False
    for number, stage in enumerate(stages):
        flows = not isinstance(stage, ForkStage) and not any(
            spec.options.delivery == "at_most_once" for spec in tasks_of(specs[number])
        )
        many = number > 1 and not gives_one(stages[:number]) and not gives_one(stages[: number - 1])
        if many and flows and flowed:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
        flowed = flows
    return found
