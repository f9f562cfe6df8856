"""A backup of files as a restore sees it: where its members go, and how they are read.

Ours are encrypted archives with a list of their members; those of the old scripts a gpg file, or plain files
in a folder. Reading one to its end judges it: what is not as it was written is an error.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine import legacy
from kyb_backup_pipeline.engine.archive_reader import Entry, MemberCheck, read_tar
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.contents import opening
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    InvalidRequest,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.extraction import Rules, Take, Unpacked, unpack
from kyb_backup_pipeline.engine.file_backup import (
    CONFIGS,
    FLAGS_FILE,
    LOGS,
    configuration_root,
    configured_selection,
)
from kyb_backup_pipeline.engine.manifest import Manifest
from kyb_backup_pipeline.engine.member import Kind, Member
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.tree import EVERYTHING, Selection, shown, walk
from kyb_backup_pipeline.engine.verify_archive import (
    DAMAGE,
    gunzipped,
    judge_members,
)


@dataclass(frozen=True)
class Destination:
    """Where the members of a backup go: ``take`` gives the place of each in ``base``."""

    base: Path
    take: Take
    selection: Selection


def destination_of(settings: Settings, backup: Backup) -> Destination:
    """Where a backup of files goes. Raises InvalidRequest for other kinds."""
    if backup.kind == "configuration":
        root = Path(os.path.realpath(configuration_root(settings)))
        take = without_prefix(backup.backup_id) if is_old_archive(backup) else as_it_is
        return Destination(root, take, configured_selection(settings))
    if backup.kind == "application_state":
        how = settings.application
        configs = Path(os.path.realpath(how.root / how.configs))

        def take(path: str) -> str | None:
            top, slash, rest = path.partition("/")
            return configs.name + slash + rest if top == CONFIGS else None

        return Destination(configs.parent, take, EVERYTHING)
    raise InvalidRequest(f"{backup.backup_id} is a {backup.kind} backup",
                         hint="kyb-backup list shows the kinds")  # fmt: skip


def is_old_archive(backup: Backup) -> bool:
    """Whether the old script made this configuration archive."""
    return backup.kind == "configuration" and backup.require_manifest().legacy


def as_it_is(path: str) -> str | None:
    """A member's place is its path."""
    return path


def without_prefix(backup_id: str) -> Take:
    """The old script put the folders that led to its own into the archive.

    The file may have been renamed since: its own name counts, or that of the folder inside.
    """
    own = re.compile(
        rf"(?:.*?/)?(?:{re.escape(backup_id)}|config_backup_\d{{8}}_\d{{6}})/(.*)", re.DOTALL
    )

    def take(path: str) -> str | None:
        found = own.fullmatch(path)
        return found[1] if found else None

    return take


def parts_of(backup: Backup) -> list[str]:
    """The names of a backup's archives."""
    manifest = backup.require_manifest()
    if manifest.legacy:
        has_logs = manifest.components.get("logs") and backup.kind == "application_state"
        return ["state", LOGS] if has_logs else ["state"]
    return [archive.path.partition(".")[0] for archive in manifest.archives]


def unpack_backup(
    settings: Settings, backup: Backup, part: str | None, into: Path, rules: Rules, report: Reporter
) -> Unpacked:
    """Unpack one archive of a backup (the first, or ``part``), judged. Raises RestoreFailed, Refused."""
    take = rules.take

    def watched(path: str) -> str | None:
        report(Progress(step="unpack", done=0, detail=shown(path)))
        return take(path)

    watching = Rules(take=watched, captured=rules.captured, owners=rules.owners,
                     skip_unsafe=rules.skip_unsafe)  # fmt: skip
    with reading_backup(settings, backup, part) as (entries, check):
        return unpack(entries, into, watching, check)


@contextlib.contextmanager
def reading_backup(
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
        kind: Kind = "folder" if stat.S_ISDIR(mode) else "symlink" if stat.S_ISLNK(mode) else "file"
        content = Path(found.source).read_bytes() if kind == "file" else b""
        yield Entry(
            Member(
                path=found.path,
                kind=kind,
                mode=stat.S_IMODE(mode),
                uid=status.st_uid,
                gid=status.st_gid,
                mtime_ns=status.st_mtime_ns,
                size=len(content),
                target=os.readlink(found.source) if kind == "symlink" else None,
            ),
            iter([content] if content else []),
        )


def describe(manifest: Manifest) -> str:
    """A backup in a few words: when, of which deployment and version."""
    parts = [f"{manifest.completed_at:%Y-%m-%d %H:%M:%S} UTC"]
    if manifest.deployment:
        parts.append(f"before deployment {manifest.deployment}")
    if manifest.version:
        parts.append(f"version {manifest.version}")
    return ", ".join(parts)
