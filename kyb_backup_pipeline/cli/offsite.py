"""``kyb-backup offsite``: copies of backups in other places: push, list, fetch, verify."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kyb_backup_pipeline.cli.session import Session, say, size, with_session
from kyb_backup_pipeline.engine.errors import CouldNotVerify, InvalidRequest, KybError, ProofFailed
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import FOLDERS, Backup, Repository

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_copy import Listed
    from kyb_backup_pipeline.engine.offsite_opening import Place
    from kyb_backup_pipeline.engine.offsite_verify import CopyProof
    from kyb_backup_pipeline.engine.settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


def target_option(command: _Command) -> _Command:
    """Let a verb be told which place."""
    option = click.option("--target", metavar="NAME", help="Only this place. Default: all of them.")
    return option(command)


@click.group(name="offsite")
def command() -> None:
    """Copies of backups in another place: object storage, another disk, a mounted share.

    offsite.url names the place, offsite.targets more of them (docs/settings.md). Data go first, and the
    commit object of a copy last: what was cut in the middle is never listed, and is gone on with by the next push.
    """


@command.command(
    epilog="""\b
Examples:
  kyb-backup offsite push                    (the newest full backup)
  kyb-backup offsite push --all              (whatever has no copy yet, in cron)
  kyb-backup offsite push ID --target second-site
  kyb-backup offsite push ID --again         (make a damaged copy whole)"""
)
@click.argument("backup_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every backup that has no copy there.")
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
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    repository = Repository(settings.repository)
    wanted = _wanted(repository, backup_ids, everything)
    lines: list[dict[str, Any]] = []
    failed: list[KybError] = []
    for name in chosen(settings.offsite, target):
        try:
            _push_to(session, settings, name, wanted, everything, again, dry_run, lines, failed)
        except KybError as error:
            failed.append(_told(error, name))
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
    everything: bool,
    again: bool,
    dry_run: bool,
    lines: list[dict[str, Any]],
    failed: list[KybError],
) -> None:
    from kyb_backup_pipeline.engine.offsite_copy import list_copies
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_push import push as push_one
    from kyb_backup_pipeline.engine.offsite_push import push_records
    from kyb_backup_pipeline.engine.offsite_target import TargetMisconfigured, TargetUnreachable

    with opened(settings, name, utc_now()) as place:
        if everything:
            there = {one.backup_id for one in list_copies(place.target)}
            known = [backup.backup_id for backup in wanted if backup.backup_id in there]
            wanted = [backup for backup in wanted if again or backup.backup_id not in there]
            if known and not (dry_run or again):
                push_records(Repository(settings.repository), place.target, known)
        if dry_run:
            for backup in wanted:
                total = backup.require_manifest().total_size
                lines.append({"id": backup.backup_id, "target": name, "bytes": total})
                say(f"would copy {backup.backup_id}, {size(total)}, to {place.target.url}")
            return
        for backup in wanted:
            try:
                with session.reporting() as report:
                    done = push_one(
                        settings, place, backup, now=utc_now(), again=again, report=report
                    )
            except (TargetUnreachable, TargetMisconfigured):
                raise  # the next one would fail in the same way
            except KybError as error:
                failed.append(_told(error, backup.backup_id))
                continue
            line = {"id": backup.backup_id, "target": name, "already": done.already, "sent": done.sent,
                    "found": done.found, "records": done.records, "seconds": round(done.seconds, 3),
                    "encryption": done.copy.encryption}  # fmt: skip
            lines.append(line)
            click.echo(_said(line, place), err=True)


def _said(line: dict[str, Any], place: "Place") -> str:
    if line["already"]:
        return f"{line['id']} is in {place.target.url}"
    earlier = f", {size(line['found'])} were there" if line["found"] else ""
    sealed = "" if line["encryption"] == "none" else f", encrypted with {line['encryption']}"
    return f"{line['id']} is in {place.target.url} now: {size(line['sent'])} sent{earlier}{sealed}"


@command.command(
    name="list",
    epilog="""\b
