"""Databases that a restore replaced: what there is, the way back to one, and the way out for good.

They are known by the OID that the journal recorded, never by a name alone; only a person drops them.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.database_swap import (
    database_named,
    database_oid,
)
from kyb_backup_pipeline.engine.errors import NotFound, RestoreFailed
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery_journal import Journal, Journals, derived_name, maintenance
from kyb_backup_pipeline.engine.restore_outlook import restoring_target
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.subscriptions import forget_subscriptions

_log = logging.getLogger(__name__)

ROLLED_BACK = "_rolled_back_"
"""In the name of a restored database that was put aside again."""


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A database that is not in use any more; ``bytes`` on the server's disk."""

    name: str
    oid: int
    bytes: int
    replaced_at: datetime
    by_backup: str
    journal: Journal


def replaced_databases(settings: Settings) -> list[Replaced]:
    """Those that are still there, the newest first."""
    target = restoring_target(settings)
    server = maintenance(target)
    found: dict[int, Replaced] = {}
    for journal in Journals.of(settings).all(target):
        if journal.database != target.dbname or journal.into is not None:
            continue
        for oid in (journal.old_oid, journal.new_oid):
            database = database_named(server, oid) if oid is not None else None
            if database is None or database.name == target.dbname or oid in found:
                continue
            if journal.state == "running" or not _is_of(journal, database.name):
                continue
            found[database.oid] = Replaced(
                name=database.name, oid=database.oid, bytes=database.bytes,
                replaced_at=journal.finished_at or journal.began_at, by_backup=journal.backup_id,
                journal=journal,
            )  # fmt: skip
    return list(found.values())


def _is_of(journal: Journal, name: str) -> bool:
    """Whether a restore gave a database that name: on another server at this address an OID is no proof."""
    aside = derived_name(journal.database, f"{ROLLED_BACK}{'0' * 14}")[:-14]
    return name in (journal.replaced_name, journal.new_name) or name.startswith(aside)


def drop_replaced(settings: Settings, name: str) -> Replaced:
    """Drop one of them for good. Raises NotFound for any other database, RestoreFailed."""
    chosen = next((r for r in replaced_databases(settings) if r.name == name), None)
    if chosen is None:
        raise NotFound(f"{name!r} is no database that a restore replaced",
                       hint="kyb-backup restore replaced lists those")  # fmt: skip
    server = maintenance(restoring_target(settings))
    journals = Journals.of(settings)
    with journals.holding(restoring_target(settings)):
        if database_oid(server, name) != chosen.oid:
            raise RestoreFailed(f"{name!r} is another database by now")
        try:
            for note in forget_subscriptions(server.with_database(name)):
                _log.warning("%s", note)
            with connect(server) as connection:
                connection.execute(
                    sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
                )
        except psycopg.Error as error:
            raise RestoreFailed(
                f"{name!r} cannot be dropped: {str(error).splitlines()[0]}"
            ) from error
    return chosen


def last_swapped(settings: Settings) -> Journal:
    """The journal of the restore that would be rolled back. Raises NotFound."""
    target = restoring_target(settings)
    server = maintenance(target)
    live = database_oid(server, target.dbname)
    for journal in Journals.of(settings).all(target):
        if journal.database != target.dbname or journal.into is not None or journal.rollback:
            continue
        if journal.new_oid is not None and journal.new_oid == live and journal.old_oid is not None:
            old = database_named(server, journal.old_oid)
            if old is None or not _is_of(journal, old.name):
                raise NotFound(
                    f"the database that {journal.restore_id} replaced is gone",
                    hint=f"its safety backup: {journal.safety_backup or 'none was taken'}",
                )
            return journal
    raise NotFound(f"{target.dbname!r} was not put in place by a restore that is known here",
                   hint="kyb-backup restore replaced lists the databases that were replaced")  # fmt: skip
