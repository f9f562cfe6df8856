"""Deleting a backup for ever: out of the list at once, and never while somebody reads it."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kyb_backup_pipeline.engine.backup import PARTIAL, Backup
from kyb_backup_pipeline.engine.errors import Locked
from kyb_backup_pipeline.engine.files import flush_folder
from kyb_backup_pipeline.engine.manifest import MANIFEST
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_DELETED = f"~deleted{PARTIAL}"
"""No id has a ``~``: this is never where somebody writes."""


def remove(backup: Backup, last_look: Callable[[], None] = lambda: None) -> None:
    """Delete a backup for ever; the records of its proofs stay.

    It leaves the list at once, by a rename; what a kill leaves of it, ``sweep_deleted`` takes away.
    ``last_look`` is called under its lock: what that raises stops it. Raises Locked while somebody
    reads it.
    """
    descriptor = os.open(backup.folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last_look()
        if backup.folder.is_dir():
            gone = backup.folder.with_name(f".{backup.folder.name}{_DELETED}")
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(backup.folder, gone)
            flush_folder(gone.parent)
            _discard(gone)
        else:
            backup.folder.unlink()
        flush_folder(backup.folder.parent)
    except BlockingIOError:
        raise Locked(f"backup {backup.backup_id!r} is being read",
                     hint="a verification, a restore test or a restore runs: try again later") from None  # fmt: skip
    finally:
        os.close(descriptor)


def sweep_deleted(repository: Repository) -> None:
    """Take away what killed deletions left; for the one who holds the lock of deletions."""
    for leftover in repository.leftovers():
        if leftover.folder.name.endswith(_DELETED):
            _log.warning("removing %s, left by a killed deletion", leftover.folder)
            try:
                _discard(leftover.folder)
            except OSError as error:
                _log.warning("%s stays: %s", leftover.folder, error.strerror)


def _discard(folder: Path) -> None:
    """Delete a folder, its manifest first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
