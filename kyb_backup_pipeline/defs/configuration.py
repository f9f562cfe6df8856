"""Configuration with its secrets: an encrypted archive each day, and its verification.

Where to look next: ``engine/file_backup.py``, ``engine/verify_archive.py``.
"""

from collections.abc import Iterator

import dagster as dg

from kyb_backup_pipeline.defs.archive_checks import backup_checks_of, verification_checks_of
from kyb_backup_pipeline.defs.backup_view import backup_checks, backup_metadata
from kyb_backup_pipeline.defs.offsite import configuration_archive_offsite_copy
from kyb_backup_pipeline.defs.partitions import CONFIGURATION
from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.resources import (
    EngineResource,
    freshness,
    health_settings,
    schedule_settings,
)
from kyb_backup_pipeline.defs.verify_all import verify_partition
from kyb_backup_pipeline.engine.backup import new_id
from kyb_backup_pipeline.engine.file_backup import take_configuration_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import Repository

_OWNERS = ["team:platform"]
_SCHEDULES = schedule_settings()
_LIMITS = health_settings()
_TAGS = {"backup": "configuration"}
_MAX_RUNTIME = {"dagster/max_runtime": str(3600)}


@dg.asset(
    freshness_policy=freshness(_LIMITS.configuration_max_age),
    partitions_def=CONFIGURATION.partitions,
    group_name="application",
    owners=_OWNERS,
    kinds={"encrypted"},
    tags=_TAGS,
    description="Environment files, configuration, deployment files and secrets, by patterns; "
    "encrypted on the way to the disk.",
    check_specs=backup_checks_of("configuration_archive", CONFIGURATION),
)
def configuration_archive(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        request = CONFIGURATION.request(context)
        backup = take_configuration_backup(
            settings, request, now=utc_now(), report=engine.reporter()
        )
        backups = Repository(settings.repository).backups(("configuration",))
        checks = backup_checks(backup.require_manifest(), backups)
    return dg.MaterializeResult(metadata=backup_metadata(backup), check_results=checks)


@dg.asset(
    partitions_def=CONFIGURATION.partitions,
    deps=[configuration_archive],
    group_name="application",
    owners=_OWNERS,
    kinds={"encrypted", "sha256"},
    tags=_TAGS,
    description="Is the archive what was written, and does every member have the content that was "
    "recorded? The second question needs the key.",
    check_specs=verification_checks_of("configuration_verification", CONFIGURATION),
)
def configuration_verification(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    yield from verify_partition(context, engine, CONFIGURATION)


configuration_job = dg.define_asset_job(
    "configuration_job",
    selection=[
        configuration_archive,
        configuration_verification,
        configuration_archive_offsite_copy,
    ],
    executor_def=dg.in_process_executor,
    tags={**_TAGS, **_MAX_RUNTIME},
    description="Archive the configuration, verify the archive, and copy it off-site.",
)


@dg.schedule(
    job=configuration_job,
    cron_schedule=_SCHEDULES.configuration_backup,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A configuration archive each day. schedules.configuration_backup sets the time (UTC).",
)
def configuration_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    backup_id = new_id("config_backup", context.scheduled_execution_time)
    return dg.RunRequest(run_key=backup_id, tags={"dagster/partition": backup_id})
