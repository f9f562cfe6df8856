"""Off-site copies in the Dagster room: their lineage, a place out of sight, copies altered behind our back."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.partitions import APPLICATION, CONFIGURATION, FAMILIES, FULL
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.health import Health, look_at
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.offsite_rounds import copy_everywhere
from kyb_backup_pipeline.engine.offsite_target import TargetUnreachable
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.engine.trouble import Trouble
from kyb_backup_pipeline_tests.conftest import settings_file
from kyb_backup_pipeline_tests.platforms import Platform
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.s3_server import KEY, SECRET, S3Server
from kyb_backup_pipeline_tests.test_dagster import (
    RESTORE_TEST,
    VERIFICATION,
    failure,
    green,
    new_instance,
    newest_metadata,
    run,
    tick,
)

COPY = FULL.copy


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Another disk, mounted."""
    disk = tmp_path / "second-disk"
    disk.mkdir()
    return disk


@pytest.fixture
def file(settings: Settings, tmp_path: Path, disk: Path) -> Path:
    return with_place(settings_file(settings, tmp_path / "kyb_backup.toml"), f'url = "{disk}"')


@pytest.fixture
def engine(file: Path) -> EngineResource:
    return EngineResource(config_file=str(file))


def with_place(file: Path, lines: str) -> Path:
    file.write_text(f"{file.read_text()}[offsite]\n{lines}\n")
    return file


def taken(engine: EngineResource, backup_id: str) -> None:
    take_full_backup(engine.settings(), Request(backup_id=backup_id), now=utc_now())


def health(engine: EngineResource) -> Health:
    settings = engine.settings()
    return look_at(settings, Survey(Repository(settings.repository)), now=utc_now())


def offsite(engine: EngineResource) -> list[Trouble]:
    return [t for t in health(engine).troubles if t.key.startswith("offsite:")]


def alter(disk: Path, backup_id: str) -> None:
    """Another content of the same size under the name of an object."""
    (part,) = (disk / "database" / "full" / backup_id / "database.sql.zst").iterdir()
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.unlink()
    part.write_bytes(content)


def test_copies_stand_on_the_verification_of_their_kind() -> None:
    graph = defs.get_repository_def().asset_graph
    for family in FAMILIES.values():
        assert graph.get(family.copy).parent_keys == {family.proofs["verification"]}
        assert graph.get(family.copy).partitions_def == family.partitions
    jobs = {job.name: job for job in defs.get_repository_def().get_all_jobs()}
    chains = {"full_backup_job": "full", "base_backup_job": "base", "incremental_backup_job": "incremental",
              "point_in_time_test_job": "incremental", "configuration_job": "configuration"}  # fmt: skip
    for name, kind in chains.items():
        assert FAMILIES[kind].copy in jobs[name].asset_layer.selected_asset_keys  # type: ignore[index]
    selected = jobs["pre_deployment_backup"].asset_layer.selected_asset_keys
    assert selected == {APPLICATION.backup}, "a deployment waits for no other place"


def test_a_chain_makes_a_copy_in_an_s3_bucket(
    instance: dg.DagsterInstance, settings: Settings, tmp_path: Path, s3: S3Server
) -> None:
    bucket = s3.bucket()
    file = with_place(
        settings_file(settings, tmp_path / "kyb_backup.toml"),
        f'url = "s3://{bucket.name}/kyb"\nendpoint = "{s3.endpoint}"\nallow_http = true\n'
        f'access_key_id = "{KEY}"\nsecret_access_key = "{SECRET}"',
    )
    engine = EngineResource(config_file=str(file))
    result = run(instance, engine, "full_backup_job", "one")
    assert result.success
    for key in (FULL.backup, VERIFICATION, RESTORE_TEST, COPY):
        assert green(instance, key, "one"), key
    seen = newest_metadata(instance, COPY, "one")
    assert seen["bytes_sent"] > 1000
    assert (seen["copies"], seen["bytes_found"], seen["encryption"]) == (1, 0, "none")
    assert seen["seconds"] > 0
    assert f"s3://{bucket.name}/kyb" in seen["places"].replace("\\", "")
    assert "kyb/database/full/one/offsite_copy.json" in bucket.objects()
    assert SECRET not in str(seen)
    assert [t.key for t in offsite(engine)] == ["offsite:offsite:deletable"]
    assert run(instance, engine, "__ASSET_JOB", "one", [COPY]).success
    again = newest_metadata(instance, COPY, "one")
    assert (again["bytes_sent"], again["records"]) == (0, 1)  # the restore test's
    before = len(bucket.objects())
    tick(instance, engine)
    assert run(instance, engine, "offsite_verification").success
    assert green(instance, COPY, "one")
    assert len(bucket.objects()) == before


