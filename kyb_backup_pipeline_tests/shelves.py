"""Repositories full of old backups, made on the disk without a server: real manifests, files and WAL."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from kyb_backup_pipeline.engine.backup import FOLDERS, Backup
from kyb_backup_pipeline.engine.manifest import Kind, Proof, Verdict, utc_now
from kyb_backup_pipeline.engine.prune import PruneWish, look, prune
from kyb_backup_pipeline.engine.prune_records import PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.retention import Plan
from kyb_backup_pipeline.engine.settings import RetentionSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.invented import (
    manifest_of,
    names,
    publish,
    publish_as_old_scripts,
    store_segments,
)
from kyb_backup_pipeline_tests.histories import NOW, base, increment


@dataclass(frozen=True)
class Shelf:
    """A repository to put backups into that are so many days old."""

    root: Path
    now: datetime

    @property
    def repository(self) -> Repository:
        return Repository(self.root)

    def put(self, kind: Kind, name: str, days: float, deployment: str | None = None) -> Backup:
        """A backup with one file."""
        manifest = manifest_of(kind, name, self.now - timedelta(days=days), deployment=deployment)
        return publish(self.repository, manifest, {"content": name.encode() * 100})

    def base(self, name: str, days: float, start: int) -> Backup:
        """A base backup that begins with segment number ``start``."""
        made = base(name, self._age(days), start).require_manifest()
        return publish(self.repository, made, {"content": b"base"})

    def increment(self, name: str, days: float, on: str, numbers: range) -> Backup:
        """An increment, whose segments are brought into the store."""
        self.segments(numbers)
        made = increment(name, self._age(days), on, numbers).require_manifest()
        return publish(self.repository, made, {})

    def segments(self, numbers: range) -> None:
        """Segments in the store, each with a content of its own."""
        store_segments(self.repository, names(numbers))

    def prove(self, name: str, verdict: Verdict = "passed", proof: str = "verification") -> None:
        self.repository.records.keep(
            Proof.model_validate(
                {"backup_id": name, "proof": proof, "verdict": verdict, "summary": "",
                 "started_at": self.now, "finished_at": self.now}
            )
        )  # fmt: skip

    def prune(self, wish: PruneWish | None = None, **settings: float) -> tuple[PruneRecord, Plan]:
        return prune(self.repository, retention(**settings), wish or PruneWish(), now=self.now)

    def look(self, **settings: float) -> Plan:
        return look(self.repository, retention(**settings), self.now)

    def ids(self) -> list[str]:
        return sorted(b.backup_id for b in self.repository.backups(tuple(FOLDERS)))

    def wal(self) -> list[str]:
        return sorted(self.repository.wal.everything())

    def records(self) -> list[PruneRecord]:
        return PruneRecords(self.root).newest(1000)

    def _age(self, days: float) -> float:
        """The age that ``histories`` reckons from its own fixed time."""
        return days - (self.now - NOW) / timedelta(days=1)


def retention(**settings: float) -> RetentionSettings:
    return RetentionSettings.model_validate({"minimum_kept": 1, **settings})


def shelf_in(root: Path, now: datetime | None = None) -> Shelf:
    shelf = Shelf(root, now or utc_now())
    shelf.repository.create()
    return shelf


def three_chains(shelf: Shelf) -> None:
    """Chains of three weeks, a dump and an archive a day; the window begins in the second chain."""
    for number, age in enumerate((21, 14, 2)):
        start = number * 12
        shelf.base(f"base_{number}", age, start)
        for each in range(3):
            numbers = range(start + each * 4, start + each * 4 + 4)
            shelf.increment(
                f"incr_{number}{each}", age - 0.25 - each / 4, f"base_{number}", numbers
            )
    for day in range(45):
        shelf.put("full", f"full_{day:02}", day + 0.3)


def legacy_dump(shelf: Shelf, name: str, days: float) -> Path:
    """A full backup as ``backup-database.sh`` leaves it."""
    made = shelf.now - timedelta(days=days)
    return publish_as_old_scripts(shelf.repository, name, made, b"dump")


def what_is_not_whole(shelf: Shelf, settings: Settings) -> Iterator[str]:
    """Everything listed that is not whole: what a kill must never leave."""
    for backup in shelf.repository.backups(tuple(FOLDERS)):
        if backup.manifest is None:
            yield f"{backup.backup_id}: {backup.problem}"
            continue
        for file in backup.manifest.files:
            path = backup.folder / file.path
            if hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                yield f"{path} is not as written"
        if backup.kind == "incremental":
            proof = verify_backup(shelf.repository, backup, settings=settings, now=utc_now())
            if proof.verdict != "passed":
                yield f"{backup.backup_id}: {proof.summary}"
    for leftover in shelf.repository.leftovers():
        if not leftover.folder.name.endswith("~deleted.partial"):
            yield f"{leftover.folder} is no backup"
