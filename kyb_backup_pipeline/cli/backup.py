"""``kyb-backup backup full|base|incremental``: take a backup now."""

import json
from collections.abc import Callable

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.full_backup import Request, take_full_backup
from kyb_backup_pipeline.engine.manifest import Manifest, utc_now
from kyb_backup_pipeline.engine.store import Backup


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
    manifest = _take(session, take_full_backup, backup_id, label, as_json)
    if as_json:
        return
    evidence = manifest.evidence
    if evidence is not None and evidence.mode == "content":
        click.echo(
            f"evidence: {evidence.rows} rows in {evidence.tables} tables, {evidence.objects} objects"
        )
    click.echo(f"in {manifest.backup_file.rpartition('/')[0]}")


@command.command(
    epilog="""\b
Examples:
  kyb-backup backup base
  kyb-backup backup base --id base_before_upgrade --label "before the upgrade" """,
)
@click.option("--id", "backup_id", envvar="BACKUP_ID", help="Its id. Default: base_<UTC time>.")
@click.option("--label", help="A few words that are kept with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@with_session
def base(session: Session, backup_id: str | None, label: str | None, as_json: bool) -> None:
    """Copy the files of the whole cluster, so that WAL can be replayed on them.

    The role needs REPLICATION, and pg_hba.conf a line for replication. With wal.source = "slot" the
    replication slot is made first, and refused where nothing bounds it. Prove it with "verify", and
    with "drill --at latest" (a recovery on a throwaway server).
    """
    from kyb_backup_pipeline.engine.base_backup import take_base_backup

    manifest = _take(session, take_base_backup, backup_id, label, as_json)
    if not as_json:
        wal = manifest.require_wal()
        click.echo(f"consistent from {wal.end_lsn} on timeline {wal.timeline}")
        click.echo(f"in {manifest.backup_file.rpartition('/')[0]}")


@command.command(
    epilog="""\b
Examples:
  kyb-backup backup incremental
  kyb-backup backup incremental --json | jq .wal.end_lsn""",
)
@click.option("--id", "backup_id", envvar="BACKUP_ID", help="Its id. Default: incr_<UTC time>.")
@click.option("--label", help="A few words that are kept with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@with_session
def incremental(session: Session, backup_id: str | None, label: str | None, as_json: bool) -> None:
    """Bring the WAL up to this moment into the repository, on the newest base backup.

    Commits a marker transaction, closes the segment, brings everything up to it in, and proves that
    the chain from the base to here has no hole. Prove a recovery with "drill --at latest".
    """
    from kyb_backup_pipeline.engine.incremental import take_incremental_backup

    manifest = _take(session, take_incremental_backup, backup_id, label, as_json)
    if not as_json:
        wal = manifest.require_wal()
        click.echo(f"{len(wal.segments)} segments up to {wal.end_lsn}, on {wal.base}")
        for note in manifest.notes:
            click.echo(note)
        if wal.lag_bytes is not None:
            click.echo(f"the slot had kept {size(wal.lag_bytes)} on the server")


_Taker = Callable[..., Backup]


def _take(
    session: Session, take: _Taker, backup_id: str | None, label: str | None, as_json: bool
) -> Manifest:
    """Take a backup and say how large it is, or print its manifest."""
    settings = session.settings()
    request = Request(backup_id=backup_id or None, label=label)
    with session.reporting() as report:
        backup = take(settings, request, now=utc_now(), report=report)
    manifest = backup.require_manifest()
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2))
        return manifest
    seconds = (manifest.completed_at - (manifest.started_at or manifest.timestamp)).total_seconds()
    click.echo(f"{backup.backup_id}: {size(manifest.total_size)} in {seconds:.1f} s")
    return manifest
