"""What was told to whom: the memory that everybody who alerts shares, and the history for people.

Both lie in ``monitoring/alerts`` of the repository. The memory is one JSON file, written beside, flushed and
renamed, under a lock that is held while alerts are sent, so that two who look at once tell a trouble once.
Where the repository cannot be written (it is not mounted, the disk is full: times at which alerts count) the
memory is in the user's state folder, where a copy is always kept, so that nothing is told again when the
repository goes out of sight or comes back; the younger of the two holds. A memory that cannot be read begins
anew, with a line in the log: rather twice than never.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import write_json
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.trouble import Severity, Trouble

_log = logging.getLogger(__name__)

_FOLDER = "monitoring/alerts"
_MEMORY = "memory.json"
_LOCK = "memory.lock"
_HISTORY, _OLDER = "history.jsonl", "history.1.jsonl"
_HISTORY_BYTES = 1_000_000

_T = TypeVar("_T")

What = Literal["new", "worse", "reminder", "over", "event", "test"]


class _Remembered(BaseModel):
    model_config = ConfigDict(frozen=True)


class Had(_Remembered):
    """What a channel was told last of one trouble: how bad it was, and when."""

    severity: Severity
    at: AwareDatetime


class Known(_Remembered):
    """One trouble as it was last seen. ``changed``: when it came, went, or had another severity before.

    ``had`` says what which channel was told.
    """

    trouble: Trouble
    since: AwareDatetime
    changed: AwareDatetime
    gone: bool = False
    had: Mapping[str, Had] = {}


class Failing(_Remembered):
    """A channel that did not take what it was sent last: how often in a row, and when last."""

    times: int
    at: AwareDatetime


class Memory(_Remembered):
    """All that is remembered. ``known`` are troubles and ``events`` what merely happened, by their keys."""

    version: Literal[1] = 1
    written_at: AwareDatetime = datetime.fromtimestamp(0, UTC)
    known: Mapping[str, Known] = {}
    events: Mapping[str, Known] = {}
    failing: Mapping[str, Failing] = {}


class Item(_Remembered):
    """One piece of news in the history."""

    what: What
    key: str
    severity: Severity
    title: str


class Entry(_Remembered):
    """One line of the history: one message to one channel, and what became of it."""

    at: AwareDatetime
    channel: str
    delivered: bool
    answer: str
    subject: str
    items: list[Item]


def places(settings: Settings) -> list[Path]:
    """Where memory and history may lie, the better first."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    digest = hashlib.sha256(str(settings.repository.absolute()).encode()).hexdigest()[:12]
    outside = Path(state) / "kyb-backup" / f"alerts-{digest}"
    # a repository that is not there may be one that is not mounted: nothing is made in its place
    return [settings.repository / _FOLDER, outside] if settings.repository.is_dir() else [outside]


class AlertStore:
    """Memory and history, open for one who tells."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.memory = self._read()

    def keep(self, memory: Memory, now: datetime) -> None:
        """Remember this from now on; where nothing can be written, only as long as this lock is held."""
        self.memory = memory.model_copy(update={"written_at": now})

        def write(folder: Path) -> None:
            temporary = folder / f".{_MEMORY}.tmp"
            write_durably(temporary, write_json(self.memory))
            os.rename(temporary, folder / _MEMORY)
            flush_folder(folder)

        list(_in_each(self._folders, "memory", write))

    def note(self, entry: Entry) -> None:
        """Add a line to the history. Of a line that was cut short by a kill nothing but itself is lost."""

        def append(folder: Path) -> None:
            path = folder / _HISTORY
            if path.exists() and path.stat().st_size > _HISTORY_BYTES:
                os.rename(path, folder / _OLDER)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(descriptor, "ab") as file:
                file.write(b"\n" + entry.model_dump_json().encode() + b"\n")

        _in_first(self._folders, "history", append)

    def _read(self) -> Memory:
        found = [memory for folder in self._folders if (memory := _memory_in(folder)) is not None]
        return max(found, key=lambda memory: memory.written_at, default=Memory())


@contextlib.contextmanager
def alert_store(settings: Settings, patience: float) -> Iterator[AlertStore]:
    """Open memory and history, with the lock. After ``patience`` seconds without it: better twice than never."""
    folders = places(settings)
    descriptor = _in_first(
        folders, "lock", lambda folder: os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    )
    try:
        if descriptor is not None and not _locked(descriptor, patience):
            _log.warning(
                "somebody else has been sending alerts for %g s; going on beside", patience
            )
        yield AlertStore(folders)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def history(settings: Settings, newest: int = 50) -> list[Entry]:
    """The newest ``newest`` entries of the history, the newest first."""
    entries = [
        entry
        for folder in places(settings)
        for name in (_OLDER, _HISTORY)
        for entry in _entries_in(folder / name)
    ]
    entries.sort(key=lambda entry: entry.at)
    return entries[::-1][:newest]


def _memory_in(folder: Path) -> Memory | None:
    path = folder / _MEMORY
    try:
        return Memory.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = error.strerror
    except ValidationError:
        why = "it is damaged, and put aside"
        with contextlib.suppress(OSError):
            os.rename(path, path.with_suffix(".damaged"))
    _log.warning(
        "the memory of alerts %s cannot be read (%s): what is wrong now is told again", path, why
    )
    return None


def _in_first(folders: Sequence[Path], what: str, do: Callable[[Path], _T]) -> _T | None:
    """Do it in the first folder that lets us."""
    return next(_in_each(folders, what, do), None)


def _in_each(folders: Sequence[Path], what: str, do: Callable[[Path], _T]) -> Iterator[_T]:
    """Do it in each folder that lets us; none is worth a warning."""
    done = False
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            result = do(folder)
        except OSError as error:
            _log.info("the %s of alerts cannot be written in %s: %s", what, folder, error.strerror)
            continue
        done = True
        yield result
    if not done:
        _log.warning(
            "the %s of alerts cannot be written in %s", what, " nor in ".join(map(str, folders))
        )


def _locked(descriptor: int, patience: float) -> bool:
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)


def _entries_in(path: Path) -> Iterator[Entry]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in filter(None, lines):
        with contextlib.suppress(ValidationError):
            yield Entry.model_validate_json(line)
