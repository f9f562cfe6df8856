"""``kyb-backup offsite fetch``: bring a backup back from its copy."""

import json
from pathlib import Path

import click

from kyb_backup_pipeline.cli.offsite_places import target_option
from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.errors import InvalidRequest
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import Repository


@click.command(
    epilog="""\b
Examples:
  kyb-backup offsite fetch backup_20260131_020000
  kyb-backup offsite fetch incr_20260131_063000 --chain     (with its base and what is in between)
  kyb-backup offsite fetch ID --into /mnt/usb/ID --target second-site"""
)
@click.argument("backup_id", metavar="ID")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder. Default: the repository.",
)
@click.option("--chain", is_flag=True, help="Also what a recovery to it needs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of what was fetched.")
@target_option
@with_session
def fetch(
    session: Session,
    backup_id: str,
    into: Path | None,
    chain: bool,
    as_json: bool,
    target: str | None,
) -> None:
    """Bring a backup back from its copy, to the byte as it was pushed.

    Every object and every file is held against the commit object, decrypted where it is encrypted; what does
    not match is refused, and nothing of it is published.
    """
    from kyb_backup_pipeline.engine.offsite_backup import holding, noting
    from kyb_backup_pipeline.engine.offsite_copy import find_copy
    from kyb_backup_pipeline.engine.offsite_fetch import chain_of, fetch_into, require_absent
    from kyb_backup_pipeline.engine.offsite_fetch import fetch as fetch_one

    if chain and into:
        raise InvalidRequest("--chain and --into contradict each other: a chain needs a repository")
    settings = session.settings()
    repository = Repository(settings.repository)
    fetched: list[dict[str, str]] = []
    where = f"offsite:{target}" if target else "offsite"
    with holding(settings, where, lambda t: find_copy(t, backup_id), utc_now()) as (place, copy):
        if into is not None:
            with session.reporting() as report, noting(place, copy):
                fetched.append({"id": backup_id, "folder": str(
                    fetch_into(settings, place.target, copy, into, report=report))})  # fmt: skip
        else:
            repository.create()
            copies = chain_of(place.target, copy) if chain else [copy]
            missing = [one for one in copies if not _has(repository, one.backup_id)]
            if copy not in missing:
                require_absent(repository, copy.backup_id)
            for one in missing:
                with session.reporting() as report, noting(place, one):
                    backup = fetch_one(settings, place.target, one, now=utc_now(), report=report)
                fetched.append({"id": one.backup_id, "folder": str(backup.folder)})
                click.echo(f"{one.backup_id} is in {backup.folder}", err=True)
    if as_json:
        click.echo(json.dumps(fetched, indent=2))
    elif into is not None:
        click.echo(f"{backup_id} is in {into}", err=True)


def _has(repository: Repository, backup_id: str) -> bool:
    return any(
        (repository.folder(kind) / backup_id / "backup_metadata.json").exists() for kind in FOLDERS
    )
