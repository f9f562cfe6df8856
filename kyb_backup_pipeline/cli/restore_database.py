"""``kyb-backup restore database|rollback|replaced``: the database back, and the way back from there."""

import json
import sys
from datetime import timedelta
from typing import Any

import click

from kyb_backup_pipeline.cli.offsite_places import chosen_backup, copies_to_choose, from_option
from kyb_backup_pipeline.cli.session import Session, say, size, with_session
from kyb_backup_pipeline.engine.database_restore import DatabaseRestore
from kyb_backup_pipeline.engine.errors import InvalidRequest, NotFound, Refused
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_journal import Journal
from kyb_backup_pipeline.engine.replaced import drop_replaced, last_swapped, replaced_databases
from kyb_backup_pipeline.engine.restore_outlook import Outlook, Wish, look_ahead
from kyb_backup_pipeline.engine.rollback import roll_back
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.stepped import Stepped
from kyb_backup_pipeline.engine.store import Repository


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore database                                  (shows what there is)
  kyb-backup restore database backup_20260131_020000 --dry-run
  kyb-backup restore database backup_20260131_020000
  kyb-backup restore database backup_20260131_020000 --into kyb_look --table users --table kyb.cases
  kyb-backup restore database backup_20260131_020000 --from offsite     (no repository is needed)"""
)
@click.argument("backup_id", metavar="[ID]", required=False)
@click.option("--into", metavar="NAME", help="Restore beside the live database, and stop there.")
@click.option(
    "--table", "tables", multiple=True, metavar="T", help="With --into: only these tables."
)
@from_option
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask for the database's name.")
@click.option("--without-safety-backup", is_flag=True, help="Do not back up what is there now.")
@click.option("--without-service", is_flag=True, help="Do not stop and start the service.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and journal as JSON.")
@with_session
def database(
    session: Session,
    backup_id: str | None,
    into: str | None,
    tables: tuple[str, ...],
    where: str | None,
    dry_run: bool,
    yes: bool,
    without_safety_backup: bool,
    without_service: bool,
    as_json: bool,
) -> None:
    """Bring a full backup back, in the place of the live database or beside it.

    The backup is verified, what is there now is backed up, and the dump is loaded into a new database
    and compared with what the source held. Only then the service is stopped and the names are swapped.
    The old database stays ("restore replaced" lists it, "restore rollback" puts it back). If anything
    fails the old database is in place, and the service runs.

    With --from offsite the dump is streamed out of its copy, and judged before anything is swapped in; one in
    directory format is fetched into a temporary folder first.
    """
    settings = session.settings()
    if backup_id is None:
        _list(settings, where)
    wish = Wish(into=into, tables=tables, safety_backup=not without_safety_backup,
                service=not without_service)  # fmt: skip
    with chosen_backup(settings, where, str(backup_id)) as backup:
        outlook = look_ahead(settings, backup, wish, now=utc_now())
        if dry_run or not as_json:
            _show(outlook, wish, as_json)
        if dry_run:
            return
        if into is None and not yes:
            confirm(settings.database.name)
        with (
            session.reporting() as report,
            DatabaseRestore.begin(settings, backup, wish, now=utc_now(), report=report) as restore,
        ):
            run_steps(restore, quiet=as_json)
            journal = restore.finish()
    _tell(journal, outlook, as_json)


def run_steps(restore: Stepped[Any], *, quiet: bool) -> None:
    """Run each step, with a line for it."""
    for name in restore.steps:
        say("" if quiet else f"• {name}", nl=False)
        step = restore.step(name)
        if not quiet:
            say(f"  {step.seconds or 0:.1f} s  {step.detail}")


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore rollback
  kyb-backup restore rollback --yes          (in a script)"""
)
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask for the database's name.")
@click.option("--without-service", is_flag=True, help="Do not stop and start the service.")
@with_session
def rollback(session: Session, dry_run: bool, yes: bool, without_service: bool) -> None:
    """Put the database back that the last restore replaced.

    The restored one stays too, under another name. What was written since the restore is in that one.
    """
    settings = session.settings()
    journal = last_swapped(settings)
    when = journal.finished_at or journal.began_at
    click.echo(
        f"{journal.database!r} was restored from {journal.backup_id} at {when:%Y-%m-%d %H:%M:%S} UTC"
    )
    click.echo(f"{journal.replaced_name!r} takes its place again")
    if dry_run:
        return
    if not yes:
        confirm(settings.database.name)
    aside = roll_back(settings, journal, service=not without_service)
    click.echo(f"rolled back; what had been restored is {aside!r} now")


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore replaced
  kyb-backup restore replaced --drop kyb_platform_replaced_20260131120000"""
)
@click.option("--drop", metavar="NAME", help="Drop this one for good.")
@click.option("--yes", is_flag=True, help="Do not ask for its name.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@with_session
def replaced(session: Session, drop: str | None, yes: bool, as_json: bool) -> None:
    """Show the databases that restores replaced, or drop one of them."""
    settings = session.settings()
    if drop is not None:
        if not yes:
            confirm(drop)
        gone = drop_replaced(settings, drop)
        click.echo(f"{gone.name!r} dropped, {size(gone.bytes)}")
        return
    found = replaced_databases(settings)
    if as_json:
        lines = [{"name": r.name, "oid": r.oid, "size_bytes": r.bytes, "backup": r.by_backup,
                  "replaced_at": r.replaced_at.isoformat()} for r in found]  # fmt: skip
        click.echo(json.dumps(lines, indent=2))
        return
    for one in found:
        age = utc_now() - one.replaced_at
        click.echo(
            f"{one.name}  {size(one.bytes)}  {age.days} days old, by the restore of {one.by_backup}"
        )
    if not found:
        click.echo("no database is left that a restore replaced")


def _list(settings: Settings, where: str | None) -> None:
    """Show what could be restored, and ask which. Raises NotFound, InvalidRequest."""
    if where is not None:
        for line in copies_to_choose(settings, where, "full"):
            click.echo(line, err=True)
        raise InvalidRequest("which one?", hint="name one of those above")
    repository = Repository(settings.repository)
    backups = [b for b in repository.backups(("full",)) if b.manifest is not None]
    for backup in backups:
        manifest = backup.require_manifest()
        proofs = repository.records.latest(backup.backup_id)
        tested = proofs["restore_test"].verdict if "restore_test" in proofs else "not yet"
        click.echo(
            f"{backup.backup_id}  {manifest.completed_at:%Y-%m-%d %H:%M:%S} UTC  "
            f"{size(manifest.total_size)}  restore test: {tested.replace('_', ' ')}",
            err=True,
        )
    if not backups:
        raise NotFound(f"no full backup in {repository.root}")
    raise InvalidRequest("which one?", hint="name one of those above")


def confirm(name: str) -> None:
    """Let a person type ``name``. Raises Refused."""
    if not sys.stdin.isatty():
        raise Refused("not confirmed: nothing was done", hint="--yes, in scripts")
    typed = click.prompt(f"Type {name} to go on", default="", show_default=False, err=True)
    if typed != name:
        raise Refused(f"{typed!r} is not {name!r}: nothing was done")


def _show(outlook: Outlook, wish: Wish, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {
            "id": outlook.backup_id, "target": outlook.target, "into": outlook.into,
            "taken_at": outlook.taken_at.isoformat(), "age_seconds": round(outlook.age_seconds),
            "rows_then": outlook.rows_then, "rows_now": outlook.rows_now,
            "bytes_then": outlook.bytes_then, "bytes_now": outlook.bytes_now,
            "new_roles": outlook.new_roles, "roles_without_password": outlook.roles_without_password,
            "room": outlook.room, "needed": outlook.needed, "leftovers": outlook.leftovers,
            "from": outlook.source,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    age = timedelta(seconds=round(outlook.age_seconds))
    lines = {
        "backup": outlook.backup_id,
        "from": outlook.source,
        "holds": f"what was there at {outlook.taken_at:%Y-%m-%d %H:%M:%S} UTC, {age} ago",
        "target": f"{outlook.target}, PostgreSQL {outlook.server_version}",
        "rows": f"{_number(outlook.rows_then)} then, about {_number(outlook.rows_now)} now",
        "size": f"{_size(outlook.bytes_then)} then, {_size(outlook.bytes_now)} now",
        "new roles": ", ".join(outlook.new_roles),
        "no password": ", ".join(outlook.roles_without_password),
        "left over": ", ".join(outlook.leftovers),
        "into": f"{outlook.into}, beside the live database" if outlook.into else
        "its place; the old database stays, under another name",
    }  # fmt: skip
    for title, text in lines.items():
        if text:
            click.echo(f"{title:<12} {text}")
    for note in outlook.notes:
        click.echo(f"{'note':<12} {note}")
    if wish.into is None and outlook.bytes_now is not None:
        saved = "is backed up first" if wish.safety_backup else "is NOT backed up first"
        click.echo(f"{'safety':<12} what is there now {saved}")


def _tell(journal: Journal, outlook: Outlook, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(journal.model_dump(mode="json", exclude_none=True), indent=2))
        return
    seconds = ((journal.finished_at or journal.began_at) - journal.began_at).total_seconds()
    click.echo(f"\nrestored in {seconds:.1f} s")
    if journal.interruption_seconds is not None:
        click.echo(
            f"interrupted for {journal.interruption_seconds:.1f} s, from the service's stop to the swap"
        )
    if journal.into is None and journal.old_oid is not None:
        click.echo(f"the old database is {journal.replaced_name!r}: kyb-backup restore rollback, "
                   "or drop it with kyb-backup restore replaced --drop")  # fmt: skip
    for role in outlook.roles_without_password:
        click.echo(f"set a password: ALTER ROLE {role} PASSWORD '...'")
    for note in journal.notes:
        click.echo(f"note: {note}")


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _size(value: int | None) -> str:
    return "unknown" if value is None else size(value)
