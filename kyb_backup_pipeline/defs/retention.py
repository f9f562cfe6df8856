"""Retention: what need not be kept is deleted each day, with the reason for every line.

A clock that cannot be right fails the run, and nothing is deleted; the command line overrides it. The
partitions of deleted backups leave the UI by ``repository_sensor``.
Where to look next: ``engine/retention.py``, ``engine/prune.py``.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg

from kyb_backup_pipeline.defs.card import table
from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.resources import EngineResource, schedule_settings
from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.printable import markdown_text
from kyb_backup_pipeline.engine.prune import PruneWish, prune, wal_lines
from kyb_backup_pipeline.engine.prune_records import PruneRecord
from kyb_backup_pipeline.engine.retention import Plan
from kyb_backup_pipeline.engine.store import Repository

_SCHEDULES = schedule_settings()
_TAGS = {"backup": "retention"}
_MOST = 100


@dg.asset(
    group_name="health",
    owners=["team:platform"],
    kinds={"postgres"},
    tags=_TAGS,
    pool="kyb_database",
    description="Deletes backups and WAL that need not be kept; its metadata have what was deleted and "
    "the reason for every line. Never the newest, the newest that was proved, what is held, in use, "
    "damaged or unknown, nor what a recovery to a moment of the last days needs.",
)
def retention(context: dg.AssetExecutionContext, engine: EngineResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        repository = Repository(settings.repository)
        wish = PruneWish(run_id=context.run.run_id)
        record, plan = prune(repository, settings.retention, wish, now=utc_now())
    return dg.MaterializeResult(metadata=_metadata(record, plan))


def _metadata(record: PruneRecord, plan: Plan) -> dict[str, Any]:
    """How many were deleted of each kind, the bytes that are free now, and every decision."""
    deleted = Counter(dict.fromkeys((*FOLDERS, "wal"), 0))
    for gone in record.deleted:
        deleted[gone.kind] += gone.count
    return {
        **{f"deleted_{kind}": count for kind, count in deleted.items()},
        "skipped": len(record.skipped),
        "kept": sum(count for kind, count in record.kept.items() if kind != "wal"),
        "bytes_freed": record.freed,
        "decisions": dg.MetadataValue.md(_decisions(record, plan)),
    }


def _decisions(record: PruneRecord, plan: Plan) -> str:
    """What was deleted, what was skipped, then what stays, as far as there is room."""
    rows = [("deleted", gone.id, gone.why) for gone in record.deleted]
    rows += [("skipped", gone.id, gone.why) for gone in record.skipped]
    rows += [("kept", d.backup.backup_id, d.why) for d in plan.decisions if d.keep]
    rows += [("kept", gone.id, gone.why) for gone in wal_lines(d for d in plan.wal if d.keep)]
    return _shown(rows)


def _shown(rows: Sequence[tuple[str, str, str]]) -> str:
    shown = [(what, markdown_text(name), markdown_text(why)) for what, name, why in rows[:_MOST]]
    more = f"\n\n… and {len(rows) - _MOST} more" if len(rows) > _MOST else ""
    return table(("", "Backup", "Why"), shown) + more


retention_job = dg.define_asset_job(
    "retention_job",
    selection=[retention],
    executor_def=dg.in_process_executor,
    tags={**_TAGS, "dagster/max_runtime": str(6 * 3600)},
    description="Delete what need not be kept.",
)

retention_schedule = dg.ScheduleDefinition(
    name="retention_schedule",
    job=retention_job,
    cron_schedule=_SCHEDULES.retention,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes what need not be kept, each day. schedules.retention sets the time (UTC).",
)
