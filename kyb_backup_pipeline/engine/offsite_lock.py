"""Can a copy be deleted today? Read from the objects themselves, never concluded from a setting.

A copy is as safe as its weakest object: the commit object and the first part of each file are asked, since all
were written within one push. On a bucket with Object Lock a delete without a version hides an object behind a
marker, and what is locked stays below it for whoever may read versions.
"""

from dataclasses import dataclass
from datetime import datetime

from kyb_backup_pipeline.engine.offsite_copy import OffsiteCopy, commit_key
from kyb_backup_pipeline.engine.offsite_target import Gone, Lock, Target

_ASKED = 8
"""So many objects of a copy are asked at most."""


@dataclass(frozen=True, kw_only=True)
class Safety:
    """Until when a copy is locked. ``known`` is False where the service cannot be asked."""

    known: bool
    mode: str | None = None
    until: datetime | None = None

    def deletable(self, now: datetime) -> bool | None:
        """Whether it can be deleted now; None where that cannot be known."""
        if not self.known:
            return None
        return self.until is None or self.until <= now


def safety_of(target: Target, copy: OffsiteCopy) -> Safety:
    """How a copy is locked. Raises what the target raises."""
    keys = [commit_key(copy.kind, copy.backup_id)]
    keys += [file.parts[0].key for file in copy.all_files if file.parts]
    locks = []
    for key in keys[:_ASKED]:
        try:
            locks.append(target.lock_of(key))
        except Gone:
            continue  # verification says so
    if not locks or None in locks:
        return Safety(known=False)
    weakest = min((lock for lock in locks if lock is not None), key=_end)
    return Safety(known=True, mode=weakest.mode, until=weakest.until)


def _end(lock: Lock) -> float:
    return lock.until.timestamp() if lock.until and lock.until.year < 9999 else (
        0.0 if lock.until is None else float("inf")
    )  # fmt: skip
