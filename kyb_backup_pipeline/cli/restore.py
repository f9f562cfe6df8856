"""``kyb-backup restore point-in-time``: bring back what was backed up."""

import json
import sys
from pathlib import Path

import click

from kyb_backup_pipeline.cli.restore_database import database, replaced, rollback
from kyb_backup_pipeline.cli.restore_files import application, configuration, repair
from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.point_in_time import Outcome, recover_into
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan, parse_moment, plan_recovery
from kyb_backup_pipeline.engine.store import Repository


@click.group(name="restore")
def command() -> None:
    """Bring back what was backed up."""


for _verb in (database, rollback, replaced, configuration, application, repair):
    command.add_command(_verb)


@command.command(
    name="point-in-time",
    epilog="""\b
Examples:
  kyb-backup restore point-in-time --at latest --into /var/lib/postgresql/18/recovered --dry-run
  kyb-backup restore point-in-time --at "2026-01-31 14:55:00+00:00" --into /srv/recovered
  kyb-backup restore point-in-time --at 0/3000028 --into /srv/recovered""",
)
@click.option("--at", required=True, metavar="TIME|LSN|latest", help="A time without zone is UTC.")
@click.option(
    "--into",
    required=True,
    type=click.Path(path_type=Path),
    help="The data folder to make; it must not exist.",
)
@click.option("--timeline", type=int, help="Which one, where a promotion left two.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and outcome as JSON.")
@with_session
def point_in_time(
    session: Session,
    at: str,
    into: Path,
    timeline: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Recover the whole cluster, as it was at a moment, into a new data folder.

    Unpacks the newest base backup that leads there, replays the WAL up to the moment, looks for the
    markers that must be there and must not, and stops the server: start it when you are ready. The
    running server and existing folders are never touched. A moment outside of what the repository
    covers is refused (exit 12).
    """
    settings = session.settings()
    plan = plan_recovery(Repository(settings.repository), parse_moment(at, timeline))
    if dry_run or not as_json:
        _show(plan, into, as_json)
    if dry_run:
        return
    if sys.stdin.isatty() and not yes and not click.confirm(f"Recover into {into}?", err=True):
        raise Refused("not confirmed: nothing was done")
    with session.reporting() as report:
        outcome = recover_into(settings, plan, into, now=utc_now(), report=report)
    _tell(plan, outcome, as_json)


def _show(plan: RecoveryPlan, into: Path, as_json: bool) -> None:
    base = plan.base
    segments = len(plan.segments)
    if as_json:
        click.echo(json.dumps(_document(plan, into), indent=2))
        return
    click.echo(f"target        {plan.moment}")
    click.echo(f"base backup   {base.backup_id}, {size(base.uncompressed_size or 0)} unpacked")
    click.echo(f"WAL           up to {segments} segments, timeline {plan.timeline}")
    click.echo(f"covered       {plan.coverage}")
    click.echo(f"into          {into}")


def _document(plan: RecoveryPlan, into: Path) -> dict[str, object]:
    return {
        "target": str(plan.moment),
        "base": plan.base.backup_id,
        "segments": len(plan.segments),
        "timeline": plan.timeline,
        "covered_from": plan.coverage.since.isoformat(),
        "covered_to": plan.coverage.until.isoformat(),
        "into": str(into),
    }


def _tell(plan: RecoveryPlan, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        document = _document(plan, outcome.folder) | {
            "position": outcome.position,
            "seconds": round(outcome.seconds, 3),
            "markers_committed": outcome.markers.committed,
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(
        f"recovered to {outcome.position} in {outcome.seconds:.1f} s; "
        f"{outcome.markers.committed} markers before it are committed"
    )
    aside = outcome.folder / "postgresql.auto.conf.of_source"
    if aside.exists():
        click.echo(f"what ALTER SYSTEM had set on the source is in {aside}: look before you use it")
    click.echo(f"start it with PostgreSQL {outcome.major}: pg_ctl -D {outcome.folder} start")
