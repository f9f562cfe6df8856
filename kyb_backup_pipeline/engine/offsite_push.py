"""Copying a backup to an off-site place: data first, the commit object last.

Each file is read once, held against the manifest, cut into parts and sent; then the commit object is created,
and read back. A push that was cut, killed or refused anywhere leaves parts and no copy; the next one finds them
and sends the rest. Encrypted files differ at each encryption, so for those a record beside the parts says what
they hold (``file-….json``): a file that was finished is not sent again, one that was not begins anew.

Who reads a backup holds its shared lock, so that no retention takes it away meanwhile. Two machines may push the
same id: the first commit object stands. The other compares: the same content is fine, another is an error.
"""

import contextlib
import hashlib
import json
import logging
import socket
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import check_keys
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    CouldNotVerify,
    NotFound,
    ProofFailed,
    Refused,
)
from kyb_backup_pipeline.engine.manifest import MANIFEST, Manifest, parse_manifest, write_json
from kyb_backup_pipeline.engine.offsite_copy import (
    RECORDS,
    WAL,
    CopiedFile,
    DamagedCopy,
    Encryption,
    OffsiteCopy,
    commit_key,
    files_of,
    folder_of,
    objects_of,
    parse_copy,
    read_copy,
    stretch_of,
    write_copy,
)
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_parts import Sender
from kyb_backup_pipeline.engine.offsite_source import reading
from kyb_backup_pipeline.engine.offsite_target import AlreadyThere, Found, Gone, Target
from kyb_backup_pipeline.engine.offsite_view import SeenCopy
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.settings import EncryptionSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import history_name
from kyb_backup_pipeline.engine.wal_store import Stored

_log = logging.getLogger(__name__)

_DATABASE_KINDS = ("full", "base", "incremental")
_SETTLING = 1.0
"""Seconds after which a commit object is looked at again where nobody keeps a second one out."""


