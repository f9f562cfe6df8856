"""The records of retention: what each prune deleted, skipped or refused, and why.

``monitoring/retention/<time>.json``, the newest few hundred. A record is written before the first
deletion, with the plan, and again at the end: one that still says "running" is of a prune that was killed.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import write_json

_log = logging.getLogger(__name__)

KEPT = 400
"""Records that are kept: more than a year of one a day."""
_STAMP = "%Y%m%dT%H%M%S.%fZ"


class Gone(BaseModel):
    """A backup, or a row of ``count`` WAL files, and why it was deleted (or was not). Sizes in bytes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    kind: str
    bytes: int
    why: str
    count: int = 1


class PruneRecord(BaseModel):
    """One prune. ``state`` is "running" of one that was killed; then ``deleted`` is what it had in mind."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format_version: int = 1
    state: Literal["running", "done", "refused", "failed"]
    began_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    by: str
    run_id: str | None = None
    despite_clock: bool = False
    settings: dict[str, float] = {}
    kept: dict[str, int] = {}
    deleted: tuple[Gone, ...] = ()
    skipped: tuple[Gone, ...] = ()
    refusal: str | None = None
    hint: str | None = None

    @property
    def freed(self) -> int:
        """Bytes that the deletions freed."""
        return sum(gone.bytes for gone in self.deleted)


class PruneRecords:
    """The folder of records."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "monitoring" / "retention"

    def keep(self, record: PruneRecord) -> None:
        """Write a record, durably, and let the oldest go. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{record.began_at:{_STAMP}}.json"
        temporary = path.with_name(f".{path.name}.tmp")
        write_durably(temporary, write_json(record))
        os.rename(temporary, path)
        for old in self._names()[KEPT:]:
            (self.folder / old).unlink(missing_ok=True)
        flush_folder(self.folder)

    def newest(self, count: int = 1) -> list[PruneRecord]:
        """The newest records that can be read, the newest first. Raises OSError for a closed folder."""
        found: list[PruneRecord] = []
        for name in self._names():
            if len(found) == count:
                break
            try:
                found.append(PruneRecord.model_validate_json((self.folder / name).read_bytes()))
            except (OSError, ValueError) as error:
                _log.warning("the record %s cannot be read: %s", self.folder / name, error)
        return found

    def _names(self) -> list[str]:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.folder)
        return sorted((n for n in names if n.endswith(".json") and n[0] != "."), reverse=True)
