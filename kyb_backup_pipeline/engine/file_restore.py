"""Bringing back configuration and application state.

In place: unpack beside and compare every member → save what runs now → stop the service → swap by renames
→ start the service → post the flags back. On any failure what was swapped is swapped back, the service is
started again and the error says so; after a kill the next restore (or ``restore repair``) does that. Into a
new folder: unpack, compare, rename; nothing else is touched.

Where to look next: ``extraction`` for what is refused, ``swap`` for the renames.
"""

import contextlib
import hashlib
import logging
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine import legacy
from kyb_backup_pipeline.engine.archive import Entry, Member, MemberCheck, read_tar
from kyb_backup_pipeline.engine.config import ApplicationSettings, Settings
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    CouldNotVerify,
    InvalidRequest,
    KybError,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.extraction import Rules, Take, Unpacked, unpack
from kyb_backup_pipeline.engine.file_backup import (
    CONFIGS,
    FLAGS_FILE,
    LOGS,
    SAFETY_PREFIX,
    configuration_root,
    configured_selection,
    take_application_backup,
    take_configuration_backup,
)
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import Manifest
from kyb_backup_pipeline.engine.platform_api import check_json, fetch_flags, restore_flags
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.sealed import opening
from kyb_backup_pipeline.engine.service import start_service, stop_service
from kyb_backup_pipeline.engine.store import Backup, Repository
from kyb_backup_pipeline.engine.swap import (
    REPLACED,
    UNDONE,
    Work,
    carry_over,
    check_mounts,
    forget,
    holding,
    keep_aside,
    plan_units,
    remove,
    swap,
    undo,
    unfinished,
    working,
    write_journal,
)
from kyb_backup_pipeline.engine.tree import EVERYTHING, Selection, shown, walk
from kyb_backup_pipeline.engine.verify_archive import (
    DAMAGE,
    check_members,
    gunzipped,
    hashed,
    judge_members,
)

_log = logging.getLogger(__name__)