class CopyConflict(Refused):
    """Under this id there is a copy with other content."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did. Bytes ``sent``, and bytes ``found`` there from an earlier try."""

    copy: OffsiteCopy
    already: bool
    sent: int
    found: int
    records: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One file to copy: where it is at home, and where its parts go. ``expected``: size and SHA-256."""

    path: str
    file: Path
    place: str
    expected: tuple[int, str] | None
    wal: bool = False


def push(
    settings: Settings,
    place: Place,
    backup: Backup,
    *,
    now: datetime,
    again: bool = False,
    run_id: str | None = None,
    report: Reporter = silent,
) -> Pushed:
    """Bring one backup to the place, or only its newer records where it is there already.

    ``again`` makes a damaged copy whole: every object is held against the backup, and sent where it differs.

    Raises CopyConflict, ProofFailed for a backup that is not what its manifest says, NotFound, Locked, and
    what the target raises.
    """
    began = time.monotonic()
    repository = Repository(settings.repository)
    with repository.reading(backup):
        content, manifest = _manifest(backup)
        known_probe = place.require_probe(now)
        target = place.target
        copy = _standing(target, backup, again)
        already = copy is not None and not again
        sent = found = 0
        if copy is not None and copy.manifest_sha256 != hashlib.sha256(content).hexdigest():
            raise _conflict(target, copy)
        if copy is None or again:
            items = list(_items(repository, backup, manifest))
            work = _Work(settings, target, manifest, items, known_probe.honest, report)
            work.anew = again
            with work:
                files = [(item, work.copy(item)) for item in items]
            sent, found = work.sender.tally.sent, work.sender.tally.found
            copy = OffsiteCopy(
                backup_id=backup.backup_id,
                kind=backup.kind,
                pushed_at=now,
                host=socket.gethostname(),
                manifest_base64=b64encode(content).decode(),
                manifest_sha256=hashlib.sha256(content).hexdigest(),
                recipients=settings.encryption.recipients if work.encryption else (),
                files=tuple(file for item, file in files if not item.wal),
                wal=tuple(file for item, file in files if item.wal),
            )
            copy = _commit(target, copy, sure=known_probe.create_only, again=again)
        records = push_records(repository, target, [backup.backup_id])
    seen = SeenCopy(kind=copy.kind, finished_at=copy.manifest.completed_at,
                    pushed_at=copy.pushed_at, run_id=None if already else run_id)  # fmt: skip
    known = place.view.copies.get(backup.backup_id) if already else None
    place.saw({backup.backup_id: known or seen})
    if not already:
        _log.info("%s is in %s: %d bytes sent, %d found", copy.backup_id, target.url, sent, found)
    return Pushed(copy=copy, already=already, sent=sent, found=found, records=records,
                  seconds=time.monotonic() - began)  # fmt: skip


def _standing(target: Target, backup: Backup, again: bool) -> OffsiteCopy | None:
    """The copy that is there; one that cannot be read is none to a push that makes it whole."""
    try:
        return read_copy(target, backup.kind, backup.backup_id)
    except DamagedCopy:
        if again:
            return None
        raise


class _Work:
    """Sends the files of one backup."""

    def __init__(
        self,
        settings: Settings,
        target: Target,
        manifest: Manifest,
        items: Sequence[_Item],
        honest: bool,
        report: Reporter,
    ) -> None:
        self._target = target
        self._items = items
        self._done, self._report = 0, report
        self._total = sum(item.file.stat().st_size for item in items)
        self._known: dict[str, Mapping[str, Found]] = {}
        wanted = settings.encryption.database == "offsite" and manifest.type in _DATABASE_KINDS
        self.encryption: EncryptionSettings | None = settings.encryption if wanted else None
        self._for = _made_for(settings.encryption) if wanted else ""
        self.anew = False
        self.sender = Sender(target, honest=honest, progress=self._progress)

    def __enter__(self) -> None:
        self.sender.__enter__()

    def __exit__(self, *error: object) -> None:
        self.sender.__exit__(None, None, None)

    def copy(self, item: _Item) -> CopiedFile:
        """Send one file; one that was sent before is only described."""
        self._detail = item.path
        method: Encryption = self.encryption.method if self.encryption else "none"
        if self.encryption is not None and item.expected is not None and not self.anew:
            earlier = self._recorded(item, item.expected)
            if earlier is not None:
                self.sender.tally.add(found=earlier.stored_size)
                self._progress(earlier.stored_size)
                return earlier
        known = self._listing(item)
        part = self._target.options.part_size
        with reading(item.file, self.encryption, part) as source:
            copied = self.sender.send(item.place, item.path, source, method, known)
        if item.expected is not None and (copied.size, copied.sha256) != item.expected:
            raise ProofFailed(
                f"{item.file} is not what the manifest says: it is not copied",
                hint="kyb-backup verify ID; the disk may have damaged it",
            )
        if self.encryption is not None:
            copied = self._record(item, copied)
        return copied

    def _listing(self, item: _Item) -> Mapping[str, Found]:
        """What is there already, looked up once for each folder."""
        folder = item.place.rpartition("/")[0] if item.wal else "/".join(item.place.split("/")[:3])
        if folder not in self._known:
            inside = [
                one.place for one in self._items if one.wal and one.place.startswith(f"{folder}/")
            ]
            found = self._target.list(folder, stretch_of(inside) if item.wal else None)
            self._known[folder] = {one.key: one for one in found}
        return self._known[folder]

    def _record_key(self, item: _Item, expected: tuple[int, str]) -> str:
        return f"{item.place}/file-{expected[1][:32]}-{self._for}.json"

    def _recorded(self, item: _Item, expected: tuple[int, str]) -> CopiedFile | None:
        """An encrypted file that was sent to its end before, if all of it is there."""
        key = self._record_key(item, expected)
        known = self._listing(item)
        if key not in known:
            return None
        try:
            earlier = CopiedFile.model_validate_json(self._target.get(key))
        except (Gone, ValueError):
            return None
        there = all(p.key in known and known[p.key].size == p.size for p in earlier.parts)
        fits = (earlier.path, earlier.size, earlier.sha256) == (item.path, *expected)
        inside = all(p.key.startswith(f"{item.place}/") for p in earlier.parts)
        return earlier if there and fits and inside else None

    def _record(self, item: _Item, copied: CopiedFile) -> CopiedFile:
        key = self._record_key(item, (copied.size, copied.sha256))
        self._target.put(key, write_json(copied))
        return copied

    def _progress(self, count: int) -> None:
        self._done += count
        total = max(self._total, self._done)
        self._report(Progress(step="push", done=self._done, total=total, detail=self._detail))


def _made_for(encryption: EncryptionSettings) -> str:
    """Tells apart what was encrypted for other keys; of a passphrase it tells nothing."""
    recipients = check_keys(encryption)
    if encryption.method == "gpg":
        return "gpg"
    return hashlib.sha256(json.dumps(sorted(recipients)).encode()).hexdigest()[:8]


def _manifest(backup: Backup) -> tuple[bytes, Manifest]:
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


def _items(repository: Repository, backup: Backup, manifest: Manifest) -> Iterator[_Item]:
    described = {file.path: (file.size, file.sha256) for file in manifest.files}
    missing = [path for path in described if not (backup.folder / path).is_file()]
    if missing:
        raise ProofFailed(f"{missing[0]} of {backup.backup_id} is missing: it is not copied",
                          hint="kyb-backup verify ID")  # fmt: skip
    folder = folder_of(backup.kind, backup.backup_id)
    for path in files_of(backup.folder):
        expected = described.get(str(path))
        if manifest.legacy and path.name == Path(manifest.backup_file).name and manifest.checksum:
            expected = (manifest.file_size, manifest.checksum)
        yield _Item(path=str(path), file=backup.folder / path, place=f"{folder}/{path}",
                    expected=expected)  # fmt: skip
    yield from _wal_items(repository, backup, manifest)


def _wal_items(repository: Repository, backup: Backup, manifest: Manifest) -> Iterator[_Item]:
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
        yield _Item(path=path, file=stored.path, place=f"{WAL}/{path}",
                    expected=(stored.size, sha256), wal=True)  # fmt: skip


def _commit(target: Target, copy: OffsiteCopy, *, sure: bool, again: bool) -> OffsiteCopy:
    """Make a copy of what was sent. ``sure``: the target keeps a second commit object out."""
    _require_parts(target, copy)
    key = commit_key(copy.kind, copy.backup_id)
    content = write_copy(copy)
    try:
        parse_copy(content, where="what was to be pushed")
    except DamagedCopy as error:
        raise ProofFailed(f"{copy.backup_id} is not what its manifest says: {error.message}",
                          hint=f"kyb-backup verify {copy.backup_id}") from error  # fmt: skip
    if again:
        target.put(key, content)
        return _read_back(target, key)
    standing = None if sure else read_copy(target, copy.kind, copy.backup_id)
    if standing is None:
        with contextlib.suppress(AlreadyThere):
            target.put(key, content, create=True)
        if not sure:
            time.sleep(_SETTLING)
        standing = _read_back(target, key)
    if standing == copy or standing.same_content(copy):
        return standing
    raise _conflict(target, standing)


def _read_back(target: Target, key: str) -> OffsiteCopy:
    try:
        return parse_copy(target.get(key), where=f"{target.url}/{key}")
    except Gone:
        raise BackupFailed(f"{target.url} took {key} and does not have it",
                           hint="it cannot be trusted with a copy: use another place") from None  # fmt: skip


def _require_parts(target: Target, copy: OffsiteCopy) -> None:
    """Look once more whether everything is there: somebody may have cleared up meanwhile."""
    there = objects_of(target, copy)
    for file in copy.all_files:
        for part in file.parts:
            if part.key not in there or there[part.key].size != part.size:
                raise BackupFailed(f"{part.key} is not in {target.url} any more",
                                   hint="push again: what is there is not sent twice")  # fmt: skip


def _conflict(target: Target, standing: OffsiteCopy) -> CopyConflict:
    return CopyConflict(
        f"{target.url} has another {standing.backup_id}, pushed by {standing.host} at "
        f"{standing.pushed_at:%Y-%m-%d %H:%M:%S} UTC, with other content",
        hint="do two machines write to one prefix? Give each its own in offsite.url. Nothing was overwritten",
    )


def push_records(repository: Repository, target: Target, backup_ids: Sequence[str]) -> int:
    """Bring the records of proofs along that are not there yet; how many.

    Raises CouldNotVerify where they cannot be read here, and what the target raises.
    """
    place = f"{RECORDS}/{backup_ids[0]}" if len(backup_ids) == 1 else RECORDS
    there: set[str] | None = None
    count = 0
    for backup_id in backup_ids:
        try:
            names = repository.records.newest_first(backup_id)
        except OSError as error:
            raise CouldNotVerify(
                f"the records of {backup_id} cannot be read: {error.strerror}",
                hint="run as the repository's owner",
            ) from error
        if names and there is None:
            there = {found.key for found in target.list(place)}
        for name in names:
            key = f"{RECORDS}/{backup_id}/{name}"
            if there is not None and key not in there:
                target.put(key, (repository.records.root / backup_id / name).read_bytes())
                count += 1
    return count
