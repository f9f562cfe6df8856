"""What was seen of each off-site place last, kept at home: for those who must not ask the network.

``offsite/<target>.json`` in the repository, written durably; where the repository cannot be written, and on a
machine that has none, in the user's state folder. Health findings are made of it: which copies there are, how
they were proved, whether they can be deleted, and since when the place does not answer.

A push and a verification may be at work at once: each changes what is written there at that moment, under a lock, not
what it read an hour ago.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import Kind, Verdict, write_json
from kyb_backup_pipeline.engine.offsite_copy import OffsiteCopy
from kyb_backup_pipeline.engine.offsite_probe import Probe
from kyb_backup_pipeline.engine.offsite_target import address_of, target_settings
from kyb_backup_pipeline.engine.settings import OffsiteSettings

_log = logging.getLogger(__name__)

_FOLDER = "offsite"


class _Seen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SeenCopy(_Seen):
    """One copy as it was seen last. ``verdict`` is of the newest ``offsite verify`` of it, ``run_id`` the run of
    Dagster that pushed it, ``base`` what an increment is replayed on.
    """

    kind: Kind
    finished_at: AwareDatetime
    pushed_at: AwareDatetime
    verified_at: AwareDatetime | None = None
    deep: bool = False
    verdict: Verdict | None = None
    summary: str = ""
    base: str | None = None
    run_id: str | None = None


def as_seen(copy: OffsiteCopy, **more: Any) -> SeenCopy:
    """A copy as it is seen now, and what else is known of it."""
    wal = copy.manifest.wal
    return SeenCopy(kind=copy.kind, finished_at=copy.manifest.completed_at, pushed_at=copy.pushed_at,
                    base=wal.base if wal else None, **more)  # fmt: skip


class Trouble(_Seen):
    """Why the place could not be used, and since when without a break."""

    since: AwareDatetime
    message: str
    hint: str | None = None


class View(_Seen):
    """One place. ``looked_at``: when its list of copies was read last. ``damaged``: of the copies whose commit
    object cannot be read, why.
    """

    format_version: int = 1
    target: str
    url: str
    probe: Probe | None = None
    looked_at: AwareDatetime | None = None
    copies: Mapping[str, SeenCopy] = {}
    damaged: Mapping[str, str] = {}
    trouble: Trouble | None = None
    deletable: bool | None = None
    locked_until: AwareDatetime | None = None


class Views:
    """The files of all views of one repository."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def read(self, target: str, url: str) -> View:
        """What is known of a target; of one that has moved, nothing."""
        for folder in self._places():
            path = folder / f"{target}.json"
            try:
                found = View.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                _log.warning("%s cannot be read, and begins anew: %s", path, error)
                continue
            if found.url == url:
                return found
        return View(target=target, url=url)

    def keep(self, view: View) -> None:
        """Write it down where that can be done. It can always be found out again."""
        for folder in self._places():
            path = folder / f"{view.target}.json"
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_durably(temporary, write_json(view))
                os.rename(temporary, path)
                flush_folder(folder)
            except OSError as error:
                _log.info("%s is not written: %s", path, error.strerror)
                continue
            return
        _log.warning("what was seen of %s could not be written down", view.target)

    def change(self, target: str, url: str, how: Callable[[View], View]) -> View:
        """Change what is written there at this moment, and return it."""
        with self._changing(target):
            changed = how(self.read(target, url))
            self.keep(changed)
        return changed

    def failed(self, target: str, url: str, error: KybError, now: datetime) -> View:
        """Write down that a target could not be used."""

        def add(view: View) -> View:
            since = view.trouble.since if view.trouble else now
            trouble = Trouble(since=since, message=error.message, hint=error.hint)
            return view.model_copy(update={"trouble": trouble})

        return self.change(target, url, add)

    @contextlib.contextmanager
    def _changing(self, target: str) -> Iterator[None]:
        """Keep others out meanwhile. Where no lock can be had none is: there nothing can be written either."""
        for folder in self._places():
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = stack.enter_context(open(folder / f".{target}.lock", "wb"))
                os.fchmod(file.fileno(), 0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
                lock = stack.pop_all()
                break
        else:
            lock = contextlib.ExitStack()
        with lock:
            yield

    def _places(self) -> list[Path]:
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        digest = hashlib.sha256(str(self.repository.absolute()).encode()).hexdigest()[:12]
        outside = Path(state) / "kyb-backup" / f"offsite-{digest}"
        return [self.repository / _FOLDER, outside] if _is_folder(self.repository) else [outside]


def _is_folder(path: Path) -> bool:
    """Whether it is one, to this user: who may not look has none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def views_of(repository: Path, settings: OffsiteSettings) -> tuple[View, ...]:
    """What is known of every place that is set, in the order of the settings."""
    views = Views(repository)
    targets = target_settings(settings).items()
    return tuple(views.read(name, address_of(options)) for name, options in targets)
