"""The same done at every off-site place: copying, verifying, deleting. One that fails hides no other.

What Dagster's steps call, and what cron would. Each answer names its place; an error of a place is an answer too.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from kyb_backup_pipeline.engine.backup import FOLDERS, Backup
from kyb_backup_pipeline.engine.errors import BackupFailed, KybError
from kyb_backup_pipeline.engine.manifest import MANIFEST, Proof, utc_now
from kyb_backup_pipeline.engine.offsite_copy import Listed
from kyb_backup_pipeline.engine.offsite_lacking import lacking
from kyb_backup_pipeline.engine.offsite_listing import look_over, note_safety
from kyb_backup_pipeline.engine.offsite_lock import Safety
from kyb_backup_pipeline.engine.offsite_opening import Place, opened
from kyb_backup_pipeline.engine.offsite_prune import CopyPlan, Deleted, apply_prune, plan_prune
from kyb_backup_pipeline.engine.offsite_push import Pushed, push, push_records
from kyb_backup_pipeline.engine.offsite_retained import not_retained
from kyb_backup_pipeline.engine.offsite_target import (
    TargetMisconfigured,
    TargetUnreachable,
    address_of,
    target_settings,
)
from kyb_backup_pipeline.engine.offsite_verify import CopyProof, verify_copies
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.restore_drill import drill_copy
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why something could not be done at a place. ``backup_id`` where it was one backup, not the whole place."""

    target: str
    url: str
    error: KybError
    backup_id: str | None = None

    def __str__(self) -> str:
        about = f"{self.backup_id}: " if self.backup_id else ""
        return f"{about}{self.target}: {self.error.message}"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """One backup at one place: what the push did, what a look at the copy found, and how it is locked."""

    target: str
    url: str
    pushed: Pushed
    proof: CopyProof
    safety: Safety


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was decided and done at one place."""

    target: str
    url: str
    plan: CopyPlan
    done: Sequence[Deleted]


def copy_everywhere(
    settings: Settings, backup: Backup, *, run_id: str | None = None, report: Reporter = silent
) -> tuple[list[Copied], list[Failed]]:
    """Bring one backup to every place that is set, and look at each copy."""

    def copy(place: Place) -> Copied:
        done = push(settings, place, backup, now=utc_now(), run_id=run_id, report=report)
        listed = Listed(backup_id=backup.backup_id, kind=backup.kind, copy_=done.copy)
        proof = next(verify_copies(place, [listed], deep=False, report=report), None)
        if proof is None:
            raise BackupFailed(f"somebody took the copy of {backup.backup_id} away at once",
                               hint="does a prune run, or a lifecycle rule?")  # fmt: skip
        safety = note_safety(place, done.copy, utc_now())
        return Copied(target=place.target.name, url=place.target.url, pushed=done, proof=proof,
                      safety=safety)  # fmt: skip

    return _everywhere(settings, copy)


def catch_up(
    settings: Settings, now: datetime, *, run_id: str | None = None, report: Reporter = silent
) -> list[Failed]:
    """Bring to every place what has no copy there, and the newer records of what has.

    What has one that cannot be read, or that is of another backup of its id, is a failure of that backup. What
    retention would not keep there is passed over.
    A backup that failed its verification is not copied: it is to be looked at, and a newer one to be taken.
    """
    repository = Repository(settings.repository)
    wanted = _sound(repository)
    doomed = not_retained(settings, wanted, now)
    failed: list[Failed] = []

    def bring(place: Place) -> None:
        lacks = lacking(wanted, look_over(place, now), doomed)
        if lacks.said:
            _log.info("%s: %s", place.target.name, lacks.said)
        if known := [backup.backup_id for backup in lacks.there]:
            push_records(repository, place.target, known)
        for backup in lacks.wanted:
            try:
                push(settings, place, backup, now=utc_now(), run_id=run_id, report=report)
            except (TargetUnreachable, TargetMisconfigured):
                raise  # the next one would fail in the same way
            except KybError as error:
                failed.append(Failed(target=place.target.name, url=place.target.url, error=error,
                                     backup_id=backup.backup_id))  # fmt: skip

    _, lost = _everywhere(settings, bring)
    return lost + failed


def verify_everywhere(
    settings: Settings, now: datetime, *, deep: bool = False, report: Reporter = silent
) -> tuple[list[CopyProof], list[Failed]]:
    """Look at every copy of every place; see ``verify_copies``."""

    def verify(place: Place) -> list[CopyProof]:
        return [*verify_copies(place, look_over(place, now), deep=deep, report=report)]

    answers, failed = _everywhere(settings, verify)
    return [proof for proofs in answers for proof in proofs], failed


def drill_everywhere(
    settings: Settings, *, run_id: str | None = None, report: Reporter = silent
) -> tuple[list[Proof], list[Failed]]:
    """Restore the newest full backup of every place from there, on throwaway servers, and compare."""

    def drill(place: Place) -> Proof:
        return drill_copy(settings, place, now=utc_now(), run_id=run_id, report=report)

    return _everywhere(settings, drill)


def prune_everywhere(settings: Settings, now: datetime) -> tuple[list[Pruned], list[Failed]]:
    """Delete at every place what its plan says; a clock that jumped is refused there."""

    def prune(place: Place) -> Pruned:
        plan = plan_prune(settings, place, now)
        done = apply_prune(settings, place, plan, now=now)
        return Pruned(target=place.target.name, url=place.target.url, plan=plan, done=done)

    return _everywhere(settings, prune)


def _everywhere(
    settings: Settings, work: Callable[[Place], _Answer]
) -> tuple[list[_Answer], list[Failed]]:
    answers: list[_Answer] = []
    failed: list[Failed] = []
    for name, options in target_settings(settings.offsite).items():
        try:
            with opened(settings, name, utc_now()) as place:
                answers.append(work(place))
        except KybError as error:
            _log.warning("%s: %s", name, error)
            failed.append(Failed(target=name, url=address_of(options), error=error))
    return answers, failed


def _sound(repository: Repository) -> list[Backup]:
    """What can be copied, the oldest first, so that bases come before what is replayed on them."""
    repository.require_whole()
    backups = repository.backups(tuple(FOLDERS))
    whole = (b for b in reversed(backups) if b.manifest is not None and b.folder.is_dir())
    return [b for b in whole if (b.folder / MANIFEST).is_file() and not _bad(repository, b)]


def _bad(repository: Repository, backup: Backup) -> bool:
    proof = repository.records.latest(backup.backup_id).get("verification")
    return proof is not None and proof.verdict == "failed"
