"""Backups of files: the configuration archive, and the application's state before a deployment.

Both are encrypted archives (``archive``, ``sealed``): nothing of what they hold touches the disk in plain
text. A file that changes while it is read makes the archive begin again; one that cannot be read is an
error that names it. What is in the manifest is no secret: the list of members is inside the archive.

    configuration       configuration.tar.zst.age: what the patterns take of one folder
    application state   state.tar.zst.age: configs/, VERSION, feature_flags.json, sessions
                        logs.tar.zst.age: the application's logs

Where to look next: ``tree`` for what is taken, ``platform_api`` and ``sessions`` for what is not a file.
"""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline import __version__
from kyb_backup_pipeline.engine.archive import ArchiveWriter
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import SUFFIX, check_keys
from kyb_backup_pipeline.engine.errors import BackupFailed, InvalidRequest, NotEnoughSpace
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.manifest import (
    FORMAT_VERSION,
    Archive,
    BackupFile,
    Kind,
    Manifest,
    utc_now,
)
from kyb_backup_pipeline.engine.platform_api import fetch_flags
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.request import Request, already_complete
from kyb_backup_pipeline.engine.sealed import sealing
from kyb_backup_pipeline.engine.sessions import read_sessions
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.staging import Staging
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.tree import EVERYTHING, Changed, Found, Selection, walk

_log = logging.getLogger(__name__)

CONFIGURATION = "configuration"
STATE = "state"
LOGS = "logs"
FLAGS_FILE = "feature_flags.json"
VERSION_FILE = "VERSION"
CONFIGS = "configs"

_OUR_OWN = (".kyb-restore-*/", ".kyb-replaced-*/", ".kyb-undone-*/")
"""What restores leave beside what they restore: never configuration, whatever the patterns say."""
_ATTEMPTS = 5
_PAUSE = 0.3
_VERSION_LENGTH = 100
_VERSION_FILE_LENGTH = 10_000

Fill = Callable[[ArchiveWriter, list[str]], None]


def take_configuration_backup(
    settings: Settings,
    request: Request,
    *,
    now: datetime,
    report: Reporter = silent,
    root: Path | None = None,
) -> Backup:
    """Archive the configuration under ``root`` (by default the one that is set).

    Raises BackupFailed, SettingsInvalid without keys, NotEnoughSpace, Locked, InvalidRequest.
    """
    top = root or configuration_root(settings)
    selection = configured_selection(settings)

    def fill(writer: ArchiveWriter, notes: list[str]) -> None:
        if not os.path.isdir(top):
            raise BackupFailed(f"there is no folder {top}", hint="configuration.root")
        _add_tree(writer, top, selection, notes, report)
        if not writer.files:
            raise BackupFailed(
                f"nothing in {top} is taken by configuration.include",
                hint="a backup of nothing is none: look at the patterns",
            )

    parts = [
        _Part(CONFIGURATION, fill, settings.configuration.size_limit, "configuration.size_limit")
    ]
    return _take(settings, "configuration", "config_backup", request, parts, now, {})


