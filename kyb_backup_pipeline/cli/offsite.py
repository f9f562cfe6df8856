"""``kyb-backup offsite``: copies of backups in other places; each verb has a module of its own."""

import click

from kyb_backup_pipeline.cli.offsite_fetch import fetch
from kyb_backup_pipeline.cli.offsite_look import list_, verify
from kyb_backup_pipeline.cli.offsite_prune import prune
from kyb_backup_pipeline.cli.offsite_push import push


@click.group(name="offsite")
def command() -> None:
    """Copies of backups in another place: object storage, another disk, a mounted share.

    offsite.url names the place, offsite.targets more of them (docs/settings.md). Data go first, and the
    commit object of a copy last: what was cut in the middle is never listed, and is gone on with by the next push.
    """


for _verb in (push, list_, fetch, verify, prune):
    command.add_command(_verb)
