"""``kyb-backup alert test`` and ``alert history``: would anybody be told, and who was told what."""

import json
import sys
from dataclasses import asdict

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.errors import ProofFailed
from kyb_backup_pipeline.engine.manifest import utc_now


@click.group(name="alert")
def command() -> None:
    """The alerts: try the channels, and see what was told to whom."""


@command.command(
    epilog="""\b
Examples:
  kyb-backup alert test
  kyb-backup alert test --channel pager
  ALERT_EMAIL=me@example.com kyb-backup alert test"""
)
@click.option("--channel", metavar="NAME", help="Only this one: its name, or the address of mail.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@with_session
def test(session: Session, channel: str | None, as_json: bool) -> None:
    """Send a test alert to each channel, whatever its severity, and print what each answered.

    Exits with 0 if all took it, with 6 if one did not.
    """
    from kyb_backup_pipeline.engine.alerts import send_test

    deliveries = send_test(session.settings(), now=utc_now(), name=channel)
    if as_json:
        click.echo(json.dumps([asdict(delivery) for delivery in deliveries], indent=2))
    else:
        for delivery in deliveries:
            click.secho("ok      " if delivery.delivered else "failed  ",
                        fg="green" if delivery.delivered else "red", nl=False)  # fmt: skip
            click.echo(f"{delivery.channel}: {delivery.answer}")
    if not all(delivery.delivered for delivery in deliveries):
        sys.exit(ProofFailed.exit_code)


@command.command(
    epilog="""\b
Examples:
  kyb-backup alert history
  kyb-backup alert history --newest 500 --json | jq '.[] | select(.delivered | not)'"""
)
@click.option("--newest", default=20, show_default=True, type=click.IntRange(1), help="So many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@with_session
def history(session: Session, newest: int, as_json: bool) -> None:
    """Show what was told to whom, and whether it arrived; the newest first."""
    from kyb_backup_pipeline.engine.alert_memory import history as read_history

    entries = read_history(session.settings(), newest)
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        return
    for entry in entries:
        click.echo(f"{entry.at:%Y-%m-%d %H:%M:%S}  ", nl=False)
        click.secho("told    " if entry.delivered else "failed  ",
                    fg="green" if entry.delivered else "red", nl=False)  # fmt: skip
        click.echo(f"{entry.channel}  {entry.subject}")
        if not entry.delivered:
            click.echo(f"    {entry.answer}")
    if not entries:
        click.echo("nobody was told anything yet")
