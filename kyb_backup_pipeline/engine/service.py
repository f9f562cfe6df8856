"""The platform's service: stopped and started by the commands that are set."""

import logging
import os
from collections.abc import Sequence

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.config import ApplicationSettings
from kyb_backup_pipeline.engine.errors import RestoreFailed

_log = logging.getLogger(__name__)


def stop_service(settings: ApplicationSettings) -> None:
    """Stop it. Raises RestoreFailed if it does not stop in time."""
    _run(settings.stop_command, settings.service_timeout, "stop", "application.stop_command")


def start_service(settings: ApplicationSettings) -> None:
    """Start it. Raises RestoreFailed."""
    _run(settings.start_command, settings.service_timeout, "start", "application.start_command")


def _run(command: Sequence[str], deadline: float, what: str, setting: str) -> None:
    if not command:
        _log.info("%s is empty: the service is left alone", setting)
        return
    try:
        process.run(command, deadline=deadline, env=_environment(), umask=0o022)
    except process.ProcessFailed as error:
        raise RestoreFailed(f"the service did not {what}: {error.message}", hint=setting) from error


def _environment() -> dict[str, str]:
    """The operator's own, as at a prompt, without our secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KYB_") and name not in ("DB_PASSWORD", "PGPASSWORD")
    }