Examples:
  kyb-backup offsite list
  kyb-backup offsite list --json | jq -r '.[0].id'
  kyb-backup offsite list --probe            (try anew what the place can be trusted with)""",
)
@click.option("--kind", type=click.Choice(list(FOLDERS)), help="Only this kind.")
@click.option("--probe", "anew", is_flag=True, help="Try anew what the place can be trusted with.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@target_option
@with_session
def list_(
    session: Session, kind: str | None, anew: bool, as_json: bool, target: str | None
) -> None:
    """Show what copies there are, the newest first. What was cut before its commit is not among them.

    Needs the address and the credentials only: no repository, and no key.
    """
    from kyb_backup_pipeline.engine.offsite_copy import list_copies
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    lines: list[dict[str, Any]] = []
    for name in chosen(settings.offsite, target):
        now = utc_now()
        with opened(settings, name, now, anew=anew) as place:
            if anew:
                found = place.require_probe(now, anew=True)
                said = "; ".join(found.weaknesses()) or "it can be trusted with checksums and names"
                click.echo(f"{place.target.url}: {said}", err=True)
            copies = list_copies(place.target, [k for k in FOLDERS if kind in (None, k)])
            if kind is None:
                _remember(place, copies)
            lines += [_line(place, listed) for listed in copies]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
    elif lines:
        _table(lines)
    else:
        click.echo("no copies")


def _remember(place: "Place", copies: "list[Listed]") -> None:
    """Write down at home which copies there are, and whether the newest can be deleted."""
    from kyb_backup_pipeline.engine.offsite_lock import safety_of
    from kyb_backup_pipeline.engine.offsite_view import SeenCopy

    now = utc_now()
    known = place.view.copies
    readable = [listed.copy_ for listed in copies if listed.copy_ is not None]
    seen = {
        copy.backup_id: known.get(copy.backup_id)
        or SeenCopy(
            kind=copy.kind, finished_at=copy.manifest.completed_at, pushed_at=copy.pushed_at
        )
        for copy in readable
    }
    changes: dict[str, object] = {"copies": seen, "looked_at": now}
    if readable:
        safety = safety_of(place.target, readable[0])
        changes |= {"deletable": safety.deletable(now), "locked_until": safety.until}
    place.see(**changes)


def _line(place: "Place", listed: "Listed") -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": listed.backup_id,
        "kind": listed.kind,
        "target": place.target.name,
    }
    copy = listed.copy_
    if copy is None:
        return {**line, "finished_at": None, "problem": listed.problem}
    seen = place.view.copies.get(listed.backup_id)
    return {
        **line,
        "finished_at": copy.manifest.completed_at.isoformat(),
        "pushed_at": copy.pushed_at.isoformat(),
        "host": copy.host,
        "size_bytes": copy.size,
        "encryption": copy.encryption,
        "verification": seen.verdict if seen else None,
    }


def _table(lines: list[dict[str, Any]]) -> None:
    header = ("ID", "KIND", "FINISHED (UTC)", "SIZE", "ENCRYPTION", "VERIFICATION", "PLACE")
    rows = [header]
    for line in lines:
        if line["finished_at"] is None:
            rows.append((line["id"], line["kind"], "damaged", "", "", "", line["problem"]))
            continue
        verdict = (line["verification"] or "not yet").replace("_", " ")
        rows.append((line["id"], line["kind"], line["finished_at"][:19].replace("T", " "),
                     size(line["size_bytes"]), line["encryption"], verdict, line["target"]))  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    for row in rows:
        cells = (c.rjust(w) if n == 3 else c.ljust(w)
                 for n, (c, w) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        click.secho("  ".join(cells).rstrip(), bold=row is header)


@command.command(
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
    from kyb_backup_pipeline.engine.offsite_copy import find_copy
    from kyb_backup_pipeline.engine.offsite_fetch import chain_of, fetch_into, require_absent
    from kyb_backup_pipeline.engine.offsite_fetch import fetch as fetch_one
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_target import chosen

    if chain and into:
        raise InvalidRequest("--chain and --into contradict each other: a chain needs a repository")
    settings = session.settings()
    repository = Repository(settings.repository)
    name = next(iter(chosen(settings.offsite, target)))
    fetched: list[dict[str, str]] = []
    with opened(settings, name, utc_now()) as place:
        copy = find_copy(place.target, backup_id)
        if into is not None:
            with session.reporting() as report:
                fetched.append({"id": backup_id, "folder": str(
                    fetch_into(settings, place.target, copy, into, report=report))})  # fmt: skip
        else:
            repository.create()
            copies = chain_of(place.target, copy) if chain else [copy]
            missing = [one for one in copies if not _has(repository, one.backup_id)]
            if copy not in missing:
                require_absent(repository, copy.backup_id)
            for one in missing:
                with session.reporting() as report:
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


@command.command(
    epilog="""\b
