"""The Dagster room: what it lists, what a run records, and how it follows the repository.

Runs are real ones, in this process, on an instance of their own, over a real PostgreSQL.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs import resources, sensors
from kyb_backup_pipeline.defs.backup_view import backup_checks
from kyb_backup_pipeline.defs.card import restore_test_card
from kyb_backup_pipeline.defs.partitions import (
    APPLICATION,
    BASE,
    CONFIGURATION,
    FAMILIES,
    INCREMENTAL,
)
from kyb_backup_pipeline.defs.partitions import FULL as FAMILY
from kyb_backup_pipeline.defs.proof_view import proof_checks
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.defs.sensors import Cursor
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    EvidenceSummary,
    Finding,
    Manifest,
    Proof,
    SourceDatabase,
    Verdict,
    utc_now,
)
from kyb_backup_pipeline.engine.progress import Progress
from kyb_backup_pipeline.engine.records import ProofRecords
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.settings import ScheduleSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute, settings_file, settings_for

FULL = dg.AssetKey("full_backup")
VERIFICATION = dg.AssetKey("full_backup_verification")
RESTORE_TEST = dg.AssetKey("full_backup_restore_test")
CHECKS = {
    FULL: ["evidence_taken", "size_against_previous"],
    VERIFICATION: ["files_as_written"],
    RESTORE_TEST: [
        "objects_present", "recovery_time", "rows_equal_source", "smoke_queries_answer",
    ],
}  # fmt: skip
WAL_CHECKS = {
    BASE.backup: ["size_against_previous"],
    BASE.proofs["verification"]: ["files_as_written"],
    INCREMENTAL.backup: ["chain_unbroken"],
    INCREMENTAL.proofs["verification"]: ["files_as_written"],
    INCREMENTAL.proofs["restore_test"]: [
        "markers_as_expected", "recovery_time", "tables_readable",
    ],
}  # fmt: skip
_ARCHIVE, _OPENED = (
    ["nothing_left_out", "size_against_previous"],
    ["content_as_recorded", "files_as_written"],
)
FILE_CHECKS = {
    APPLICATION.backup: _ARCHIVE,
    APPLICATION.proofs["verification"]: _OPENED,
    CONFIGURATION.backup: _ARCHIVE,
    CONFIGURATION.proofs["verification"]: _OPENED,
}
COPY_CHECKS = {family.copy: ["copy_as_pushed"] for family in FAMILIES.values()}
GREEN = dict.fromkeys([name for names in CHECKS.values() for name in names], "SUCCEEDED")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def engine(settings: Settings, tmp_path: Path) -> EngineResource:
    return EngineResource(config_file=str(settings_file(settings, tmp_path / "kyb_backup.toml")))


# What there is


def test_the_definitions_load_and_are_all_there() -> None:
    dg.Definitions.validate_loadable(defs)
    repository = defs.get_repository_def()
    assert {key: sorted(check.name for check in repository.asset_graph.get(key).check_keys)
            for key in repository.asset_graph.materializable_asset_keys} == {
                **CHECKS, **WAL_CHECKS, **FILE_CHECKS, **COPY_CHECKS, dg.AssetKey("retention"): [],
                dg.AssetKey("offsite_retention"): [], dg.AssetKey("health_report"): []}  # fmt: skip
    assert sorted(job.name for job in repository.get_all_jobs()) == [
        "__ASSET_JOB", "base_backup_job", "configuration_job", "follow_repository",
        "full_backup_job", "health_report_job", "incremental_backup_job", "offsite_restore_test", "offsite_retention_job",
        "offsite_verification", "point_in_time_test_job",
        "pre_deployment_backup", "restore_application", "restore_database",
        "restore_point_in_time", "retention_job", "verify_all_backups",
    ]  # fmt: skip
    schedules = {
        schedule.name: (schedule.cron_schedule, schedule.execution_timezone)
        for schedule in repository.schedule_defs
    }
    assert schedules == {
        "full_backup_schedule": ("0 2 * * *", "UTC"),
        "base_backup_schedule": ("0 1 * * 0", "UTC"),
        "incremental_backup_schedule": ("30 0,6,12,18 * * *", "UTC"),
        "point_in_time_test_schedule": ("0 5 1 * *", "UTC"),
        "configuration_schedule": ("0 3 * * *", "UTC"),
        "verify_all_schedule": ("0 4 * * *", "UTC"),
        "offsite_verification_schedule": ("30 4 * * *", "UTC"),
        "offsite_restore_test_schedule": ("0 7 1 * *", "UTC"),
        "retention_schedule": ("30 5 * * *", "UTC"),
        "offsite_retention_schedule": ("45 5 * * *", "UTC"),
        "health_report_schedule": ("0 6 * * *", "UTC"),
    }
    assert sorted(sensor.name for sensor in repository.sensor_defs) == [
        "backup_health_sensor", "base_backup_sensor", "failed_check_alert", "repository_sensor",
        "run_failure_alert", "stale_backup_sensor",
    ]  # fmt: skip


def test_schedules_and_sensors_run_without_being_switched_on() -> None:
    repository = defs.get_repository_def()
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING


def test_everything_is_described_and_every_asset_has_an_owner() -> None:
    repository = defs.get_repository_def()
    sets = [family.partitions for family in FAMILIES.values()]
    for key in (*CHECKS, *WAL_CHECKS, *FILE_CHECKS, *COPY_CHECKS):
        node = repository.asset_graph.get(key)
        assert node.description
        assert node.owners == ["team:platform"]
        group = "offsite" if key in COPY_CHECKS else "database"
        assert node.group_name == ("application" if key in FILE_CHECKS else group)
        assert node.partitions_def in sets
        for check in node.check_keys:
            assert repository.asset_graph.get(check).description
    jobs = [job for job in repository.get_all_jobs() if job.name != "__ASSET_JOB"]
    assert all(job.description for job in jobs)
    assert all(schedule.description for schedule in repository.schedule_defs)
    assert all(sensor.description for sensor in repository.sensor_defs)


def test_a_schedule_tick_names_the_partition_from_its_time_and_changes_nothing(
    instance: dg.DagsterInstance,
) -> None:
    schedule = defs.resolve_schedule_def("full_backup_schedule")
    when = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=when)
    first, second = schedule.evaluate_tick(context), schedule.evaluate_tick(context)
    assert first == second
    (request,) = first.run_requests or []
    assert request.run_key == "backup_20260131_020000"
    assert request.tags["dagster/partition"] == "backup_20260131_020000"
    assert not FAMILY.listed(instance)


def test_cron_lines_come_from_the_settings_and_broken_settings_leave_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "kyb_backup.toml"
    file.write_text('[schedules]\nfull_backup = "30 1 * * *"\n')
    monkeypatch.setenv("KYB_CONFIG", str(file))
    assert resources.schedule_settings().full_backup == "30 1 * * *"
    file.write_text("[schedules]\nunknown = 1\n")
    assert resources.schedule_settings() == ScheduleSettings()


# The chain


def test_a_run_with_an_id_of_its_own_is_backed_up_verified_restored_and_green(
    instance: dg.DagsterInstance, engine: EngineResource
) -> None:
    result = run(instance, engine, "full_backup_job", "before-migration.1")
    assert result.success
    assert FAMILY.listed(instance) == {"before-migration.1"}
    assert statuses(instance, "before-migration.1") == dict.fromkeys(CHECKS, "MATERIALIZED")
    assert checks(instance, "before-migration.1") == GREEN
    backup = engine.repository().find("before-migration.1")
    assert backup.require_manifest().run_id == result.run_id
    assert {proof.run_id for proof in engine.repository().records.of(backup.backup_id)} == {
        result.run_id
    }


def test_materializations_carry_numbers_and_the_restore_test_a_card_with_a_picture(
    instance: dg.DagsterInstance, engine: EngineResource
) -> None:
    run(instance, engine, "full_backup_job", "one")
    full = newest_metadata(instance, FULL, "one")
    for name in ("bytes", "uncompressed_bytes", "seconds", "bytes_per_second", "tables", "objects",
                 "dagster/row_count", "evidence_seconds"):  # fmt: skip
        assert full[name] > 0, name
    assert full["path"] == str(engine.repository().find("one").folder)
    assert full["made_by"] == "Dagster"
    assert newest_metadata(instance, VERIFICATION, "one")["bytes"] > full["bytes"]
    restored = newest_metadata(instance, RESTORE_TEST, "one")
    assert restored["dagster/row_count"] == full["dagster/row_count"]
    assert restored["recovery_seconds"] > 0
    assert restored["restore_seconds"] > 0
    assert restored["card"].startswith("## Passed")
    assert "](data:image/png;base64,iVBOR" in restored["card"]


@pytest.mark.parametrize("backup_id", ["../outside", "two words", ".hidden", "a/b"])
def test_an_id_that_names_no_folder_is_refused_before_anything_is_made(
    instance: dg.DagsterInstance, engine: EngineResource, backup_id: str
) -> None:
    result = run(instance, engine, "full_backup_job", backup_id)
    assert "not a valid backup id" in failure(result, "full_backup").description
    assert not FAMILY.listed(instance)
    assert not engine.settings().repository.exists()


def test_an_error_of_the_engine_fails_the_step_with_its_hint(
    instance: dg.DagsterInstance, settings: Settings, tmp_path: Path
) -> None:
    database = settings.database.model_copy(update={"name": "nowhere"})
    file = settings_file(settings.model_copy(update={"database": database}), tmp_path / "k.toml")
    result = run(instance, EngineResource(config_file=str(file)), "full_backup_job", "one")
    seen = failure(result, "full_backup")
    assert "cannot connect" in seen.description
    assert seen.metadata["error"].value == "DatabaseUnreachable"
    assert "DB_NAME" in seen.metadata["hint"].value
    assert statuses(instance, "one")[FULL] == "FAILED"


def test_a_run_that_is_tried_again_adopts_what_its_first_try_completed(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KYB_CONFIG", engine.config_file)
    tags = {"dagster/partition": "one"}
    job = dg.reconstructable(full_backup_job)
    killed = instance.create_run_for_job(full_backup_job(), tags=tags)
    first = take_full_backup(
        settings, Request(backup_id="one", run_id=killed.run_id), now=utc_now()
    )
    again = dg.ReexecutionOptions(parent_run_id=killed.run_id)
    with dg.execute_job(job, instance, tags=tags, reexecution_options=again) as result:
        assert result.success
        assert result.run_id != killed.run_id
    assert engine.repository().find("one") == first
    assert checks(instance, "one") == GREEN


def test_an_id_in_use_fails_and_leaves_the_backup_alone(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    take_full_backup(settings, Request(backup_id="one"), now=utc_now())
    result = run(instance, engine, "full_backup_job", "one")
    assert "is in use" in failure(result, "full_backup").description
    assert verdict(settings, "one") == "passed"


def test_a_long_step_writes_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kyb_backup_pipeline")
    report = EngineResource().reporter()
    for done in (0, 1, 2, 5_000_000):
        report(Progress(step="dump", done=done, total=5_000_000, detail="x"))
    assert caplog.messages == ["dump: 0 of 5 MB x", "dump: 5 of 5 MB x"]


# Bad proofs


def test_a_flipped_byte_fails_the_run_and_the_partition_is_not_green(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    flip(take_full_backup(settings, Request(backup_id="one"), now=utc_now()))
    FAMILY.register(instance, ["one"])
    result = run(instance, engine, "full_backup_job", "one", [VERIFICATION, RESTORE_TEST])
    seen = failure(result, "full_backup_verification")
    assert seen.metadata["verdict"].value == "failed"
    assert "SHA-256" in seen.description
    assert statuses(instance, "one")[VERIFICATION] == "FAILED"
    assert checks(instance, "one")["files_as_written"] == "FAILED"
    assert not result.get_step_failure_events()[1:]  # the restore test was not begun


def test_a_failed_restore_test_has_its_card_in_the_failure(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    flip(take_full_backup(settings, Request(backup_id="one"), now=utc_now()))
    FAMILY.register(instance, ["one"])
    result = run(instance, engine, "full_backup_job", "one", [RESTORE_TEST])
    seen = failure(result, "full_backup_restore_test")
    assert seen.metadata["verdict"].value == "failed"
    assert seen.metadata["card"].value.startswith("## FAILED")
    assert statuses(instance, "one")[RESTORE_TEST] == "FAILED"
    assert {checks(instance, "one")[name] for name in CHECKS[RESTORE_TEST]} == {"FAILED"}
    assert severities(result) == {"ERROR"}


def test_could_not_verify_is_loud_no_pass_and_no_corrupt_backup(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings, tmp_path: Path
) -> None:
    take_full_backup(settings, Request(backup_id="one"), now=utc_now())
    missing = settings.restore_test.model_copy(update={"directory": tmp_path / "missing"})
    file = settings_file(settings.model_copy(update={"restore_test": missing}), tmp_path / "k.toml")
    engine = EngineResource(config_file=str(file))
    FAMILY.register(instance, ["one"])
    result = run(instance, engine, "full_backup_job", "one", [RESTORE_TEST])
    seen = failure(result, "full_backup_restore_test")
    assert seen.metadata["verdict"].value == "could_not_verify"
    assert statuses(instance, "one")[RESTORE_TEST] == "FAILED"
    assert {checks(instance, "one")[name] for name in CHECKS[RESTORE_TEST]} == {"FAILED"}
    assert severities(result) == {"WARN"}


def test_without_evidence_the_comparison_is_not_claimed_to_have_passed(
    instance: dg.DagsterInstance, server: Cluster, database: str, tmp_path: Path, drills: Path
) -> None:
    settings = settings_for(
        server.target(database), tmp_path / "r", drills, KYB_BACKUP__EVIDENCE="none"
    )
    engine = EngineResource(config_file=str(settings_file(settings, tmp_path / "k.toml")))
    result = run(instance, engine, "full_backup_job", "one")
    assert result.success
    not_asked = ("evidence_taken", "rows_equal_source", "objects_present")
    assert checks(instance, "one") == GREEN | dict.fromkeys(not_asked, "FAILED")
    seen = {one.check_name: one for one in result.get_asset_check_evaluations()}
    for name in not_asked:
        assert seen[name].severity == dg.AssetCheckSeverity.WARN
    assert "no evidence" in str(seen["rows_equal_source"].description)
    assert "**not compared**" in newest_metadata(instance, RESTORE_TEST, "one")["card"]


# Verification of all


def test_verifying_all_reports_each_backup_and_a_bad_one_hides_no_other(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    taken = [take_full_backup(settings, Request(backup_id=i), now=utc_now()) for i in "abc"]
    assert run(instance, engine, "verify_all_backups").success
    assert FAMILY.listed(instance) == {"a", "b", "c"}
    flip(taken[1])
    result = run(instance, engine, "verify_all_backups")
    seen = failure(result, "verify_each_backup")
    assert "b: verification failed" in seen.description
    assert seen.metadata["verdict"].value == "failed"
    assert {i: statuses(instance, i)[VERIFICATION] for i in "abc"} == {
        "a": "MATERIALIZED", "b": "FAILED", "c": "MATERIALIZED",
    }  # fmt: skip
    assert {i: checks(instance, i)["files_as_written"] for i in "abc"} == {
        "a": "SUCCEEDED", "b": "FAILED", "c": "SUCCEEDED",
    }  # fmt: skip
    (observed,) = [e for e in result.all_events if e.event_type_value == "ASSET_OBSERVATION"]
    assert observed.partition == "b"


def test_verifying_all_names_what_failed_before_what_could_not_be_verified(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = take_full_backup(settings, Request(backup_id="damaged"), now=utc_now())
    (damaged.folder / MANIFEST).write_text("{")
    take_full_backup(settings, Request(backup_id="strange"), now=utc_now())

    def verify(repository: Repository, backup: Backup, **options: Any) -> Proof:
        if backup.backup_id == "strange":
            raise RuntimeError("something nobody thought of")
        return verify_backup(repository, backup, **options)

    monkeypatch.setattr("kyb_backup_pipeline.defs.verify_all.verify_backup", verify)
    result = run(instance, engine, "verify_all_backups")
    lines = failure(result, "verify_each_backup").description.splitlines()
    assert lines[0].startswith("damaged: verification failed: ")
    assert lines[1] == "strange: verification could not verify: something nobody thought of"


def test_a_backup_that_is_just_being_removed_is_no_reason_to_cry(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    backup = take_full_backup(settings, Request(backup_id="one"), now=utc_now())
    folder = os.open(backup.folder, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert run(instance, engine, "verify_all_backups").success
    finally:
        os.close(folder)
    assert statuses(instance, "one")[VERIFICATION] is None


def test_a_restore_test_stays_in_sync_when_its_backup_is_verified_again(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    graph = defs.get_repository_def().asset_graph
    run(instance, engine, "full_backup_job", "by_dagster")
    prove(settings, take_full_backup(settings, Request(backup_id="outside"), now=utc_now()))
    tick(instance, engine)
    run(instance, engine, "verify_all_backups")
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    for backup_id in ("by_dagster", "outside"):
        for key in (VERIFICATION, RESTORE_TEST):
            assert resolver.get_status(key, backup_id) == StaleStatus.FRESH, (backup_id, key)


# Following the repository


def test_what_the_command_line_did_appears_once_with_its_proofs(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backup = take_full_backup(settings, Request(backup_id="by_hand", label="x"), now=utc_now())
    assert tick(instance, engine) is not None
    assert FAMILY.listed(instance) == {"by_hand"}
    assert newest_metadata(instance, FULL, "by_hand")["made_by"] == "the command line"
    assert checks(instance, "by_hand") == dict.fromkeys(CHECKS[FULL], "SUCCEEDED")
    prove(settings, backup)
    tick(instance, engine)
    assert statuses(instance, "by_hand") == dict.fromkeys(CHECKS, "MATERIALIZED")
    assert checks(instance, "by_hand") == GREEN
    assert newest_metadata(instance, RESTORE_TEST, "by_hand")["card"].startswith("## Passed")
    monkeypatch.setattr(Repository, "find", never)
    monkeypatch.setattr(ProofRecords, "read", never)
    assert tick(instance, engine) is None
    for key in CHECKS:
        assert len(instance.fetch_materializations(key, limit=10).records) == 1


def test_a_record_is_read_when_it_has_settled(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    backup = take_full_backup(settings, Request(), now=utc_now())
    verify_backup(Repository(settings.repository), backup, settings=settings, now=utc_now())
    tick(instance, engine, settled=timedelta(minutes=1))
    assert statuses(instance, backup.backup_id)[VERIFICATION] is None
    tick(instance, engine)
    assert statuses(instance, backup.backup_id)[VERIFICATION] == "MATERIALIZED"


def test_a_bad_proof_of_the_command_line_turns_the_partition_red(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    backup = take_full_backup(settings, Request(backup_id="one"), now=utc_now())
    prove(settings, backup)
    tick(instance, engine)
    flip(backup)
    prove(settings, backup)
    assert tick(instance, engine, success=False) is not None
    assert statuses(instance, "one") == {
        FULL: "MATERIALIZED", VERIFICATION: "FAILED", RESTORE_TEST: "FAILED",
    }  # fmt: skip
    bad = [*CHECKS[VERIFICATION], *CHECKS[RESTORE_TEST]]
    assert checks(instance, "one") == GREEN | dict.fromkeys(bad, "FAILED")


def test_what_runs_of_this_dagster_made_is_left_to_them(
    instance: dg.DagsterInstance, engine: EngineResource
) -> None:
    run(instance, engine, "full_backup_job", "one")
    run(instance, engine, "verify_all_backups")
    result = tick(instance, engine)
    assert not (result and (result.asset_events or result.run_requests))
    assert len(instance.fetch_materializations(FULL, limit=10).records) == 1


def test_after_the_loss_of_dagsters_database_everything_on_disk_comes_back(
    instance: dg.DagsterInstance, engine: EngineResource
) -> None:
    with new_instance() as lost:
        run(lost, engine, "full_backup_job", "one")
    tick(instance, engine)
    tick(instance, engine)
    assert FAMILY.listed(instance) == {"one"}
    assert statuses(instance, "one") == dict.fromkeys(CHECKS, "MATERIALIZED")
    assert checks(instance, "one") == GREEN


def test_a_backup_that_its_run_did_not_live_to_report_is_taken_over(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = instance.create_run_for_job(full_backup_job(), tags={"dagster/partition": "one"})
    take_full_backup(settings, Request(backup_id="one", run_id=killed.run_id), now=utc_now())
    monkeypatch.setattr(sensors, "ABANDONED", timedelta(0))
    tick(instance, engine)
    assert statuses(instance, "one")[FULL] == "IN_PROGRESS"  # the run has not ended
    instance.report_run_failed(killed)
    tick(instance, engine)
    assert statuses(instance, "one")[FULL] == "MATERIALIZED"


def test_a_pruned_backup_leaves_the_list_and_one_that_is_just_made_stays(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    pruned = take_full_backup(settings, Request(backup_id="old"), now=utc_now())
    take_full_backup(settings, Request(backup_id="kept"), now=utc_now())
    tick(instance, engine)
    FAMILY.register(instance, ["just_begun"])
    shutil.rmtree(pruned.folder)
    tick(instance, engine)
    assert FAMILY.listed(instance) == {"kept", "just_begun"}


def test_a_repository_out_of_sight_removes_nothing(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    assert tick(instance, engine) is None  # none was ever there
    take_full_backup(settings, Request(backup_id="one"), now=utc_now())
    tick(instance, engine)
    settings.repository.rename(settings.repository.parent / "elsewhere")
    assert tick(instance, engine) is None
    assert FAMILY.listed(instance) == {"one"}


def test_a_damaged_manifest_and_a_damaged_record_stop_nothing(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    repository = Repository(settings.repository)
    damaged = take_full_backup(settings, Request(backup_id="damaged"), now=utc_now())
    whole = take_full_backup(settings, Request(backup_id="whole"), now=utc_now())
    (damaged.folder / MANIFEST).write_text('{"format_version": 99}')
    verify_backup(repository, whole, settings=settings, now=utc_now())
    (record,) = repository.records.files()
    (record.parent / "verification_20260101T000000.000000Z.json").write_text("not JSON")
    (record.parent / "notes.json").write_text("not a record")
    tick(instance, engine)
    assert FAMILY.listed(instance) == {"damaged", "whole"}
    assert statuses(instance, "damaged")[FULL] is None
    assert statuses(instance, "whole")[VERIFICATION] == "MATERIALIZED"
    assert tick(instance, engine) is None
    shutil.rmtree(damaged.folder)
    tick(instance, engine)
    assert FAMILY.listed(instance) == {"whole"}


# What is shown


def test_a_backup_of_less_than_half_the_usual_size_is_warned_about() -> None:
    earlier = [manifest(size, day) for day, size in enumerate([9000, 1000, 1200, 1100, 900], 1)]
    others = [manifest(10, 6, name="another")]
    listed_newest_first = [of(one) for one in reversed([*earlier, *others])]
    small, usual = manifest(549, 9), manifest(550, 9)
    for one, passed in ((small, False), (usual, True)):
        evidence, size = backup_checks(one, [of(one), *listed_newest_first])
        assert evidence.passed
        assert size.passed is passed
        assert size.severity == dg.AssetCheckSeverity.WARN
        assert size.metadata["median_bytes"].value == 1100
        assert size.metadata["earlier_backups"].value == 5
    _, first = backup_checks(small, [of(small)])
    assert first.passed
    assert "nothing to compare with" in str(first.description)


def test_each_finding_fails_the_check_it_belongs_to() -> None:
    figures = {"tables": 2.0, "rows": 10.0, "objects": 5.0, "differences": 1.0,
               "smoke_queries": 1.0, "recovery_seconds": 1.5}  # fmt: skip
    for finding, check in (
        ("table public.users", "rows_equal_source"),
        ("large objects", "rows_equal_source"),
        ("sequence public.ids", "objects_present"),
        ("index public.users_pkey", "objects_present"),
        ("smoke query 'SELECT 1'", "smoke_queries_answer"),
    ):
        found = Finding(object=finding, message="is missing after restore")
        results = proof_checks(proof("failed", figures=figures, findings=(found,)), "full")
        assert [one.check_name for one in results if not one.passed] == [check]


def test_a_card_cannot_be_broken_by_what_a_database_names_its_tables() -> None:
    bad = Finding(object="table <img src=x>|[a](b)", message="has\n1 | row")
    card = restore_test_card(proof("failed", findings=(bad,), steps={"restore": 1.0}))
    assert r"| table &lt;img src=x>\|\[a\](b) | has 1 \| row |" in card


# Secrets


def test_no_password_reaches_dagster(
    instance: dg.DagsterInstance,
    server: Cluster,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = "correct-horse-battery"
    role = f"secretive_{os.getpid()}"
    execute(server.target(), f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'")
    try:
        database = settings.database.model_copy(update={"host": "127.0.0.1", "user": role})
        file = settings_file(settings.model_copy(update={"database": database}), tmp_path / "k")
        engine = EngineResource(config_file=str(file))
        monkeypatch.setenv("DB_PASSWORD", password)
        assert run(instance, engine, "full_backup_job", "one").success
        monkeypatch.setenv("DB_PASSWORD", password + "-wrong")
        assert not run(instance, engine, "full_backup_job", "two").success
    finally:
        execute(server.target(), f"DROP ROLE {role}")
    files = [path for path in Path(instance.root_directory).rglob("*") if path.is_file()]
    assert len(files) > 3
    assert any(b"full_backup_verification" in path.read_bytes() for path in files)
    assert not [path for path in files if password.encode() in path.read_bytes()]


# Helpers


def new_instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.local_temp(overrides={"telemetry": {"enabled": False}})


def full_backup_job() -> dg.JobDefinition:
    return defs.resolve_job_def("full_backup_job")


def run(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    job: str,
    backup_id: str | None = None,
    assets: list[dg.AssetKey] | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    resource = {"engine": {"config": {"config_file": engine.config_file}}}
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags={"dagster/partition": backup_id} if backup_id else None,
        asset_selection=assets,
        run_config={**(run_config or {}), "resources": resource},
        raise_on_error=False,
    )


def tick(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    *,
    settled: timedelta = timedelta(0),
    success: bool = True,
) -> dg.SensorResult | None:
    """Evaluate the sensor and do with its result what the daemon does; None if it skipped."""
    cursors = instance.root_directory + "/cursor_of_the_test"
    cursor = Path(cursors).read_text() if os.path.exists(cursors) else None
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, resources={"engine": engine}, definitions=defs
    )
    before = sensors.SETTLED
    sensors.SETTLED = settled
    try:
        result = sensors.repository_sensor(context)
    finally:
        sensors.SETTLED = before
    if isinstance(result, dg.SkipReason):
        return None
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    for request in result.dynamic_partitions_requests or []:
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        else:
            for key in request.partition_keys:
                instance.delete_dynamic_partition(request.partitions_def_name, key)
    for wanted in result.run_requests or []:
        done = run(instance, engine, "follow_repository", run_config=wanted.run_config)
        assert done.success is success
    Path(cursors).write_text(str(result.cursor))
    assert len(Cursor.model_validate_json(str(result.cursor)).model_dump_json()) < 500
    return result


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is read again")


def statuses(instance: dg.DagsterInstance, backup_id: str) -> dict[dg.AssetKey, str | None]:
    """The status of the backup's partition in each asset, as the UI colours it."""
    found: dict[dg.AssetKey, str | None] = {}
    for key in CHECKS:
        status = instance.get_status_by_partition(key, [backup_id], FAMILY.partitions) or {}
        value = status.get(backup_id)
        found[key] = value.value if value else None
    return found


