"""What is in a repository, in few words for each backup: for looks that are made again and again.

Of 10,000 backups a look reads the manifests and records that have changed since the last one, and keeps the
few facts that health, metrics and reports need. A manifest that cannot be read is a fact too.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from kyb_backup_pipeline.engine.errors import NotFound
from kyb_backup_pipeline.engine.manifest import MANIFEST, Kind, Manifest, Proof, Wal
from kyb_backup_pipeline.engine.records import ProofRecords
from kyb_backup_pipeline.engine.recovery_plan import Coverage, coverages_of
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.engine.store import FOLDERS, Backup, Repository

_log = logging.getLogger(__name__)

ProofName = Literal["verification", "restore_test"]


@dataclass(frozen=True, slots=True)
class ProofFact:
    """The newest record of one proof; ``seconds`` of the whole proof, ``recovery`` of what counts."""

    verdict: str
    at: datetime
    summary: str
    seconds: float
    recovery: float | None = None
    rows: float | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One backup. ``at`` is None where its manifest cannot be read, which ``problem`` then says."""

    backup_id: str
    kind: Kind
    at: datetime | None
    size: int = 0
    seconds: float | None = None
    rows: int | None = None
    database: str | None = None
    deployment: str | None = None
    label: str | None = None
    legacy: bool = False
    problem: str | None = None
    lag: int | None = None
    archive_failures: int | None = None
    verification: ProofFact | None = None
    restore_test: ProofFact | None = None

    @property
    def safety(self) -> bool:
        """Whether it was taken before a restore: such ones say nothing about freshness."""
        return self.backup_id.startswith(SAFETY_PREFIX)

    def proof(self, name: ProofName) -> ProofFact | None:
        return self.verification if name == "verification" else self.restore_test

    def proved(self, name: ProofName) -> bool:
        """Whether the newest record of a proof is a pass."""
        proof = self.proof(name)
        return proof is not None and proof.verdict == "passed"


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: tuple[int, int, int]
    fact: Fact
    manifest: Manifest | None


@dataclass
class Survey:
    """The facts of one repository, kept from look to look. Raises NotFound without a repository."""

    repository: Repository
    _read: dict[Path, _Read] = field(default_factory=dict)
    _proofs: dict[str, tuple[int, dict[str, ProofFact]]] = field(default_factory=dict)
    _coverage: tuple[object, tuple[Coverage, ...]] | None = None

    def look(self) -> list[Fact]:
        """All backups, the newest first; those that cannot be read come last."""
        self._refresh()
        self._refresh_proofs()
        found = [
            _with(read.fact, self._proofs.get(read.fact.backup_id, (0, {}))[1])
            for read in self._read.values()
        ]
        return sorted(found, key=lambda f: f.at.timestamp() if f.at else 0.0, reverse=True)

    def coverage(self) -> tuple[Coverage, ...]:
        """What the newest base backup and the log behind it lead to."""
        store = self.repository.wal
        log = [(path, read.stamp) for path, read in self._read.items() if read.manifest is not None]
        seen = (frozenset(log), tuple(store.changed(t) for t in store.timelines()))
        if self._coverage is None or self._coverage[0] != seen:
            found = coverages_of(self.log("base"), self.log("incremental"), store, newest=True)
            self._coverage = (seen, tuple(found))
        return self._coverage[1]

    def log(self, kind: Literal["base", "incremental"]) -> list[Backup]:
        """Base backups or increments, the newest first, as ``coverages_of`` takes them: of increments
        without the lists of their segments, which lie in the store.
        """
        found = [
            (read.manifest.completed_at, path, read.manifest)
            for path, read in self._read.items()
            if read.manifest is not None and read.manifest.type == kind
        ]
        return [
            Backup(backup_id=path.name, kind=kind, folder=path, manifest=manifest)
            for _, path, manifest in sorted(found, key=lambda f: f[0], reverse=True)
        ]

    def _refresh(self) -> None:
        if not any(self.repository.folder(kind).is_dir() for kind in FOLDERS):
            raise NotFound(f"there is no repository at {self.repository.root}")
        there: dict[Path, _Read] = {}
        for kind, folder in self._entries():
            stamp = _stamp(folder)
            known = self._read.get(folder)
            if known is None or known.stamp != stamp:
                backup = self.repository.read(kind, folder)
                if backup is None:
                    continue
                known = _Read(stamp, _fact(backup), _slim(backup))
            there[folder] = known
        self._read = there

    def _entries(self) -> Iterator[tuple[Kind, Path]]:
        kinds = {FOLDERS[kind]: kind for kind in reversed(tuple(FOLDERS))}
        for kind in kinds.values():
            for folder in self.repository.entries(kind):
                yield kind, folder

    def _refresh_proofs(self) -> None:
        records = self.repository.records
        there: dict[str, tuple[int, dict[str, ProofFact]]] = {}
        for read in self._read.values():
            backup_id = read.fact.backup_id
            try:
                changed = os.stat(records.root / backup_id).st_mtime_ns
            except OSError:
                continue
            known = self._proofs.get(backup_id)
            if known is None or known[0] != changed:
                known = (changed, _newest(records, backup_id))
            there[backup_id] = known
        self._proofs = there


def _stamp(folder: Path) -> tuple[int, int, int]:
    """What changes when a manifest does: it is replaced whole, or the folder is renamed."""
    try:
        status = os.stat(folder / MANIFEST)
    except OSError:
        try:
            status = os.stat(folder)
        except OSError:
            return (0, 0, 0)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _newest(records: ProofRecords, backup_id: str) -> dict[str, ProofFact]:
    try:
        return {name: _proof(proof) for name, proof in records.latest(backup_id).items()}
    except (OSError, ValueError) as error:
        _log.warning("the records of %s cannot be read: %s", backup_id, error)
        return {}


def _proof(proof: Proof) -> ProofFact:
    figures = proof.figures
    return ProofFact(proof.verdict, proof.finished_at, proof.summary, proof.seconds,
                     figures.get("recovery_seconds"), figures.get("rows"))  # fmt: skip


def _fact(backup: Backup) -> Fact:
    manifest = backup.manifest
    if manifest is None:
        return Fact(backup.backup_id, backup.kind, None, problem=backup.problem)
    wal = manifest.wal
    took = manifest.started_at and manifest.finished_at
    return Fact(
        backup.backup_id,
        backup.kind,
        manifest.completed_at,
        size=manifest.total_size,
        seconds=(manifest.completed_at - manifest.started_at).total_seconds()
        if took and manifest.started_at
        else None,
        rows=manifest.evidence.rows
        if manifest.evidence and manifest.evidence.mode == "content"
        else None,
        database=manifest.database.name if manifest.database else None,
        deployment=manifest.deployment,
        label=manifest.label,
        legacy=manifest.legacy,
        lag=wal.lag_bytes if wal else None,
        archive_failures=wal.archive_failures if wal else None,
    )


def _slim(backup: Backup) -> Manifest | None:
    """What recovery plans need of a base or an increment; nothing of other kinds."""
    manifest = backup.manifest
    if manifest is None or manifest.wal is None:
        return None
    if manifest.type == "base":
        return manifest
    wal: Wal = manifest.wal.model_copy(
        update={"segments": (), "markers": manifest.wal.markers[-1:]}
    )
    return manifest.model_copy(update={"wal": wal, "files": ()})


def _with(fact: Fact, proofs: dict[str, ProofFact]) -> Fact:
    if not proofs:
        return fact
    values = {name: getattr(fact, name) for name in fact.__slots__}
    return Fact(**{**values, **{n: p for n, p in proofs.items() if n in fact.__slots__}})
