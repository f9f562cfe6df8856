"""How the backups stand at a moment, from the repository alone.

``look_at`` reads it, ``judge`` is pure: facts, settings and a time in, figures and troubles out. What only
the server knows (slot lag, failures of its archiver) stands in the manifests of the increments.

Where to look next: ``survey`` for the facts, ``figures`` for what is counted, ``findings`` for what is wrong
with it, ``trouble`` for what alerts carry.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.attempts import Attempts
from kyb_backup_pipeline.engine.errors import CouldNotVerify, NotFound
from kyb_backup_pipeline.engine.figures import (
    KINDS,
    KindHealth,
    Space,
    Surroundings,
    figures_of,
    limits_of,
    space_of,
)
from kyb_backup_pipeline.engine.findings import troubles_of
from kyb_backup_pipeline.engine.inventory import surveyed
from kyb_backup_pipeline.engine.journal import all_journals
from kyb_backup_pipeline.engine.kept_too_long import KEPT
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_findings import OFFSITE
from kyb_backup_pipeline.engine.offsite_standing import PlaceStanding, standings_of
from kyb_backup_pipeline.engine.offsite_view import views_of
from kyb_backup_pipeline.engine.prune_records import PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Fact, Survey
from kyb_backup_pipeline.engine.trouble import SEVERITIES, Trouble

STALE = ("stale:",)
ELSE = ("repository", "missed:", "failed:", "verification:", "restore_test:", "unsure:", "unverified:",
        "unrestore_tested:", "anomaly:", "gap:", "slot_lag", "archiver", "space", "unreadable:", "clock",
        "leftovers", "restore:", "retention", KEPT, OFFSITE)  # fmt: skip
"""What keys of troubles begin with: of these a look says when they are over."""
_PRUNES = 50


@dataclass(frozen=True, kw_only=True)
class Health:
    """How it stands. ``recovery_point`` is the newest moment that can be recovered to, ``recovery_time``
    the seconds of the newest restore test that passed.
    """

    at: datetime
    kinds: dict[Kind, KindHealth]
    space: Space
    recovery_point: datetime | None
    recovery_time: float | None
    slot_lag: int | None
    troubles: tuple[Trouble, ...]
    places: tuple[PlaceStanding, ...] = ()

    @property
    def well(self) -> bool:
        """Whether nothing is worse than an information."""
        return all(trouble.severity == "info" for trouble in self.troubles)


def look_at(settings: Settings, survey: Survey, *, now: datetime) -> Health:
    """Look at a repository. One that is not there is a trouble, not an error."""
    try:
        facts = survey.look()
        around = _surroundings(settings, survey)
    except (NotFound, CouldNotVerify) as error:
        return _nothing(settings, error.message, now)
    except OSError as error:
        return _nothing(settings, f"{error.filename}: {error.strerror}", now)
    return judge(settings, facts, around, now)


def judge(settings: Settings, facts: Sequence[Fact], around: Surroundings, now: datetime) -> Health:
    """Judge what was found. ``facts`` have the newest first."""
    limits = limits_of(settings.health)
    kinds = {
        kind: figures_of(kind, facts, limits[kind], around.failures.get(kind), now)
        for kind in KINDS
    }
    space = space_of(facts, around, now)
    tested = kinds["full"].restore_tested
    newest_increment = kinds["incremental"].newest
    reached = [coverage.until for coverage in around.coverage]
    for fact in facts:
        if fact.kind == "full" and fact.at is not None:
            reached.append(fact.at - timedelta(seconds=fact.seconds or 0))  # its snapshot
    troubles = troubles_of(settings, kinds, space, facts, around, now)
    worst_first = sorted(troubles, key=lambda t: -SEVERITIES.index(t.severity))
    return Health(
        at=now,
        kinds=kinds,
        space=space,
        recovery_point=max(reached, default=None),
        recovery_time=tested.restore_test.recovery if tested and tested.restore_test else None,
        slot_lag=newest_increment.lag if newest_increment else None,
        troubles=tuple(worst_first),
        places=standings_of(settings.offsite, around.views),
    )


def _surroundings(settings: Settings, survey: Survey) -> Surroundings:
    repository = survey.repository
    attempts = Attempts(repository.root)
    status = os.statvfs(repository.root)
    return Surroundings(
        failures={kind: attempts.last(kind) for kind in KINDS},
        leftovers=tuple(repository.leftovers()),
        coverage=survey.coverage(),
        free=status.f_bavail * status.f_frsize,
        total=status.f_blocks * status.f_frsize,
        prunes=tuple(_prunes(repository)),
        inventory=surveyed(survey),
        views=views_of(repository.root, settings.offsite),
        killed_restores=tuple(j.restore_id for j in all_journals(settings) if j.abandoned()),
    )


def _prunes(repository: Repository) -> list[PruneRecord]:
    """The newest prunes, but for the one that runs at this moment: it has not been killed."""
    prunes = PruneRecords(repository.root).newest(_PRUNES)
    running = bool(prunes) and prunes[0].state == "running" and repository.being_pruned()
    return prunes[1:] if running else prunes


def _nothing(settings: Settings, why: str, now: datetime) -> Health:
    limits = limits_of(settings.health)
    trouble = Trouble(
        key="repository", severity="critical", title=f"the repository cannot be read: {why}",
        hint="is it mounted? BACKUP_DIR (or repository) names it",
    )  # fmt: skip
    return Health(
        at=now, kinds={kind: figures_of(kind, (), limits[kind], None, now) for kind in KINDS},
        space=Space(free=0, total=0, used_by_backups=0, growth=0), recovery_point=None,
        recovery_time=None, slot_lag=None, troubles=(trouble,),
    )  # fmt: skip
