"""What is in a repository, in few words for each backup: the one reader behind health, reports and retention.

Of 10,000 backups a look reads the manifests and records that have changed since the last one, and keeps what
is asked of them. A manifest that cannot be read is a fact too. What was read lives in the memory of one process
and nowhere else: there is no file that could be stale or forged. Who decides about a deletion makes a survey of
its own (``inventory``), which has read everything since.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from kyb_backup_pipeline.engine.backup import FOLDERS, Backup
from kyb_backup_pipeline.engine.collecting import without_collecting
from kyb_backup_pipeline.engine.errors import NotFound
from kyb_backup_pipeline.engine.legacy import METADATA
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    Kind,
    Manifest,
    Proof,
    Sha256,
    Wal,
)
from kyb_backup_pipeline.engine.recovery_plan import Coverage, coverages_of
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.engine.standing import Proved, Standing, proved
from kyb_backup_pipeline.engine.store import Repository

ProofName = Literal["verification", "restore_test"]

_LOG: tuple[Kind, ...] = ("base", "incremental")


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


class _Row(TypedDict):
    """A ``WalSegment`` as it stands in the file: an object for each of 200,000 takes as long as all the rest."""

    name: str
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class _RowsWal(Wal):
    segments: tuple[_Row, ...] = ()  # type: ignore[assignment]  # gone before anybody else sees them


class _RowsManifest(Manifest):
    """Refuses what ``Manifest`` refuses."""

    wal: _RowsWal | None = None


Stamp = tuple[int, ...]
"""What is another when a file is: times of content and of entry, size, inode, device."""
_ABSENT: Stamp = (0,)


@dataclass(frozen=True, slots=True)
class Read:
    """One backup as it was read. ``segments`` are the names that its manifest lists, with spaces between."""

    stamp: Stamp
    fact: Fact
    segments: str
    backup: Backup


@dataclass(slots=True)
class _Proofs:
    """The proofs of one backup as they were read; ``joined`` with which fact to what."""

    stamp: Stamp
    facts: Mapping[str, ProofFact]
    standing: Standing
    joined: tuple[Fact, Fact] | tuple[None, None] = (None, None)


@dataclass
class Survey:
    """The facts of one repository, kept from look to look. Raises NotFound without a repository.

    Who looks ``once`` spares it the looks by which it would know what has changed.
    """

    repository: Repository
    once: bool = False
    _read: dict[str, Read] = field(default_factory=dict)
    _proofs: dict[str, _Proofs] = field(default_factory=dict)
    _coverage: tuple[object, tuple[Coverage, ...]] | None = None

    def look(self) -> list[Fact]:
        """All backups, the newest first; those that cannot be read come last."""
        self.refresh()
        found = [self._joined(read.fact) for read in self._read.values()]
        return sorted(found, key=lambda f: f.at.timestamp() if f.at else 0.0, reverse=True)

    def _joined(self, fact: Fact) -> Fact:
        """A fact with its proofs, made anew where one of them was."""
        proofs = self._proofs.get(fact.backup_id)
        if proofs is None or not proofs.facts:
            return fact
        if proofs.joined[0] is not fact:
            proofs.joined = (fact, _with(fact, proofs.facts))
        return proofs.joined[1]

    def coverage(self) -> tuple[Coverage, ...]:
        """What the newest base backup and the log behind it lead to, as of the last look."""
        store = self.repository.wal
        log = [(path, r.stamp) for path, r in self._read.items() if r.fact.kind in _LOG]
        seen = (frozenset(log), tuple(store.changed(t) for t in store.timelines()))
        if self._coverage is None or self._coverage[0] != seen:
            found = coverages_of(self.log("base"), self.log("incremental"), store, newest=True)
            self._coverage = (seen, tuple(found))
        return self._coverage[1]

    def log(self, kind: Literal["base", "incremental"]) -> list[Backup]:
        """Base backups or increments, the newest first, as ``coverages_of`` takes them: of increments
        without the lists of their segments, which lie in the store.
        """
        return [b for b in self.backups() if b.kind == kind and b.manifest and b.manifest.wal]

    def backups(self) -> list[Backup]:
        """All backups as of the last look, the newest first, then those that cannot be read. Their
        manifests have what decisions are made by, without lists: of files (but those of base backups), of
        segments, and of all markers but the last.
        """
        found = [read.backup for read in self._read.values()]
        return sorted(found, key=lambda b: (_seconds(b.manifest), b.backup_id), reverse=True)

    def segments(self) -> dict[str, str]:
        """The names of the segments that each increment lists, by its id, with spaces between."""
        return {r.fact.backup_id: r.segments for r in self._read.values() if r.segments}

    def standings(self) -> dict[str, Standing]:
        """How the backups stand of which there are records of proofs, by id."""
        return {
            name: p.standing for name, p in self._proofs.items() if p.facts or p.standing.trouble
        }

    def refresh(self) -> None:
        """Look again, and read what has changed."""
        with without_collecting():
            self._refresh()
            self._refresh_proofs()

    def _refresh(self) -> None:
        if not any(self.repository.folder(kind).is_dir() for kind in FOLDERS):
            raise NotFound(f"there is no repository at {self.repository.root}")
        there: dict[str, Read] = {}
        for kind, place in self._entries():
            stamp = () if self.once else _manifest_stamp(place)
            known = self._read.get(place)
            if known is None or known.stamp != stamp or not stamp:
                read = read_slim(self.repository, kind, Path(place), stamp)
                if read is None:
                    continue
                known = read
            there[place] = known
        self._read = there

    def _entries(self) -> Iterator[tuple[Kind, str]]:
        kinds = {FOLDERS[kind]: kind for kind in reversed(tuple(FOLDERS))}
        for kind in kinds.values():
            for place in self.repository.places(kind):
                yield kind, place

    def _refresh_proofs(self) -> None:
        records = self.repository.records
        there: dict[str, _Proofs] = {}
        for read in self._read.values():
            backup_id = read.fact.backup_id
            stamp = () if self.once else _stamp(f"{records.root}/{backup_id}")
            if stamp is _ABSENT:
                continue
            known = self._proofs.get(backup_id)
            if known is None or known.stamp != stamp or not stamp:
                known = _known(stamp, proved(records, backup_id))
            there[backup_id] = known
        self._proofs = there


def _manifest_stamp(folder: str) -> Stamp:
    """Of the manifest, else of what the old scripts wrote in its place."""
    stamp = _stamp(f"{folder}/{MANIFEST}")
    if stamp is _ABSENT:
        stamp = _stamp(f"{folder}/{METADATA}")
    return _stamp(folder) if stamp is _ABSENT else stamp


def _stamp(path: str) -> Stamp:
    """``_ABSENT`` where nothing is there, empty where that cannot be seen: then it is read again each time."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _ABSENT
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def _seconds(manifest: Manifest | None) -> float:
    return manifest.completed_at.timestamp() if manifest else 0.0


