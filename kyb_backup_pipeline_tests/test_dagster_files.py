"""Application state and configuration archives in the Dagster room."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.partitions import APPLICATION, CONFIGURATION
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.removal import remove
from kyb_backup_pipeline_tests.platforms import PASSPHRASE, SECRET, Platform
from kyb_backup_pipeline_tests.test_dagster import (
    failure,
    green,
    new_instance,
    newest_metadata,
    run,
    tick,
)

_STATE, _STATE_PROOF = APPLICATION.backup, APPLICATION.proofs["verification"]
_ARCHIVE, _ARCHIVE_PROOF = CONFIGURATION.backup, CONFIGURATION.proofs["verification"]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def engine(platform: Platform) -> EngineResource:
    return EngineResource(config_file=str(platform.file(platform.place / "kyb_backup.toml")))


def before(deployment: str) -> dict[str, object]:
    return {"ops": {"application_state": {"config": {"deployment": deployment}}}}


def deploy(
    instance: dg.DagsterInstance, engine: EngineResource, backup_id: str, deployment: str
) -> dg.ExecuteInProcessResult:
    return run(instance, engine, "pre_deployment_backup", backup_id, run_config=before(deployment))


def test_a_deployment_is_saved_and_its_verification_links_to_it(
    instance: dg.DagsterInstance, engine: EngineResource, platform: Platform
) -> None:
    assert deploy(instance, engine, "before_v2", "v2").success
    assert green(instance, _STATE, "before_v2")
    assert run(instance, engine, "__ASSET_JOB", "before_v2", [_STATE_PROOF]).success
    assert green(instance, _STATE_PROOF, "before_v2")
    seen = newest_metadata(instance, _STATE, "before_v2")
    assert (seen["deployment"], seen["version"], seen["encryption"]) == ("v2", "4.12.3", "age")
    assert seen["components"] == "feature_flags, configs, logs"
    assert newest_metadata(instance, _STATE_PROOF, "before_v2")["members"] == seen["members"]
    manifest = platform.repository.find("before_v2").require_manifest()
    assert manifest.run_id is not None


def test_a_service_that_is_down_fails_the_run_so_that_nothing_is_deployed(
    instance: dg.DagsterInstance, engine: EngineResource, platform: Platform
) -> None:
    platform.service("stop")
    result = deploy(instance, engine, "before_v3", "v3")
    reason = failure(result, "application_state")
    assert "connection refused" in reason.description
    assert reason.metadata["exit_code"].value == 5
    assert not green(instance, _STATE, "before_v3")
    assert not deploy(instance, engine, "before_v4", " ").success


def test_the_daily_archive_is_made_and_verified(
    instance: dg.DagsterInstance, engine: EngineResource, platform: Platform
) -> None:
    assert run(instance, engine, "configuration_job", "config_1").success
    assert green(instance, _ARCHIVE, "config_1")
    assert green(instance, _ARCHIVE_PROOF, "config_1")
    (platform.root / "configs" / "queue").symlink_to("/etc/hostname")
    result = run(instance, engine, "configuration_job", "config_2")
    assert result.success
    left = [one for one in result.get_asset_check_evaluations() if not one.passed]
    assert [(one.check_name, one.severity.value) for one in left] == [("nothing_left_out", "WARN")]
    assert "configs/queue is a link out of the folder" in str(left[0].description)


def test_without_the_key_the_checksum_passes_and_the_content_is_not_claimed(
    instance: dg.DagsterInstance, engine: EngineResource, platform: Platform
) -> None:
    (platform.place / "keys").rename(platform.place / "away")
    result = run(instance, engine, "configuration_job", "config_1")
    reason = failure(result, "configuration_verification")
    assert reason.metadata["verdict"].value == "could_not_verify"
    assert green(instance, _ARCHIVE, "config_1")
    found = {one.check_name: (one.passed, one.severity.value)
             for one in result.get_asset_check_evaluations()
             if one.asset_key == _ARCHIVE_PROOF}  # fmt: skip
    assert found == {
        "files_as_written": (True, "ERROR"), "content_as_recorded": (False, "WARN"),
    }  # fmt: skip


def test_a_damaged_archive_fails_the_nightly_verification_and_hides_no_other(
    instance: dg.DagsterInstance, engine: EngineResource, platform: Platform
) -> None:
    run(instance, engine, "configuration_job", "config_1")
    deploy(instance, engine, "before_v2", "v2")
    path = next(platform.repository.find("config_1").folder.glob("*.age"))
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    result = run(instance, engine, "verify_all_backups")
    assert "config_1: verification failed" in failure(result, "verify_each_backup").description
    assert not green(instance, _ARCHIVE_PROOF, "config_1")
    assert green(instance, _STATE_PROOF, "before_v2")


def test_what_the_command_line_made_appears_and_what_it_pruned_leaves(
    instance: dg.DagsterInstance, engine: EngineResource, platform: Platform
) -> None:
    state, archive = platform.application(), platform.configuration()
    platform.verify(state)
    platform.verify(archive)
    tick(instance, engine)
    assert APPLICATION.listed(instance) == {state.backup_id}
    assert CONFIGURATION.listed(instance) == {archive.backup_id}
    tick(instance, engine)
    for key, backup in ((_STATE, state), (_STATE_PROOF, state), (_ARCHIVE, archive),
                        (_ARCHIVE_PROOF, archive)):  # fmt: skip
        assert green(instance, key, backup.backup_id), key
    remove(state)
    tick(instance, engine)
    assert APPLICATION.listed(instance) == set()
    assert CONFIGURATION.listed(instance) == {archive.backup_id}


def test_no_secret_reaches_dagster(
    instance: dg.DagsterInstance, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in platform.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KYB_APPLICATION__TOKEN", "tell-nobody-4711")
    engine = EngineResource()
    assert run(instance, engine, "configuration_job", "config_1").success
    assert deploy(instance, engine, "before_v2", "v2").success
    written = b"".join(
        path.read_bytes() for path in Path(instance.root_directory).rglob("*") if path.is_file()
    )
    private = platform.identity.read_text().splitlines()[-1].encode()
    for secret in (PASSPHRASE.encode(), b"tell-nobody-4711", private, SECRET, b"secrets.env"):
        assert secret not in written
    assert b"config_1" in written


def test_the_schedule_names_the_partition_from_its_time(instance: dg.DagsterInstance) -> None:
    when = datetime(2026, 2, 1, 3, 0, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=when)
    data = defs.resolve_schedule_def("configuration_schedule").evaluate_tick(context)
    (request,) = data.run_requests or []
    assert request.tags["dagster/partition"] == "config_backup_20260201_030000"
