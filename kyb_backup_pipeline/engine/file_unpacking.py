"""Unpacking a backup of files into a new folder: nothing that runs is touched."""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import Refused, RestoreFailed
from kyb_backup_pipeline.engine.extraction import Rules
from kyb_backup_pipeline.engine.file_backup import LOGS
from kyb_backup_pipeline.engine.file_source import (
    as_it_is,
    is_old_archive,
    parts_of,
    unpack_backup,
    without_prefix,
)
from kyb_backup_pipeline.engine.files import flush_folder
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.swap import remove


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
