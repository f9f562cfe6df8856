"""Histories of backups as data: what retention decides about, made without a server."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.manifest import Kind, Manifest, Marker, Wal, WalSegment
from kyb_backup_pipeline.engine.retention import Plan, plan_retention
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.store import Backup
from kyb_backup_pipeline.engine.wal import History, Segment, format_lsn

NOW = datetime(2026, 6, 1, tzinfo=UTC)
MB = 1 << 20
PROVED, TESTED = Standing(verified=True), Standing(verified=True, restore_tested=True)
BAD = Standing(trouble="its verification failed")


def backup(kind: Kind, name: str, days: float, deployment: str | None = None) -> Backup:
    """A backup that is so many days old."""
    made = NOW - timedelta(days=days)
    manifest = Manifest(backup_id=name, timestamp=made, type=kind, backup_file=name, file_size=1,
                        format_version=1, finished_at=made, deployment=deployment)  # fmt: skip
    return Backup(backup_id=name, kind=kind, folder=Path(kind) / name, manifest=manifest)


def damaged(kind: Kind, name: str) -> Backup:
    return Backup(backup_id=name, kind=kind, folder=Path(kind) / name, manifest=None, problem="x")


def base(name: str, days: float, start: int, *, timeline: int = 1, system: str = "1") -> Backup:
    """A base backup that begins with segment number ``start``, of 1 MB, and ends in it."""
    return _with_wal(
        backup("base", name, days), None, start, start, timeline, system, range(start, start)
    )


def increment(
    name: str, days: float, on: str | None, segments: range, *, timeline: int = 1, system: str = "1"
) -> Backup:
    """An increment on a base, with the segments of these numbers."""
    return _with_wal(
        backup("incremental", name, days), on, segments.start, segments.stop, timeline, system, segments
    )  # fmt: skip


def _with_wal(
    plain: Backup, on: str | None, start: int, end: int, timeline: int, system: str, numbers: range
) -> Backup:
    manifest = plain.require_manifest()
    at = manifest.completed_at
    tail = end * MB + (0 if on else 0x200)
    marker = Marker(
        xid=1, begun_lsn=format_lsn(tail - 64), lsn=format_lsn(tail - 32), at=at, done_at=at
    )
    wal = Wal(
        base=on, system_identifier=system, timeline=timeline, segment_bytes=MB,
        start_lsn=format_lsn(start * MB + (0 if on else 0x100)), end_lsn=format_lsn(tail), end_at=at,
        segments=tuple(WalSegment(name=n, sha256="0" * 64, size=1) for n in names(numbers, timeline)),
        markers=(marker,) if on else (),
    )  # fmt: skip
    return Backup(backup_id=plain.backup_id, kind=plain.kind, folder=plain.folder,
                  manifest=manifest.model_copy(update={"wal": wal}))  # fmt: skip


def names(numbers: range, timeline: int = 1) -> list[str]:
    return [Segment(timeline, number, MB).name for number in numbers]


def inventory(
    *backups: Backup,
    standings: Mapping[str, Standing] | None = None,
    holds: Sequence[Hold] = (),
    histories: Mapping[int, History | None] | None = None,
    wal: Sequence[str] = (),
) -> Inventory:
    found = [b for b in backups if b.manifest] + [b for b in backups if not b.manifest]
    found.sort(key=lambda b: b.manifest.completed_at.timestamp() if b.manifest else 0, reverse=True)
    return Inventory(
        backups=found,
        standings=standings or {},
        holds={hold.backup_id: hold for hold in holds},
        histories=histories if histories is not None else {1: History(1)},
        listed=listed(found),
        wal=list(wal),
    )


def listed(backups: Iterable[Backup]) -> dict[str, str]:
    """The names of the segments of each increment, as an inventory has them."""
    logs = {b.backup_id: b.manifest.wal.segments for b in backups if b.manifest and b.manifest.wal}
    return {name: " ".join(s.name for s in segments) for name, segments in logs.items() if segments}


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
