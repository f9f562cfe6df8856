"""Making a copy of what was sent: the commit object, once, and whether all that it names is there."""

import contextlib
import hashlib
import time

from kyb_backup_pipeline.engine.errors import BackupFailed, ProofFailed, Refused
from kyb_backup_pipeline.engine.offsite_copy import (
    DamagedCopy,
    OffsiteCopy,
    commit_key,
    objects_of,
    parse_copy,
    read_copy,
    write_copy,
)
from kyb_backup_pipeline.engine.offsite_target import AlreadyThere, Gone, Target

_SETTLING = 1.0
"""Seconds after which a commit object is looked at again where nobody keeps a second one out."""


class CopyConflict(Refused):
    """Under this id there is a copy with other content: ``standing``."""

    def __init__(self, message: str, *, hint: str, standing: OffsiteCopy) -> None:
        super().__init__(message, hint=hint)
        self.standing = standing


def commit(target: Target, copy: OffsiteCopy, *, sure: bool, replace: bool) -> OffsiteCopy:
    """Make a copy of what was sent; the one that stands then. ``sure``: the target keeps a second commit object out.

    Raises CopyConflict, BackupFailed, ProofFailed for a backup that contradicts its manifest, and what the target raises.
    """
    key = commit_key(copy.kind, copy.backup_id)
    content = write_copy(copy)
    try:
        parse_copy(content, where="what was to be pushed")
    except DamagedCopy as error:
        raise ProofFailed(f"{copy.backup_id} is not what its manifest says: {error.message}",
                          hint=f"kyb-backup verify {copy.backup_id}") from error  # fmt: skip
    if replace:
        target.put(key, content)
        return _read_back(target, key)
    standing = None if sure else read_copy(target, copy.kind, copy.backup_id)
    if standing is None:
        with contextlib.suppress(AlreadyThere):
            target.put(key, content, create=True)
        if not sure:
            time.sleep(_SETTLING)
        standing = _read_back(target, key)
    if standing == copy or standing.same_content(copy):
        return standing
    raise conflict(target, standing)


def lost_places(target: Target, copy: OffsiteCopy) -> set[str]:
    """Where parts of a copy are not there any more: somebody may have cleared up meanwhile.

    What a listing lacks is asked for: some services list late.
    """
    there = objects_of(target, copy)
    lost = set()
    for part in (part for file in copy.all_files for part in file.parts):
        found = there.get(part.key)
        if found.size != part.size if found else not _holds(target, part.key, part.sha256):
            lost.add(part.key.rpartition("/")[0])
    return lost


def conflict(target: Target, standing: OffsiteCopy) -> CopyConflict:
    return CopyConflict(
        f"{target.url} has another {standing.backup_id}, pushed by {standing.host} at "
        f"{standing.pushed_at:%Y-%m-%d %H:%M:%S} UTC, with other content",
        hint="do two machines write to one prefix? Give each its own in offsite.url. Nothing was overwritten",
        standing=standing,
    )


def _read_back(target: Target, key: str) -> OffsiteCopy:
    try:
        return parse_copy(target.get(key), where=f"{target.url}/{key}")
    except Gone:
        raise BackupFailed(f"{target.url} took {key} and does not have it",
                           hint="it cannot be trusted with a copy: use another place") from None  # fmt: skip


def _holds(target: Target, key: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(target.get(key)).hexdigest() == sha256
    except Gone:
        return False
