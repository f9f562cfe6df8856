"""A snapshot that pg_dump and the evidence share, with every table held still under it.

The order is what makes the evidence true. Tables are listed on another connection, locked
(``ACCESS SHARE``; ``LOCK`` takes no snapshot), and only then the snapshot is exported and the tables
are listed again in it: if one came or went, start over. Without the locks a ``TRUNCATE`` after the
export would empty the evidence.

The digests must run on this same connection. A ``TRUNCATE`` that queues behind our locks blocks every
later request for the table but not ours, since we hold that lock already; a second connection
would queue behind it, it waits for us, we would wait for the second connection, and no deadlock
check of the server can see that. pg_dump's own locks have the same trap, hence its time-out and the
attempts in ``full_backup``.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.errors import BackupFailed, KybError
from kyb_backup_pipeline.engine.postgres import FIXED_SETTINGS, Target, abandon, connect

_log = logging.getLogger(__name__)

_ATTEMPTS = 10
_LOCKS_A_STATEMENT = 500

_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
       (has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT')
        AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                        AND NOT a.attisdropped
                        AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')))
       AND has_schema_privilege(n.oid, 'USAGE') AS readable,
       row_security_active(c.oid) AS row_security,
       c.relpersistence = 'u' AS unlogged,
       e.condition
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
LEFT JOIN LATERAL (
    SELECT coalesce(x.extcondition[i], '') AS condition
    FROM pg_extension x, generate_subscripts(x.extconfig, 1) i
    WHERE x.oid = d.refobjid AND x.extconfig[i] = c.oid) e ON true
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND (d.objid IS NULL OR e.condition IS NOT NULL)
ORDER BY c.oid
"""


class TryAgain(KybError):
    """The database changed under our hands; another attempt may succeed."""


class LockNotGranted(TryAgain):
    """A lock on a table was not granted in time."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose rows pg_dump writes. ``condition`` limits the rows of an extension's table."""

    oid: int
    schema: str
    name: str
    partitioned: bool
    unlogged: bool
    condition: str

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        """The quoted name, as PostgreSQL prints it under an empty search_path."""
        return ".".join(_quoted(part) for part in (self.schema, self.name))


@dataclass(frozen=True)
class Snapshot:
    """An exported snapshot: ``name`` for pg_dump, ``connection`` (in it) for the evidence."""

    name: str
    connection: psycopg.Connection
    tables: tuple[Table, ...]


@contextlib.contextmanager
def held_snapshot(target: Target, *, lock_timeout: float) -> Iterator[Snapshot]:
    """Export a snapshot with all tables locked in it, and hold it open for the block.

    Raises LockNotGranted if a lock is not granted within ``lock_timeout`` seconds, BackupFailed if
    a table may not be read.
    """
    with connect(target, FIXED_SETTINGS) as scout:
        for _ in range(_ATTEMPTS):
            patience = {**FIXED_SETTINGS, "lock_timeout": f"{lock_timeout * 1000:.0f}ms"}
            with connect(target, patience, autocommit=False) as holder:
                before = list_tables(scout)
                if not _lock(holder, before):
                    continue
                (name,) = holder.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
                tables = list_tables(holder)
                if tables != before:
                    _log.info("a table came or went while the tables were locked; starting over")
                    continue
                holder.execute("SET LOCAL lock_timeout = 0")
                yield Snapshot(name=name, connection=holder, tables=tuple(tables))
                holder.rollback()
                return
    raise BackupFailed(
        f"tables are created and dropped so fast that no snapshot could be held ({_ATTEMPTS} tries)",
        hint="take the backup in a quieter moment",
    )


