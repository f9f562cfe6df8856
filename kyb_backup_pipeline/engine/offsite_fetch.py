"""Bringing a backup back from an off-site copy: into the repository, or into a new folder.

As a backup comes to be: files into ``.<id>.partial``, each held against the commit object and flushed, the
manifest last and to the byte, then one rename. Killed at any point there is the whole backup or a ``.partial``.
WAL segments go into the store, each by one rename; an increment alone brings its own, ``chain_of`` says what
else a recovery needs.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import check_opening
from kyb_backup_pipeline.engine.errors import (
    InvalidRequest,
    KybError,
    NotEnoughSpace,
    NotFound,
    Refused,
)
from kyb_backup_pipeline.engine.files import (
    NO_SPACE,
    flush_folder,
    free_bytes,
    no_space,
    write_durably,
)
from kyb_backup_pipeline.engine.manifest import MANIFEST, Proof, utc_now
from kyb_backup_pipeline.engine.offsite_copy import (
    RECORDS,
    CopiedFile,
    OffsiteCopy,
    find_copy,
    list_copies,
)
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged, fetching
from kyb_backup_pipeline.engine.offsite_target import Target
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.records import CLOCKS_DIFFER
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import parse_lsn
from kyb_backup_pipeline.engine.wal_store import WalConflict, WalDamaged, named

_log = logging.getLogger(__name__)

_RECORD = re.compile(r"[a-z_]+_\d{8}T\d{6}\.\d{6}Z\.json")
_BLOCK = 1 << 20


def fetch(
    settings: Settings,
    target: Target,
    copy: OffsiteCopy,
    *,
    now: datetime,
    report: Reporter = silent,
) -> Backup:
    """Bring a copy into the repository, under its own id.

    Raises CopyDamaged (nothing is published then), InvalidRequest where the id is in use, CouldNotVerify and
    WrongKey without the key, NotEnoughSpace, Locked, and what the target raises.
    """
    repository = Repository(settings.repository)
    check_key(settings, copy)
    check_own(repository, copy)
    steps = _Steps(target, settings, copy, report)
    try:
        with repository.writing(copy.kind, copy.backup_id, now=now, purpose="a copy from off-site",
                                returning=True) as staging:  # fmt: skip
            _check_room(repository.root, copy.size, settings.backup.minimum_free)
            for file in copy.files:
                steps.write(file, staging.folder / file.path)
            _fetch_wal(repository, steps, copy.wal)
            staging.publish_bytes(copy.manifest_bytes)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(repository.root, error) from error
        raise
    _fetch_records(repository, target, copy.backup_id)
    _log.info("%s was fetched from %s", copy.backup_id, target.url)
    return repository.find(copy.backup_id)


def check_own(repository: Repository, copy: OffsiteCopy) -> None:
    """One repository holds one cluster's WAL: positions of two would be taken for each other. Raises Refused."""
    wal = copy.manifest.wal
    if wal is None:
        return
    held = None
    for place in repository.entries("base"):  # until the first that is: there may be thousands
        known = repository.read("base", place)
        if known is not None and known.manifest is not None and known.manifest.wal is not None:
            held = known.manifest.wal.system_identifier
            if held == wal.system_identifier:
                return
    if held is not None:
        raise Refused(
            f"{repository.root} holds the backups of another cluster than {copy.backup_id} is of",
            hint="into an empty folder: offsite fetch --into DIR, restore point-in-time --work DIR",
        )


