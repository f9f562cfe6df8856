"""``kyb-backup show ID``: one backup with all its records."""

import json
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.manifest import Manifest, Proof
from kyb_backup_pipeline.engine.store import Repository

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.settings import Settings


@click.command(
    name="show",
    epilog="""\b
Examples:
  kyb-backup show backup_20260131_020000
  kyb-backup show backup_20260131_020000 --json | jq .restore_tests[-1].figures""",
)
@click.argument("backup_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest with all records.")
@with_session
def command(session: Session, backup_id: str, as_json: bool) -> None:
    """Show one backup: what it holds, where it comes from, and every proof of it."""
    settings = session.settings()
    repository = Repository(settings.repository)
    backup = repository.find(backup_id)
    manifest = backup.require_manifest()
    proofs = repository.records.of(backup_id)
    if as_json:
        document = manifest.model_dump(mode="json", exclude_none=True)
        for name, key in (("verification", "verifications"), ("restore_test", "restore_tests")):
            document[key] = [
                proof.model_dump(mode="json", exclude_none=True)
                for proof in proofs
                if proof.proof == name
            ]
        document["offsite"] = _copies(settings, backup_id)
        click.echo(json.dumps(document, indent=2))
        return
    _describe(manifest)
    click.echo(f"folder         {backup.folder}")
    for copy in _copies(settings, backup_id):
        verdict = (copy["verification"] or "not verified").replace("_", " ")
        click.echo(f"{'copy':<14} in {copy['url']}, pushed {copy['pushed_at'][:19]} UTC, {verdict}")
    click.echo("\nproofs" if proofs else "\nno proofs yet: kyb-backup verify, kyb-backup drill")
    for proof in proofs:
        show_proof(proof)


def _copies(settings: "Settings", backup_id: str) -> list[dict[str, Any]]:
    """Its off-site copies, as they were seen last: no network is asked."""
    from kyb_backup_pipeline.engine.offsite_view import views_of

    found = []
    for view in views_of(settings.repository, settings.offsite):
        seen = view.copies.get(backup_id)
        if seen is not None:
            at = seen.verified_at.isoformat() if seen.verified_at else None
            found.append({"target": view.target, "url": view.url, "pushed_at": seen.pushed_at.isoformat(),
                          "verification": seen.verdict, "verified_at": at, "summary": seen.summary})  # fmt: skip
    return found


def _describe(manifest: Manifest) -> None:
    database = manifest.database
    lines = {
        "id": manifest.backup_id,
        "kind": manifest.type + (" (made by the old scripts)" if manifest.legacy else ""),
        "label": manifest.label,
        "finished": f"{manifest.completed_at:%Y-%m-%d %H:%M:%S} UTC",
        "database": f"{database.name} on {database.host}:{database.port}" if database else None,
        "server": f"PostgreSQL {manifest.server_version}" if manifest.server_version else None,
        "deployment": manifest.deployment,
        "version": manifest.version,
        "format": _format(manifest),
        "encrypted": _encryption(manifest),
        "size": f"{size(manifest.total_size)} in {len(manifest.files) or 1} files",
        "sha256": manifest.checksum,
    }
    for archive in manifest.archives:
        to = f" to {', '.join(archive.recipients)}" if archive.recipients else ""
        lines[archive.path] = (
            f"{archive.members} members, {size(archive.content_bytes)}, {archive.encryption}{to}"
        )
    if manifest.type == "full":
        lines["evidence"] = _evidence(manifest)
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<14} {value}")
    for note in manifest.notes:
        click.echo(f"note           {note}")


def _evidence(manifest: Manifest) -> str:
    evidence = manifest.evidence
    if evidence is None or evidence.mode == "none":
        return "none"
    return (
        f"{evidence.rows} rows in {evidence.tables} tables, {evidence.objects} objects "
        f"({evidence.seconds:.1f} s beside the dump)"
    )


def _encryption(manifest: Manifest) -> str | None:
    how = manifest.encryption
    if how is None:
        return None
    return (
        f"{how.method} to {', '.join(how.recipients)}"
        if how.recipients
        else f"{how.method}, a passphrase"
    )


def _format(manifest: Manifest) -> str:
    if manifest.archives:
        return f"tar, {manifest.compression}, {manifest.archives[0].encryption}"
    if manifest.type in ("application_state", "configuration"):
        return "files" if manifest.type == "application_state" else "tar, gzip, gpg"
    return f"{manifest.dump_format}, {manifest.compression}"


def show_proof(proof: Proof) -> None:
    """Print one record: verdict, summary, findings, notes."""
    colour = {"passed": "green", "failed": "red"}.get(proof.verdict, "yellow")
    verdict = proof.verdict.replace("_", " ")
    click.echo(f"{proof.backup_id}  {proof.proof.replace('_', ' ')} ", nl=False)
    click.secho(verdict, fg=colour, bold=True, nl=False)
    click.echo(f"  {proof.finished_at:%Y-%m-%d %H:%M:%S} UTC, {proof.seconds:.1f} s")
    click.echo(f"  {proof.summary}")
    for finding in proof.findings[1:]:
        click.echo(f"  {finding.object} {finding.message}")
    if "recovery_seconds" in proof.figures:
        click.echo(f"  recovery took {proof.figures['recovery_seconds']:.1f} s")
    for note in proof.notes:
        click.echo(f"  note: {note}")
    if proof.hint and proof.verdict != "passed":
        click.echo(f"  HINT: {proof.hint}")
