"""What a place lacks of the backups at home. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.offsite_copy import Listed


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """``there`` are sound copies of ours. ``wanted`` is to be pushed: what has no copy, and, so that the push says
    why it cannot be, what has one that is of another backup or cannot be read (``problems``, by its id).
    """

    there: Sequence[Backup]
    wanted: Sequence[Backup]
    problems: Mapping[str, str]


def lacking(backups: Sequence[Backup], copies: Iterable[Listed]) -> Lacking:
    """Hold the backups at home against the copies of a place, told apart from those of others."""
    listing = list(copies)
    sound = {listed.backup_id for listed in listing if listed.copy_ is not None}
    return Lacking(
        there=[backup for backup in backups if backup.backup_id in sound],
        wanted=[backup for backup in backups if backup.backup_id not in sound],
        problems={one.backup_id: one.problem or "" for one in listing if one.copy_ is None},
    )
