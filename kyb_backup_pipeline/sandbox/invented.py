"""Backups that nobody took: real manifests, files and WAL in a real repository, made without a server.

For the story of the demo, and for tests of whatever reads many backups. Everything is written by the functions
that write real ones. What a file holds is a few bytes: to ``verify`` such a backup is bad, and rightly.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.files import write_durably
from kyb_backup_pipeline.engine.legacy import ENCRYPTED
from kyb_backup_pipeline.engine.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    BackupFile,
    Kind,
    Manifest,
    Marker,
    Wal,
    WalSegment,
    write_json,
)
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import Segment, format_lsn

MB = 1 << 20
"""Of a segment: the smallest that PostgreSQL has."""
_BEHIND_START, _BEHIND_END = 0x100, 0x200
"""A base backup begins and ends within its first segment."""


def manifest_of(kind: Kind, name: str, made: datetime, **more: Any) -> Manifest:
    """The manifest of a backup that was complete at ``made``."""
    plain: dict[str, Any] = {"backup_file": name, "file_size": 1, "format_version": FORMAT_VERSION}
    return Manifest(
        backup_id=name, timestamp=made, type=kind, finished_at=made, **{**plain, **more}
    )


def listed(manifest: Manifest, root: Path = Path()) -> Backup:
    """A backup as a repository lists it, without one."""
    folder = root / manifest.type / manifest.backup_id
    return Backup(
        backup_id=manifest.backup_id, kind=manifest.type, folder=folder, manifest=manifest
    )


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The segments with these numbers: the part of the log that a base backup begins, or that an increment
    brings, on a base. ``sizes`` are what they are said to take, in bytes.
    """

    numbers: range
    on: str | None = None
    timeline: int = 1
    system: str = "1"
    sizes: Mapping[str, int] | None = None


def with_wal(manifest: Manifest, stretch: Stretch) -> Manifest:
    """The same with its part of the log; an increment ends with a marker."""
    at, on = manifest.completed_at, stretch.on
    first, last = stretch.numbers.start, stretch.numbers.stop
    tail = last * MB if on else first * MB + _BEHIND_END
    marker = Marker(
        xid=1, begun_lsn=format_lsn(tail - 64), lsn=format_lsn(tail - 32), at=at, done_at=at
    )
    sizes = stretch.sizes or {}
    segments = tuple(
        WalSegment(name=n, sha256=_digest(n), size=sizes.get(n, 1))
        for n in names(stretch.numbers if on else range(0), stretch.timeline)
    )
    wal = Wal(
        base=on, system_identifier=stretch.system, timeline=stretch.timeline, segment_bytes=MB,
        start_lsn=format_lsn(first * MB + (0 if on else _BEHIND_START)), end_lsn=format_lsn(tail),
        end_at=at, segments=segments, markers=(marker,) if on else (),
    )  # fmt: skip
    return manifest.model_copy(update={"wal": wal})


def names(numbers: Iterable[int], timeline: int = 1) -> list[str]:
    """The names of segments."""
    return [Segment(timeline, number, MB).name for number in numbers]


def content_of(name: str) -> bytes:
    """What a segment holds: its name, and nothing."""
    return name.encode().ljust(MB, b"\0")


def store_segments(repository: Repository, wanted: Iterable[str]) -> None:
    """Bring segments into the store."""
    store = repository.wal
    store.create()
    for name in wanted:
        path = store.receiving / name
        path.write_bytes(content_of(name))
        store.add(path, name)
        path.unlink()


def publish(
    repository: Repository, manifest: Manifest, content: Mapping[str, bytes], *, said: int | None = None
) -> Backup:  # fmt: skip
    """Write a backup with these files, the first of which is its main one.

    ``said`` is the size in bytes that the manifest tells of that, where it is not to be its own.
    """
    with repository.writing(
        manifest.type, manifest.backup_id, now=manifest.completed_at
    ) as staging:
        files = [staging.write(name, text) for name, text in content.items()]
        if files and said is not None:
            files[0] = files[0].model_copy(update={"size": said})
        staging.publish(_described(manifest, files))
    return repository.find(manifest.backup_id)


def _described(manifest: Manifest, files: list[BackupFile]) -> Manifest:
    """The manifest with its files; with its segments where it has no file."""
    if files:
        main = files[0]
        changes = {"backup_file": main.path, "files": tuple(files), "file_size": main.size,
                   "checksum": main.sha256}  # fmt: skip
        return manifest.model_copy(update=changes)
    segments = manifest.require_wal().segments
    lines = "".join(f"{s.sha256}  {s.name}\n" for s in segments)
    changes = {"file_size": sum(s.size for s in segments), "checksum": _sha256(lines.encode())}
    return manifest.model_copy(update=changes)


def publish_as_old_scripts(repository: Repository, name: str, made: datetime, dump: bytes, **more: Any) -> Path:  # fmt: skip
    """A full backup as ``backup-database.sh`` leaves it: no list of files, and a path of that host."""
    folder = repository.folder("full") / name
    folder.mkdir(mode=0o700, parents=True)
    write_durably(folder / "database.sql.gz", dump)
    manifest = Manifest.model_validate({
        "backup_id": name, "timestamp": made, "type": "full",
        "database": {"host": "localhost", "port": "5432", "name": "kyb", "user": "kyb"},
        "backup_file": f"/elsewhere/{name}/database.sql.gz", "file_size": str(len(dump)),
        "checksum": _sha256(dump), **more,
    })  # fmt: skip
    write_durably(folder / MANIFEST, write_json(manifest))
    return folder


def archive_as_old_scripts(repository: Repository, name: str, content: bytes) -> Path:
    """A configuration archive as ``backup-configuration.sh`` leaves it: a file, the time in its name."""
    path = repository.folder("configuration") / f"{name}{ENCRYPTED}"
    write_durably(path, content)
    return path


@functools.lru_cache(maxsize=4096)
def _digest(name: str) -> str:
    return _sha256(content_of(name))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
