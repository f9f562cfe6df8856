"""What of a backup is copied: its files as they lie at home, and of an increment the WAL that it names."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import NotFound, ProofFailed
from kyb_backup_pipeline.engine.manifest import MANIFEST, Manifest, parse_manifest
from kyb_backup_pipeline.engine.offsite_copy import WAL, files_of, folder_of
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import history_name
from kyb_backup_pipeline.engine.wal_store import Stored


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file to copy: where it is at home, and where its parts go. ``expected``: size and SHA-256."""

    path: str
    file: Path
    place: str
    expected: tuple[int, str] | None
    wal: bool = False


def manifest_of(backup: Backup) -> tuple[bytes, Manifest]:
    """The manifest, to the byte and as a model. Raises UnreadableManifest, NotFound."""
    backup.require_manifest()
    path = backup.folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{backup.backup_id} was made by the old scripts, without a manifest of its own",
            hint="it stays at home: take a new backup, which can be copied",
        ) from None
    return content, parse_manifest(content, where=str(path))


def items_of(repository: Repository, backup: Backup, manifest: Manifest) -> Iterator[Item]:
    described = {file.path: (file.size, file.sha256) for file in manifest.files}
    missing = [path for path in described if not (backup.folder / path).is_file()]
    if missing:
        raise ProofFailed(f"{missing[0]} of {backup.backup_id} is missing: it is not copied",
                          hint="kyb-backup verify ID")  # fmt: skip
    folder = folder_of(backup.kind, backup.backup_id)
    for path in files_of(backup.folder):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ProofFailed(f"a file of {backup.backup_id} has a name that no object can have: {str(path)!a}",
                              hint=f"who put it into {backup.folder}?") from None  # fmt: skip
        expected = described.get(str(path))
        if manifest.legacy and path.name == Path(manifest.backup_file).name and manifest.checksum:
            expected = (manifest.file_size, manifest.checksum)
        yield Item(path=str(path), file=backup.folder / path, place=f"{folder}/{path}",
                    expected=expected)  # fmt: skip
    yield from _wal_items(repository, backup, manifest)


def _wal_items(repository: Repository, backup: Backup, manifest: Manifest) -> Iterator[Item]:
    """The segments that an increment names, and the history of its timeline."""
    if manifest.wal is None or backup.kind != "incremental":
        return
    store = repository.wal
    named: list[Stored] = []
    for segment in manifest.wal.segments:
        stored = store.find(segment.name)
        if stored is None or stored.sha256 != segment.sha256:
            raise ProofFailed(f"{segment.name} of {backup.backup_id} is not in the store of WAL",
                              hint=f"kyb-backup verify {backup.backup_id}")  # fmt: skip
        named.append(stored)
    if manifest.wal.timeline > 1:
        history = store.find(history_name(manifest.wal.timeline))
        if history is None:
            raise ProofFailed(f"the history of timeline {manifest.wal.timeline} is not in the store",
                              hint="kyb-backup backup incremental brings it in again")  # fmt: skip
        named.append(history)
    for stored in named:
        path = str(stored.path.relative_to(store.root))
        with open(stored.path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        store.check(stored)  # damaged WAL is not copied
        yield Item(path=path, file=stored.path, place=f"{WAL}/{path}",
                    expected=(stored.size, sha256), wal=True)  # fmt: skip
