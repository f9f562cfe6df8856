"""``kyb-backup report``: the health report."""

import json
import os
import sys
from pathlib import Path

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.errors import ProofFailed, SettingsInvalid
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.report import Report, as_document, make_report
from kyb_backup_pipeline.engine.report_page import html_page
from kyb_backup_pipeline.engine.report_text import text_page
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey


@click.command(
    name="report",
    epilog="""\b
Examples:
  kyb-backup report
  kyb-backup report --html /var/www/backups.html
  kyb-backup report --mail
  kyb-backup report --json""",
)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page there."
)
@click.option("--mail", is_flag=True, help="Send it to alerts.report_email, else to alerts.email.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@with_session
def command(session: Session, html: Path | None, mail: bool, as_json: bool) -> None:
    """Report how the backups stand and stood: findings first, every backup with its proofs, pictures.

    Plain text, or one page of HTML that needs nothing else. Exits with 0 whatever it says; for a status
    in the exit code there is "status". With --mail it is sent, and 6 is of an address that did not take it.
    """
    settings = session.settings()
    report = make_report(settings, Survey(Repository(settings.repository)), now=utc_now())
    if html is not None:
        _write(html, html_page(report))
        click.echo(html)
    if mail:
        _mail(settings, report)
    elif as_json and html is None:
        click.echo(json.dumps(as_document(report), indent=2))
    elif html is None:
        click.echo(text_page(report), nl=False)


def _mail(settings: Settings, report: Report) -> None:
    """Raises SettingsInvalid where there is no address."""
    from kyb_backup_pipeline.engine.report_mail import mail_report

    deliveries = mail_report(settings, report, now=report.health.at)
    for each in deliveries:
        click.echo(f"{'sent to' if each.delivered else 'error: not taken by'} {each.channel}: {each.answer}",
                   err=not each.delivered)  # fmt: skip
    if not all(each.delivered for each in deliveries):
        sys.exit(ProofFailed.exit_code)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.rename(temporary, path)
    except OSError as error:
        raise SettingsInvalid(f"{path} cannot be written: {error.strerror}") from error
