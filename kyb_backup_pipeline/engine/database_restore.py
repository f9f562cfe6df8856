"""Bringing the database back: beside the live one first, in its place only once it is proved.

The live database is not touched before the restored one, under a name of its own on the same server, has
been compared with the evidence. Then the service is stopped and the names are swapped; the old database
stays, under another name, until a person drops it.

    verify      every byte of the backup
    check       versions, rights, room, what a rename cannot pass over; leftovers of killed restores go
    save        a safety backup of what is there now, itself verified
    create      roles that are missing, and an empty database as the source's was
    load        the dump, ON_ERROR_STOP
    settle      settings, owner and grants of the database itself; ANALYZE
    compare     with the evidence
    stop        the service
    swap        two renames in one transaction
    start       the service
    health      its health address, smoke queries; what fails here swaps back

Where to look next: ``stepped`` for the journal of the steps, ``database_swap``, ``restore``.
"""

import contextlib
import errno
import functools
import logging
import os
import time
from contextlib import ExitStack
from datetime import datetime

import psycopg

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.database_mark import mark, unmark
from kyb_backup_pipeline.engine.database_settle import is_swapped, settle, settle_left
from kyb_backup_pipeline.engine.database_swap import (
    check_swappable,
    database_oid,
    swap_databases,
)
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    KybError,
    NotEnoughSpace,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.journal import Step
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Programs, Target, client_programs, connect
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.quiet_session import has_tables, quiet
from kyb_backup_pipeline.engine.recovery_journal import (
    Journal,
    Journals,
    derived_name,
    holding_lock,
    maintenance,
)
from kyb_backup_pipeline.engine.restore import (
    apply_database_settings,
    check_requirements,
    create_database,
    load_dump,
    load_globals,
    owner_of,
)
from kyb_backup_pipeline.engine.restore_outlook import (
    Wish,
    check_openable,
    check_wish,
    drop_restoring,
    home_of,
    leftovers,
    look_ahead,
    restoring_target,
    server_place,
    told,
)
from kyb_backup_pipeline.engine.restore_source import (
    evidence_of,
    globals_of,
    origin_of,
    source_of,
)
from kyb_backup_pipeline.engine.restored_proof import prove_restored
from kyb_backup_pipeline.engine.safety_backup import take_safety_backup
from kyb_backup_pipeline.engine.service import (
    await_health,
    start_service,
    stop_service,
)
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.single_tables import keep_tables
from kyb_backup_pipeline.engine.smoke import ask_smoke_queries
from kyb_backup_pipeline.engine.stepped import Stepped
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.subscriptions import subscriptions_of
from kyb_backup_pipeline.engine.verify_offsite import require_sound

_log = logging.getLogger(__name__)

STEPS = ("verify", "check", "save", "create", "load", "settle", "compare", "stop", "swap", "start",
         "health")  # fmt: skip
BESIDE_STEPS = STEPS[: STEPS.index("compare") + 1]
"""Those of a restore that stays beside the live database."""


