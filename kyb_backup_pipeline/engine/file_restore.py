"""Bringing back configuration and application state.

In place: unpack beside and compare every member → save what runs now → stop the service → swap by renames
→ start the service → post the flags back. On any failure what was swapped is swapped back, the service is
started again and the error says so; after a kill the next restore (or ``restore repair``) does that. Into a
new folder: unpack, compare, rename; nothing else is touched.

Where to look next: ``extraction`` for what is refused, ``swap`` for the renames.
"""

import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.config import ApplicationSettings, Settings
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    KybError,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.extraction import Rules, Unpacked
from kyb_backup_pipeline.engine.file_backup import (
    FLAGS_FILE,
    LOGS,
    configuration_root,
    take_application_backup,
    take_configuration_backup,
)
from kyb_backup_pipeline.engine.file_source import (
    Destination,
    as_it_is,
    destination_of,
    is_old_archive,
    parts_of,
    unpack_backup,
    without_prefix,
)
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.platform_api import check_json, fetch_flags, restore_flags
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX, Request
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
from kyb_backup_pipeline.engine.tree import walk

_log = logging.getLogger(__name__)

_POLL = 0.2
_FLAGS_BEFORE = "flags.json"


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
    target = destination_of(settings, backup)
    how = settings.application
    captured = (FLAGS_FILE,) if options.flags and backup.kind == "application_state" else ()
    done = Restored(backup_id=backup.backup_id, folder=target.base)
    repair_all(settings, service=options.service)
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
        unpacked = unpack_backup(settings, backup, None, work.new, rules, report)
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
        if is_old_archive(backup):
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
    take = without_prefix(backup.backup_id) if is_old_archive(backup) else as_it_is
    rules = Rules(take=take, owners=options.owners, skip_unsafe=options.skip_unsafe)
    done = Restored(backup_id=backup.backup_id, folder=folder)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
        )
        with Repository(settings.repository).reading(backup):
            for name in parts_of(backup) if part is None else (part,):
                inside = partial / name if name == LOGS and part is None else partial
                inside.mkdir(exist_ok=True, mode=0o700)
                unpacked = unpack_backup(settings, backup, name, inside, rules, report)
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


def repair_all(settings: Settings, *, service: bool = True) -> list[str]:
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
                if service:  # it may have been started already, and go on with the new state
                    with contextlib.suppress(KybError):
                        stop_service(how)
                swapped = undo(work)
                if service:
                    start_service(how)
                if flags is not None:
                    _await_api(how)
                    restore_flags(how, flags)
                    (work.folder / _FLAGS_BEFORE).unlink()
                aside = keep_aside(work, UNDONE) if swapped else None
                if not swapped:
                    remove(work.folder)
                said.append(
                    f"{base}: the old state stands again"
                    + (", and the service was started" if service else "")
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


def _save(settings: Settings, backup: Backup, target: Destination, now: datetime) -> str | None:
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
    target: Destination,
    flags: bytes | None,
    before: bytes | None,
    options: Options,
    done: Restored,
) -> None:
    """From the stop of the service to its start with what was restored; all of it, or nothing."""
    posted = stopping = started = False
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
            started = True
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
            _put_back(how, work, before, posted, stopping, started, error)
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
    started: bool,
    why: BaseException,
) -> None:
    """The old state again, and the service with it; what fails here is added to the error.

    The journal goes only once all of it is done: else ``restore repair`` goes on.
    """
    _log.warning("the restore failed and is undone: %s", why)
    troubles = []
    if started:  # with the new state, which it would go on with
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
