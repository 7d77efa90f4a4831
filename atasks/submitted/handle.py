"""Handles of submitted calls and runs: for who submitted them, and for who attaches to them by their id."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Meta, Struct, structs

from atasks import wire
from atasks.current import serving
from atasks.errors import CannotRetry, DecodeError, NotConnected, NotSupported, PipelineError, UnknownRun
from atasks.namespaces import namespace_item
from atasks.options import TaskOptions, validate_queue
from atasks.parking import Parked
from atasks.progress import Latest, Progress
from atasks.submitted.methods import also_sync
from atasks.tracking.fleet import Fleet
from atasks.transport.records.contract import Record, Records, again_id, record_of, round_of
from atasks.wire import UNBOUNDED, Reply, Status

if TYPE_CHECKING:
    from atasks.router import Router
    from atasks.transport.call_transport import CallTransport

__all__ = ["Handle", "Kept", "attach", "part_id", "read_kept", "records_of", "run_again", "step_id", "step_value"]

T = TypeVar("T")

LAST_SECONDS: Final = 0.5
"""For how long the last report is waited for, after a call has ended that had reported something."""
_DUMP: Final = "atasks-run-1:"
_ID: Final = re.compile(r"[0-9a-z~-]{1,48}(?:\.([1-9][0-9]{0,5}))?")
"""A call id, and for a run of a pipeline the number of its stages."""


def step_id(run_id: str, number: int) -> str:
    """The id under which the result of a stage is kept."""
    return f"{run_id}.{number}"


def part_id(run_id: str, number: int, attempt: int) -> str:
    """The id under which is kept what a stage gave that had not ended when that attempt failed."""
    return f"{step_id(run_id, number)}.part{attempt}"


class Kept(Struct):
    """The items that are kept of a stage."""

    attempt: Annotated[int, Meta(ge=1)]
    """At which it was made."""
    one: bool
    """True if the items are one value, not a list."""
    items: list[Any]


def read_kept(content: Any) -> Kept:
    """Read from a record the items of a stage. Raises DecodeError for bytes that no coordinator has written."""
    try:
        kept = msgspec.convert(content, Kept)
        if kept.one and len(kept.items) != 1:
            raise ValueError("it is not one value")
    except (msgspec.ValidationError, ValueError) as error:
        raise DecodeError(f"the kept result of a stage cannot be read: {error}") from error
    return kept


def step_value(kept: Kept) -> Any:
    """Return the result of a stage: a list, unless it is one value."""
    return kept.items[0] if kept.one else kept.items


def records_of(router: Router) -> Records:
    """Return the records of the calls and runs that are submitted here. Raises NotConnected, NotSupported."""
    transport = router.transport()
    if transport.records is None:
        raise NotSupported(
            f"{type(transport).__name__} keeps no results of submitted calls and runs: connect to RabbitMQ or a "
            "hub, or await it here"
        )
    return transport.records


class Handle(Generic[T]):
    """A call, or a run of a pipeline, that was submitted.

    `await handle` gives its result or raises its exception, as often as it is awaited, until its record has
    expired: then it is `UnknownRun`, as it is from the beginning for a call with `keep=0`. Cancelling that await
    ends the await only. A handle is bound to no connection: it uses that of the event loop in which it is used.

    Example:
        ```python
        from atasks import atask, attach

        @atask
        async def invoice(order: int) -> str:
            return f"invoice-{order}.pdf"

        handle = await invoice.submit(7)
        print(await handle, await attach(handle.id), await handle.done())  # invoice-7.pdf invoice-7.pdf True
        ```

    Code without an event loop calls `handle.sync()`, and each method by its `sync`: `handle.done.sync()`,
    `for progress in handle.progress.sync()`. They raise what the method raises, and RuntimeError where an event
    loop runs.
    """

    def __init__(self, id: str, namespace: str = "default", *, kept: bool = True, new: bool = True) -> None:
        found = _ID.fullmatch(id)
        if found is None:
            raise ValueError(f"{id[:80]!r} is not the id of a submitted call or run")
        self.id = id
        """By which other processes `attach` to it."""
        self.namespace = validate_queue(namespace, "namespace")
        self.new = new
        """True if the submission that gave this handle made the call; False: its `unique` key was taken."""
        self.task_ids = tuple(step_id(id, number) for number in range(int(found[1] or 0)))
        """Runs of pipelines: an id for each stage, known before anything runs."""
        self._kept = kept

    def __await__(self) -> Generator[Any, None, T]:
        return self._result().__await__()

    def sync(self) -> T:
        """The result, for code without an event loop. Raises what an await of it raises, and RuntimeError where an
        event loop runs."""
        result: T = self._router_of_thread().run_sync("handle.sync()", "`await` the handle", self._result)
        return result

    @also_sync
    async def step(self, number: int) -> Any:
        """Wait for the result of the stage of this number, and return it: a value, or a list where the stage has
        more or less than one. If a later stage has failed before it had ended, that is what it gave until then.

        Raises the exception of the run if that came from the stage or an earlier one, IndexError for a stage that
        does not exist, UnknownRun.
        """
        if not self.task_ids:
            raise TypeError("step() is for runs of pipelines: await the handle of a call")
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"the number of a stage is a whole number, not {number!r}")
        if not 0 <= number < len(self.task_ids):
            raise IndexError(f"stage {number} of a run of {len(self.task_ids)} stages, which count from 0")
        if number == len(self.task_ids) - 1:
            return await self._result()
        wanted = self.task_ids[number]
        router = _router(self.namespace)
        record = await self._wait(lambda record: wanted in record.replies or record.ending is not None, steps=True)
        reply = record.replies.get(wanted) or _part(record, wanted)
        if reply is not None:
            return step_value(read_kept(await router.outcome(reply, record.call)))
        return await self._outcome(router, record)

    @also_sync
    async def progress(self) -> AsyncGenerator[Progress, None]:
        """The reports of the call, or of the run of a pipeline, from now on, the latest one each time, until it
        has ended, in whatever way. They begin with the latest one there was, if a worker has the call now.

        A run of a pipeline reports of how many items the last one of its present stages is done with. Workers
        tell of it for as long as this is iterated over, so reports may be missed, and a reader that is slow slows
        nobody. `done` may fall: another attempt begins anew. Raises UnknownRun, NotConnected, NotSupported.
        """
        latest = Latest()
        following = asyncio.create_task(self._follow(latest), name=f"atasks progress {self.id}")
        following.add_done_callback(lambda _: latest.end())
        try:
            reports = latest.each()
            while True:
                async with Parked():
                    progress = await anext(reports, None)
                if progress is None:
                    break
                yield progress
            await following
        finally:
            following.cancel()
            await asyncio.wait([following])

    @also_sync
    async def done(self) -> bool:
        """Return True if the call or run has ended, in whatever way. Raises UnknownRun."""
        return (await self._records().read(self.id)).ending is not None

    @also_sync
    async def cancel(self) -> None:
        """End it, and the calls that it has in flight: every await of it is a `CallCancelled` from now on. One
        that has not begun does not begin, and nothing happens to one that has ended. Returns when that is safe.
        Raises UnknownRun."""
        records = self._records()
        record = await records.read(self.id)
        if record.ending is None:
            what = "run" if self.task_ids else "call"
            ending = wire.ended(record.call.id, Status.CANCELLED, f"{what} {self.id} was cancelled")
            await records.cancel(record, ending)

    @also_sync
    async def retry(self) -> None:
        """Have what failed run again, under this handle: `await handle`, here and elsewhere, waits for it from now
        on. Returns when that is safe.

        A call is made again with the same arguments and the same `current_call().key`, whatever it did before it
        failed. A run of a pipeline goes on behind what is on record: no call is made again that gave a value
        there; items that `skip_errors` has dropped from a stage that had not ended are called again.
        Attempts at workers that die count anew, and so do the tries of a `retry=`.

        Raises CannotRetry for one that did not fail, UnknownRun, and a `CallError`.
        """
        await run_again(self._records(), self.id)

    def dumps(self) -> str:
        """A string for `attach`, which knows the namespace too."""
        return _DUMP + json.dumps({"id": self.id, "namespace": self.namespace})

    async def _follow(self, latest: Latest) -> None:
        """Put into `latest` what workers tell of it, until it has ended."""
        over = asyncio.Event()

        async def listen() -> None:
            transport = _router(self.namespace).transport()
            if not hasattr(transport, "open_stream"):  # that of another event loop, say
                raise NotSupported(
                    "progress() of a handle needs a connection of this event loop: enter `async with "
                    "atasks.connect(...)`, over RabbitMQ or a hub"
                )
            fleet = Fleet(cast("CallTransport", transport))
            async with aclosing(fleet.watch(("report", "ended"), ids=(self.id,))) as events:
                async for heard in events:
                    event = heard.event
                    if event.kind == "report":
                        latest.put(Progress(event.done, event.total, event.note, event.attempt, event.try_))
                    elif record_of(event.id) == self.id:
                        over.set()

        ended = self._records().wait(self.id, lambda record: record.ending is not None, steps=False)
        tasks = [asyncio.create_task(ended), asyncio.create_task(listen())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if latest.progress is not None:  # its worker tells of the last report, and then of the end
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await over.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _result(self) -> T:
        router = _router(self.namespace)
        record = await self._wait(lambda record: record.ending is not None, steps=False)
        result: T = await self._outcome(router, record)
        return result

    async def _wait(self, wanted: Callable[[Record], bool], *, steps: bool) -> Record:
        """The record, as soon as it is as wanted. A call that waits for it here is parked, as by any other
        await."""
        records, run = self._records(), serving.get()
        if run is None or run.ended or run.loop is not asyncio.get_running_loop():
            return await records.wait(self.id, wanted, steps=steps)
        run.park()
        try:
            return await records.wait(self.id, wanted, steps=steps)
        finally:
            await run.unpark()

    async def _outcome(self, router: Router, record: Record) -> Any:
        assert record.ending is not None, "it was waited for"
        return await router.outcome(record.ending, record.call)

    def _router_of_thread(self) -> Router:
        return _router(self.namespace, "with atasks.connect_sync")

    def _records(self) -> Records:
        if not self._kept:
            raise UnknownRun(f"call {self.id} was submitted with keep=0: nothing is kept of it")
        return records_of(_router(self.namespace))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return NotImplemented
        return (self.id, self.namespace) == (other.id, other.namespace)

    def __hash__(self) -> int:
        return hash((self.id, self.namespace))

    def __repr__(self) -> str:
        return (
            f"<run {self.id} of {len(self.task_ids)} stages>" if self.task_ids else f"<submitted call {self.id}>"
        )


async def run_again(records: Records, run_id: str) -> None:
    """Have a call or run that failed run again, as `Handle.retry` does, with these records."""
    record = await records.read(run_id)
    name = f"run {run_id}" if "." in run_id else f"call {run_id}"
    if record.ending is None:
        raise CannotRetry(f"{name} waits or runs still: await it, or cancel it and submit it anew")
    if record.ending.status == Status.VALUE:
        raise CannotRetry(f"{name} has ended well: await it, or submit it anew to have it run once more")
    if record.ending.status == Status.CANCELLED:
        raise CannotRetry(f"{name} was cancelled: submit it anew")
    before = record.call
    call = structs.replace(
        before,
        id=again_id(before.id),
        key=before.key or record.id,
        try_=before.try_ + 1,
        sent_ms=int(time.time() * 1000),
    )
    if not await records.again(record, call, TaskOptions(queue=record.head.queue)):
        raise CannotRetry(f"{name} runs again already: somebody else has retried it")


def _part(record: Record, step: str) -> Reply | None:
    """Return what is kept of a stage that had not ended when the latest call of the record did."""
    begin = f"{step}.part"
    for reply_id, reply in reversed(record.replies.items()):
        attempt = reply_id.removeprefix(begin)
        if reply_id.startswith(begin) and attempt.isdecimal():
            return reply if (int(attempt) - 1) // UNBOUNDED == round_of(record.call.id) else None
    return None


def _router(namespace: str, block: str = "async with atasks.connect") -> Router:
    router: Router | None = getattr(namespace_item(namespace), "router", None)
    if router is None:  # which connecting makes
        where = "" if namespace == "default" else f", namespace={namespace!r}"
        raise NotConnected(f'enter `{block}("amqp://localhost/"{where})` or another URL first')
    return router


def attach(id_or_dump: str) -> Handle[Any]:
    """The handle of a call or a run that was submitted elsewhere: `await attach(h.id)`. Nothing is sent before the
    handle is used.

    Args:
        id_or_dump: The id, of a call of the default namespace; or `h.dumps()`, which says which namespace.

    Raises:
        TypeError: It is no string.
        ValueError: It is no id.
        PipelineError: It is a dump that cannot be read.
    """
    if not isinstance(id_or_dump, str):
        raise TypeError(f"attach takes the id of a run or a dump of its handle, not {type(id_or_dump).__name__}")
    if not id_or_dump.startswith("atasks-run-"):
        return Handle(id_or_dump)
    if not id_or_dump.startswith(_DUMP):
        raise PipelineError("this is a dump of another version of atasks: attach by the id of the run")
    try:
        content = json.loads(id_or_dump.removeprefix(_DUMP))
        return Handle(content["id"], content["namespace"])
    except (ValueError, TypeError, KeyError) as error:
        raise PipelineError("this dump of a run is damaged: attach by the id of the run") from error
