"""Verification: of one backup, in the chain of its family, and of all of them each night in one run that
reports each result to its own partition.

One bad backup hides no other, and the run fails at the end if there were bad ones.
"""

import logging
from collections.abc import Iterator

import dagster as dg

from kyb_backup_pipeline.defs.partitions import FAMILIES, Family
from kyb_backup_pipeline.defs.proof_view import engine_errors, outcome
from kyb_backup_pipeline.defs.reporting import Reported, report_proofs
from kyb_backup_pipeline.defs.resources import EngineResource, schedule_settings
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import KybError, Locked
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup

_log = logging.getLogger(__name__)

_SCHEDULES = schedule_settings()
_RUN_TAGS = {"dagster/max_runtime": str(12 * 3600)}


def verify_partition(
    context: dg.AssetExecutionContext, engine: EngineResource, family: Family
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Verify the backup of the run's partition: the body of each family's verification asset."""
    with engine_errors():
        settings = engine.settings()
        repository = Repository(settings.repository)
        proof = verify_backup(
            repository,
            repository.find(context.partition_key),
            settings=settings,
            now=utc_now(),
            report=engine.reporter(),
            run_id=context.run.run_id,
        )
    yield from outcome(proof, family.kind)


@dg.op(
    out=dg.Out(dg.Nothing),
    tags={"kind": "postgres"},
    description="Verify every backup in the repository, and report each result to its partition.",
)
def verify_each_backup(
    context: dg.OpExecutionContext, engine: EngineResource
) -> Iterator[Reported | dg.Output[None]]:
    with engine_errors():
        settings = engine.settings()
        repository = Repository(settings.repository)
        backups = repository.backups(tuple(FAMILIES))
    for kind, family in FAMILIES.items():
        family.register(context.instance, [b.backup_id for b in backups if b.kind == kind])
    yield from report_proofs(context, _verified(repository, backups, settings, context.run_id))
    yield dg.Output(None)


def _verified(
    repository: Repository, backups: list[Backup], settings: Settings, run_id: str
) -> Iterator[tuple[Family, Proof]]:
    for backup in backups:
        family, began = FAMILIES[backup.kind], utc_now()
        try:
            yield (
                family,
                verify_backup(repository, backup, settings=settings, now=began, run_id=run_id),
            )
        except Exception as error:  # noqa: BLE001 one backup must not hide the next
            if isinstance(error, Locked) or not backup.folder.exists():
                _log.info("%s is being removed", backup.backup_id)
                continue
            hint = error.hint if isinstance(error, KybError) else None
            yield family, Proof(
                backup_id=backup.backup_id, proof="verification", verdict="could_not_verify",
                summary=str(error), hint=hint,
                started_at=began, finished_at=utc_now(), run_id=run_id,
            )  # fmt: skip


@dg.job(
    executor_def=dg.in_process_executor,
    tags=_RUN_TAGS,
    description="Verify every backup in the repository in one run. The run fails at the end if "
    "there are bad ones, and names them.",
)
def verify_all_backups() -> None:
    verify_each_backup()


verify_all_schedule = dg.ScheduleDefinition(
    name="verify_all_schedule",
    job=verify_all_backups,
    cron_schedule=_SCHEDULES.verify_all,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Verifies every backup, each day. schedules.verify_all sets the time (UTC).",
)
