"""Deleting off-site copies that need not be kept: by the rules of home, with limits of their own.

The plan is that of ``retention``: the newest, the newest that was proved, the newest few, what is held at home
and what cannot be read stay, and a clock that jumped is refused. Of a copy the commit object goes first, so that
what a kill leaves is no copy; then its data. WAL goes when no copy names it. What pushes left that were cut
more than a day ago goes too. A locked object is skipped with its date, and is no error.
"""

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.backup import FOLDERS, LEFTOVER_AGE, Backup
from kyb_backup_pipeline.engine.errors import CouldNotVerify, KybError, Refused
from kyb_backup_pipeline.engine.holds import Holds
from kyb_backup_pipeline.engine.inventory import Inventory, segments_of
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_copy import (
    COMMIT,
    RECORDS,
    WAL,
    Listed,
    commit_key,
    folder_of,
    list_copies,
)
from kyb_backup_pipeline.engine.offsite_lock import safety_of
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_target import Found, Gone, Target
from kyb_backup_pipeline.engine.records import ProofRecords
from kyb_backup_pipeline.engine.recovery_plan import read_history
from kyb_backup_pipeline.engine.retention import plan_retention
from kyb_backup_pipeline.engine.retention_rules import Decision
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.standing import standing
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import History

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CopyPlan:
    """What is decided on the copies of one place. ``refusal``: why the clock is not believed."""

    copies: Sequence[Listed]
    decisions: Sequence[Decision]
    refusal: str | None = None

    @property
    def doomed(self) -> list[Decision]:
        return [decision for decision in self.decisions if not decision.keep]


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """One copy, or what no copy names, and what became of it. ``why`` says why it went, or stays."""

    what: str
    kind: str
    deleted: bool
    bytes: int
    why: str


def plan_prune(settings: Settings, place: Place, now: datetime) -> CopyPlan:
    """Decide, and touch nothing. Raises what the target raises, CouldNotVerify."""
    copies = list_copies(place.target)
    inventory = _inventory(settings, place.target, copies)
    plan = plan_retention(inventory, settings.offsite.retention, now)
    refusal = plan.refusal and plan.refusal.replace("retention.", "offsite.retention.")
    return CopyPlan(copies=copies, decisions=plan.decisions, refusal=refusal)


def check_clock(plan: CopyPlan, *, despite: bool = False) -> None:
    """Raise Refused for a plan that only a wrong clock explains."""
    if plan.refusal and not despite:
        raise Refused(
            f"{plan.refusal}: has the clock jumped? Nothing was deleted",
            hint="look at the date of this host, and at the plan: kyb-backup offsite prune --dry-run. If all "
            "is as it should be: kyb-backup offsite prune --despite-clock",
        )


def apply_prune(
    settings: Settings, place: Place, plan: CopyPlan, *, now: datetime, despite_clock: bool = False
) -> list[Deleted]:
    """Delete what the plan says, and what no copy names. Raises Refused, and what the target raises."""
    check_clock(plan, despite=despite_clock)
    target = place.target
    done = [_delete(target, decision, plan, now) for decision in _in_order(plan.doomed)]
    remaining = list_copies(target)  # anew: somebody may have pushed meanwhile
    done += _sweep(target, remaining, now)
    gone = {one.what for one in done if one.deleted}
    place.saw(gone=gone)
    return done


def _inventory(settings: Settings, target: Target, copies: Sequence[Listed]) -> Inventory:
    backups = [_as_backup(listed) for listed in copies]
    repository = Repository(settings.repository)
    timelines = {b.manifest.wal.timeline for b in backups if b.manifest and b.manifest.wal}
    try:
        with tempfile.TemporaryDirectory(prefix="kyb-offsite-") as folder:
            records = ProofRecords(Path(folder))
            _fetch_records(target, {listed.backup_id for listed in copies}, records)
            _add_records(repository.records, [b.backup_id for b in backups], records)
            standings = {b.backup_id: standing(records, b.backup_id) for b in backups}
        holds = {hold.backup_id: hold for hold in Holds(settings.repository).all()}
        histories = {t: _history(repository, t) for t in timelines}
    except OSError as error:
        raise CouldNotVerify(f"{error.filename} cannot be read: {error.strerror}",
                             hint="what is held is kept at home; nothing was deleted") from error  # fmt: skip
    return Inventory(backups=backups, standings=standings, holds=holds, histories=histories,
                     listed=segments_of(backups), wal=())  # fmt: skip


def _history(repository: Repository, timeline: int) -> History | None:
    """Where a timeline comes from, as it is known at home; None stops the deletion of chains."""
    history, lost = read_history(repository.wal, timeline)
    return None if lost else history


def _as_backup(listed: Listed) -> Backup:
    return Backup(
        backup_id=listed.backup_id,
        kind=listed.kind,
        folder=Path(folder_of(listed.kind, listed.backup_id)),
        manifest=listed.copy_.manifest if listed.copy_ else None,
        problem=listed.problem,
    )


