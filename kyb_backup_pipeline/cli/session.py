"""What every verb needs: the settings, the log, and a way to show where long work stands.

Logging goes to ``LOG_FILE`` (one line an event, rotated) and, with ``--verbose``, to stderr; without
it only warnings do. Where no log file is set, the procedures' own is used if its folder is there.
"""

import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.progress import Progress, Reporter, Throttle

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.settings import Settings

DEFAULT_LOG = Path("/var/log/kyb-platform/backup.log")
_LINE = "[%(asctime)s] %(levelname)s %(message)s"
_PLAIN_INTERVAL = 10.0
_BAR_INTERVAL = 0.1

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass
class Session:
    """One call of the command line."""

    config_file: Path | None
    repository: Path | None
    verbose: bool

    def settings(self) -> "Settings":
        """Load the settings and open the log. Raises SettingsInvalid."""
        from kyb_backup_pipeline.engine import config

        overrides = {"repository": str(self.repository)} if self.repository else {}
        settings = config.load(self.config_file, overrides=overrides)
        self._open_log(settings)
        return settings

    def _open_log(self, settings: "Settings") -> None:
        logger = logging.getLogger("kyb_backup_pipeline")
        logger.setLevel(logging.INFO)
        for library in ("psycopg", "urllib3"):
            logging.getLogger(library).setLevel(
                logging.CRITICAL
            )  # their failures reach us as errors
        screen = logging.StreamHandler()
        screen.setLevel(logging.INFO if self.verbose else logging.WARNING)
        screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.handlers = [screen]
        path = settings.log_file
        if path is None and os.access(DEFAULT_LOG.parent, os.W_OK):
            path = DEFAULT_LOG
        if path is not None:
            logger.addHandler(_log_file(path))

    @contextmanager
    def reporting(self) -> Iterator[Reporter]:
        """A reporter for long work: bars on a terminal, a plain line every 10 s elsewhere."""
        if sys.stderr.isatty():
            with _bars() as reporter:
                yield reporter
        else:
            yield Throttle(_plain_line, _PLAIN_INTERVAL, from_start=True)


def with_session(command: _Command) -> _Command:
    """Pass the session to a verb, which also takes ``--repository`` after its own name."""

    @click.option(
        "--repository",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where the backups are (as before the verb).",
    )
    @click.pass_obj
    @wraps(command)
    def called(session: Session, /, *args: Any, repository: Path | None, **kwargs: Any) -> Any:
        if repository is not None:
            session.repository = repository
        return command(session, *args, **kwargs)

    return called  # type: ignore[return-value]


def sandbox_folder(command: _Command) -> _Command:
    """Let a verb of the sandbox be told where that is."""
    option = click.option(
        "--folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where the sandbox lies. Default: .kyb in the checkout.",
    )
    return option(command)


def say(text: str, *, nl: bool = True) -> None:
    """Print in the middle of work that must go on, also when nobody reads any more."""
    try:
        click.echo(text, nl=nl)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log_file(path: Path) -> logging.Handler:
    try:
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=10_000_000, backupCount=5, encoding="utf-8"
        )
    except OSError as error:
        raise SettingsInvalid(
            f"the log file {path} cannot be written: {error.strerror}",
            hint="set LOG_FILE (or log_file) to a place this user may write",
        ) from error
    formatter = logging.Formatter(_LINE, "%Y-%m-%d %H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    return handler


def _plain_line(progress: Progress) -> None:
    click.echo(f"  {progress.step}: {_amount(progress)} {progress.detail}".rstrip(), err=True)


def _amount(progress: Progress) -> str:
    if progress.unit == "bytes":
        done = size(progress.done)
        return done if progress.total is None else f"{done} of {size(progress.total)}"
    of = "" if progress.total is None else f" of {progress.total}"
    return f"{progress.done}{of} {progress.unit}"


@contextmanager
def _bars() -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[step]:<10}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]:>22} {task.fields[rate]:>11}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    tasks: dict[str, Any] = {}
    began: dict[str, float] = {}
    with Display(*columns, console=Console(stderr=True), transient=True) as display:

        def show(progress: Progress) -> None:
            now = time.monotonic()
            elapsed = now - began.setdefault(progress.step, now)
            fast = progress.unit == "bytes" and elapsed > 0.5
            rate = f"{size(progress.done / elapsed)}/s" if fast else ""
            fields: dict[str, Any] = {
                "amount": _amount(progress),
                "rate": rate,
                "detail": progress.detail,
            }
            if progress.step not in tasks:
                tasks[progress.step] = display.add_task("", step=progress.step, **fields)
            display.update(
                tasks[progress.step], completed=progress.done, total=progress.total, **fields
            )

        yield Throttle(show, _BAR_INTERVAL)


def size(count: float) -> str:
    """Bytes for people: ``1.4 GB`` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
