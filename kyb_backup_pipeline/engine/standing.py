"""How far a backup is proved: its newest records, and in three words what they say to whoever must decide."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from kyb_backup_pipeline.engine.manifest import Proof
from kyb_backup_pipeline.engine.records import ProofRecords

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """``trouble`` says what is wrong with the backup; then it stands for nothing."""

    verified: bool = False
    restore_tested: bool = False
    trouble: str | None = None


@dataclass(frozen=True, kw_only=True)
class Proved:
    """``latest`` has the newest record of each proof by its name; empty where they cannot be read."""

    latest: Mapping[str, Proof] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)


def standing(records: ProofRecords, backup_id: str) -> Standing:
    """What the newest proofs that could tell say of a backup."""
    return proved(records, backup_id).standing


def proved(records: ProofRecords, backup_id: str) -> Proved:
    """The newest proofs of a backup, and how it stands by those that could tell.

    A pass stands until a failure, and a failure until a pass: a night without the key takes nothing away.
    """
    latest: dict[str, Proof] = {}
    try:
        names = records.newest_first(backup_id)
        place = f"{records.root}/{backup_id}"
        verified = _passed(records, place, names, "verification", latest)
        tested = _passed(records, place, names, "restore_test", latest)
    except (OSError, ValueError) as error:
        _log.warning("the records of %s cannot be read: %s", backup_id, error)
        return Proved(standing=Standing(trouble="the records of its proofs cannot be read"))
    if verified is False or tested is False:
        failed = "verification" if verified is False else "restore test"
        return Proved(latest=latest, standing=Standing(trouble=f"its {failed} failed"))
    known = Standing(verified=verified is True, restore_tested=tested is True)
    return Proved(latest=latest, standing=known)


def _passed(
    records: ProofRecords, place: str, names: list[str], proof: str, latest: dict[str, Proof]
) -> bool | None:
    """Whether the newest proof of a kind that could tell passed; None where none could."""
    for name in names:
        if name.startswith(f"{proof}_"):
            record = records.read(f"{place}/{name}")
            if not record.of_backup:
                continue
            latest.setdefault(proof, record)
            if record.verdict != "could_not_verify":
                return record.verdict == "passed"
    return None