def test_a_place_out_of_sight_fails_its_step_and_nothing_else(
    instance: dg.DagsterInstance, engine: EngineResource, disk: Path
) -> None:
    disk.rename(disk.with_name("unplugged"))
    result = run(instance, engine, "full_backup_job", "one")
    seen = failure(result, "full_backup_offsite_copy")
    assert "there is no folder" in seen.description
    assert seen.metadata["error"].value == TargetUnreachable.__name__
    assert len(result.get_step_failure_events()) == 1
    for key in (FULL.backup, VERIFICATION, RESTORE_TEST):
        assert green(instance, key, "one"), key
    assert not green(instance, COPY, "one")
    (trouble,) = offsite(engine)
    assert (trouble.key, trouble.severity) == ("offsite:offsite:unreachable", "warning")
    disk.with_name("unplugged").rename(disk)
    assert run(instance, engine, "offsite_verification").success  # which brings it
    assert green(instance, COPY, "one")
    assert [t.severity for t in offsite(engine)] == ["info"]  # a folder can be deleted
    assert tick(instance, engine) is not None
    assert tick(instance, engine) is None, "the copy is not reported twice"


def test_one_place_that_fails_does_not_hide_the_next(
    instance: dg.DagsterInstance, engine: EngineResource, file: Path, disk: Path
) -> None:
    file.write_text(f'{file.read_text()}[offsite.targets.third]\nurl = "{disk.parent}/nowhere"\n')
    taken(engine, "one")
    FULL.register(instance, ["one"])
    result = run(instance, engine, "__ASSET_JOB", "one", [COPY])
    assert "third: " in failure(result, "full_backup_offsite_copy").description
    assert (disk / "database/full/one/offsite_copy.json").exists()
    (check,) = result.get_asset_check_evaluations()
    assert check.passed, "the copy that there is"
    tick(instance, engine)
    assert not instance.get_materialized_partitions(COPY), "it is not at every place"
    (disk.parent / "nowhere").mkdir()
    assert Cli(file).run("offsite", "push", "--all").returncode == 0
    tick(instance, engine)
    assert not instance.get_materialized_partitions(COPY), "its run may still report it"


