"""Backups that failed: a line for each, so that the next look at the repository knows of it.

``monitoring/attempts/<kind>_<time>_<id>.json``, the newest fifty of each kind. A run that is killed leaves
none, but its ``.partial`` folder.
"""

import contextlib
import logging
import os
import re
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.files import write_durably
from kyb_backup_pipeline.engine.manifest import Kind, write_json

_log = logging.getLogger(__name__)

_FOLDER = "monitoring/attempts"
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_KEPT = 50


class Attempt(BaseModel):
    """One backup that failed, and why."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Kind
    backup_id: str
    at: AwareDatetime
    error: str
    hint: str | None = None
    exit_code: int = 1


class Attempts:
    """The folder of failed attempts of a repository."""

    def __init__(self, root: Path) -> None:
        self.folder = root / _FOLDER

    def keep(self, kind: Kind, backup_id: str, error: BaseException, now: datetime) -> None:
        """Write down that a backup failed; where even that fails it is a warning."""
        known = isinstance(error, KybError)
        attempt = Attempt(
            kind=kind, backup_id=backup_id, at=now,
            error=error.message if isinstance(error, KybError) else _said(error),
            hint=error.hint if isinstance(error, KybError) else None,
            exit_code=error.exit_code if known and isinstance(error, KybError) else 1,
        )  # fmt: skip
        path = self.folder / f"{kind}_{now:{_STAMP}}_{backup_id}.json"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            write_durably(temporary, write_json(attempt))
            os.rename(temporary, path)
            for old in self._files(kind)[:-_KEPT]:
                old.unlink(missing_ok=True)
        except OSError as trouble:
            _log.warning("that %s failed was not written down: %s", backup_id, trouble.strerror)

    def last(self, kind: Kind) -> Attempt | None:
        """The newest one of a kind."""
        for path in reversed(self._files(kind)):
            with contextlib.suppress(OSError, ValueError):
                return Attempt.model_validate_json(path.read_bytes())
        return None

    def _files(self, kind: Kind) -> list[Path]:
        pattern = re.compile(rf"{kind}_\d{{8}}T\d{{6}}\.\d{{6}}Z_.+\.json")
        try:
            return sorted(p for p in self.folder.iterdir() if pattern.fullmatch(p.name))
        except OSError:
            return []


def _said(error: BaseException) -> str:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "it was interrupted"
    text = str(error)
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
