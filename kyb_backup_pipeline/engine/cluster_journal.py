"""The journal of a recovery to a moment.

It names data folders by inode too: names change in a switch, inodes do not.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from datetime import datetime

from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.errors import Locked, NotFound
from kyb_backup_pipeline.engine.journal import JournalFolder, StepJournal, journal_folder

_NAME = re.compile(r"recovery_\d{8}_\d{6}_\d{6}\.json")


class ClusterJournal(StepJournal):
    """One recovery. ``live`` is the data folder whose place it takes, None where it takes none.

    ``old_inode`` and ``new_inode`` are (device, inode) of the live folder and of the recovered one, which
    is made at ``into``; the old one stays at ``replaced``.
    """

    at: str
    timeline: int | None = None
    into: str
    live: str | None = None
    replaced: str | None = None
    last_wal_wanted: bool = True
    old_inode: tuple[int, int] | None = None
    new_inode: tuple[int, int] | None = None


class ClusterJournals(JournalFolder):
    """The journals of recoveries to a moment."""

    @classmethod
    def of(cls, settings: Settings) -> "ClusterJournals":
        return cls(journal_folder(settings))

    def all(self) -> list[ClusterJournal]:
        """The newest first."""
        try:
            names = sorted((n for n in os.listdir(self.folder) if _NAME.fullmatch(n)), reverse=True)
        except OSError:
            return []
        return [
            ClusterJournal.model_validate_json((self.folder / name).read_bytes()) for name in names
        ]

    def find(self, restore_id: str) -> ClusterJournal:
        """The journal of one recovery. Raises NotFound."""
        path = self.folder / f"{restore_id}.json"
        if not _NAME.fullmatch(path.name) or not path.exists():
            raise NotFound(f"there is no recovery {restore_id!r} in {self.folder}")
        return ClusterJournal.model_validate_json(path.read_bytes())

    @contextlib.contextmanager
    def holding(self, place: str) -> Iterator[None]:
        """Hold the lock of a data folder on this host. Raises Locked."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f".{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise Locked(
                f"another recovery of {place} is at work",
                hint="wait for it; its journal stands in the repository's database/recovery",
            ) from None
        finally:
            os.close(descriptor)


def new_recovery_id(now: datetime) -> str:
    return f"recovery_{now:%Y%m%d_%H%M%S_%f}"
