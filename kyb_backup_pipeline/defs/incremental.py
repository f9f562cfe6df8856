"""Base backups, increments and point-in-time restore tests, each on a partition of its own.

An increment stands on a base backup, which its metadata name; its partition is verified, and the
point-in-time restore test recovers to its marker. The monthly test takes an increment first, so it
proves a recovery to that very moment; on demand it is launched for any increment there is.

Schedules are pure and name the partition from the scheduled time. A sensor takes a new base backup when
the newest is older than its limit, and the first one if there is none.
Where to look next: ``engine/base_backup.py``, ``engine/incremental.py``, ``engine/recovery_drill.py``.
"""

from collections.abc import Iterator

import dagster as dg

from kyb_backup_pipeline.defs.backup_view import backup_checks, backup_metadata, chain_check
from kyb_backup_pipeline.defs.offsite import (
    base_backup_offsite_copy,
    incremental_backup_offsite_copy,
)
from kyb_backup_pipeline.defs.partitions import BASE, INCREMENTAL, partitioned_check
from kyb_backup_pipeline.defs.proof_view import engine_errors, outcome
from kyb_backup_pipeline.defs.resources import (
    EngineResource,
    freshness,
    health_settings,
    schedule_settings,
)
from kyb_backup_pipeline.defs.verify_all import verify_partition
from kyb_backup_pipeline.engine.backup import new_id
from kyb_backup_pipeline.engine.base_backup import take_base_backup
from kyb_backup_pipeline.engine.incremental import take_incremental_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_drill import drill_point_in_time
from kyb_backup_pipeline.engine.recovery_plan import Moment, coverages
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import parse_lsn

_OWNERS = ["team:platform"]
_SCHEDULES = schedule_settings()
_LIMITS = health_settings()
_BASE_TAGS = {"backup": "base"}
_INCREMENTAL_TAGS = {"backup": "incremental"}
_MAX_RUNTIME = {"dagster/max_runtime": str(12 * 3600)}


