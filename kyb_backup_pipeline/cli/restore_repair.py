"""``kyb-backup restore repair``: what killed restores left."""

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.cluster_restore import repair_cluster
from kyb_backup_pipeline.engine.database_restore import repair_database
from kyb_backup_pipeline.engine.file_repair import repair_all
from kyb_backup_pipeline.engine.recovery_journal import Journals
from kyb_backup_pipeline.engine.restore_outlook import restoring_target


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore repair"""
)
@click.option("--without-service", is_flag=True, help="Do not stop and start the service.")
@with_session
def repair(session: Session, without_service: bool) -> None:
    """Finish what a killed restore left, and start the service.

    Files: the old state is put back. The database, and the whole cluster: a restore that was killed
    before the swap is undone (what is live was never touched), one that was killed behind it is complete.
    """
    settings = session.settings()
    said = repair_all(settings, service=not without_service)
    said += repair_cluster(settings, service=not without_service)
    if Journals.of(settings).all(restoring_target(settings)):
        said += repair_database(settings, service=not without_service)
    for text in said:
        click.echo(text)
    if not said:
        click.echo("there is nothing to repair")
