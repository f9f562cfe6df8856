"""Histories of backups as data: what retention decides about, made without a server."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.inventory import Inventory, segments_of
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.retention import Plan, plan_retention
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.wal import History
from kyb_backup_pipeline.sandbox.invented import Stretch, listed, manifest_of, with_wal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PROVED, TESTED = Standing(verified=True), Standing(verified=True, restore_tested=True)
BAD = Standing(trouble="its verification failed")


def backup(kind: Kind, name: str, days: float, deployment: str | None = None) -> Backup:
    """A backup that is so many days old."""
    return listed(manifest_of(kind, name, NOW - timedelta(days=days), deployment=deployment))


def damaged(kind: Kind, name: str) -> Backup:
    return Backup(backup_id=name, kind=kind, folder=Path(kind) / name, manifest=None, problem="x")


def base(name: str, days: float, start: int, *, timeline: int = 1, system: str = "1") -> Backup:
    """A base backup that begins with segment number ``start``, of 1 MB, and ends in it."""
    stretch = Stretch(numbers=range(start, start), timeline=timeline, system=system)
    return listed(with_wal(backup("base", name, days).require_manifest(), stretch))


def increment(
    name: str, days: float, on: str, segments: range, *, timeline: int = 1, system: str = "1"
) -> Backup:
    """An increment on a base, with the segments of these numbers."""
    stretch = Stretch(numbers=segments, on=on, timeline=timeline, system=system)
    return listed(with_wal(backup("incremental", name, days).require_manifest(), stretch))


def inventory(
    *backups: Backup,
    standings: Mapping[str, Standing] | None = None,
    holds: Sequence[Hold] = (),
    histories: Mapping[int, History | None] | None = None,
    wal: Sequence[str] = (),
) -> Inventory:
    made = {b.backup_id: b.manifest.completed_at.timestamp() for b in backups if b.manifest}
    found = sorted(backups, key=lambda b: (made.get(b.backup_id, 0), b.backup_id), reverse=True)
    return Inventory(
        backups=found,
        standings=standings or {},
        holds={hold.backup_id: hold for hold in holds},
        histories=histories if histories is not None else {1: History(1)},
        listed=segments_of(found),
        wal=list(wal),
    )


def plan(
    *backups: Backup,
    standings: Mapping[str, Standing] | None = None,
    holds: Sequence[Hold] = (),
    histories: Mapping[int, History | None] | None = None,
    wal: Sequence[str] = (),
    now: datetime = NOW,
    doubting: bool = False,
    **settings: float,
) -> Plan:
    """The plan; with a minimum of 1, and unless ``doubting`` one that believes any clock."""
    trusting = {} if doubting else {"quiet_days": 36_500, "largest_share": 1.0}
    chosen = {"minimum_kept": 1, **trusting, **settings}
    seen = inventory(*backups, standings=standings, holds=holds, histories=histories, wal=wal)
    return plan_retention(seen, RetentionSettings.model_validate(chosen), now)


def lines(planned: Plan) -> list[str]:
    """The decisions on backups, as text."""
    return [
        f"{'keep' if d.keep else 'delete'} {d.backup.backup_id}: {d.why}" for d in planned.decisions
    ]


def wal_lines(planned: Plan) -> list[str]:
    return [
        f"{'keep' if d.keep else 'delete'} {name}: {d.why}" for d in planned.wal for name in d.names
    ]


def held(name: str, days: float, why: str = "the audit") -> Hold:
    return Hold(backup_id=name, until=NOW + timedelta(days=days), why=why)