class DatabaseRestore(Stepped[Journal]):
    """One restore of the database."""

    journals: Journals

    def __init__(
        self,
        settings: Settings,
        backup: Backup,
        wish: Wish,
        journal: Journal,
        held: ExitStack,
        lock: psycopg.Connection,
        report: Reporter = silent,
    ) -> None:
        self.settings = settings
        self.backup = backup
        self.wish = wish
        self.journal = journal
        self.held = held
        self.lock = lock
        self.report = report
        self.journals = Journals.of(settings)
        self.target = restoring_target(settings)
        self.server = maintenance(self.target)
        self.source = source_of(backup, settings.encryption)

    @classmethod
    def begin(
        cls,
        settings: Settings,
        backup: Backup,
        wish: Wish,
        *,
        now: datetime,
        report: Reporter = silent,
    ) -> "DatabaseRestore":
        """Take the locks and write a journal.

        Raises InvalidRequest, Locked, RestoreFailed, CouldNotVerify without the key.
        """
        check_wish(settings, backup, wish)
        check_openable(settings, backup, wish)
        target = restoring_target(settings)
        journals = Journals.of(settings)
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(journals.holding(target))
                stack.enter_context(Repository(settings.repository).reading(backup))
                settle_left(settings, target, service=wish.service)
                journal = journals.begin(
                    target, backup.backup_id, into=wish.into, run_id=wish.run_id, now=now,
                    safety_wanted=wish.safety_backup, service_wanted=wish.service, tables=wish.tables,
                    place=backup.place,
                )  # fmt: skip
            except psycopg.Error as error:
                raise told(error) from error
            return cls(settings, backup, wish, journal, stack.pop_all(), lock, report)

    @property
    def steps(self) -> tuple[str, ...]:
        return STEPS if self.wish.into is None else BESIDE_STEPS

    def _check_held(self) -> None:
        """A server that was restarted has forgotten the lock: it is taken anew."""
        try:
            self.lock.execute("SELECT 1")
        except psycopg.Error:
            self.lock = self.held.enter_context(holding_lock(self.target))

    def _told(self, error: psycopg.Error) -> KybError:
        return told(error)

    # The steps

    def _verify(self, step: Step) -> None:
        step.detail = require_sound(
            self.settings, self.backup, now=utc_now(), report=self.report, run_id=self.wish.run_id
        )

    def _check(self, step: Step) -> None:
        for name, journal in leftovers(self.settings, self.journal.restore_id):
            drop_restoring(self.server, journal)
            self.journal.notes.append(f"removed {name!r}, which {journal.restore_id} had left")
        outlook = look_ahead(self.settings, self.backup, self.wish, now=utc_now())
        if outlook.room is not None and outlook.room < outlook.needed:
            raise NotEnoughSpace(
                f"{outlook.room / 2**30:.2f} GiB free where the server keeps its data, about "
                f"{outlook.needed / 2**30:.2f} GiB needed for a second database and its WAL",
                hint="free space there; old databases are listed by kyb-backup restore replaced",
            )
        self.journal.old_oid = database_oid(self.server, self.target.dbname)
        if self.wish.into is None and self.journal.old_oid is not None:
            check_swappable(self.server, self.journal.old_oid)
        self.journal.notes += outlook.notes
        step.detail = f"PostgreSQL {outlook.server_version}"

    def _save(self, step: Step) -> None:
        if self.wish.into is not None or self.journal.old_oid is None:
            step.detail = "nothing is replaced"
            return
        if not self.wish.safety_backup:
            step.detail = "not wanted"
            return
        self.journal.safety_backup = step.detail = take_safety_backup(
            self.settings, self.backup.backup_id, began_at=self.journal.began_at,
            run_id=self.wish.run_id, report=self.report,
        )  # fmt: skip

    def _create(self, step: Step) -> None:
        origin = origin_of(self.source)
        check_requirements(self.server, origin.requirements)
        text, recorded = globals_of(self.source)
        if not recorded:
            self.journal.notes.append("roles were not recorded: those that the dump names are made")
        self.journal.notes += load_globals(self.server, text, throwaway=False)
        self._choose_names()
        with connect(self.server) as connection:
            home = home_of(connection, self.target)
        create_database(
            self.server, self.journal.new_name, origin.requirements, owner=self._owner(),
            tablespace=home.name if home is not None and home.allowed else None,
        )  # fmt: skip
        mark(self.server, self.journal)
        self.journal.new_oid = database_oid(self.server, self.journal.new_name)
        step.detail = self.journal.new_name

    def _load(self, step: Step) -> None:
        how = self.settings.recovery
        with connect(self.server) as connection:
            place = server_place(connection, self.target)

        def watched(progress: Progress) -> None:
            # a server without room for its WAL stops, and the live database with it
            if place is not None and free_bytes(place) < how.minimum_free:
                raise NotEnoughSpace(
                    f"less than {how.minimum_free / 2**20:.0f} MiB are free in {place}: the load was stopped",
                    hint="free space there; recovery.minimum_free says how much must stay",
                )
            self.report(progress)

        watched(Progress(step="restore", done=0))
        try:
            load_dump(
                self.source, self._programs(), self._new, jobs=how.jobs,
                stall_timeout=how.stall_timeout, single_transaction=False, report=watched,
            )  # fmt: skip
        except CouldNotVerify as error:
            if os.strerror(errno.ENOSPC) in error.message:
                raise NotEnoughSpace(error.message, hint="free space on the server") from error
            raise

    def _settle(self, step: Step) -> None:
        unmark(self.server, self.journal)
        if self.source.manifest.legacy:
            self.journal.notes.append("settings and grants of the database were not recorded")
        else:
            self.journal.notes += apply_database_settings(self.source, self._programs(), self._new)
        with connect(self._new) as connection:
            connection.execute("ANALYZE")
            self.journal.notes += [
                f"the subscription {name} is disabled as it came back: ALTER SUBSCRIPTION {name} ENABLE"
                for name, _ in subscriptions_of(connection, self.journal.new_name)
            ]

    def _compare(self, step: Step) -> None:
        evidence = evidence_of(self.source)
        if evidence is None:
            self._check_not_empty()
            step.detail = "restored; the backup has no evidence to compare with"
        else:
            step.detail, notes = prove_restored(
                self._new, evidence, jobs=self.settings.recovery.jobs, report=self.report,
                untouched=self.target,
            )  # fmt: skip
            self.journal.notes += notes
        if self.wish.into is not None:
            self._keep_beside()

    def _check_not_empty(self) -> None:
        with connect(self._new) as connection:
            if self.wish.into is None and not has_tables(connection):
                raise RestoreFailed(
                    f"{self.backup.backup_id} holds no table at all, and has no evidence that its source "
                    "held none",
                    hint=f"{self.target.dbname!r} was not touched; restore another (kyb-backup list), or "
                    "with --into NAME to look at it",
                )

    def _stop(self, step: Step) -> None:
        if self.journal.old_oid is not None:
            # again: what came since the first look is found before anything is interrupted
            check_swappable(self.server, self.journal.old_oid)
        if self.wish.service:
            self.journal.stopped = True
            self.journals.keep(self.journal)
            stop_service(self.settings.application)

    def _swap(self, step: Step) -> None:
        journal = self.journal
        assert journal.new_oid is not None
        began = time.monotonic()
        live = database_oid(self.server, journal.database)
        if live != journal.old_oid and live != journal.new_oid:
            raise RestoreFailed(
                f"{journal.database!r} was replaced by somebody else meanwhile",
                hint="nothing was swapped; begin again",
            )
        if live != journal.new_oid:
            aside = None if journal.old_oid is None else journal.replaced_name
            try:
                swap_databases(
                    self.server, live=journal.database, aside=aside, new=journal.new_name
                )
            except (RestoreFailed, psycopg.Error):
                with contextlib.suppress(KybError, psycopg.Error):
                    live = database_oid(self.server, journal.database)
                if live != journal.new_oid:  # else it was committed, and only the answer was lost
                    raise
        stopped = next(s for s in journal.steps if s.name == "stop")
        journal.interruption_seconds = (utc_now() - stopped.began_at).total_seconds()
        step.detail = f"{time.monotonic() - began:.2f} s"

    def _start(self, step: Step) -> None:
        if self.wish.service:
            start_service(self.settings.application)
            self.journal.stopped = False

    def _health(self, step: Step) -> None:
        how = self.settings.recovery
        if how.health_url and self.wish.service:
            await_health(how.health_url, how.health_timeout)
        findings, asked = ask_smoke_queries(self.settings, self.target)
        if findings:
            raise RestoreFailed(f"{findings[0].object} {findings[0].message}")
        step.detail = f"{asked} smoke queries answered"

    # What is around them

    @functools.cached_property
    def _quiet(self) -> Target:
        return quiet(self.target)

    @property
    def _new(self) -> Target:
        return self._quiet.with_database(self.journal.new_name)

    def _choose_names(self) -> None:
        """Names that nobody has, written down before there is a database of that name."""
        journal = self.journal
        stamp = f"{utc_now():%Y%m%d%H%M%S%f}"
        journal.new_name = derived_name(journal.into or journal.database, f"_restoring_{stamp}")
        journal.replaced_name = derived_name(journal.database, f"_replaced_{stamp}")
        for name in (journal.new_name, journal.replaced_name):
            if database_oid(self.server, name) is not None:
                raise Refused(f"there is a database {name!r} already", hint="begin again")
        self.journals.keep(journal)

    def _owner(self) -> str | None:
        """Those of the old scripts say nothing about the database itself."""
        if self.source.manifest.legacy:
            return self.settings.database.user
        return owner_of(self.source)

    def _programs(self) -> Programs:
        origin = origin_of(self.source)
        return client_programs(self.settings.postgres, max(origin.major, _major(self.server)))

    def _keep_beside(self) -> None:
        """Give the restored database its wanted name, and keep only the wanted tables of it."""
        assert self.wish.into is not None
        if self.wish.tables:
            self.journal.notes += keep_tables(self._new, self.wish.tables)
        swap_databases(self.server, live=self.wish.into, aside=None, new=self.journal.new_name)

    def _owed(self, name: str, error: BaseException) -> str:
        journal = self.journal
        if is_swapped(self.server, journal):
            if name == "health":
                journal.putting_back = True
            return settle(self.settings, self.server, journal)
        if name == "compare" and isinstance(error, RestoreFailed):
            journal.kept = True
        return settle(self.settings, self.server, journal)


def _major(server: Target) -> int:
    with connect(server) as connection:
        return connection.info.server_version // 10000
