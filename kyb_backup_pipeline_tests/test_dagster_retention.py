"""Retention in the Dagster room: what a run tells, what it refuses, and the partitions that leave."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from kyb_backup_pipeline.defs.partitions import CONFIGURATION, FULL, INCREMENTAL
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.sandbox.invented import names
from kyb_backup_pipeline_tests.shelves import Shelf, shelf_in, three_chains
from kyb_backup_pipeline_tests.test_dagster import failure, new_instance, run, tick


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_in(tmp_path / "backups")


@pytest.fixture
def engine(shelf: Shelf, tmp_path: Path) -> EngineResource:
    file = tmp_path / "kyb_backup.toml"
    file.write_text(f'repository = "{shelf.root}"\n[retention]\nminimum_kept = 1\n')
    return EngineResource(config_file=str(file))


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    (event,) = result.get_asset_materialization_events()
    return {key: value.value for key, value in event.materialization.metadata.items()}


def test_a_run_deletes_what_the_plan_says_and_tells_each_decision(
    instance: dg.DagsterInstance, engine: EngineResource, shelf: Shelf
) -> None:
    three_chains(shelf)
    result = run(instance, engine, "retention_job")
    assert result.success
    told = metadata(result)
    assert (told["deleted_full"], told["deleted_base"], told["deleted_incremental"]) == (15, 1, 3)
    assert (told["deleted_wal"], told["deleted_configuration"], told["skipped"]) == (12, 0, 0)
    assert told["kept"] == 38
    record = shelf.records()[0]
    assert (told["bytes_freed"], record.run_id) == (record.freed, result.run_id)
    decisions = str(told["decisions"])
    assert "| deleted | full_40 | 40 days old, older than 30 |" in decisions
    assert "| kept | full_01 | 1 days old, not older than 30 |" in decisions
    assert (
        f"| deleted | {names(range(1))[0]}..{names(range(11, 12))[0]} | in front of base_1"
        in decisions
    )


def test_the_partitions_of_deleted_backups_leave_the_ui(
    instance: dg.DagsterInstance, engine: EngineResource, shelf: Shelf
) -> None:
    three_chains(shelf)
    shelf.put("configuration", "conf_1", 1)
    tick(instance, engine)
    assert len(FULL.listed(instance)) == 45
    assert run(instance, engine, "retention_job").success
    tick(instance, engine)
    assert FULL.listed(instance) == {f"full_{day:02}" for day in range(30)}
    assert INCREMENTAL.listed(instance) == {f"incr_{n}{i}" for n in (1, 2) for i in range(3)}
    assert CONFIGURATION.listed(instance) == {"conf_1"}


def test_a_clock_that_jumped_fails_the_run_with_what_to_do(
    instance: dg.DagsterInstance, engine: EngineResource, shelf: Shelf
) -> None:
    past = Shelf(shelf.root, utc_now() - timedelta(days=365))
    three_chains(past)
    result = run(instance, engine, "retention_job")
    failed = failure(result, "retention")
    assert "has the clock jumped? Nothing was deleted" in failed.description
    assert "--despite-clock" in failed.metadata["hint"].value
    assert failed.metadata["exit_code"].value == 12
    assert len(shelf.ids()) == 57
    assert shelf.records()[0].state == "refused"


def test_a_repository_out_of_sight_fails_the_run(
    instance: dg.DagsterInstance, engine: EngineResource, shelf: Shelf
) -> None:
    shelf.root.rename(shelf.root.with_name("elsewhere"))
    assert (
        "is it mounted?" in failure(run(instance, engine, "retention_job"), "retention").description
    )
