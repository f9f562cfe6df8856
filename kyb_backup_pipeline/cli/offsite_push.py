"""``kyb-backup offsite push``: copy backups to the off-site places."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.offsite_places import each, target_option, told
from kyb_backup_pipeline.cli.session import Session, say, size, with_session
from kyb_backup_pipeline.engine.backup import FOLDERS, Backup
from kyb_backup_pipeline.engine.errors import InvalidRequest, KybError
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import Repository

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_lacking import Lacking
    from kyb_backup_pipeline.engine.offsite_opening import Place
    from kyb_backup_pipeline.engine.settings import Settings


@dataclass(frozen=True, kw_only=True)
class _How:
    """What was asked for."""

    everything: bool
    again: bool
    dry_run: bool
    as_json: bool
    doomed: Mapping[str, str]


@click.command(
    epilog="""\b
Examples:
  kyb-backup offsite push                    (the newest full backup)
  kyb-backup offsite push --all              (whatever has no copy yet, in cron)
  kyb-backup offsite push ID --target second-site
  kyb-backup offsite push ID --again         (make a damaged copy whole)"""
)
@click.argument("backup_ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Every backup that has no copy there, and that would be kept there.",
)
@click.option("--again", is_flag=True, help="Hold a copy against the backup, and mend it.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied, copy nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@target_option
@with_session
def push(
    session: Session,
    backup_ids: tuple[str, ...],
    everything: bool,
    again: bool,
    dry_run: bool,
    as_json: bool,
    target: str | None,
) -> None:
    """Copy backups to the off-site places.

    Each file is held against the manifest on its way; each object is proved, by the checksum that the service
    itself looked at or by reading it back. What is there is not sent twice. With encryption.database =
    "offsite" backups of the database are encrypted on their way.

    One backup that fails does not keep the next from being copied; the exit code is that of the first failure.
    """
    if everything and backup_ids:
        raise InvalidRequest("--all and ids contradict each other")
    from kyb_backup_pipeline.engine.offsite_retained import not_retained
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    repository = Repository(settings.repository)
    wanted = _wanted(repository, backup_ids, everything)
    doomed = not_retained(settings, wanted, utc_now()) if everything else {}
    how = _How(everything=everything, again=again, dry_run=dry_run, as_json=as_json, doomed=doomed)
    lines: list[dict[str, Any]] = []
    failed: list[KybError] = []
    for name in chosen(settings.offsite, target):
        with each(name, failed):
            _push_to(session, settings, name, wanted, how, lines, failed)
    if as_json:
        click.echo(json.dumps(lines, indent=2))
    if failed:
        sys.exit(failed[0].exit_code)


def _wanted(repository: Repository, ids: tuple[str, ...], everything: bool) -> list[Backup]:
    """Of all the oldest first, so that bases come before what is replayed on them."""
    if not everything:
        return [repository.find(i) for i in dict.fromkeys(ids)] or [repository.newest("full")]
    repository.require_whole()
    sound = (b for b in repository.backups(tuple(FOLDERS)) if b.manifest and b.folder.is_dir())
    return [b for b in reversed(list(sound)) if (b.folder / "backup_metadata.json").is_file()]


def _push_to(
    session: Session,
    settings: "Settings",
    name: str,
    wanted: list[Backup],
    how: "_How",
    lines: list[dict[str, Any]],
    failed: list[KybError],
) -> None:
    from kyb_backup_pipeline.engine.offsite_copy import list_copies
    from kyb_backup_pipeline.engine.offsite_lacking import lacking
    from kyb_backup_pipeline.engine.offsite_listing import look_over, told_apart
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_push import push as push_one
    from kyb_backup_pipeline.engine.offsite_push import push_records
    from kyb_backup_pipeline.engine.offsite_target import TargetMisconfigured, TargetUnreachable

    repository = Repository(settings.repository)
    with opened(settings, name, utc_now()) as place:
        if how.dry_run:
            lacks = lacking(wanted, told_apart(repository, list_copies(place.target)), how.doomed)
            lines += _would(lacks, place, how)
            return
        if how.everything:
            lacks = lacking(wanted, look_over(place, utc_now()), how.doomed)
            known = [backup.backup_id for backup in lacks.there]
            if known and not how.again:
                push_records(repository, place.target, known)
            wanted = [b for b in wanted if b in lacks.wanted or (how.again and b in lacks.there)]
            if lacks.said:
                click.echo(f"{place.target.url}: {lacks.said}", err=True)
        for backup in wanted:
            try:
                with session.reporting() as report:
                    done = push_one(
                        settings, place, backup, now=utc_now(), again=how.again, report=report
                    )
            except (TargetUnreachable, TargetMisconfigured):
                raise  # the next one would fail in the same way
            except KybError as error:
                failed.append(told(error, backup.backup_id))
                continue
            line = {"id": backup.backup_id, "target": name, "already": done.already, "sent": done.sent,
                    "found": done.found, "records": done.records, "seconds": round(done.seconds, 3),
                    "encryption": done.copy.encryption}  # fmt: skip
            lines.append(line)
            click.echo(_said(line, place), err=True)


def _would(lacks: "Lacking", place: "Place", how: _How) -> list[dict[str, Any]]:
    """What a push would do, a line for each."""
    url = place.target.url
    lines = []
    for backup in (*lacks.there, *lacks.wanted):
        there, total = backup in lacks.there, backup.require_manifest().total_size
        lines.append({"id": backup.backup_id, "target": place.target.name, "bytes": total, "there": there})  # fmt: skip
        said = f"would copy {backup.backup_id}, {size(total)}, to {url}"
        if there:
            more = ", and would be held against the backup" if how.again else ""
            said = f"{backup.backup_id} is in {url}{more}"
        elif backup.backup_id in lacks.problems:
            said = f"{backup.backup_id} in {url}: {lacks.problems[backup.backup_id]}"
        if not how.as_json:
            say(said)
    if lacks.said and not how.as_json:
        say(f"{url}: {lacks.said}")
    return lines


def _said(line: dict[str, Any], place: "Place") -> str:
    if line["already"]:
        return f"{line['id']} is in {place.target.url}"
    earlier = f", {size(line['found'])} were there" if line["found"] else ""
    sealed = "" if line["encryption"] == "none" else f", encrypted with {line['encryption']}"
    return f"{line['id']} is in {place.target.url} now: {size(line['sent'])} sent{earlier}{sealed}"
