"""Keeps the picture of a fleet true: asks its workers, hears their events, and acts on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from atasks.checks import is_queue, validate_queue
from atasks.connection import connect
from atasks.errors import AtasksError, InvalidName, NotConnected, NotSupported, NoWorker, UnknownRun
from atasks.submitted.description import describe_run, row_of, stages_done
from atasks.submitted.handle import Handle, run_again
from atasks.tracking.fleet import Fleet
from atasks.tracking.queries import MAX_DEPTH, CallInfo, Chain, Event, WorkerInfo
from atasks.tracking.snapshots import total
from atasks.transport.call_transport import CallTransport
from atasks.transport.records.contract import Records
from atasks.web.picture import QUEUES, Picture
from atasks.wire import counted

__all__ = ["FleetFeed"]

LOOK: Final = 2.0
"""Seconds between two questions to all workers."""
MOST_EVENTS: Final = 3000
"""Events a second above which only a part of the call trees is watched."""
MEASURED: Final = 2.0
"""Seconds over which the events are counted for that."""
RUNS: Final = 100
"""Submitted calls and runs that are listed, the latest ones."""
FOLLOWED: Final = 20
"""Runs of pipelines of which is told how many of their stages are on record: reading a record keeps it alive."""
STACK_WAIT: Final = 5.0
"""Seconds for a worker to tell where a call is: a person has asked, of one call, and a busy worker is late."""
NO_RECORDS: Final = "nothing is kept here of submitted calls: connect to RabbitMQ or a hub"
PAUSE: Final = 2.0
"""Seconds before another attempt to connect."""


class FleetFeed:
    """Watches the workers of one namespace over a connection of its own, while somebody looks."""

    def __init__(self, url: str, namespace: str = "default", **options: Any) -> None:
        """`options`: those of `atasks.connect`."""
        self._url = url
        self._namespace = namespace
        self._options = options
        self._fleet: Fleet | None = None
        self._records: Records | None = None
        self._queues: dict[str, None] = {}
        """Those that were ever heard of, in this order."""

    async def run(self, picture: Picture) -> None:
        while True:
            try:
                async with connect(self._url, namespace=self._namespace, **self._options) as transport:
                    assert isinstance(transport, CallTransport)
                    self._fleet, self._records = Fleet(transport), transport.records
                    await self._watch(self._fleet, transport, picture)
            except* (AtasksError, OSError) as failed:
                error = failed.exceptions[0]
                picture.connected = False
                picture.reason = " ".join(str(error).split()) or type(error).__name__
            finally:
                self._fleet = self._records = None
            await asyncio.sleep(PAUSE)

    async def _watch(self, fleet: Fleet, transport: CallTransport, picture: Picture) -> None:
        """Ask, listen and list until one of them fails."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask(fleet, transport, picture), name="atasks page, asking")
            group.create_task(self._listen(fleet, picture), name="atasks page, listening")
            group.create_task(_list(transport.records, picture), name="atasks page, listing runs")

    async def _listen(self, fleet: Fleet, picture: Picture) -> None:
        """Take events, of fewer trees where there are more than a page can show."""
        loop = asyncio.get_running_loop()
        sample = 1.0
        while True:
            picture.sample = sample
            since, count, least = loop.time(), 0, sample
            async with contextlib.aclosing(fleet.watch(sample=sample)) as events:
                async for heard in events:
                    picture.gaps += heard.missed
                    picture.take(_event(heard.worker, heard.event))
                    count += 1
                    if loop.time() - since >= MEASURED:
                        rate = count / (loop.time() - since) / sample
                        least = min(1.0, MOST_EVENTS / rate)
                        if least < 0.5 * sample or (least > 2 * sample and sample < 1.0):
                            break
                        since, count = loop.time(), 0
                        await asyncio.sleep(0)  # a browser waits too
            sample = least

    async def _ask(self, fleet: Fleet, transport: CallTransport, picture: Picture) -> None:
        loop = asyncio.get_running_loop()
        while True:
            picture.connected = transport.is_connected
            picture.reason = (
                "" if picture.connected else "the connection to the broker is lost, and being restored"
            )
            if picture.connected:
                started = loop.time()
                await self._look(fleet, picture)
                await asyncio.sleep(max(0.0, started + LOOK - loop.time()))
            else:
                await asyncio.sleep(0.5)

    async def _look(self, fleet: Fleet, picture: Picture) -> None:
        """Bring workers, calls and figures up to date."""
        version = picture.version
        workers, found = await asyncio.gather(fleet.workers(), fleet.calls())
        asked = picture.now()
        picture.count(total(task for worker in workers for task in worker.tasks))
        for worker in workers:
            picture.take(_row(worker))
        picture.inspected((_call(call) for call in [*found.calls, *found.queued]), version)
        for queue in [*(name for worker in workers for name in worker.queues), *picture.named]:
            if is_queue(queue) and len(self._queues) < QUEUES:
                self._queues.setdefault(queue)
        names = list(self._queues)
        states, paused = await fleet.queue_states(names), await fleet.paused(names)
        unmade = Counter(
            call.queue for call in found.queued if call.queue not in states and is_queue(call.queue)
        )  # by no worker so far
        picture.queues = [
            {"queue": queue, "ready": ready, "consumers": consumers, "paused": queue in paused}
            for queue, (ready, consumers) in [*states.items(), *((name, (n, 0)) for name, n in unmade.items())]
        ][: 2 * QUEUES]
        picture.dead = await fleet.dead_count()
        if not found.left_out:
            held: dict[str, list[str]] = {worker.id: [] for worker in workers}
            for call in found.calls:
                held.setdefault(call.worker, []).append(call.id)
            queued = [call.id for call in found.queued]
            for name, ids in held.items():
                picture.only(name, ids, asked - 2 * LOOK)
            picture.only("", queued, asked - 2 * LOOK)

    # -- what a person asks for

    async def act(self, action: str, ids: Sequence[str]) -> str:
        fleet = self._connected()
        if action == "cancel":
            return await _cancel(fleet, ids)
        if action == "retry":
            return await _retry(fleet, ids)
        if action == "retry_run":
            for run_id in ids:
                await run_again(self._records_of(run_id), run_id)
            return "The run begins again." if len(ids) == 1 else f"{len(ids)} runs begin again."
        if action == "drop_run":
            for run_id in ids:
                await self._records_of(run_id).drop(run_id)
            return "The record is forgotten." if len(ids) == 1 else f"{len(ids)} records are forgotten."
        try:
            queues = [validate_queue(queue) for queue in ids]
        except ValueError as error:
            raise InvalidName(str(error)) from None
        return " ".join([await _steer(fleet, action, queue) for queue in queues])

    async def stack(self, call_id: str) -> dict[str, Any]:
        found = await self._connected().stack(call_id, STACK_WAIT)
        return {
            "stack": "" if found is None else "\n".join(line for chain in found.chains for line in _lines(chain))
        }

    async def submitted(self, run_id: str) -> dict[str, Any]:
        return await describe_run(run_id, await self._records_of(run_id).read(run_id))

    def _records_of(self, run_id: str) -> Records:
        """The records, among which there may be one of that id."""
        self._connected()
        if self._records is None:
            raise NotSupported(NO_RECORDS)
        try:
            Handle[Any](run_id)
        except ValueError as error:
            raise InvalidName(f"{error}: give the id that submit() returned") from None
        return self._records

    def _connected(self) -> Fleet:
        if self._fleet is None:
            raise NotConnected(
                "the page has no connection to the broker now: try again when it says that it watches"
            )
        return self._fleet