_POLL = 0.2
_FLAGS_BEFORE = "flags.json"
_SET_ID = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller may leave out."""

    safety_backup: bool = True
    flags: bool = True
    service: bool = True
    owners: bool = True
    skip_unsafe: bool = False
    logs_into: Path | None = None


@dataclass(kw_only=True)
class Restored:
    """What was done. ``interruption`` in seconds, from the stop of the service to its start; ``kept`` is
    where what was in place before lies now.
    """

    backup_id: str
    folder: Path
    files: int = 0
    units: tuple[str, ...] = ()
    saved_as: str | None = None
    flags: bool = False
    interruption: float | None = None
    kept: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """How a backup differs from what is there now; paths in the folder it would go into."""

    base: Path
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    same: int


def preview(settings: Settings, backup: Backup) -> Preview:
    """Compare a backup with what is in place now, without touching it. Raises as a restore."""
    target = _target(settings, backup)
    listed: dict[str, Member] = {}
    with _reading(settings, backup, None) as (entries, check):
        members = [m for m in _listed(backup, entries, check) if target.take(m.path)]
    for member in members:
        if path := target.take(member.path):
            listed[path] = member
    changed: list[str] = []
    missing: list[str] = []
    same = 0
    for path, member in listed.items():
        if member.kind == "folder":
            continue
        verdict = _compare(target, path, member, listed)
        if verdict is None:
            same += 1
        else:
            (missing if verdict == "missing" else changed).append(path)
    wholes = [p for p, m in listed.items() if m.kind == "folder" and m.whole]
    extra = _extra(target, wholes, set(listed))
    return Preview(base=target.base, changed=tuple(changed), missing=tuple(missing),
                   extra=tuple(extra), same=same)  # fmt: skip


def restore_in_place(
    settings: Settings,
    backup: Backup,
    options: Options,
    *,
    now: datetime,
    report: Reporter = silent,
) -> Restored:
    """Restore configuration or application state over what runs now.

    Raises RestoreFailed (then the old state stands, and the service was started again), Refused,
    Locked, BackupFailed if what runs now cannot be saved.
    """
    target = _target(settings, backup)
    how = settings.application
    captured = (FLAGS_FILE,) if options.flags and backup.kind == "application_state" else ()
    done = Restored(backup_id=backup.backup_id, folder=target.base)
    repair_all(settings)
    try:
        target.base.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise RestoreFailed(f"{target.base} cannot be made: {error.strerror}") from error
    with (
        Repository(settings.repository).reading(backup),
        working(target.base, backup.backup_id, now) as work,
    ):
        rules = Rules(take=target.take, captured=captured, owners=options.owners,
                      skip_unsafe=options.skip_unsafe)  # fmt: skip
        unpacked = _unpack(settings, backup, None, work.new, rules, report)
        done.files, done.notes = unpacked.files, unpacked.notes
        if not unpacked.wholes and not unpacked.singles:
            raise RestoreFailed(f"{backup.backup_id} holds nothing to restore")
        check_mounts(work.base, [*unpacked.wholes, *unpacked.singles])
        flags = unpacked.captured.get(FLAGS_FILE)
        if flags is not None:
            _check_flags(backup, flags)
        elif captured:
            done.notes.append(
                "the backup has no feature flags: those in force were left as they are"
            )
        if _is_old_archive(backup):
            done.notes.append(
                "the old script kept no folders of environment files: they lie at the top"
            )
        if options.logs_into is not None:
            restore_into(settings, backup, options.logs_into, options, part=LOGS, report=report)
        before = _present_flags(how) if captured else None
        if options.safety_backup:
            done.saved_as = _save(settings, backup, target, now)
        _exchange(how, work, unpacked, target, flags, before, options, done)
    return done


def _check_flags(backup: Backup, flags: bytes) -> None:
    """Flags that the service could only refuse are found before it is stopped."""
    try:
        check_json(flags, f"{FLAGS_FILE} of {backup.backup_id}")
    except KybError as error:
        raise RestoreFailed(
            error.message, hint="--without-flags leaves them as they are"
        ) from error


def restore_into(
    settings: Settings,
    backup: Backup,
    folder: Path,
    options: Options,
    *,
    part: str | None = None,
    report: Reporter = silent,
) -> Restored:
    """Unpack a backup into a new folder, whole, or only one of its archives (``part``).

    Raises Refused if the folder holds anything, RestoreFailed.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise Refused(
            f"{folder} exists and is not empty", hint="name a folder that is not there yet"
        )
    folder = Path(os.path.abspath(folder))
    take = _without_prefix(backup.backup_id) if _is_old_archive(backup) else _as_it_is
    rules = Rules(take=take, owners=options.owners, skip_unsafe=options.skip_unsafe)
    done = Restored(backup_id=backup.backup_id, folder=folder)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
        )
        with Repository(settings.repository).reading(backup):
            for name in _parts_of(backup) if part is None else (part,):
                inside = partial / name if name == LOGS and part is None else partial
                inside.mkdir(exist_ok=True, mode=0o700)
                unpacked = _unpack(settings, backup, name, inside, rules, report)
                done.files += unpacked.files
                done.notes += unpacked.notes
        if not done.files and not any(partial.iterdir()):
            raise RestoreFailed(f"{backup.backup_id} holds nothing to restore")
        if folder.exists():
            folder.rmdir()
        os.rename(partial, folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise RestoreFailed(f"{folder} cannot be made: {error.strerror}") from error
    finally:
        if partial is not None and partial.exists():
            remove(partial)
    return done


def repair_all(settings: Settings) -> list[str]:
    """Undo restores that were killed, and start the service; what was done, where there were any.

    What such a restore had put in place is kept beside: somebody may have gone on with it. The mark of a
    restore goes only once the service runs again. Raises RestoreFailed, Locked while one still runs.
    """
    how = settings.application
    said = []
    for base in bases_of(settings):
        if not base.is_dir() or not unfinished(base):
            continue
        with holding(base):
            for work in unfinished(base):
                if not work.journalled:
                    remove(work.folder)
                    continue
                _log.warning("%s was left by a restore that was killed: it is undone", work.folder)
                flags = _flags_before(work)
                swapped = undo(work)
                start_service(how)
                if flags is not None:
                    _await_api(how)
                    restore_flags(how, flags)
                    (work.folder / _FLAGS_BEFORE).unlink()
                aside = keep_aside(work, UNDONE) if swapped else None
                if not swapped:
                    remove(work.folder)
                said.append(
                    f"{base}: the old state stands again, and the service was started"
                    + (f"; what was in place lies in {aside}" if aside else "")
                )
    return said


def _flags_before(work: Work) -> bytes | None:
    """The flags from before a restore that was killed after it had begun to post its own."""
    with contextlib.suppress(FileNotFoundError):
        return (work.folder / _FLAGS_BEFORE).read_bytes()
    return None


def bases_of(settings: Settings) -> list[Path]:
    """The folders that restores work in."""
    how = settings.application
    configs = Path(os.path.realpath(how.root / how.configs))
    root = Path(os.path.realpath(configuration_root(settings)))
    return list(dict.fromkeys([configs.parent, root]))


@dataclass(frozen=True)
class _Target:
    """Where the members of a backup go: ``take`` gives the place of each in ``base``."""

    base: Path
    take: Take
    selection: Selection


def _target(settings: Settings, backup: Backup) -> _Target:
    if backup.kind == "configuration":
        root = Path(os.path.realpath(configuration_root(settings)))
        take = _without_prefix(backup.backup_id) if _is_old_archive(backup) else _as_it_is
        return _Target(root, take, configured_selection(settings))
    if backup.kind == "application_state":
        how = settings.application
        configs = Path(os.path.realpath(how.root / how.configs))

        def take(path: str) -> str | None:
            top, slash, rest = path.partition("/")
            return configs.name + slash + rest if top == CONFIGS else None

        return _Target(configs.parent, take, EVERYTHING)
    raise InvalidRequest(f"{backup.backup_id} is a {backup.kind} backup",
                         hint="kyb-backup list shows the kinds")  # fmt: skip


def _is_old_archive(backup: Backup) -> bool:
    return backup.kind == "configuration" and backup.require_manifest().legacy


def _as_it_is(path: str) -> str | None:
    return path


def _without_prefix(backup_id: str) -> Take:
    """The old script put the folders that led to its own into the archive.

    The file may have been renamed since: its own name counts, or that of the folder inside.
    """
    own = re.compile(
        rf"(?:.*/)?(?:{re.escape(backup_id)}|config_backup_\d{{8}}_\d{{6}})/(.*)", re.DOTALL
    )

    def take(path: str) -> str | None:
        found = own.fullmatch(path)
        return found[1] if found else None

    return take


def _parts_of(backup: Backup) -> list[str]:
    manifest = backup.require_manifest()
    if manifest.legacy:
        has_logs = manifest.components.get("logs") and backup.kind == "application_state"
        return ["state", LOGS] if has_logs else ["state"]
    return [archive.path.partition(".")[0] for archive in manifest.archives]


def _unpack(
    settings: Settings, backup: Backup, part: str | None, into: Path, rules: Rules, report: Reporter
) -> Unpacked:
    take = rules.take

    def watched(path: str) -> str | None:
        report(Progress(step="unpack", done=0, detail=shown(path)))
        return take(path)

    watching = Rules(take=watched, captured=rules.captured, owners=rules.owners,
                     skip_unsafe=rules.skip_unsafe)  # fmt: skip
    with _reading(settings, backup, part) as (entries, check):
        return unpack(entries, into, watching, check)


@contextlib.contextmanager
def _reading(
    settings: Settings, backup: Backup, part: str | None
) -> Iterator[tuple[Iterator[Entry], MemberCheck]]:
    """The members of a backup (of its first archive, or the one called ``part``), to be read to the end.

    Leaving the block judges them. Raises RestoreFailed for whatever is not as it was written.
    """
    manifest = backup.require_manifest()
    check = MemberCheck()
    try:
        if manifest.legacy:
            with _legacy_entries(settings, backup, part) as entries:
                yield entries, check
            return
        archive = next(
            (a for a in manifest.archives if part in (None, a.path.partition(".")[0])), None
        )
        if archive is None:
            raise RestoreFailed(f"{backup.backup_id} has no {part}")
        path = backup.folder / archive.path
        with opening(path, settings.encryption, archive.encryption) as stream:
            yield read_tar(stream.pieces), check
        seen = Examination()
        judge_members(check, archive, seen)
        file = next(file for file in manifest.files if file.path == archive.path)
        if (stream.size, stream.sha256) != (file.size, file.sha256):
            seen.found(file.path, "is not the file that the manifest describes")
        if seen.findings:
            first = seen.findings[0]
            raise RestoreFailed(
                f"{first.object} {first.message}", hint=f"kyb-backup verify {backup.backup_id}"
            )
    except (CouldNotVerify, *DAMAGE) as error:
        raise RestoreFailed(f"{backup.backup_id}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise RestoreFailed(
            f"{error.filename or backup.folder} cannot be read: {error.strerror}"
        ) from error


@contextlib.contextmanager
def _legacy_entries(
    settings: Settings, backup: Backup, part: str | None
) -> Iterator[Iterator[Entry]]:
    if backup.kind == "configuration":
        with opening(backup.folder, settings.encryption, "gpg", "gzip") as stream:
            yield read_tar(stream.pieces)
    elif part == LOGS:
        yield read_tar(gunzipped(backup.folder / legacy.LOGS))
    else:
        yield _entries_on_disk(backup.folder)


def _entries_on_disk(folder: Path) -> Iterator[Entry]:
    """The plain files of an old application backup, as members."""
    for found in walk(folder, Selection(include=(f"/{CONFIGS}/", f"/{FLAGS_FILE}")), []):
        status = found.status
        mode = status.st_mode
        kind = "folder" if stat.S_ISDIR(mode) else "symlink" if stat.S_ISLNK(mode) else "file"
        content = Path(found.source).read_bytes() if kind == "file" else b""
        yield Entry(
            Member(
                path=found.path,
                kind=kind,  # type: ignore[arg-type]
                mode=stat.S_IMODE(mode),
                uid=status.st_uid,
                gid=status.st_gid,
                mtime_ns=status.st_mtime_ns,
                size=len(content),
                target=os.readlink(found.source) if kind == "symlink" else None,
            ),
            iter([content] if content else []),
        )


def _listed(backup: Backup, entries: Iterator[Entry], check: MemberCheck) -> Iterator[Member]:
    """What the list says of each member; of an old script's backup, which has none, the members."""
    if not backup.require_manifest().legacy:
        yield from check_members(entries, check)
        return
    for entry in entries:
        member = hashed(entry)
        yield replace(member, whole=member.kind == "folder")


def _save(settings: Settings, backup: Backup, target: _Target, now: datetime) -> str | None:
    """Back up what is there now; None where there is nothing."""
    request = Request(
        backup_id=Repository(settings.repository).free_id(SAFETY_PREFIX, now),
        label=f"before restoring {backup.backup_id}",
    )
    try:
        if backup.kind == "configuration":
            if not any(walk(target.base, target.selection, [])):
                return None
            return take_configuration_backup(settings, request, now=now).backup_id
        how = settings.application
        if not (how.root / how.configs).is_dir():
            return None
        saved = take_application_backup(settings, request, None, now=now, flags_required=False)
        return saved.backup_id
    except KybError as error:
        raise BackupFailed(
            f"what is there now could not be saved: {error.message}",
            hint="nothing was changed; --without-safety-backup restores all the same",
        ) from error


def _exchange(
    how: ApplicationSettings,
    work: Work,
    unpacked: Unpacked,
    target: _Target,
    flags: bytes | None,
    before: bytes | None,
    options: Options,
    done: Restored,
) -> None:
    """From the stop of the service to its start with what was restored; all of it, or nothing."""
    posted = stopping = False
    units = plan_units(work, unpacked.wholes, unpacked.singles)
    done.units = tuple(unit.path for unit in units)
    write_journal(work, units, done.backup_id)
    began = time.monotonic()
    try:
        if options.service:
            stopping = True
            stop_service(how)
        for whole in unpacked.wholes:  # now nobody writes there any more
            if carried := carry_over(work, whole, target.selection):
                done.notes.append(f"{carried} entries of {whole} that no backup has were kept")
        swap(work, units)
        if options.service:
            start_service(how)
        done.interruption = time.monotonic() - began
        if flags is not None and how.flags_url:
            _await_api(how)
            if before is not None:
                write_durably(work.folder / _FLAGS_BEFORE, before)
                flush_folder(work.folder)
            posted = True
            if other := restore_flags(how, flags):
                done.notes.append(f"the service now answers with other flags: {', '.join(other)}")
            done.flags = True
    except BaseException as error:
        with _undisturbed():
            _put_back(how, work, before, posted, stopping, error)
        raise
    aside = keep_aside(work, REPLACED)
    (aside / _FLAGS_BEFORE).unlink(missing_ok=True)
    if any(unit.old is not None for unit in units):
        done.kept = aside
    else:
        remove(aside)  # nothing was replaced


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not keep the old state from coming back."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _put_back(
    how: ApplicationSettings,
    work: Work,
    flags: bytes | None,
    posted: bool,
    stopped: bool,
    why: BaseException,
) -> None:
    """The old state again, and the service with it; what fails here is added to the error.

    The journal goes only once all of it is done: else ``restore repair`` goes on.
    """
    _log.warning("the restore failed and is undone: %s", why)
    troubles = []
    if stopped and posted:
        with contextlib.suppress(KybError):
            stop_service(how)
    try:
        undo(work)
        if stopped:
            start_service(how)
        if posted and flags is not None:
            _await_api(how)
            restore_flags(how, flags)
        elif posted:
            troubles.append(
                "the feature flags of the backup are in force: those of before are not known"
            )
        forget(work)
    except (KybError, OSError) as error:
        text = error.message if isinstance(error, KybError) else str(error)
        troubles.append(f"{text} (kyb-backup restore repair tries again)")
    if isinstance(why, KybError):
        why.message += (
            f"; and then: {'; '.join(troubles)}" if troubles
            else "; everything is as it was before"
        )  # fmt: skip


