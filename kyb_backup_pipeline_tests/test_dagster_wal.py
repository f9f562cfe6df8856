"""Base backups, increments and point-in-time restore tests in the Dagster room."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.backup_view import chain_check
from kyb_backup_pipeline.defs.incremental import base_backup_sensor
from kyb_backup_pipeline.defs.partitions import BASE, INCREMENTAL
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline_tests.conftest import settings_file
from kyb_backup_pipeline_tests.test_dagster import (
    failure,
    green,
    new_instance,
    newest_metadata,
    run,
    tick,
)
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def primary(place: Path, tmp_path: Path, drills: Path) -> Iterator[Primary]:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) AS n")
        yield primary


@pytest.fixture
def engine(primary: Primary, tmp_path: Path) -> EngineResource:
    file = settings_file(primary.settings, tmp_path / "kyb_backup.toml")
    return EngineResource(config_file=str(file))


def test_base_increment_and_point_in_time_test_are_green_and_linked(
    instance: dg.DagsterInstance, engine: EngineResource, primary: Primary
) -> None:
    assert run(instance, engine, "base_backup_job", "base_1").success
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    assert run(instance, engine, "incremental_backup_job", "incr_1").success
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 250) AS n")
    assert run(instance, engine, "point_in_time_test_job", "incr_2").success
    for key in (BASE.backup, BASE.proofs["verification"]):
        assert green(instance, key, "base_1"), key
    for key in (INCREMENTAL.backup, *INCREMENTAL.proofs.values()):
        assert green(instance, key, "incr_2"), key
    assert newest_metadata(instance, INCREMENTAL.backup, "incr_2")["base"] == "base_1"
    assert newest_metadata(instance, INCREMENTAL.backup, "incr_2")["previous"] == "incr_1"
    tested = newest_metadata(instance, INCREMENTAL.proofs["restore_test"], "incr_2")
    assert (tested["rows"], tested["markers_committed"]) == (1750, 2)
    assert tested["card"].startswith("## Passed")
    # on demand, for an increment of before
    test = INCREMENTAL.proofs["restore_test"]
    assert run(instance, engine, "point_in_time_test_job", "incr_1", [test]).success
    assert newest_metadata(instance, test, "incr_1")["rows"] == 1500


def test_a_hole_in_the_chain_fails_the_proofs_of_the_increment(
    instance: dg.DagsterInstance, engine: EngineResource, primary: Primary
) -> None:
    run(instance, engine, "base_backup_job", "base_1")
    run(instance, engine, "incremental_backup_job", "incr_1")
    manifest = primary.repository.find("incr_1").require_manifest()
    stored = primary.repository.wal.find(manifest.require_wal().segments[0].name)
    assert stored is not None
    stored.path.unlink()
    result = run(instance, engine, "verify_all_backups")
    assert stored.name in failure(result, "verify_each_backup").description
    verification = INCREMENTAL.proofs["verification"]
    assert not green(instance, verification, "incr_1")
    assert green(instance, BASE.proofs["verification"], "base_1")


def test_what_the_command_line_did_appears_in_the_family_it_belongs_to(
    instance: dg.DagsterInstance, engine: EngineResource, primary: Primary
) -> None:
    base, increment = primary.base(), primary.increment()
    for manifest in (base, increment):
        backup = primary.repository.find(manifest.backup_id)
        verify_backup(primary.repository, backup, settings=primary.settings, now=utc_now())
    primary.drill()
    tick(instance, engine)
    assert BASE.listed(instance) == {base.backup_id}
    assert INCREMENTAL.listed(instance) == {increment.backup_id}
    tick(instance, engine)
    assert green(instance, BASE.proofs["verification"], base.backup_id)
    assert green(instance, INCREMENTAL.proofs["restore_test"], increment.backup_id)
    assert tick(instance, engine) is None


def test_the_check_of_the_chain_fails_where_nothing_leads_to_an_increment(
    primary: Primary,
) -> None:
    primary.base()
    increment = primary.increment()
    assert chain_check(primary.repository, increment).passed
    stored = primary.repository.wal.find(increment.require_wal().segments[-1].name)
    assert stored is not None
    stored.path.unlink()
    check = chain_check(primary.repository, increment)
    assert not check.passed
    assert stored.name in str(check.description)


def test_an_old_base_asks_for_a_new_one_once_a_day(
    instance: dg.DagsterInstance, engine: EngineResource, primary: Primary, tmp_path: Path
) -> None:
    def look() -> dg.RunRequest | dg.SkipReason:
        context = dg.build_sensor_context(
            instance=instance, resources={"engine": engine}, definitions=defs
        )
        answer = base_backup_sensor(context)
        assert isinstance(answer, dg.RunRequest | dg.SkipReason)
        return answer

    first = look()
    assert isinstance(first, dg.RunRequest)
    assert first.run_key == f"base after none {datetime.now(UTC):%Y-%m-%d}"
    base = primary.base()
    assert isinstance(look(), dg.SkipReason)
    file = Path(engine.config_file)
    file.write_text(file.read_text() + "[base_backup]\nmax_age = 0.001\n")
    again = look()
    assert isinstance(again, dg.RunRequest)
    assert base.backup_id in str(again.run_key)


@pytest.mark.parametrize(
    ("schedule", "prefix"),
    [("base_backup", "base"), ("incremental_backup", "incr"), ("point_in_time_test", "incr")],
)
def test_schedules_name_the_partition_from_their_time(
    instance: dg.DagsterInstance, schedule: str, prefix: str
) -> None:
    when = datetime(2026, 2, 1, 5, 0, tzinfo=UTC) + timedelta(minutes=30)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=when)
    data = defs.resolve_schedule_def(f"{schedule}_schedule").evaluate_tick(context)
    (request,) = data.run_requests or []
    assert request.tags["dagster/partition"] == f"{prefix}_20260201_053000"
