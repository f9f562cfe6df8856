"""``kyb-backup restore``: bring back what was backed up."""

import click

from kyb_backup_pipeline.cli.restore_cluster import point_in_time
from kyb_backup_pipeline.cli.restore_database import database, replaced, rollback
from kyb_backup_pipeline.cli.restore_files import application, configuration
from kyb_backup_pipeline.cli.restore_repair import repair


@click.group(name="restore")
def command() -> None:
    """Bring back what was backed up."""


for _verb in (database, rollback, replaced, point_in_time, configuration, application, repair):
    command.add_command(_verb)
