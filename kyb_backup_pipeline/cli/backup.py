"""``kyb-backup backup full|base|incremental|application|configuration``: take a backup now."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import Manifest, utc_now
from kyb_backup_pipeline.engine.request import Request

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.settings import Settings


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


@command.command(
    epilog="""\b
Examples:
  kyb-backup backup application --deployment v4.13.0
  kyb-backup backup application --deployment "$CI_COMMIT_TAG" || exit 1     (stop the deployment)
  kyb-backup backup application --deployment v4.13.0 --json | jq -r .backup_id""",
)
@click.option(
    "--deployment", required=True, help="Before which deployment this is: a version, a tag."
)
@click.option(
    "--id", "backup_id", envvar="BACKUP_ID", help="Its id. Default: app_backup_<UTC time>."
)
@click.option("--label", help="A few words that are kept with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@with_session
def application(
    session: Session, deployment: str, backup_id: str | None, label: str | None, as_json: bool
) -> None:
    """Archive the application's state before a deployment: configuration, feature flags, sessions, logs.

    Everything is encrypted on its way to the disk. Ends with 0 only if the backup is complete, so a
    deploy script can stop on anything else (8: another one is being taken at this moment).
    """
    from kyb_backup_pipeline.engine.file_backup import take_application_backup

    def take(settings: "Settings", request: Request, **more: Any) -> Backup:
        return take_application_backup(settings, request, deployment, **more)

    manifest = _take(session, take, backup_id, label, as_json)
    if not as_json:
        parts = [name.replace("_", " ") for name, there in manifest.components.items() if there]
        click.echo(f"before deployment {manifest.deployment}: {', '.join(parts)}")
        _tell_archives(manifest)


@command.command(
    epilog="""\b
Examples:
  kyb-backup backup configuration
  kyb-backup backup configuration --label "before the move" --json""",
)
@click.option(
    "--id", "backup_id", envvar="BACKUP_ID", help="Its id. Default: config_backup_<UTC time>."
)
@click.option("--label", help="A few words that are kept with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@with_session
def configuration(
    session: Session, backup_id: str | None, label: str | None, as_json: bool
) -> None:
    """Archive environment files, configuration, deployments and secrets, encrypted.

    What is taken: configuration.include and exclude, patterns as in .gitignore. No plain text ever
    touches the disk. Where the host has the key, "verify" opens the archive and compares every file.
    """
    from kyb_backup_pipeline.engine.file_backup import take_configuration_backup

    manifest = _take(session, take_configuration_backup, backup_id, label, as_json)
    if not as_json:
        _tell_archives(manifest)


def _tell_archives(manifest: Manifest) -> None:
    for archive in manifest.archives:
        held = f"{archive.members} members, {size(archive.content_bytes)}"
        click.echo(f"{archive.path}: {held}, encrypted with {archive.encryption}")
    click.echo(f"in {manifest.backup_file.rpartition('/')[0]}")


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
