"""Journals of restores: what was done, step by step, so that anybody can go on.

One JSON file a restore, replaced whole and flushed before and after each step. Where to look next:
``stepped`` runs the steps; ``recovery_journal`` and ``cluster_journal`` are those of a database and of a
whole cluster.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import Locked, NotFound, RestoreFailed
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import utc_now, write_json
from kyb_backup_pipeline.engine.settings import Settings

_log = logging.getLogger(__name__)

_FOLDER = "database/recovery"
_ID = re.compile(r"(restore|recovery|files)_\d{8}_\d{6}_\d{6}")

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

    ``given_up``: it failed, and could not do what it then owed either; ``restore repair`` does it.
    ``place`` is the off-site place that the backup was read from, None where it was at home.
    ``stopped`` and ``putting_back`` say what of that is open: a service (or server) that it had stopped, and
    a swap that was to be undone.
    """

    model_config = ConfigDict(extra="ignore")

    restore_id: str
    backup_id: str
    place: str | None = None
    state: State = "running"
    began_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    process: int = 0
    process_began: str = ""
    machine: str = ""
    namespace: str = ""
    run_id: str | None = None
    service_wanted: bool = True
    interruption_seconds: float | None = None
    steps: list[Step] = []
    notes: list[str] = []
    error: str | None = None
    given_up: bool = False
    stopped: bool = False
    putting_back: bool = False

    def done(self, name: str) -> bool:
        """Whether a step has come to its end."""
        return any(step.name == name and step.finished_at is not None for step in self.steps)

    def began(self, name: str) -> Step | None:
        """A step that was begun, whether it ended or not."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def settled(self) -> bool:
        """Whether nothing is at work, and nothing owed."""
        return self.state != "running" and not self.given_up

    def alive(self) -> bool | None:
        """Whether its process is at work; None where this host (or container) cannot tell."""
        if self.given_up:
            return False
        if self.machine != socket.gethostname() or self.namespace not in ("", _namespace()):
            return None
        return process.alive(self.process) and (
            process.started_at(self.process) == self.process_began
        )

    def abandoned(self) -> bool:
        """Whether something is owed by a restore whose process is gone, as far as this host can tell."""
        return not self.settled and self.alive() is False

    def ours(self, machines: Sequence[str] = ()) -> bool:
        """Whether it was this machine's work, or that of one in whose stead somebody acts."""
        return self.machine in (socket.gethostname(), *machines)


def _namespace() -> str:
    """Of process ids: in another container the same number is another process."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


J = TypeVar("J", bound=StepJournal)


class JournalFolder:
    """The folder of journals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, journal: StepJournal) -> None:
        """Write a journal, durably, as that of this process. Raises RestoreFailed."""
        journal.process, journal.machine = os.getpid(), socket.gethostname()
        journal.process_began = process.started_at(os.getpid())
        journal.namespace = _namespace()
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
    def locked(self, place: str, taken: str) -> Iterator[None]:
        """Hold a lock of this host that is named after a place. Raises Locked (with ``taken``), RestoreFailed."""
        path = self.folder / f".{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise RestoreFailed(
                f"{self.folder} cannot be used for journals: {error.strerror}",
                hint="recovery.journals names a folder that can be written",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Locked(taken, hint="wait for it; its journal stands in the repository's "
                         "database/recovery") from None  # fmt: skip
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self, model: type[J], pattern: "re.Pattern[str]") -> list[J]:
        """The journals of one kind, the newest first; one that cannot be read is named in a warning."""
        try:
            names = sorted(
                (n for n in os.listdir(self.folder) if pattern.fullmatch(n)), reverse=True
            )
        except OSError:
            return []
        found = []
        for name in names:
            try:
                found.append(model.model_validate_json((self.folder / name).read_bytes()))
            except (OSError, ValueError) as error:
                said = str(error).splitlines()[0]
                _log.warning("the journal %s cannot be read, and is passed over: %s",
                             self.folder / name, said)  # fmt: skip
        return found

    def find(self, restore_id: str) -> StepJournal:
        """What every journal has, of one restore of whatever kind. Raises NotFound."""
        path = self.folder / f"{restore_id}.json"
        try:
            if not _ID.fullmatch(restore_id):
                raise FileNotFoundError
            return StepJournal.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"there is no restore {restore_id!r} in {self.folder}") from None
        except (OSError, ValueError) as error:
            raise RestoreFailed(f"{path} cannot be read: {str(error).splitlines()[0]}") from error

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
    return JournalFolder(journal_folder(settings)).read(
        StepJournal, re.compile(rf"{_ID.pattern}\.json")
    )
