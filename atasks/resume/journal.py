"""The journal of one run: what the run before it has done is not done again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from atasks import wire
from atasks.codecs.checked import over_limit
from atasks.current import sendable, serving_here
from atasks.errors import Diverged, NotSupported, PayloadTooLarge, WorkerLost
from atasks.progress import Progress
from atasks.resume.naming import Names, again
from atasks.transport.journals import Elsewhere, journal_name, lasts
from atasks.transport.pending import NOT_SENT, SPENT, Pending
from atasks.transport.records.contract import key_of_run
from atasks.wire import AT_MOST_ONCE, VERSION, Call, Reply, Status
from atasks.worker.held_call import HeldCall, Reason

if TYPE_CHECKING:
    from atasks.options import TaskOptions
    from atasks.router import Router
    from atasks.transport.contract import Transport

__all__ = ["Journal", "journal_here", "journal_of"]

T = TypeVar("T")

logger = logging.getLogger("atasks.resume")

FOUND: Final = "of its steps found in its journal: "
RUN: Final = 1
"""`Call.orphan`: the run goes on when its caller is gone."""
WARN_BYTES: Final = 16 * 2**20
MAX_BYTES: Final = 128 * 2**20
"""Bytes of results in one journal."""
NEVER: Final = -1
NONE: Final[AbstractSet[str]] = frozenset()
NOTHING: Final[dict[str, Reply]] = {}
"""Nothing is put into it."""
STRICT_SECONDS: Final = 1.0
"""For so long at a time no branch of a run that is held to its journal may ask for any of the results left in it,
while another branch asks for a new step: branches need not take turns as before."""


def journal_here() -> Journal | None:
    """The journal of the call that is being served here; None: there is none, or it does not resume."""
    run = serving_here()
    return None if run is None or run.atask is None or not run.atask.resume else journal_of(run)


def journal_of(run: HeldCall) -> Journal:
    """The journal of a run that resumes, from its first step on. Raises NotSupported."""
    if run.journal is None:
        run.journal = Journal(run)
    return run.journal


class Journal:
    """The steps of a call that resumes: calls that it makes, and others (`once`, `sleep`).

    Each step has an id that is made of what it does (see `Names`), so a run that comes later finds it, in whatever
    order it asks. A step that is not found is done.
    """

    __slots__ = (
        "_all_asked",
        "_cut",
        "_error",
        "_found",
        "_generation",
        "_held",
        "_journals",
        "_left",
        "_missed",
        "_opening",
        "_repeated",
        "_run",
        "_sent",
        "_size",
        "_spent",
        "_strict",
        "_warned",
        "name",
        "names",
    )

    def __init__(self, run: HeldCall) -> None:
        assert run.atask is not None, "the worker looked"
        journals = run.worker.transport.journals
        if journals is None:
            kind = type(run.worker.transport).__name__
            raise NotSupported(f"{run.call.task} resumes, and {kind} keeps no journals: use another transport")
        self.name = journal_name(key_of_run(run.call), run.atask.resume)
        self.names = Names(self.name)
        self._found: Counter[str] | None = None
        """Name -> the number of steps that were found done; None: none was."""
        self._run = run
        self._journals = journals
        self._strict = run.atask.resume == "strict"
        self._opening: tuple[asyncio.Task[None], asyncio.Event] | None = None
        """While it is being opened: many steps may wait for that, each of which may be cancelled."""
        self._generation = NEVER
        """That of the journals when it was opened."""
        self._held: list[Pending] | None = None
        """Calls of branches that wait until it is open; None: none does."""
        self._cut: set[str] | None = None
        """Steps whose awaits have ended before it was open; None: there are none."""
        self._left = NOTHING
        """Steps that other runs have done, and this one has not asked for."""
        self._sent: AbstractSet[str] = NONE
        self._spent: AbstractSet[str] = NONE
        self._repeated: AbstractSet[str] = NONE
        """Steps that this run makes again: a branch asks for what is behind one of them when it has ended."""
        self._missed: AbstractSet[str] = NONE
        """Atasks whose calls were not found while other steps were left."""
        self._all_asked: asyncio.Event | None = None
        """Set when no step is left of those that earlier runs have done; None: nobody waits for that."""
        self._error: BaseException | None = None
        self._size = 0
        self._warned = False

    @property
    def router(self) -> Router:
        """The router of the worker's namespace."""
        return cast("Router", self._run.worker.router)

    @property
    def max_payload(self) -> int:
        """Bytes that a step may have."""
        return self._run.worker.transport.max_payload

    @property
    def worker_id(self) -> str:
        """The worker that runs the call."""
        return self._run.worker.id

    # -- steps

    async def find(self, step: str, task: str) -> tuple[str, Reply | None]:
        """The id that this step has now, and its ending, if it is done. Raises Diverged; PayloadTooLarge if there
        is no room for one more result."""
        await self._is_ready(step)
        is_spent = step in self._spent
        while step in self._spent:
            step = again(step)
        reply = self._asked(step) or self._journals.late(step)
        if reply is not None:
            self._tell_of(self._run, task)
            return step, reply
        if self._size > MAX_BYTES:
            what = f"the results in the journal of {self._run.call.task} have"
            advice = "return references instead, or divide the call"
            raise PayloadTooLarge(over_limit(what, self._size, MAX_BYTES, advice))
        if self._left and is_spent:
            self._repeated |= {step}
        elif self._left and step not in self._sent:
            await self._miss(task)
        return step, None

    async def passed(self, step: str, following: str) -> bool:
        """Say whether an earlier run has gone on from this step to that one, the next try of the same call: then
        nobody asks for this one any more."""
        await self._is_ready(step)
        if following not in self._left and following not in self._sent and following not in self._spent:
            return False
        self._asked(step)
        return True

    async def keep(self, reply: Reply) -> None:
        """The step of that id is done: return when that is safe."""
        self._repeated -= {reply.id}
        self._count(reply)
        await self._in_hand(self._journals.add(self.name, reply))

    def spend(self, step: str) -> None:
        """The step has ended without a result to keep: the next run makes it again, under another id. Not if the
        run ends only here."""
        self._repeated -= {step}
        if not self._stays():
            self._journals.spend(self.name, wire.ended(step, Status.CANCELLED, "its await has ended"))

    async def begun(self, step: str, name: str) -> bool:
        """Say whether an earlier run has begun this step, which is put into the journal otherwise."""
        step, reply = await self.find(step, name)
        if reply is None:
            await self.keep(Reply(VERSION, step, Status.VALUE, b""))
        return reply is not None

    async def request(self, transport: Transport, call: Call, options: TaskOptions) -> Reply:
        """The reply to the call, whose id is that of the step: the one that is on record, or that of a worker."""
        is_own = transport is self._run.worker.transport
        if is_own and not self._is_open and options.on_no_worker != "error":
            # Not by `find`, which wakes a task for each branch: here those of a first run find their replies next.
            call.orphan = RUN
            reply = await self._in_hand(self._made(call, options, sent=False, held=self._open_soon()))
            if reply is not NOT_SENT:
                return reply
        while (reply := await self._asked_or_made(transport, call, options)) is SPENT:
            self._spent |= {call.id}
        return reply

    async def _asked_or_made(self, transport: Transport, call: Call, options: TaskOptions) -> Reply:
        """See `request`. Returns `SPENT` if the call is to be made under another id."""
        call.id, found = await self.find(call.id, call.task)
        if found is not None:
            return found
        try:
            return await self._not_found(transport, call, options)
        finally:
            self._repeated -= {call.id}

    async def _not_found(self, transport: Transport, call: Call, options: TaskOptions) -> Reply:
        """Have a worker answer a call that the journal has no reply to. Returns `SPENT` likewise."""
        sent = call.id in self._sent
        if sent and call.delivery == AT_MOST_ONCE:
            raise WorkerLost(
                f"{call.task} was called by an earlier run: it may have run, and runs at most once", 1
            )
        if transport is not self._run.worker.transport:  # of another broker: nothing there knows of this journal
            try:
                reply = await transport.request(call, options)
            except BaseException:
                self.spend(call.id)
                raise
            if lasts(reply):
                await self.keep(reply)
            else:
                self.spend(call.id)
            return reply
        call.orphan = RUN
        return await self._made(call, options, sent=sent)

    async def _made(
        self, call: Call, options: TaskOptions, *, sent: bool, held: list[Pending] | None = None
    ) -> Reply:
        try:
            reply = await self._journals.request(self.name, call, options, sent=sent, stays=self._stays, held=held)
        except BaseException:
            if self.names.given.get(call.id):
                self.spend(call.id)
            raise
        self._count(reply)
        return reply

    def _count(self, reply: Reply) -> None:
        if lasts(reply):
            self._size += len(reply.payload)
            if self._size > WARN_BYTES and not self._warned:
                self._warned = True
                logger.warning(
                    "%s, call %s, has results of %d bytes in its journal, of at most %d: return references",
                    self._run.call.task,
                    self._run.call.id,
                    self._size,
                    MAX_BYTES,
                )

    def _stays(self) -> bool:
        """Return True if the next run of this call is to have what this one has begun."""
        return self._run.reason in (Reason.DRAINED, Reason.ELSEWHERE) or self._run.worker.is_torn_down

    async def _in_hand(self, work: Awaitable[T]) -> T:
        """Await it; if another worker has the call now, the run ends."""
        try:
            return await work
        except Elsewhere as elsewhere:
            self._run.worker.moved(self._run.call.id, elsewhere.ended)
            raise asyncio.CancelledError from None

    def _asked(self, step: str) -> Reply | None:
        """Note that this run has asked for the step. Returns the reply that earlier runs have left."""
        self.names.given[step] = True
        reply = self._left.pop(step, None)
        if self._all_asked is not None and not self._left:
            self._all_asked.set()
        return reply

    @property
    def _is_new(self) -> bool:
        """True if it is open, and no other run has left anything in it."""
        return self._is_open and not (self._left or self._sent or self._spent or self._size)

    @property
    def _is_open(self) -> bool:
        """True if it is open over the link that there is."""
        return self._opening is None and self._generation == self._journals.generation

    async def _is_ready(self, step: str) -> None:
        """Return when it is open, for this step; if another worker has the call now, the run ends."""
        while not self._is_open:
            try:
                await self._in_hand(self._opened())
            except asyncio.CancelledError:
                self._cut_off(step)
                raise

    def _cut_off(self, step: str) -> None:
        """The await of a step has ended before it was looked for: the next run is not to take it for a new one."""
        if not self._is_open:
            self._cut = (self._cut or set()) | {step}
        elif not (self.names.given.get(step) or step in self._sent or step in self._spent or step in self._left):
            self.spend(step)

    async def _opened(self) -> None:
        """Return when it is open over the link that there is."""
        self._open_soon()
        assert self._opening is not None, "it has begun"
        task, ended = self._opening
        await ended.wait()
        task.result()

    def _open_soon(self) -> list[Pending]:
        """Have it opened over the link that there is. Returns the list of calls that wait for that."""
        generation = self._journals.generation
        if self._opening is None or self._generation != generation:
            self._generation = generation
            ended = asyncio.Event()
            self._journals.hasten(self.name, self._run.call.id)  # the task waits behind all that was begun before
            task = asyncio.get_running_loop().create_task(self._open(), name="atasks journal")
            task.add_done_callback(partial(self._has_opened, ended))
            self._opening = task, ended
        if self._held is None:
            self._held = []
        return self._held

    async def _open(self) -> None:
        entries = await self._journals.open(self.name, self._run.call.id)
        self._sent, self._spent = entries.sent or NONE, entries.spent or NONE
        given, spent = self.names.given, self._spent
        left = {id: reply for id, reply in entries.replies.items() if not given.get(id) and id not in spent}
        self._left = left or NOTHING
        self._size = sum(len(reply.payload) for reply in entries.replies.values())
        call = self._run.call
        if self._left or self._sent:
            logger.info("%s, call %s, resumes: %d of its steps are done", call.task, call.id, len(self._left))
        if entries.refused:
            logger.warning(
                "%s, call %s, does not believe %d messages in its journal: no worker's key in its file has "
                "sealed them, and the steps that they tell of are made again. Leave the line of an old key of a "
                "worker in the files of all workers until the calls that resume have ended which began under it",
                call.task,
                call.id,
                entries.refused,
            )

    def _has_opened(self, ended: asyncio.Event, task: asyncio.Task[None]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if self._opening is not None and self._opening[0] is task:  # else it is opened once more
            self._opening = None
            if failed:
                self._generation = NEVER
            held, self._held = self._held, None
            for pending in held or ():
                self._let_go(pending, task)
            if not failed and self._cut:
                cut, self._cut = self._cut, None
                for step in cut:
                    self._cut_off(step)
        ended.set()

    def _let_go(self, pending: Pending, opening: asyncio.Task[None]) -> None:
        """Send a call that waited until the journal was open, if nothing is known of it, or end its await."""
        step = pending.call.id
        if pending.future.done():  # its await was cancelled: it is not noted as sent
            self._cut_off(step)
        elif opening.cancelled():
            pending.future.cancel()
        elif (error := opening.exception()) is not None:
            pending.future.set_exception(error)
        elif not self._is_new or self._journals.late(step) is not None:
            pending.answered(NOT_SENT)
        else:
            self.names.given[step] = True
            self._journals.send(self.name, pending)

    async def _miss(self, task: str) -> None:
        """A step was not found, and others are left: either they will be asked for, or the code has changed."""
        self._missed |= {task}
        while self._strict and self._left:
            if self._all_asked is None or self._all_asked.is_set():  # else another branch waits for the same
                self._all_asked = asyncio.Event()
            before = len(self._left), len(self._repeated)
            with suppress(TimeoutError):
                async with asyncio.timeout(STRICT_SECONDS):
                    await self._all_asked.wait()
            if before == (len(self._left), 0) and not self._repeated:
                raise Diverged(
                    f"{self._run.call.task} called {task}, which it had not done before, and has not asked for "
                    f"all that it had done ({len(self._left)} left): its code or its inputs have changed; give a "
                    "new version another name (resume='v2')"
                )

    def _tell_of(self, run: HeldCall, step: str) -> None:
        """A step was found. Have those who look at the call see which were, unless the call reports of itself."""
        found = self._found = self._found or Counter()
        found[step] += 1
        if run.progress is None or run.progress.note.startswith(FOUND):
            names = ", ".join(name if count == 1 else f"{count} {name}" for name, count in found.items())
            run.tell(Progress(found.total(), None, sendable(FOUND + names)))

    # -- the end

    def leave(self) -> None:
        """Leave it to the next run."""
        self._stop_opening()
        self._journals.leave(self.name)

    def raised(self, error: BaseException) -> None:
        """The function of the call has raised this."""
        self._error = error

    def ended(self, reply: Reply | None) -> None:
        """The run has ended with this reply; None: nobody is told. Drop the journal, or leave it to the next
        run."""
        run = self._run
        if not self._is_over(reply):
            self.leave()
            return
        self._stop_opening()
        if reply is not None and self._left and self._missed:
            logger.warning(
                "%s, call %s, did not find %s in its journal, and did not ask for all that it has (%d left): its "
                "code or its inputs have changed",
                run.call.task,
                run.call.id,
                ", ".join(sorted(self._missed)[:5]),
                len(self._left),
            )
        self._journals.finish(self.name, run.call.id if reply is not None else "", run.call.id)

    def _stop_opening(self) -> None:
        if self._opening is not None:
            self._opening[0].cancel()

    def _is_over(self, reply: Reply | None) -> bool:
        """Return True if the call will not run again."""
        run = self._run
        if reply is None:
            return run.reason is Reason.WITHDRAWN
        assert run.atask is not None, "it has run"
        retry, error = run.atask.task_options.retry, self._error
        if retry is None or reply.status != Status.RAISED or not isinstance(error, Exception):
            return True
        return retry.is_last(run.call.try_, error)
