"""Years of backups as files, made without a server: manifests, records of proofs, and a WAL store.

Increments every six hours, a base backup each week, and of every other kind one a day, up to now. Segments are
empty files: what is measured reads their names.
"""

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    EvidenceSummary,
    Kind,
    Manifest,
    Marker,
    Proof,
    Wal,
    WalSegment,
    write_json,
)
from kyb_backup_pipeline.engine.records import RECORD_STAMP
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import Segment, format_lsn

_SEGMENT = 1 << 24
_A_WEEK = 28
"""Increments."""
_TIMELINE = 1


@dataclass(frozen=True)
class Extent:
    """How much there is: so many backups in all, so many segments."""

    backups: int
    segments: int


def write_history(repository: Repository, extent: Extent, now: datetime) -> None:
    """Fill an empty repository. Nothing is flushed."""
    repository.create()
    (repository.wal.root / f"{_TIMELINE:08X}").mkdir(parents=True)
    increments = extent.backups * 56 // 100
    others = (extent.backups - increments - -(-increments // _A_WEEK)) // 3
    each = extent.segments // increments
    for number in range(increments):
        at = now - timedelta(hours=6 * (increments - 1 - number) + 0.5)
        if number % _A_WEEK == 0:
            _put(repository, _base(number, at, number * each))
        _put(
            repository,
            _increment(repository, number, at, range(number * each, (number + 1) * each)),
        )
    kinds: tuple[Kind, ...] = ("full", "configuration", "application_state")
    for kind in kinds:
        for number in range(others):
            at = now - timedelta(days=others - 1 - number, hours=1)
            _put(repository, _plain(kind, number, at))


def _plain(kind: Kind, number: int, at: datetime) -> Manifest:
    return Manifest(
        backup_id=f"{kind}_{number}", timestamp=at, type=kind, backup_file="content", file_size=1000,
        checksum="0" * 64, format_version=1, started_at=at - timedelta(seconds=30), finished_at=at,
        server_version="18.4", deployment=f"v{number}",
        files=({"path": "content", "size": 1000, "sha256": "0" * 64},),  # type: ignore[arg-type]
        evidence=EvidenceSummary(mode="content", tables=10, rows=1000),
    )  # fmt: skip


def _base(number: int, at: datetime, first: int) -> Manifest:
    start = first * _SEGMENT
    wal = Wal(
        system_identifier="1", timeline=_TIMELINE, start_lsn=format_lsn(start + 1),
        end_lsn=format_lsn(start + 40), end_at=at, segment_bytes=_SEGMENT,
    )  # fmt: skip
    return _plain("base", number, at).model_copy(update={"wal": wal, "evidence": None})


def _increment(repository: Repository, number: int, at: datetime, numbers: range) -> Manifest:
    segments = tuple(_segment(repository, number) for number in numbers)
    end = numbers.stop * _SEGMENT
    marker = Marker(
        xid=1, begun_lsn=format_lsn(end - 200), lsn=format_lsn(end - 100), at=at, done_at=at
    )
    wal = Wal(
        base=f"base_{number // _A_WEEK * _A_WEEK}", system_identifier="1", timeline=_TIMELINE,
        start_lsn=format_lsn(numbers.start * _SEGMENT), end_lsn=format_lsn(end), end_at=at,
        segment_bytes=_SEGMENT, segments=segments, markers=(marker,),
    )  # fmt: skip
    changes = {"wal": wal, "files": (), "evidence": None}
    return _plain("incremental", number, at).model_copy(update=changes)


def _segment(repository: Repository, number: int) -> WalSegment:
    name = Segment(_TIMELINE, number, _SEGMENT).name
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    place = repository.wal.root / name[:8] / f"{name}-{sha256}.zst"
    os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
    return WalSegment(name=name, sha256=sha256, size=1)


def _put(repository: Repository, manifest: Manifest) -> None:
    """A backup, and the records that it was verified, and a full one restore-tested."""
    folder = repository.folder(manifest.type) / manifest.backup_id
    folder.mkdir()
    (folder / MANIFEST).write_bytes(write_json(manifest))
    records = repository.records.root / manifest.backup_id
    records.mkdir()
    at = manifest.completed_at + timedelta(minutes=1)
    for proof in ("verification", "restore_test") if manifest.type == "full" else ("verification",):
        record = Proof.model_validate(
            {"backup_id": manifest.backup_id, "proof": proof, "verdict": "passed", "summary": "as it was",
             "started_at": manifest.completed_at, "finished_at": at, "figures": {"recovery_seconds": 3.0}}
        )  # fmt: skip
        (records / f"{proof}_{at:{RECORD_STAMP}}.json").write_bytes(write_json(record))
