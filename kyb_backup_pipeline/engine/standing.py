"""How far a backup is proved, for whoever must decide about it: its records in three words."""

import logging
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine.records import ProofRecords

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """``trouble`` says what is wrong with the backup; then it stands for nothing."""

    verified: bool = False
    restore_tested: bool = False
    trouble: str | None = None


def standing(records: ProofRecords, backup_id: str) -> Standing:
    """What the newest proofs that could tell say of a backup.

    A pass stands until a failure, and a failure until a pass: a night without the key takes nothing away.
    """
    try:
        paths = records.newest_first(backup_id)
        verified = _passed(records, paths, "verification")
        tested = _passed(records, paths, "restore_test")
    except (OSError, ValueError) as error:
        _log.warning("the records of %s cannot be read: %s", backup_id, error)
        return Standing(trouble="the records of its proofs cannot be read")
    if verified is False:
        return Standing(trouble="its verification failed")
    if tested is False:
        return Standing(trouble="its restore test failed")
    return Standing(verified=verified is True, restore_tested=tested is True)


def _passed(records: ProofRecords, paths: list[Path], proof: str) -> bool | None:
    """Whether the newest proof of a kind that could tell passed; None where none could."""
    for path in paths:
        if path.name.startswith(f"{proof}_"):
            verdict = records.read(path).verdict
            if verdict != "could_not_verify":
                return verdict == "passed"
    return None
