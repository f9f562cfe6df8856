"""The repository on disk: what is a backup, how one comes to be, who may touch it meanwhile.

Promises: a folder without a complete manifest is never listed; after kill -9 or a full disk at any
point there is either the whole backup or a ``.<id>.partial`` folder. Everything is written into that
folder and flushed, the manifest last, then the folder is renamed and its parent flushed.

Locks are ``flock``: they vanish with their process. One writer a kind at a time; readers hold a
shared lock on the backup's own folder, which a deletion needs exclusively. A read-only repository
is read without writing anything. Newest means by the manifest's time, never by mtime or name.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine import legacy
from kyb_backup_pipeline.engine.attempts import Attempts
from kyb_backup_pipeline.engine.backup import (
    FOLDERS,
    ID,
    LEFTOVER_AGE,
    PARTIAL,
    WAL_FOLDER,
    Backup,
    Leftover,
    new_id,
    valid_id,
)
from kyb_backup_pipeline.engine.errors import (
    InvalidRequest,
    KybError,
    Locked,
    NotFound,
)
from kyb_backup_pipeline.engine.files import (
    NO_SPACE,
    closed,
    folders_in,
    is_folder,
    no_space,
    not_writable,
    read_whole,
)
from kyb_backup_pipeline.engine.locks import exclusive, held, holder_of
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    Kind,
    Manifest,
    UnreadableManifest,
    parse_manifest,
    utc_now,
)
from kyb_backup_pipeline.engine.records import ProofRecords
from kyb_backup_pipeline.engine.staging import Staging
from kyb_backup_pipeline.engine.wal_store import WalStore

_log = logging.getLogger(__name__)

_PROOFS = "database/verification"
_LOCKS = ".locks"
_LAYOUT = (*dict.fromkeys(FOLDERS.values()), _PROOFS, "application/logs", "monitoring/metrics",
           "monitoring/alerts", "monitoring/retention", "holds", _LOCKS)  # fmt: skip


class Repository:
    """The tree under ``BACKUP_DIR``; see design §3 for its shape."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the folders that are missing, mode 0700. Raises SettingsInvalid if that fails."""
        try:
            for folder in ("", *_LAYOUT):
                path = self.root / folder
                for place in (*reversed(path.parents), path):
                    if not place.is_dir():
                        place.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise not_writable(self.root, error) from error

    def require_whole(self) -> None:
        """Raise NotFound where the repository, or a part of it, is out of sight.

        One that only the old scripts wrote need not have every folder.
        """
        wanted = (*dict.fromkeys(FOLDERS.values()), _PROOFS)
        missing = [self.root / place for place in wanted if not is_folder(self.root / place)]
        if len(missing) == len(wanted):
            raise NotFound(
                f"there is no repository at {self.root}",
                hint="is it mounted? BACKUP_DIR (or repository) names it",
            )
        if missing and is_folder(self.root / _LOCKS):
            raise NotFound(
                f"{missing[0]} is missing: this is not the whole repository",
                hint="is everything mounted? If it is gone for good, make an empty folder",
            )

    def folder(self, kind: Kind) -> Path:
        return self.root / FOLDERS[kind]

    def ids(self, kind: Kind) -> set[str]:
        """The ids of a kind, without reading manifests where its folder holds no other kind.

        Raises NotFound without that folder.
        """
        try:
            with os.scandir(self.folder(kind)) as entries:
                found = {
                    entry.name
                    for entry in entries
                    if ID.fullmatch(entry.name) and os.path.exists(f"{entry.path}/{MANIFEST}")
                } | {
                    path.name.removesuffix(legacy.ENCRYPTED)
                    for path in legacy.entries(kind, self.folder(kind))
                }
        except FileNotFoundError:
            raise NotFound(f"there is no repository at {self.root}") from None
        if list(FOLDERS.values()).count(FOLDERS[kind]) == 1:
            return found
        return {
            backup_id
            for backup_id in found
            if (backup := self.read(kind, self.folder(kind) / backup_id)) and backup.kind == kind
        }

    def backups(self, kinds: Iterable[Kind] = ("full",)) -> list[Backup]:
        """All backups, the newest first; those with a damaged manifest come last."""
        wanted = tuple(kinds)
        found = [
            backup
            for kind in {FOLDERS[kind]: kind for kind in reversed(wanted)}.values()
            for folder in self.entries(kind)
            if (backup := self.read(kind, folder)) is not None and backup.kind in wanted
        ]
        return sorted(
            found,
            key=lambda b: b.manifest.completed_at.timestamp() if b.manifest else 0,
            reverse=True,
        )

    def find(self, backup_id: str) -> Backup:
        """The backup with this id, of whatever kind. Raises NotFound and InvalidRequest."""
        valid_id(backup_id)
        for kind, place in FOLDERS.items():
            folder = self.root / place / backup_id
            if kind == "configuration" and not is_folder(folder):
                folder = folder.with_name(backup_id + legacy.ENCRYPTED)
                if folder.is_file() and (backup := self.read(kind, folder)):
                    return backup
                continue
            if is_folder(folder):
                backup = self.read(kind, folder)
                return backup or Backup(
                    backup_id=backup_id,
                    kind=kind,
                    folder=folder,
                    manifest=None,
                    problem=f"{folder / MANIFEST} is missing: this is not a complete backup",
                )
        raise NotFound(
            f"no backup {backup_id!r} in {self.root}", hint="kyb-backup list shows what there is"
        )

    def newest(self, kind: Kind = "full") -> Backup:
        """The newest complete backup of a kind. Raises NotFound if there is none."""
        for backup in self.backups((kind,)):
            if backup.manifest is not None:
                return backup
        raise NotFound(f"no {kind} backup in {self.root}", hint=f"kyb-backup backup {kind}")

    def free_id(self, prefix: str, now: datetime) -> str:
        """An id that was never used, also where several are wanted within a second."""
        wanted = new_id(prefix, now)
        number = 1
        while self._used(wanted) is not None:
            number += 1
            wanted = f"{new_id(prefix, now)}_{number}"
        return wanted

    def leftovers(self) -> list[Leftover]:
        """Folders that are no backups: partial ones, and those without a manifest."""
        found = []
        for place in dict.fromkeys(FOLDERS.values()):
            for path in folders_in(self.root / place):
                name = os.path.basename(path)
                if name == WAL_FOLDER:
                    continue
                partial = name.startswith(".") and name.endswith(PARTIAL)
                if partial or not (name.startswith(".") or _has_manifest(path)):
                    modified = datetime.fromtimestamp(os.stat(path).st_mtime).astimezone()
                    found.append(Leftover(folder=Path(path), partial=partial, modified=modified))
        return found

    @contextlib.contextmanager
    def writing(
        self,
        kind: Kind,
        backup_id: str,
        *,
        now: datetime,
        purpose: str | None = None,
        returning: bool = False,
    ) -> Iterator[Staging]:
        """Hold the writer's lock of a kind and hand out a fresh folder for ``backup_id``.

        On leaving without ``publish`` the folder is removed, and the failure written down. What killed runs left is swept when it
        is older than 24 h. ``purpose`` is told to whoever finds the lock taken. A backup that is
        ``returning`` comes from a copy: its records may be here still. Raises InvalidRequest for a bad id or one
        in use, Locked.
        """
        valid_id(backup_id)
        self.create()
        holder = {"backup": backup_id, **holder_of(now)}
        if purpose is not None:
            holder = {"for": purpose, **holder}
        with self._writer_lock(kind, holder):
            self._sweep(kind, now)
            if place := self._used(backup_id, returning=returning):
                raise InvalidRequest(
                    f"the id {backup_id!r} is in use ({place})", hint="ids are never reused"
                )
            folder = self.folder(kind) / f".{backup_id}{PARTIAL}"
            if folder.exists():  # of a killed run: we hold the lock, so nobody writes there
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            staging = Staging(backup_id, folder, self.folder(kind) / backup_id)
            try:
                yield staging
            except BaseException as error:
                told = error
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    told = no_space(folder, error)
                if not returning:
                    Attempts(self.root).keep(kind, backup_id, told, utc_now())
                if told is not error:
                    raise told from error
                raise
            finally:
                if not staging.published:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def reading(self, backup: Backup) -> Iterator[None]:
        """Hold a shared lock on a backup, so that nothing deletes it meanwhile.

        Raises Locked while it is being deleted, NotFound when it was.
        """
        gone = NotFound(f"backup {backup.backup_id!r} was deleted", hint="kyb-backup list")
        try:
            descriptor = os.open(backup.folder, os.O_RDONLY)
        except PermissionError as error:
            raise closed(backup.folder) from error
        except FileNotFoundError:
            raise gone from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"backup {backup.backup_id!r} is being deleted") from None
            except OSError as error:
                _log.warning("no lock on %s (%s): reading without", backup.folder, error.strerror)
            if not _is_at(descriptor, backup.folder):  # deleted between the two
                raise gone
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def deleting(self, now: datetime) -> Iterator[None]:
        """Hold the lock of those who delete, and of those who say what must not be.

        Raises NotFound where a part of the repository is out of sight, Locked.
        """
        self.require_whole()
        if not is_folder(self.root / _LOCKS):  # the old scripts made no such folder
            self.create()
        with exclusive(self._lock("prune"), "another prune is running", holder_of(now)):
            yield

    def being_pruned(self) -> bool:
        """Whether somebody holds the lock of those who delete, at this moment."""
        return held(self._lock("prune"))

    @contextlib.contextmanager
    def keeping_out(self, kinds: Iterable[Kind], purpose: str, now: datetime) -> Iterator[None]:
        """Hold the writers' locks of some kinds. Raises Locked where one is written."""
        with contextlib.ExitStack() as held:
            for kind in kinds:
                held.enter_context(self._writer_lock(kind, {"for": purpose, **holder_of(now)}))
            yield

    @property
    def wal(self) -> WalStore:
        """The store of WAL segments."""
        return WalStore(self.folder("incremental") / WAL_FOLDER)

    @property
    def records(self) -> ProofRecords:
        """What was kept of the proofs."""
        return ProofRecords(self.root / _PROOFS)

    def entries(self, kind: Kind) -> list[Path]:
        """What lies in the folder of a kind and may be a backup: folders, and old encrypted files."""
        return [Path(path) for path in self.places(kind)]

    def places(self, kind: Kind) -> list[str]:
        """The same as strings, for whoever looks at all of them again and again."""
        folders = [p for p in folders_in(self.folder(kind)) if ID.fullmatch(os.path.basename(p))]
        return folders + [str(p) for p in legacy.entries(kind, self.folder(kind)) if not p.is_dir()]

    def read(self, kind: Kind, folder: Path, model: type[Manifest] = Manifest) -> Backup | None:
        """The backup in one of ``entries``; None where it is none. Another kind may share the folder."""
        path = f"{folder}/{MANIFEST}"  # a Path for each of 10,000 takes longer than to open them
        try:
            manifest = parse_manifest(read_whole(path), where=path, model=model)
        except NotADirectoryError:
            manifest = legacy.configuration_manifest(folder)
            return Backup(backup_id=manifest.backup_id, kind=kind, folder=folder, manifest=manifest)
        except FileNotFoundError:
            return self._read_legacy(kind, folder)
        except (UnreadableManifest, OSError) as error:
            problem = error.message if isinstance(error, KybError) else f"{path}: {error.strerror}"
            return Backup(
                backup_id=folder.name,
                kind=_kind_by_name(kind, folder.name),
                folder=folder,
                manifest=None,
                problem=problem,
            )
        return Backup(backup_id=folder.name, kind=manifest.type, folder=folder, manifest=manifest)

    def _read_legacy(self, kind: Kind, folder: Path) -> Backup | None:
        if kind != "application_state":
            return None
        problem = manifest = None
        try:
            if (manifest := legacy.application_manifest(folder)) is None:
                return None
        except UnreadableManifest as error:
            problem = error.message
        except OSError as error:
            problem = f"{folder / legacy.METADATA}: {error.strerror}"
        return Backup(
            backup_id=folder.name, kind=kind, folder=folder, manifest=manifest, problem=problem
        )

    def _used(self, backup_id: str, *, returning: bool = False) -> Path | None:
        proofs = () if returning else (_PROOFS,)
        places = [self.root / place / backup_id for place in (*FOLDERS.values(), *proofs)]
        places.append(self.folder("configuration") / (backup_id + legacy.ENCRYPTED))
        return next((place for place in places if place.exists()), None)

    def _sweep(self, kind: Kind, now: datetime) -> None:
        for leftover in self.leftovers():
            if not leftover.partial or leftover.folder.parent != self.folder(kind):
                continue
            if now - leftover.modified > LEFTOVER_AGE:
                _log.warning("removing %s, left by a killed run", leftover.folder)
                shutil.rmtree(leftover.folder, ignore_errors=True)
            else:
                _log.warning("%s was left by a killed run; it is removed after 24 h",
                             leftover.folder)  # fmt: skip

    @contextlib.contextmanager
    def _writer_lock(self, kind: Kind, holder: Mapping[str, object]) -> Iterator[None]:
        busy = f"another {kind.replace('_', ' ')} backup is being written"
        with exclusive(self._lock(kind), busy, holder):
            yield

    def _lock(self, name: str) -> Path:
        return self.root / _LOCKS / f"{name}.lock"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether what is open is what the path leads to."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _kind_by_name(kind: Kind, name: str) -> Kind:
    """What a damaged backup in the folder of base backups and increments is, as far as its name tells."""
    if FOLDERS[kind] != FOLDERS["base"]:
        return kind
    return "base" if name.startswith("base_") else "incremental"


def _has_manifest(folder: str) -> bool:
    return os.path.exists(f"{folder}/{MANIFEST}") or (
        os.path.dirname(folder).endswith(FOLDERS["application_state"])
        and os.path.exists(f"{folder}/{legacy.METADATA}")
    )
