"""The restore of the database as a graph of ops: refused by default, safe to execute again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.recovery import AtWork
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.cluster_journal import ClusterJournals
from kyb_backup_pipeline.engine.cluster_restore import STEPS as CLUSTER_STEPS
from kyb_backup_pipeline.engine.database_restore import STEPS
from kyb_backup_pipeline.engine.file_restore import STEPS as FILE_STEPS
from kyb_backup_pipeline.engine.file_restore import InPlaceRestore
from kyb_backup_pipeline.engine.file_unpacking import Options
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Target
from kyb_backup_pipeline.engine.recovery_journal import Journals
from kyb_backup_pipeline.engine.replaced import drop_replaced, replaced_databases
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline_tests.conftest import execute, settings_file
from kyb_backup_pipeline_tests.plants import Plant, moment_of, plant_in
from kyb_backup_pipeline_tests.platforms import Platform
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
    assert steps_of(result) == ["begin_database_restore", *(f"restore_{name}" for name in STEPS)]
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
    resources = {"engine": engine, "at_work": AtWork()}
    context = dg.build_op_context(resources=resources, instance=instance)
    swap = job.graph.node_named("restore_swap").definition
    assert (
        swap(context, restore_id=journal.restore_id) == journal.restore_id
    )  # it stands there as done
    undone = journal.model_copy(
        update={"restore_id": "restore_20260101_000000_000000", "steps": []}
    )
    Journals.of(settings).keep(undone)
    with pytest.raises(dg.Failure, match="has ended"):
        swap(dg.build_op_context(resources=resources, instance=instance),
             restore_id=undone.restore_id)  # fmt: skip
    running = undone.model_copy(update={"state": "running"})
    Journals.of(settings).keep(running)
    with pytest.raises(dg.Failure, match="went with the run"):
        swap(dg.build_op_context(resources=resources, instance=instance),
             restore_id=undone.restore_id)  # fmt: skip
    assert users(settings) == before
    (Journals.of(settings).folder / f"{undone.restore_id}.json").unlink()


# The whole cluster


@pytest.fixture
def plant(place: Path, tmp_path: Path, drills: Path) -> Iterator[Plant]:
    with plant_in(place, tmp_path, drills) as plant:
        yield plant


@pytest.fixture
def moment(plant: Plant) -> str:
    return moment_of(plant)


def test_a_moment_takes_the_place_of_the_cluster_one_op_a_step(
    instance: dg.DagsterInstance, plant: Plant, moment: str, tmp_path: Path
) -> None:
    lines = [
        f"[recovery]\nallow_from_ui = true\nserver_timeout = 20\n"
        f"stop_server_command = {json.dumps(plant.server_command('stop'))}\n"
        f"start_server_command = {json.dumps(plant.server_command('start'))}\n"
        "[application]\nstop_command = []\nstart_command = []\n"
    ]
    file = settings_file(plant.primary.settings, tmp_path / "kyb_backup.toml")
    file.write_text(file.read_text() + "".join(lines))
    engine = EngineResource(config_file=str(file))
    wish = {"at": moment, "confirm": "another"}
    config: dict[str, Any] = {"ops": {"begin_point_in_time_restore": {"config": wish}}}
    refused = run(instance, engine, "restore_point_in_time", run_config=config)
    assert "confirm is" in failure(refused, "begin_point_in_time_restore").description
    wish["confirm"] = plant.primary.settings.database.name
    result = run(instance, engine, "restore_point_in_time", run_config=config)
    assert result.success
    assert steps_of(result) == [
        "begin_point_in_time_restore", *(f"point_in_time_{name}" for name in CLUSTER_STEPS)
    ]  # fmt: skip
    assert plant.rows() == 1500
    (journal,) = ClusterJournals.of(plant.primary.settings).all()
    assert (journal.state, journal.run_id) == ("done", result.run_id)


# Application state


def application_engine(platform: Platform) -> EngineResource:
    file = platform.file(platform.place / "kyb_backup.toml")
    file.write_text(file.read_text() + "\n[recovery]\nallow_from_ui = true\n")
    return EngineResource(config_file=str(file))


def wanted(backup: Backup, platform: Platform) -> dict[str, Any]:
    wish = {"backup_id": backup.backup_id, "confirm": platform.settings.database.name}
    return {"ops": {"begin_application_restore": {"config": wish}}}


def test_application_state_comes_back_one_op_a_step(
    instance: dg.DagsterInstance, platform: Platform
) -> None:
    backup, flags = platform.application(), platform.flags()
    before = (platform.root / "configs" / "application.yaml").read_text()
    (platform.root / "configs" / "application.yaml").write_text("broken: true\n")
    (platform.root / "feature-flags.json").write_text('{"of_now": true}')
    result = run(instance, application_engine(platform), "restore_application",
                 run_config=wanted(backup, platform))  # fmt: skip
    assert result.success
    assert steps_of(result) == [
        "begin_application_restore", *(f"application_{name}" for name in FILE_STEPS)
    ]  # fmt: skip
    assert (platform.root / "configs" / "application.yaml").read_text() == before
    assert platform.flags() == flags
    assert platform.calls() == ["stop", "start"]
    assert not list(platform.root.glob(".kyb-restore-*"))


def test_a_run_that_fails_puts_the_files_back_and_its_steps_are_nobody_elses(
    instance: dg.DagsterInstance, platform: Platform
) -> None:
    backup = platform.application()
    (platform.root / "configs" / "application.yaml").write_text("of now\n")
    engine = application_engine(platform)
    file = Path(engine.config_file)
    file.write_text(
        file.read_text().replace("start_command = [", 'start_command = ["false"]\n#', 1)
    )
    result = run(instance, engine, "restore_application", run_config=wanted(backup, platform))
    assert not result.success
    assert "service did not start" in str(failure(result, "application_start").description)
    assert (platform.root / "configs" / "application.yaml").read_text() == "of now\n"
    restore_id = result.output_for_node("begin_application_restore")
    flags = defs.resolve_job_def("restore_application").graph.node_named("application_flags")
    context = dg.build_op_context(
        resources={"engine": engine, "at_work": AtWork()}, instance=instance
    )
    with pytest.raises(dg.Failure, match="went with the run"):
        flags.definition(context, restore_id=restore_id)


def test_a_run_that_is_cancelled_behind_the_stop_puts_everything_back(platform: Platform) -> None:
    """What Dagster does at the end of a run, however it ended: the resource is torn down."""
    backup = platform.application()
    (platform.root / "configs" / "application.yaml").write_text("of now\n")
    room = AtWork()
    restore = InPlaceRestore(platform.settings, backup, Options(), now=utc_now())
    room.take(restore)
    for name in FILE_STEPS[: FILE_STEPS.index("swap") + 1]:
        restore.step(name)
    assert (platform.root / "configs" / "application.yaml").read_text() != "of now\n"
    room.close()
    assert (platform.root / "configs" / "application.yaml").read_text() == "of now\n"
    assert platform.calls() == ["stop", "start"]
    assert not list(platform.root.glob(".kyb-restore-*"))


def steps_of(result: dg.ExecuteInProcessResult) -> list[str | None]:
    return [event.step_key for event in result.all_events if event.is_step_success]
