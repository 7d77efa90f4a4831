"""The counters of a program's workers and callers, always on.

from atasks import tracking

for worker in tracking.snapshot().workers:
    print(worker.id, worker.running, worker.parked, worker.waiting)
"""

from atasks.tracking.snapshots import (
    BOUNDS,
    CallerCounts,
    Histogram,
    Snapshot,
    TaskCounts,
    WorkerCounts,
    snapshot,
)

__all__ = ["BOUNDS", "CallerCounts", "Histogram", "Snapshot", "TaskCounts", "WorkerCounts", "snapshot"]
