"""Keeping what becomes of calls in a database; their requests are at the broker nevertheless.

The order of what is done, so that nothing is lost that was confirmed to anybody:

1. The record is committed, with the call in it. 2. The request is published, and the broker confirms it.
3. `submit` returns. 4. A worker runs the call. 5. Its reply is committed to the record. 6. The request is
acknowledged.

Whoever dies between 1 and 3 has told nobody; between 4 and 6 the broker delivers the request again, and the record
says whether it has to run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from atasks import wire
from atasks.current import serving
from atasks.errors import DecodeError, NotConnected, RecordsUnavailable
from atasks.options import TaskOptions
from atasks.signing import SealError
from atasks.transport.backends.amqp.records import AMQPRecords, Sender
from atasks.transport.records.contract import Record, Records, RunInfo, base_of, record_of, unknown_run
from atasks.transport.records.postgres.database import Database
from atasks.transport.records.postgres.rows import Ended, Found, Look, New, Next, Noted, Wanted
from atasks.wire import AT_MOST_ONCE, VERSION, Call, Kept, Reply

if TYPE_CHECKING:
    from atasks.transport.backends.amqp.session import Session

__all__ = ["StoredRecords"]

LEAST_MS: Final = 1000
"""For so long a record stays at least: its call has to come to a worker, who uses it."""
LONGEST_PATIENCE: Final = 3600.0
"""Seconds after which one who waits uses the record, at the latest: nothing else is asked meanwhile."""
CALL: Final = ">"
"""Before the id of a call that takes the place of another one: the name of its request among the notes."""
PROMPT: Final = 1.0
"""Seconds that a call waits for the word of a database which may be away, before it begins without."""
SENT_LOOKS: Final = 8
SENT_PAUSE: Final = 0.25
"""Seconds between two looks whether the call of a record was sent."""


class StoredRecords(Records):
    """The records of one namespace in a database. Those that are at the broker still are read there."""

    patience = LONGEST_PATIENCE

    def __init__(self, database: Database, session: Session, sender: Sender, broker: AMQPRecords) -> None:
        super().__init__(broker.expires)
        self.database = database
        self._session = session
        self._sender = sender
        self._broker = broker

    # -- the contract

    async def begin(self, call: Call, options: TaskOptions, *, delay: float = 0.0, named: str = "") -> str:
        session = self._session
        queue = session.topology.check(session.queue_of(options))
        if options.on_no_worker == "error":
            await self._sender.require_worker(queue)
        milliseconds, base = self.milliseconds(options, delay), base_of(call.id)
        if not milliseconds and base is None:
            await self._sender.hand_over(call, options, address=session.topology.nobody, delay=delay)
            return call.id
        keep_ms = max(milliseconds, LEAST_MS) if milliseconds else 0
        owner = None if session.seals is None else session.seals.voice()
        request = self._sealed(
            call.id, call.id, wire.encode([Kept(VERSION, call.id, queue, keep_ms), call]), owner
        )
        new = New(call.id, base, named or call.task, queue, keep_ms, int(delay * 1000), base is None, request)
        held = await self.database.begin(new)
        if held.id != call.id:
            return held.id if held.sent else await self._joined(new)
        if owner is not None:
            self._broker.belongs(call.id, owner)
        try:
            await self._sender.hand_over(call, options, address=session.topology.stored, delay=delay)
        except BaseException:
            with suppress(NotConnected):
                self.database.drop_soon(call.id)
            raise
        if base is not None:  # others with this key look whether it was sent
            await self.database.sent(call.id)
        return call.id

    async def _joined(self, new: New) -> str:
        """The id of the call that has the key of a new one. Whoever submitted it may have died before it was sent:
        then it is sent now."""
        looks = 0
        while True:
            await asyncio.sleep(SENT_PAUSE)
            held = await self.database.begin(new)
            looks += 1
            if held.id == new.id or looks == SENT_LOOKS:  # the former: the other one was given up
                break
            if held.sent:
                return held.id
        found = await self.database.read(held.id, patient=False)
        record = None if found is None else self._record(held.id, found)
        if record is not None and (record.call.delivery != AT_MOST_ONCE or held.id == new.id):
            call = record.call
            options = TaskOptions(queue=record.head.queue, orphan="run", batch=False)
            delay = max(0.0, call.sent_ms / 1000 - time.time())
            await self._sender.hand_over(call, options, address=self._session.topology.stored, delay=delay)
            await self.database.sent(held.id)
        return held.id

    async def again(self, record: Record, call: Call, options: TaskOptions) -> bool:
        if not record.address:
            return await self._broker.again(record, call, options)
        note = CALL + call.id
        request = self._sealed(record.id, note, wire.encode([call]), self._broker.owner(record.id))
        if not await self.database.again(Next(record.id, record.call.id, call.id, note, request)):
            if await self.database.look(record.id) is None:
                raise unknown_run(record.id)
            return False
        await self._sender.hand_over(call, options, address=record.address)
        return True

    async def add(self, call_id: str, reply: Reply, *, quiet: bool = False) -> None:
        owner = self._broker.owner(call_id)
        content = self._sealed(call_id, reply.id, wire.encode([reply]), owner)
        if record_of(reply.id) == call_id:
            known = await self.database.end(Ended(reply.id, reply.status, reply.worker, content))
        else:
            known = await self.database.note(Noted(call_id, reply.id, content, not quiet))
        if not known:
            await self._broker.add(call_id, reply, quiet=quiet)

    async def cancel(self, record: Record, ending: Reply) -> None:
        if not record.address:
            await self._broker.cancel(record, ending)
            return
        await super().cancel(record, ending)
        self._sender.withdraw(record.head.queue, record.call.id, self._broker.owner(record.id))

    async def read(self, call_id: str) -> Record:
        record = await self._read(call_id)
        return await self._broker.read(call_id) if record is None else record

    async def _read(self, call_id: str) -> Record | None:
        """The record in the database; None: there is none."""
        found = await self.database.read(call_id)
        return None if found is None or not found.kept else self._record(call_id, found)

    async def wait(self, call_id: str, wanted: Callable[[Record], bool], *, steps: bool) -> Record:
        async with self.database.watch(call_id, steps=steps) as news:
            record = await self._read(call_id)
            if record is not None:
                return await self.follow_up(record, news, wanted)
        return await self._broker.wait(call_id, wanted, steps=steps)

    async def touch(self, call_id: str) -> None:
        try:
            if await self.database.look(call_id) is not None:
                return
        except RecordsUnavailable:
            return  # a database that is away forgets nothing
        await self._broker.touch(call_id)

    @asynccontextmanager
    async def watch(self, call_id: str, *, steps: bool) -> AsyncIterator[asyncio.Event]:
        async with self.database.watch(call_id, steps=steps) as event:
            found = await self.database.read(call_id)
            if found is not None:
                yield event
                return
        async with self._broker.watch(call_id, steps=steps) as event:
            yield event

    def pursue(self, record: Record) -> AbstractContextManager[None]:
        return self._broker.pursuits.pursue(self, record)

    def see_to(self, record: Record) -> None:
        self._broker.pursuits.see_to(self, record)

    async def history(
        self, *, since: float | None = None, failed: bool = False, task: str = "*", limit: int = 100
    ) -> Sequence[RunInfo]:
        """List the calls that have records in the database; not those that are at the broker still."""
        return await self.database.history(Wanted(since, failed, task, limit))

    async def drop(self, call_id: str) -> None:
        if not await self.database.drop(call_id):
            await self._broker.drop(call_id)

    # -- for a worker

    async def finish(self, reply: Reply, key: str | None) -> None:
        """Keep the reply that ends a call. See `Store`."""
        content = self._sealed(record_of(reply.id), reply.id, wire.encode([reply]), key)
        await self.database.end(Ended(reply.id, reply.status, reply.worker, content))

    async def has_ended(self, call: Call, *, patient: bool) -> bool:
        """Return True if the record says that the call has ended. See `Store`."""
        while True:
            if self.database.trouble and not patient:
                return False
            try:
                look = await self.database.look(record_of(call.id), None if patient else PROMPT)
            except RecordsUnavailable:
                if not patient:
                    return False
                continue
            return await self._is_over(call, look)

    async def hold(self, call: Call) -> tuple[bool, float]:
        """Use the record of a call in hand. See `Store`."""
        look = await self.database.look(record_of(call.id))
        if look is None:
            return False, LONGEST_PATIENCE
        return await self._is_over(call, look), look.keep

    async def _is_over(self, call: Call, look: Look | None) -> bool:
        """Return True if the call has ended, or another one has taken its place. Where records are sealed that
        counts which was sealed by who may end it."""
        if look is None or (look.call == call.id and not look.ended):
            return False
        if self._session.seals is None:
            return True
        record_id = record_of(call.id)
        found = await self.database.read(record_id, patient=False)
        record = None if found is None else self._record(record_id, found, call.by)
        return record is not None and record.has_ended(call.id)

    # -- bytes

    def _sealed(self, call_id: str, name: str, body: bytes, key: str | None) -> bytes:
        seals = self._session.seals
        return body if seals is None else seals.seal_record(self._session.topology.kept(call_id), name, body, key)

    def _record(self, call_id: str, found: Found, owner: str | None = None) -> Record | None:
        """The record that these bytes are, without what others than its owner have sealed; None: they are none."""
        run = serving.get()
        if owner is None:
            mine = run is not None and record_of(run.call.id) == call_id
            owner = run.call.by if mine and run is not None else self._broker.owner(call_id)
        owners = [owner]
        opened = list(self._opened(call_id, call_id, found.request, owners))
        if len(opened) != 2 or not isinstance(opened[0], Kept) or not isinstance(opened[1], Call):
            return None
        record = Record(opened[0], opened[1])
        record.address = self._session.topology.stored
        if record.call.id != call_id:
            return None
        if owners[0] is not None and self._session.seals is not None:
            self._broker.belongs(call_id, owners[0])
        for name, content in found.notes:
            for envelope in self._opened(call_id, name, content, owners):
                if isinstance(envelope, Reply) and envelope.id == name:
                    record.add(envelope)
                elif isinstance(envelope, Call) and CALL + envelope.id == name:
                    record.go_on(envelope)
        latest = record.call.id
        if found.reply is not None:
            for envelope in self._opened(call_id, latest, found.reply, owners):
                if isinstance(envelope, Reply) and envelope.id == latest:
                    record.add(envelope)
        return record

    def _opened(
        self, call_id: str, name: str, content: bytes, owners: list[str | None]
    ) -> Iterator[wire.Envelope]:
        """The envelopes of something that is kept, if the owner of the record has sealed it: the first one who
        did, where none is known yet."""
        seals = self._session.seals
        if seals is not None:
            try:
                content, key = seals.open_record(self._session.topology.kept(call_id), name, content)
            except SealError as error:
                seals.count(str(error))
                return
            if owners[0] is None:
                owners[0] = key
            if key != owners[0]:
                seals.count("not allowed")
                return
        try:
            yield from wire.decode(content, self._session.max_message)
        except DecodeError:
            return
