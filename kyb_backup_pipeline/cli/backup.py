"""``kyb-backup backup full``: take a backup now."""

import json

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.full_backup import Request, take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now


@click.group(name="backup")
def command() -> None:
    """Take a backup now."""


@command.command(
    epilog="""\b
Examples:
  kyb-backup backup full
  kyb-backup backup full --id before_migration_42 --label "before migration 42"
  BACKUP_ID="manual_$(date +%Y%m%d_%H%M%S)" kyb-backup backup full
  BACKUP_DIR=/custom/backup/location kyb-backup backup full"""
)
@click.option("--id", "backup_id", envvar="BACKUP_ID", help="Its id. Default: backup_<UTC time>.")
@click.option("--label", help="A few words that are kept with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@with_session
def full(session: Session, backup_id: str | None, label: str | None, as_json: bool) -> None:
    """Dump the whole database, with evidence of what it held at that moment.

    Checks connection, programs and room first. Nothing is listed until it is complete. Prove it with
    "verify" (the files) and "drill" (a real restore, compared with the source).
    """
    settings = session.settings()
    with session.reporting() as report:
        backup = take_full_backup(
            settings,
            Request(backup_id=backup_id or None, label=label),
            now=utc_now(),
            report=report,
        )
    manifest = backup.require_manifest()
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2))
        return
    seconds = (manifest.completed_at - (manifest.started_at or manifest.timestamp)).total_seconds()
    click.echo(f"{backup.backup_id}: {size(manifest.total_size)} in {seconds:.1f} s")
    evidence = manifest.evidence
    if evidence is not None and evidence.mode == "content":
        click.echo(
            f"evidence: {evidence.rows} rows in {evidence.tables} tables, {evidence.objects} objects"
        )
    click.echo(f"in {backup.folder}")
