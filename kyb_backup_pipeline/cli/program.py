"""The command itself: which verbs there are, and how errors leave it.

Verbs are imported only when they are called, so that ``--help`` and ``list`` answer at once. Errors
go to stderr as ``error: …`` and ``HINT: …`` with the exit code of their kind (``engine.errors``);
SIGTERM and SIGHUP unwind like Ctrl-C, so that nothing is left behind.
"""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import click

from kyb_backup_pipeline import __version__
from kyb_backup_pipeline.cli.session import Session
from kyb_backup_pipeline.engine.errors import DatabaseUnreachable, KybError

VERBS: Mapping[str, tuple[str, str]] = {
    "check": ("check", "Look whether backups and restore tests can work here."),
    "status": ("status", "Show how the backups stand: newest, proved, recovery point and time."),
    "backup": ("backup", "Take a backup now."),
    "list": ("list", "Show what backups there are and how far they are proved."),
    "show": ("show", "Show one backup with all its records."),
    "verify": ("verify", "Check backups: checksums, decompression, completeness."),
    "drill": ("drill", "Restore a backup on a throwaway server and compare it with its source."),
    "restore": ("restore", "Bring back what was backed up."),
    "report": ("report", "Write the health report: text, JSON, or a page."),
    "prune": ("prune", "Delete what need not be kept."),
    "offsite": ("offsite", "Copy backups to another place, look at the copies, bring one back."),
    "alert": ("alert", "Send a test alert, and show what was told to whom."),
    "hold": ("hold", "Keep a backup from being deleted until a day."),
    "keys": ("keys", "Make the keys that archives are encrypted with."),
    "demo": ("demo", "Make a sample platform and prove a backup of it through Dagster."),
    "up": ("up", "Open the Dagster UI on the sandbox of the demo."),
    "down": ("down", "Stop the services of the sandbox."),
}
"""Each verb with its module in this folder and its line in ``--help``."""


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"kyb_backup_pipeline.cli.{VERBS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  kyb-backup check
  kyb-backup backup full --label "before the migration"
  kyb-backup drill
  BACKUP_DIR=/mnt/usb kyb-backup list --json
  kyb-backup --config .kyb/kyb_backup.toml list      (the sandbox of the demo)

\b
Exit codes: 0 done, 1 unexpected, 2 usage, 3 settings, 4 no connection, 5 backup failed,
6 a proof failed, 7 restore failed, 8 locked, 9 not found, 10 could not verify, 11 no space,
12 refused.""",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file. Default: $KYB_CONFIG, else kyb_backup.toml in this folder if it is there.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the backups are. Default: $BACKUP_DIR, else the settings, else /backups.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, and show tracebacks.")
@click.version_option(__version__, prog_name="kyb-backup")
@click.pass_context
def program(
    context: click.Context, config: Path | None, repository: Path | None, verbose: bool
) -> None:
    """Backups of the KYB platform that are proved: verified, restored and compared.

    Works without Dagster. Times are UTC.
    """
    context.obj = Session(config_file=config, repository=repository, verbose=verbose)


def main() -> None:
    """Run the command line and exit with the code of what happened."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _unwind)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    try:
        program.main(standalone_mode=False)
    except KybError as error:
        _fail(error.message, error.hint, error.exit_code, verbose)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
        _fail("interrupted", None, 130, False)
    except click.ClickException as error:
        hint = None
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"{error.ctx.command_path} --help"
        _fail(error.format_message(), hint, error.exit_code, False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  (the outer edge)
        if type(error).__module__.partition(".")[0] == "psycopg":  # not imported here: it is slow
            said = (str(error) or type(error).__name__).splitlines()[0]
            _fail(f"the database server: {said}", "is it running still?", DatabaseUnreachable.exit_code,
                  verbose)  # fmt: skip
        message = f"unexpected: {type(error).__name__}: {error}"
        _fail(message, "run it again with --verbose and report it", 1, verbose)


def _fail(message: str, hint: str | None, code: int, show_traceback: bool) -> None:
    if show_traceback:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"HINT: {hint}", err=True)
    sys.exit(code)


def _unwind(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
