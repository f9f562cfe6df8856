"""``kyb-backup status``: how the backups stand, for eyes and for cron."""

import json
import sys
from datetime import datetime

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine import alerts
from kyb_backup_pipeline.engine.errors import ProofFailed
from kyb_backup_pipeline.engine.figures import KindHealth
from kyb_backup_pipeline.engine.health import ELSE, STALE, Health, look_at
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.printable import printable
from kyb_backup_pipeline.engine.report import health_document
from kyb_backup_pipeline.engine.report_rows import place_row
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Fact, Survey
from kyb_backup_pipeline.engine.trouble import Severity, lasting

_COLOURS: dict[Severity, str] = {"critical": "red", "warning": "yellow", "info": "blue"}


@click.command(
    name="status",
    epilog="""\b
Examples:
  kyb-backup status
  kyb-backup status --alert                      (in cron: a watch on the watcher)
  kyb-backup status --json | jq '.troubles[] | .title'""",
)
@click.option("--alert", is_flag=True, help="Send what the sensors would, with the same memory.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@with_session
def command(session: Session, alert: bool, as_json: bool) -> None:
    """Show how the backups stand, from the repository alone: no Dagster, no database.

    Of each kind the newest, its age against its limit, the newest that was verified and restore-tested;
    the moment that can be recovered to, and how long that takes; room; and what is wrong. Exits with 6 if
    something is wrong, so that cron can use it.

    With --alert it tells of each trouble once, and when it is over, whoever looks first, Dagster's sensors or
    this; when all is well it asks alerts.ping_url.
    """
    settings = session.settings()
    health = look_at(settings, Survey(Repository(settings.repository)), now=utc_now())
    if alert:
        _alert(settings, health)
    if as_json:
        click.echo(json.dumps(health_document(health), indent=2))
    else:
        _show(health)
    if not health.well:
        sys.exit(ProofFailed.exit_code)


def _alert(settings: Settings, health: Health) -> None:
    for each in alerts.look(settings, health.troubles, now=health.at, covers=(*STALE, *ELSE)):
        if not each.delivered:
            click.echo(f"error: an alert was not taken: {each.channel}: {each.answer}", err=True)
    if health.well:
        alerts.ping_when_well(settings)


def _show(health: Health) -> None:
    rows = [("KIND", "NEWEST", "AGE", "VERIFIED", "RESTORE-TESTED")]
    for kind, one in health.kinds.items():
        rows.append((kind.replace("_", " "), _id(one.newest), _age(one), _same(one.verified, one),
                     _same(one.restore_tested, one)))  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.secho("  ".join(cells).rstrip(), bold=number == 0)
    click.echo()
    if health.recovery_point is not None:
        ago = lasting(health.at - health.recovery_point)
        click.echo(f"recovery point  {_time(health.recovery_point)}, {ago} ago")
    if health.recovery_time is not None:
        click.echo(f"recovery time   {health.recovery_time:.1f} s, in the last restore test")
    if health.space.total:
        days = health.space.days_until_full
        until = f", full in {days:.0f} days at the growth of the last week" if days else ""
        click.echo(f"room            {size(health.space.free)} free{until}")
    for place in (place_row(place, health.at) for place in health.places):
        click.echo(f"off-site        {place['name']}: {place['copies']} copies in {place['url']}, "
                   f"reachable: {place['reachable'][1]}; verified {place['verified']}; "
                   f"locked {place['locked'][1]}")  # fmt: skip
    for trouble in health.troubles:
        click.secho(f"\n{trouble.severity:<9}", fg=_COLOURS[trouble.severity], nl=False)
        click.echo(printable(trouble.title))
        if trouble.text:
            click.echo(f"         {printable(trouble.text)}")
        if trouble.hint:
            click.echo(f"         HINT: {printable(trouble.hint)}")
    if not health.troubles:
        click.secho("\nall is well", fg="green")


def _id(fact: Fact | None) -> str:
    return fact.backup_id if fact else "none"


def _age(one: KindHealth) -> str:
    if one.age is None:
        return "-"
    limit = f" of {lasting(one.limit)}" if one.limit else ""
    return f"{lasting(one.age)}{limit}{'  STALE' if one.stale else ''}"


def _same(fact: Fact | None, one: KindHealth) -> str:
    if fact is None:
        return "-"
    return "yes" if one.newest is not None and fact.backup_id == one.newest.backup_id else _id(fact)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
