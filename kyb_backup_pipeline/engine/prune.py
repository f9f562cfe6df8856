"""Deleting what need not be kept: under a lock, in an order that a kill cannot hurt, with a record.

The plan is made anew under the lock, of files that are read now; what a person confirmed before only narrows
it, and what each deletion rests on is looked at once more right before it (``second_look``). The manifest of a
backup goes first; the increments of a chain before its base, the newest first; WAL when all that needed it is
gone. So whatever a kill leaves is whole, or swept by the next prune.

What somebody reads is skipped and said so. Of chains then all that would follow stays too, as while a base
backup or an increment is being written.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.collecting import without_collecting
from kyb_backup_pipeline.engine.errors import KybError, Locked, NotFound, Refused
from kyb_backup_pipeline.engine.holds import Holds, caller
from kyb_backup_pipeline.engine.inventory import read_inventory
from kyb_backup_pipeline.engine.log_retention import wal_of
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.prune_records import Gone, PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.recovery_plan import in_log_order
from kyb_backup_pipeline.engine.removal import remove, sweep_deleted
from kyb_backup_pipeline.engine.retention import Plan, plan_retention
from kyb_backup_pipeline.engine.retention_rules import Decision, WalDecision
from kyb_backup_pipeline.engine.second_look import CHAINED, SecondLook
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PruneWish:
    """What a caller asks for. ``confirmed``: what a person saw; nothing else is deleted."""

    despite_clock: bool = False
    confirmed: Plan | None = None
    run_id: str | None = None


def look(repository: Repository, settings: RetentionSettings, now: datetime) -> Plan:
    """The plan, nothing else. Raises NotFound without a repository, CouldNotVerify for a closed one."""
    with without_collecting():
        return plan_retention(read_inventory(repository), settings, now)


def check_clock(plan: Plan, *, despite: bool = False) -> None:
    """Raise Refused for a plan that only a wrong clock explains."""
    if plan.refusal and not despite:
        raise Refused(
            f"{plan.refusal}: has the clock jumped? Nothing was deleted",
            hint="look at the date of this host, and at the plan: kyb-backup prune --dry-run. If all "
            "is as it should be: kyb-backup prune --despite-clock",
        )


def prune(
    repository: Repository, settings: RetentionSettings, wish: PruneWish, *, now: datetime
) -> tuple[PruneRecord, Plan]:
    """Delete what the plan says; the record of it, and the plan.

    Raises Refused for a clock that cannot be right, Locked while another prune runs, NotFound without a
    repository, CouldNotVerify where a part of it cannot be read.
    """
    with repository.deleting(now):
        record = PruneRecord(
            state="running",
            began_at=now,
            by=caller(),
            run_id=wish.run_id,
            despite_clock=wish.despite_clock,
            settings=settings.model_dump(),
        )
        with _recorded(repository, record) as recorder:
            sweep_deleted(repository)
            inventory = read_inventory(repository)
            plan = plan_retention(inventory, settings, now)
            check_clock(plan, despite=wish.despite_clock)
            doomed, wal = _confirmed(plan, wish.confirmed)
            lines = wal_lines(wal, repository.wal.sizes(n for row in wal for n in row.names))
            recorder.intend(plan, [*map(_gone, doomed), *lines])
            again = SecondLook(repository, inventory, plan)
            _delete(_Work(repository, recorder, again, now), doomed, wal, lines)
        return recorder.record, plan


def wal_lines(rows: Iterable[WalDecision], sizes: Mapping[str, int] | None = None) -> list[Gone]:
    """WAL in lines for people. Their bytes are those of ``sizes``, by name."""
    return [
        Gone(
            id=row.names[0] if len(row.names) == 1 else f"{row.names[0]}..{row.names[-1]}",
            kind="wal",
            bytes=sum(sizes.get(name, 0) for name in row.names) if sizes else 0,
            why=row.why,
            count=len(row.names),
        )
        for row in rows
    ]


def gone_of(plan: Plan, sizes: Mapping[str, int]) -> list[Gone]:
    """All that a plan deletes, in the lines of a record; ``sizes`` are those of the WAL, by name."""
    wal = wal_lines((row for row in plan.wal if not row.keep), sizes)
    return [*map(_gone, plan.doomed), *wal]


def kept_of(plan: Plan) -> dict[str, int]:
    """How many of each kind a plan keeps."""
    kept: dict[str, int] = {}
    for decision in plan.decisions:
        if decision.keep:
            kept[decision.backup.kind] = kept.get(decision.backup.kind, 0) + 1
    return {**kept, "wal": len(plan.kept_wal)}


class _Recorder:
    """Keeps the record up to date. A full disk takes the record away, never the deletion."""

    def __init__(self, repository: Repository, record: PruneRecord) -> None:
        self.record = record
        self._records = PruneRecords(repository.root)
        self._deleted: list[Gone] = []
        self._skipped: list[Gone] = []

    def intend(self, plan: Plan, doomed: Sequence[Gone]) -> None:
        """Write down what is going to be deleted."""
        self._keep(kept=kept_of(plan), deleted=tuple(doomed))

    def deleted(self, *gone: Gone) -> None:
        self._deleted += gone

    def skipped(self, gone: Gone, why: str) -> None:
        _log.warning("%s stays this time: %s", gone.id, why)
        self._skipped.append(gone.model_copy(update={"why": why}))

    def end(self, error: KybError | None = None) -> None:
        """Write down what was deleted, and what ended it."""
        changes: dict[str, object] = {"state": "done"}
        if error is not None:
            state = "refused" if isinstance(error, Refused) else "failed"
            changes = {"state": state, "refusal": error.message, "hint": error.hint}
        self._keep(finished_at=utc_now(), deleted=tuple(self._deleted),
                   skipped=tuple(self._skipped), **changes)  # fmt: skip

    def _keep(self, **changes: object) -> None:
        self.record = self.record.model_copy(update=changes)
        try:
            self._records.keep(self.record)
        except OSError as error:
            _log.warning("the record of this prune was not kept: %s", error)


@contextmanager
def _recorded(repository: Repository, record: PruneRecord) -> Iterator[_Recorder]:
    recorder = _Recorder(repository, record)
    try:
        yield recorder
    except KybError as error:
        recorder.end(error)
        raise
    recorder.end()


def _confirmed(plan: Plan, confirmed: Plan | None) -> tuple[list[Decision], list[WalDecision]]:
    """What is to be deleted now, and was when a person looked."""
    rows = [row for row in plan.wal if not row.keep]
    if confirmed is None:
        return plan.doomed, rows
    backups = {decision.backup.folder for decision in confirmed.doomed}
    wal = set(confirmed.doomed_wal)
    seen = [replace(row, names=tuple(n for n in row.names if n in wal)) for row in rows]
    return (
        [decision for decision in plan.doomed if decision.backup.folder in backups],
        [row for row in seen if row.names],
    )


@dataclass(frozen=True)
class _Work:
    """What all steps of one deletion need."""

    repository: Repository
    recorder: _Recorder
    again: SecondLook
    now: datetime


def _delete(
    work: _Work, doomed: Sequence[Decision], wal: Sequence[WalDecision], lines: Sequence[Gone]
) -> None:
    alone = [d for d in reversed(doomed) if d.backup.kind not in CHAINED]
    for decision in alone:
        _remove(work, decision)
    chained = _by_chain([d for d in doomed if d.backup.kind in CHAINED])
    if not (chained or wal):
        return
    try:
        with work.repository.keeping_out(CHAINED, "retention", work.now):
            work.again.at_log()
            while chained and _remove(work, chained[0]):
                chained.pop(0)
            if not chained:
                work.again.at_log()
                _remove_wal(work, wal, lines)
                return
        why = f"{chained.pop(0).backup.backup_id} stays this time"
    except (Locked, Refused) as error:
        why = error.message
    for left in (*map(_gone, chained), *lines):
        work.recorder.skipped(left, why)


def _remove(work: _Work, decision: Decision) -> bool:
    """Delete one backup; False where it is in use, not as it was, or cannot be deleted."""
    gone = _gone(decision)
    backup = decision.backup
    try:
        remove(backup, lambda: work.again.at(backup))
    except (Locked, Refused) as error:
        work.recorder.skipped(gone, error.message)
        return False
    except OSError as error:
        work.recorder.skipped(gone, f"{error.filename or backup.folder}: {error.strerror}")
        return False
    work.recorder.deleted(gone)
    _log.info("deleted %s: %s", gone.id, gone.why)
    with suppress(NotFound):
        Holds(work.repository.root).release(backup.backup_id)
    return True


def _remove_wal(work: _Work, wal: Sequence[WalDecision], lines: Sequence[Gone]) -> None:
    """The oldest first, whatever its timeline: what a kill leaves has no hole."""
    names = sorted((name for row in wal for name in row.names), key=lambda n: (n[8:], n))
    try:
        work.repository.wal.remove(names)
    except OSError as error:
        for line in lines:
            work.recorder.skipped(line, f"{error.filename}: {error.strerror}")
        return
    work.recorder.deleted(*lines)


def _by_chain(decisions: Sequence[Decision]) -> list[Decision]:
    """The oldest chain first, of each the newest increment first and the base last."""
    by_id = {decision.backup.backup_id: decision for decision in decisions}
    bases = in_log_order([d.backup for d in decisions if d.backup.kind == "base"])
    increments = in_log_order([d.backup for d in decisions if d.backup.kind == "incremental"])
    place = {base.backup_id: number for number, base in enumerate(bases, start=1)}

    def chain(increment: Backup) -> int:
        return place.get(wal_of(increment).base or "", 0)  # those whose base is gone come first

    ordered = sorted(reversed(increments), key=chain) + bases
    ordered.sort(key=lambda b: place.get(b.backup_id) or chain(b))
    return [by_id[backup.backup_id] for backup in ordered]


def _gone(decision: Decision) -> Gone:
    backup = decision.backup
    return Gone(id=backup.backup_id, kind=backup.kind, bytes=decision.bytes, why=decision.why)
