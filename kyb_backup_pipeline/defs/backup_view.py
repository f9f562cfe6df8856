"""How Dagster shows a backup: its numbers, and the checks that need no proof."""

from collections.abc import Iterable
from statistics import median
from typing import Any

import dagster as dg

from kyb_backup_pipeline.defs.card import bullets
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.manifest import Kind, Manifest, Wal
from kyb_backup_pipeline.engine.recovery_plan import coverages
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import ranges

FILE_KINDS: tuple[Kind, ...] = ("application_state", "configuration")
_EARLIER = 7
_SHRUNK = 0.5


def backup_metadata(backup: Backup) -> dict[str, Any]:
    """The figures of a backup. Sizes in bytes, times in seconds, so that the UI plots them."""
    manifest = backup.require_manifest()
    metadata = {
        "bytes": manifest.total_size,
        "dagster/size_bytes": manifest.total_size,
        "files": len(manifest.files) or 1,
        "format": f"{_format(manifest)}, {manifest.compression}",
        "path": dg.MetadataValue.path(str(backup.folder)),
        "finished_at": dg.MetadataValue.timestamp(manifest.completed_at),
        "made_by": _maker(manifest),
    }
    if manifest.uncompressed_size:
        metadata["uncompressed_bytes"] = manifest.uncompressed_size
        metadata["compression_ratio"] = manifest.uncompressed_size / max(manifest.total_size, 1)
    if manifest.started_at is not None:
        seconds = (manifest.completed_at - manifest.started_at).total_seconds()
        metadata["seconds"] = seconds
        metadata["bytes_per_second"] = (
            manifest.uncompressed_size or manifest.total_size
        ) / max(seconds, 0.001)  # fmt: skip
    if manifest.database is not None:
        metadata["database"] = f"{manifest.database.name} on {manifest.database.host}"
    if manifest.server_version is not None:
        metadata["server_version"] = manifest.server_version
    if manifest.encryption is not None:
        metadata["encryption"] = manifest.encryption.method
    if manifest.label is not None:
        metadata["label"] = manifest.label
    if manifest.wal is not None:
        return metadata | _wal_metadata(manifest.wal)
    if manifest.type in FILE_KINDS:
        return metadata | _archive_metadata(manifest)
    return metadata | _evidence_metadata(manifest)


def _archive_metadata(manifest: Manifest) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "members": sum(archive.members for archive in manifest.archives),
        "content_bytes": sum(archive.content_bytes for archive in manifest.archives),
        "encryption": manifest.archives[0].encryption if manifest.archives else "none",
    }
    if manifest.deployment is not None:
        metadata["deployment"] = manifest.deployment
    if manifest.version is not None:
        metadata["version"] = manifest.version
    if manifest.components:
        metadata["components"] = ", ".join(n for n, there in manifest.components.items() if there)
    if manifest.notes:
        metadata["notes"] = dg.MetadataValue.md(bullets(manifest.notes))
    return metadata


def _format(manifest: Manifest) -> str:
    if manifest.type in FILE_KINDS:
        return "tar"
    if manifest.wal is None:
        return manifest.dump_format
    return "tar" if manifest.wal.base is None else "WAL segments"


def _wal_metadata(wal: Wal) -> dict[str, Any]:
    """The part of the log, and for an increment what it stands on."""
    metadata: dict[str, Any] = {
        "start_lsn": wal.start_lsn,
        "end_lsn": wal.end_lsn,
        "timeline": wal.timeline,
        "covers_until": dg.MetadataValue.timestamp(wal.end_at),
    }
    if wal.base is not None:
        metadata |= {"base": wal.base, "segments": len(wal.segments)}
    if wal.previous is not None:
        metadata["previous"] = wal.previous
    if wal.lag_bytes is not None:
        metadata["slot_lag_bytes"] = wal.lag_bytes
    if wal.archive_failures is not None:
        metadata["archive_failures"] = wal.archive_failures
    return metadata


def backup_checks(manifest: Manifest, backups: Iterable[Backup]) -> list[dg.AssetCheckResult]:
    """Is there evidence, was anything left out, is the size what it usually is? All only warn.

    ``backups`` are those of the repository, the newest first.
    """
    size = _size_check(manifest, backups)
    if manifest.type == "base":
        return [size]
    if manifest.type in FILE_KINDS:
        return [size, _left_out_check(manifest)]
    return [_evidence_check(manifest), size]


def _left_out_check(manifest: Manifest) -> dg.AssetCheckResult:
    notes = manifest.notes
    more = f" and {len(notes) - 1} more" if len(notes) > 1 else ""
    return dg.AssetCheckResult(
        check_name="nothing_left_out",
        passed=not notes,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{notes[0]}{more}" if notes else "everything that the patterns take",
        metadata={"left_out": len(notes)},
    )


def chain_check(repository: Repository, manifest: Manifest) -> dg.AssetCheckResult:
    """Does the log in the store lead from a base backup to this increment, as it is now?"""
    wal = manifest.require_wal()
    found = coverages(repository)
    leads = any(manifest in coverage.increments for coverage in found)
    missing = sorted({name for c in found if c.base.backup_id == wal.base for name in c.missing})
    gap = f": {ranges(missing)} missing" if missing else ""
    return dg.AssetCheckResult(
        check_name="chain_unbroken",
        passed=leads,
        description=f"every segment from {wal.base} to {wal.end_lsn} is in the store"
        if leads
        else f"nothing leads from {wal.base} to {wal.end_lsn}{gap}",
        metadata=_wal_metadata(wal),
    )


def _maker(manifest: Manifest) -> str:
    if manifest.legacy:
        return "the old scripts"
    return "the command line" if manifest.run_id is None else "Dagster"


def _evidence_metadata(manifest: Manifest) -> dict[str, Any]:
    evidence = manifest.evidence
    if evidence is None or evidence.mode == "none":
        return {"evidence": "none"}
    return {
        "evidence": evidence.mode,
        "dagster/row_count": evidence.rows,
        "tables": evidence.tables,
        "objects": evidence.objects,
        "evidence_seconds": evidence.seconds,
    }


def _evidence_check(manifest: Manifest) -> dg.AssetCheckResult:
    metadata = _evidence_metadata(manifest)
    taken = metadata["evidence"] != "none"
    return dg.AssetCheckResult(
        check_name="evidence_taken",
        passed=taken,
        severity=dg.AssetCheckSeverity.WARN,
        description="what the source held is recorded, in the snapshot of the dump"
        if taken
        else "nothing is recorded that a restore could be compared with",
        metadata=metadata,
    )


def _size_check(manifest: Manifest, backups: Iterable[Backup]) -> dg.AssetCheckResult:
    """Compare with the median of up to seven earlier backups of the same database."""
    earlier = [
        other.total_size
        for other in (backup.manifest for backup in backups)
        if other is not None
        and other.completed_at < manifest.completed_at
        and other.database == manifest.database
        and other.type == manifest.type
    ][:_EARLIER]
    size = manifest.total_size
    metadata: dict[str, Any] = {"bytes": size, "earlier_backups": len(earlier)}
    usual = median(earlier) if earlier else 0
    if usual:
        metadata |= {"median_bytes": usual, "ratio": size / usual}
    return dg.AssetCheckResult(
        check_name="size_against_previous",
        passed=size >= _SHRUNK * usual,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{size / usual:.0%} of the median of {len(earlier)} earlier backups"
        if usual
        else "the first backup of this database: nothing to compare with",
        metadata=metadata,
    )
