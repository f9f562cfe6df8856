"""What is kept and what goes: golden tables of the plan, and the deletion on real folders."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.config import RetentionSettings
from kyb_backup_pipeline.engine.errors import Locked
from kyb_backup_pipeline.engine.manifest import Kind, Manifest, utc_now
from kyb_backup_pipeline.engine.retention import Decision, plan_retention, prune
from kyb_backup_pipeline.engine.store import Backup
from kyb_backup_pipeline_tests.platforms import Platform

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def backup(kind: Kind, name: str, days: float, deployment: str | None = None) -> Backup:
    made = NOW - timedelta(days=days)
    manifest = Manifest(backup_id=name, timestamp=made, type=kind, backup_file=name, file_size=1,
                        format_version=1, finished_at=made, deployment=deployment)  # fmt: skip
    return Backup(backup_id=name, kind=kind, folder=Path(name), manifest=manifest)


def plan(
    *backups: Backup, verified: tuple[str, ...] = (), bad: tuple[str, ...] = (), **settings: int
) -> list[str]:
    decisions = plan_retention(
        sorted(backups, key=lambda b: b.manifest.completed_at if b.manifest else NOW, reverse=True),
        {name: name in verified for name in (*verified, *bad)},
        RetentionSettings(**settings),
        NOW,
    )
    return [f"{'keep' if d.keep else 'delete'} {d.backup.backup_id}: {d.why}" for d in decisions]


def test_deployments_are_counted_not_days_and_not_backups() -> None:
    backups = [
        backup("application_state", "a1", 1, "v3"), backup("application_state", "a2", 2, "v3"),
        backup("application_state", "a3", 400, "v2"), backup("application_state", "a4", 500, "v1"),
        backup("application_state", "a5", 600, "v3"), backup("application_state", "a6", 700),
    ]  # fmt: skip
    assert plan(*backups, application_deployments=2) == [
        "keep a1: deployment v3 is among the newest 2",
        "keep a2: deployment v3 is among the newest 2",
        "keep a3: deployment v2 is among the newest 2",
        "delete a4: deployment v1 is older than the newest 2",
        "keep a5: deployment v3 is among the newest 2",
        "delete a6: deployment a6 is older than the newest 2",
    ]


def test_configuration_goes_by_age_but_never_the_newest_nor_the_newest_that_was_proved() -> None:
    backups = [backup("configuration", f"c{n}", 100 + n) for n in range(4)]
    assert plan(*backups, verified=("c2", "c3")) == [
        "keep c0: the newest is never deleted",
        "delete c1: 101 days old, older than 90",
        "keep c2: the newest whose verification passed is never deleted",
        "delete c3: 103 days old, older than 90",
    ]
    young = [backup("configuration", "c0", 89.9), backup("configuration", "c1", 90.1)]
    assert plan(*young, verified=("c0",)) == [
        "keep c0: 89 days old, not older than 90",
        "delete c1: 90 days old, older than 90",
    ]


def test_what_failed_its_verification_stays_and_stands_for_nothing() -> None:
    states = [backup("application_state", f"a{n}", n, f"v{n}") for n in (1, 2, 3)]
    assert plan(*states, bad=("a1",), application_deployments=1) == [
        "keep a1: its verification failed: look at it",
        "keep a2: deployment v2 is among the newest 1",
        "delete a3: deployment v3 is older than the newest 1",
    ]
    archives = [backup("configuration", f"c{n}", 100 + n) for n in range(3)]
    assert plan(*archives, bad=("c0",)) == [
        "keep c0: its verification failed: look at it",
        "keep c1: the newest is never deleted",
        "delete c2: 102 days old, older than 90",
    ]


def test_what_cannot_be_read_and_what_was_saved_before_a_restore_stays() -> None:
    damaged = Backup(
        backup_id="d", kind="configuration", folder=Path("d"), manifest=None, problem="x"
    )
    saved = backup("configuration", "pre_restore_20200101_000000", 900)
    assert plan(damaged, saved, backup("configuration", "c", 1)) == [
        "keep d: cannot be read: look at it",
        "keep pre_restore_20200101_000000: saved before a restore: a person removes it",
        "keep c: 1 days old, not older than 90",
    ]
    assert plan() == []
    assert plan(backup("full", "f", 9000), backup("base", "b", 9000)) == []


def test_a_backup_that_is_read_is_not_deleted_and_one_that_is_not_is_gone(
    platform: Platform,
) -> None:
    backups = [platform.configuration(backup_id=f"c{n}") for n in range(3)]
    proof = platform.verify(backups[0])
    decisions = [Decision(backup=b, keep=n == 2, why="test") for n, b in enumerate(backups)]
    with platform.repository.reading(backups[0]):
        with pytest.raises(Locked, match="is being read"):
            prune(platform.repository, decisions[:1])
    assert platform.verify(backups[0]).verdict == "passed"
    prune(platform.repository, decisions)
    assert [b.backup_id for b in platform.repository.backups(("configuration",))] == ["c2"]
    assert not platform.repository.leftovers()
    assert proof.backup_id in {p.backup_id for p in platform.repository.records.of("c0")}
    with platform.repository.writing("configuration", "c9", now=utc_now()):
        pass
