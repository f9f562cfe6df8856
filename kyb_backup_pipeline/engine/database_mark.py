"""Whose a half-restored database is: its OID in the journal says so, and until that stands there, a mark.

The mark is a comment on the database. Names are no proof: somebody else may have made one of that name.
"""

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.database_swap import database_oid
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.quiet_session import has_tables, quiet
from kyb_backup_pipeline.engine.recovery_journal import Journal


def oid_of_restoring(server: Target, journal: Journal) -> int | None:
    """The OID of the database that a restore was filling, if it is that: a name alone is no proof.

    Where the OID did not come into the journal any more, the database has the restore's mark; one that
    has none and nothing else in it either was made just before a kill.
    """
    oid = database_oid(server, journal.new_name)
    if oid is None or journal.new_oid is not None:
        return oid if oid == journal.new_oid else None
    if journal.began("create") is None:
        return None
    marked = _mark_of(server, oid)
    if marked is None and _is_empty(server.with_database(journal.new_name)):
        return oid
    return oid if marked == _mark(journal) else None


def mark(server: Target, journal: Journal) -> None:
    """Say in the new database whose it is, until its OID stands in the journal."""
    _comment(server, journal, _mark(journal))


def unmark(server: Target, journal: Journal) -> None:
    """Take that away again."""
    _comment(server, journal, None)


def _comment(server: Target, journal: Journal, text: str | None) -> None:
    with connect(server) as connection:
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(journal.new_name), sql.Literal(text)
            )
        )


def _mark(journal: Journal) -> str:
    return f"being restored by {journal.restore_id}"


def _mark_of(server: Target, oid: int) -> str | None:
    with connect(server) as connection:
        row = connection.execute("SELECT shobj_description(%s, 'pg_database')", (oid,)).fetchone()
    return row[0] if row else None


def _is_empty(database: Target) -> bool:
    try:
        with connect(quiet(database)) as connection:
            return not has_tables(connection)
    except (KybError, psycopg.Error):
        return False
