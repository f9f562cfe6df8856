"""What the platform would ask a database first: does a restored one answer?"""

from collections.abc import Sequence

import psycopg

from kyb_backup_pipeline.engine.manifest import Finding
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.settings import Settings

_USERS = "SELECT count(*) FROM users"
_USERS_TABLE = """SELECT count(*) > 0 FROM pg_catalog.pg_class
    WHERE oid = pg_catalog.to_regclass('users') AND relkind IN ('r', 'p')"""


def ask_smoke_queries(settings: Settings, database: Target) -> tuple[list[Finding], int]:
    """Ask each query; findings, and how many were asked. ``false`` and no row are failures too.

    ``SELECT count(*) FROM users`` is asked by itself where there is such a table, as in the procedure.
    """
    findings = []
    with connect(database) as connection:
        queries = list(settings.restore_test.smoke_queries)
        (users,) = connection.execute(_USERS_TABLE).fetchone() or (False,)
        if users and _USERS not in queries:
            queries.insert(0, _USERS)
        connection.execute("SET default_transaction_read_only = on")
        timeout = f"{settings.restore_test.smoke_timeout * 1000:.0f}ms"
        connection.execute(
            "SELECT pg_catalog.set_config('statement_timeout', %s, false)", (timeout,)
        )
        for query in queries:
            if message := _trouble(connection, query):
                findings.append(Finding(object=f"smoke query {query!r}", message=message))
    return findings, len(queries)


def _trouble(connection: psycopg.Connection, query: str) -> str | None:
    try:
        row: Sequence[object] | None = connection.execute(query.encode()).fetchone()
    except psycopg.Error as error:
        return f"failed: {str(error).splitlines()[0]}"
    if row is None or row[0] is False:
        return f"answered {'no row' if row is None else 'false'}"
    return None
