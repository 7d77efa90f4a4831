"""The tables of records in PostgreSQL, and how older ones become these.

`atasks_runs` has a row for each submitted call: the call as it was submitted, how it ended, and what lists of
calls show. `atasks_notes` has what else is kept of runs of pipelines: results of stages and journals, many for a
run, so that none of them rewrites the row of the run. `atasks_schema` has the version of both, in one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, LiteralString

from atasks.errors import ConnectFailed

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = ["MIGRATIONS", "migrate"]

LOCK: Final = 0x617461736B73
"""The key of the advisory lock under which the tables are made and changed ("atasks" in ASCII)."""

MIGRATIONS: Final[tuple[tuple[LiteralString, ...], ...]] = (
    (
        """CREATE TABLE atasks_runs (
            prefix text NOT NULL,
            namespace text NOT NULL,
            id text NOT NULL,
            base text,
            call text NOT NULL,
            task text NOT NULL,
            queue text NOT NULL,
            submitted timestamptz NOT NULL DEFAULT now(),
            due timestamptz NOT NULL,
            sent boolean NOT NULL,
            keep interval NOT NULL,
            expires timestamptz NOT NULL,
            request bytea NOT NULL,
            ended timestamptz,
            status smallint,
            worker text,
            reply bytea,
            PRIMARY KEY (prefix, namespace, id)
        )""",
        "CREATE UNIQUE INDEX atasks_runs_base ON atasks_runs (prefix, namespace, base) WHERE base IS NOT NULL",
        "CREATE INDEX atasks_runs_submitted ON atasks_runs (prefix, namespace, submitted)",
        """CREATE INDEX atasks_runs_failed ON atasks_runs (prefix, namespace, submitted)
            WHERE status IS NOT NULL AND status <> 0""",
        "CREATE INDEX atasks_runs_expires ON atasks_runs (expires)",
        """CREATE TABLE atasks_notes (
            prefix text NOT NULL,
            namespace text NOT NULL,
            id text NOT NULL,
            note text NOT NULL,
            number bigint GENERATED ALWAYS AS IDENTITY,
            reply bytea NOT NULL,
            PRIMARY KEY (prefix, namespace, id, note),
            FOREIGN KEY (prefix, namespace, id) REFERENCES atasks_runs ON DELETE CASCADE
        )""",
    ),
)
"""The statements that lead to each version from the one before; the first one begins with nothing."""


async def migrate(connection: AsyncConnection[Any]) -> None:
    """Make the tables, or bring them to this version, unless they are. Several processes may do so at once.

    Raises ConnectFailed if they are of a later version, psycopg.Error.
    """
    wanted = len(MIGRATIONS)
    if await _version(connection) == wanted:
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        await connection.execute("CREATE TABLE IF NOT EXISTS atasks_schema (version integer NOT NULL)")
        found = await _version(connection)
        if found > wanted:
            raise ConnectFailed(
                f"the records in this database are of version {found}, and this version of atasks knows them up "
                f"to {wanted}: update atasks here"
            )
        for statements in MIGRATIONS[found:]:
            for statement in statements:
                await connection.execute(statement)
        if found == 0:
            await connection.execute("INSERT INTO atasks_schema VALUES (%s)", [wanted])
        else:
            await connection.execute("UPDATE atasks_schema SET version = %s", [wanted])


async def _version(connection: AsyncConnection[Any]) -> int:
    """The version of the tables; 0: there are none."""
    cursor = await connection.execute("SELECT to_regclass('atasks_schema') IS NOT NULL")
    row = await cursor.fetchone()
    if row is None or not row[0]:
        return 0
    cursor = await connection.execute("SELECT version FROM atasks_schema")
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])
