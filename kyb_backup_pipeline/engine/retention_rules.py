"""The rules of retention: policies by age and by deployment, and what stays whatever they say.

Pure functions of an inventory. A backup that needs no other is decided here; chains of base backups,
increments and WAL in ``log_retention``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.engine.settings import RetentionSettings


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One backup, whether it stays, and why."""

    backup: Backup
    keep: bool
    why: str

    @property
    def bytes(self) -> int:
        """What its deletion frees; the segments of an increment are lines of their own."""
        manifest = self.backup.manifest
        return 0 if manifest is None or self.backup.kind == "incremental" else manifest.total_size


@dataclass(frozen=True, kw_only=True)
class WalDecision:
    """A row of neighbours in the WAL store, of one timeline and in the order of their names, whether they
    stay, and why.
    """

    names: tuple[str, ...]
    keep: bool
    why: str


Policy = Callable[[Backup], tuple[bool, str]]
"""Whether a backup stays by its age or its place, and why."""


def plan_alone(
    kind: Sequence[Backup], policy: Policy, inventory: Inventory, settings: RetentionSettings, now: datetime
) -> list[Decision]:  # fmt: skip
    """Decide on the backups of a kind that need no others."""
    guards = newest_of(kind, inventory) | _minimum(kind, inventory, settings.minimum_kept)
    decisions = []
    for backup in kind:
        why = inventory.pinned(backup, now)
        keep = why is not None
        if why is None:
            keep, why = policy(backup)
            if not keep and backup.backup_id in guards:
                keep, why = True, guards[backup.backup_id]
        decisions.append(Decision(backup=backup, keep=keep, why=why))
    return decisions


def newest_of(
    kind: Iterable[Backup], inventory: Inventory, *, restore_tested: bool = True
) -> dict[str, str]:
    """Which backups of a kind are never deleted, and why; regular ones come before those of a restore."""
    sound = sorted((b for b in kind if inventory.sound(b)), key=is_safety)
    verified = [b for b in sound if inventory.standing(b).verified]
    tested = [b for b in sound if restore_tested and inventory.standing(b).restore_tested]
    return {
        **_named(tested[:1], "the newest that was restore-tested is never deleted"),
        **_named(verified[:1], "the newest whose verification passed is never deleted"),
        **_named(sound[:1], "the newest is never deleted"),
    }


def _minimum(kind: Iterable[Backup], inventory: Inventory, count: int) -> dict[str, str]:
    regular = [b for b in kind if inventory.sound(b) and not is_safety(b)]
    return _named(regular[1:count], f"one of the newest {count}, which are always kept")


def _named(backups: Iterable[Backup], why: str) -> dict[str, str]:
    return {backup.backup_id: why for backup in backups}


def is_safety(backup: Backup) -> bool:
    """Whether it was taken before a restore."""
    return backup.backup_id.startswith(SAFETY_PREFIX)


def by_age(days: int, now: datetime) -> Policy:
    """Keep what is not older than so many days."""

    def decide(backup: Backup) -> tuple[bool, str]:
        age = now - backup.require_manifest().completed_at
        keep = age <= timedelta(days=days)
        return keep, f"{age.days} days old, {'not older' if keep else 'older'} than {days}"

    return decide


def by_deployment(backups: Iterable[Backup], inventory: Inventory, count: int) -> Policy:
    """Keep the states of the newest deployments, whatever their age."""
    names = [_deployment(b) for b in backups if inventory.sound(b) and not is_safety(b)]
    newest = set(list(dict.fromkeys(names))[:count])

    def decide(backup: Backup) -> tuple[bool, str]:
        name = _deployment(backup)
        keep = name in newest
        return keep, f"deployment {name} is {'among' if keep else 'older than'} the newest {count}"

    return decide


def _deployment(backup: Backup) -> str:
    return backup.require_manifest().deployment or backup.backup_id