def take_application_backup(
    settings: Settings,
    request: Request,
    deployment: str | None,
    *,
    now: datetime,
    report: Reporter = silent,
    flags_required: bool = True,
) -> Backup:
    """Archive the application's state; ``deployment`` says before which deployment it was.

    Without ``flags_required`` a service that does not answer is a note, not an error: before a
    restore, that may be what the restore is for. Raises as ``take_configuration_backup``.
    """
    how = settings.application
    components: dict[str, bool] = {}

    def state(writer: ArchiveWriter, notes: list[str]) -> None:
        stamp = int(now.timestamp()) * 10**9
        configs = how.root / how.configs
        if not os.path.isdir(configs):
            raise BackupFailed(f"there is no folder {configs}",
                               hint="application.root, application.configs")  # fmt: skip
        if how.flags_url:
            try:
                writer.add_content(FLAGS_FILE, fetch_flags(how), mtime_ns=stamp)
                components["feature_flags"] = True
            except BackupFailed as error:
                if flags_required:
                    raise
                notes.append(f"left out: {error.message}")
                components["feature_flags"] = False
        if (sessions := read_sessions(settings)) is not None:
            writer.add_content(*sessions, mtime_ns=stamp)
            components["sessions"] = True
        if (version := _version_file(how.root)) is not None:
            writer.add_content(VERSION_FILE, version, mtime_ns=stamp, mode=0o644)
        writer.add(Found(CONFIGS, str(configs), configs.stat(), True))
        _add_tree(writer, configs, EVERYTHING, notes, report, prefix=f"{CONFIGS}/")
        components["configs"] = True

    def logs(writer: ArchiveWriter, notes: list[str]) -> None:
        for found in walk(how.logs, EVERYTHING, notes, moving=True):
            _add(writer, found, report, growing=True)
        components["logs"] = True

    parts = [_Part(STATE, state, how.size_limit, "application.size_limit")]
    missing = []
    if how.backup_logs and os.path.isdir(how.logs):
        parts.append(_Part(LOGS, logs, how.size_limit, "application.size_limit"))
    elif how.backup_logs:
        components["logs"] = False
        missing.append(f"there is no folder {how.logs}: no logs in this backup")
    return _take(settings, "application_state", "app_backup", request, parts, now, components,
                 deployment=_valid_deployment(deployment), notes=missing,
                 version=_version(how.root))  # fmt: skip


def configuration_root(settings: Settings) -> Path:
    """The folder that configuration archives are made of."""
    return settings.configuration.root or settings.application.root


def configured_selection(settings: Settings) -> Selection:
    """The patterns of the settings. Raises BackupFailed for one that is none."""
    patterns = settings.configuration
    try:
        return Selection(patterns.include, (*patterns.exclude, *_OUR_OWN))
    except ValueError as error:
        raise BackupFailed(f"configuration.include or exclude: {error}") from error


@dataclass(frozen=True)
class _Part:
    """One archive of a backup."""

    name: str
    fill: Fill
    size_limit: int
    setting: str


def _take(
    settings: Settings,
    kind: Kind,
    prefix: str,
    request: Request,
    parts: list[_Part],
    now: datetime,
    components: dict[str, bool],
    *,
    deployment: str | None = None,
    version: str | None = None,
    notes: list[str] | None = None,
) -> Backup:
    recipients = check_keys(settings.encryption)
    repository = Repository(settings.repository)
    backup_id = request.backup_id or repository.free_id(prefix, now)
    adopted = already_complete(repository, backup_id, request)
    if adopted is not None:
        return adopted
    said = list(notes or [])
    purpose = f"deployment {deployment}" if deployment else None
    with repository.writing(kind, backup_id, now=now, purpose=purpose) as staging:
        _check_room(settings, repository)
        _log.info("%s backup %s begins", kind, backup_id)
        files: list[BackupFile] = []
        archives: list[Archive] = []
        for part in parts:
            file, archive = _write(settings, staging, part, recipients, said)
            files.append(file)
            archives.append(archive)
        for note in said:
            _log.warning("%s: %s", backup_id, note)
        manifest = Manifest(
            backup_id=backup_id,
            timestamp=now.replace(microsecond=0),
            type=kind,
            backup_file=str(staging.final.absolute() / files[0].path),
            file_size=files[0].size,
            checksum=files[0].sha256,
            format_version=FORMAT_VERSION,
            started_at=now,
            finished_at=utc_now(),
            tool_versions={"kyb_backup_pipeline": __version__},
            compression="zstd",
            uncompressed_size=sum(archive.content_bytes for archive in archives),
            files=tuple(files),
            archives=tuple(archives),
            components=components,
            version=version,
            notes=tuple(said),
            label=request.label,
            deployment=deployment,
            run_id=request.run_id,
        )
        staging.publish(manifest)
    _log.info("%s backup %s is complete: %d bytes", kind, backup_id, manifest.total_size)
    return repository.find(backup_id)


