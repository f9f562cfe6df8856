"""``kyb-backup verify``: are the files of backups what was written, whole and complete?"""

import json
import sys

import click

from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.cli.show import show_proof
from kyb_backup_pipeline.engine.backup import FOLDERS, Backup
from kyb_backup_pipeline.engine.errors import CouldNotVerify, InvalidRequest, ProofFailed
from kyb_backup_pipeline.engine.manifest import MANIFEST, Proof, utc_now
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup


@click.command(
    name="verify",
    epilog="""\b
Examples:
  kyb-backup verify                 (the newest)
  kyb-backup verify backup_20260131_020000
  kyb-backup verify --all --json""",
)
@click.argument("backup_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every backup in the repository.")
@click.option("--json", "as_json", is_flag=True, help="Print the records.")
@with_session
def command(session: Session, backup_ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Check backups: every checksum, decompression to the end, and a dump that is complete.

    Of a base backup every file is compared with PostgreSQL's own manifest; of an increment every WAL
    segment, and that none is missing between its base and its end.

    Exits with 6 if one is bad, else with 10 if one could not be verified.
    """
    if everything and backup_ids:
        raise InvalidRequest("--all and ids contradict each other")
    settings = session.settings()
    repository = Repository(settings.repository)
    backups = chosen(repository, backup_ids, everything)
    proofs = []
    for backup in backups:
        with session.reporting() as report:
            proof = verify_backup(
                repository, backup, settings=settings, now=utc_now(), report=report
            )
        proofs.append(proof)
        if not as_json:
            show_proof(proof)
    if as_json:
        documents = [proof.model_dump(mode="json", exclude_none=True) for proof in proofs]
        click.echo(json.dumps(documents, indent=2))
    sys.exit(exit_code(proofs))


def chosen(repository: Repository, ids: tuple[str, ...], everything: bool) -> list[Backup]:
    """The backups asked for: by id, all of them, or the newest.

    With ``everything`` a folder that lost its manifest is among them: it must not go unnoticed.
    """
    if not everything:
        return [repository.find(i) for i in dict.fromkeys(ids)] or [repository.newest("full")]
    lost = [
        Backup(
            backup_id=leftover.folder.name,
            kind="full",
            folder=leftover.folder,
            manifest=None,
            problem=f"{leftover.folder / MANIFEST} is missing",
        )
        for leftover in repository.leftovers()
        if not leftover.partial
    ]
    return [*repository.backups(tuple(FOLDERS)), *lost]


def exit_code(proofs: list[Proof]) -> int:
    """6 before 10 before 0."""
    verdicts = {proof.verdict for proof in proofs}
    if "failed" in verdicts:
        return ProofFailed.exit_code
    return CouldNotVerify.exit_code if "could_not_verify" in verdicts else 0
