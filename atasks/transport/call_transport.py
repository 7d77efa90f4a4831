"""The caller's half of a transport that moves `Call` and `Reply` objects."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, ClassVar, Final

from atasks import wire
from atasks.errors import CallConnectionLost, NotConnected, NotSupported
from atasks.options import TaskOptions
from atasks.tracking.counters import (
    ENDED,
    KEPT,
    LAST_BUCKET,
    LONGEST,
    OTHER,
    RECEIVED,
    RUN,
    RUN_US,
    WITHDRAWN,
    failed,
    replied,
)
from atasks.transport.contract import Transport
from atasks.transport.pending import NOT_SENT, SPENT, Pending, PlainPending
from atasks.transport.whereabouts import placed, timed_out
from atasks.wire import Call, Credit, End, Item, Query, QueryAnswer, Reply, Report, Status

if TYPE_CHECKING:
    from atasks.transport.stream_receiver import StreamReceiver

__all__ = ["CallTransport"]

WORKER_LOST: Final = Status.WORKER_LOST
ENDED_BY_CALLER: Final = frozenset({Status.TIMED_OUT, Status.CANCELLED})
"""The endings of a call that are due to whoever made it, and not to what it does."""
LOCATE_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 0.01
LOCATE_SHARE: Final = 0.25
"""The part of a call's time, at its end, in which the caller asks where the call is."""


