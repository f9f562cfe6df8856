"""The backup of what is there now, taken and verified before a restore replaces it."""

from datetime import datetime

from kyb_backup_pipeline.engine.errors import BackupFailed, KybError
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.progress import Reporter
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX, Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup


def take_safety_backup(
    settings: Settings, before: str, *, began_at: datetime, run_id: str | None, report: Reporter
) -> str:
    """Take and verify it; return its id. ``before``: the backup that is to be restored. Raises BackupFailed."""
    repository = Repository(settings.repository)
    request = Request(
        backup_id=repository.free_id(SAFETY_PREFIX, began_at),
        label=f"before restoring {before}",
        run_id=run_id,
    )
    try:
        saved = take_full_backup(settings, request, now=utc_now(), report=report)
        proof = verify_backup(repository, saved, settings=settings, now=utc_now(), report=report)
    except KybError as error:
        raise BackupFailed(
            f"what is there now could not be saved: {error.message}",
            hint="nothing was changed; --without-safety-backup restores all the same",
        ) from error
    if proof.verdict != "passed":
        raise BackupFailed(f"the safety backup {saved.backup_id} is bad: {proof.summary}",
                           hint="nothing was changed")  # fmt: skip
    return saved.backup_id
