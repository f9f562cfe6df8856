"""``kyb-backup prune``: delete what need not be kept, with the reason for each line."""

import json
import sys

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.retention import PRUNED, Decision, plan_retention, proved, prune
from kyb_backup_pipeline.engine.store import Repository


@click.command(
    name="prune",
    epilog="""\b
Examples:
  kyb-backup prune --dry-run
  kyb-backup prune --yes          (in a script)""",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@with_session
def command(session: Session, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete application states and configuration archives that need not be kept.

    Keeps the newest deployments (retention.application_deployments) and configuration archives by age
    (retention.configuration_days); never deletes the newest, nor the newest that was verified. Backups
    of the database are left alone. Records of proofs stay.
    """
    settings = session.settings()
    repository = Repository(settings.repository)
    backups = repository.backups(PRUNED)
    verified = {b.backup_id: proved(repository, b.backup_id) for b in backups}
    decisions = plan_retention(backups, verified, settings.retention, utc_now())
    doomed = [decision for decision in decisions if not decision.keep]
    _show(decisions, as_json)
    if dry_run or not doomed:
        return
    if not yes:
        question = f"Delete {len(doomed)} backups for ever?"
        if not sys.stdin.isatty() or not click.confirm(question, err=True):
            raise Refused("not confirmed: nothing was deleted", hint="--yes, in scripts")
    prune(repository, decisions)
    if not as_json:
        click.echo(f"{len(doomed)} deleted")


def _show(decisions: list[Decision], as_json: bool) -> None:
    if as_json:
        lines = [
            {"id": d.backup.backup_id, "kind": d.backup.kind, "keep": d.keep, "why": d.why}
            for d in decisions
        ]
        click.echo(json.dumps(lines, indent=2))
        return
    for decision in decisions:
        what = "keep  " if decision.keep else "delete"
        click.echo(f"{what}  {decision.backup.backup_id}  ({decision.why})")
    if not decisions:
        click.echo(
            "nothing to decide: there are no application states and no configuration archives"
        )
