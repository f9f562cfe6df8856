"""The restore of the database as a graph of ops: refused by default, safe to execute again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.database_restore import STEPS
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Target
from kyb_backup_pipeline.engine.recovery_journal import Journals
from kyb_backup_pipeline.engine.replaced import drop_replaced, replaced_databases
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline_tests.conftest import execute, settings_file
from kyb_backup_pipeline_tests.test_dagster import failure, new_instance, run


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def file(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    path = settings_file(settings, tmp_path / "kyb_backup.toml")
    path.write_text(path.read_text() + "[application]\nstop_command = []\nstart_command = []\n")
    yield path
    for replaced in replaced_databases(settings):
        drop_replaced(settings, replaced.name)


def allow(file: Path) -> EngineResource:
    file.write_text(file.read_text() + "[recovery]\nallow_from_ui = true\n")
    return EngineResource(config_file=str(file))


def launch(
    instance: dg.DagsterInstance, engine: EngineResource, confirm: str
) -> dg.ExecuteInProcessResult:
    wish = {"backup_id": "good", "confirm": confirm}
    config: dict[str, Any] = {"ops": {"begin_database_restore": {"config": wish}}}
    return run(instance, engine, "restore_database", run_config=config)


def users(settings: Settings) -> int:
    return int(execute(Target.of(settings), "SELECT count(*) FROM users")[0][0])


def test_it_is_refused_by_default_and_without_the_name(
    instance: dg.DagsterInstance, settings: Settings, file: Path
) -> None:
    take_full_backup(settings, Request(backup_id="good"), now=utc_now())
    closed = EngineResource(config_file=str(file))
    reason = failure(launch(instance, closed, settings.database.name), "begin_database_restore")
    assert "switched off" in reason.description
    assert reason.metadata["exit_code"].value == 12
    reason = failure(launch(instance, allow(file), "another"), "begin_database_restore")
    assert "confirm is 'another'" in reason.description
    assert not Journals.of(settings).all(Target.of(settings))


def test_every_step_is_an_op_and_the_database_is_restored(
    instance: dg.DagsterInstance, settings: Settings, file: Path
) -> None:
    before = users(settings)
    take_full_backup(settings, Request(backup_id="good"), now=utc_now())
    execute(Target.of(settings), "DELETE FROM audit_log")
    execute(Target.of(settings), "INSERT INTO users (email, full_name, password_hash, role) "
            "VALUES ('x@x', 'x', 'x', 'customer')")  # fmt: skip
    result = launch(instance, allow(file), settings.database.name)
    assert result.success
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert steps == ["begin_database_restore", *(f"restore_{name}" for name in STEPS)]
    assert users(settings) == before
    (journal,) = Journals.of(settings).all(Target.of(settings))
    assert (journal.state, journal.run_id) == ("done", result.run_id)


def test_a_step_that_is_executed_again_does_no_harm(
    instance: dg.DagsterInstance, settings: Settings, file: Path
) -> None:
    take_full_backup(settings, Request(backup_id="good"), now=utc_now())
    engine = allow(file)
    assert launch(instance, engine, settings.database.name).success
    before = users(settings)
    (journal,) = Journals.of(settings).all(Target.of(settings))
    job = defs.resolve_job_def("restore_database")
    context = dg.build_op_context(resources={"engine": engine}, instance=instance)
    swap = job.graph.node_named("restore_swap").definition
    assert (
        swap(context, restore_id=journal.restore_id) == journal.restore_id
    )  # it stands there as done
    undone = journal.model_copy(
        update={"restore_id": "restore_20260101_000000_000000", "steps": []}
    )
    Journals.of(settings).keep(undone)
    with pytest.raises(dg.Failure, match="has ended"):
        swap(dg.build_op_context(resources={"engine": engine}, instance=instance),
             restore_id=undone.restore_id)  # fmt: skip
    running = undone.model_copy(update={"state": "running"})
    Journals.of(settings).keep(running)
    with pytest.raises(dg.Failure, match="swap comes after verify"):
        swap(dg.build_op_context(resources={"engine": engine}, instance=instance),
             restore_id=undone.restore_id)  # fmt: skip
    assert users(settings) == before
    (Journals.of(settings).folder / f"{undone.restore_id}.json").unlink()
