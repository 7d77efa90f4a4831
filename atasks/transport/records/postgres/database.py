"""The records of one prefix and namespace in PostgreSQL: what is asked of it, and who is told of what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from atasks.errors import AccessRefused, ConnectFailed, InvalidURL, NotConnected, RecordsUnavailable
from atasks.pauses import pauses
from atasks.transport.records.contract import RunInfo
from atasks.transport.records.postgres import statements
from atasks.transport.records.postgres.lane import BACKOFF, Lane, Order, logger
from atasks.transport.records.postgres.rows import Ended, Found, Held, Look, New, Next, Noted, Wanted
from atasks.transport.records.postgres.schema import migrate
from atasks.urls import DATABASE_URL, shown, take_apart

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = ["Database", "checked_url"]

CLEAN_SECONDS: Final = 10.0
"""Seconds between two rounds of deletion of one worker, roughly."""
CLEAN_AT_ONCE: Final = 1000
"""Records that one round deletes with one statement."""
ALIVE: Final[dict[str, Any]] = {
    "application_name": "atasks",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Options of connections that notice a host which is gone within half a minute."""
REFUSED: Final = ("authentication failed", "pg_hba.conf", "does not exist", "permission denied", "no password")
"""Words of the server to who may not connect, or not to this database, or not make the tables there; a client
learns no code of that."""


