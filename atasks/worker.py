"""A worker: runs delivered calls in slots, and replies.

The way of a call: `deliver` (from the transport) -> `_start` when a slot is free -> `_execute` (a task of its own)
-> `_end`, which replies. A nested await parks the run (`Run.park`) and takes a slot again (`Run.unpark`).
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import logging
import os
import socket
import time
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Protocol

from atasks import wire
from atasks.calls import CurrentCall, carried, serving
from atasks.codecs.base import Codec
from atasks.errors import DecodeError, EncodeError, TooManyParked, TransportError, closest
from atasks.failures import encode_failure
from atasks.memory import RecentIds, RecentReplies
from atasks.slots import Slots
from atasks.watchdog import Watchdog
from atasks.wire import AT_MOST_ONCE, VERSION, Call, Reply, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atasks.router import Router
    from atasks.tasks import ATask
    from atasks.transport.base import Transport

__all__ = ["Delivery", "Run", "Worker"]

logger = logging.getLogger("atasks.worker")

CANCEL_PATIENCE: Final = 5.0
"""Seconds that a cancelled run gets to end before a drain leaves it behind."""


class Delivery(Protocol):
    """One delivery of a request. The transport acknowledges it after whichever of these is called, once."""

    def reply(self, reply: Reply) -> None:
        """Send the reply."""

    def drop(self) -> None:
        """Nobody awaits the call: no reply."""

    def give_back(self, call: Call) -> None:
        """Return the call, as it is given here, to the queue for another worker."""

    async def pass_on(self, call: Call) -> Call | None:
        """The worker does not know the atask: the call as it should be given back for a worker that may know it,
        or None if there is no such worker. May wait a little, so that the same worker does not get it at once."""


class Reason(enum.Enum):
    """Why a run was cancelled by the worker."""

    WITHDRAWN = enum.auto()
    """Its await has ended."""
    TIMED_OUT = enum.auto()
    DRAINED = enum.auto()
    PASSED_ON = enum.auto()
    """Not cancelled: this worker does not know its atask."""


class Run:
    """A call that a worker holds: not started, running, or parked."""

    __slots__ = (
        "_current",
        "awaits",
        "call",
        "deadline",
        "deliveries",
        "ended",
        "holds_slot",
        "loop",
        "parked",
        "reason",
        "task",
        "timer",
        "worker",
    )

    def __init__(self, worker: Worker, call: Call, delivery: Delivery, deadline: float | None) -> None:
        self.worker = worker
        self.call = call
        self.deliveries = [delivery]
        self.deadline = deadline
        """Event loop time."""
        self.loop = worker.loop
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.reason: Reason | None = None
        self.awaits = 0
        """Remote awaits made by this run that are pending."""
        self.holds_slot = False
        self.parked = False
        """Whether it ever awaited another call."""
        self.ended = False
        self._current: CurrentCall | None = None

    @property
    def current(self) -> CurrentCall:
        """What `current_call()` shows."""
        if self._current is None:
            call = self.call
            self._current = CurrentCall(
                call.id, call.attempt, self.deadline, call.parent, call.root or call.id, self.worker.state
            )
        return self._current

    def park(self) -> None:
        """A remote await begins: give the slot up. Raises TooManyParked at the worker's bound."""
        if self.awaits == 0:
            worker = self.worker
            if worker.parked >= worker.max_parked:
                raise TooManyParked(
                    f"{self.call.task} may not await another call: this worker holds {worker.parked} parked "
                    "calls, its limit; add workers, raise max_parked, or start fewer calls at once"
                )
            worker.parked += 1
            self.parked = True
            self.awaits = 1
            if self.holds_slot:
                self.holds_slot = False
                worker.slots.give()
        else:
            self.awaits += 1

    async def unpark(self) -> None:
        """A remote await has ended: go on when there is a slot, if it was the last one."""
        self.awaits -= 1
        if self.awaits == 0:
            self.worker.parked -= 1
            if not self.ended:
                await self.worker.slots.retake()
                self._resume()

    def _resume(self) -> None:
        """It was given a slot. Meanwhile it may have ended, or parked again, or resumed otherwise."""
        if self.ended or self.awaits or self.holds_slot:
            self.worker.slots.give()
        else:
            self.holds_slot = True

    def cancel(self, reason: Reason) -> None:
        """Cancel the task that runs it, once."""
        if self.reason is None and self.task is not None:
            self.reason = reason
            self.task.cancel()


