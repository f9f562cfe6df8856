"""The journal of a restore of the database.

It names databases by OID too: names change in a swap, OIDs do not, so after a kill it is known what was
swapped, whoever looks.

One restore of a database at a time: a lock on a file beside the journals, for processes of one host, and
an advisory lock in the server, for all of them.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg

from kyb_backup_pipeline.engine.errors import Locked
from kyb_backup_pipeline.engine.journal import JournalFolder, StepJournal, journal_folder
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.settings import Settings

_NAME = re.compile(r"restore_\d{8}_\d{6}_\d{6}\.json")


class Journal(StepJournal):
    """One restore. ``old_oid`` and ``new_oid`` are those of the live and of the restored database.

    ``kept``: the restored database did not come into place, and was left for a person to look at.
    ``rollback``: what comes into place is a database that was there before.
    """

    host: str
    port: int
    database: str
    new_name: str
    replaced_name: str
    into: str | None = None
    old_oid: int | None = None
    new_oid: int | None = None
    safety_backup: str | None = None
    kept: bool = False
    rollback: bool = False
    safety_wanted: bool = True
    tables: tuple[str, ...] = ()


class Journals(JournalFolder):
    """The journals of restores of databases."""

    @classmethod
    def of(cls, settings: Settings) -> "Journals":
        return cls(journal_folder(settings))

    def begin(
        self, target: Target, backup_id: str, *, into: str | None, now: datetime, **wishes: Any
    ) -> Journal:
        """A new journal, written down. Raises RestoreFailed if it cannot be written."""
        stamp = f"{now:%Y%m%d%H%M%S}"
        journal = Journal(
            restore_id=f"restore_{now:%Y%m%d_%H%M%S_%f}",
            backup_id=backup_id,
            host=target.host,
            port=target.port,
            database=target.dbname,
            new_name=derived_name(into or target.dbname, f"_restoring_{stamp}"),
            replaced_name=derived_name(target.dbname, f"_replaced_{stamp}"),
            into=into,
            began_at=now,
            **wishes,
        )
        self.keep(journal)
        return journal

    def all(self, target: Target) -> list[Journal]:
        """The journals of a server, the newest first."""
        return [j for j in self.read(Journal, _NAME)
                if (j.host, j.port) == (target.host, target.port)]  # fmt: skip

    @contextlib.contextmanager
    def holding(self, target: Target) -> Iterator[psycopg.Connection]:
        """Hold the restore's lock of a database, on this host and in the server. Raises Locked.

        It is the connection that holds the lock in the server.
        """
        place = f"{target.host}:{target.port}/{target.dbname}"
        with self.locked(place, _taken(target)), holding_lock(target) as connection:
            yield connection


@contextlib.contextmanager
def holding_lock(target: Target) -> Iterator[psycopg.Connection]:
    """Hold the lock of a database in the server; it goes with the connection. Raises Locked."""
    number = int.from_bytes(hashlib.sha256(target.dbname.encode()).digest()[:7], "big")
    with connect(maintenance(target)) as connection:
        (free,) = connection.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone() or (
            False,
        )
        if not free:
            raise Locked(_taken(target), hint="wait for it; its journal stands in the repository's "
                         "database/recovery")  # fmt: skip
        try:
            yield connection
        finally:
            with contextlib.suppress(psycopg.Error):  # else it goes with the session, a bit later
                connection.execute("SELECT pg_advisory_unlock_all()")


def _taken(target: Target) -> str:
    return f"another restore of {target.dbname!r} on {target.host}:{target.port} is at work"


def maintenance(target: Target) -> Target:
    """Where to be while ``target``'s database is made, renamed or dropped."""
    return target.with_database("template1" if target.dbname == "postgres" else "postgres")


def derived_name(database: str, suffix: str) -> str:
    """A name that begins with the database's and fits into PostgreSQL's 63 bytes."""
    room = 63 - len(suffix.encode())
    return database.encode()[:room].decode(errors="ignore") + suffix