class Database:
    """Keeps records of one prefix and namespace. All its connections are opened again when they are lost.

    An order that returns was committed. Orders of the same turn of the event loop, and those that come while
    others are under way, share a statement, which is a transaction of its own.
    """

    def __init__(self, url: str, prefix: str, namespace: str, timeout: float) -> None:
        """`timeout`: seconds for which impatient orders wait for the database, and for one attempt to connect.
        Raises InvalidURL."""
        self._url = checked_url(url)
        self.shown = shown(url)
        """The URL without what is secret in it."""
        self.place = (prefix, namespace)
        self._timeout = timeout
        self._words = statements.Statements(prefix, namespace, self._channel)
        self._writer = Lane(self._connect, self.reason)
        self._reader = Lane(self._connect, self.reason)
        self._watches: dict[str, list[tuple[asyncio.Event, bool]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._cleaner: asyncio.Task[None] | None = None
        self._closed = "the records are not open"

    @property
    def _channel(self) -> str:
        return f"atasks_{blake2b(repr(self.place).encode(), digest_size=16).hexdigest()}"

    # -- life

    async def open(self) -> None:
        """Connect, and make or migrate the tables. Raises ConnectFailed, AccessRefused."""
        try:
            connection = await self._connect()
        except (psycopg.Error, OSError) as error:
            reason = self.reason(error)
            kind = AccessRefused if any(words in reason for words in REFUSED) else ConnectFailed
            raise kind(f"the records at {self.shown} cannot be used: {reason}") from None
        self._closed = ""
        self._listening.clear()
        self._writer.start(connection)
        self._reader.start()

    async def close(self, reason: str) -> None:
        """Let go of it: who waits gets NotConnected, for this reason."""
        for task in (self._listener, self._cleaner):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._listener = self._cleaner = None
        self._closed = reason
        self._listening.set()  # who waits for it finds out
        await self._writer.close(reason)
        await self._reader.close(reason)
        self.wake_all()

    def clean(self) -> None:
        """Delete records that have expired, from now on, round after round. Any number of processes may do so."""
        if self._cleaner is None:
            self._cleaner = asyncio.get_running_loop().create_task(self._clean(), name="atasks records expire")

    @property
    def trouble(self) -> str:
        """The reason why nothing can be written just now; empty: nothing is known to be wrong."""
        return self._writer.trouble

    def reason(self, error: Any) -> str:
        """Return what is wrong, in one line, without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        password = take_apart(self._url).password
        for secret in {password, unquote(password)} if password else ():
            text = text.replace(secret, "…")
        return text

    async def _connect(self) -> AsyncConnection[Any]:
        options = {"connect_timeout": max(2, round(self._timeout)), **ALIVE, **conninfo_to_dict(self._url)}
        connection = await psycopg.AsyncConnection.connect(
            autocommit=True,
            prepare_threshold=None,  # a pooler in between may give each statement another connection
            **options,
        )
        try:
            await migrate(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    # -- orders

    async def begin(self, new: New) -> Held:
        """Open a record, unless there is one of its base. Raises RecordsUnavailable."""
        found: Held = await self._soon(Order(self._words.begin, new, len(new.request)))
        return found

    async def sent(self, call_id: str) -> None:
        """Note that the call of this record was sent. Returns after `timeout` seconds at the latest: what was sent
        is no error of who submitted it, and is noted when the database is back. Raises NotConnected."""
        order = Order(self._words.sent, call_id)
        self._writer.put(order)
        await asyncio.wait([order.done], timeout=self._timeout)

    async def end(self, ended: Ended) -> bool:
        """Keep how a call has ended, unless that is known; waits until it is safe. False: there is no record."""
        return bool(await self._patiently(Order(self._words.end, ended, len(ended.reply))))

    async def again(self, next: Next) -> bool:
        """Let a call take the place of one that has ended; False: another one has. Raises RecordsUnavailable."""
        return bool(await self._soon(Order(self._words.again, next, len(next.request))))

    async def note(self, noted: Noted) -> bool:
        """Keep something of a call; waits until it is safe. False: there is no record."""
        return bool(await self._patiently(Order(self._words.note, noted, len(noted.reply))))

    async def read(self, call_id: str, *, patient: bool = True) -> Found | None:
        """The record; None: there is none. Its time begins anew. Raises RecordsUnavailable unless `patient`."""
        order = Order(self._words.read, call_id)
        found: Found | None = await (self._patiently(order, self._reader) if patient else self._read_soon(order))
        return found

    async def look(self, call_id: str, within: float | None = None) -> Look | None:
        """Use a record, so that its time begins anew; None: there is none. Raises RecordsUnavailable, after
        `within` seconds, or `timeout`."""
        found: Look | None = await self._soon(Order(self._words.look, call_id), self._reader, within)
        return found

    async def drop(self, call_id: str) -> bool:
        """Forget a record; those who wait for it are told. False: there is none. Raises RecordsUnavailable."""
        return bool(await self._soon(Order(self._words.drop, call_id)))

    def drop_soon(self, call_id: str) -> None:
        """Forget a record, as soon as that can be done. Never waits. Raises NotConnected."""
        self._writer.put(Order(self._words.drop, call_id))

    async def history(self, wanted: Wanted) -> list[RunInfo]:
        """The calls that are wanted, the latest first. Raises RecordsUnavailable."""
        found: list[RunInfo] = await self._read_soon(Order(self._words.history, wanted))
        return found

    async def _read_soon(self, order: Order) -> Any:
        return await self._soon(order, self._reader)

    async def _soon(self, order: Order, lane: Lane | None = None, within: float | None = None) -> Any:
        lane, within = lane or self._writer, within or self._timeout
        try:
            async with asyncio.timeout(within):
                return await self._patiently(order, lane)
        except TimeoutError:
            why = lane.trouble or "it does not answer"
            raise RecordsUnavailable(
                f"the database of the records, {self.shown}, was away for {within:g} s: {why}"
            ) from None

    async def _patiently(self, order: Order, lane: Lane | None = None) -> Any:
        (lane or self._writer).put(order)
        try:
            return await order.done
        finally:
            order.done.cancel()

    # -- news

    @asynccontextmanager
    async def watch(self, call_id: str, *, steps: bool) -> AsyncIterator[asyncio.Event]:
        """Inside of this the event is set when news of the record arrive, or may have been missed."""
        entry = (asyncio.Event(), steps)
        self._watches.setdefault(call_id, []).append(entry)
        try:
            if self._closed:
                raise NotConnected(self._closed)
            if self._listener is None:
                self._listener = asyncio.get_running_loop().create_task(self._listen(), name="atasks records news")
            await self._listening.wait()
            yield entry[0]
        finally:
            entries = self._watches[call_id]
            entries.remove(entry)
            if not entries:
                del self._watches[call_id]

    def wake_all(self) -> None:
        """Have everyone look who waits for news."""
        for entries in self._watches.values():
            for event, _ in entries:
                event.set()

    async def _listen(self) -> None:
        """Hear of the records of this prefix and namespace, over a connection of its own. After a lost one all
        look once, since nobody knows what was said meanwhile."""
        waits = pauses(*BACKOFF)
        while True:
            connection: AsyncConnection[Any] | None = None
            try:
                connection = await self._connect()
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                self._listening.set()
                self.wake_all()
                waits = pauses(*BACKOFF)
                async for notice in connection.notifies():
                    self._hear(notice.payload)
            except (psycopg.Error, OSError, ConnectFailed) as error:
                logger.info(
                    "this process hears of no changes to records, and connects again: %s", self.reason(error)
                )
            finally:
                if connection is not None:
                    with suppress(psycopg.Error, OSError):
                        await connection.close()
            await asyncio.sleep(next(waits))

    def _hear(self, payload: str) -> None:
        for word in payload.split():
            step = word.startswith("+")
            for event, steps in self._watches.get(word.removeprefix("+"), ()):
                if steps or not step:
                    event.set()

    # -- expiry

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(CLEAN_SECONDS * random.uniform(0.5, 1.5))
            deleted = CLEAN_AT_ONCE
            while deleted == CLEAN_AT_ONCE:
                try:
                    deleted = await self._soon(Order(self._words.clean, CLEAN_AT_ONCE))
                except RecordsUnavailable:
                    break


def checked_url(url: object) -> str:
    """The URL, if it is one of a PostgreSQL database. Raises TypeError, InvalidURL; neither repeats a password."""
    parts = take_apart(url, DATABASE_URL)
    assert isinstance(url, str), "it was taken apart"
    example = f"give one like {DATABASE_URL}"
    if parts.scheme not in ("postgresql", "postgres"):
        raise InvalidURL(f"records={shown(url)!r} names no database that keeps records: {example}")
    if parts.netloc.count("@") > 1:
        raise InvalidURL(f"records={shown(url)!r} has an @ in its user or password: write it as %40")
    try:
        for host in str(conninfo_to_dict(url).get("host", "")).split(","):
            if not host.startswith("/"):  # which is the folder of a socket
                host.encode("idna")  # as the name lookup does first
    except (psycopg.Error, ValueError):  # their words may quote what is secret; a UnicodeError is a ValueError
        raise InvalidURL(f"records={shown(url)!r} cannot be read as the URL of a database: {example}") from None
    return url