def _known(stamp: Stamp, proved: Proved) -> _Proofs:
    facts = {name: _proof(proof) for name, proof in proved.latest.items()}
    return _Proofs(stamp, facts, proved.standing)


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


def read_slim(repository: Repository, kind: Kind, folder: Path, stamp: Stamp = ()) -> Read | None:
    """Read one backup as a survey does; None where there is none."""
    backup = repository.read(kind, folder, _RowsManifest)
    if backup is None:
        return None
    fact, segments = _fact(backup), ""
    if backup.manifest is not None:
        segments = _slim(backup.manifest)
    return Read(stamp, fact, segments, backup)


def _slim(manifest: Manifest) -> str:
    """Take the lists away that nobody asks a survey for, and return the names of the segments.

    From the manifest itself: nobody else has it yet, and a copy of each takes as long as to read it.
    """
    segments = ""
    if isinstance(manifest.wal, _RowsWal):
        segments = " ".join([row["name"] for row in manifest.wal.segments])
        vars(manifest.wal).update(segments=(), markers=manifest.wal.markers[-1:])
    if manifest.type != "base":
        vars(manifest).update(file_size=manifest.total_size, files=(), evidence=None, archives=(),
                              requirements=None, database=None, tool_versions={})  # fmt: skip
    return segments


def _with(fact: Fact, proofs: Mapping[str, ProofFact]) -> Fact:
    if not proofs:
        return fact
    values = {name: getattr(fact, name) for name in fact.__slots__}
    return Fact(**{**values, **{n: p for n, p in proofs.items() if n in fact.__slots__}})
