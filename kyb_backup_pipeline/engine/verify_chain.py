"""Verification of base backups and increments.

A base: every archive hashed and decompressed, each file in it compared with PostgreSQL's own manifest,
in one streaming pass (``base_archive``). An increment: each of its segments decompressed and compared
with the SHA-256 that the increment recorded; its base must be there, and no segment between missing. What is
encrypted and cannot be opened here has its checksum compared, and *could not be verified*.
"""

import hashlib

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.base_archive import own_segments, read_archives
from kyb_backup_pipeline.engine.base_backup import BASE_FILE
from kyb_backup_pipeline.engine.dump import checksum_of_files
from kyb_backup_pipeline.engine.encryption import plain_name
from kyb_backup_pipeline.engine.errors import CouldNotVerify, NotFound
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.manifest import MANIFEST, Manifest, Wal
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import history_name, parse_history, parse_lsn, ranges
from kyb_backup_pipeline.engine.wal_store import WalDamaged


def examine_base(
    backup: Backup,
    manifest: Manifest,
    keys: EncryptionSettings,
    seen: Examination,
    report: Reporter,
) -> None:
    """Look at every byte of a base backup."""
    if manifest.wal is None:
        seen.found(MANIFEST, "says nothing of the WAL of this base backup")
        return
    if BASE_FILE not in {plain_name(file.path) for file in manifest.files}:
        seen.found(MANIFEST, f"lists no {BASE_FILE}")
    if checksum_of_files(manifest.files) != manifest.checksum:
        seen.found(MANIFEST, "has a checksum that does not fit its list of files")
    try:
        read = read_archives(backup.folder, manifest, seen.found, keys=keys, report=report)
        seen.read += read.bytes
        if read.unopened is not None:
            seen.unopened(read.unopened)
    except OSError as error:
        seen.unreadable(str(error.filename or backup.folder), error)
    report(Progress(step="verify", done=manifest.total_size, total=manifest.total_size))


def examine_increment(
    repository: Repository,
    manifest: Manifest,
    keys: EncryptionSettings,
    seen: Examination,
    report: Reporter,
) -> None:
    """Look at every segment of an increment, and at the way to it from its base."""
    wal = manifest.wal
    if wal is None or wal.base is None:
        seen.found(MANIFEST, "says nothing of its base and its WAL")
        return
    lines = "".join(f"{segment.sha256}  {segment.name}\n" for segment in wal.segments)
    if hashlib.sha256(lines.encode()).hexdigest() != manifest.checksum:
        seen.found(MANIFEST, "has a checksum that does not fit its list of segments")
    store = repository.wal
    total = sum(segment.size for segment in wal.segments)
    done = 0
    for segment in wal.segments:
        report(Progress(step="verify", done=done, total=total, detail=segment.name))
        done += segment.size
        stored = store.find(segment.name)
        if stored is None:
            seen.found(f"WAL segment {segment.name}", f"is missing in {store.root}")
            continue
        if stored.sha256 != segment.sha256:
            seen.found(f"WAL segment {segment.name}", "is another than this increment recorded")
            continue
        try:
            seen.read += stored.size
            size = store.extract(stored, None, keys)
            if size != wal.segment_bytes:
                seen.found(f"WAL segment {segment.name}", f"has {size} bytes")
        except WalDamaged as error:
            message = error.message.removeprefix(f"{segment.name} ").removeprefix(
                f"{segment.name}: "
            )
            seen.found(f"WAL segment {segment.name}", message)
        except CouldNotVerify as error:
            seen.unopened(error)
        except OSError as error:
            seen.unreadable(f"WAL segment {segment.name}", error)
    report(Progress(step="verify", done=total, total=total))
    _examine_way(repository, wal, seen)


def _examine_way(repository: Repository, wal: Wal, seen: Examination) -> None:
    """Is the base there, and every segment from it to here?"""
    assert wal.base is not None
    try:
        base = repository.find(wal.base).manifest
    except NotFound:
        seen.found(f"base backup {wal.base}", "is gone: this increment cannot be replayed")
        return
    if base is None or base.wal is None:
        seen.found(f"base backup {wal.base}", "cannot be read: this increment needs it")
        return
    store = repository.wal
    try:
        history = parse_history(wal.timeline, store.history(wal.timeline))
    except WalDamaged as error:
        seen.found(history_name(wal.timeline), error.message.partition(".history")[2].lstrip(": "))
        return
    if wal.timeline > 1 and not history.switches:
        seen.found(history_name(wal.timeline), f"is missing in {store.root}")
        return
    names = {name for timeline in store.timelines() for name in store.names(timeline)}
    names |= {segment.name for segment in own_segments(base)}
    way = history.segments(
        parse_lsn(base.wal.start_lsn), parse_lsn(wal.start_lsn), wal.segment_bytes
    )
    if missing := [segment.name for segment in way if segment.name not in names]:
        seen.found(f"WAL from {wal.base}", f"has a hole: {ranges(missing)} missing")
