"""Deleting off-site copies that need not be kept: by the rules of home, with limits of their own.

The plan is that of ``retention``: the newest, the newest that was proved, the newest few, what is held at home
and what cannot be read or is known to be bad stay, and a clock that jumped is refused. Of a copy the commit object
goes first, so that what a kill leaves is no copy; then its data. What no copy names goes too (``offsite_sweep``). A
locked object is skipped with its date, and is no error. What is held is known where the backups are: without them
nothing is deleted.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import CouldNotVerify, NotFound, Refused
from kyb_backup_pipeline.engine.holds import Holds
from kyb_backup_pipeline.engine.inventory import Inventory, segments_of
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_copy import (
    RECORDS,
    Listed,
    commit_key,
    folder_of,
    list_copies,
)
from kyb_backup_pipeline.engine.offsite_lock import safety_of
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_own import is_of_home
from kyb_backup_pipeline.engine.offsite_sweep import (
    Cleared,
    Leavings,
    Remains,
    clear,
    find_leavings,
    locked_until,
    ours,
    sweep,
)
from kyb_backup_pipeline.engine.offsite_target import Found, Gone, Target
from kyb_backup_pipeline.engine.records import ProofRecords
from kyb_backup_pipeline.engine.recovery_plan import read_history
from kyb_backup_pipeline.engine.retention import plan_retention
from kyb_backup_pipeline.engine.retention_rules import Decision
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.standing import Standing, standing
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import History

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CopyPlan:
    """What is decided on the copies of one place, and what no copy names there. ``refusal``: why the clock is not
    believed.
    """

    copies: Sequence[Listed]
    decisions: Sequence[Decision]
    leavings: Leavings = field(default_factory=Leavings)
    refusal: str | None = None

    @property
    def doomed(self) -> list[Decision]:
        return [decision for decision in self.decisions if not decision.keep]


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """One copy, or what no copy names, and what became of it. ``why`` says why it went, or stays. ``left``: so many
    objects stay of a copy that is none any more.
    """

    what: str
    kind: str
    deleted: bool
    bytes: int
    why: str
    left: int = 0


def _silent(one: Deleted) -> None:
    return


def plan_prune(settings: Settings, place: Place, now: datetime) -> CopyPlan:
    """Decide, and touch nothing. Raises Refused where home is out of sight, what the target raises, CouldNotVerify."""
    copies = list_copies(place.target)
    inventory = _inventory(settings, place, copies)
    plan = plan_retention(inventory, settings.offsite.retention, now)
    refusal = plan.refusal and plan.refusal.replace("retention.", "offsite.retention.")
    doomed = [folder_of(d.backup.kind, d.backup.backup_id) for d in plan.decisions if not d.keep]
    leavings = find_leavings(place.target, copies, now, doomed=doomed)
    return CopyPlan(copies=copies, decisions=plan.decisions, leavings=leavings, refusal=refusal)


def check_clock(plan: CopyPlan, *, despite: bool = False) -> None:
    """Raise Refused for a plan that only a wrong clock explains."""
    if plan.refusal and not despite:
        raise Refused(
            f"{plan.refusal}: has the clock jumped? Nothing was deleted",
            hint="look at the date of this host, and at the plan: kyb-backup offsite prune --dry-run. If all "
            "is as it should be: kyb-backup offsite prune --despite-clock",
        )


def apply_prune(
    settings: Settings,
    place: Place,
    plan: CopyPlan,
    *,
    now: datetime,
    despite_clock: bool = False,
    tell: Callable[[Deleted], None] = _silent,
) -> list[Deleted]:
    """Delete what the plan says, and no more. ``tell`` is told of each at once.

    Raises Refused, and what the target raises.
    """
    check_clock(plan, despite=despite_clock)
    target = place.target
    done: list[Deleted] = []

    def add(one: Deleted) -> None:
        done.append(one)
        tell(one)

    try:
        for decision in _in_order(plan.doomed):
            add(_delete(target, decision, plan, now))
        remaining = list_copies(target)  # anew: somebody may have pushed meanwhile
        for remains, cleared in sweep(target, plan.leavings.remains, remaining, now):
            add(_swept(remains, cleared))
    finally:  # what is gone is gone, whatever came then
        place.saw(gone={one.what for one in done if one.deleted})
    return done


def _inventory(settings: Settings, place: Place, copies: Sequence[Listed]) -> Inventory:
    backups = [_as_backup(listed) for listed in copies]
    repository = Repository(settings.repository)
    timelines = {b.manifest.wal.timeline for b in backups if b.manifest and b.manifest.wal}
    try:
        _require_home(repository, place.target, copies)
        with tempfile.TemporaryDirectory(prefix="kyb-offsite-") as folder:
            records = ProofRecords(Path(folder))
            _fetch_records(place.target, {listed.backup_id for listed in copies}, records)
            _add_records(repository.records, [b.backup_id for b in backups], records)
            standings = {b.backup_id: standing(records, b.backup_id) for b in backups}
        holds = {hold.backup_id: hold for hold in Holds(settings.repository).all()}
        histories = {t: _history(repository, t) for t in timelines}
    except OSError as error:
        raise CouldNotVerify(f"{error.filename} cannot be read: {error.strerror}",
                             hint="what is held is kept at home; nothing was deleted") from error  # fmt: skip
    return Inventory(backups=backups, standings=standings | _known_bad(place), holds=holds, histories=histories,
                     listed=segments_of(backups), wal=())  # fmt: skip


def _require_home(repository: Repository, target: Target, copies: Sequence[Listed]) -> None:
    """Raise Refused unless this is the repository that the copies are of: what is held is known there only."""
    hint = (
        "run it where the repository is that was pushed from, and mount that; nothing was deleted"
    )
    try:
        repository.require_whole()
    except NotFound as error:
        raise Refused(f"{error.message}: so what is held is not known", hint=hint) from error
    readable = [listed.copy_ for listed in copies if listed.copy_ is not None]
    if readable and not any(is_of_home(repository, copy) for copy in readable):
        raise Refused(
            f"no copy in {target.url} is of a backup in {repository.root}: so what is held is not known",
            hint=f"{hint}. Was home lost, and begun anew? Push a backup first",
        )


def _known_bad(place: Place) -> dict[str, Standing]:
    """Copies that were read and are not what was pushed: they stand for nothing, as at home."""
    bad = Standing(trouble="its copy failed the verification")
    return {
        backup_id: bad for backup_id, seen in place.view.copies.items() if seen.verdict == "failed"
    }


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

    def stays(why: str) -> Deleted:
        return Deleted(what=copy.backup_id, kind=kind, deleted=False, bytes=size, why=why)

    safety = safety_of(target, copy)
    if safety.until is not None and safety.until > now:
        return stays(locked_until(safety.until, safety.mode))
    data = ours(target, folder_of(kind, copy.backup_id))
    try:
        target.delete([commit_key(kind, copy.backup_id)])
    except Refused as error:
        return stays(error.message)
    cleared = clear(target, data, now) if data is not None else Cleared()
    if cleared.pushed:
        return stays(cleared.why)
    why = decision.why
    if cleared.left:
        why += f"; no copy any more, {len(cleared.left)} objects stay: {cleared.why}"
    freed = max(0, size - sum(found.size for found in cleared.left))
    _log.info("deleted the copy %s in %s: %s", copy.backup_id, target.url, why)
    return Deleted(what=copy.backup_id, kind=kind, deleted=True, bytes=freed, why=why,
                   left=len(cleared.left))  # fmt: skip


def _swept(remains: Remains, cleared: Cleared) -> Deleted:
    why = cleared.why or "no copy names it"
    return Deleted(
        what=remains.group,
        kind=remains.kind,
        deleted=not cleared.left,
        bytes=remains.bytes,
        why=why,
    )
