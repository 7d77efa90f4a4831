"""The statements about records, each for many of them, and each a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from atasks.transport.records.contract import GENERATION, RunInfo, record_of
from atasks.transport.records.postgres.rows import Found, Held, Look

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from atasks.transport.records.postgres.lane import Order

__all__ = ["Statements"]

FRESH: Final = "0.9"
"""A record whose time has begun anew is not written again before a tenth of its time has passed."""

BEGIN: Final = """
INSERT INTO atasks_runs (prefix, namespace, id, call, base, task, queue, due, sent, keep, expires, request)
SELECT %(prefix)s, %(namespace)s, id, id, base, task, queue, now() + delay * interval '1 ms', sent,
    keep * interval '1 ms',
    now() + CASE keep WHEN 0 THEN delay * interval '1 ms' + interval '1 day' ELSE keep * interval '1 ms' END,
    request
FROM unnest(%(ids)s::text[], %(bases)s::text[], %(tasks)s::text[], %(queues)s::text[], %(delays)s::bigint[],
    %(sents)s::boolean[], %(keeps)s::bigint[], %(requests)b::bytea[])
    AS given (id, base, task, queue, delay, sent, keep, request)
ON CONFLICT DO NOTHING RETURNING id
"""
HOLDERS: Final = """
SELECT given.id, runs.id, runs.sent, runs.expires <= now()
FROM unnest(%(ids)s::text[], %(bases)s::text[]) AS given (id, base)
JOIN atasks_runs AS runs ON runs.prefix = %(prefix)s AND runs.namespace = %(namespace)s
    AND runs.base = given.base
UNION
SELECT given.id, runs.id, runs.sent, runs.expires <= now()
FROM unnest(%(ids)s::text[]) AS given (id)
JOIN atasks_runs AS runs ON runs.prefix = %(prefix)s AND runs.namespace = %(namespace)s AND runs.id = given.id
"""
EXPIRED: Final = """
DELETE FROM atasks_runs
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) AND expires <= now()
"""
USE: Final = f"""
UPDATE atasks_runs SET expires = now() + CASE WHEN keep = interval '0' THEN interval '1 day' ELSE keep END
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s)
    AND expires > now()
    AND expires < now() + CASE WHEN keep = interval '0' THEN interval '23 hours' ELSE keep * {FRESH} END
"""
SENT: Final = """
UPDATE atasks_runs SET sent = true
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) AND NOT sent
"""
END: Final = """
WITH given AS (
    SELECT * FROM unnest(%(ids)s::text[], %(calls)s::text[], %(statuses)s::smallint[], %(workers)s::text[],
        %(replies)b::bytea[]) AS given (id, call, status, worker, reply)
), changed AS (
    UPDATE atasks_runs AS runs
    SET ended = now(), status = given.status, worker = given.worker, reply = given.reply, sent = true,
        expires = now() + keep
    FROM given
    WHERE runs.prefix = %(prefix)s AND runs.namespace = %(namespace)s AND runs.id = given.id
        AND runs.call = given.call AND runs.ended IS NULL AND runs.expires > now() AND runs.keep > interval '0'
    RETURNING runs.id
)
SELECT array_agg(id), pg_notify(%(channel)s, string_agg(id, ' '))
FROM (SELECT id, (row_number() OVER () - 1) / 100 AS part FROM changed) AS parts GROUP BY part
"""
AGAIN: Final = """
WITH old AS (
    SELECT id, call, reply FROM atasks_runs
    WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = %(id)s AND call = %(before)s
        AND ended IS NOT NULL AND expires > now()
    FOR UPDATE
), kept AS (
    INSERT INTO atasks_notes (prefix, namespace, id, note, reply)
    SELECT %(prefix)s, %(namespace)s, old.id, given.note, given.reply
    FROM old, LATERAL (VALUES (1, old.call, old.reply), (2, %(note)s, %(request)b)) AS given (number, note, reply)
    ORDER BY given.number
    ON CONFLICT DO NOTHING
)
UPDATE atasks_runs AS runs
SET call = %(call)s, ended = NULL, status = NULL, worker = NULL, reply = NULL, expires = now() + keep
FROM old WHERE runs.prefix = %(prefix)s AND runs.namespace = %(namespace)s AND runs.id = old.id
RETURNING runs.id
"""
MARKS: Final = """
DELETE FROM atasks_runs
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) AND keep = interval '0'
RETURNING id
"""
KNOWN: Final = f"""
SELECT id, ended IS NOT NULL, expires < now() + keep * {FRESH} OR keep = interval '0',
    extract(epoch FROM keep)::double precision, call
