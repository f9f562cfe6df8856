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

import shlex
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine.cluster_journal import (
    ClusterJournal,
    ClusterJournals,
    new_recovery_id,
)
from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.data_folder import (
    check_switchable,
    live_data_folder,
    server_runs,
    settle_names,
    take_back,
    take_the_place,
)
from kyb_backup_pipeline.engine.errors import (
    DatabaseUnreachable,
    InvalidRequest,
    KybError,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.incremental import take_incremental_backup
from kyb_backup_pipeline.engine.journal import Step
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.point_in_time import (
    Outcome,
    check_place,
    recover_into,
    sweep_beside,
)
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.recovery_journal import maintenance
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan, parse_moment, plan_recovery
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
from kyb_backup_pipeline.engine.smoke import ask_smoke_queries
from kyb_backup_pipeline.engine.stepped import Stepped
from kyb_backup_pipeline.engine.store import Repository

STEPS = ("check", "collect", "recover", "stop", "switch", "start", "health")
BESIDE_STEPS = ("check", "recover")
"""Those of a recovery that stays beside the running server."""

_POLL = 0.2


@dataclass(frozen=True, kw_only=True)
class ClusterWish:
    """What the caller asks for: ``at`` as ``parse_moment`` reads it, ``into`` a folder to be made.

    With ``switch`` it takes the running server's place, and ``into`` may be left out.
    """

    at: str
    timeline: int | None = None
    into: Path | None = None
    switch: bool = False
    last_wal: bool = True
    service: bool = True
    run_id: str | None = None


class ClusterRestore(Stepped[ClusterJournal]):
    """One recovery to a moment. ``outcome`` is there after the step ``recover`` of this process."""

    outcome: Outcome | None = None

    def __init__(
        self, settings: Settings, journal: ClusterJournal, report: Reporter = silent
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.report = report
        self.journals = ClusterJournals.of(settings)

    @classmethod
    def begin(
        cls, settings: Settings, wish: ClusterWish, *, now: datetime, report: Reporter = silent
    ) -> "ClusterRestore":
        """Write a journal for a new recovery. Raises Refused, InvalidRequest, RestoreFailed, Locked."""
        repair_cluster(settings, service=wish.service)
        journal = prepare(settings, wish, now)
        journals = ClusterJournals.of(settings)
        with journals.holding(journal.live or journal.into):
            journals.keep(journal)
        return cls(settings, journal, report)

    @classmethod
    def resume(
        cls, settings: Settings, restore_id: str, *, report: Reporter = silent
    ) -> "ClusterRestore":
        """Go on with a recovery that its journal knows. Raises NotFound."""
        return cls(settings, ClusterJournals.of(settings).find(restore_id), report)

    @property
    def steps(self) -> tuple[str, ...]:
        return BESIDE_STEPS if self.journal.live is None else STEPS

    def _holding(self) -> AbstractContextManager[object]:
        assert isinstance(self.journals, ClusterJournals)
        return self.journals.holding(self.journal.live or self.journal.into)

    def _told(self, error: psycopg.Error) -> KybError:
        return told(error)

    # The steps

    def _check(self, step: Step) -> None:
        plan = look_over(self.settings, self.journal)
        if self.journal.live is not None:
            self.journal.old_inode = inode_of(self._live)
        step.detail = f"{plan.base.backup_id}, up to {len(plan.segments)} segments"

    def _collect(self, step: Step) -> None:
        if not parse_moment(self.journal.at).latest:
            step.detail = "not needed: what was written behind the moment is left out on purpose"
            return
        if not self.journal.last_wal_wanted:
            step.detail = "not wanted"
            return
        self._stop_service()
        try:
            taken = take_incremental_backup(
                self.settings,
                Request(run_id=self.journal.run_id),
                now=utc_now(),
                report=self.report,
            )
        except DatabaseUnreachable:
            step.detail = "the server does not answer: what is in the repository counts"
        else:
            step.detail = taken.backup_id

    def _recover(self, step: Step) -> None:
        plan = plan_of(self.settings, self.journal)
        self.outcome = outcome = recover_into(
            self.settings, plan, self._into, now=utc_now(), report=self.report
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
        if server_runs(self._live):
            stop_server(self.settings.recovery)
        if server_runs(self._live):
            raise RestoreFailed(f"a server still runs on {self._live}",
                                hint="recovery.stop_server_command")  # fmt: skip

    def _switch(self, step: Step) -> None:
        if not self._switched:
            self.journal.notes += take_the_place(self._live, self._into, self._replaced)
        step.detail = f"the old folder is {self._replaced}" if self.journal.old_inode else ""

    def _start(self, step: Step) -> None:
        began = min(s.began_at for s in self.journal.steps if s.name in ("collect", "stop"))
        start_server(self.settings.recovery)
        self._await_server()
        self.journal.interruption_seconds = (utc_now() - began).total_seconds()
        if self.journal.service_wanted:
            start_service(self.settings.application)

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

    @property
    def _switched(self) -> bool:
        return is_switched(self.journal)

    def _stop_service(self) -> None:
        if self.journal.service_wanted:
            stop_service(self.settings.application)

    def _await_server(self) -> None:
        """Wait until the server answers, on the recovered folder. Raises RestoreFailed."""
        give_up = time.monotonic() + self.settings.recovery.server_timeout
        server = maintenance(restoring_target(self.settings))
        while True:
            try:
                connect(server).close()
            except DatabaseUnreachable as error:
                if time.monotonic() > give_up:
                    raise RestoreFailed(f"the server does not come up: {error.message}") from error
                time.sleep(_POLL)
            else:
                break
        if not server_runs(self._live):
            raise RestoreFailed(f"a server answers, but it does not run on {self._live}",
                                hint="recovery.data_directory, recovery.start_server_command")  # fmt: skip

    def _owed(self, name: str, error: BaseException) -> str:
        journal = self.journal
        if journal.live is None:
            return ""
        settle_names(self._live, self._into, self._replaced, journal.old_inode)
        if self._switched and journal.old_inode is None:
            return f"there was no folder before: the recovered one stays in {journal.live}"
        if self._switched:
            self._stop_service()
            if server_runs(self._live):
                stop_server(self.settings.recovery)
            take_back(self._live, self._into, self._replaced)
            journal.state = "swapped back"
        said = [f"{journal.live} is as it was"]
        if inode_of(self._into) == journal.new_inode is not None:
            said.append(f"the recovered cluster is in {journal.into}")
        said += run_again(self.settings, journal)
        return "; ".join(said)


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
        run_id=wish.run_id, service_wanted=wish.service, at=wish.at, timeline=wish.timeline,
        into=str(into.absolute()), live=str(live) if live else None,
        replaced=f"{live}_replaced_{stamp}" if live else None, last_wal_wanted=wish.last_wal,
    )  # fmt: skip


def plan_of(settings: Settings, journal: ClusterJournal) -> RecoveryPlan:
    """What leads to a journal's moment, as the repository is now. Raises Refused, NotFound."""
    moment = parse_moment(journal.at, journal.timeline)
    return plan_recovery(Repository(settings.repository), moment)


def look_over(settings: Settings, journal: ClusterJournal) -> RecoveryPlan:
    """What leads to the moment, if it can be done. Raises Refused, NotFound, NotEnoughSpace."""
    plan, into = plan_of(settings, journal), Path(journal.into)
    check_place(plan, into)
    if journal.live is not None:
        cluster = plan.base.require_wal().system_identifier
        check_switchable(settings, Path(journal.live), into, cluster)
    return plan


def is_switched(journal: ClusterJournal) -> bool:
    """Whether the recovered folder is in place: by what it is, not by its name."""
    return (
        journal.live is not None
        and journal.new_inode is not None
        and inode_of(Path(journal.live)) == journal.new_inode
    )


def run_again(settings: Settings, journal: ClusterJournal) -> list[str]:
    """Start what a recovery had stopped, and does not run. Raises RestoreFailed."""
    said: list[str] = []
    if journal.live is None:
        return said
    if journal.began("stop") and not server_runs(Path(journal.live)):
        start_server(settings.recovery)
        said.append("the server was started")
    collected = journal.began("collect")
    touched = collected is not None and not collected.detail.startswith("not ")
    if journal.service_wanted and (touched or journal.began("stop")):
        start_service(settings.application)
        said.append("the service was started")
    return said


def repair_cluster(settings: Settings, *, service: bool = True) -> list[str]:
    """Finish what killed recoveries left: what was done about each. Raises RestoreFailed.

    One that was killed before its switch is undone, one that was killed behind it is complete.
    """
    journals = ClusterJournals.of(settings)
    said = []
    for journal in journals.all():
        if not journal.abandoned():
            continue
        swept = sweep_beside(Path(journal.into))
        text = "nothing was switched"
        if journal.live is not None:
            live, into, replaced = (
                Path(journal.live),
                Path(journal.into),
                Path(journal.replaced or ""),
            )
            settle_names(live, into, replaced, journal.old_inode)
            text = f"{live} is as it was"
            if is_switched(journal):
                text = f"{live} is the recovered cluster"
                text += f", the old one is {replaced}" if journal.old_inode else ""
            journal.service_wanted &= service
            text = "; ".join([text, *run_again(settings, journal)])
        text += "".join(f"; removed {folder}" for folder in swept)
        journal.state = "done" if is_switched(journal) else "failed"
        journal.error = journal.error or "it was killed"
        journal.finished_at = journal.finished_at or utc_now()
        journals.keep(journal)
        said.append(f"{journal.restore_id} was killed: {text}")
    return said


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
