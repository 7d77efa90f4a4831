"""The calls that wait at a worker to start: for a slot, for a place in a pool, or to be alone."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING

from atasks.options import EXECUTORS, Executor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from atasks.worker.executors.pools import Executors
    from atasks.worker.held_call import HeldCall

__all__ = ["Backlog", "Lane"]

Lane = OrderedDict[str, "HeldCall"]
"""Calls by id, the oldest first."""


class Backlog:
    """Calls that were delivered and have not started.

    A call needs a slot, and, if its function blocks, a place in the pool of its executor. It waits for both here,
    and holds neither. One that lacks a place keeps only those of the same executor from starting. A call that is
    to run alone goes first, and keeps all others, unless such calls are to rest; then come those made by calls,
    and then the oldest.
    """

    def __init__(
        self, pools: Executors, may_start_alone: Callable[[HeldCall], bool], resting: Callable[[], bool]
    ) -> None:
        self._pools = pools
        self._may_start_alone = may_start_alone
        self._resting = resting
        self._alone: Lane = OrderedDict()
        self._children: dict[Executor | None, Lane] = {kind: OrderedDict() for kind in (None, *EXECUTORS)}
        self._roots: dict[Executor | None, Lane] = {kind: OrderedDict() for kind in (None, *EXECUTORS)}
        self.size = 0
        """Number of calls that wait here."""
        self._blocking = 0
        """Number of waiting calls that need a place in a pool."""
        self._turns = itertools.count()

    @property
    def alone(self) -> HeldCall | None:
        """The call that waits to run alone, the oldest if there are several."""
        return next(iter(self._alone.values()), None)

    @property
    def count_alone(self) -> int:
        """Return the number of calls that wait to run alone."""
        return len(self._alone)

    @property
    def waits_alone(self) -> bool:
        """A call waits to run alone, and keeps the others from starting."""
        return bool(self._alone) and not self._resting()

    def add(self, run: HeldCall) -> None:
        """Let it wait here, behind its equals."""
        call, task = run.call, run.atask
        executor = None if task is None else task.executor
        lanes = self._roots if call.parent is None else self._children
        lane = self._alone if run.alone else lanes[executor]
        lane[call.id] = run
        run.lane = lane
        run.turn = next(self._turns)
        self.size += 1
        if executor is not None:
            self._blocking += 1

    def remove(self, run: HeldCall) -> None:
        """Remove a call that no longer waits here."""
        assert run.lane is not None, "it waits here"
        del run.lane[run.call.id]
        self.size -= 1
        if run.executor is not None:
            self._blocking -= 1

    def take(self) -> HeldCall | None:
        """Remove the call to start next, if there is a slot; None if all that wait here have to wait on."""
        if self._alone and not self._resting():
            run = self.alone
            if run is None or not self._may_start_alone(run):
                return None
        elif not self._blocking:
            lane = self._children[None] or self._roots[None]
            if not lane:
                return None
            self.size -= 1
            return lane.popitem(last=False)[1]
        else:
            run = self._first(self._children) or self._first(self._roots)
        if run is not None:
            self.remove(run)
        return run

    def _first(self, lanes: dict[Executor | None, Lane]) -> HeldCall | None:
        found: HeldCall | None = None
        for executor, lane in lanes.items():
            if lane and self._pools.has_place(executor):
                run = next(iter(lane.values()))
                if found is None or run.turn < found.turn:
                    found = run
        return found

    def lacking(self) -> list[Executor]:
        """The executors for which calls wait here that lack a place."""
        if not self._blocking:
            return []
        return [
            executor
            for executor in EXECUTORS
            if (self._children[executor] or self._roots[executor]) and not self._pools.has_place(executor)
        ]

    def runs(self, executor: Executor | None = None) -> list[HeldCall]:
        """All calls that wait here, or those that need a place for this executor and need not be alone."""
        lanes: Iterable[Lane]
        if executor is None:
            lanes = (self._alone, *self._children.values(), *self._roots.values())
        else:
            lanes = (self._children[executor], self._roots[executor])
        return [run for lane in lanes for run in lane.values()]