FROM atasks_runs
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) AND expires > now()
"""
NOTE: Final = """
WITH given AS (
    SELECT * FROM unnest(%(ids)s::text[], %(notes)s::text[], %(replies)b::bytea[], %(louds)s::boolean[])
        WITH ORDINALITY AS given (id, note, reply, loud, number)
), known AS (
    SELECT id FROM atasks_runs
    WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) AND expires > now()
        AND keep > interval '0'
    FOR KEY SHARE
), kept AS (
    INSERT INTO atasks_notes (prefix, namespace, id, note, reply)
    SELECT %(prefix)s, %(namespace)s, given.id, given.note, given.reply
    FROM given JOIN known USING (id) ORDER BY given.number
    ON CONFLICT DO NOTHING
)
SELECT given.id, CASE WHEN given.loud THEN pg_notify(%(channel)s, '+' || given.id) END
FROM given JOIN known USING (id)
"""
READ: Final = f"""
SELECT id, request, reply, keep > interval '0', expires < now() + keep * {FRESH} FROM atasks_runs
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) AND expires > now()
"""
NOTES: Final = """
SELECT id, note, reply FROM atasks_notes
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) ORDER BY number
"""
DROP: Final = """
WITH gone AS (
    DELETE FROM atasks_runs
    WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND id = ANY(%(ids)s) RETURNING id
)
SELECT id, pg_notify(%(channel)s, id) FROM gone
"""
LIST: Final = """
SELECT id, task, queue, extract(epoch FROM submitted)::double precision, extract(epoch FROM due)::double precision,
    extract(epoch FROM ended)::double precision, status, worker, extract(epoch FROM expires)::double precision
FROM atasks_runs
WHERE prefix = %(prefix)s AND namespace = %(namespace)s AND expires > now() AND keep > interval '0'
    AND (%(since)s::double precision IS NULL OR submitted >= now() - %(since)s * interval '1 second')
    AND task LIKE %(task)s
