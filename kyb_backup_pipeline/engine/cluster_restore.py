"""A whole cluster as it was at a moment: beside the running one, or in its place.

The running server's folder is not touched before the recovered one has been proved; it stays beside after
the switch, until a person removes it.

    check       what leads to the moment; versions, room, whether the folders can change places
    collect     for ``latest``: the service is stopped, and the last of the log brought in, so that nothing
                that was written is left behind
    recover     a new data folder: every file of the base compared, the log replayed, the markers looked
                for, every row read
    stop        the service, then the server
    switch      one exchange of names; the configuration files are those in force before
    start       the server, then the service
    health      its health address, smoke queries; what fails in these two puts the old folder back

Where to look next: ``point_in_time`` for the recovery, ``data_folder`` for the switch.
"""

import os
import re
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.cluster_journal import (
    ClusterJournal,
    ClusterJournals,
    new_recovery_id,
)
from kyb_backup_pipeline.engine.cluster_settle import await_server, is_switched, settle, settle_left
from kyb_backup_pipeline.engine.data_folder import (
    check_switchable,
    live_data_folder,
    server_runs,
    take_the_place,
)
from kyb_backup_pipeline.engine.encryption import check_own
from kyb_backup_pipeline.engine.errors import (
    DatabaseUnreachable,
    InvalidRequest,
    KybError,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.incremental import take_incremental_backup
from kyb_backup_pipeline.engine.journal import Step
from kyb_backup_pipeline.engine.manifest import Manifest, utc_now
from kyb_backup_pipeline.engine.point_in_time import (
    Outcome,
    check_place,
    recover_into,
)
from kyb_backup_pipeline.engine.postgres import connect, server_programs
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.recovery import check_plan_key
from kyb_backup_pipeline.engine.recovery_journal import maintenance
from kyb_backup_pipeline.engine.recovery_plan import (
    RecoveryPlan,
    parse_moment,
    plan_recovery,
)
from kyb_backup_pipeline.engine.renames import inode_of
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_outlook import restoring_target, told
from kyb_backup_pipeline.engine.service import (
    await_health,
    start_server,
    start_service,
    stop_server,
    stop_service,
)
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.smoke import ask_smoke_queries
from kyb_backup_pipeline.engine.stepped import Stepped
from kyb_backup_pipeline.engine.store import Repository

STEPS = ("check", "collect", "recover", "stop", "switch", "start", "health")
BESIDE_STEPS = ("check", "recover")
"""Those of a recovery that stays beside the running server."""

_COLLECT_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class ClusterWish:
    """What the caller asks for: ``at`` as ``parse_moment`` reads it, ``into`` a folder to be made.

    With ``switch`` it takes the running server's place, and ``into`` may be left out. ``place`` is the off-site
    place that the backups were fetched from before, for the journal.
    """

    at: str
    timeline: int | None = None
    into: Path | None = None
    switch: bool = False
    last_wal: bool = True
    service: bool = True
    place: str | None = None
    run_id: str | None = None


class ClusterRestore(Stepped[ClusterJournal]):
    """One recovery to a moment. ``outcome`` is there after the step ``recover`` of this process."""

    outcome: Outcome | None = None

    def __init__(
        self,
        settings: Settings,
        journal: ClusterJournal,
        held: ExitStack,
        report: Reporter = silent,
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.held = held
        self.report = report
        self.journals = ClusterJournals.of(settings)

    @classmethod
    def begin(
        cls, settings: Settings, wish: ClusterWish, *, now: datetime, report: Reporter = silent
    ) -> "ClusterRestore":
        """Take the lock and write a journal. Raises Refused, InvalidRequest, RestoreFailed, Locked."""
        journal = prepare(settings, wish, now)
        journals = ClusterJournals.of(settings)
        with ExitStack() as stack:
            stack.enter_context(journals.holding(journal.live or journal.into))
            settle_left(settings, journal.live or journal.into, service=wish.service)
            journals.keep(journal)
            return cls(settings, journal, stack.pop_all(), report)

    @property
    def steps(self) -> tuple[str, ...]:
        return BESIDE_STEPS if self.journal.live is None else STEPS

    def _told(self, error: psycopg.Error) -> KybError:
        return told(error)

    # The steps

    def _check(self, step: Step) -> None:
        plan = look_over(self.settings, self.journal)
        if self.journal.live is not None:
            self.journal.old_inode = inode_of(self._live)
            self.journal.notes += what_is_left_behind(self.settings)
        step.detail = f"{plan.base.backup_id}, up to {len(plan.segments)} segments"

    def _collect(self, step: Step) -> None:
        """For ``latest``: nothing that was acknowledged is left behind, which the server's own last
        transaction proves once it is down.
        """
        if not parse_moment(self.journal.at).latest:
            step.detail = "not needed: what was written behind the moment is left out on purpose"
            return
        if not self.journal.last_wal_wanted:
            step.detail = "not wanted: what is in the repository counts"
            return
        if not (self._live / "global" / "pg_control").exists():
            step.detail = "the data folder is gone: what is in the repository counts"
            return
        if not server_runs(self._live):
            raise Refused(
                f"the server on {self._live} is down: what it wrote last is not in the repository",
                hint="start it; or --without-last-wal does without what it wrote since the last increment",
            )
        self._stop_service()
        for _ in range(_COLLECT_ATTEMPTS):
            taken = self._take_increment()
            self._stop_server()
            written = transactions_behind(self.settings, taken.require_manifest(), self._live)
            if not written:
                step.detail = taken.backup_id
                return
            start_server(self.settings.recovery)
            self._await_server()
            self.journal.server_stopped = False
        raise RestoreFailed(
            f"{written} transactions were written behind the last increment, again and again",
            hint="who writes there besides the service? stop them, or --without-last-wal",
        )

    def _take_increment(self) -> Backup:
        try:
            return take_incremental_backup(
                self.settings,
                Request(run_id=self.journal.run_id),
                now=utc_now(),
                report=self.report,
            )
        except DatabaseUnreachable as error:
            raise Refused(
                f"the server runs, but the last of its log cannot be brought in: {error.message}",
                hint="mend that; or --without-last-wal does without what was written since the last increment",
            ) from error

    def _recover(self, step: Step) -> None:
        plan = plan_of(self.settings, self.journal)
        self.outcome = outcome = recover_into(
            self.settings, plan, self._into, now=utc_now(), report=self.report,
            tablespaces=Path(self.journal.tablespaces) if self.journal.tablespaces else None,
        )  # fmt: skip
        if self.journal.tablespaces and os.path.exists(self.journal.tablespaces):
            self.journal.notes.append(
                f"tablespaces lie in {self.journal.tablespaces}: they are in use"
            )
        self.journal.new_inode = inode_of(self._into)
        self.journal.notes += outcome.read.notes
        if outcome.read.findings:
            first = outcome.read.findings[0]
            raise RestoreFailed(
                f"{first.object} {first.message}",
                hint=f"the recovered cluster is in {self._into}: look at it, switch by hand if it must be",
            )
        step.detail = (
            f"{outcome.position}: {outcome.markers.committed} markers before it are committed, "
            f"{outcome.read.rows} rows in {outcome.read.tables} tables read"
        )

    def _stop(self, step: Step) -> None:
        self._stop_service()
        self._stop_server()

    def _switch(self, step: Step) -> None:
        if not is_switched(self.journal):
            self.journal.notes += take_the_place(self._live, self._into, self._replaced)
        step.detail = f"the old folder is {self._replaced}" if self.journal.old_inode else ""

    def _start(self, step: Step) -> None:
        start_server(self.settings.recovery)
        self._await_server()
        self.journal.server_stopped = False
        assert self.journal.down_since is not None
        self.journal.interruption_seconds = (utc_now() - self.journal.down_since).total_seconds()
        if self.journal.service_wanted:
            start_service(self.settings.application)
            self.journal.stopped = False

    def _health(self, step: Step) -> None:
        how = self.settings.recovery
        if how.health_url and self.journal.service_wanted:
            await_health(how.health_url, how.health_timeout)
        findings, asked = ask_smoke_queries(self.settings, restoring_target(self.settings))
        if findings:
            raise RestoreFailed(f"{findings[0].object} {findings[0].message}")
        step.detail = f"{asked} smoke queries answered"

    # What is around them

    @property
    def _into(self) -> Path:
        return Path(self.journal.into)

    @property
    def _live(self) -> Path:
        assert self.journal.live is not None
        return Path(self.journal.live)

    @property
    def _replaced(self) -> Path:
        assert self.journal.replaced is not None
        return Path(self.journal.replaced)

    def _stop_service(self) -> None:
        if self.journal.service_wanted and not self.journal.stopped:
            self.journal.stopped = True
            self.journal.down_since = self.journal.down_since or utc_now()
            self.journals.keep(self.journal)
            stop_service(self.settings.application)

    def _stop_server(self) -> None:
        self.journal.server_stopped = True
        self.journal.down_since = self.journal.down_since or utc_now()
        self.journals.keep(self.journal)
        if server_runs(self._live):
            stop_server(self.settings.recovery)
        if server_runs(self._live):
            raise RestoreFailed(f"a server still runs on {self._live}",
                                hint="recovery.stop_server_command")  # fmt: skip

    def _await_server(self) -> None:
        """Wait until the server answers, on the recovered folder. Raises RestoreFailed."""
        await_server(self.settings)
        if not server_runs(self._live):
            raise RestoreFailed(f"a server answers, but it does not run on {self._live}",
                                hint="recovery.data_directory, recovery.start_server_command")  # fmt: skip

    def _owed(self, name: str, error: BaseException) -> str:
        if name in ("switch", "start", "health"):
            self.journal.putting_back = True
        return settle(self.settings, self.journal)


def prepare(settings: Settings, wish: ClusterWish, now: datetime) -> ClusterJournal:
    """The journal of a recovery that has not begun, not written down; also for a dry run.

    Raises Refused for a moment that is not covered, InvalidRequest, NotFound.
    """
    plan = plan_recovery(Repository(settings.repository), parse_moment(wish.at, wish.timeline))
    live = live_data_folder(settings) if wish.switch else None
    stamp = f"{now:%Y%m%d_%H%M%S_%f}"
    into = wish.into
    if into is None and live is None:
        raise InvalidRequest("where to?", hint="--into DIR: a new data folder, or --switch")
    if into is None:
        assert live is not None
        into = live.with_name(f"{live.name}_recovered_{stamp}")
    return ClusterJournal(
        restore_id=new_recovery_id(now), backup_id=plan.base.backup_id, began_at=now,
        place=wish.place, run_id=wish.run_id, service_wanted=wish.service, at=wish.at, timeline=wish.timeline,
        into=str(into.absolute()), live=str(live) if live else None,
        tablespaces=f"{live}.tablespaces_{stamp}" if live else None,
        replaced=f"{live}_replaced_{stamp}" if live else None, last_wal_wanted=wish.last_wal,
    )  # fmt: skip


def plan_of(settings: Settings, journal: ClusterJournal) -> RecoveryPlan:
    """What leads to a journal's moment, as the repository is now. Raises Refused, NotFound."""
    moment = parse_moment(journal.at, journal.timeline)
    return plan_recovery(Repository(settings.repository), moment)


def look_over(settings: Settings, journal: ClusterJournal) -> RecoveryPlan:
    """What leads to the moment, if it can be done.

    Raises Refused, NotFound, NotEnoughSpace, CouldNotVerify without the key.
    """
    plan, into = plan_of(settings, journal), Path(journal.into)
    check_place(plan, into)
    _check_keys(settings, journal, plan)
    if journal.live is not None:
        cluster = plan.base.require_wal().system_identifier
        check_switchable(settings, Path(journal.live), into, cluster)
    return plan


def _check_keys(settings: Settings, journal: ClusterJournal, plan: RecoveryPlan) -> None:
    """Can all be opened that is there, and the increment that is still to be taken?"""
    check_plan_key(plan, Repository(settings.repository).wal, settings.encryption)
    collects = journal.live is not None and journal.last_wal_wanted
    if settings.encryption.at_home and collects and parse_moment(journal.at).latest:
        check_own(settings.encryption)


def what_is_left_behind(settings: Settings) -> list[str]:
    """Notes on what a base backup does not bring back, as far as the server can be asked."""
    try:
        with connect(maintenance(restoring_target(settings))) as connection:
            slots = connection.execute(
                "SELECT slot_name FROM pg_replication_slots ORDER BY 1"
            ).fetchall()
            (standby,) = connection.execute("SELECT pg_is_in_recovery()").fetchone() or (False,)
    except (KybError, psycopg.Error):
        return []
    if standby:
        raise Refused("the running server is a standby: a switch would make it a primary",
                      hint="recover with --into, and decide by hand")  # fmt: skip
    names = ", ".join(name for (name,) in slots)
    return [f"replication slots are not brought back: {names}"] if names else []


def transactions_behind(settings: Settings, increment: Manifest, data: Path) -> int:
    """How many transactions a server wrote behind an increment's marker before it was shut down.

    Raises RestoreFailed for one that was not shut down but cut off: it could not say.
    """
    wal = increment.require_wal()
    programs = server_programs(settings.postgres, increment.server_major or 0)
    printed = process.run(
        [programs.path("pg_controldata"), data], deadline=30, env={"LC_ALL": "C", "LANG": "C"}
    ).stdout
    found = re.search(r"NextXID:\s+(?:\d+:)?(\d+)", printed)
    if found is None:
        raise RestoreFailed(f"pg_controldata does not say how far {data} came")
    if not re.search(r"cluster state:\s+shut down$", printed, re.MULTILINE):
        raise RestoreFailed(
            f"the server on {data} was not shut down but cut off: nobody can say what it wrote last",
            hint="recovery.stop_server_command must do a fast shutdown: pg_ctl stop -m fast",
        )
    return (int(found[1]) - wal.markers[-1].xid - 1) % 2**32


def switch_by_hand(settings: Settings, journal: ClusterJournal) -> list[str]:
    """The commands that put a recovered folder in place, for a person or a dry run."""
    how, service = settings.recovery, settings.application
    live = Path(journal.live) if journal.live else how.data_directory or Path("DATA_FOLDER")
    into, replaced = Path(journal.into), journal.replaced or f"{live}_replaced"
    lines: list[tuple[str, ...]] = [
        service.stop_command,
        how.stop_server_command or ("systemctl", "stop", "postgresql"),
        ("cp", "-p", *(f"{live}/{n}" for n in ("postgresql.conf", "pg_hba.conf")), f"{into}/"),
        ("chown", "-R", f"--reference={live}", str(into)),
        ("mv", "-T", str(live), str(replaced)),
        ("mv", "-T", str(into), str(live)),
        how.start_server_command or ("systemctl", "start", "postgresql"),
        service.start_command,
    ]
    return [shlex.join(line) for line in lines if line]
