"""The figures of a look at the repository: each kind of backup, and the room there is.

Pure: facts and a time in, figures out. ``findings`` says what is wrong with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.attempts import Attempt
from kyb_backup_pipeline.engine.backup import Leftover
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_view import View
from kyb_backup_pipeline.engine.prune_records import PruneRecord
from kyb_backup_pipeline.engine.recovery_plan import Coverage
from kyb_backup_pipeline.engine.settings import HealthSettings
from kyb_backup_pipeline.engine.survey import Fact, ProofName

KINDS: tuple[Kind, ...] = ("full", "base", "incremental", "configuration", "application_state")
RESTORE_TESTED: tuple[Kind, ...] = ("full", "incremental")
"""Kinds that are restored on throwaway servers; of the others every member is compared."""
_WEEK = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class KindHealth:
    """One kind of backup; ``limit`` is None where its age is not watched."""

    kind: Kind
    count: int
    size: int
    newest: Fact | None
    age: timedelta | None
    limit: timedelta | None
    verified: Fact | None
    restore_tested: Fact | None
    failure: Attempt | None

    def proved(self, name: ProofName) -> Fact | None:
        """The newest that passed this proof."""
        return self.verified if name == "verification" else self.restore_tested

    @property
    def stale(self) -> bool:
        """Whether the newest one is too old, or there is none."""
        return self.limit is not None and (self.age is None or self.age > self.limit)


@dataclass(frozen=True, kw_only=True)
class Space:
    """The file system of the repository, in bytes; ``growth`` is what a day of the last week added."""

    free: int
    total: int
    used_by_backups: int
    growth: float

    @property
    def days_until_full(self) -> float | None:
        return self.free / self.growth if self.growth > 0 else None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a look found beside the backups."""

    failures: dict[Kind, Attempt | None]
    leftovers: tuple[Leftover, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    free: int = 0
    total: int = 0
    killed_restores: tuple[str, ...] = ()
    prunes: tuple[PruneRecord, ...] = ()
    inventory: Inventory | None = None
    views: tuple[View, ...] = ()


def limits_of(health: HealthSettings) -> dict[Kind, timedelta | None]:
    """The greatest age of each kind; None where it is not watched."""
    hours: dict[Kind, float] = {
        "full": health.full_max_age,
        "base": health.base_max_age,
        "incremental": health.incremental_max_age,
        "configuration": health.configuration_max_age,
        "application_state": health.application_state_max_age,
    }
    return {kind: timedelta(hours=value) if value else None for kind, value in hours.items()}


def named(kind: Kind) -> str:
    """A kind in a sentence."""
    return {"full": "full backup", "base": "base backup", "incremental": "incremental backup",
            "configuration": "configuration archive",
            "application_state": "backup of the application state"}[kind]  # fmt: skip


def figures_of(
    kind: Kind,
    facts: Sequence[Fact],
    limit: timedelta | None,
    failure: Attempt | None,
    now: datetime,
) -> KindHealth:
    """The figures of one kind; ``facts`` have the newest first."""
    own = [f for f in facts if f.kind == kind]
    regular = [f for f in own if f.at is not None and not f.safety]
    newest = regular[0] if regular else None
    return KindHealth(
        kind=kind,
        count=len(own),
        size=sum(f.size for f in own),
        newest=newest,
        age=now - newest.at if newest and newest.at else None,
        limit=limit,
        verified=next((f for f in regular if f.proved("verification")), None),
        restore_tested=next((f for f in regular if f.proved("restore_test")), None),
        failure=failure,
    )


def space_of(facts: Sequence[Fact], around: Surroundings, now: datetime) -> Space:
    """What the backups take, and what a day adds."""
    added = sum(f.size for f in facts if f.at is not None and now - f.at <= _WEEK)
    freed = sum(p.freed for p in around.prunes if p.state == "done" and now - p.began_at <= _WEEK)
    oldest = min((f.at for f in facts if f.at is not None), default=now)
    days = min(max((now - oldest) / timedelta(days=1), 1.0), 7.0)
    return Space(
        free=around.free,
        total=around.total,
        used_by_backups=sum(f.size for f in facts),
        growth=max(added - freed, 0) / days,
    )
