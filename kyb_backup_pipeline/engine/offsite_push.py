"""Copying a backup to an off-site place: data first, the commit object last.

Each file is read once, held against the manifest, cut into parts and sent; then the commit object is created,
and read back. A push that was cut, killed or refused anywhere leaves parts and no copy; the next one finds them
and sends the rest. Encrypted files differ at each encryption, so for those a record beside the parts says what
they hold (``file-….json``): a file that was finished is not sent again, one that was not begins anew.

A prune may take for remains what a push finds and builds on. So what lies there for long is written anew, and after
the commit it is looked once more whether all is there; what went is sent again.

Who reads a backup holds its shared lock, so that no retention takes it away meanwhile. Two machines may push the
same id: the first commit object stands. The other compares: the same content is fine, another is an error.
"""

import hashlib
import json
import logging
import socket
import time
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
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
from kyb_backup_pipeline.engine.offsite_own import is_sound_manifest, of_another
from kyb_backup_pipeline.engine.offsite_parts import Sender, Tally
from kyb_backup_pipeline.engine.offsite_source import reading
from kyb_backup_pipeline.engine.offsite_target import Found, Gone, Target
from kyb_backup_pipeline.engine.offsite_view import as_seen
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.settings import EncryptionSettings, Settings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_DATABASE_KINDS = ("full", "base", "incremental")
_LOOKS = 5
"""How often a copy is looked at after its commit, where somebody takes away what it names."""


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
        trusted = place.require_probe(now)
        target = place.target
        standing, occupied = _standing(target, backup, again)
        task = _Task(backup=backup, content=content, manifest=manifest, now=now, again=again,
                     standing=standing, occupied=occupied)  # fmt: skip
        copy, tally = standing, Tally()
        try:
            if standing is not None and standing.manifest_bytes != content:
                if not is_sound_manifest(backup.folder, content):
                    raise ProofFailed(
                        f"the manifest of {backup.backup_id} is damaged at home: it is not held against its copy",
                        hint=f"kyb-backup verify {backup.backup_id}",
                    )
                raise conflict(target, standing)
            if standing is None or again:
                items = list(items_of(repository, backup, manifest))
                with _Work(settings, target, task, items, trusted.honest, report) as work:
                    copy, tally = _bring(work, sure=trusted.create_only), work.sender.tally
        except CopyConflict as error:
            place.saw(damaged={backup.backup_id: of_another(error.standing)})
            raise
        assert copy is not None
        records = push_records(repository, target, [backup.backup_id])
    already = standing is not None and not again
    seen = as_seen(copy, run_id=None if already else run_id)
    as_it_was = standing is not None and not tally.sent
    known = place.view.copies.get(backup.backup_id) if as_it_was else None
    place.saw({backup.backup_id: known or seen})
    if not already:
        _log.info(
            "%s is in %s: %d bytes sent, %d found",
            copy.backup_id,
            target.url,
            tally.sent,
            tally.found,
        )
    return Pushed(copy=copy, already=already, sent=tally.sent, found=tally.found, records=records,
                  seconds=time.monotonic() - began)  # fmt: skip


def _standing(target: Target, backup: Backup, again: bool) -> tuple[OffsiteCopy | None, bool]:
    """The copy that is there, and whether there is a commit object; one that cannot be read is none to a push that
    makes it whole.
    """
    try:
        copy = read_copy(target, backup.kind, backup.backup_id)
    except DamagedCopy:
        if again:
            return None, True
        raise
    return copy, copy is not None


