"""``kyb-backup check``: the doctor."""

import json
import sys
from dataclasses import asdict

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.doctor import examine
from kyb_backup_pipeline.engine.errors import SettingsInvalid

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(
    name="check",
    epilog="""\b
Examples:
  kyb-backup check
  kyb-backup check --json | jq '.[] | select(.level != "ok")'""",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@with_session
def command(session: Session, as_json: bool) -> None:
    """Look whether backups and restore tests can work here; nothing is changed.

    Looks at the settings, the repository and its room, the connection, the user's rights, and the
    programs of PostgreSQL. Exits with 3 if there is an error; warnings do not count.
    """
    settings = session.settings()
    lines = []
    for line in examine(settings):
        lines.append(line)
        if not as_json:
            click.secho(f"{line.level:<8}", fg=_COLOURS[line.level], nl=False)
            click.echo(f"{line.subject}: {line.message}")
            if line.hint:
                click.echo(f"        HINT: {line.hint}")
    if as_json:
        click.echo(json.dumps([asdict(line) for line in lines], indent=2))
    if any(line.level == "error" for line in lines):
        sys.exit(SettingsInvalid.exit_code)