def checks(instance: dg.DagsterInstance, backup_id: str) -> dict[str, str]:
    """The state of each check of the backup's partition, where the UI counts it."""
    keys = [dg.AssetCheckKey(key, name) for key, names in CHECKS.items() for name in names]
    found = instance.event_log_storage.get_asset_check_partition_info(
        keys, partition_keys=[backup_id]
    )
    return {
        one.check_key.name: one.latest_execution_status.value for one in found if one.is_current
    }


def green(instance: dg.DagsterInstance, key: dg.AssetKey, backup_id: str) -> bool:
    """Whether the backup's partition is materialized in an asset, with every check passed."""
    (family,) = [f for f in FAMILIES.values() if key in (f.backup, *f.proofs.values(), f.copy)]
    status = instance.get_status_by_partition(key, [backup_id], family.partitions) or {}
    value = status.get(backup_id)
    checks = [
        dg.AssetCheckKey(key, name)
        for name in {**CHECKS, **WAL_CHECKS, **FILE_CHECKS, **COPY_CHECKS}[key]
    ]
    found = instance.event_log_storage.get_asset_check_partition_info(
        checks, partition_keys=[backup_id]
    )
    passed = [one.latest_execution_status.value == "SUCCEEDED" for one in found if one.is_current]
    return value is not None and value.value == "MATERIALIZED" and passed == [True] * len(checks)


