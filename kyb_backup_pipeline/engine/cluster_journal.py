"""The journal of a recovery to a moment.

It names data folders by inode too: names change in a switch, inodes do not.
"""

import re
from contextlib import AbstractContextManager
from datetime import datetime

from pydantic import AwareDatetime

from kyb_backup_pipeline.engine.journal import JournalFolder, StepJournal, journal_folder
from kyb_backup_pipeline.engine.settings import Settings

_NAME = re.compile(r"recovery_\d{8}_\d{6}_\d{6}\.json")


class ClusterJournal(StepJournal):
    """One recovery. ``live`` is the data folder whose place it takes, None where it takes none.

    ``old_inode`` and ``new_inode`` are (device, inode) of the live folder and of the recovered one, which
    is made at ``into``; the old one stays at ``replaced``. ``down_since`` is when service or server were
    told to stop first.
    """

    at: str
    timeline: int | None = None
    into: str
    live: str | None = None
    replaced: str | None = None
    tablespaces: str | None = None
    last_wal_wanted: bool = True
    server_stopped: bool = False
    down_since: AwareDatetime | None = None
    old_inode: tuple[int, int] | None = None
    new_inode: tuple[int, int] | None = None


class ClusterJournals(JournalFolder):
    """The journals of recoveries to a moment."""

    @classmethod
    def of(cls, settings: Settings) -> "ClusterJournals":
        return cls(journal_folder(settings))

    def all(self) -> list[ClusterJournal]:
        """The newest first."""
        return self.read(ClusterJournal, _NAME)

    def holding(self, place: str) -> AbstractContextManager[None]:
        """Hold the lock of a data folder on this host. Raises Locked."""
        return self.locked(place, f"another recovery of {place} is at work")


def new_recovery_id(now: datetime) -> str:
    return f"recovery_{now:%Y%m%d_%H%M%S_%f}"
