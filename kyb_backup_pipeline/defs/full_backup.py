"""Full backups: made, verified and really restored, each on a partition of its own.

The job runs the chain in one process: one run is one lineage, one failure, one alert. Its schedule is
pure; it names the partition from the scheduled time, and ``full_backup`` registers that key before it
does anything, since Dagster starts runs of unknown keys and trips over them at the end only. A run
that is retried after a crash adopts the backup that it had completed.

Where to look next: ``engine/full_backup.py``, ``engine/verify.py``, ``engine/restore_drill.py``.
"""

import logging
from collections.abc import Iterator

import dagster as dg

from kyb_backup_pipeline.defs.backup_view import backup_checks, backup_metadata
from kyb_backup_pipeline.defs.offsite import full_backup_offsite_copy
from kyb_backup_pipeline.defs.partitions import FULL, partitioned_check
from kyb_backup_pipeline.defs.proof_view import engine_errors, outcome
from kyb_backup_pipeline.defs.resources import (
    EngineResource,
    freshness,
    health_settings,
    schedule_settings,
)
from kyb_backup_pipeline.defs.verify_all import verify_partition
from kyb_backup_pipeline.engine.backup import new_id
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_OWNERS = ["team:platform"]
_TAGS = {"backup": "full"}
_SCHEDULES = schedule_settings()
_LIMITS = health_settings()
_RUN_TAGS = {**_TAGS, "dagster/max_runtime": str(12 * 3600)}
"""With the seconds after which Dagster ends a run, also one whose machine died and cannot say so."""


@dg.asset(
    freshness_policy=freshness(_LIMITS.full_max_age),
    partitions_def=FULL.partitions,
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres"},
    tags=_TAGS,
    pool="kyb_database",
    description="A dump of the whole database with its roles and settings, and the evidence of what "
    "the source held in the snapshot of the dump. The partition key is the backup's id, which "
    "is never used again: to prove a backup once more, materialize the other two alone.",
    check_specs=[
        partitioned_check(
            "evidence_taken",
            asset="full_backup",
            description="Restores can be compared with what the source held. Warns where "
            "backup.evidence is none.",
        ),
        partitioned_check(
            "size_against_previous",
            asset="full_backup",
            description="Warns where a backup has less than half the median size of up to seven "
            "earlier ones of the same database.",
        ),
    ],
)
def full_backup(context: dg.AssetExecutionContext, engine: EngineResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        request = FULL.request(context)
        backup = take_full_backup(settings, request, now=utc_now(), report=engine.reporter())
        backups = Repository(settings.repository).backups()
        checks = backup_checks(backup.require_manifest(), backups)
    return dg.MaterializeResult(metadata=backup_metadata(backup), check_results=checks)


@dg.asset(
    partitions_def=FULL.partitions,
    deps=[full_backup],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres", "sha256"},
    tags=_TAGS,
    description="Are the files of the backup what was written, whole and complete? One pass over "
    "every byte: checksums beside decompression, and the dump must have come to its end.",
    check_specs=[
        partitioned_check(
            "files_as_written",
            asset="full_backup_verification",
            description="Every file is there, with the size and SHA-256 of the manifest, and "
            "decompresses to a complete dump.",
        )
    ],
)
def full_backup_verification(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    yield from verify_partition(context, engine, FULL)


@dg.asset(
    partitions_def=FULL.partitions,
    deps=[full_backup_verification],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres", "restore"},
    tags=_TAGS,
    description="The backup restored on a throwaway server, never the production one, and compared "
    "with what the source held: rows, content, objects, sequences, roles. Measures the recovery time.",
    check_specs=[
        partitioned_check(
            "rows_equal_source",
            asset="full_backup_restore_test",
            description="Every table has the rows and the content that the source had in the "
            "snapshot of the dump.",
        ),
        partitioned_check(
            "objects_present",
            asset="full_backup_restore_test",
            description="Every index, function, constraint, grant, sequence and role is there.",
        ),
        partitioned_check(
            "smoke_queries_answer",
            asset="full_backup_restore_test",
            description="The restored database answers what the platform asks first.",
        ),
        partitioned_check(
            "recovery_time",
            asset="full_backup_restore_test",
            description="Seconds from the first role to the last index.",
        ),
    ],
)
def full_backup_restore_test(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    with engine_errors():
        settings = engine.settings()
        backup = Repository(settings.repository).find(context.partition_key)
        proof = drill_full_backup(
            settings, backup, now=utc_now(), report=engine.reporter(), run_id=context.run.run_id
        )
    yield from outcome(proof)


full_backup_job = dg.define_asset_job(
    "full_backup_job",
    selection=[
        full_backup,
        full_backup_verification,
        full_backup_restore_test,
        full_backup_offsite_copy,
    ],
    executor_def=dg.in_process_executor,
    tags=_RUN_TAGS,
    description="Take a full backup, verify it, restore it on a throwaway server and compare, and copy it "
    "off-site. For a "
    "backup with a name of your own add a partition with that name and launch it.",
)


@dg.schedule(
    job=full_backup_job,
    cron_schedule=_SCHEDULES.full_backup,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A full backup with its proofs, each day. schedules.full_backup sets the time (UTC).",
)
def full_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    backup_id = new_id("backup", context.scheduled_execution_time)
    return dg.RunRequest(run_key=backup_id, tags={"dagster/partition": backup_id})
