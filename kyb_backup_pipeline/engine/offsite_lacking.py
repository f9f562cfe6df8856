"""What a place lacks of the backups at home. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.offsite_copy import Listed


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """``there`` are sound copies of ours. ``wanted`` is to be pushed: what has no copy, and, so that the push says
    why it cannot be, what has one that is of another backup or cannot be read (``problems``, by its id).
    ``passed_over``: what retention would not keep there, and why.
    """

    there: Sequence[Backup]
    wanted: Sequence[Backup]
    problems: Mapping[str, str]
    passed_over: Mapping[str, str]

    @property
    def said(self) -> str | None:
        """How many are passed over, and why; None where none is."""
        if not self.passed_over:
            return None
        (first, why), *more = self.passed_over.items()
        others = f", and {len(more)} more" if more else ""
        return f"not copied, since offsite.retention would not keep it: {first} ({why}){others}"


def lacking(
    backups: Sequence[Backup], copies: Iterable[Listed], doomed: Mapping[str, str] | None = None
) -> Lacking:
    """Hold the backups at home against the copies of a place, told apart from those of others.

    ``doomed`` is not to be brought (``not_retained``).
    """
    listing = list(copies)
    sound = {listed.backup_id for listed in listing if listed.copy_ is not None}
    problems = {one.backup_id: one.problem or "" for one in listing if one.copy_ is None}
    lost = [backup for backup in backups if backup.backup_id not in sound]
    passed_over = {b.backup_id: doomed[b.backup_id] for b in lost
                   if doomed and b.backup_id in doomed and b.backup_id not in problems}  # fmt: skip
    return Lacking(
        there=[backup for backup in backups if backup.backup_id in sound],
        wanted=[backup for backup in lost if backup.backup_id not in passed_over],
        problems=problems,
        passed_over=passed_over,
    )
