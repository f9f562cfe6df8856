"""Putting a restored database in the place of the live one: two renames in one transaction.

The first rename is issued first: from then on new sessions wait, and nobody gets into the old database any
more. Then a second connection ends the sessions that are still in it, and the rename goes through. Nothing
is committed before both renames are done, so a kill at any moment leaves the old state or the new one.
"""

import contextlib
import threading
import time
from dataclasses import dataclass

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.errors import Refused, RestoreFailed
from kyb_backup_pipeline.engine.postgres import Target, connect

_ATTEMPTS = 4
_PAUSE = 0.02


@dataclass(frozen=True)
class Found:
    """A database of the server."""

    oid: int
    name: str
    bytes: int


def database_oid(server: Target, name: str) -> int | None:
    """The OID of a database; None if there is none of that name."""
    with connect(server) as connection:
        row = connection.execute(
            "SELECT oid FROM pg_database WHERE datname = %s", (name,)
        ).fetchone()
    return int(row[0]) if row else None


def database_named(server: Target, oid: int) -> Found | None:
    """The database with this OID, whatever it is called now."""
    with connect(server) as connection:
        row = connection.execute(
            "SELECT oid, datname, pg_database_size(oid) FROM pg_database WHERE oid = %s", (oid,)
        ).fetchone()
    return Found(*row) if row else None


def check_swappable(server: Target, oid: int) -> None:
    """Is there what a rename of a database cannot or must not pass over? Raises Refused."""
    with connect(server) as connection:
        row = connection.execute(
            """
            SELECT datname, datistemplate,
                   (SELECT count(*) FROM pg_replication_slots WHERE database = datname),
                   (SELECT string_agg(gid, ', ') FROM pg_prepared_xacts WHERE database = datname),
                   (SELECT string_agg(quote_ident(subname), ', ') FROM pg_subscription
                    WHERE subdbid = pg_database.oid AND subenabled)
            FROM pg_database WHERE oid = %s
            """,
            (oid,),
        ).fetchone()
    if row is None:
        return
    name, template, slots, prepared, subscriptions = row
    if template:
        raise Refused(f"{name!r} is a template: new databases would be made of what was restored",
                      hint=f"ALTER DATABASE {name} IS_TEMPLATE false, or restore with --into")  # fmt: skip
    if slots:
        raise Refused(
            f"{slots} logical replication slots read from {name!r}: they would stay with the database "
            "that is replaced",
            hint="stop what subscribes and drop the slots, or restore with --into",
        )
    if prepared:
        raise Refused(f"{name!r} has prepared transactions, which no rename passes over: {prepared}",
                      hint="COMMIT PREPARED or ROLLBACK PREPARED each of them")  # fmt: skip
    if subscriptions:
        raise Refused(
            f"{name!r} subscribes ({subscriptions}): the database that is replaced would go on taking the "
            "changes, and the other would never see them",
            hint=f"ALTER SUBSCRIPTION … DISABLE in {name!r}; ENABLE it in the one that takes its place",
        )


def swap_databases(server: Target, *, live: str, aside: str | None, new: str) -> float:
    """Rename ``live`` to ``aside`` (None: there is no live one) and ``new`` to ``live``.

    Returns the seconds it took. Raises RestoreFailed; then nothing was renamed.
    """
    began = time.monotonic()
    renames = [(live, aside)] if aside is not None else []
    renames.append((new, live))
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _rename_all(server, renames)
            return time.monotonic() - began
        except psycopg.errors.ObjectInUse as error:
            if attempt == _ATTEMPTS:
                raise RestoreFailed(
                    f"{live!r} is in use by sessions that do not end: {str(error).splitlines()[0]}",
                    hint="may this role end them (pg_signal_backend, for superusers' a superuser)?",
                ) from error
        except psycopg.Error as error:
            raise RestoreFailed(
                f"the databases cannot be renamed: {str(error).splitlines()[0]}"
            ) from error
    raise AssertionError("unreachable")


def _rename_all(server: Target, renames: list[tuple[str, str]]) -> None:
    names = [old for old, _ in renames]
    failure: list[psycopg.Error] = []
    with connect(server, autocommit=False) as renaming, connect(server) as ending:
        renaming.execute("SET LOCAL lock_timeout = '15s'")

        def rename() -> None:
            try:
                for old, new in renames:
                    renaming.execute(
                        sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                            sql.Identifier(old), sql.Identifier(new)
                        )
                    )
                renaming.commit()
            except psycopg.Error as error:
                failure.append(error)

        thread = threading.Thread(target=rename, name="rename")
        thread.start()
        while thread.is_alive():
            _end_sessions(ending, names)
            thread.join(_PAUSE)
    if failure:
        raise failure[0]


def _end_sessions(connection: psycopg.Connection, databases: list[str]) -> None:
    """End the sessions in these databases, each by itself: one that may not be ended keeps no other."""
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = ANY (%s) AND pid <> pg_backend_pid()",
        (databases,),
    ).fetchall()
    for (pid,) in rows:
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
