"""The soak of calls that resume: `python -m tests.faults.soak --resume`, or `make soak ARGS=--resume`.

Random trees of calls, awaited or submitted, with branches in parallel that end, fail, time out or are cancelled in
every way of asyncio, equal calls, keys, exceptions that are caught, tries of steps and of whole branches, limits,
pipelines, streams, threads, large results, local steps and pauses, under the faults of the other soak but for
those that delete queues. Each tree says what its value would be without faults. No step may begin that had ended
before, if its worker had noted that the broker has confirmed its reply. The same holds for a submitted tree; one
that is awaited is no step: its caller may have sent it again, and let that copy begin before the reply has come to
it. Such a copy makes no step.
No journal may be left, but by workers that were killed between a reply and the end of its journal.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import atasks
from tests.faults.growing import KINDS, Shape, grow, is_local, times_of, value_of
from tests.faults.history import RunRecord, begun_again
from tests.faults.soak import Soak

__all__ = ["ResumeSoak"]

AT_ONCE_SECONDS = 1.0
"""For so long a worker may be about to begin a step, which has looked whether that has ended."""
KEEP = 60.0
"""Seconds for which the record of a submitted tree is kept."""
SUBMITTED, AWAITED = "s", "a"
"""Beginnings of the keys of trees."""
LEFT_BY_ONE = 5
"""Journals that a worker may leave that is killed."""


class ResumeSoak(Soak):
    """One run of it."""

    lasting = Soak.lasting | {"limit", "run"}

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "module": "tests.faults.growing", "caller_patience": 20.0}

    async def client(self) -> None:
        while not self.ending:
            await self.grown()

    async def grown(self) -> None:
        """One tree."""
        shape = random_shape(self.load_dice, 3)
        expected = value_of(shape)
        key = uuid.uuid4().hex
        try:
            if self.load_dice.random() < 0.3:
                value = await (await grow.options(keep=KEEP).submit(f"{SUBMITTED}{key}", shape))
            else:
                value = await grow(f"{AWAITED}{key}", shape)
        except atasks.WorkerLost:  # its last attempts died too
            self.trees["WorkerLost"] += 1
        else:
            self.trees["value"] += 1
            if value != expected:
                self.broken.append(f"a tree gave {value} instead of {expected}: {shape}")

    def fault_kinds(self) -> list[tuple[int, Callable[[], Awaitable[Any]]]]:
        deleting = {self.delete_work_queue, self.purge_work_queue, self.delete_reply_queues}
        kinds = [(weight, fault) for weight, fault in super().fault_kinds() if fault not in deleting]
        return [*kinds, (8, self.kill_worker)]

    def check(self) -> None:
        steps: dict[str, list[RunRecord]] = {}
        for run in self.history.runs():
            steps.setdefault(run.key, []).append(run)
        noted = {name: at + AT_ONCE_SECONDS for name, at in self.history.safe().items()}
        for key, runs in steps.items():
            if key.startswith(AWAITED) and "." not in key:
                continue
            over = {
                name: noted[name]
                for name in ({key} if is_local(key) else {run.call_id for run in runs}) & noted.keys()
            }
            if late := begun_again(runs, over, times_of(key)):
                self.suspects.add(key)
                self.broken.append(f"{key} had ended, and began {len(late)} times more: {runs}, safe {over}")
        self.repeated = sum(max(0, len(runs) - times_of(key)) for key, runs in steps.items())
        self.steps = len(steps)

    def leaks(self) -> Iterator[str]:
        yield from super().leaks()
        left = [queue.name for queue in self.node.queues() if queue.name.startswith(f"{self.prefix}.run.")]
        if len(left) > LEFT_BY_ONE * self.killed:
            yield f"{len(left)} journals are left by {self.killed} workers that were killed: {left[:3]}"

    def report(self) -> None:
        super().report()
        print(f"steps: {self.steps}, of them begun again: {self.repeated}")


def random_shape(dice: random.Random, depth: int) -> Shape:
    """A tree of at most so many levels."""
    if depth == 0 or dice.random() < 0.2:
        return {"kind": "leaf", "value": dice.randrange(5), "pause": dice.choice([0.0, 0.0, 0.1, 0.4])}
    kind = dice.choice(KINDS)
    count = {"row": 3, "fan": 3, "same": 3}.get(kind, 1)
    return {"kind": kind, "below": [random_shape(dice, depth - 1) for _ in range(dice.randint(1, count))]}
