"""What of a chain is at home already, looked at before a recovery counts on it.

Whoever recovers from copies does so because of home: what lies there is believed nothing. A backup there must be, to the
byte, what the copy is of; every file of it is hashed, and every segment that its increments name. Segments that
are missing or damaged in the store are brought again. A base or an increment is not replaced under its id: the
recovery is refused before anything is done, and told the way around.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.files import flush_folder
from kyb_backup_pipeline.engine.offsite_copy import CopiedFile, OffsiteCopy
from kyb_backup_pipeline.engine.offsite_fetch import wal_path
from kyb_backup_pipeline.engine.offsite_own import is_of_home
from kyb_backup_pipeline.engine.offsite_reading import fetching
from kyb_backup_pipeline.engine.offsite_target import Target
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal_store import Stored, WalDamaged, WalStore, named

AROUND = "--work DIR (with --into) takes all of it from the copies"


@dataclass(frozen=True, kw_only=True)
class Present:
    """The ``ids`` that are whole at home; ``lacking`` is the WAL that has to be brought for the chain all the same."""

    ids: tuple[str, ...]
    lacking: tuple[CopiedFile, ...]


def look_at_home(repository: Repository, chain: Sequence[OffsiteCopy]) -> Present:
    """Which of a chain's backups can be used as they are at home. Raises Refused for one that is damaged there."""
    ids = tuple(copy.backup_id for copy in chain if _is_whole(repository, copy))
    return Present(ids=ids, lacking=tuple(_lacking(repository.wal, chain, ids)))


def _is_whole(repository: Repository, copy: OffsiteCopy) -> bool:
    folder = repository.folder(copy.kind) / copy.backup_id
    try:
        same = is_of_home(repository, copy)
        if same is None and not os.path.lexists(folder):
            return False
        if not same:
            raise _damaged(folder, "its manifest is not that of the copy" if same is False else
                           "it has no manifest")  # fmt: skip
        for file in copy.manifest.files:
            with open(folder / file.path, "rb", buffering=0) as content:
                size = os.fstat(content.fileno()).st_size
                digest = hashlib.file_digest(content, "sha256") if size == file.size else None
                if digest is None or digest.hexdigest() != file.sha256:
                    raise _damaged(folder, f"{file.path} is not what its manifest says")
    except OSError as error:
        raise _damaged(folder, f"{error.filename or folder}: {error.strerror}") from error
    return True


def _damaged(folder: Path, why: str) -> Refused:
    return Refused(f"{folder.name} cannot be used as it is in {folder.parent}: {why}",
                   hint=f"{AROUND}; or move {folder} away, and it is fetched")  # fmt: skip


def _lacking(
    store: WalStore, chain: Sequence[OffsiteCopy], ids: Sequence[str]
) -> Iterator[CopiedFile]:
    """WAL of what is at home that is not in the store; of the whole chain, what is damaged there."""
    looked: set[str] = set()
    listed: dict[int, Mapping[str, Stored]] = {}
    for backup_id, file in [(copy.backup_id, file) for copy in chain for file in copy.wal]:
        path = PurePosixPath(wal_path(file))
        name, sha256 = named(path.name) or ("", "")
        timeline = int(path.parts[0], 16)
        if timeline not in listed:
            listed[timeline] = store.names(timeline)
        known = listed[timeline].get(name)
        if name in looked or (known is None and backup_id not in ids):
            continue  # with its increment it comes, too
        looked.add(name)
        if known is not None and known.sha256 != sha256:
            raise Refused(f"{name} is in {store.root} with other content than in the copy", hint=AROUND)  # fmt: skip
        if known is None or not _is_sound(store, known):
            yield file


def _is_sound(store: WalStore, stored: Stored) -> bool:
    try:
        store.check(stored)
    except (WalDamaged, OSError):
        return False
    return True


def bring_wal(
    settings: Settings, target: Target, files: Sequence[CopiedFile], *, now: datetime
) -> None:
    """Bring files into the store, each by one rename, in the place of one that is damaged there.

    Raises CopyDamaged, Locked, CouldNotVerify without the key, OSError, and what the target raises.
    """
    if not files:
        return
    repository = Repository(settings.repository)
    store = repository.wal
    store.create()
    with repository.keeping_out(("incremental",), "WAL from off-site", now):
        for file in files:
            path = store.root / wal_path(file)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            name, _ = named(path.name) or ("", "")
            known = store.find(name)
            temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
            try:
                _write(settings, target, file, temporary)
                os.rename(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            if known is not None and known.path != path:  # encrypted another time
                known.path.unlink(missing_ok=True)
            flush_folder(path.parent)
        flush_folder(store.root)


def _write(settings: Settings, target: Target, file: CopiedFile, path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with (
        open(os.open(path, flags, 0o600), "wb") as out,
        fetching(target, file, settings.encryption) as pieces,
    ):
        for piece in pieces:
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