def list_tables(connection: psycopg.Connection) -> list[Table]:
    """The tables pg_dump writes data or definitions of, by its own rules.

    Raises BackupFailed, naming each table this user may not read in full.
    """
    rows = connection.execute(_TABLES).fetchall()
    unreadable = [row for row in rows if not row[4]]
    hidden = [row for row in rows if row[4] and row[5]]
    for refused, why, hint in (
        (unreadable, "may not read", "GRANT pg_read_all_data TO the backup's user (docs/roles.md)"),
        (
            hidden,
            "sees only some rows of",
            "ALTER ROLE the backup's user BYPASSRLS (docs/roles.md)",
        ),
    ):
        if refused:
            names = ", ".join(f"{_quoted(row[1])}.{_quoted(row[2])}" for row in refused[:10])
            more = f" and {len(refused) - 10} more" if len(refused) > 10 else ""
            raise BackupFailed(f"this user {why} {names}{more}", hint=hint)
    return [
        Table(
            oid=oid,
            schema=schema,
            name=name,
            partitioned=relkind == "p",
            unlogged=unlogged,
            condition=condition or "",
        )
        for oid, schema, name, relkind, _, _, unlogged, condition in rows
    ]


def _lock(holder: psycopg.Connection, tables: Sequence[Table]) -> bool:
    """Lock all tables; False if one of them is gone by now."""
    try:
        for start in range(0, len(tables), _LOCKS_A_STATEMENT):
            names = sql.SQL(", ").join(
                sql.SQL("ONLY {}").format(table.identifier)
                for table in tables[start : start + _LOCKS_A_STATEMENT]
            )
            holder.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return False
    except psycopg.errors.LockNotAvailable as error:
        raise LockNotGranted(str(error).splitlines()[0]) from error
    except psycopg.errors.OutOfMemory as error:
        raise BackupFailed(
            f"the server has no room for locks on {len(tables)} tables",
            hint='raise max_locks_per_transaction, or set backup.evidence = "none"',
        ) from error
    return True


class QueueWatch:
    """Notices at once that pg_dump queues behind somebody who waits for our locks.

    That cannot end by itself, and all others who want the table wait meanwhile: the sooner we give
    our locks up the better. ``application`` names pg_dump's sessions, ``holder`` is the process of
    ours. Asks in a thread of its own, so that a server that hangs cannot hold up who asks.
    """

    def __init__(self, target: Target, holder: int, application: str) -> None:
        self._target = target
        self._question = (application, holder)
        self._connection: psycopg.Connection | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="queue-watch")
        self._asked: Future[None] | None = None

    def check(self) -> None:
        """Look at the last answer and ask again. Raises LockNotGranted if that is so."""
        if self._asked is None or self._asked.done():
            answered, self._asked = self._asked, self._pool.submit(self._ask)
            if answered is not None:
                answered.result()

    def close(self) -> None:
        asking = self._asked is not None and not self._asked.done()
        if asking and self._connection is not None:
            abandon(self._connection)
        self._pool.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _ask(self) -> None:
        if self._connection is None:
            self._connection = connect(self._target, FIXED_SETTINGS)
        row = self._connection.execute(
            """
            SELECT w.pid, left(regexp_replace(w.query, '\\s+', ' ', 'g'), 80)
            FROM pg_stat_activity d, unnest(pg_blocking_pids(d.pid)) AS b(pid)
            JOIN pg_stat_activity w ON w.pid = b.pid
            WHERE d.application_name = %s AND %s = ANY (pg_blocking_pids(w.pid)) LIMIT 1
            """,
            self._question,
        ).fetchone()
        if row is not None:
            raise LockNotGranted(f"pg_dump queues behind process {row[0]}, which waits: {row[1]}")


def blocking_sessions(target: Target) -> list[str]:
    """Who waits for, or holds, a lock that keeps others waiting; one line a session."""
    with connect(target, FIXED_SETTINGS) as connection:
        rows = connection.execute(
            """
            SELECT DISTINCT l.pid, coalesce(a.usename, '?'), l.mode, l.granted,
                   l.relation::regclass::text, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80)
            FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
            JOIN pg_class c ON c.oid = l.relation AND c.relkind IN ('r', 'p')
                AND c.relpersistence <> 't' AND c.oid >= 16384
            WHERE l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation'
              AND l.pid <> pg_backend_pid()
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """
        ).fetchall()
    return [
        f"process {pid} of {user} {'holds' if granted else 'waits for'} {mode} on {relation}: {query}"
        for pid, user, mode, granted, relation, query in rows
    ]


def _quoted(name: str) -> str:
    plain = name.isascii() and name.replace("_", "a").isalnum() and name == name.lower()
    return name if plain and not name[0].isdigit() else '"' + name.replace('"', '""') + '"'