class CallTransport(Transport):
    """A transport that moves `Call` and `Reply` objects. A subclass hands calls over in `_post` (without waiting),
    gives every reply to `_resolve`, and tells workers of ended awaits in `_withdraw`. One that supports "streams"
    gives every `Item` and `End` to `_take_in`, and hands a `Credit` to its worker in `_grant`.

    Guarantees: every await ends in one reply (later ones are dropped), in `CallTimeout` at its deadline by this
    side's clock, in `CancelledError` when its task is cancelled, or in `CallConnectionLost` at disconnect.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"cancel", "at_most_once", "no_worker"})

    _is_here: ClassVar[bool] = False
    """True if `_locate` finds a call at once."""

    def __init__(self, namespace: str = "default") -> None:
        super().__init__(namespace)
        self._pending: dict[str, Pending] = {}
        self._asked: dict[str, Callable[[QueryAnswer], object]] = {}
        """Token of a question -> who wants the answers."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._no_context = Context()
        """For timers: they keep their context until their time has come, also if they are cancelled, and that of a
        call which makes calls has its payload."""
        self._over: asyncio.Future[None] | None = None
        """Done when it is disconnected; None: it never was connected."""
        self._refusal: str | None = f"{type(self).__name__} is not connected: await its connect() first"

    def usable(self, loop: asyncio.AbstractEventLoop) -> bool:
        return self._loop is loop

    def _opened(self) -> None:
        """Call at the end of `connect`: awaits of the running event loop are welcome."""
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._refusal = None
        _open.add(self)

    async def _closing(self, reason: str) -> None:
        """Call at the start of `disconnect`, before `_closed`: no more awaits, and those that are pending are to
        say where their calls are. Asks for that, and waits for the answers for at most `LOCATE_SECONDS`."""
        self._refuse(reason)
        loop, pendings = asyncio.get_running_loop(), self.pendings()
        until = loop.time() + LOCATE_SECONDS
        for pending in pendings:
            self._locate(pending)
        while pendings and loop.time() < until:  # an event would have to be set for each call that ends
            await asyncio.sleep(LOOK_SECONDS)
            pendings = [item for item in pendings if not (item.future.done() or self._is_located(item))]

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        self._loop = None
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        _open.discard(self)

    def _closed(self, reason: str) -> None:
        """Call in `disconnect`, and where nothing restores the connection: no more awaits, and those that are
        pending end here. Workers are told of those whose runs are not to go on without a caller."""
        self._refuse(reason)
        for pending in list(self._pending.values()):
            if not pending.future.done():
                if self._is_here:
                    self._locate(pending)
                pending.fail(CallConnectionLost(f"{reason}: the outcome of {pending.call.task} cannot be known"))
                if pending.call.orphan == 0:
                    self._withdraw(pending)

    async def pause(self, seconds: float) -> bool:
        if self._over is None:
            return False
        await asyncio.wait((self._over,), timeout=seconds)
        return not self._over.done()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "request" in cls.__dict__ and "begin_request" not in cls.__dict__:  # what overrides it is to be asked
            cls.begin_request = Transport.begin_request  # type: ignore[method-assign]

    def begin_request(self, call: Call, options: TaskOptions) -> PlainPending | None:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        return None if options.retry is not None or self._room() is not None else self._open_request(call, options)

    def _open_request(
        self, call: Call, options: TaskOptions, room: asyncio.Future[None] | None = None
    ) -> PlainPending:
        """Keep a call until its await ends, and hand it over, unless there is no room for it."""
        loop = self._loop  # what runs: asking for that costs a system call before Python 3.12
        assert loop is not None, "there is one wherever there is no refusal"
        pending = self._pending[call.id] = PlainPending(call, options, loop.create_future())
        row = self.counters.rows.get(call.task)
        if row is None:
            row = self.counters.row(call.task)
        row[RECEIVED] += 1
        if self.watching is not None:
            self.watching.sent(call, options.queue or "")
        pending.began = time.perf_counter()
        try:
            if call.timeout_ms is not None:
                self._set_timer(pending, call.timeout_ms / 1000)
            if room is None:
                self._post(pending)
        except BaseException as error:
            self.fail_request(pending, error)
            raise
        return pending

    def end_request(self, pending: PlainPending, reply: Reply) -> None:
        call = pending.call
        # Not by `replied`, which would cost a function call.
        took = int((time.perf_counter() - pending.began) * 1_000_000)
        row = self.counters.rows.get(call.task)
        if row is None:
            row = self.counters.row(call.task)
        row[RUN_US] += took
        row[RUN + (took.bit_length() if took < LONGEST else LAST_BUCKET)] += 1
        row[ENDED + (reply.status if reply.status < WITHDRAWN else OTHER)] += 1
        if pending.timer is not None:
            pending.timer.cancel()
        del self._pending[call.id]

    def fail_request(self, pending: PlainPending, error: BaseException) -> None:
        call = pending.call
        self.counters.row(call.task)[ENDED + failed(error)] += 1
        if isinstance(error, asyncio.CancelledError):
            self._withdraw(pending)
        if pending.timer is not None:
            pending.timer.cancel()
        del self._pending[call.id]

    async def request(self, call: Call, options: TaskOptions) -> Reply:
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        room = self._room()
        pending = self._open_request(call, options, room)
        try:
            if room is not None:
                await self._wait_for_room(pending, room)
                if not pending.future.done():
                    self._post(pending)
            reply = await pending.future
        except BaseException as error:
            self.fail_request(pending, error)
            del pending  # the traceback has this frame, and its future has the error
            raise
        self.end_request(pending, reply)
        return reply

    async def hand_over(self, call: Call, options: TaskOptions, *, address: str = "", delay: float = 0.0) -> None:
        """Return when the request of a call is safe that nobody awaits, and whose replies go to this address. It
        may begin after `delay` seconds. Raises as `request` does, but for the deadline."""
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        pending = Pending(call, options, asyncio.get_running_loop().create_future())
        pending.kept, pending.address, pending.delay = True, address, delay
        self._pending[call.id] = pending
        row = self.counters.row(call.task)
        row[RECEIVED] += 1
        try:
            while (room := self._room()) is not None:
                await room
            if not pending.future.done():
                self._post(pending)
            await pending.future
            row[ENDED + KEPT] += 1
        except BaseException as error:
            row[ENDED + failed(error)] += 1
            if isinstance(error, asyncio.CancelledError):
                self._withdraw(pending)
            raise
        finally:
            del self._pending[call.id]

    async def request_on_record(
        self,
        call: Call,
        options: TaskOptions,
        address: str,
        *,
        sent: bool,
        stays: Callable[[], bool],
        held: list[Pending] | None = None,
    ) -> Reply:
        """Have a worker answer a call whose reply is kept at this address too: see `Journals.request`. Returns
        `SPENT` if an equal call was awaited here, and ended for its caller alone."""
        # This is `request` once more, and so is `open_stream` in part: what they share would be a function call,
        # or two, for each plain call. Change them together.
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        loop, began = asyncio.get_running_loop(), time.perf_counter()
        pending = Pending(call, options, loop.create_future())
        pending.address = address
        try:
            if held is not None:
                held.append(pending)
            elif (shared := await self._begin_on_record(pending)) is not None:
                return shared
            elif not pending.future.done():
                if sent:
                    self._seek(pending)
                else:
                    self._post(pending)
            reply = await pending.future
            if reply is not NOT_SENT:
                replied(self.counters.row(call.task), reply.status, began)
            return reply
        except BaseException as error:
            if self._pending.get(call.id) is pending:
                self.counters.row(call.task)[ENDED + failed(error)] += 1
                if isinstance(error, asyncio.CancelledError):
                    pending.goes_on = stays()
                    if not pending.goes_on:
                        self._withdraw(pending)
            raise
        finally:
            pending.future.cancel()  # nothing happens, unless this await was cancelled before the call was sent
            if pending.timer is not None:
                pending.timer.cancel()
            if self._pending.get(call.id) is pending:
                del self._pending[call.id]

    async def _begin_on_record(self, pending: Pending) -> Reply | None:
        """Count a call in, and return when it may be handed over. Returns that of an equal one: see `_shared`."""
        call, loop = pending.call, asyncio.get_running_loop()
        until = None if call.timeout_ms is None else loop.time() + call.timeout_ms / 1000
        while (other := self._pending.get(call.id)) is not None:  # two calls of one idempotency key make this step
            await asyncio.wait([other.future], timeout=None if until is None else until - loop.time())
            if not other.future.done():
                raise timed_out(call, other.where, loop.time())
            if until is not None:
                call.timeout_ms = max(int((until - loop.time()) * 1000), 0)
            if not other.goes_on:
                return _shared(other.future)
        if self._refusal is not None:
            raise CallConnectionLost(f"{self._refusal}: the outcome of {call.task} cannot be known")
        self._count_in(pending, None if until is None else max(until - loop.time(), 0.0))
        room = self._room()
        if room is not None:
            await self._wait_for_room(pending, room)
        return None

    def _count_in(self, pending: Pending, seconds: float | None) -> None:
        """A call on record is about to be sent, and may take so many seconds; None: any time."""
        call = pending.call
        self._pending[call.id] = pending
        self.counters.row(call.task)[RECEIVED] += 1
        if self.watching is not None:
            self.watching.sent(call, pending.options.queue or "")
        if seconds is not None:
            self._set_timer(pending, seconds)

    def send_on_record(self, pending: Pending) -> None:
        """Send a call that was held and is awaited still: see `Journals.send`."""
        call = pending.call
        if self._refusal is not None or call.id in self._pending or self._room() is not None:
            pending.answered(NOT_SENT)
            return
        try:
            self._count_in(pending, None if call.timeout_ms is None else call.timeout_ms / 1000)
            self._post(pending)
        except Exception as error:
            pending.fail(error)

    def pendings(self) -> list[Pending]:
        return [pending for pending in self._pending.values() if not pending.followed]

    def end_await(self, pending: Pending) -> None:
        if not pending.future.done():
            message = f"{wire.describe(pending.call)} was cancelled by request, as `atasks cancel` does"
            pending.answered(wire.ended(pending.call.id, Status.CANCELLED, message))
            self._withdraw(pending)

    # -- questions to workers

    def ask(self, query: Query, heard: Callable[[QueryAnswer], object] | None) -> None:
        """Put a question to the workers of the namespace. `heard` gets each answer, until `unask`; None: who asked
        before under this token. Not waited for: an answer may come late, or never."""
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        if heard is not None:
            self._asked[query.token] = heard
        self._send_query(query)

    def unask(self, query: Query) -> None:
        """Want no more answers to a question."""
        self._asked.pop(query.token, None)

    def _send_query(self, query: Query) -> None:
        """Hand the question to every worker that it is meant for, without waiting."""
        raise NotSupported(f"{type(self).__name__} cannot ask workers about themselves")

    @asynccontextmanager
    async def listen(self, token: str, heard: Callable[[QueryAnswer], object]) -> AsyncIterator[None]:
        """A block in which events that workers tell under that token are heard. Raises a TransportError where that
        cannot be any more."""
        self._asked[token] = heard
        try:
            yield
        finally:
            self._asked.pop(token, None)

    def _hear(self, answer: QueryAnswer) -> None:
        """An answer has arrived."""
        heard = self._asked.get(answer.token)
        if heard is not None:
            heard(answer)

    async def _wait_for_room(self, pending: Pending, room: asyncio.Future[None]) -> None:
        """Return when the call may be handed over, or has ended: its deadline holds here too."""
        while True:
            await asyncio.wait((room, pending.future), return_when=asyncio.FIRST_COMPLETED)
            if pending.future.done() or (again := self._room()) is None:
                return
            room = again

    def _room(self) -> asyncio.Future[None] | None:
        """Return a future to await before asking again whether more may be handed over; None: more may be."""
        return None

    async def open_stream(self, receiver: StreamReceiver) -> None:
        """Have a worker run a stream, whose items go to `receiver`. Raises as `request` does. Its consumer calls
        `close_stream` in any case."""
        if self._refusal is not None:
            raise NotConnected(self._refusal)
        call, loop = receiver.call, asyncio.get_running_loop()
        pending = Pending(call, receiver.options, loop.create_future())
        pending.receiver = receiver
        self._pending[call.id] = pending
        self.counters.row(call.task)[RECEIVED] += 1
        if self.watching is not None:
            self.watching.sent(call, receiver.options.queue or "")
        receiver.opened(pending)
        if call.timeout_ms is not None:
            self._set_timer(pending, call.timeout_ms / 1000)
        room = self._room()
        if room is not None:
            await self._wait_for_room(pending, room)
        if not pending.future.done():  # else reading the stream raises how it ended
            self._post(pending)

    def close_stream(self, pending: Pending) -> None:
        """The consumer wants no more of it: tell the workers, unless it has ended. Safe to call again."""
        if pending.timer is not None:
            pending.timer.cancel()
        if self._pending.pop(pending.call.id, None) is None:
            return
        row, future = self.counters.row(pending.call.task), pending.future
        if not future.done():
            row[ENDED + WITHDRAWN] += 1
            future.cancel()
            self._withdraw(pending)
        elif (error := future.exception()) is not None:
            row[ENDED + failed(error)] += 1
        else:
            replied(row, future.result().status)

    def forsake_streams(self) -> None:
        """The current task leaves a block: streams that it has read, or a task that has ended, nobody reads on."""
        for pending in list(self._pending.values()):
            if pending.receiver is not None:
                pending.receiver.forsake(asyncio.current_task())

    def _reported(self, report: Report) -> None:
        """A call says how far it is."""
        pending = self._pending.get(report.id)
        if pending is not None:
            pending.reported(report)

    def _take_in(self, envelope: Item | End) -> None:
        """Items of a stream have arrived, or its end; those of one that nobody reads (any more) are dropped."""
        pending = self._pending.get(envelope.id)
        if pending is not None and pending.receiver is not None:
            pending.receiver.receive(envelope)

    def _grant(self, credit: Credit, worker: str) -> None:
        """Hand this to the worker of that id, without waiting. It may get lost, if a later one arrives."""
        raise NotImplementedError(f"{type(self).__name__} supports streams and has no _grant()")

    @abstractmethod
    def _post(self, pending: Pending) -> None:
        """Hand the call over to the wire, without waiting."""

    def _seek(self, pending: Pending) -> None:
        """Await a call that another run has sent, without waiting here. It is sent again if it is nowhere."""
        self._post(pending)

    @abstractmethod
    def _withdraw(self, pending: Pending) -> None:
        """The await has ended without a reply: tell the workers, without waiting."""

    def _resolve(self, reply: Reply) -> None:
        """A reply has arrived; one that nobody awaits (any more) is dropped."""
        pending = self._pending.get(reply.id)
        if pending is not None:
            if reply.status == WORKER_LOST:
                reply = placed(reply, pending.place)
            if not pending.future.done():  # this is `answered`, without a call
                pending.future.set_result(reply)

    def _set_timer(self, pending: Pending, seconds: float) -> None:
        """End the await after so many seconds, and find out a little before where the call is."""
        assert self._loop is not None, "it is connected"
        pending.deadline = until = self._loop.time() + seconds
        lead = min(LOCATE_SECONDS, seconds * LOCATE_SHARE)
        pending.timer = self._loop.call_at(
            until - lead, self._nearly_expired, pending, until, context=self._no_context
        )

    def _nearly_expired(self, pending: Pending, until: float) -> None:
        if self._loop is not None and not pending.future.done():
            pending.timer = self._loop.call_at(until, self._expire, pending, context=self._no_context)
            self._locate(pending)

    def _locate(self, pending: Pending) -> None:
        """Find out where the call is, without waiting: its await is about to end."""

    def _is_located(self, pending: Pending) -> bool:
        """Return True if no more is to be expected of `_locate`."""
        return pending.where is not None

    def _expire(self, pending: Pending) -> None:
        if not pending.future.done():
            now = asyncio.get_running_loop().time()
            pending.future.set_exception(timed_out(pending.call, pending.where, now))
            self._withdraw(pending)


def _shared(future: asyncio.Future[Reply]) -> Reply:
    """Return the reply that counts for whoever else awaits the same call; `SPENT`: it ended for its caller."""
    if future.cancelled() or future.exception() is not None:
        return SPENT
    reply = future.result()
    return SPENT if reply.status in ENDED_BY_CALLER else reply


_open: weakref.WeakSet[CallTransport] = weakref.WeakSet()


def _after_fork() -> None:
    """A connection shared with the parent process would mix both conversations: the child must open its own."""
    for transport in list(_open):
        transport._refusal = (
            "this process was forked from one that had connected; connections do not survive a fork: "
            "enter atasks.connect(url) in the child"
        )
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)
