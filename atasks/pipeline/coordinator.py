"""What runs a submitted pipeline: a call that awaits one stage after the other, and keeps what each has given.

It holds no slot while a stage runs, and begins a stage when the result of the one before is safe. So if its worker
dies, or drains, another one goes on behind the last stage that was kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from atasks.calls import serving
from atasks.errors import EncodeError, PayloadTooLarge, WorkerLost
from atasks.pipeline.blueprint import Blueprint, build, tasks_of
from atasks.pipeline.calling import Start
from atasks.pipeline.handle import step_id, step_value
from atasks.pipeline.run import Run, gives_one
from atasks.pipeline.source import IterableSource, SingleSource
from atasks.pipeline.stages import Stage
from atasks.run import Run as Serving
from atasks.transport.records import Record, Records
from atasks.wire import VERSION, Reply, Status

__all__ = ["run_pipeline"]

DEFAULT_DEATHS = 3
"""Workers that may die over a stage without atasks."""


async def run_pipeline(stages: Any, args: Any, kwargs: Any) -> Any:
    """The result of the run, or what it raises. For a run that has ended nothing is done."""
    run = serving.get()
    assert run is not None, "it is called by workers"
    records = run.worker.transport.records
    assert records is not None, "the submitter's transport has them, and it is of the same kind"
    async with records.watch(run.call.id, steps=False) as news:
        record = await records.read(run.call.id)  # watched already: who ends the run from now on is noticed
        if record.ending is not None:
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

    def __init__(self, run: Serving, records: Records, record: Record, stages: Sequence[Blueprint]) -> None:
        self._id = run.call.id
        self._attempt = run.call.attempt
        self._worker = run.worker
        self._codec = run.worker.router.codec
        self._records = records
        self._record = record
        self._blueprints = stages
        self._stages: list[Stage] = [build(stage) for stage in stages]

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
            if (await self._records.read(self._id)).ending is not None:
                return

    async def work(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the stages that have no result yet."""
        items: list[Any] = []
        begun, kept_at = 0, 1
        while (kept := await self._kept(begun)) is not None:
            items, kept_at, begun = kept["items"], kept["attempt"], begun + 1
        for number in range(begun, len(self._stages)):
            stage = await self._permitted(number, again=number == begun and self._attempt > kept_at)
            if number == 0:
                source = Start(tuple(args), dict(kwargs)) if stage.takes_arguments else args[0]
                run: Run[Any, Any] = Run(SingleSource(source), (stage,), called=True)
            else:
                run = Run(IterableSource(items), (stage,))
            items = [item for _, item in await run.indexed()]
            if number + 1 < len(self._stages):
                await self._keep(number, items)
        return step_value(self._result(len(self._stages) - 1, items))

    async def _permitted(self, number: int, *, again: bool) -> Stage:
        """The stage, if it may run; `again`: workers have died since the stage before it was kept."""
        specs = list(tasks_of(self._blueprints[number]))
        name = self._stages[number].name
        deaths = 0
        if again:  # attempts count deliveries, and a worker may die before it begins: what has begun leaves a mark
            marks = f"{step_id(self._id, number)}.again."
            deaths = 1 + sum(reply_id.startswith(marks) for reply_id in self._record.replies)
            allowed = max((spec.options.max_attempts for spec in specs), default=DEFAULT_DEATHS)
            if deaths >= allowed:
                raise WorkerLost(
                    f"{deaths} workers died with stage {name!r} of run {self._id}: it will not run again", deaths
                )
            await self._mark(f"{marks}{deaths}")
        if any(spec.options.delivery == "at_most_once" for spec in specs):
            mark = f"{step_id(self._id, number)}.begun"
            if mark in self._record.replies:
                raise WorkerLost(
                    f"the worker of run {self._id} ended over stage {name!r}, which runs at most once: "
                    "it may or may not have run",
                    max(deaths, 1),
                )
            await self._mark(mark)
        return build(self._blueprints[number], deaths) if deaths else self._stages[number]

    async def _mark(self, mark: str) -> None:
        """Put on record that a stage is begun."""
        await self._records.add(self._id, Reply(VERSION, mark, Status.VALUE, b"", "", self._worker.id))

    async def _kept(self, number: int) -> Any:
        """What an earlier attempt has kept of a stage, or None."""
        reply = self._record.replies.get(step_id(self._id, number))
        return None if reply is None else await self._worker.router.outcome(reply, self._record.call)

    async def _keep(self, number: int, items: list[Any]) -> None:
        """Make the result of a stage safe."""
        name, codec = self._stages[number].name, self._codec
        try:
            payload = await codec.encode(self._result(number, items))
        except EncodeError:
            raise
        except Exception as error:
            raise EncodeError(
                f"the result of stage {name!r} cannot be encoded by {codec.name} ({type(error).__name__})"
            ) from error
        limit = self._worker.transport.max_payload
        if len(payload) > limit:
            raise PayloadTooLarge(
                f"the result of stage {name!r} has {len(payload)} bytes, over the limit of {limit}: pass "
                "references, or run the pipeline here"
            )
        reply = Reply(VERSION, step_id(self._id, number), Status.VALUE, payload, codec.name, self._worker.id)
        await self._records.add(self._id, reply)

    def _result(self, number: int, items: list[Any]) -> dict[str, Any]:
        """What is kept of a stage: its items, whether they are one value, and the attempt that made them."""
        return {"attempt": self._attempt, "one": gives_one(self._stages[: number + 1]), "items": items}