def _write(
    settings: Settings, staging: Staging, part: _Part, recipients: tuple[str, ...], said: list[str]
) -> tuple[BackupFile, Archive]:
    """Write one archive; begin again where a file changed while it was read."""
    method = settings.encryption.method
    path = staging.folder / f"{part.name}.tar.zst.{SUFFIX[method]}"
    for attempt in range(1, _ATTEMPTS + 1):
        notes: list[str] = []
        try:
            with sealing(path, settings.encryption) as sealed:
                writer = ArchiveWriter(
                    sealed.sealer.write, size_limit=part.size_limit, setting=part.setting
                )
                part.fill(writer, notes)
                written = writer.close()
                notes += writer.notes
        except Changed as error:
            path.unlink()
            _log.info("attempt %d of %d: %s", attempt, _ATTEMPTS, error.message)
            if attempt == _ATTEMPTS:
                raise BackupFailed(
                    f"{error.message}, {_ATTEMPTS} times in a row",
                    hint="is it configuration? if not, leave it out: configuration.exclude",
                ) from error
            time.sleep(_PAUSE * attempt)
            continue
        said.extend(notes)
        return sealed.require_file(), Archive(
            path=path.name,
            encryption=method,
            recipients=recipients,
            members=written.members,
            content_bytes=written.content_bytes,
            members_sha256=written.members_sha256,
        )
    raise AssertionError("unreachable")


def _add(writer: ArchiveWriter, found: Found, report: Reporter, *, growing: bool = False) -> None:
    writer.add(found, growing=growing)
    report(Progress(step="archive", done=writer.bytes, detail=found.path))


def _check_room(settings: Settings, repository: Repository) -> None:
    free, wanted = free_bytes(repository.root), settings.backup.minimum_free
    if free < wanted:
        raise NotEnoughSpace(
            f"{free / 2**30:.2f} GiB free in {repository.root}, {wanted / 2**30:.2f} GiB wanted",
            hint="free space there, set BACKUP_DIR elsewhere, or lower backup.minimum_free",
        )


def _add_tree(
    writer: ArchiveWriter,
    top: Path,
    selection: Selection,
    notes: list[str],
    report: Reporter,
    *,
    prefix: str = "",
) -> None:
    """Add a tree as it was at one moment: if it is another at the end, begin again. Raises Changed."""
    before, after = hashlib.sha256(), hashlib.sha256()
    for found in walk(top, selection, notes, prefix=prefix):
        before.update(_as_seen(found))
        _add(writer, found, report)
    for found in walk(top, selection, [], prefix=prefix):
        after.update(_as_seen(found))
    if before.digest() != after.digest():
        raise Changed(str(top))


def _as_seen(found: Found) -> bytes:
    status = found.status
    seen = (found.path, status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns,
            status.st_ctime_ns) if not stat.S_ISDIR(status.st_mode) else (found.path, status.st_mode)  # fmt: skip
    return repr(seen).encode(errors="surrogateescape")


def _version_file(root: Path) -> bytes | None:
    """The content of VERSION, if it is a file and a short one."""
    try:
        descriptor = os.open(root / VERSION_FILE, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = file.read(_VERSION_FILE_LENGTH + 1)
    return content if len(content) <= _VERSION_FILE_LENGTH else None


def _version(root: Path) -> str | None:
    text = (_version_file(root) or b"").decode(errors="replace").strip()
    return "".join(c for c in text if c.isprintable())[:_VERSION_LENGTH] or None


def _valid_deployment(deployment: str | None) -> str | None:
    if deployment is None:
        return None
    name = deployment.strip()
    if not name or len(name) > _VERSION_LENGTH or not name.isprintable():
        raise InvalidRequest(f"{deployment!r} is no name of a deployment",
                             hint=f"a version or tag of up to {_VERSION_LENGTH} characters")  # fmt: skip
    return name