async def _cancel(fleet: Fleet, ids: Sequence[str]) -> str:
    ended = await fleet.cancel(ids)
    if len(ended) == len(ids):
        return "The call has ended." if len(ids) == 1 else f"{len(ids)} calls have ended."
    return "No worker that answered holds it now: it ends when one gets it within 10 minutes."


async def _steer(fleet: Fleet, action: str, queue: str) -> str:
    """Pause, resume or purge a queue."""
    if action == "purge":
        found = await fleet.purge(queue)
        if not found.known:
            raise NoWorker(
                f"no worker has ever served queue {queue}, so its calls wait at their callers: "
                "start a worker for it, or cancel the calls"
            )
        left = f" Still there: {counted(found.left, 'message')}." if found.left else ""
        return f"{counted(found.calls, 'call')} of queue {queue} ended.{left}"
    if action == "pause":
        workers = await fleet.pause(queue)
        return f"Queue {queue} is paused for {counted(len(workers), 'worker')}, and for those that come."
    workers = await fleet.resume(queue)
    return f"Queue {queue} is resumed for {counted(len(workers), 'worker')}."


async def _list(records: Records | None, picture: Picture) -> None:
    """Keep the list of submitted calls and runs true, or say why there is none."""
    while True:
        try:
            picture.runs = [] if records is None else await _runs(records)
            picture.runs_note = NO_RECORDS if records is None else ""
        except NotConnected as error:
            picture.runs_note = " ".join(str(error).split())
        except AtasksError as error:
            picture.runs, picture.runs_note = [], " ".join(str(error).split())
        await asyncio.sleep(LOOK)