def _bring(work: "_Work", *, sure: bool) -> OffsiteCopy:
    """Send all and make a copy of it, until a look after the commit finds it whole: somebody may clear up meanwhile."""
    target, replace, stands = work.target, work.task.occupied, work.task.standing
    lost: set[str] | None = None
    for number in range(_LOOKS):
        if lost:
            _log.warning("%s: %s is not whole any more, and is sent again", target.url, min(lost))
            time.sleep(number / 2)
        work.copy(lost)
        copy = work.described()
        lost = lost_places(target, copy)
        if lost:
            continue
        if copy != stands:
            copy = commit(target, copy, sure=sure, replace=replace)
            replace, stands = True, copy
        lost = lost_places(target, copy)
        if not lost:
            return copy
    raise BackupFailed(
        f"{target.url} loses what is sent: {min(lost or '?')} is not whole after {_LOOKS} tries",
        hint="does somebody delete there, or a lifecycle rule? Then: kyb-backup offsite push ID --again",
    )


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be brought, and the copy that stands there. ``occupied``: there is a commit object, readable or not."""

    backup: Backup
    content: bytes
    manifest: Manifest
    now: datetime
    again: bool
    standing: OffsiteCopy | None
    occupied: bool


class _Work:
    """Sends the files of one backup."""

    def __init__(
        self,
        settings: Settings,
        target: Target,
        task: _Task,
        items: Sequence[Item],
        honest: bool,
        report: Reporter,
    ) -> None:
        self.target = target
        self.task = task
        self._settings = settings
        self._items = items
        self._copied: dict[str, CopiedFile] = {}
        self._done, self._report = 0, report
        self._total = sum(item.file.stat().st_size for item in items)
        self._known: dict[str, Mapping[str, Found]] = {}
        wanted = settings.encryption.database == "offsite" and task.manifest.type in _DATABASE_KINDS
        self.encryption: EncryptionSettings | None = settings.encryption if wanted else None
        self._for = _made_for(settings.encryption) if wanted else ""
        files = task.standing.all_files if task.standing else ()
        self.sender = Sender(
            target,
            honest=honest and not task.again,  # a service that lost content may call it what it did
            now=task.now,
            named=[part.key for file in files for part in file.parts],
            progress=self._progress,
        )

    def __enter__(self) -> "_Work":
        self.sender.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.sender.__exit__(None, None, None)

    def copy(self, places: Collection[str] | None = None) -> None:
        """Send every file, or those whose parts are to be at some places."""
        self._known.clear()
        for item in self._items:
            if places is None or item.place in places:
                self._copied[item.place] = self._copy(item)

    def described(self) -> OffsiteCopy:
        """The commit object of what was sent; the one that stands where nothing had to be."""
        task, standing = self.task, self.task.standing
        as_it_was = standing is not None and not self.sender.tally.sent
        return OffsiteCopy(
            backup_id=task.backup.backup_id,
            kind=task.backup.kind,
            pushed_at=standing.pushed_at if standing and as_it_was else task.now,
            host=standing.host if standing and as_it_was else socket.gethostname(),
            manifest_base64=b64encode(task.content).decode(),
            manifest_sha256=hashlib.sha256(task.content).hexdigest(),
            recipients=self._settings.encryption.recipients if self.encryption else (),
            files=tuple(self._copied[item.place] for item in self._items if not item.wal),
            wal=tuple(self._copied[item.place] for item in self._items if item.wal),
        )

    def _copy(self, item: Item) -> CopiedFile:
        """Send one file; one that was sent before is only described."""
        self._detail = item.path
        method: Encryption = self.encryption.method if self.encryption else "none"
        if self.encryption is not None and item.expected is not None and not self.task.again:
            earlier = self._recorded(item, item.expected)
            if earlier is not None:
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
        """An encrypted file that was sent to its end before, if all of it is there and is what was sent."""
        key = self._record_key(item, expected)
        known = self._listing(item)
        if key not in known:
            return None
        try:
            earlier = CopiedFile.model_validate_json(self.target.get(key))
        except (Gone, ValueError):
            return None
        fits = (earlier.path, earlier.size, earlier.sha256) == (item.path, *expected)
        fits = fits and earlier.lies_at(item.place)  # else it would be no copy that is read again
        parts = self.sender.keep_all(earlier.parts, known) if fits else None
        if parts is None:
            return None
        kept = earlier.model_copy(update={"parts": tuple(parts)})
        return (
            self._record(item, kept) if kept != earlier or self.sender.is_old(known[key]) else kept
        )

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