def test_without_a_place_the_step_says_so_and_is_green_without_a_copy(
    instance: dg.DagsterInstance, settings: Settings, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    engine = EngineResource(config_file=str(settings_file(settings, tmp_path / "kyb_backup.toml")))
    taken(engine, "one")
    FULL.register(instance, ["one"])
    for job, selection in (("__ASSET_JOB", [COPY]), ("offsite_verification", None),
                           ("offsite_retention_job", None)):  # fmt: skip
        caplog.clear()
        partition = "one" if selection else None
        result = run(instance, engine, job, partition, selection)
        assert result.success
        assert "no off-site place is set" in caplog.text
        assert not result.get_asset_materialization_events()
        assert not result.get_asset_check_evaluations()
    assert not instance.get_materialized_partitions(COPY)
    assert health(engine).places == ()


def test_a_copy_altered_behind_our_back_turns_red_and_critical_until_it_is_mended(
    instance: dg.DagsterInstance, engine: EngineResource, file: Path, disk: Path
) -> None:
    for backup_id in ("one", "two"):
        taken(engine, backup_id)
        FULL.register(instance, [backup_id])
        assert run(instance, engine, "__ASSET_JOB", backup_id, [COPY]).success
    alter(disk, "one")
    result = run(instance, engine, "offsite_verification")
    seen = failure(result, "verify_each_copy")
    assert "one: the copy in offsite is not what was pushed" in seen.description
    assert seen.metadata["verdict"].value == "failed"
    assert not green(instance, COPY, "one")
    assert green(instance, COPY, "two")
    severities = {t.key: t.severity for t in offsite(engine)}
    assert severities["offsite:offsite:bad:one"] == "critical"
    again = run(instance, engine, "__ASSET_JOB", "one", [COPY])
    assert "is not what was pushed" in failure(again, "full_backup_offsite_copy").description
    assert Cli(file).run("offsite", "push", "one", "--again").returncode == 0
    assert "offsite:offsite:bad:one" not in {t.key for t in offsite(engine)}
    assert run(instance, engine, "offsite_verification").success
    assert green(instance, COPY, "one")


def test_the_monthly_restore_test_takes_the_copy_and_a_bad_one_is_no_bad_backup(
    instance: dg.DagsterInstance, engine: EngineResource, disk: Path
) -> None:
    taken(engine, "one")
    FULL.register(instance, ["one"])
    copy_everywhere(engine.settings(), engine.repository().find("one"))
    assert run(instance, engine, "offsite_restore_test").success
    assert green(instance, dg.AssetKey("full_backup_restore_test"), "one")
    (record,) = engine.repository().records.of("one")
    assert (record.verdict, record.place) == ("passed", "offsite")
    alter(disk, "one")
    result = run(instance, engine, "offsite_restore_test")
    assert (
        "one: the restore test from the copy in offsite"
        in failure(result, "restore_newest_copies").description
    )
    assert engine.repository().records.latest("one") == {"restore_test": record}
    keys = {t.key for t in health(engine).troubles}
    assert "offsite:offsite:bad:one" in keys
    assert "restore_test:one" not in keys, "the backup at home is sound"
    assert green(instance, dg.AssetKey("full_backup_restore_test"), "one")


def test_a_commit_object_that_cannot_be_read_is_a_bad_copy(
    instance: dg.DagsterInstance, engine: EngineResource, disk: Path
) -> None:
    taken(engine, "one")
    copy_everywhere(engine.settings(), engine.repository().find("one"))
    FULL.register(instance, ["one"])
    (disk / "database/full/one/offsite_copy.json").write_text("{")
    result = run(instance, engine, "offsite_verification")
    assert "cannot be read" in failure(result, "verify_each_copy").description
    assert "offsite:offsite:bad:one" in {t.key for t in offsite(engine)}
    assert not green(instance, COPY, "one")


def test_what_the_command_line_copied_appears_and_what_it_pruned_there_is_told(
    instance: dg.DagsterInstance, engine: EngineResource, file: Path, disk: Path
) -> None:
    taken(engine, "one")
    tick(instance, engine)
    assert not instance.get_materialized_partitions(COPY)
    assert Cli(file).run("offsite", "push", "one").returncode == 0
    tick(instance, engine)
    assert newest_metadata(instance, COPY, "one")["copies"] == 1
    assert tick(instance, engine) is None
    assert run(instance, engine, "offsite_verification").success
    assert green(instance, COPY, "one")
    assert run(instance, engine, "verify_all_backups").success
    resolver = CachingStaleStatusResolver(
        instance, defs.get_repository_def().asset_graph, LoadingContextForTest(instance)
    )
    assert resolver.get_status(COPY, "one") == StaleStatus.FRESH
    result = run(instance, engine, "offsite_retention_job")
    assert result.success
    told = {k: v.value for k, v in
            result.get_asset_materialization_events()[0].materialization.metadata.items()}  # fmt: skip
    assert (told["deleted"], told["kept"], told["bytes_freed"]) == (0, 1, 0)
    assert "| kept | offsite | one |" in str(told["decisions"])


def test_archives_are_copied_in_their_chain_and_states_in_the_night(
    instance: dg.DagsterInstance, platform: Platform, disk: Path
) -> None:
    file = with_place(platform.file(platform.place / "kyb_backup.toml"), f'url = "{disk}"')
    engine = EngineResource(config_file=str(file))
    assert run(instance, engine, "configuration_job", "config_1").success
    assert green(instance, CONFIGURATION.copy, "config_1")
    config = {"ops": {"application_state": {"config": {"deployment": "v2"}}}}
    assert run(instance, engine, "pre_deployment_backup", "app_1", run_config=config).success
    assert not (disk / "application/state/app_1").exists()
    assert run(instance, engine, "offsite_verification").success
    assert (disk / "application/state/app_1/offsite_copy.json").exists()
    tick(instance, engine)
    assert instance.get_materialized_partitions(APPLICATION.copy) == {"app_1"}
