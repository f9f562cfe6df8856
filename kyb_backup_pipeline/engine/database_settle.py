"""What a restore of the database owes, and who does it: the restore that failed, or ``restore repair``.

Databases are known by their OIDs, so that whatever ended a restore it is clear which one is in place.
"""

import contextlib
from collections.abc import Sequence

import psycopg

from kyb_backup_pipeline.engine.database_swap import database_oid, swap_databases
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.journal import State
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Target
from kyb_backup_pipeline.engine.recovery_journal import Journal, Journals, maintenance
from kyb_backup_pipeline.engine.restore_outlook import drop_restoring, restoring_target
from kyb_backup_pipeline.engine.service import start_service_again, stop_service
from kyb_backup_pipeline.engine.settings import Settings


def is_swapped(server: Target, journal: Journal) -> bool:
    """Whether the restored database is in place: by what it is, not by its name."""
    return (
        journal.into is None
        and journal.new_oid is not None
        and database_oid(server, journal.database) == journal.new_oid
    )


def settle(settings: Settings, server: Target, journal: Journal) -> str:
    """Do what a restore owes, and say how things stand. Raises KybError, psycopg.Error if it cannot.

    Before the swap the half-restored database goes; behind it the restored one stays, unless it is to be put
    back; a service that was stopped is started.
    """
    state: State = "swapped back" if journal.state == "swapped back" else "failed"
    if is_swapped(server, journal) and journal.putting_back and journal.old_oid is not None:
        if journal.service_wanted:
            journal.stopped = True
            with contextlib.suppress(KybError):
                stop_service(settings.application)
        swap_databases(
            server, live=journal.database, aside=journal.new_name, new=journal.replaced_name
        )
        journal.kept = True
        said = f"swapped back: {journal.database!r} is the old one, the restored one {journal.new_name!r}"
        state = journal.state = "swapped back"
    elif is_swapped(server, journal):
        said = f"the restored database is in place, the old one is {journal.replaced_name!r}"
        if journal.putting_back:
            said = "there was no database before: the restored one stays"
        state = "done"
    else:
        if not (journal.kept or journal.rollback):
            drop_restoring(server, journal)
        said = f"{journal.database!r} is as it was" if journal.into is None else ""
    if journal.stopped and journal.service_wanted:
        start_service_again(settings.application, said)
        journal.stopped = False
        said += "; the service runs again"
    journal.state, journal.given_up, journal.putting_back = state, False, False
    return said


def repair_database(
    settings: Settings, *, service: bool = True, machines: Sequence[str] = ()
) -> list[str]:
    """Finish what killed restores of the database left: what was done about each.

    One that was killed before its swap is undone, one that was killed behind it is complete; where it had
    stopped the service, that is started. Without ``service`` that debt is forgiven. Raises Locked while a
    restore is at work, RestoreFailed if the service does not start.
    """
    target = restoring_target(settings)
    with Journals.of(settings).holding(target):
        return settle_left(
            settings, target, service=service, forgive=not service, machines=machines
        )


def settle_left(
    settings: Settings,
    target: Target,
    *,
    service: bool,
    forgive: bool = False,
    machines: Sequence[str] = (),
) -> list[str]:
    """The same for the one who holds the lock: whoever else's journal says that it runs is dead.

    A service that another machine's restore had stopped is that machine's to start, unless it is among
    ``machines``. Without ``service`` a journal that owes one is left open, or forgiven.
    """
    server, journals = maintenance(target), Journals.of(settings)
    said, failed = [], []
    for journal in journals.all(target):
        if journal.settled or journal.alive():
            continue
        owes = journal.stopped and journal.service_wanted
        if owes and not forgive and (not service or not journal.ours(machines)):
            said.append(
                f"{journal.restore_id} stopped the service on {journal.machine}: it is left open"
            )
            continue
        if forgive:
            journal.service_wanted = False
        try:
            text = settle(settings, server, journal)
        except (KybError, psycopg.Error) as error:
            failed.append(error)
            continue
        journal.error = journal.error or "it was killed"
        journal.finished_at = journal.finished_at or utc_now()
        journals.keep(journal)
        said.append(f"{journal.restore_id} was not finished: {text}")
    if failed:
        raise failed[0]
    return said
