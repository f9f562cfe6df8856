"""Reading a recovered cluster to the last row: what storage or replay has damaged shows here."""

from dataclasses import dataclass

import psycopg

from kyb_backup_pipeline.engine.digest import digest_table, newest_version, read_columns
from kyb_backup_pipeline.engine.manifest import Finding
from kyb_backup_pipeline.engine.postgres import FIXED_SETTINGS, Target, connect
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.snapshot import list_tables

LOCK_TIMEOUT = "2s"
"""A lock that a transaction held at the target is held for ever on a server that is paused there."""
_DATABASES = """SELECT datname, datallowconn AND datconnlimit <> -2 FROM pg_database
    WHERE datname NOT IN ('template0', 'template1') ORDER BY 1"""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was read, what could not be (``findings``), and what was not looked at (``notes``)."""

    databases: tuple[str, ...]
    tables: int
    rows: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def read_everything(target: Target, report: Reporter) -> Read:
    """Read every column of every row of every database. Raises psycopg.Error if the server goes."""
    with connect(target) as connection:
        found = connection.execute(_DATABASES).fetchall()
    databases = [name for name, open_ in found if open_]
    notes: list[str] = []
    if closed := [name for name, open_ in found if not open_]:
        notes.append(f"not read, since they take no connections: {', '.join(closed)}")
    findings: list[Finding] = []
    locked: list[str] = []
    count = rows = 0
    for database in databases:
        session = {**FIXED_SETTINGS, "lock_timeout": LOCK_TIMEOUT}
        with connect(target.with_database(database), session) as connection:
            tables = [t for t in list_tables(connection) if not (t.partitioned or t.unlogged)]
            columns = read_columns(connection)
            version = newest_version(connection)
            for done, table in enumerate(tables):
                name = f"{database}.{table.label}"
                report(Progress(step="tables", done=done, total=len(tables), unit="tables",
                                detail=name))  # fmt: skip
                try:
                    content = digest_table(connection, table, columns.get(table.oid, ()), version)
                except psycopg.errors.LockNotAvailable:
                    locked.append(name)
                except psycopg.Error as error:
                    message = f"cannot be read: {str(error).splitlines()[0]}"
                    findings.append(Finding(object=f"table {name}", message=message))
                else:
                    rows += content.rows
            count += len(tables)
    if locked:
        notes.append(f"not read, since locked at the target: {', '.join(locked[:5])}")
    return Read(
        databases=tuple(databases), tables=count, rows=rows, findings=tuple(findings),
        notes=tuple(notes),
    )  # fmt: skip
