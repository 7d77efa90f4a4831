"""Keeping what becomes of calls at the hub, as the processes around it do it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from atasks import wire
from atasks.errors import DecodeError, NotConnected
from atasks.options import TaskOptions
from atasks.transport.backends.local.conversation import Conversation
from atasks.transport.backends.local.messages import (
    Add,
    Answer,
    Begin,
    Found,
    JournalFound,
    Message,
    News,
    Outcome,
    QueueState,
    Read,
    Table,
    Touch,
    Watch,
)
from atasks.transport.records.contract import Record, Records, no_room, unknown_run
from atasks.transport.unserved import no_worker
from atasks.wire import VERSION, Call, Kept, Reply, Status

if TYPE_CHECKING:
    from atasks.transport.backends.local.calling import Calling

__all__ = ["LocalRecords"]


Answers = Answer | Found | Table | QueueState | JournalFound
"""Answers of the hub to questions with a number."""


class LocalRecords(Records):
    """The records of one namespace at the hub, which forgets them at its end.

    What is asked while there is no hub, or was not answered by one that is gone, is asked of the next one: that
    one knows of no record, so `begin` begins there, and everything else is an UnknownRun.
    """

    def __init__(
        self, calling: Calling, usable: Callable[[asyncio.AbstractEventLoop], bool], expires: float
    ) -> None:
        """`usable(loop)`: whether what is awaited in that event loop can be answered."""
        super().__init__(expires)
        self._calling = calling
        self._usable = usable
        self._link: Conversation | None = None
        self._refusal: str | None = "this transport is not connected: await its connect() first"
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._watches: dict[str, list[_Watcher]] = {}

    # -- the connection

    def attach(self, link: Conversation) -> None:
        """Ask this hub from now on, also what no other one has answered. It knows nothing of what was before."""
        self._link = link
        self._refusal = None
        for call_id in self._watches:
            link.send(Watch(call_id, True))
        for question in self._questions.values():
            link.send(question.message, question.size)
        self._wake_all()

    def detach(self) -> None:
        """The hub is gone: wait for the next one."""
        self._link = None

    def close(self, reason: str) -> None:
        """There will be no other hub: what waits for one ends in NotConnected."""
        self._link = None
        self._refusal = reason
        for question in self._questions.values():
            if not question.answer.done():
                question.answer.set_exception(NotConnected(reason))
        self._wake_all()

    def answered(self, message: Answers) -> None:
        """The hub has answered."""
        question = self._questions.get(message.number)
        if question is not None and not question.answer.done():
            question.answer.set_result(message)

    def news(self, message: News) -> None:
        """Something has changed."""
        for watcher in self._watches.get(message.id, ()):
            if message.ended or watcher.steps:
                watcher.event.set()

    def _wake_all(self) -> None:
        for watchers in self._watches.values():
            for watcher in watchers:
                watcher.event.set()

    # -- the contract

    async def begin(self, call: Call, options: TaskOptions, *, delay: float = 0.0, named: str = "") -> str:
        while (room := self._calling.backpressure.room()) is not None:
            await room
        queue = self._calling.queue_of(options)
        wait = options.on_no_worker != "error" or delay > 0
        milliseconds = self.milliseconds(options, delay)
        try:
            answer = await self.ask(
                lambda number: Begin(number, queue, call, options.priority, wait, milliseconds), len(call.payload)
            )
        except asyncio.CancelledError:
            if self._link is not None:  # nobody knows its id
                withdrawn = wire.ended(call.id, Status.CANCELLED, "its submission was cancelled")
                self._link.send(Add(0, call.id, withdrawn))
            raise
        if isinstance(answer, Answer) and answer.outcome == Outcome.NONE_SERVES:
            raise no_worker(queue, paused=answer.reason == "paused")
        if isinstance(answer, Answer) and answer.outcome == Outcome.TAKEN:
            return answer.reason
        _check(answer, call.id)
        return call.id

    async def again(self, record: Record, call: Call, options: TaskOptions) -> bool:
        queue = self._calling.queue_of(options)
        answer = await self.ask(
            lambda number: Begin(number, queue, call, options.priority, True, record.head.expires_ms, True),
            len(call.payload),
        )
        if isinstance(answer, Answer) and answer.outcome == Outcome.TAKEN:
            return False
        _check(answer, record.id)
        return True

    async def add(self, call_id: str, reply: Reply, *, quiet: bool = False) -> None:
        answer = await self.ask(lambda number: Add(number, call_id, reply, quiet), len(reply.payload))
        _check(answer, call_id)

    async def touch(self, call_id: str) -> None:
        _check(await self.ask(lambda number: Touch(number, call_id)), call_id)

    async def read(self, call_id: str) -> Record:
        found = await self.ask(lambda number: Read(number, call_id))
        if not isinstance(found, Found):
            _check(found, call_id)
            raise unknown_run(call_id)
        record = Record(Kept(VERSION, call_id, found.queue, found.expires_ms), found.call)
        for reply in found.replies:
            record.add(reply)
        return record

    @asynccontextmanager
    async def watch(self, call_id: str, *, steps: bool) -> AsyncIterator[asyncio.Event]:
        watcher = _Watcher(asyncio.Event(), steps)
        watchers = self._watches.setdefault(call_id, [])
        watchers.append(watcher)
        if len(watchers) == 1 and self._link is not None:
            self._link.send(Watch(call_id, True))
        try:
            yield watcher.event
        finally:
            watchers.remove(watcher)
            if not watchers:
                del self._watches[call_id]
                if self._link is not None:
                    self._link.send(Watch(call_id, False))

    async def ask(self, make: Callable[[int], Message], size: int = 0) -> Answers:
        """The hub's answer, or that of the next one. Raises NotConnected if there is none to come."""
        loop = asyncio.get_running_loop()
        if self._refusal is not None or not self._usable(loop):
            raise NotConnected(self._refusal or "this transport is connected in another event loop, or was forked")
        number = next(self._numbers)
        question = self._questions[number] = _Question(make(number), size, loop.create_future())
        if self._link is not None:
            self._link.send(question.message, size)
        try:
            return await question.answer
        finally:
            del self._questions[number]


class _Question:
    """A question to the hub that it has not answered."""

    __slots__ = ("answer", "message", "size")

    def __init__(self, message: Message, size: int, answer: asyncio.Future[Answers]) -> None:
        self.message = message
        self.size = size
        self.answer = answer


class _Watcher:
    """A waiter for news of a call."""

    __slots__ = ("event", "steps")

    def __init__(self, event: asyncio.Event, steps: bool) -> None:
        self.event = event
        self.steps = steps


def _check(answer: Answers, call_id: str) -> None:
    """Raise what the answer stands for."""
    outcome = answer.outcome if isinstance(answer, Answer) else Outcome.DONE
    if outcome == Outcome.UNKNOWN:
        raise unknown_run(call_id)
    if outcome == Outcome.NO_ROOM:
        raise no_room(call_id)
    if outcome != Outcome.DONE:
        raise DecodeError(answer.reason if isinstance(answer, Answer) else "")
