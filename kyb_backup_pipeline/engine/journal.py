"""Journals of restores: what was done, step by step, so that anybody can go on.

One JSON file a restore, replaced whole and flushed before and after each step. Where to look next:
``stepped`` runs the steps; ``recovery_journal`` and ``cluster_journal`` are those of a database and of a
whole cluster.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.errors import RestoreFailed
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import utc_now, write_json

_FOLDER = "database/recovery"

State = Literal["running", "done", "failed", "swapped back", "rolled back"]


class Step(BaseModel):
    """One step; ``finished_at`` is None while it runs, and for ever if it was killed or failed."""

    name: str
    began_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    detail: str = ""

    @property
    def seconds(self) -> float | None:
        if self.finished_at is None:
            return None
        return (self.finished_at - self.began_at).total_seconds()


class StepJournal(BaseModel):
    """One restore of whatever kind. ``interruption_seconds``: how long the service was away.

    ``given_up``: it failed, and could not do what it then owed either.
    """

    model_config = ConfigDict(extra="ignore")

    restore_id: str
    backup_id: str
    state: State = "running"
    began_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    process: int = 0
    process_began: str = ""
    machine: str = ""
    run_id: str | None = None
    service_wanted: bool = True
    interruption_seconds: float | None = None
    steps: list[Step] = []
    notes: list[str] = []
    error: str | None = None
    given_up: bool = False

    def done(self, name: str) -> bool:
        """Whether a step has come to its end."""
        return any(step.name == name and step.finished_at is not None for step in self.steps)

    def began(self, name: str) -> Step | None:
        """A step that was begun, whether it ended or not."""
        return next((step for step in self.steps if step.name == name), None)

    def abandoned(self) -> bool:
        """Whether it says that it runs, but its process is gone (as far as this host can tell)."""
        if self.state != "running":
            return False
        if self.given_up:
            return True
        if self.machine != socket.gethostname():
            return False
        return not process.alive(self.process) or (
            process.started_at(self.process) != self.process_began
        )


class JournalFolder:
    """The folder of journals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, journal: StepJournal) -> None:
        """Write a journal, durably, as that of this process. Raises RestoreFailed."""
        journal.process, journal.machine = os.getpid(), socket.gethostname()
        journal.process_began = process.started_at(os.getpid())
        path = self.folder / f"{journal.restore_id}.json"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            write_durably(temporary, write_json(journal))
            os.rename(temporary, path)
            flush_folder(self.folder)
        except OSError as error:
            raise RestoreFailed(
                f"the journal {path} cannot be written: {error.strerror}",
                hint="recovery.journals names a folder that can be written",
            ) from error

    @contextlib.contextmanager
    def step(self, journal: StepJournal, name: str) -> Iterator[Step]:
        """Write down that a step begins, and, unless it fails, that it has ended."""
        step = Step(name=name, began_at=utc_now())
        journal.steps.append(step)
        self.keep(journal)
        yield step
        step.finished_at = utc_now()
        self.keep(journal)


def journal_folder(settings: Settings) -> Path:
    """Where they are: as set, else in the repository, else (a read-only one) in the user's state."""
    if settings.recovery.journals is not None:
        return settings.recovery.journals
    inside = settings.repository / _FOLDER
    nearest = inside
    while not nearest.exists():
        nearest = nearest.parent
    if os.access(nearest, os.W_OK):
        return inside
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    digest = hashlib.sha256(str(settings.repository.absolute()).encode()).hexdigest()[:12]
    return Path(state) / "kyb-backup" / f"recovery-{digest}"


def all_journals(settings: Settings) -> list[StepJournal]:
    """Every restore that was written down, of whatever kind; what cannot be read is left out."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(journal_folder(settings).glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(StepJournal.model_validate_json(path.read_bytes()))
    return found
