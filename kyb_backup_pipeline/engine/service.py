"""The platform's service and its server: stopped and started by the commands that are set."""

import logging
import os
import time
import urllib.request
from collections.abc import Sequence

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import RestoreFailed
from kyb_backup_pipeline.engine.settings import ApplicationSettings, RecoverySettings

_log = logging.getLogger(__name__)

_POLL = 0.25


def stop_service(settings: ApplicationSettings) -> None:
    """Stop the service. Raises RestoreFailed if it does not stop in time."""
    _run(settings.stop_command, settings.service_timeout, "service", "application.stop_command")


def start_service(settings: ApplicationSettings) -> None:
    """Start the service. Raises RestoreFailed."""
    _run(settings.start_command, settings.service_timeout, "service", "application.start_command")


def start_service_again(settings: ApplicationSettings, so_far: str) -> None:
    """Start the service at the end of what is owed; an error says how things stand, too."""
    try:
        start_service(settings)
    except RestoreFailed as error:
        error.message = "; ".join(filter(None, (so_far, error.message)))
        raise


def stop_server(settings: RecoverySettings) -> None:
    """Stop the database server. Raises RestoreFailed if it does not stop in time."""
    command, deadline = settings.stop_server_command, settings.server_timeout
    _run(command, deadline, "server", "recovery.stop_server_command")


def start_server(settings: RecoverySettings) -> None:
    """Start the database server. Raises RestoreFailed."""
    command, deadline = settings.start_server_command, settings.server_timeout
    _run(command, deadline, "server", "recovery.start_server_command")


def await_health(url: str, patience: float) -> None:
    """Ask ``url`` until it answers with 200, for ``patience`` seconds. Raises RestoreFailed."""
    give_up = time.monotonic() + patience
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # no proxy of the environment
    while True:
        try:
            with opener.open(url, timeout=5) as answer:
                if answer.status == 200:
                    return
                reason = f"answered {answer.status}"
        except (OSError, ValueError) as error:
            reason = str(error)
        if time.monotonic() > give_up:
            raise RestoreFailed(
                f"the service is not well: {url}: {reason}", hint="recovery.health_url"
            )
        time.sleep(_POLL)


def _run(command: Sequence[str], deadline: float, who: str, setting: str) -> None:
    if not command:
        _log.info("%s is empty: the %s is left alone", setting, who)
        return
    try:
        process.run(command, deadline=deadline, env=_environment(), umask=0o022)
    except process.ProcessFailed as error:
        what = "stop" if ".stop_" in setting else "start"
        raise RestoreFailed(f"the {who} did not {what}: {error.message}", hint=setting) from error


def _environment() -> dict[str, str]:
    """The operator's own, as at a prompt, without our secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KYB_") and name not in ("DB_PASSWORD", "PGPASSWORD")
    }
