"""The way back from a restore: the database that it replaced takes its place again.

It has a journal as a restore has, so that whatever ends it halfway, ``restore repair`` settles: the service
runs, and the one database or the other is in place.
"""

from contextlib import ExitStack

import psycopg

from kyb_backup_pipeline.engine.database_settle import is_swapped, settle, settle_left
from kyb_backup_pipeline.engine.database_swap import (
    check_swappable,
    database_named,
    database_oid,
    swap_databases,
)
from kyb_backup_pipeline.engine.errors import KybError, RestoreFailed
from kyb_backup_pipeline.engine.journal import Step
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_journal import Journal, Journals, derived_name, maintenance
from kyb_backup_pipeline.engine.replaced import ROLLED_BACK
from kyb_backup_pipeline.engine.restore_outlook import restoring_target, told
from kyb_backup_pipeline.engine.service import start_service, stop_service
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.stepped import Stepped


def roll_back(settings: Settings, restore: Journal, *, service: bool = True) -> str:
    """Put the replaced database back; the name that the restored one has from now on.

    Raises RestoreFailed, Locked; what stands then is told with the error, and the service was started again.
    """
    with _Rollback(settings, restore, service=service) as back:
        back.run()
    restore.state = "rolled back"
    back.journals.keep(restore)
    return back.journal.replaced_name


class _Rollback(Stepped[Journal]):
    journals: Journals

    def __init__(self, settings: Settings, restore: Journal, *, service: bool) -> None:
        now = utc_now()
        self.settings = settings
        self.target = restoring_target(settings)
        self.server = maintenance(self.target)
        self.journals = Journals.of(settings)
        assert restore.old_oid is not None
        assert restore.new_oid is not None
        with ExitStack() as stack:
            stack.enter_context(self.journals.holding(self.target))
            settle_left(settings, self.target, service=service)
            old = database_named(self.server, restore.old_oid)
            if old is None or database_oid(self.server, self.target.dbname) != restore.new_oid:
                raise RestoreFailed("the databases are not those of the journal any more")
            check_swappable(self.server, restore.new_oid)
            self.journal = self.journals.begin(
                self.target, restore.backup_id, into=None, now=now, service_wanted=service,
                rollback=True, kept=True, old_oid=restore.new_oid, new_oid=restore.old_oid,
            )  # fmt: skip
            self.journal.new_name = old.name
            self.journal.replaced_name = derived_name(
                self.target.dbname, f"{ROLLED_BACK}{now:%Y%m%d%H%M%S}"
            )
            self.journals.keep(self.journal)
            self.held = stack.pop_all()

    @property
    def steps(self) -> tuple[str, ...]:
        return ("stop", "swap", "start")

    def _told(self, error: psycopg.Error) -> KybError:
        return told(error)

    def _stop(self, step: Step) -> None:
        if self.journal.service_wanted:
            self.journal.stopped = True
            self.journals.keep(self.journal)
            stop_service(self.settings.application)

    def _swap(self, step: Step) -> None:
        journal = self.journal
        swap_databases(
            self.server, live=journal.database, aside=journal.replaced_name, new=journal.new_name
        )

    def _start(self, step: Step) -> None:
        if self.journal.service_wanted:
            start_service(self.settings.application)
            self.journal.stopped = False

    def _owed(self, name: str, error: BaseException) -> str:
        done = is_swapped(self.server, self.journal)
        said = settle(self.settings, self.server, self.journal)
        return said if done else f"nothing was swapped; {said}"