class Worker:
    """Serves the calls of one namespace that one transport delivers.

    At most `concurrency` calls run at any time, parked ones not counted; at most `max_parked` are parked.
    """

    def __init__(
        self,
        router: Router,
        transport: Transport,
        *,
        concurrency: int = 100,
        max_parked: int = 50_000,
        state: Any = None,
    ) -> None:
        _check_count("concurrency", concurrency)
        _check_count("max_parked", max_parked)
        self.id = f"{socket.gethostname()[:24]}.{os.getpid()}.{os.urandom(4).hex()}"
        self.router = router
        self.namespace = router.namespace
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.concurrency = concurrency
        self.max_parked = max_parked
        self.state = state
        self.parked = 0
        """Calls that await other calls now."""
        self.bad_messages = 0
        """Requests that could not be read."""
        self.slots = Slots(concurrency, self._fill)
        self.draining = False
        self._held: dict[str, Run] = {}
        self._new_children: deque[Run] = deque()
        self._new_roots: deque[Run] = deque()
        self.unstarted = 0
        """Calls that wait here for a slot."""
        self._cancelled = RecentIds()
        self._finished = RecentReplies() if transport.redelivers else None
        self._empty: asyncio.Event = asyncio.Event()
        self._empty.set()
        self._stopped: asyncio.Future[None] = self.loop.create_future()
        self._drain_task: asyncio.Task[None] | None = None
        self._watchdog = Watchdog(self.loop)

    # -- life

    @property
    def tasks(self) -> list[str]:
        """The names of the atasks that it serves."""
        return self.router.registry.names()

    @property
    def held(self) -> int:
        """Calls in hand: running, parked, or waiting for a slot."""
        return len(self._held)

    async def start(self, queues: Sequence[str] | None = None) -> None:
        """Take calls from now on; `queues` None: those of the atasks that are registered."""
        try:
            await self.transport.serve(self, queues)
        except BaseException:
            self._watchdog.stop()
            raise

    async def wait(self) -> None:
        """Return when it has drained; raise the TransportError that stopped it, if one did."""
        await asyncio.shield(self._stopped)

    def fail(self, error: TransportError) -> None:
        """The transport is lost for good: `wait` raises."""
        if not self._stopped.done():
            self._stopped.set_exception(error)
            self._stopped.exception()  # a worker that nobody waits for is told by the log, not by the collector
            logger.error("worker %s stops: %s", self.id, error)

    async def drain(self, grace: float = 30.0) -> None:
        """Take no more calls, give back those that have not started, let the running ones finish within `grace`
        seconds, then cancel and give back the rest. Safe to call again: every caller waits for the one drain."""
        if self._drain_task is None:
            self._drain_task = self.loop.create_task(self._drain(grace), name="atasks drain")
        await asyncio.shield(self._drain_task)

    async def _drain(self, grace: float) -> None:
        # Stop consuming first; replies, heartbeats and nested calls of running calls go on meanwhile.
        self.draining = True
        try:
            await self.transport.stop_serving(self)
            for run in [*self._new_children, *self._new_roots]:
                if run.reason is None:
                    self._forget(run)
                    run.reason = Reason.DRAINED
                    run.deliveries[0].give_back(run.call)
            self._new_children.clear()
            self._new_roots.clear()
            self.unstarted = 0
            await self._until_empty(grace)
            for run in list(self._held.values()):
                run.cancel(Reason.DRAINED)
            await self._until_empty(CANCEL_PATIENCE)
            for run in self._held.values():
                logger.error("%s ignores its cancellation: left behind by the drain", describe(run.call))
            await self.transport.flush()
        finally:
            self._watchdog.stop()
            if not self._stopped.done():
                self._stopped.set_result(None)

    async def _until_empty(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            pass

    # -- deliveries

    async def answer(self, name: str, content: bytes) -> bytes:
        """The callback of minimal transports: a message with one call in, a message with its reply out."""
        try:
            envelopes = wire.decode(content)
            if len(envelopes) != 1 or not isinstance(envelopes[0], Call):
                raise DecodeError("a request is a message of one Call")
        except DecodeError as error:
            salvaged = [bad.id for bad in wire.salvage(content).bad if bad.id is not None]
            self.count_bad(str(error))
            call_id = salvaged[0] if salvaged else "?"
            return wire.encode([wire.ended(call_id, Status.DECODE_ERROR, f"request refused: {error}", self.id)])
        call = envelopes[0]
        delivery = _Answer(self.loop.create_future())
        self.deliver(call, delivery)
        try:
            reply = await delivery.future
        except asyncio.CancelledError:
            self.cancel(call.id)
            raise
        return wire.encode([reply])

    def deliver(self, call: Call, delivery: Delivery) -> None:
        """A request has arrived: run it as soon as there is a slot. Never raises and never waits."""
        call_id = call.id
        if self._finished is not None:
            held = self._held.get(call_id)
            if held is not None:  # a redelivery of a call in hand: one run owns all its deliveries
                held.deliveries.append(delivery)
                return
            finished = self._finished.get(call_id)
            if finished is not None:
                delivery.reply(finished)
                return
        if call_id in self._cancelled:
            delivery.drop()
            return
        if self.draining:
            delivery.give_back(call)
            return
        run = Run(self, call, delivery, self._deadline(call))
        self._held[call_id] = run
        self._empty.clear()
        if self.router.registry.get(call.task) is None:
            run.task = self.loop.create_task(self._pass_on(run), name="atasks pass on", context=Context())
        elif not self.unstarted and self.slots.free:
            self._start(run)
        else:
            (self._new_roots if call.parent is None else self._new_children).append(run)
            self.unstarted += 1

    def cancel(self, call_id: str) -> None:
        """The await of this call has ended: cancel its run, or do not start it. Never raises."""
        run = self._held.get(call_id)
        if run is None:
            self._cancelled.add(call_id)
        elif run.task is not None:
            run.cancel(Reason.WITHDRAWN)
        else:  # it stays in its queue of unstarted calls, which skips it
            run.reason = Reason.WITHDRAWN
            self.unstarted -= 1
            self._forget(run)
            for delivery in run.deliveries:
                delivery.drop()

    def holds(self, call_id: str) -> bool:
        """Whether the call is in hand here."""
        return call_id in self._held

    def knows(self, call_id: str) -> bool:
        """Whether the call is in hand here, or finished here lately."""
        return call_id in self._held or (self._finished is not None and self._finished.get(call_id) is not None)

    def count_bad(self, reason: str) -> None:
        """Count a request that could not be read; log the first one."""
        self.bad_messages += 1
        if self.bad_messages == 1:
            logger.error("a bad message was refused, and further ones will be without a line here: %s", reason)

    def _deadline(self, call: Call) -> float | None:
        """When the call times out, in event loop time, allowing for the skew that clocks may have."""
        if call.timeout_ms is None:
            return None
        waited = time.time() - call.sent_ms / 1000 - self.transport.clock_skew
        return self.loop.time() + call.timeout_ms / 1000 - max(waited, 0.0)

    # -- running

    def _fill(self) -> None:
        """A slot is free: start the next call, children before new roots, or let the transport ask for more."""
        while self.unstarted and self.slots.free:
            run = (self._new_children or self._new_roots).popleft()
            if run.reason is None:
                self.unstarted -= 1
                self._start(run)
        if not self.unstarted and not self.draining:
            self.transport.slots_changed(self)

    def _start(self, run: Run) -> None:
        deadline = run.deadline
        if deadline is not None:
            if deadline <= self.loop.time():
                self._end(run, self._status(run, Status.TIMED_OUT, "the deadline passed before it could start"))
                return
            run.timer = self.loop.call_at(deadline, run.cancel, Reason.TIMED_OUT)
        self.slots.take()
        run.holds_slot = True
        watchdog = self._watchdog
        watchdog.busy += 1
        if watchdog.asleep:
            watchdog.wake()
        # An empty context: nothing but carried variables travels, loopback included.
        run.task = self.loop.create_task(self._execute(run), name=run.call.task, context=Context())

    async def _execute(self, run: Run) -> None:
        serving.set(run)
        call = run.call
        reply: Reply | None
        started = time.perf_counter()
        try:
            reply = await self._serve(run)
        except asyncio.CancelledError:
            reply = self._cancelled_reply(run)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not self.loop.is_running():
                raise  # the event loop is gone, and this coroutine is being thrown away
            logger.exception("%s could not be served", describe(call))
            message = f"the worker failed to serve {describe(call)} ({_brief(error)}): its log says more"
            reply = self._status(run, Status.FAILED, message)
        reply_us = int((time.perf_counter() - started) * 1e6)
        self._watchdog.busy -= 1
        if reply is None:
            self._end(run, None)
            return
        reply.run_us = reply_us
        reply.parked = run.parked
        if len(reply.payload) > self.transport.max_payload:
            reply = self._status(
                run,
                Status.TOO_LARGE,
                f"the result of {call.task} has {len(reply.payload)} bytes, over the limit of "
                f"{self.transport.max_payload}: return a reference to it instead",
            )
        self._end(run, reply)

    async def _serve(self, run: Run) -> Reply | None:
        """Decode, run, encode."""
        call = run.call
        codec = self.router.codec
        task: ATask[..., Any] = self.router.registry.get(call.task).task  # type: ignore[union-attr]  # deliver looked
        try:
            args, kwargs = await self._arguments(call, codec, task)
        except DecodeError as error:
            return self._status(run, Status.DECODE_ERROR, str(error))
        try:
            result = task.local(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not self.loop.is_running():
                raise
            return await self._raised(run, error, codec)
        finally:
            del args, kwargs
        try:
            payload = _as_bytes(await codec.encode(result), codec)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            message = f"the result of {call.task}, a {type(result).__name__}, cannot be encoded by {codec.name}"
            return self._status(run, Status.ENCODE_ERROR, f"{message} ({_brief(error)})")
        return Reply(VERSION, call.id, Status.VALUE, payload, codec.name, self.id)

    async def _arguments(self, call: Call, codec: Codec, task: ATask[..., Any]) -> tuple[Any, Any]:
        """The decoded arguments, with the carried context variables set; a DecodeError if that cannot be."""
        if call.codec != codec.name:
            raise DecodeError(
                f"{call.task} was called with codec {call.codec!r}, and this worker has {codec.name!r}: "
                "construct the same codec on both sides"
            )
        try:
            if call.context:
                for name, value in call.context.items():
                    variable = carried.get(name)
                    if variable is not None:
                        variable.set(await codec.decode(value))
            return await codec.decode_arguments(call.payload, task.local)
        except (asyncio.CancelledError, DecodeError):
            raise
        except Exception as error:
            message = f"the arguments of {call.task} cannot be decoded by {codec.name} ({_brief(error)})"
            raise DecodeError(message) from error

    async def _raised(self, run: Run, error: BaseException, codec: Codec) -> Reply:
        call = run.call
        hop = f"atasks: {describe(call)}, host {socket.gethostname()}, pid {os.getpid()}"
        payload = await encode_failure(error, codec, hop=hop)
        return Reply(VERSION, call.id, Status.RAISED, payload, codec.name, self.id)

    async def _pass_on(self, run: Run) -> None:
        """The atask of this call is not known here: have another worker run it, or say so. Takes no slot."""
        call = run.call
        reply: Reply | None = None
        try:
            changed = await run.deliveries[0].pass_on(call)
            if changed is not None:
                run.call = changed
                run.reason = Reason.PASSED_ON
            else:
                near = closest(call.task, self.tasks)
                hint = (
                    f"did you mean {' or '.join(map(repr, near))}?"
                    if near
                    else f"it serves {len(self.tasks)} atasks"
                )
                reply = self._status(
                    run,
                    Status.UNKNOWN_TASK,
                    f"no worker here knows {call.task!r} ({hint}): start a worker with the module that defines it",
                )
        except asyncio.CancelledError:
            reply = self._cancelled_reply(run)
        self._end(run, reply)

    def _cancelled_reply(self, run: Run) -> Reply | None:
        task = describe(run.call)
        match run.reason:
            case Reason.TIMED_OUT:
                return self._status(run, Status.TIMED_OUT, f"{task} was cancelled at its deadline")
            case None:
                return self._status(run, Status.CANCELLED, f"{task} was cancelled at the worker")
            case Reason.DRAINED if run.call.delivery == AT_MOST_ONCE:
                return self._status(run, Status.WORKER_LOST, f"{task} was cut off by its worker's shutdown")
            case _:
                return None

    def _status(self, run: Run, status: int, message: str) -> Reply:
        return wire.ended(run.call.id, status, message, self.id)

    def _end(self, run: Run, reply: Reply | None) -> None:
        """Reply on every delivery of the call, or drop it, or give it back; then free the slot."""
        if run.timer is not None:
            run.timer.cancel()
        self._forget(run)
        run.ended = True
        if reply is not None:
            if self._finished is not None:
                self._finished.add(run.call.id, reply)
            for delivery in run.deliveries:
                delivery.reply(reply)
        elif run.reason in (Reason.DRAINED, Reason.PASSED_ON):
            run.deliveries[0].give_back(run.call)
            for delivery in run.deliveries[1:]:
                delivery.drop()
        else:
            for delivery in run.deliveries:
                delivery.drop()
        if run.holds_slot:
            run.holds_slot = False
            self.slots.give()

    def _forget(self, run: Run) -> None:
        del self._held[run.call.id]
        if not self._held:
            self._empty.set()


class _Answer:
    """The delivery of a minimal transport: the reply is what its callback returns."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Reply]) -> None:
        self.future = future

    def reply(self, reply: Reply) -> None:
        if not self.future.done():
            self.future.set_result(reply)

    def drop(self) -> None:
        self.future.cancel()

    async def pass_on(self, call: Call) -> Call | None:
        return None

    def give_back(self, call: Call) -> None:
        message = f"{describe(call)} met a worker that shuts down"
        self.reply(wire.ended(call.id, Status.WORKER_LOST, message))


def describe(call: Call) -> str:
    """How logs, notes and errors name a call."""
    return f"task {call.task!r}, call {call.id}"


def _as_bytes(data: Any, codec: Codec) -> bytes:
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise EncodeError(f"{codec.name}.encode returned {type(data).__name__} instead of bytes")


def _brief(error: BaseException) -> str:
    """A third party's error in one line, without the values that it may quote at length."""
    try:
        text = str(error).split("\n", 1)[0]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value}: at least 1")
