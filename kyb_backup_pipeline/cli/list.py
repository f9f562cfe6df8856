"""``kyb-backup list``: what backups there are, and how far each is proved."""

import json
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.backup import FOLDERS, Backup
from kyb_backup_pipeline.engine.printable import printable
from kyb_backup_pipeline.engine.recovery_plan import coverages
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import ranges

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_standing import PlaceStanding
    from kyb_backup_pipeline.engine.settings import Settings

_RESTORE_TESTED = ("full", "base", "incremental")


@click.command(
    name="list",
    epilog="""\b
Examples:
  kyb-backup list
  kyb-backup list --kind full --json | jq -r '.[0].id'""",
)
@click.option("--kind", type=click.Choice(list(FOLDERS)), help="Only this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@with_session
def command(session: Session, kind: str | None, as_json: bool) -> None:
    """Show what backups there are, the newest first, and how far each is proved.

    A folder without a complete manifest is not a backup and is not listed; it is named on stderr.
    """
    settings = session.settings()
    repository = Repository(settings.repository)
    kinds = [name for name in FOLDERS if kind in (None, name)]
    backups = [backup for backup in repository.backups(kinds) if kind in (None, backup.kind)]
    places = _places(settings)
    lines = [_line(repository, backup, places) for backup in backups]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
    elif lines:
        _table(lines, copies=bool(places))
    else:
        click.echo(f"no backups in {repository.root}")
    if kind in (None, "base", "incremental"):
        for coverage in coverages(repository)[
            :1
        ]:  # the newest base: what counts for a recovery now
            if not coverage.missing:
                continue
            click.echo(
                f"WAL missing behind {coverage.base.backup_id}: {ranges(coverage.missing)}; "
                f"recovery is covered from {coverage}",
                err=True,
            )
    for leftover in repository.leftovers():
        what = "left by a run that was killed" if leftover.partial else "has no manifest"
        click.echo(f"not a backup: {leftover.folder} ({what})", err=True)


def _places(settings: "Settings") -> "tuple[PlaceStanding, ...]":
    """The off-site places, as they were seen last: no network is asked."""
    from kyb_backup_pipeline.engine.offsite_standing import standings_of
    from kyb_backup_pipeline.engine.offsite_view import views_of

    return standings_of(settings.offsite, views_of(settings.repository, settings.offsite))


def _line(
    repository: Repository, backup: Backup, places: "tuple[PlaceStanding, ...]"
) -> dict[str, Any]:
    proofs = repository.records.latest(backup.backup_id)
    manifest = backup.manifest
    line: dict[str, Any] = {
        "id": backup.backup_id,
        "kind": backup.kind,
        "finished_at": manifest.completed_at.isoformat() if manifest else None,
        "size_bytes": manifest.total_size if manifest else None,
        "verification": proofs["verification"].verdict if "verification" in proofs else None,
        "restore_test": proofs["restore_test"].verdict if "restore_test" in proofs else None,
        "offsite": [place.name for place in places if place.state(backup.backup_id)],
    }
    if manifest and manifest.label:
        line["label"] = manifest.label
    if backup.problem:
        line["problem"] = backup.problem
    return line


def _table(lines: list[dict[str, Any]], *, copies: bool) -> None:
    header = ("ID", "KIND", "FINISHED (UTC)", "SIZE", "VERIFICATION", "RESTORE TEST",
              "OFF-SITE" if copies else "", "")  # fmt: skip
    rows = [
        (
            line["id"],
            line["kind"],
            (line["finished_at"] or "damaged")[:19].replace("T", " "),
            "" if line["size_bytes"] is None else size(line["size_bytes"]),
            _state(line["verification"]),
            _state(line["restore_test"]) if line["kind"] in _RESTORE_TESTED else "",
            ", ".join(line["offsite"]) or "none" if copies else "",
            printable(line.get("problem") or line.get("label", "")),
        )
        for line in lines
    ]
    widths = [max(len(str(row[n])) for row in [header, *rows]) for n in range(len(header))]
    for row in [header, *rows]:
        text = "  ".join(
            cell.rjust(width) if n == 3 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        bad = row is not header and "failed" in (row[4], row[5])
        click.secho(text, bold=row is header, fg="red" if bad else None)


def _state(verdict: str | None) -> str:
    return "not yet" if verdict is None else verdict.replace("_", " ")
