"""``kyb-backup restore repair``: what killed restores left."""

from collections.abc import Callable

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.cluster_settle import repair_cluster
from kyb_backup_pipeline.engine.database_settle import repair_database
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.file_repair import repair_all
from kyb_backup_pipeline.engine.recovery_journal import Journals
from kyb_backup_pipeline.engine.restore_outlook import restoring_target


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore repair"""
)
@click.option("--without-service", is_flag=True, help="Do not stop and start the service.")
@click.option(
    "--of-machine", "machines", multiple=True, metavar="NAME",
    help="Act in the stead of a machine (or container) that is gone, too.",
)  # fmt: skip
@with_session
def repair(session: Session, without_service: bool, machines: tuple[str, ...]) -> None:
    """Finish what a killed restore left, and start the service.

    Files: the old state is put back. The database, and the whole cluster: a restore that was killed
    before the swap is undone (what is live was never touched), one that was killed behind it is complete.
    A restore that is at work is left alone, and what another machine had stopped is that machine's.
    """
    settings = session.settings()
    service = not without_service
    repairs: list[Callable[[], list[str]]] = [
        lambda: repair_all(settings, service=service),
        lambda: repair_cluster(settings, service=service, machines=machines),
    ]
    if any(
        not journal.settled for journal in Journals.of(settings).all(restoring_target(settings))
    ):
        repairs.append(lambda: repair_database(settings, service=service, machines=machines))
    said: list[str] = []
    failed: list[KybError] = []
    for each in repairs:  # one that cannot be done does not keep the others from it
        try:
            said += each()
        except KybError as error:
            failed.append(error)
    for text in said:
        click.echo(text)
    for further in failed[1:]:
        click.echo(f"error: {further.message}", err=True)
    if failed:
        raise failed[0]
    if not said:
        click.echo("there is nothing to repair")