def _fetch_records(target: Target, ids: set[str], into: ProofRecords) -> None:
    def bring(found: Found) -> None:
        _, backup_id, name = found.key.rsplit("/", 2)
        folder = into.root / backup_id
        folder.mkdir(exist_ok=True)
        try:
            (folder / name).write_bytes(target.get(found.key))
        except Gone:
            return

    wanted = [f for f in target.list(RECORDS) if f.key.removeprefix(f"{RECORDS}/").count("/") == 1
              and f.key.rsplit("/", 2)[1] in ids]  # fmt: skip
    with ThreadPoolExecutor(target.options.parallel, thread_name_prefix="records") as pool:
        list(pool.map(bring, wanted))


def _add_records(home: ProofRecords, ids: Sequence[str], into: ProofRecords) -> None:
    """What was proved at home since the push counts as well: a backup that failed is to be looked at."""
    for backup_id in ids:
        for name in home.newest_first(backup_id):
            folder = into.root / backup_id
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes((home.root / backup_id / name).read_bytes())


def _in_order(doomed: Iterable[Decision]) -> list[Decision]:
    """Increments before the bases that they are replayed on, the newest first."""
    order: Mapping[Kind, int] = {"incremental": 0, "base": 1}
    return sorted(
        doomed,
        key=lambda d: (
            order.get(d.backup.kind, 2),
            -d.backup.require_manifest().completed_at.timestamp(),
        ),
    )


def _delete(target: Target, decision: Decision, plan: CopyPlan, now: datetime) -> Deleted:
    """Delete one copy: its commit object, then its data. Locked, it stays."""
    backup = decision.backup
    copy = next(c.copy_ for c in plan.copies if c.backup_id == backup.backup_id)
    assert copy is not None  # what cannot be read is never doomed
    size = sum(file.stored_size for file in copy.files)
    kind: Kind = backup.kind
    safety = safety_of(target, copy)
    if safety.until is not None and safety.until > now:
        why = f"locked until {_day(safety.until)} ({safety.mode})"
        return Deleted(what=copy.backup_id, kind=kind, deleted=False, bytes=size, why=why)
    try:
        target.delete([commit_key(kind, copy.backup_id)])
        rest = target.list(folder_of(kind, copy.backup_id))
        target.delete([found.key for found in rest])
    except Refused as error:
        return Deleted(what=copy.backup_id, kind=kind, deleted=False, bytes=size, why=error.message)
    _log.info("deleted the copy %s in %s: %s", copy.backup_id, target.url, decision.why)
    return Deleted(what=copy.backup_id, kind=kind, deleted=True, bytes=size, why=decision.why)


def _sweep(target: Target, copies: Sequence[Listed], now: datetime) -> list[Deleted]:
    """Take away what no copy names and nobody has touched for a day."""
    if any(listed.copy_ is None for listed in copies):
        return []  # nobody knows what that one names
    named = {part.key for c in copies if c.copy_ for f in c.copy_.all_files for part in f.parts}
    committed = {folder_of(c.kind, c.backup_id) for c in copies}
    done = []
    groups: dict[str, list[Found]] = {}
    for place in dict.fromkeys(FOLDERS.values()):
        for found in target.list(place):
            groups.setdefault(_group(found.key), []).append(found)
    for group, objects in sorted(groups.items()):
        if max(found.modified for found in objects) > now - LEFTOVER_AGE:
            continue
        in_use = group in committed or any(found.key in named for found in objects)
        doomed = [found for found in objects if found.key not in named and not (
            in_use and _is_word(found.key))]  # fmt: skip
        if doomed:
            done.append(_take_away(target, group, doomed, now))
    return done


def _take_away(target: Target, group: str, doomed: Sequence[Found], now: datetime) -> Deleted:
    size = sum(found.size for found in doomed)
    what = "wal" if group.startswith(f"{WAL}/") else "remains"
    why = "no copy names it"
    try:
        locks = [lock for found in doomed[:1] if (lock := target.lock_of(found.key)) is not None]
        locked = next((lock for lock in locks if lock.holds(now)), None)
        if locked is not None and locked.until is not None:
            why = f"locked until {_day(locked.until)} ({locked.mode})"
            return Deleted(what=group, kind=what, deleted=False, bytes=size, why=why)
        target.delete([found.key for found in doomed])
    except Gone:
        pass
    except KybError as error:
        return Deleted(what=group, kind=what, deleted=False, bytes=size, why=error.message)
    return Deleted(what=group, kind=what, deleted=True, bytes=size, why=why)


def _group(key: str) -> str:
    """The folder of a backup; of WAL that of one file."""
    return "/".join(key.split("/")[: 5 if key.startswith(f"{WAL}/") else 3])


def _is_word(key: str) -> bool:
    """Whether an object says something of others: a commit object, or the record of a file."""
    name = key.rpartition("/")[2]
    return name == COMMIT or name.startswith("file-")


def _day(moment: datetime) -> str:
    return "it is released" if moment.year == 9999 else f"{moment:%Y-%m-%d %H:%M} UTC"
