"""The journal of a restore of the database.

It names databases by OID too: names change in a swap, OIDs do not, so after a kill it is known what was
swapped, whoever looks.

One restore of a database at a time: a lock on a file beside the journals, for processes of one host, and
an advisory lock in the server, for all of them.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg

from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.errors import Locked, NotFound
from kyb_backup_pipeline.engine.journal import JournalFolder, StepJournal, journal_folder
from kyb_backup_pipeline.engine.postgres import Target, connect

_NAME = re.compile(r"restore_\d{8}_\d{6}_\d{6}\.json")


class Journal(StepJournal):
    """One restore. ``old_oid`` and ``new_oid`` are those of the live and of the restored database.

    ``kept``: the restored database did not come into place, and was left for a person to look at.
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
        try:
            names = sorted((n for n in os.listdir(self.folder) if _NAME.fullmatch(n)), reverse=True)
        except OSError:
            return []
        found = [Journal.model_validate_json((self.folder / name).read_bytes()) for name in names]
        return [j for j in found if (j.host, j.port) == (target.host, target.port)]

    def find(self, restore_id: str) -> Journal:
        """The journal of one restore. Raises NotFound."""
        path = self.folder / f"{restore_id}.json"
        if not _NAME.fullmatch(path.name) or not path.exists():
            raise NotFound(f"there is no restore {restore_id!r} in {self.folder}")
        return Journal.model_validate_json(path.read_bytes())

    @contextlib.contextmanager
    def holding(self, target: Target) -> Iterator[None]:
        """Hold the restore's lock of a database, on this host and in the server. Raises Locked."""
        key = f"{target.host}:{target.port}/{target.dbname}"
        number = int.from_bytes(hashlib.sha256(target.dbname.encode()).digest()[:7], "big")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f".{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _locked(target) from None
            with connect(maintenance(target)) as connection:
                (free,) = connection.execute(
                    "SELECT pg_try_advisory_lock(%s)", (number,)
                ).fetchone() or (False,)
                if not free:
                    raise _locked(target)
                try:
                    yield
                finally:
                    with contextlib.suppress(
                        psycopg.Error
                    ):  # else it goes with the session, a bit later
                        connection.execute("SELECT pg_advisory_unlock(%s)", (number,))
        finally:
            os.close(descriptor)


def maintenance(target: Target) -> Target:
    """Where to be while ``target``'s database is made, renamed or dropped."""
    return target.with_database("template1" if target.dbname == "postgres" else "postgres")


def derived_name(database: str, suffix: str) -> str:
    """A name that begins with the database's and fits into PostgreSQL's 63 bytes."""
    room = 63 - len(suffix.encode())
    return database.encode()[:room].decode(errors="ignore") + suffix


def _locked(target: Target) -> Locked:
    return Locked(
        f"another restore of {target.dbname!r} on {target.host}:{target.port} is at work",
        hint="wait for it; its journal stands in the repository's database/recovery",
    )