def fetch_into(
    settings: Settings,
    target: Target,
    copy: OffsiteCopy,
    folder: Path,
    *,
    report: Reporter = silent,
) -> Path:
    """Bring the files of a copy into a new folder; WAL goes into ``wal`` below. Raises as ``fetch``."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} exists and is not empty", hint="choose a new folder")
    check_key(settings, copy)
    steps = _Steps(target, settings, copy, report)
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        _check_room(partial, copy.size, 0)
        for file in copy.files:
            steps.write(file, partial / file.path)
        for file in copy.wal:
            steps.write(file, partial / "wal" / wal_path(file))
        write_durably(partial / MANIFEST, copy.manifest_bytes)
        flush_folder(partial)
        os.rename(partial, folder)
        flush_folder(folder.absolute().parent)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(folder, error) from error
        raise KybError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def chain_of(target: Target, copy: OffsiteCopy) -> list[OffsiteCopy]:
    """What a recovery up to this copy is made of: its base and the increments in between, in that order.

    A base or anything else is its own chain. Raises NotFound where the base, or one in between, has no copy.
    """
    if copy.kind != "incremental" or copy.manifest.wal is None or copy.manifest.wal.base is None:
        return [copy]
    base = copy.manifest.wal.base
    end = parse_lsn(copy.manifest.wal.end_lsn)
    between = [
        one.copy_
        for one in list_copies(target, ("incremental",))
        if one.copy_ is not None
        and one.copy_.manifest.wal is not None
        and one.copy_.manifest.wal.base == base
        and parse_lsn(one.copy_.manifest.wal.end_lsn) < end
    ]
    ordered = sorted(between, key=lambda c: parse_lsn(c.manifest.require_wal().end_lsn))
    chain = [find_copy(target, base), *ordered, copy]
    known, one = {c.backup_id: c for c in chain}, copy
    for _ in chain:  # back from the wanted one only: others may lie on a timeline that was left
        previous = one.manifest.require_wal().previous
        if previous is None:
            break
        if previous not in known:
            raise NotFound(
                f"{previous} has no copy in {target.url}, and {one.backup_id} goes on from it",
                hint="kyb-backup offsite list; another place may have it (--target NAME)",
            )
        one = known[previous]
    return chain


def check_key(settings: Settings, copy: OffsiteCopy) -> None:
    """Is the key there, where one is needed? Raises CouldNotVerify."""
    if copy.encryption != "none":
        check_opening(settings.encryption, copy.encryption)


class _Steps:
    """Writes file after file, and says how far it is."""

    def __init__(
        self, target: Target, settings: Settings, copy: OffsiteCopy, report: Reporter
    ) -> None:
        self._target = target
        self._encryption = settings.encryption
        self._report = report
        self._total = sum(file.size for file in copy.all_files)
        self._done = 0

    def skip(self, file: CopiedFile) -> None:
        self._done += file.size

    def write(self, file: CopiedFile, path: Path) -> None:
        """Write one file, flushed. Raises CopyDamaged, OSError and what the target raises."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with (
            open(descriptor, "wb", buffering=0) as out,
            fetching(self._target, file, self._encryption) as pieces,
        ):
            for piece in pieces:
                for block in _blocks(piece):
                    out.write(block)
                self._done += len(piece)
                self._report(
                    Progress(step="fetch", done=self._done, total=self._total, detail=file.path)
                )
            os.fsync(descriptor)
        flush_folder(path.parent)


def _blocks(piece: bytes) -> Iterator[memoryview]:
    view = memoryview(piece)
    for begin in range(0, len(view), _BLOCK):
        yield view[begin : begin + _BLOCK]


def _fetch_wal(repository: Repository, steps: _Steps, files: Sequence[CopiedFile]) -> None:
    """Bring segments into the store; one that is there and sound stays as it is.

    Raises CopyDamaged for one that is not what its name says: nothing of it stays.
    """
    if not files:
        return
    store = repository.wal
    store.create()
    for file in files:
        path = store.root / wal_path(file)
        name, sha256 = named(path.name) or ("", "")
        known = store.sound(name)
        if known is not None and known.sha256 != sha256:
            raise WalConflict(f"{name} is in the store with other content",
                              hint="does the copy come from another cluster? Use another repository")  # fmt: skip
        if known is not None:
            steps.skip(file)
            continue
        temporary = path.parent / f".{os.getpid()}.tmp.{path.name}"  # named as it is read
        try:
            steps.write(file, temporary)
            store.check(store.stored(path.name, temporary))
            os.rename(temporary, path)
            flush_folder(path.parent)
            flush_folder(store.root)
        except WalDamaged as error:
            raise CopyDamaged(f"{file.path} is not what its name says",
                              hint="kyb-backup offsite verify --deep looks at every copy") from error  # fmt: skip
        finally:
            temporary.unlink(missing_ok=True)


def wal_path(file: CopiedFile) -> str:
    """Where a file of WAL lies in the store. Raises CopyDamaged for what cannot be one."""
    timeline, _, name = file.path.partition("/")
    if not re.fullmatch(r"[0-9A-F]{8}", timeline) or named(name) is None:
        raise CopyDamaged(f"{file.path!r} is no file of a WAL store")
    return file.path


def _fetch_records(repository: Repository, target: Target, backup_id: str) -> None:
    """Bring the records of its proofs along; one that cannot be read stays where it is."""
    for found in target.list(f"{RECORDS}/{backup_id}"):
        name = found.key.rpartition("/")[2]
        if not _RECORD.fullmatch(name):
            continue
        try:
            proof = Proof.model_validate_json(target.get(found.key))
        except ValueError:
            _log.warning("%s/%s is no record of a proof", target.url, found.key)
            continue
        if proof.finished_at > utc_now() + CLOCKS_DIFFER:
            _log.warning("%s/%s is of a time to come: it stays there", target.url, found.key)
        elif proof.backup_id == backup_id:
            repository.records.keep(proof)


def _check_room(place: Path, needed: int, reserve: int) -> None:
    free = free_bytes(place)
    if free < needed + reserve:
        raise NotEnoughSpace(
            f"{free / 2**30:.2f} GiB free in {place}, {(needed + reserve) / 2**30:.2f} GiB needed",
            hint="free space there, or fetch into another place with --into",
        )


def require_absent(repository: Repository, backup_id: str) -> None:
    """Raise InvalidRequest where the repository has this backup."""
    if any(backup_id in repository.ids(kind) for kind in ("full", "base", "incremental",
                                                          "application_state", "configuration")):  # fmt: skip
        raise InvalidRequest(f"{backup_id} is in {repository.root}", hint="kyb-backup show ID")
