"""What killed restores of files left: the old state again, and the service with it."""

import contextlib
import logging
import os
import time
from pathlib import Path

from kyb_backup_pipeline.engine.errors import BackupFailed, KybError, RestoreFailed
from kyb_backup_pipeline.engine.file_backup import configuration_root
from kyb_backup_pipeline.engine.platform_api import fetch_flags, restore_flags
from kyb_backup_pipeline.engine.service import start_service, stop_service
from kyb_backup_pipeline.engine.settings import ApplicationSettings, Settings
from kyb_backup_pipeline.engine.swap import (
    UNDONE,
    Work,
    holding,
    keep_aside,
    remove,
    undo,
    unfinished,
    units_of,
)

_log = logging.getLogger(__name__)

FLAGS_BEFORE = "flags.json"
"""In the folder of a restore: the flags from before it, from the moment that it posts its own."""
_POLL = 0.2


def repair_all(settings: Settings, *, service: bool = True) -> list[str]:
    """Undo restores that were killed, and start the service; what was done, where there were any.

    What such a restore had put in place is kept beside: somebody may have gone on with it. The mark of a
    restore goes only once the service runs again. Raises RestoreFailed, Locked while one still runs.
    """
    said: list[str] = []
    failed: list[KybError] = []
    for base in bases_of(settings):
        if not base.is_dir() or not unfinished(base):
            continue
        with holding(base):
            for work in unfinished(base):
                if not work.journalled:
                    remove(work.folder)
                    continue
                try:
                    said.append(_repaired(settings.application, base, work, service))
                except KybError as error:  # the others are seen to all the same
                    failed.append(error)
    if failed:
        raise failed[0]
    return said


def _repaired(how: ApplicationSettings, base: Path, work: Work, service: bool) -> str:
    _log.warning("%s was left by a restore that was killed: it is undone", work.folder)
    units_of(work)  # before the service is stopped: is there anything to go by?
    flags = _flags_before(work)
    if service:  # it may have been started already, and go on with the new state
        with contextlib.suppress(KybError):
            stop_service(how)
    try:
        swapped = undo(work)
    finally:
        if service:
            start_service(how)
    if flags is not None:
        await_api(how)
        restore_flags(how, flags)
        (work.folder / FLAGS_BEFORE).unlink()
    aside = keep_aside(work, UNDONE) if swapped else None
    if not swapped:
        remove(work.folder)
    return (
        f"{base}: the old state stands again"
        + (", and the service was started" if service else "")
        + (f"; what was in place lies in {aside}" if aside else "")
    )


def _flags_before(work: Work) -> bytes | None:
    """The flags from before a restore that was killed after it had begun to post its own."""
    with contextlib.suppress(FileNotFoundError):
        return (work.folder / FLAGS_BEFORE).read_bytes()
    return None


def bases_of(settings: Settings) -> list[Path]:
    """The folders that restores work in."""
    how = settings.application
    configs = Path(os.path.realpath(how.root / how.configs))
    root = Path(os.path.realpath(configuration_root(settings)))
    return list(dict.fromkeys([configs.parent, root]))


def await_api(how: ApplicationSettings) -> None:
    """Wait until the service answers for its flags. Raises RestoreFailed."""
    give_up = time.monotonic() + how.service_timeout
    patient = how.model_copy(update={"retries": 0})
    while True:
        try:
            fetch_flags(patient)
            return
        except BackupFailed as error:
            if time.monotonic() > give_up:
                raise RestoreFailed(
                    f"the service does not answer after its start: {error.message}",
                    hint="application.service_timeout sets how long to wait",
                ) from error
            time.sleep(_POLL)
