"""What retention keeps beyond its days since something is wrong with it: room that is lost until a person looks.

A failed proof keeps a backup, and of a chain all that it is replayed on and the WAL behind that; a manifest or a
history file that cannot be read keeps every chain. All of that is right for a night, and grows without bound. So
the plan is made once more as if nothing were wrong: what would go then, and stays now, is told.

Pure. What a hold keeps until a day is what somebody wanted, and is not told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.log_retention import plan_log, wal_of
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.retention import policies
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.trouble import Severity, Trouble
from kyb_backup_pipeline.engine.wal import History

KEPT = "kept:"
"""What the keys of these troubles begin with."""
_NAMES: dict[Kind, tuple[str, str]] = {
    "full": ("full backup is", "full backups are"),
    "application_state": ("application state is", "application states are"),
    "configuration": ("configuration archive is", "configuration archives are"),
}
_LOG: tuple[Kind, ...] = ("base", "incremental")
_A_FEW = 3
"""More of a kind are a warning: that many fail only if the proof does, or the backups do."""
_END = (1 << 64) - 1
"""The last position there is."""


def kept_too_long(
    seen: Inventory | None, settings: RetentionSettings, now: datetime
) -> Iterator[Trouble]:
    """Tell of each kind what is kept beyond its days, and why."""
    if seen is None:
        return
    for kind in _NAMES:
        overdue = _overdue(seen, kind, settings, now)
        if overdue:
            yield _of_kind(seen, kind, overdue, now)
    yield from _of_log(seen, settings.incremental_days, now)


def _overdue(
    seen: Inventory, kind: Kind, settings: RetentionSettings, now: datetime
) -> list[Backup]:
    """What only a failed proof, or a hold that cannot be read, keeps; the newest first."""
    policy = policies(seen, settings, now)[kind]
    return [
        backup
        for backup in seen.backups
        if backup.kind == kind and backup.manifest is not None
        and _wrong(seen, backup) is not None
        and not _wanted(seen, backup, now)
        and not policy(backup)[0]
    ]  # fmt: skip


def _wrong(seen: Inventory, backup: Backup) -> str | None:
    """What is wrong with a backup that keeps it for ever; None if nothing is."""
    hold = seen.holds.get(backup.backup_id)
    if hold is not None and hold.until is None:
        return str(hold)
    return "it cannot be read" if backup.manifest is None else seen.standing(backup).trouble


def _wanted(seen: Inventory, backup: Backup, now: datetime) -> bool:
    hold = seen.holds.get(backup.backup_id)
    return hold is not None and hold.until is not None and hold.in_force(now)


def _of_kind(seen: Inventory, kind: Kind, overdue: Sequence[Backup], now: datetime) -> Trouble:
    oldest = overdue[-1]
    severity: Severity = "warning" if len(overdue) > _A_FEW else "info"
    one, many = _NAMES[kind]
    return Trouble(
        key=f"{KEPT}{kind}", severity=severity,
        title=f"{len(overdue)} {one if len(overdue) == 1 else many} kept beyond the days of their kind, until "
        "somebody looks",
        text=f"{_size(overdue)}; the oldest is {_named(seen, oldest, now)}",
        hint=f"kyb-backup show {oldest.backup_id}; a proof that passes lets it go (was the smoke query "
        "wrong?), or remove its folder when you have looked at it",
        backup_id=oldest.backup_id,
    )  # fmt: skip


def _of_log(seen: Inventory, days: int, now: datetime) -> Iterator[Trouble]:
    """Chains and WAL that would go if nothing were wrong."""
    log = [b for b in seen.backups if b.kind in _LOG]
    if all(_well(seen, backup) for backup in log):
        return  # the plan is what it would be
    now_kept = {
        d.backup.backup_id for d in plan_log(replace(seen, wal=()), days, now).backups if d.keep
    }
    then = plan_log(_cured(seen, log), days, now).backups
    overdue = [d.backup for d in then if not d.keep and d.backup.backup_id in now_kept]
    if not overdue:
        return
    oldest = min(overdue, key=_made)
    causes = [*_lost(seen, log), *_causes(seen, log, overdue)]
    yield Trouble(
        key=f"{KEPT}log", severity="warning",
        title=f"the WAL since {oldest.backup_id} is kept beyond its days, with {len(overdue)} base backups "
        "and increments, until somebody looks",
        text=f"{_size(overdue)}; {'; '.join(causes[:3]) or 'no newer base backup was verified'}"
        + (f"; and {len(causes) - 3} more" if len(causes) > 3 else ""),
        hint="kyb-backup verify --all: a proof that passes lets them go. What is really damaged: bring "
        "it back from a copy, or remove its folder when you have looked at it",
        backup_id=oldest.backup_id,
    )  # fmt: skip


def _well(seen: Inventory, backup: Backup) -> bool:
    return (
        _wrong(seen, backup) is None
        and seen.standing(backup).verified
        and backup.manifest is not None
        and backup.manifest.wal is not None
        and seen.histories.get(backup.manifest.wal.timeline) is not None
    )


def _cured(seen: Inventory, log: Sequence[Backup]) -> Inventory:
    """The same as if all that can be read were proved, and all of its timelines known."""
    sound = [b for b in log if b.manifest is not None and b.manifest.wal is not None]
    numbers = sorted({wal_of(b).timeline for b in sound})
    known = {
        n: seen.histories.get(n) or History(n, tuple((m, _END) for m in numbers if m < n))
        for n in numbers
    }
    return replace(
        seen,
        backups=sound,
        standings={b.backup_id: Standing(verified=True) for b in sound},
        holds={name: hold for name, hold in seen.holds.items() if hold.until is not None},
        histories=known,
        wal=(),
    )


def _lost(seen: Inventory, log: Sequence[Backup]) -> list[str]:
    named = sorted({b.manifest.wal.timeline for b in log if b.manifest and b.manifest.wal})
    return [f"the history file of timeline {n} is lost" for n in named if not seen.histories.get(n)]


def _causes(seen: Inventory, log: Sequence[Backup], overdue: Sequence[Backup]) -> list[str]:
    """What is wrong with those that are kept, else with those that keep them; the oldest first."""
    unreadable = [b for b in log if b.manifest is None]
    failed = [b for b in overdue if _wrong(seen, b)] or [b for b in log if _wrong(seen, b)]
    found = dict.fromkeys(f"{b.backup_id}: {_wrong(seen, b)}" for b in reversed(failed))
    return list({f"{b.backup_id}: it cannot be read": None for b in unreadable} | found)


def _named(seen: Inventory, backup: Backup, now: datetime) -> str:
    return f"{backup.backup_id}, {(now - _made(backup)).days} days old: {_wrong(seen, backup)}"


def _made(backup: Backup) -> datetime:
    return backup.require_manifest().completed_at


def _size(backups: Sequence[Backup]) -> str:
    total = sum(b.manifest.total_size for b in backups if b.manifest)
    return f"{total / 2**30:.1f} GiB" if total >= 2**30 else f"{total / 2**20:.1f} MiB"
