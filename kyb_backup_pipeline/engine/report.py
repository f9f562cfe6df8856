"""The health report: how the backups stand and how they stood, for those who must answer for them.

Findings first, then each kind, pictures, every backup with its proofs, and what was deleted. One set of facts
for every form of it: JSON, text, a page (``report_page``), and the UI.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kyb_backup_pipeline.engine.figures import KindHealth
from kyb_backup_pipeline.engine.health import Health, look_at
from kyb_backup_pipeline.engine.manifest import Verdict
from kyb_backup_pipeline.engine.offsite_standing import PlaceStanding
from kyb_backup_pipeline.engine.prune_records import PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.records import RECORD_STAMP, ProofRecords, proof_order
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.survey import Fact, Survey

DAYS = 60
"""How far the history of restore tests reaches back."""
_PRUNES = 30


@dataclass(frozen=True, kw_only=True)
class RestoreTest:
    """One restore test; ``seconds`` is the recovery time, where it came so far, ``in_time`` whether it was
    a recovery to a moment.
    """

    backup_id: str
    at: datetime
    verdict: Verdict
    seconds: float | None
    in_time: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report says. ``facts`` have the newest first, ``tests`` the oldest."""

    repository: str
    health: Health
    facts: tuple[Fact, ...]
    tests: tuple[RestoreTest, ...]
    pruned: tuple[PruneRecord, ...] = ()


def make_report(settings: Settings, survey: Survey, *, now: datetime) -> Report:
    """Look at the repository and its records. One that is not there is in the findings."""
    health = look_at(settings, survey, now=now)
    facts: tuple[Fact, ...] = ()
    if not any(trouble.key == "repository" for trouble in health.troubles):
        facts = tuple(survey.look())
    tests = _tests(survey.repository.records, now - timedelta(days=DAYS))
    return Report(
        repository=str(settings.repository),
        health=health,
        facts=facts,
        tests=tuple(tests),
        pruned=tuple(PruneRecords(settings.repository).newest(_PRUNES)),
    )


def _tests(records: ProofRecords, since: datetime) -> list[RestoreTest]:
    """The restore tests of a time, also of backups that are pruned by now."""
    found = []
    for path in records.files(f"{since:{RECORD_STAMP}}"):
        if not path.name.startswith("restore_test_") or not proof_order(path):
            continue
        with contextlib.suppress(OSError, ValueError):
            proof = records.read(path)
            found.append(
                RestoreTest(backup_id=proof.backup_id, at=proof.finished_at, verdict=proof.verdict,
                     seconds=proof.figures.get("recovery_seconds"),
                     in_time="markers_committed" in proof.figures or "unpack" in proof.steps)
            )  # fmt: skip
    return found


def as_document(report: Report) -> dict[str, Any]:
    """The whole of it, for machines."""
    return {
        "repository": report.repository,
        **health_document(report.health),
        "restore_tests": [
            {"backup": t.backup_id, "at": t.at.isoformat(), "verdict": t.verdict,
             "recovery_seconds": t.seconds}
            for t in report.tests
        ],
        "backups": [backup_document(fact, report.health.places) for fact in report.facts],
        "pruned": [
            {"at": record.began_at.isoformat(), "state": record.state, "refusal": record.refusal,
             "deleted": [gone.model_dump() for gone in record.deleted]}
            for record in report.pruned
        ],
    }  # fmt: skip


def health_document(health: Health) -> dict[str, Any]:
    """How it stands, for machines. Times in ISO 8601, ages in seconds, sizes in bytes."""
    return {
        "at": health.at.isoformat(),
        "well": health.well,
        "kinds": {kind: _kind_document(one) for kind, one in health.kinds.items()},
        "recovery_point": health.recovery_point.isoformat() if health.recovery_point else None,
        "recovery_time_seconds": health.recovery_time,
        "slot_lag_bytes": health.slot_lag,
        "offsite": [place_document(place, health.at) for place in health.places],
        "space": {
            "free_bytes": health.space.free,
            "total_bytes": health.space.total,
            "backups_bytes": health.space.used_by_backups,
            "growth_bytes_per_day": round(health.space.growth),
            "days_until_full": health.space.days_until_full,
        },
        "troubles": [
            {"key": t.key, "severity": t.severity, "title": t.title, "text": t.text, "hint": t.hint,
             "backup": t.backup_id}
            for t in health.troubles
        ],
    }  # fmt: skip


def place_document(place: PlaceStanding, now: datetime) -> dict[str, Any]:
    """One off-site place, as it was seen last."""
    view = place.view
    return {
        "target": place.name, "url": view.url, "reachable": view.trouble is None,
        "unreachable_since": view.trouble.since.isoformat() if view.trouble else None,
        "looked_at": view.looked_at.isoformat() if view.looked_at else None,
        "verified_at": place.verified_at.isoformat() if place.verified_at else None,
        "deletable": place.deletable(now),
        "locked_until": view.locked_until.isoformat() if view.locked_until else None,
        "copies": len(view.copies), "damaged": sorted(view.damaged),
        "newest": {
            kind: {"backup": backup_id, "finished_at": seen.finished_at.isoformat(), "verification": seen.verdict}
            for kind, (backup_id, seen) in place.newest.items()
        },
    }  # fmt: skip


def backup_document(fact: Fact, places: Sequence[PlaceStanding] = ()) -> dict[str, Any]:
    """One backup, its proofs, and the places that have a copy."""
    return {
        "id": fact.backup_id, "kind": fact.kind, "finished_at": fact.at.isoformat() if fact.at else None,
        "size_bytes": fact.size, "rows": fact.rows, "label": fact.label, "deployment": fact.deployment,
        "verification": fact.verification.verdict if fact.verification else None,
        "restore_test": fact.restore_test.verdict if fact.restore_test else None,
        "offsite": [place.name for place in places if place.state(fact.backup_id)],
        "problem": fact.problem,
    }  # fmt: skip


def _kind_document(one: KindHealth) -> dict[str, Any]:
    return {
        "count": one.count,
        "bytes": one.size,
        "newest": one.newest.backup_id if one.newest else None,
        "age_seconds": round(one.age.total_seconds()) if one.age else None,
        "limit_seconds": round(one.limit.total_seconds()) if one.limit else None,
        "stale": one.stale,
        "verified": one.verified.backup_id if one.verified else None,
        "restore_tested": one.restore_tested.backup_id if one.restore_tested else None,
        "last_failure": one.failure.at.isoformat() if one.failure else None,
    }


def days_of(
    tests: Sequence[RestoreTest], now: datetime
) -> list[tuple[datetime, list[RestoreTest]]]:
    """The last sixty days, each with its tests, the oldest first."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    days = [midnight - timedelta(days=n) for n in range(DAYS - 1, -1, -1)]
    return [(day, [t for t in tests if day <= t.at < day + timedelta(days=1)]) for day in days]
