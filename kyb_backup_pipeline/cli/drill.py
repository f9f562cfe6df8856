"""``kyb-backup drill``: a restore test, compared with what the source held."""

import json
import sys

import click

from kyb_backup_pipeline.cli.offsite_places import chosen_backup, from_option
from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.cli.show import show_proof
from kyb_backup_pipeline.cli.verify import exit_code
from kyb_backup_pipeline.engine.errors import InvalidRequest
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_drill import drill_point_in_time
from kyb_backup_pipeline.engine.recovery_plan import parse_moment
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup


@click.command(
    name="drill",
    epilog="""\b
Examples:
  kyb-backup drill                  (the newest full backup)
  kyb-backup drill backup_20260131_020000 --json
  kyb-backup drill --from offsite   (the newest copy, streamed from there)
  kyb-backup drill --at latest      (base backup and WAL, to the last marker)
  kyb-backup drill --at "2026-01-31 02:00:00+00:00"
  kyb-backup drill --at 0/3000028""",
)
@click.argument("backup_id", metavar="[ID]", required=False)
@click.option("--at", metavar="TIME|LSN|latest", help="Test a point-in-time recovery instead.")
@click.option("--timeline", type=int, help="With --at: which one, where a promotion left two.")
@from_option
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
@with_session
def command(
    session: Session,
    backup_id: str | None,
    at: str | None,
    timeline: int | None,
    where: str | None,
    as_json: bool,
) -> None:
    """Restore a backup on a throwaway server and compare it with what its source held.

    The source server is not touched. Every table's rows and content, every object, sequences, roles
    and large objects are compared with the evidence that was taken in the snapshot of the dump.
    With --at a base backup and the WAL behind it are recovered to that moment: the markers that were
    committed before it must be there, those behind it must not, and every table is read.
    With --from offsite it is the copy that is tested; neither the source server nor a repository with backups
    in it is needed, only the key. The record is kept in the repository's folder.
    Exits with 6 if the backup is bad, with 10 if this machine lacks what the test needs.
    """
    if backup_id and at:
        raise InvalidRequest("an id and --at contradict each other: --at finds its own base backup")
    if where and at:
        raise InvalidRequest("--from and --at contradict each other",
                             hint="kyb-backup offsite fetch ID --chain, then drill --at")  # fmt: skip
    settings = session.settings()
    with session.reporting() as report:
        if at:
            proof = drill_point_in_time(
                settings, parse_moment(at, timeline), now=utc_now(), report=report
            )
        else:
            with chosen_backup(settings, where, backup_id) as backup:
                if backup.kind in ("base", "incremental"):
                    raise InvalidRequest(
                        f"{backup_id} is a backup of kind {backup.kind}",
                        hint="kyb-backup drill --at latest, or --at with a time or position",
                    )
                proof = drill_full_backup(settings, backup, now=utc_now(), report=report)
    if as_json:
        click.echo(json.dumps(proof.model_dump(mode="json", exclude_none=True), indent=2))
    else:
        show_proof(proof)
    sys.exit(exit_code([proof]))