def _present_flags(how: ApplicationSettings) -> bytes | None:
    if not how.flags_url:
        return None
    try:
        return fetch_flags(how)
    except BackupFailed as error:
        _log.warning("the flags in force now are not known: %s", error.message)
        return None


def _await_api(how: ApplicationSettings) -> None:
    """Wait until the service answers. Raises RestoreFailed."""
    give_up = time.monotonic() + how.service_timeout
    patient = how.model_copy(update={"retries": 0})
    while True:
        try:
            fetch_flags(patient)
            return
        except BackupFailed as error:
            if time.monotonic() > give_up:
                raise RestoreFailed(
                    f"the service does not answer after its start: {error.message}",
                    hint="application.service_timeout sets how long to wait",
                ) from error
            time.sleep(_POLL)


def _compare(target: _Target, path: str, member: Member, listed: dict[str, Member]) -> str | None:
    """None where the file on the disk is what the backup has."""
    place = target.base / path
    try:
        status = place.lstat()
        if member.kind == "symlink":
            return (
                None
                if stat.S_ISLNK(status.st_mode) and os.readlink(place) == member.target
                else "changed"
            )
        wanted = member
        if member.kind == "hardlink":
            wanted = listed.get(target.take(member.target or "") or "", member)
        if (
            not stat.S_ISREG(status.st_mode)
            or stat.S_IMODE(status.st_mode) != wanted.mode & ~_SET_ID
        ):
            return "changed"
        with open(place, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256
        return None if same else "changed"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "changed"


def _extra(target: _Target, wholes: list[str], listed: set[str]) -> list[str]:
    """What lies in whole folders and the backup does not have: a restore takes it away."""
    extra = []
    for whole in wholes:
        top = target.base / whole
        if not top.is_dir() or any(o != whole and whole.startswith(f"{o}/") for o in wholes):
            continue
        exclude = target.selection.exclude
        for found in walk(top, Selection(exclude=exclude), [], prefix=f"{whole}/", moving=True):
            if found.path not in listed:
                extra.append(found.path)
    return sorted(set(extra))


def describe(manifest: Manifest) -> str:
    """A backup in a few words: when, of which deployment and version."""
    parts = [f"{manifest.completed_at:%Y-%m-%d %H:%M:%S} UTC"]
    if manifest.deployment:
        parts.append(f"before deployment {manifest.deployment}")
    if manifest.version:
        parts.append(f"version {manifest.version}")
    return ", ".join(parts)
