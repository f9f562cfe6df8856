"""Verification: are the files of a backup what was written, whole, and complete?

One pass over each file: SHA-256 beside decryption and decompression, nothing kept. Without the key the checksum
of what is encrypted counts, and its content *could not be verified*. Beyond the checksums the dump itself must have come to its end, so that an unfinished one whose checksum fits does not pass. Every
byte is covered: the files by the manifest, the manifest by its own checksum file, that one by being
compared to the letter.

The verdict is about the files. Whether they *restore* is asked by ``restore_drill``.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path, PurePosixPath

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.contents import DAMAGED, compression_of, read_whole, reading
from kyb_backup_pipeline.engine.dump import (
    DIRECTORY,
    GLOBALS_FILE,
    PLAIN_FILE,
    checksum_of_files,
    is_complete,
)
from kyb_backup_pipeline.engine.encryption import method_of, plain_name
from kyb_backup_pipeline.engine.errors import BackupFailed, CouldNotVerify, KybError
from kyb_backup_pipeline.engine.evidence import EVIDENCE_FILE, parse_evidence
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.full_backup import DATABASE_FILE
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    BackupFile,
    Manifest,
    Proof,
    Verdict,
    parse_manifest,
    utc_now,
)
from kyb_backup_pipeline.engine.postgres import client_programs
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.settings import EncryptionSettings, PostgresSettings, Settings
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.stream import EDGE
from kyb_backup_pipeline.engine.verify_archive import examine_archives, examine_legacy
from kyb_backup_pipeline.engine.verify_chain import examine_base, examine_increment

LEGACY_FILE = "database.sql.gz"
_TABLE_DATA = re.compile(r"/\d+\.dat\.(gz|zst)$")
"""Data of one table in directory format, and the line of their own that pg_dump ends them with."""
_TABLE_END = re.compile(rb"(?:\A|\n)\\\.\n+\Z")


def verify_backup(
    repository: Repository,
    backup: Backup,
    *,
    settings: Settings,
    now: datetime,
    report: Reporter = silent,
    run_id: str | None = None,
) -> Proof:
    """Verify one backup and keep the record. A bad backup is a verdict, not an exception."""
    seen = Examination()
    manifest = None
    try:
        with repository.reading(backup):
            if backup.manifest is not None and backup.manifest.legacy and backup.kind != "full":
                manifest = backup.manifest
                examine_legacy(backup, manifest, settings.encryption, seen)
            elif (manifest := examine_manifest(backup, seen)) is not None:
                _examine(repository, backup, manifest, settings, seen, report)
    except CouldNotVerify as error:
        seen.unverifiable = error
    proof = _judge(backup, manifest, seen, now, run_id)
    repository.records.keep(proof)
    return proof


def _judge(
    backup: Backup,
    manifest: Manifest | None,
    seen: Examination,
    now: datetime,
    run_id: str | None,
) -> Proof:
    verdict: Verdict = "passed"
    hint = None
    segments = manifest.wal.segments if manifest and manifest.wal else ()
    files = len(manifest.files) or len(segments) or 1 if manifest else 0
    summary = f"{files} files, {seen.read} bytes read, all as written"
    if seen.findings:
        verdict = "failed"
        first = seen.findings[0]
        summary = f"{first.object} {first.message}"
        hint = "take a new backup now; keep this one until another has passed"
    elif seen.unverifiable is not None:
        verdict, summary, hint = (
            "could_not_verify", seen.unverifiable.message, seen.unverifiable.hint,
        )  # fmt: skip
    finished = utc_now()
    seconds = (finished - now).total_seconds()
    return Proof(
        backup_id=backup.backup_id,
        proof="verification",
        verdict=verdict,
        summary=summary,
        hint=hint,
        started_at=now,
        finished_at=finished,
        findings=tuple(seen.findings),
        notes=tuple(seen.notes),
        figures={"files": files, "bytes": seen.read, "seconds": round(seconds, 3), **seen.figures},
        run_id=run_id,
    )


def examine_manifest(backup: Backup, seen: Examination) -> Manifest | None:
    """Check the manifest against its checksum, its folder and the rest of itself."""
    path = backup.folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = parse_manifest(content, where=MANIFEST)
    except OSError as error:
        seen.unreadable(MANIFEST, error)
        return None
    except KybError as error:
        seen.found(MANIFEST, error.message.removeprefix(f"{MANIFEST} "))
        return None
    seen.read += len(content)
    try:
        checksum = (backup.folder / MANIFEST_CHECKSUM).read_bytes()
        if checksum != checksum_line(content):
            seen.found(MANIFEST, f"does not fit {MANIFEST_CHECKSUM}: one of the two was altered")
    except FileNotFoundError:
        if not manifest.legacy:
            seen.found(MANIFEST_CHECKSUM, "is missing")
        else:
            seen.notes.append("made by the old scripts: the manifest itself has no checksum")
    except OSError as error:
        seen.unreadable(MANIFEST_CHECKSUM, error)
    outside = [file.path for file in manifest.files if not _safe(file.path)]
    if outside:
        seen.found(MANIFEST, f"names a file outside its folder: {outside[0]!r}")
        return None
    if manifest.backup_id != backup.folder.name:
        seen.found(MANIFEST, f"belongs to another backup, {manifest.backup_id!r}")
    if manifest.type == "full" and not manifest.legacy:
        for problem in contradictions(manifest):
            seen.found(MANIFEST, problem)
    return manifest


def contradictions(manifest: Manifest) -> Iterator[str]:
    """What a manifest says against itself: parts of a backup that it does not list."""
    listed = {plain_name(file.path) for file in manifest.files}
    wanted = {GLOBALS_FILE, DATABASE_FILE}
    if manifest.evidence is not None and manifest.evidence.mode == "content":
        wanted.add(EVIDENCE_FILE)
    for name in sorted(wanted - listed):
        yield f"lists no {name}"
    if manifest.dump_format == "directory":
        dump = tuple(f for f in manifest.files if f.path.startswith(f"{DIRECTORY}/"))
        checksum = checksum_of_files(dump)
    else:
        dump = tuple(f for f in manifest.files if f.path.startswith(PLAIN_FILE))
        checksum = dump[0].sha256 if len(dump) == 1 else ""
    if not dump:
        yield "lists no dump"
    elif checksum != manifest.checksum or sum(f.size for f in dump) != manifest.file_size:
        yield "has a checksum or size that does not fit its list of files"


def files_of(manifest: Manifest) -> tuple[BackupFile, ...]:
    """The files of a backup; for one of the old scripts the only one it has."""
    if not manifest.legacy:
        return manifest.files
    return (
        BackupFile(path=LEGACY_FILE, size=manifest.file_size, sha256=manifest.require_checksum()),
    )


def examine_file(folder: Path, file: BackupFile, seen: Examination) -> None:
    """Check one small file against the manifest, without looking inside."""
    for _ in _read_checked(folder, file, seen):
        pass


def dump_file(manifest: Manifest) -> BackupFile:
    """The compressed dump of a backup in plain format."""
    return next(file for file in files_of(manifest) if file.path.startswith(PLAIN_FILE))


def _examine(
    repository: Repository,
    backup: Backup,
    manifest: Manifest,
    settings: Settings,
    seen: Examination,
    report: Reporter,
) -> None:
    if manifest.type == "base":
        examine_base(backup, manifest, settings.encryption, seen, report)
    elif manifest.type == "incremental":
        examine_increment(repository, manifest, settings.encryption, seen, report)
    elif manifest.type == "full":
        _examine_files(backup, manifest, settings, seen, report)
    else:
        examine_archives(backup, manifest, settings.encryption, seen, report)
    if manifest.type != "full":
        _note_strangers(backup, {file.path for file in manifest.files}, seen)


def _note_strangers(backup: Backup, known: set[str], seen: Examination) -> None:
    known = known | {MANIFEST, MANIFEST_CHECKSUM}
    present = {
        path.relative_to(backup.folder).as_posix()
        for path in backup.folder.rglob("*")
        if not path.is_dir()
    }
    seen.notes += [f"{name} is not part of this backup" for name in sorted(present - known)]


def _examine_files(
    backup: Backup,
    manifest: Manifest,
    settings: Settings,
    seen: Examination,
    report: Reporter,
) -> None:
    files, keys = files_of(manifest), settings.encryption
    total = sum(file.size for file in files)
    for file in files:
        report(Progress(step="verify", done=seen.read, total=total, detail=file.path))
        if method_of(file.path) or compression_of(file.path):
            _examine_content(backup.folder, file, keys, seen, total, report)
        else:
            examine_file(backup.folder, file, seen)
        if plain_name(file.path) == EVIDENCE_FILE and not (seen.findings or seen.unverifiable):
            _examine_evidence(backup.folder / file.path, keys, seen)
    report(Progress(step="verify", done=total, total=total))
    _note_strangers(backup, {file.path for file in files}, seen)
    if not manifest.legacy and not any(f.path.startswith(PLAIN_FILE) for f in files):
        examine_directory(backup.folder / DIRECTORY, manifest, settings.postgres, seen)


def _examine_evidence(path: Path, keys: EncryptionSettings, seen: Examination) -> None:
    try:
        parse_evidence(read_whole(path, keys))
    except ValueError:
        seen.found(EVIDENCE_FILE, "holds no evidence that can be read")


def _safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/")


def _read_checked(folder: Path, file: BackupFile, seen: Examination) -> Iterator[bytes]:
    """The blocks of a file; at its end size and checksum are judged, hashing goes on beside."""
    digest = hashlib.sha256()
    size = 0
    try:
        with (
            open(folder / file.path, "rb", buffering=0) as source,
            ThreadPoolExecutor(1) if file.size > BLOCK else nullcontext() as pool,
        ):
            while block := source.read(BLOCK):
                size += len(block)
                if pool is None:
                    digest.update(block)
                    yield block
                else:
                    hashing = pool.submit(digest.update, block)
                    yield block
                    hashing.result()
    except FileNotFoundError:
        seen.found(file.path, "is missing")
        return
    except OSError as error:
        seen.unreadable(file.path, error)
        return
    seen.read += size
    seen.compare(file, size, digest.hexdigest())


def _examine_content(
    folder: Path,
    file: BackupFile,
    keys: EncryptionSettings,
    seen: Examination,
    total: int,
    report: Reporter,
) -> None:
    """Checksum, decryption and decompression in one pass; the dump must begin and end as one."""
    head = tail = b""
    before, done = len(seen.findings), seen.read
    damage: str | None = None
    unopened: CouldNotVerify | None = None
    try:
        with reading(folder / file.path, keys, in_memory=True) as content:
            try:
                for piece in content.pieces:
                    head = head or piece[:EDGE]
                    tail = (tail + piece[-EDGE:])[-EDGE:]
                    at = min(done + content.size, total - 1)
                    report(Progress(step="verify", done=at, total=total, detail=file.path))
            except CouldNotVerify as error:
                unopened = error
            except DAMAGED as error:
                damage = error.message
    except FileNotFoundError:
        seen.found(file.path, "is missing")
        return
    except OSError as error:
        seen.unreadable(file.path, error)
        return
    seen.read += content.size
    seen.compare(file, content.size, content.sha256)
    if len(seen.findings) > before:
        return
    if damage is not None:
        seen.found(file.path, damage)
    elif unopened is not None:
        seen.unopened(unopened)
    elif file.path.startswith(PLAIN_FILE) and not is_complete(tail, head):
        seen.found(file.path, "holds an unfinished dump: pg_dump's last line is missing")
    elif _TABLE_DATA.search(file.path) and not _TABLE_END.search(tail):
        seen.found(file.path, "holds unfinished table data: the end mark is missing")


def examine_directory(
    place: Path, manifest: Manifest, programs: PostgresSettings, seen: Examination
) -> None:
    """Does the table of contents read, and is there data for each table it names?"""
    if seen.findings or seen.unverifiable is not None:
        return
    version = manifest.tool_versions.get("pg_dump", manifest.server_version or "0")
    try:
        pg_restore = client_programs(programs, int(version.split(".")[0])).path("pg_restore")
        listing = process.run([pg_restore, "--list", place], deadline=600).stdout
    except BackupFailed as error:
        seen.unverifiable = CouldNotVerify(f"no pg_restore fits: {error.message}", hint=error.hint)
        return
    except process.ProcessFailed as error:
        seen.found(f"{DIRECTORY}/toc.dat", f"cannot be read by pg_restore: {error.stderr}")
        return
    entries = [line.split(";", 1) for line in listing.splitlines() if not line.startswith(";")]
    present = {name.split(".")[0] for name in os.listdir(place)}
    for number, rest in entries:
        if " TABLE DATA " in rest and number.strip() not in present:
            seen.found(f"{DIRECTORY}/{number.strip()}.dat", f"is missing, the data of {rest[:80]}")
    if any(" BLOBS " in rest for _, rest in entries):
        _examine_large_objects(place, present, seen)


def _examine_large_objects(place: Path, present: set[str], seen: Examination) -> None:
    """pg_dump lists the files of large objects in tables of contents of their own."""
    contents = sorted(place.glob("blobs*.toc"))
    if not contents:
        seen.found(f"{DIRECTORY}/blobs.toc", "is missing, the list of the large objects")
    for path in contents:
        for line in path.read_text().splitlines():
            name = line.split()[-1]
            if name.split(".")[0] not in present:
                seen.found(f"{DIRECTORY}/{name}", f"is missing, a large object of {path.name}")
