"""What can be proved of a backup in an off-site place before it is restored from there.

All objects there, with their sizes and versions, which are read where the service calls them others; every file
that is not streamed into the load, in full. The dump is not read twice: the load itself holds it against the commit
object and the manifest, to its last byte.
"""

from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.dump import DIRECTORY, PLAIN_FILE
from kyb_backup_pipeline.engine.errors import CouldNotVerify, ProofFailed
from kyb_backup_pipeline.engine.evidence import EVIDENCE_FILE
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, Manifest
from kyb_backup_pipeline.engine.offsite_backup import OffsiteBackup, note
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged
from kyb_backup_pipeline.engine.offsite_verify import examine_copy
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.restore_source import check_key, evidence_of, part_of, source_of
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import contradictions, examine_directory, verify_backup


def require_sound(
    settings: Settings,
    backup: Backup,
    *,
    now: datetime,
    report: Reporter = silent,
    run_id: str | None = None,
) -> str:
    """Verify a backup that is to be restored, wherever it lies; return what was found in a sentence.

    Raises ProofFailed for a bad one, CouldNotVerify. The record of a backup at home is kept; of a bad
    copy it is written down that it is.
    """
    if isinstance(backup, OffsiteBackup):
        seen = Examination()
        examine_offsite(settings, backup, seen, report)
        if seen.findings:
            first = seen.findings[0]
            note(backup.at, backup.copy, "failed", f"{first.object} {first.message}")
            raise ProofFailed(f"{backup.backup_id} in {backup.place} is bad: {first.object} {first.message}",
                              hint="restore another: kyb-backup offsite list")  # fmt: skip
        if seen.unverifiable is not None:
            raise seen.unverifiable
        rest = (
            ", the dump is judged as it is loaded" if backup.streamed else ", all of it was fetched"
        )
        return f"{len(backup.copy.files)} files as they were pushed{rest}"
    proof = verify_backup(Repository(settings.repository), backup, settings=settings, now=now,
                          report=report, run_id=run_id)  # fmt: skip
    if proof.verdict == "failed":
        raise ProofFailed(f"{backup.backup_id} is bad: {proof.summary}",
                          hint="restore another: kyb-backup list")  # fmt: skip
    if proof.verdict == "could_not_verify":
        raise CouldNotVerify(proof.summary, hint=proof.hint)
    return proof.summary


def examine_offsite(
    settings: Settings, backup: OffsiteBackup, seen: Examination, report: Reporter = silent
) -> Manifest | None:
    """Note what is wrong with a full backup's copy; its manifest where that is nothing.

    Raises CouldNotVerify without the key, and what the target raises.
    """
    manifest = backup.require_manifest()
    source = source_of(backup, settings.encryption)
    check_key(source)
    # that the commit object names every file of the manifest, its reading holds it to (offsite_copy)
    for problem in () if manifest.legacy else contradictions(manifest):
        seen.found(MANIFEST, problem)
    try:
        examine_copy(backup.target, backup.copy, seen, deep=False, report=report)
        if seen.findings:
            return None
        if not backup.streamed:
            backup.bring(settings, report)
        for done, file in enumerate(manifest.files):
            report(Progress(step="integrity", done=done, total=len(manifest.files), unit="files"))
            if backup.streamed and not file.path.startswith(PLAIN_FILE):
                part_of(source, file.path)
        if not manifest.legacy and part_of(source, MANIFEST_CHECKSUM) != checksum_line(
            backup.copy.manifest_bytes
        ):
            seen.found(MANIFEST, f"does not fit {MANIFEST_CHECKSUM}: one of the two was altered")
        if any(file.path.startswith(EVIDENCE_FILE) for file in manifest.files):
            evidence_of(source)
    except CopyDamaged as error:
        seen.found(backup.backup_id, error.message)
        return None
    if not manifest.legacy and manifest.dump_format == "directory":
        examine_directory(backup.files.here(DIRECTORY), manifest, settings.postgres, seen)
    return manifest if not seen.findings else None