"""
LATEST: Final = " ORDER BY submitted DESC LIMIT %(limit)s"
FAILED: Final = " AND status IS NOT NULL AND status <> 0"
CLEAN: Final = """
DELETE FROM atasks_runs WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM atasks_runs WHERE expires <= now() ORDER BY expires LIMIT %(most)s FOR UPDATE SKIP LOCKED
))
"""


class Statements:
    """The orders about the records of one prefix and namespace. Each method is a `Work`."""

    def __init__(self, prefix: str, namespace: str, channel: str) -> None:
        self._place = {"prefix": prefix, "namespace": namespace, "channel": channel}

    async def begin(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Open records. Gives a `Held` for each."""
        held: dict[str, Held] = {}
        left = {order.row.id: order.row for order in orders}
        while left:
            rows = list(left.values())
            new = await self._rows(
                connection,
                BEGIN,
                ids=[row.id for row in rows],
                bases=[row.base for row in rows],
                tasks=[row.task for row in rows],
                queues=[row.queue for row in rows],
                delays=[row.delay_ms for row in rows],
                sents=[row.sent for row in rows],
                keeps=[row.keep_ms for row in rows],
                requests=[row.request for row in rows],
            )
            for (call_id,) in new:
                held[call_id] = Held(call_id, True)
                del left[call_id]
            if not left:
                break
            rows = list(left.values())
            found = await self._rows(
                connection, HOLDERS, ids=[row.id for row in rows], bases=[row.base for row in rows]
            )
            expired = [holder for _, holder, _, over in found if over]
            if expired:
                await connection.execute(EXPIRED, {**self._place, "ids": expired})
            used: list[str] = []
            for call_id, holder, sent, over in found:
                if not over and call_id in left:
                    held[call_id] = Held(holder, sent or holder == call_id)
                    del left[call_id]
                    used.append(holder)
            if used:
                await connection.execute(USE, {**self._place, "ids": used})
        return [held[order.row.id] for order in orders]

    async def sent(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Note that calls were sent."""
        await connection.execute(SENT, {**self._place, "ids": [order.row for order in orders]})
        return [None] * len(orders)

    async def end(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Keep how calls have ended, and tell who waits. Gives for each whether there is a record."""
        rows = {record_of(row.id): row for row in (order.row for order in reversed(orders))}  # the first counts
        known: set[str] = set()
        changed = await self._rows(
            connection,
            END,
            ids=list(rows),
            calls=[row.id for row in rows.values()],
            statuses=[row.status for row in rows.values()],
            workers=[row.worker for row in rows.values()],
            replies=[row.reply for row in rows.values()],
        )
        for ids, _ in changed:
            known.update(ids)
        left = [call_id for call_id in rows if call_id not in known]
        marks = [call_id for call_id in left if GENERATION in call_id]
        if marks:
            known.update(call_id for (call_id,) in await self._rows(connection, MARKS, ids=marks))
            left = [call_id for call_id in left if call_id not in known]
        if left:
            known.update(row[0] for row in await self._rows(connection, KNOWN, ids=left))
        return [record_of(order.row.id) in known for order in orders]

    async def again(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Let calls take the place of others that have ended. Gives for each whether it did."""
        results = []
        for order in orders:
            found = await self._rows(connection, AGAIN, **order.row._asdict())
            if not found:  # it may have been done before, over a connection that was lost
                known = await self._rows(connection, KNOWN, ids=[order.row.id])
                found = [row for row in known if row[4] == order.row.call]
            results.append(bool(found))
        return results

    async def note(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Keep notes, in the order in which they were given. Gives for each whether there is a record."""
        rows = [order.row for order in orders]
        found = await self._rows(
            connection,
            NOTE,
            ids=[row.id for row in rows],
            notes=[row.note for row in rows],
            replies=[row.reply for row in rows],
            louds=[row.loud for row in rows],
        )
        known = {row[0] for row in found}
        await self._use(connection, known)
        return [row.id in known for row in rows]

    async def read(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Read records. Gives a `Found`, or None, for each."""
        ids = list({order.row for order in orders})
        found: dict[str, Found] = {}
        stale: list[str] = []
        for call_id, request, reply, kept, old in await self._rows(connection, READ, ids=ids):
            found[call_id] = Found(request, reply, kept, [])
            if old:
                stale.append(call_id)
        if found:
            for call_id, note, reply in await self._rows(connection, NOTES, ids=list(found)):
                found[call_id].notes.append((note, reply))
        await self._use(connection, stale)
        return [found.get(order.row) for order in orders]

    async def look(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Use records. Gives a `Look`, or None, for each."""
        found = await self._rows(connection, KNOWN, ids=list({order.row for order in orders}))
        await self._use(connection, [call_id for call_id, _, old, *_ in found if old])
        looks = {call_id: Look(ended, call, keep) for call_id, ended, _, keep, call in found}
        return [looks.get(order.row) for order in orders]

    async def drop(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Forget records. Gives for each whether there was one."""
        gone = {row[0] for row in await self._rows(connection, DROP, ids=[order.row for order in orders])}
        return [order.row in gone for order in orders]

    async def history(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Gives a list of `RunInfo` for each."""
        results = []
        for order in orders:
            since, failed, task, limit = order.row
            statement = LIST + FAILED + LATEST if failed else LIST + LATEST
            rows = await self._rows(connection, statement, since=since, task=_like(task), limit=limit)
            names = RunInfo.__struct_fields__
            results.append([RunInfo(**dict(zip(names, row, strict=True))) for row in rows])
        return results

    async def clean(self, connection: AsyncConnection[Any], orders: Sequence[Order]) -> list[Any]:
        """Delete what has expired, in any prefix and namespace. Gives how many records."""
        cursor = await connection.execute(CLEAN, {"most": orders[0].row})
        return [cursor.rowcount] * len(orders)

    async def _use(self, connection: AsyncConnection[Any], ids: Iterable[str]) -> None:
        if ids := list(ids):
            await connection.execute(USE, {**self._place, "ids": ids})

    async def _rows(
        self, connection: AsyncConnection[Any], statement: Any, **values: Any
    ) -> list[tuple[Any, ...]]:
        cursor = await connection.execute(statement, {**self._place, **values}, binary=True)
        return await cursor.fetchall()


def _like(pattern: str) -> str:
    """The pattern for LIKE of one in which `*` stands for any text and `?` for any letter."""
    for letter in "\\%_":
        pattern = pattern.replace(letter, f"\\{letter}")
    return pattern.replace("*", "%").replace("?", "_")
