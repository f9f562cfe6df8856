"""What may be deleted, and why: a pure plan, with a reason for every line.

Full backups and configuration archives go by age, application states by deployments, backups taken before
a restore by a limit of their own (``retention_rules``); base backups, increments and WAL together, so that
every moment of the last days stays recoverable (``log_retention``). Whatever the policy says, these stay:

    what is held, what cannot be read, what failed a proof (look at it; it stands for nothing)
    the newest of a kind, the newest that was verified, the newest full one that was restore-tested
    the newest three sound full backups, application states and configuration archives

A plan that only a wrong clock explains is refused. Where to look next: ``inventory`` reads what there is,
``prune`` deletes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.log_retention import plan_log, since
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.retention_rules import (
    Decision,
    Policy,
    WalDecision,
    by_age,
    by_deployment,
    is_safety,
    plan_alone,
)
from kyb_backup_pipeline.engine.settings import RetentionSettings

_AGED: tuple[Kind, ...] = ("full", "base", "configuration")
"""Kinds that go by age; increments go with their bases, application states by deployments."""
_A_FEW = 3
"""So many of a kind may go at once, whatever share of it they are."""
_ZONES = timedelta(days=1)
"""Old scripts wrote the time of their host's zone into names."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is decided, by kind, the newest first. ``refusal``: why the clock is not believed."""

    decisions: Sequence[Decision]
    wal: Sequence[WalDecision]
    refusal: str | None = None

    @property
    def doomed(self) -> list[Decision]:
        return [decision for decision in self.decisions if not decision.keep]

    @property
    def doomed_wal(self) -> list[str]:
        """The names of the WAL files that go."""
        return [name for decision in self.wal if not decision.keep for name in decision.names]

    @property
    def kept_wal(self) -> list[str]:
        """The names of the WAL files that stay."""
        return [name for decision in self.wal if decision.keep for name in decision.names]


def plan_retention(inventory: Inventory, settings: RetentionSettings, now: datetime) -> Plan:
    """Decide on everything in a repository."""
    decisions = [
        decision
        for kind, policy in policies(inventory, settings, now).items()
        for decision in plan_alone(
            [b for b in inventory.backups if b.kind == kind], policy, inventory, settings, now
        )
    ]
    log = plan_log(inventory, settings.incremental_days, now)
    decisions += log.backups
    refusal = doubt_of_clock(inventory.backups, decisions, settings, now)
    return Plan(decisions=decisions, wal=log.wal, refusal=refusal)


def policies(
    inventory: Inventory, settings: RetentionSettings, now: datetime
) -> Mapping[Kind, Policy]:
    """How long those stay that need no others. A backup taken before a restore has a limit of its own."""
    states = [b for b in inventory.backups if b.kind == "application_state"]
    safety = by_age(settings.pre_restore_days, now)
    regular: Mapping[Kind, Policy] = {
        "full": by_age(settings.full_days, now),
        "application_state": by_deployment(states, inventory, settings.application_deployments),
        "configuration": by_age(settings.configuration_days, now),
    }
    return {kind: _either(safety, policy) for kind, policy in regular.items()}


def _either(safety: Policy, regular: Policy) -> Policy:
    return lambda backup: (safety if is_safety(backup) else regular)(backup)


def doubt_of_clock(
    backups: Sequence[Backup],
    decisions: Sequence[Decision],
    settings: RetentionSettings,
    now: datetime,
) -> str | None:
    """Why this clock is not believed; None if it is, and where nothing is to be deleted."""
    if all(decision.keep for decision in decisions):
        return None
    made = [(_made(b), b) for b in backups if b.manifest is not None]
    newest, backup = max(made, key=lambda pair: pair[0])
    if newest > now + _ZONES:
        return f"{backup.backup_id} is of {newest:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} UTC now"
    if now - newest > timedelta(days=settings.quiet_days):
        return (
            f"the newest backup, {backup.backup_id}, is {(now - newest).days} days old: nothing that came "
            f"since takes the place of what would be deleted (retention.quiet_days is {settings.quiet_days})"
        )
    for kind in _AGED:
        of_kind = [decision for decision in decisions if decision.backup.kind == kind]
        doomed = sum(not decision.keep for decision in of_kind)
        if doomed > max(_A_FEW, settings.largest_share * len(of_kind)):
            return (
                f"{doomed} of {len(of_kind)} {kind} backups would go at once, more than "
                f"retention.largest_share ({settings.largest_share:g})"
            )
    return None


def _made(backup: Backup) -> datetime:
    manifest = backup.require_manifest()
    return since(backup) if manifest.wal else manifest.completed_at
