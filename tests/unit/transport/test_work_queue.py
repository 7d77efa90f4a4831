"""The order in which calls leave a queue of the hub, and what it costs to find the next one."""

from __future__ import annotations

from typing import cast

import pytest

from atasks.transport.backends.local.hub.peer import Peer
from atasks.transport.backends.local.hub.queue import QueuedCall, Told, WorkQueue
from atasks.wire import Call


class Serving:
    """Stands for a worker."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id


@pytest.fixture
def old() -> Peer:
    return cast("Peer", Serving("old"))


@pytest.fixture
def new() -> Peer:
    return cast("Peer", Serving("new"))


@pytest.fixture
def queue(old: Peer, new: Peer) -> WorkQueue:
    queue = WorkQueue("namespace", "default", Told())
    queue.workers += [old, new]
    return queue


def put(queue: WorkQueue, call_id: str, seen: list[str] | None = None, priority: int = 0) -> QueuedCall:
    """Have a call wait there; one that workers have handed back, because they lack its atask, waits in front."""
    queued = QueuedCall(Call(1, call_id, "task", b"", "msgpack", seen=seen), None, queue, priority, 500)
    queue.push(queued, front=seen is not None)
    return queued


def taken(queue: WorkQueue, worker: Peer) -> list[str]:
    """Return the ids of all that the worker may have."""
    found: list[str] = []
    while (queued := queue.pop(worker)) is not None:
        found.append(queued.call.id)
    return found


def test_calls_that_a_worker_has_handed_back_go_to_others_first(queue: WorkQueue, old: Peer, new: Peer) -> None:
    for number, priority in enumerate((0, 1, 0)):
        put(queue, f"waits-{number}", priority=priority)
    put(queue, "back-0", ["old"])
    put(queue, "back-1", ["old"], priority=1)
    put(queue, "back-of-both", ["new", "old"])
    removed = put(queue, "removed", ["old"])
    queue.remove(removed)
    assert queue.size == 6
    assert queue.pop(new).call.id == "back-1"  # type: ignore[union-attr]
    assert taken(queue, old) == ["waits-1", "back-of-both", "waits-0", "waits-2"], "all of them lack one of these"
    assert taken(queue, new) == ["back-0"]
    assert queue.size == 0
    put(queue, "back-2", ["old"])
    queue.workers.remove(new)
    assert taken(queue, old) == ["back-2"], "the only worker says what becomes of it"


def test_a_worker_does_not_look_through_calls_that_it_has_handed_back(
    queue: WorkQueue, old: Peer, new: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    may_have = WorkQueue.may_have

    def counted(queue: WorkQueue, worker: Peer, call: Call) -> bool:
        looked.append(call.id)
        return may_have(queue, worker, call)

    monkeypatch.setattr(WorkQueue, "may_have", counted)
    for number in range(1000):
        put(queue, f"call-{number}", ["old"], priority=number % 4)
    assert queue.pop(old) is None
    assert len(looked) == 4, "one for each priority"
    looked.clear()
    put(queue, "mine")
    assert taken(queue, old) == ["mine"]
    assert len(looked) == 8
    assert len(taken(queue, new)) == 1000
