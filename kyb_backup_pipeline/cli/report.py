"""``kyb-backup report``: the health report."""

import json
import os
from pathlib import Path

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.report import as_document, make_report
from kyb_backup_pipeline.engine.report_page import html_page
from kyb_backup_pipeline.engine.report_text import text_page
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey


@click.command(
    name="report",
    epilog="""\b
Examples:
  kyb-backup report
  kyb-backup report --html /var/www/backups.html
  kyb-backup report --json""",
)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page there."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@with_session
def command(session: Session, html: Path | None, as_json: bool) -> None:
    """Report how the backups stand and stood: findings first, every backup with its proofs, pictures.

    Plain text, or one page of HTML that needs nothing else. Exits with 0 whatever it says; for a status
    in the exit code there is "status".
    """
    settings = session.settings()
    report = make_report(settings, Survey(Repository(settings.repository)), now=utc_now())
    if html is not None:
        _write(html, html_page(report))
        click.echo(html)
    elif as_json:
        click.echo(json.dumps(as_document(report), indent=2))
    else:
        click.echo(text_page(report), nl=False)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.rename(temporary, path)
    except OSError as error:
        raise SettingsInvalid(f"{path} cannot be written: {error.strerror}") from error