def severities(result: dg.ExecuteInProcessResult) -> set[str]:
    return {one.severity.value for one in result.get_asset_check_evaluations()}


def failure(result: dg.ExecuteInProcessResult, step: str) -> Any:
    """The dg.Failure that ended a step: its description and metadata."""
    assert not result.success
    (event,) = [e for e in result.get_step_failure_events() if e.step_key == step]
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return data


def newest_metadata(
    instance: dg.DagsterInstance, key: dg.AssetKey, backup_id: str
) -> dict[str, Any]:
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[backup_id])
    record = instance.fetch_materializations(wanted, limit=1).records[0]
    event = record.asset_materialization
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def flip(backup: Backup) -> None:
    """Flip one bit in the middle of the dump."""
    dump = backup.folder / backup.require_manifest().files[0].path
    content = bytearray(dump.read_bytes())
    content[len(content) // 2] ^= 1
    dump.write_bytes(content)


def prove(settings: Settings, backup: Backup) -> None:
    """Verify and restore-test as the command line does."""
    repository = Repository(settings.repository)
    verify_backup(repository, backup, settings=settings, now=utc_now())
    drill_full_backup(settings, backup, now=utc_now())


def verdict(settings: Settings, backup_id: str) -> str:
    repository = Repository(settings.repository)
    return verify_backup(
        repository, repository.find(backup_id), settings=settings, now=utc_now()
    ).verdict


def manifest(size: int, day: int, *, name: str = "kyb") -> Manifest:
    when = datetime(2026, 1, day, 2, tzinfo=UTC)
    return Manifest(
        backup_id=f"{name}_{day}", timestamp=when, type="full", backup_file="database.sql.zst",
        file_size=size, checksum="0" * 64, format_version=1, finished_at=when,
        database=SourceDatabase(host="h", port=5432, name=name, user="u"),
        evidence=EvidenceSummary(mode="content", tables=1, rows=1, objects=1),
    )  # fmt: skip


def of(one: Manifest) -> Backup:
    return Backup(
        backup_id=one.backup_id, kind="full", folder=Path("/backups") / one.backup_id, manifest=one
    )


def proof(verdict: Verdict, **given: Any) -> Proof:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Proof(
        backup_id="one", proof="restore_test", verdict=verdict, summary="s",
        started_at=when, finished_at=when, **given,
    )  # fmt: skip
