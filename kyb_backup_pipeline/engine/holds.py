"""Holds: what a person said must not be deleted before a day.

One JSON file a backup, ``holds/<id>.json``, written durably. A hold that cannot be read holds: whoever
wrote it wanted the backup kept. An expired one holds nothing.
"""

import getpass
import logging
import os
import socket
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.errors import InvalidRequest, NotFound, SettingsInvalid
from kyb_backup_pipeline.engine.files import NO_SPACE, flush_folder, no_space, write_durably
from kyb_backup_pipeline.engine.manifest import write_json

_log = logging.getLogger(__name__)


class Hold(BaseModel):
    """One hold. It ends at ``until``; None where its file cannot be read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    backup_id: str
    until: AwareDatetime | None = None
    why: str
    by: str = ""
    placed_at: AwareDatetime | None = None

    def in_force(self, now: datetime) -> bool:
        return self.until is None or now < self.until

    def __str__(self) -> str:
        if self.until is None:
            return self.why
        return f"held until {self.until:%Y-%m-%d %H:%M} UTC: {self.why}"


def caller() -> str:
    """Who does this, as user@host; accounts without a name have a number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def parse_until(text: str, now: datetime) -> datetime:
    """The end of a hold: a time, or a day that counts to its end. Without a zone it is UTC.

    Raises InvalidRequest, also for one that has passed.
    """
    hint = 'a day such as 2026-12-31, or a time such as "2026-12-31 18:00:00+00:00"'
    try:
        if len(text) == len("2026-12-31"):
            day = date.fromisoformat(text) + timedelta(days=1)
            until = datetime.combine(day, time(), UTC)
        else:
            until = datetime.fromisoformat(text)
            until = until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{text!r} is no date", hint=hint) from None
    if until <= now:
        raise InvalidRequest(f"{text} has passed: that would hold nothing", hint=hint)
    return until


class Holds:
    """The folder of holds."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "holds"

    def place(self, hold: Hold) -> None:
        """Write a hold; it takes the place of an earlier one."""
        path = self._path(hold.backup_id)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            write_durably(temporary, write_json(hold))
            os.rename(temporary, path)
            flush_folder(self.folder)
        except OSError as error:
            raise _not_written(path, error) from error

    def release(self, backup_id: str) -> None:
        """Take a hold away. Raises NotFound where there is none."""
        path = self._path(backup_id)
        try:
            path.unlink()
            flush_folder(self.folder)
        except FileNotFoundError:
            raise NotFound(f"{backup_id} is not held", hint="kyb-backup hold lists holds") from None
        except OSError as error:
            raise _not_written(path, error) from error

    def all(self) -> list[Hold]:
        """All holds, also expired ones, by id. Raises OSError where the folder cannot be read."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        return [self._read(self.folder / name) for name in names
                if name.endswith(".json") and not name.startswith(".")]  # fmt: skip

    def _path(self, backup_id: str) -> Path:
        return self.folder / f"{backup_id}.json"

    def _read(self, path: Path) -> Hold:
        backup_id = path.name.removesuffix(".json")
        try:
            hold = Hold.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            _log.warning("the hold %s cannot be read: %s", path, error)
            return Hold(backup_id=backup_id, why=f"its hold {path.name} cannot be read: look at it")
        return hold.model_copy(update={"backup_id": backup_id})


def _not_written(path: Path, error: OSError) -> Exception:
    if error.errno in NO_SPACE:
        return no_space(path, error)
    return SettingsInvalid(
        f"the hold {path} cannot be written: {error.strerror}",
        hint="as a user who may write the repository",
    )