Examples:
  kyb-backup offsite verify                 (all copies: sizes, and versions by the service)
  kyb-backup offsite verify ID --deep       (read it all, and hash it)
  kyb-backup offsite verify --all --deep --json"""
)
@click.argument("backup_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every copy; so it is without an id.")
@click.option("--deep", is_flag=True, help="Read every object and hash it.")
@click.option("--json", "as_json", is_flag=True, help="Print the records.")
@target_option
@with_session
def verify(
    session: Session,
    backup_ids: tuple[str, ...],
    everything: bool,
    deep: bool,
    as_json: bool,
    target: str | None,
) -> None:
    """Look whether copies are what was pushed. No key is needed.

    Without --deep every object must be there with its size, and be the version that was pushed by what the
    service calls it; one that is not is read. Exits with 6 if one is bad, else with 10 if one could not be
    verified.
    """
    if everything and backup_ids:
        raise InvalidRequest("--all and ids contradict each other")
    from kyb_backup_pipeline.engine.offsite_copy import list_copies
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_target import chosen
    from kyb_backup_pipeline.engine.offsite_verify import verify_copy

    settings = session.settings()
    proofs: list[CopyProof] = []
    for name in chosen(settings.offsite, target):
        with opened(settings, name, utc_now()) as place:
            for listed in _listed(list_copies(place.target), backup_ids, place):
                with session.reporting() as report:
                    proof = verify_copy(place, listed, deep=deep, now=utc_now(), report=report)
                proofs.append(proof)
                if not as_json:
                    _show(proof)
    if as_json:
        click.echo(json.dumps([p.model_dump(mode="json", exclude_none=True) for p in proofs],
                              indent=2))  # fmt: skip
    elif not proofs:
        click.echo("no copies")
    verdicts = {proof.verdict for proof in proofs}
    if "failed" in verdicts:
        sys.exit(ProofFailed.exit_code)
    if "could_not_verify" in verdicts:
        sys.exit(CouldNotVerify.exit_code)


def _listed(copies: "list[Listed]", ids: tuple[str, ...], place: "Place") -> "list[Listed]":
    from kyb_backup_pipeline.engine.errors import NotFound

    by_id = {listed.backup_id: listed for listed in copies}
    if lost := [i for i in ids if i not in by_id]:
        raise NotFound(f"no copy of {lost[0]!r} in {place.target.url}",
                       hint="kyb-backup offsite list shows what there is")  # fmt: skip
    return [by_id[i] for i in dict.fromkeys(ids)] if ids else copies


def _show(proof: "CopyProof") -> None:
    colour = {"passed": "green", "failed": "red"}.get(proof.verdict, "yellow")
    click.echo(f"{proof.backup_id} in {proof.target}  ", nl=False)
    click.secho(proof.verdict.replace("_", " "), fg=colour, bold=True, nl=False)
    click.echo(f"  {proof.summary}")
    for finding in proof.findings[1:]:
        click.echo(f"  {finding.object} {finding.message}")
    if proof.hint and proof.verdict != "passed":
        click.echo(f"  HINT: {proof.hint}")


def _told(error: KybError, what: str) -> KybError:
    """Say on stderr what failed, and go on."""
    click.echo(f"error: {what}: {error.message}", err=True)
    if error.hint:
        click.echo(f"HINT: {error.hint}", err=True)
    return error


def _register() -> None:
    from kyb_backup_pipeline.cli import offsite_prune

    command.add_command(offsite_prune.prune)


_register()
