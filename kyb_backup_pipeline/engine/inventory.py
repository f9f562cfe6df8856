"""What there is to decide about: backups, how far each is proved, holds, timelines and WAL, as data.

Read before anything is deleted, and whole or not at all: a folder that is missing or closed is an error, since
to a pruning that sees half of a repository the newest of the other half is no guard. Nothing that was read
before counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import CouldNotVerify
from kyb_backup_pipeline.engine.holds import Hold, Holds
from kyb_backup_pipeline.engine.recovery_plan import read_history
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.engine.wal import History

_UNPROVED = Standing()


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a repository holds, as data. ``backups`` have the newest first, those that cannot be read last.

    ``histories`` has each timeline that a backup names; None where its history file is lost. ``listed`` has
    the names of the segments that each increment lists, with spaces between: a string is what 200,000 of them
    cost least in. ``wal`` are the names of the files in the store.
    """

    backups: Sequence[Backup]
    standings: Mapping[str, Standing]
    holds: Mapping[str, Hold]
    histories: Mapping[int, History | None]
    listed: Mapping[str, str]
    wal: Sequence[str]

    def standing(self, backup: Backup) -> Standing:
        return self.standings.get(backup.backup_id, _UNPROVED)

    def sound(self, backup: Backup) -> bool:
        """Whether a backup can stand for others: it can be read, and no proof of it failed."""
        return backup.manifest is not None and self.standing(backup).trouble is None

    def pinned(self, backup: Backup, now: datetime) -> str | None:
        """Why a backup stays whatever its age and its place; None if these decide."""
        hold = self.holds.get(backup.backup_id)
        if hold is not None and hold.in_force(now):
            return str(hold)
        if backup.manifest is None:
            return "cannot be read: look at it"
        trouble = self.standing(backup).trouble
        return f"{trouble}: look at it" if trouble else None


def segments_of(backups: Iterable[Backup]) -> dict[str, str]:
    """``listed`` of backups whose manifests have all of their segments."""
    logs = {b.backup_id: b.manifest.wal.segments for b in backups if b.manifest and b.manifest.wal}
    return {name: " ".join(s.name for s in segments) for name, segments in logs.items() if segments}


def read_inventory(repository: Repository) -> Inventory:
    """Look at the whole repository, each file of it now. Raises NotFound without it, CouldNotVerify for what
    is closed.
    """
    repository.require_whole()
    try:
        survey = Survey(repository, once=True)
        survey.refresh()
        return replace(surveyed(survey), wal=repository.wal.everything())
    except OSError as error:
        raise CouldNotVerify(
            f"{error.filename} cannot be read: {error.strerror}", hint="nothing was deleted"
        ) from error


def surveyed(survey: Survey) -> Inventory:
    """What a survey saw at its last look, and the holds and timelines now; without the WAL.

    Good enough to tell of, not to delete by.
    """
    repository = survey.repository
    backups = survey.backups()
    timelines = {b.manifest.wal.timeline for b in backups if b.manifest and b.manifest.wal}
    histories = {t: read_history(repository.wal, t) for t in timelines}
    return Inventory(
        backups=backups,
        standings=survey.standings(),
        holds={hold.backup_id: hold for hold in Holds(repository.root).all()},
        histories={t: None if lost else history for t, (history, lost) in histories.items()},
        listed=survey.segments(),
        wal=(),
    )
