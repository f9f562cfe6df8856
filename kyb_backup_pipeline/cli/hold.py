"""``kyb-backup hold``: keep a backup from being deleted until a day."""

import json

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.backup import valid_id
from kyb_backup_pipeline.engine.errors import InvalidRequest
from kyb_backup_pipeline.engine.holds import Hold, Holds, caller, parse_until
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import Repository


@click.command(
    name="hold",
    epilog="""\b
Examples:
  kyb-backup hold                       (what is held)
  kyb-backup hold ID --until 2026-12-31 --why "the audit asks for it"
  kyb-backup hold ID --release""",
)
@click.argument("backup_id", metavar="ID", required=False)
@click.option("--until", help="A day, which counts to its end, or a time; UTC.")
@click.option("--why", help="The reason, for whoever sees it in the plan.")
@click.option("--release", is_flag=True, help="Let it go again.")
@click.option("--json", "as_json", is_flag=True, help="Print the holds as JSON.")
@with_session
def command(
    session: Session,
    backup_id: str | None,
    until: str | None,
    why: str | None,
    release: bool,
    as_json: bool,
) -> None:
    """Keep a backup from being deleted until a day, whatever its age.

    With an increment its base backup and the WAL between stay. Without an id it lists what is held.
    """
    repository, now = Repository(session.settings().repository), utc_now()
    holds = Holds(repository.root)
    if backup_id is None:
        if until or why or release:
            raise InvalidRequest("which backup?", hint="kyb-backup hold ID --until DATE --why TEXT")
        repository.require_whole()
        _list(holds.all(), as_json)
        return
    valid_id(backup_id)
    with repository.deleting(now):  # a prune that runs may have it in mind already
        if release:
            if until or why:
                raise InvalidRequest("--release goes alone")
            holds.release(backup_id)
            click.echo(f"{backup_id} is not held any more")
            return
        if not until or not why or not why.strip():
            raise InvalidRequest("a hold needs --until and --why", hint="kyb-backup hold --help")
        repository.find(backup_id)
        hold = Hold(backup_id=backup_id, until=parse_until(until, now), why=" ".join(why.split()),
                    by=caller(), placed_at=now)  # fmt: skip
        holds.place(hold)
    click.echo(f"{backup_id} is {hold}")


def _list(holds: list[Hold], as_json: bool) -> None:
    now = utc_now()
    if as_json:
        lines = [{**h.model_dump(mode="json"), "in_force": h.in_force(now)} for h in holds]
        click.echo(json.dumps(lines, indent=2))
        return
    for hold in holds:
        over = "" if hold.in_force(now) else "  (over: it holds nothing)"
        by = f"  ({hold.by})" if hold.by else ""
        click.echo(f"{hold.backup_id}  {hold}{by}{over}")
    if not holds:
        click.echo("nothing is held")