async def _runs(records: Records) -> list[dict[str, Any]]:
    """The latest submitted calls and runs."""
    found = await records.history(limit=RUNS)
    stages: dict[str, tuple[int, int]] = {}
    for info in [info for info in found if info.status is None and "." in info.id][:FOLLOWED]:
        with contextlib.suppress(UnknownRun):  # it was dropped meanwhile
            stages[info.id] = stages_done(info.id, await records.read(info.id))
    return [{**row_of(info), "worker": info.worker or "", "stages": stages.get(info.id)} for info in found]


async def _retry(fleet: Fleet, names: Sequence[str]) -> str:
    """Put dead messages back into their queues."""
    async with fleet.dead_letters() as dead:
        chosen = [message for message in dead.messages if names == ["all"] or message.name in names]
        problems = list((await dead.retry(chosen)).values())
    said = f"Back in their queues: {counted(len(chosen) - len(problems), 'message')}."
    return f"{said} {counted(len(problems), 'other')} could not be put back: {problems[0]}." if problems else said


def _row(info: WorkerInfo) -> dict[str, Any]:
    return {
        "kind": "worker",
        "worker": info.id,
        "host": info.host,
        "pid": info.pid,
        "queues": info.queues,
        "version": info.version,
        "running": info.running,
        "parked": info.parked,
        "waiting": info.waiting,
        "slots": info.concurrency,
        "lag": info.loop_lag,
        "draining": info.draining,
    }


def _event(worker: str, event: Event) -> dict[str, Any]:
    if not event.id:
        return {"kind": "sign", "time": event.at, "worker": worker}
    return {
        "kind": event.kind,
        "time": event.at,
        "worker": worker,
        "id": event.id,
        "task": event.task,
        "root": event.root,
        "parent": event.parent,
        "queue": event.queue,
        "attempt": event.attempt,
        "status": event.status,
        "run": event.ran,
        "type": event.error,
        "traceback": event.traceback,
        "note": event.progress,
    }


def _call(call: CallInfo) -> dict[str, Any]:
    awaited = Counter(item.task for item in call.awaits)
    names = [f"{number} × {name}" if number > 1 else name for name, number in sorted(awaited.items())]
    return {
        "id": call.id,
        "task": call.task,
        "worker": call.worker,
        "state": call.state,
        "queue": call.queue,
        "age": call.age,
        "ran": call.ran,
        "attempt": call.attempt,
        "parent": call.parent,
        "root": call.root,
        "note": call.progress,
        "awaits": ", ".join([*names[:3], *["…"] * (len(names) > 3)]),
    }


def _lines(chain: Chain, depth: int = 0) -> list[str]:
    lines = ["  " * depth + line for line in [chain.name, *(f"  {frame}" for frame in chain.frames)]]
    lines.append("  " * depth + f"  waits for {chain.waits_for}")
    for child in chain.children if depth < MAX_DEPTH else ():
        lines += _lines(child, depth + 1)
    return lines
