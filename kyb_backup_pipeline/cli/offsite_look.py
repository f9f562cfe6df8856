"""``kyb-backup offsite list`` and ``offsite verify``: what copies there are, and are they what was pushed?"""

import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.offsite_places import each, target_option
from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.errors import CouldNotVerify, InvalidRequest, KybError, ProofFailed
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.printable import printable
from kyb_backup_pipeline.engine.progress import Reporter, silent

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_copy import Listed
    from kyb_backup_pipeline.engine.offsite_opening import Place
    from kyb_backup_pipeline.engine.offsite_verify import CopyProof


@click.command(
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
    from kyb_backup_pipeline.engine.offsite_listing import look_over
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    lines: list[dict[str, Any]] = []
    failed: list[KybError] = []
    for name in chosen(settings.offsite, target):
        now = utc_now()
        with each(name, failed), opened(settings, name, now, anew=anew) as place:
            if anew:
                found = place.require_probe(now, anew=True)
                said = "; ".join(found.weaknesses()) or "it can be trusted with checksums and names"
                click.echo(f"{place.target.url}: {said}", err=True)
            copies = (
                list_copies(place.target, [k for k in FOLDERS if k == kind])
                if kind
                else look_over(place, now)
            )
            lines += [_line(place, listed) for listed in copies]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
    elif lines:
        _table(lines)
    elif not failed:
        click.echo("no copies")
    if failed:
        sys.exit(failed[0].exit_code)


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
            rows.append(
                (line["id"], line["kind"], "damaged", "", "", "", printable(line["problem"]))
            )
            continue
        verdict = (line["verification"] or "not yet").replace("_", " ")
        rows.append((line["id"], line["kind"], line["finished_at"][:19].replace("T", " "),
                     size(line["size_bytes"]), line["encryption"], verdict, line["target"]))  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    for row in rows:
        cells = (c.rjust(w) if n == 3 else c.ljust(w)
                 for n, (c, w) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        click.secho("  ".join(cells).rstrip(), bold=row is header)


@click.command(
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
    from kyb_backup_pipeline.engine.offsite_listing import look_over
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    proofs: list[CopyProof] = []
    failed: list[KybError] = []
    for name in chosen(settings.offsite, target):
        with each(name, failed), opened(settings, name, utc_now()) as place:
            wanted = _listed(look_over(place, utc_now()), backup_ids, place)
            left = len(wanted)
            for proof in _looked_at(session, place, wanted, deep):
                left -= 1
                proofs.append(proof)
                if not as_json:
                    _show(proof)
            if left:
                click.echo(f"{name}: {left} more were not looked at", err=True)
    if as_json:
        click.echo(json.dumps([p.model_dump(mode="json", exclude_none=True) for p in proofs],
                              indent=2))  # fmt: skip
    elif not (proofs or failed):
        click.echo("no copies")
    verdicts = {proof.verdict for proof in proofs}
    if "failed" in verdicts:
        sys.exit(ProofFailed.exit_code)
    if failed:
        sys.exit(failed[0].exit_code)
    if "could_not_verify" in verdicts:
        sys.exit(CouldNotVerify.exit_code)


def _looked_at(
    session: Session, place: "Place", copies: "list[Listed]", deep: bool
) -> Iterator["CopyProof"]:
    """What is found of each; its bar is gone when its line is printed."""
    from kyb_backup_pipeline.engine.offsite_verify import verify_copies

    bars: deque[Reporter] = deque([silent], maxlen=1)
    looking = verify_copies(place, copies, deep=deep, report=lambda progress: bars[-1](progress))
    while True:
        with session.reporting() as bar:
            bars.append(bar)
            proof = next(looking, None)
        if proof is None:
            return
        yield proof


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
    click.echo(f"  {printable(proof.summary)}")
    for finding in proof.findings[1:]:
        click.echo(f"  {printable(finding.object)} {printable(finding.message)}")
    if proof.hint and proof.verdict != "passed":
        click.echo(f"  HINT: {proof.hint}")