@dg.asset(
    freshness_policy=freshness(_LIMITS.base_max_age),
    partitions_def=BASE.partitions,
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres"},
    tags=_BASE_TAGS,
    pool="kyb_database",
    description="The files of the whole cluster, as pg_basebackup copies them: what WAL can be "
    "replayed on. The partition key is the backup's id, which is never used again.",
    check_specs=[
        partitioned_check(
            "size_against_previous",
            asset="base_backup",
            family=BASE,
            description="Warns where a base backup has less than half the median size of up to "
            "seven earlier ones.",
        )
    ],
)
def base_backup(context: dg.AssetExecutionContext, engine: EngineResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        request = BASE.request(context)
        backup = take_base_backup(settings, request, now=utc_now(), report=engine.reporter())
        backups = Repository(settings.repository).backups(("base",))
        checks = backup_checks(backup.require_manifest(), backups)
    return dg.MaterializeResult(metadata=backup_metadata(backup), check_results=checks)


@dg.asset(
    partitions_def=BASE.partitions,
    deps=[base_backup],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres", "sha256"},
    tags=_BASE_TAGS,
    description="Every byte of the base backup, and every file in it against PostgreSQL's own "
    "manifest, in one pass.",
    check_specs=[
        partitioned_check(
            "files_as_written",
            asset="base_backup_verification",
            family=BASE,
            description="Every file of the cluster is there, with the size and SHA-256 of "
            "PostgreSQL's manifest, and the WAL that makes the copy consistent.",
        )
    ],
)
def base_backup_verification(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    yield from verify_partition(context, engine, BASE)


wal_store = dg.AssetSpec(
    "wal_store",
    deps=[base_backup],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres"},
    tags=_INCREMENTAL_TAGS,
    description="The segments of the write-ahead log behind the base backups, which every increment "
    "adds to; its observations say what recovery is covered. Not partitioned: it links base backups "
    "and increments, since Dagster cannot resolve a dependency between two sets of partitions for a "
    "key that is registered by the run itself.",
)


@dg.asset(
    freshness_policy=freshness(_LIMITS.incremental_max_age),
    partitions_def=INCREMENTAL.partitions,
    deps=[wal_store],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres"},
    tags=_INCREMENTAL_TAGS,
    pool="kyb_database",
    description="The write-ahead log since the last increment, up to a marker transaction; with its "
    "base backup, which the metadata name, it leads to every moment up to there.",
    check_specs=[
        partitioned_check(
            "chain_unbroken",
            asset="incremental_backup",
            family=INCREMENTAL,
            description="Every segment from the base backup to the end of this increment is there.",
        )
    ],
)
def incremental_backup(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        request = INCREMENTAL.request(context)
        backup = take_incremental_backup(settings, request, now=utc_now(), report=engine.reporter())
        check = chain_check(Repository(settings.repository), backup.require_manifest())
        context.log_event(dg.AssetObservation(wal_store.key, metadata=_covered(settings)))
    return dg.MaterializeResult(metadata=backup_metadata(backup), check_results=[check])


@dg.asset(
    partitions_def=INCREMENTAL.partitions,
    deps=[incremental_backup],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres", "sha256"},
    tags=_INCREMENTAL_TAGS,
    description="Each segment of the increment decompressed and compared with the SHA-256 that was "
    "recorded, and none missing between its base backup and its end.",
    check_specs=[
        partitioned_check(
            "files_as_written",
            asset="incremental_backup_verification",
            family=INCREMENTAL,
            description="Every segment has the content that was recorded.",
        )
    ],
)
def incremental_backup_verification(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    yield from verify_partition(context, engine, INCREMENTAL)


@dg.asset(
    partitions_def=INCREMENTAL.partitions,
    deps=[incremental_backup_verification],
    group_name="database",
    owners=_OWNERS,
    kinds={"postgres", "restore"},
    tags=_INCREMENTAL_TAGS,
    description="The base backup recovered to the marker of this increment on a throwaway server, "
    "never the production one: markers before it are committed, those behind it are not, and "
    "every table is read to its last row. Measures the recovery time.",
    check_specs=[
        partitioned_check(
            "markers_as_expected",
            asset="point_in_time_restore_test",
            family=INCREMENTAL,
            description="What was committed before the target is there, and nothing from behind it.",
        ),
        partitioned_check(
            "tables_readable",
            asset="point_in_time_restore_test",
            family=INCREMENTAL,
            description="Every table of every database is read to its last row; indexes are checked "
            "where the source has the extension amcheck.",
        ),
        partitioned_check(
            "recovery_time",
            asset="point_in_time_restore_test",
            family=INCREMENTAL,
            description="Seconds from the first file to the target.",
        ),
    ],
)
def point_in_time_restore_test(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    with engine_errors():
        settings = engine.settings()
        increment = Repository(settings.repository).find(context.partition_key)
        wal = increment.require_manifest().require_wal()
        proof = drill_point_in_time(
            settings,
            Moment(position=parse_lsn(wal.markers[-1].lsn), timeline=wal.timeline),
            now=utc_now(),
            report=engine.reporter(),
            run_id=context.run.run_id,
        )
    yield from outcome(proof, "incremental")


def _covered(settings: Settings) -> dict[str, str | int]:
    """What recovery is covered, by base backup, and what the store holds."""
    repository = Repository(settings.repository)
    segments = repository.wal.segments().values()
    spans = {coverage.base.backup_id: str(coverage) for coverage in coverages(repository)}
    sizes = {"segments": len(segments), "bytes": sum(segment.size for segment in segments)}
    return {**sizes, **spans}


base_backup_job = dg.define_asset_job(
    "base_backup_job",
    selection=[base_backup, base_backup_verification, base_backup_offsite_copy],
    executor_def=dg.in_process_executor,
    tags={**_BASE_TAGS, **_MAX_RUNTIME},
    description="Take a base backup of the cluster, verify it, and copy it off-site.",
)

incremental_backup_job = dg.define_asset_job(
    "incremental_backup_job",
    selection=[
        incremental_backup,
        incremental_backup_verification,
        incremental_backup_offsite_copy,
    ],
    executor_def=dg.in_process_executor,
    tags={**_INCREMENTAL_TAGS, **_MAX_RUNTIME},
    description="Bring the write-ahead log up to this moment into the repository, verify it, "
    "and copy it off-site.",
)

point_in_time_test_job = dg.define_asset_job(
    "point_in_time_test_job",
    selection=[
        incremental_backup,
        incremental_backup_verification,
        point_in_time_restore_test,
        incremental_backup_offsite_copy,
    ],
    executor_def=dg.in_process_executor,
    tags={**_INCREMENTAL_TAGS, **_MAX_RUNTIME},
    description="Take an increment, verify it, recover to its marker on a throwaway server, and copy it "
    "off-site.",
)


@dg.schedule(
    job=base_backup_job,
    cron_schedule=_SCHEDULES.base_backup,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A base backup each week. schedules.base_backup sets the time (UTC).",
)
def base_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return _run_request("base", context)


@dg.schedule(
    job=incremental_backup_job,
    cron_schedule=_SCHEDULES.incremental_backup,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="An increment every six hours. schedules.incremental_backup sets the times (UTC).",
)
def incremental_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return _run_request("incr", context)


@dg.schedule(
    job=point_in_time_test_job,
    cron_schedule=_SCHEDULES.point_in_time_test,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A point-in-time restore test each month, of an increment that is taken for it. "
    "schedules.point_in_time_test sets the time (UTC).",
)
def point_in_time_test_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return _run_request("incr", context)


def _run_request(prefix: str, context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    backup_id = new_id(prefix, context.scheduled_execution_time)
    return dg.RunRequest(run_key=backup_id, tags={"dagster/partition": backup_id})


@dg.sensor(
    job=base_backup_job,
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Takes a base backup when there is none, or the newest is older than "
    "base_backup.max_age. Once a day at most, so that one which fails is not tried all the time.",
)
def base_backup_sensor(
    context: dg.SensorEvaluationContext, engine: EngineResource
) -> dg.RunRequest | dg.SkipReason:
    now = utc_now()
    settings = engine.settings()
    bases = Repository(settings.repository).backups(("base",))
    newest = next((base.manifest for base in bases if base.manifest is not None), None)
    if newest is not None:
        age = (now - newest.completed_at).total_seconds()
        if age <= settings.base_backup.max_age:
            return dg.SkipReason(f"{newest.backup_id} is {age / 86400:.1f} days old")
    before = newest.backup_id if newest else "none"
    return dg.RunRequest(
        run_key=f"base after {before} {now:%Y-%m-%d}",
        tags={"dagster/partition": new_id("base", now)},
    )
