"""What may be deleted, and why: a pure plan first, then the deletion.

Of application states the newest deployments are kept, whatever their age; configuration archives by age.
Never deleted: the newest of a kind, the newest of a kind whose verification passed, what was saved before
a restore, and what cannot be read. One whose verification failed stays too, and stands for nothing: it
counts neither as a deployment nor as the newest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.config import RetentionSettings
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.engine.store import Backup, Repository

PRUNED: tuple[Kind, ...] = ("application_state", "configuration")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One backup, whether it stays, and why."""

    backup: Backup
    keep: bool
    why: str


def plan_retention(
    backups: Sequence[Backup],
    verified: Mapping[str, bool | None],
    settings: RetentionSettings,
    now: datetime,
) -> list[Decision]:
    """Decide on each backup. ``backups`` have the newest first; ``verified`` tells which passed (True)
    and which failed (False), as ``proved`` does."""
    decisions = []
    for kind in PRUNED:
        regular = []
        for backup in (b for b in backups if b.kind == kind):
            if backup.manifest is None:
                decisions.append(
                    Decision(backup=backup, keep=True, why="cannot be read: look at it")
                )
            elif verified.get(backup.backup_id) is False:
                why = "its verification failed: look at it"
                decisions.append(Decision(backup=backup, keep=True, why=why))
            elif backup.backup_id.startswith(SAFETY_PREFIX):
                why = "saved before a restore: a person removes it"
                decisions.append(Decision(backup=backup, keep=True, why=why))
            else:
                regular.append(backup)
        decide = _by_deployment if kind == "application_state" else _by_age
        decided = decide(regular, settings, now)
        decisions += _guarded(decided, verified)
    return decisions


def proved(repository: Repository, backup_id: str) -> bool | None:
    """Whether the newest verification that could tell passed; None where none could.

    A pass stands until a failure: a night without the key takes nothing away.
    """
    for proof in reversed(repository.records.of(backup_id)):
        if proof.proof == "verification" and proof.verdict != "could_not_verify":
            return proof.verdict == "passed"
    return None


def prune(repository: Repository, decisions: Sequence[Decision]) -> list[Decision]:
    """Delete what the plan says, the oldest first; what was deleted. Raises Locked for one in use."""
    doomed = [decision for decision in decisions if not decision.keep]
    for decision in reversed(doomed):
        repository.remove(decision.backup)
    return doomed


def _by_deployment(
    backups: Sequence[Backup], settings: RetentionSettings, now: datetime
) -> list[Decision]:
    count = settings.application_deployments
    seen: list[str] = []
    decisions = []
    for backup in backups:
        deployment = backup.require_manifest().deployment or backup.backup_id
        if deployment not in seen:
            seen.append(deployment)
        keep = seen.index(deployment) < count
        which = "among the newest" if keep else "older than the newest"
        decisions.append(
            Decision(backup=backup, keep=keep, why=f"deployment {deployment} is {which} {count}")
        )
    return decisions


def _by_age(
    backups: Sequence[Backup], settings: RetentionSettings, now: datetime
) -> list[Decision]:
    limit = timedelta(days=settings.configuration_days)
    decisions = []
    for backup in backups:
        age = now - backup.require_manifest().completed_at
        which = "not older" if age <= limit else "older"
        why = f"{age.days} days old, {which} than {settings.configuration_days}"
        decisions.append(Decision(backup=backup, keep=age <= limit, why=why))
    return decisions


def _guarded(decisions: Sequence[Decision], verified: Mapping[str, bool | None]) -> list[Decision]:
    """The newest stays, and the newest that was proved."""
    proved = next((d for d in decisions if verified.get(d.backup.backup_id)), None)
    guarded = []
    for number, decision in enumerate(decisions):
        if not decision.keep and number == 0:
            guarded.append(
                Decision(backup=decision.backup, keep=True, why="the newest is never deleted")
            )
        elif not decision.keep and decision is proved:
            why = "the newest whose verification passed is never deleted"
            guarded.append(Decision(backup=decision.backup, keep=True, why=why))
        else:
            guarded.append(decision)
    return guarded
