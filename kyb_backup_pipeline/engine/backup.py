"""What a backup is to whoever reads one: an id, a kind, a manifest, and where its files lie."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from kyb_backup_pipeline.engine.backup_files import Files, FolderFiles
from kyb_backup_pipeline.engine.errors import InvalidRequest
from kyb_backup_pipeline.engine.manifest import MANIFEST, Kind, Manifest, UnreadableManifest

FOLDERS: Mapping[Kind, str] = {
    "full": "database/full",
    "base": "database/incremental",
    "incremental": "database/incremental",
    "application_state": "application/state",
    "configuration": "application/config",
}
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PARTIAL = ".partial"
WAL_FOLDER = "wal"
LEFTOVER_AGE = timedelta(hours=24)


def valid_id(backup_id: str) -> str:
    """Return ``backup_id`` if it may name a folder. Raises InvalidRequest before any path is built."""
    if not ID.fullmatch(backup_id) or backup_id.endswith(PARTIAL) or backup_id == WAL_FOLDER:
        raise InvalidRequest(
            f"{backup_id!r} is not a valid backup id",
            hint="letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit",
        )
    return backup_id


def new_id(prefix: str, now: datetime) -> str:
    """The id of a backup taken at ``now`` (aware, UTC), such as ``backup_20260131_020000``."""
    return f"{prefix}_{now:%Y%m%d_%H%M%S}"


@dataclass(frozen=True, kw_only=True)
class Backup:
    """One listed folder. ``manifest`` is None where it is damaged; ``problem`` then says how.

    Of a configuration archive of the old scripts ``folder`` is the encrypted file itself.
    """

    backup_id: str
    kind: Kind
    folder: Path
    manifest: Manifest | None
    problem: str | None = None

    @property
    def files(self) -> Files:
        """Where its files lie."""
        return FolderFiles(self.folder)

    @property
    def place(self) -> str | None:
        """The off-site place that it is read from; None at home."""
        return None

    def require_manifest(self) -> Manifest:
        """The manifest. Raises UnreadableManifest if it is damaged."""
        if self.manifest is None:
            raise UnreadableManifest(self.problem or f"{self.folder / MANIFEST} cannot be read")
        return self.manifest


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A folder that is not a backup: what a killed run left, or one that lost its manifest."""

    folder: Path
    partial: bool
    modified: datetime
