"""How the backups stand: what is judged, from facts; and what is read, from real repositories."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.attempts import Attempt, Attempts
from kyb_backup_pipeline.engine.backup import Leftover
from kyb_backup_pipeline.engine.errors import BackupFailed, DatabaseUnreachable
from kyb_backup_pipeline.engine.figures import Surroundings
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.health import Health, judge, look_at
from kyb_backup_pipeline.engine.manifest import Kind, utc_now
from kyb_backup_pipeline.engine.prune_records import PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Fact, ProofFact, Survey
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.wal_clusters import primary_of, running_cluster

NOW = datetime(2026, 3, 4, 7, 0, tzinfo=UTC)
"""A Wednesday, after every schedule of the night."""
GIB = 2**30


def hours(ago: float) -> datetime:
    return NOW - timedelta(hours=ago)


def passed(at: datetime, recovery: float | None = None) -> ProofFact:
    return ProofFact("passed", at, "all is as it was", 10.0, recovery, 1000)


def full(name: str = "full_1", ago: float = 4.9, **changes: Any) -> Fact:
    at = hours(ago)
    fact = Fact(name, "full", at, size=1000, seconds=60, rows=1000, database="kyb_platform",
                verification=passed(at), restore_test=passed(at, 42.5))  # fmt: skip
    return replace(fact, **changes)


def sound() -> list[Fact]:
    """A repository in which nothing is wrong."""
    at = hours(0.4)
    return [
        Fact("incr_1", "incremental", at, size=10, verification=passed(at), restore_test=passed(at)),
        Fact("config_1", "configuration", hours(3.9), size=5, verification=passed(hours(3.9))),
        full(),
        Fact("app_1", "application_state", hours(30), size=5, deployment="v1",
             verification=passed(hours(3))),
        Fact("base_1", "base", hours(77.9), size=900, verification=passed(hours(3))),
    ]  # fmt: skip


AROUND = Surroundings(failures={}, free=500 * GIB, total=1000 * GIB)


def judged(
    facts: list[Fact] | None = None, around: Surroundings = AROUND, **environment: str
) -> Health:
    settings = config.load(environment={f"KYB_{k}": v for k, v in environment.items()})
    found = sound() if facts is None else facts
    newest_first = sorted(found, key=lambda f: f.at.timestamp() if f.at else 0, reverse=True)
    return judge(settings, newest_first, around, NOW)


def told(health: Health) -> dict[str, str]:
    return {trouble.key: trouble.severity for trouble in health.troubles}


def without(kind: Kind) -> list[Fact]:
    return [fact for fact in sound() if fact.kind != kind]


def test_of_a_sound_repository_nothing_is_said() -> None:
    health = judged()
    assert (health.troubles, health.well) == ((), True)
    assert health.recovery_time == 42.5
    assert health.recovery_point == hours(4.9) - timedelta(seconds=60)
    assert health.kinds["full"].verified == health.kinds["full"].newest


@pytest.mark.parametrize(
    ("kind", "ago"),
    [("full", 26), ("incremental", 7.5), ("configuration", 26), ("application_state", 169),
     ("base", 193)],
)  # fmt: skip
def test_an_old_backup_of_each_kind_is_told_and_one_that_never_was(kind: Kind, ago: float) -> None:
    (one,) = [fact for fact in sound() if fact.kind == kind]
    old = judged([*without(kind), replace(one, at=hours(ago))])
    assert told(old)[f"stale:{kind}"] == "critical"
    assert not old.well
    never = judged(without(kind))
    severity = "warning" if kind == "application_state" else "critical"
    assert told(never)[f"stale:{kind}"] == severity
    assert "there has never been" in never.troubles[0].title
    limit = {f"HEALTH__{kind.upper()}_MAX_AGE": "0"}
    assert f"stale:{kind}" not in told(judged(without(kind), AROUND, **limit))


def test_a_safety_backup_makes_nothing_fresh_and_a_bad_manifest_neither() -> None:
    stale = full(ago=30)
    safety = full("pre_restore_1", ago=1)
    broken = Fact("full_2", "full", None, problem="backup_metadata.json cannot be read")
    found = told(judged([*without("full"), stale, safety, broken]))
    assert found["stale:full"] == "critical"
    assert found["unreadable:full_2"] == "warning"


def test_a_schedule_that_passed_without_a_backup_is_told_before_the_age_is_too_much() -> None:
    health = judged([*without("full"), full(ago=24.5)])
    assert told(health) == {"missed:full": "warning"}
    assert "2026-03-04 02:00" in health.troubles[0].title
    assert told(judged([*without("full"), full(ago=24.5)], HEALTH__SCHEDULE_GRACE="36000")) == {}


def test_bad_unsure_and_unproved_backups() -> None:
    bad = ProofFact("failed", hours(3), "table t has 3 rows less", 10)
    unsure = ProofFact("could_not_verify", hours(3), "no key", 1)
    assert (
        told(judged([*without("full"), full(restore_test=bad)]))["restore_test:full_1"]
        == "critical"
    )
    assert (
        told(judged([*without("full"), full(verification=bad)]))["verification:full_1"]
        == "critical"
    )
    old = full("full_0", ago=60, restore_test=bad)
    assert told(judged([*without("full"), full(), old]))["restore_test:full_0"] == "warning"
    chained = [*without("incremental"), Fact("incr_2", "incremental", hours(0.1), verification=passed(hours(0)), restore_test=passed(hours(0))),
               Fact("incr_1", "incremental", hours(0.4), verification=bad)]  # fmt: skip
    assert told(judged(chained))["verification:incr_1"] == "critical", "the chain leads over it"
    assert told(judged([*without("full"), full(verification=unsure)])) == {"unsure:full": "warning"}
    facts = [*without("full"), full(verification=unsure)]
    assert told(judged(facts, HEALTH__VERIFIED_MAX_AGE="0")) == {}
    old = full("full_0", ago=60)
    never = full(verification=None, restore_test=None)
    assert told(judged([*without("full"), never, old])) == {
        "unverified:full": "warning", "unrestore_tested:full": "warning",
    }  # fmt: skip
    young = [*without("full"), full(verification=None, restore_test=None)]
    assert told(judged(young)) == {}  # its proofs may be on their way
    increment = Fact("incr_1", "incremental", hours(0.4), verification=passed(hours(0.3)),
                     restore_test=passed(hours(33 * 24)))  # fmt: skip
    assert told(judged([*without("incremental"), increment])) == {
        "unrestore_tested:incremental": "warning"
    }


def test_the_last_attempt_failed_and_was_not_made_up_for() -> None:
    attempt = Attempt(
        kind="full", backup_id="full_2", at=hours(1), error="no connection", hint="DB_HOST"
    )
    health = judged(around=replace(AROUND, failures={"full": attempt}))
    assert told(health) == {"failed:full": "warning"}
    assert (health.troubles[0].title, health.troubles[0].hint) == (
        "the last full backup failed: no connection", "DB_HOST",
    )  # fmt: skip
    earlier = attempt.model_copy(update={"at": hours(6)})
    assert told(judged(around=replace(AROUND, failures={"full": earlier}))) == {}


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"size": 400}, "anomaly:size:full"), ({"size": 3100}, "anomaly:size:full"),
     ({"rows": 400}, "anomaly:rows:full"), ({"seconds": 300}, "anomaly:duration:full")],
)  # fmt: skip
def test_sizes_rows_and_durations_out_of_line(changes: dict[str, Any], key: str) -> None:
    earlier = [full(f"full_{n}", ago=5 + 24 * n) for n in range(1, 5)]
    assert told(judged([*without("full"), *earlier, full(**changes)])) == {key: "warning"}
    assert told(judged([*without("full"), *earlier[:2], full(**changes)])) == {}  # too few to tell
    other = [replace(f, database="another") for f in earlier]
    assert told(judged([*without("full"), *other, full(**changes)])) == {}


def test_room_lag_clocks_and_leftovers() -> None:
    assert told(judged(around=replace(AROUND, free=GIB))) == {"space": "critical"}
    growing = [*without("full"), full(size=40 * GIB)]
    assert told(judged(growing, around=replace(AROUND, free=50 * GIB))) == {"space": "warning"}
    lagging = replace(sound()[0], lag=3 * GIB, archive_failures=2)
    assert told(judged([*without("incremental"), lagging])) == {
        "slot_lag": "warning", "archiver": "warning",
    }  # fmt: skip
    assert told(judged([*sound(), full("full_9", ago=-1)])) == {"clock": "critical"}
    left = Leftover(
        folder=Path("/backups/database/full/.x.partial"), partial=True, modified=hours(25)
    )
    assert told(judged(around=replace(AROUND, leftovers=(left,)))) == {"leftovers": "info"}
    young = replace(left, modified=hours(3))
    assert told(judged(around=replace(AROUND, leftovers=(young,)))) == {}
    killed = replace(AROUND, killed_restores=("restore_1",))
    assert told(judged(around=killed)) == {"restore:restore_1": "critical"}


# What is read


@pytest.fixture
def look(settings: Settings) -> Callable[[], Health]:
    survey = Survey(Repository(settings.repository))
    return lambda: look_at(settings, survey, now=utc_now())


def test_a_repository_that_is_not_there_is_a_trouble_and_no_crash(
    settings: Settings, look: Callable[[], Health]
) -> None:
    assert told(look()) == {"repository": "critical"}
    settings.repository.mkdir()  # a mount point with nothing mounted on it
    assert told(look()) == {"repository": "critical"}


def test_each_look_sees_what_came_went_and_was_proved_since(
    settings: Settings, look: Callable[[], Health]
) -> None:
    first = take_full_backup(settings, Request(backup_id="first"), now=utc_now())
    one = look().kinds["full"]
    assert (one.newest and one.newest.backup_id, one.verified, one.count) == ("first", None, 1)
    verify_backup(Repository(settings.repository), first, settings=settings, now=utc_now())
    health = look()
    assert health.kinds["full"].verified == health.kinds["full"].newest
    assert health.recovery_time is None
    drill_full_backup(settings, first, now=utc_now())
    health = look()
    assert health.kinds["full"].restore_tested is not None
    assert health.recovery_time is not None
    assert health.recovery_time > 0
    (first.folder / "backup_metadata.json").write_text("{")
    os.utime(first.folder / "backup_metadata.json")
    health = look()
    assert told(health)["unreadable:first"] == "warning"
    assert told(health)["stale:full"] == "critical"
    shutil.rmtree(first.folder)
    assert look().kinds["full"].count == 0


def test_a_backup_that_fails_leaves_a_line_until_one_succeeds(
    settings: Settings, look: Callable[[], Health]
) -> None:
    database = settings.database.model_copy(update={"name": "nowhere"})
    with pytest.raises(DatabaseUnreachable):
        take_full_backup(
            settings.model_copy(update={"database": database}), Request(), now=utc_now()
        )
    health = look()
    assert told(health)["failed:full"] == "warning"
    (failed,) = [t for t in health.troubles if t.key == "failed:full"]
    assert "'nowhere'" in failed.title
    take_full_backup(settings, Request(), now=utc_now())
    assert "failed:full" not in told(look())


def test_only_the_newest_failures_are_kept_and_none_of_them_is_a_secret(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    for number in range(60):
        error = BackupFailed(f"number {number}")
        attempts.keep("full", f"full_{number}", error, NOW + timedelta(minutes=number))
    assert len(list(attempts.folder.iterdir())) == 50
    last = attempts.last("full")
    assert last is not None
    assert (last.error, last.exit_code) == ("number 59", 5)
    newest = max(attempts.folder.iterdir())
    newest.write_text("{")
    last = attempts.last("full")
    assert last is not None
    assert last.error == "number 58"


def test_prunes_that_were_killed_or_are_no_longer_made_are_told_and_one_that_runs_is_not(
    settings: Settings, look: Callable[[], Health]
) -> None:
    repository = Repository(settings.repository)
    repository.create()
    with repository.deleting(utc_now()):
        PruneRecords(repository.root).keep(
            PruneRecord(state="running", began_at=utc_now(), by="me")
        )
        assert "retention" not in told(look())
    assert told(look())["retention"] == "warning"
    long_ago = utc_now() - timedelta(hours=74)
    shutil.rmtree(repository.root / "monitoring" / "retention")
    PruneRecords(repository.root).keep(PruneRecord(state="done", began_at=long_ago, by="me"))
    assert told(look())["retention"] == "warning"
    PruneRecords(repository.root).keep(PruneRecord(state="done", began_at=utc_now(), by="me"))
    assert "retention" not in told(look())


def test_a_hole_in_the_log_and_the_recovery_point(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        primary.base()
        primary.increment()
        primary.sql("INSERT INTO t SELECT generate_series(1, 100000)")
        newest = primary.increment()
        survey = Survey(primary.repository)
        health = look_at(primary.settings, survey, now=utc_now())
        assert health.recovery_point == newest.require_wal().markers[-1].at
        assert "gap:1" not in told(health)
        lost = newest.require_wal().segments[0].name
        (path,) = (primary.repository.wal.root / "00000001").glob(f"{lost}-*")
        path.unlink()
        health = look_at(primary.settings, survey, now=utc_now())
        assert told(health)["gap:1"] == "critical"
        assert health.recovery_point is not None
        assert health.recovery_point < newest.require_wal().markers[-1].at


def test_status_for_eyes_and_for_cron(settings: Settings) -> None:
    cli = Cli(None, {
        "BACKUP_DIR": str(settings.repository), "DB_HOST": settings.database.host,
        "DB_PORT": str(settings.database.port), "DB_NAME": settings.database.name,
        "DB_USER": settings.database.user, "KYB_BACKUP__MINIMUM_FREE": "0",
        **{f"KYB_HEALTH__{kind}_MAX_AGE": "0"
           for kind in ("BASE", "INCREMENTAL", "CONFIGURATION", "APPLICATION_STATE")},
    })  # fmt: skip
    assert cli.run("status").returncode == 6
    assert cli.run("backup", "full", "--id", "first").returncode == 0
    run = cli.run("status")
    assert run.returncode == 0, run.stdout
    assert "all is well" in run.stdout
    document = json.loads(cli.run("status", "--json").stdout)
    assert document["well"]
    assert document["kinds"]["full"]["newest"] == "first"
    assert document["kinds"]["full"]["age_seconds"] < 60
