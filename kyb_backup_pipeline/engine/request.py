"""What a caller asks of a backup, whatever its kind."""

import logging
from dataclasses import dataclass

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import NotFound
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

SAFETY_PREFIX = "pre_restore"
"""Of the ids of backups that are taken before a restore."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the caller asks for. ``run_id`` lets a retried run adopt what it completed before."""

    backup_id: str | None = None
    label: str | None = None
    run_id: str | None = None


def already_complete(repository: Repository, backup_id: str, request: Request) -> Backup | None:
    """The backup that an earlier try of the same run completed."""
    if request.run_id is None:
        return None
    try:
        backup = repository.find(backup_id)
    except NotFound:
        return None
    if backup.manifest is None or backup.manifest.run_id != request.run_id:
        return None
    _log.info("%s was completed by an earlier try of this run", backup_id)
    return backup
