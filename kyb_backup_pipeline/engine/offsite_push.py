"""Copying a backup to an off-site place: data first, the commit object last.

Each file is read once, held against the manifest, cut into parts and sent; then the commit object is created,
and read back. A push that was cut, killed or refused anywhere leaves parts and no copy; the next one finds them
and sends the rest. Encrypted files differ at each encryption, so for those a record beside the parts says what
they hold (``file-….json``): a file that was finished is not sent again, one that was not begins anew.

Who reads a backup holds its shared lock, so that no retention takes it away meanwhile. Two machines may push the
same id: the first commit object stands. The other compares: the same content is fine, another is an error.
"""

import hashlib
import json
import logging
import socket
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import check_keys
from kyb_backup_pipeline.engine.errors import BackupFailed, CouldNotVerify, ProofFailed
from kyb_backup_pipeline.engine.manifest import Manifest, write_json
from kyb_backup_pipeline.engine.offsite_commit import CopyConflict, commit, conflict, lost_places
from kyb_backup_pipeline.engine.offsite_copy import (
    RECORDS,
    CopiedFile,
    DamagedCopy,
    Encryption,
    OffsiteCopy,
    read_copy,
    stretch_of,
)
from kyb_backup_pipeline.engine.offsite_items import Item, items_of, manifest_of
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_own import of_another
from kyb_backup_pipeline.engine.offsite_parts import Sender
from kyb_backup_pipeline.engine.offsite_source import reading
from kyb_backup_pipeline.engine.offsite_target import Found, Gone, Target
from kyb_backup_pipeline.engine.offsite_view import SeenCopy
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.settings import EncryptionSettings, Settings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_DATABASE_KINDS = ("full", "base", "incremental")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did. Bytes ``sent``, and bytes ``found`` there from an earlier try."""

    copy: OffsiteCopy
    already: bool
    sent: int
    found: int
    records: int
    seconds: float


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
        content, manifest = manifest_of(backup)
        known_probe = place.require_probe(now)
        target = place.target
        standing = _standing(target, backup, again)
        copy, sent, found = standing, 0, 0
        try:
            if standing is not None and standing.manifest_bytes != content:
                raise conflict(target, standing)
            if standing is None or again:
                items = list(items_of(repository, backup, manifest))
                work = _Work(settings, target, manifest, items, known_probe.honest, report)
                work.anew = again
                with work:
                    copy = _bring(work, backup, content, now, known_probe.create_only, again)
                sent, found = work.sender.tally.sent, work.sender.tally.found
        except CopyConflict as error:
            place.saw(damaged={backup.backup_id: of_another(error.standing)})
            raise
        assert copy is not None
        records = push_records(repository, target, [backup.backup_id])
    already = standing is not None and not again
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


def _bring(
    work: "_Work", backup: Backup, content: bytes, now: datetime, sure: bool, again: bool
) -> OffsiteCopy:
    """Send all, and make a copy of it."""
    work.copy_all()
    copy = work.described(backup, content, now)
    if lost := lost_places(work.target, copy):
        raise BackupFailed(f"{min(lost)} is not whole in {work.target.url} any more",
                           hint="push again: what is there is not sent twice")  # fmt: skip
    return commit(work.target, copy, sure=sure, replace=again)


class _Work:
    """Sends the files of one backup."""

    def __init__(
        self,
        settings: Settings,
        target: Target,
        manifest: Manifest,
        items: Sequence[Item],
        honest: bool,
        report: Reporter,
    ) -> None:
        self.target = target
        self._items = items
        self._copied: dict[str, CopiedFile] = {}
        self._settings = settings
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

    def copy_all(self) -> None:
        """Send every file."""
        for item in self._items:
            self._copied[item.place] = self._copy(item)

    def described(self, backup: Backup, content: bytes, now: datetime) -> OffsiteCopy:
        """The commit object of what was sent. ``content`` is the manifest."""
        return OffsiteCopy(
            backup_id=backup.backup_id,
            kind=backup.kind,
            pushed_at=now,
            host=socket.gethostname(),
            manifest_base64=b64encode(content).decode(),
            manifest_sha256=hashlib.sha256(content).hexdigest(),
            recipients=self._settings.encryption.recipients if self.encryption else (),
            files=tuple(self._copied[item.place] for item in self._items if not item.wal),
            wal=tuple(self._copied[item.place] for item in self._items if item.wal),
        )

    def _copy(self, item: Item) -> CopiedFile:
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
        part = self.target.options.part_size
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

    def _listing(self, item: Item) -> Mapping[str, Found]:
        """What is there already, looked up once for each folder."""
        folder = item.place.rpartition("/")[0] if item.wal else "/".join(item.place.split("/")[:3])
        if folder not in self._known:
            inside = [
                one.place for one in self._items if one.wal and one.place.startswith(f"{folder}/")
            ]
            found = self.target.list(folder, stretch_of(inside) if item.wal else None)
            self._known[folder] = {one.key: one for one in found}
        return self._known[folder]

    def _record_key(self, item: Item, expected: tuple[int, str]) -> str:
        return f"{item.place}/file-{expected[1][:32]}-{self._for}.json"

    def _recorded(self, item: Item, expected: tuple[int, str]) -> CopiedFile | None:
        """An encrypted file that was sent to its end before, if all of it is there."""
        key = self._record_key(item, expected)
        known = self._listing(item)
        if key not in known:
            return None
        try:
            earlier = CopiedFile.model_validate_json(self.target.get(key))
        except (Gone, ValueError):
            return None
        there = all(p.key in known and known[p.key].size == p.size for p in earlier.parts)
        fits = (earlier.path, earlier.size, earlier.sha256) == (item.path, *expected)
        inside = all(p.key.startswith(f"{item.place}/") for p in earlier.parts)
        return earlier if there and fits and inside else None

    def _record(self, item: Item, copied: CopiedFile) -> CopiedFile:
        key = self._record_key(item, (copied.size, copied.sha256))
        self.target.put(key, write_json(copied))
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
