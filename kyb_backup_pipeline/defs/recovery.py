"""Recovery from the UI: the restore of the database as a graph with one op a step.

The UI has no login of its own, so a run needs two things: ``recovery.allow_from_ui`` in the settings of the
machine, and the database's name in ``confirm``. Each op asks the journal before it acts: what stands there
as done is not done again, what is not safe is refused, so an op that is executed again alone does no harm.

Where to look next: ``engine/database_restore.py``; without Dagster: ``kyb-backup restore database``.
"""

from typing import Any

import dagster as dg
from pydantic import Field

from kyb_backup_pipeline.defs.card import bullets
from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.database_restore import STEPS, DatabaseRestore
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_journal import Journal
from kyb_backup_pipeline.engine.restore_outlook import Wish
from kyb_backup_pipeline.engine.store import Repository

_WHAT = {
    "verify": "Every byte of the backup.",
    "check": "Versions, rights, room, and what a rename must not pass over.",
    "save": "A safety backup of what is there now, itself verified.",
    "create": "Missing roles, and an empty database as the source's was.",
    "load": "The dump, into the new database beside the live one.",
    "settle": "Owner, settings and grants of the database itself; ANALYZE.",
    "compare": "The restored database against what the source held.",
    "stop": "The service, only now.",
    "swap": "Two renames in one transaction; the old database stays.",
    "start": "The service.",
    "health": "The health address and the smoke queries; what fails here swaps back.",
}


class DatabaseRestoreWish(dg.Config):
    """What is restored, and the word that it is meant."""

    backup_id: str = Field(description="The full backup to restore.")
    confirm: str = Field(description="The name of the live database, to say that it is meant.")
    safety_backup: bool = Field(default=True, description="Back up first what is there now.")
    service: bool = Field(default=True, description="Stop and start the service.")


@dg.op(
    tags={"kind": "postgres"},
    description="Is a restore allowed from here, and is this database meant? Opens the journal.",
)
def begin_database_restore(
    context: dg.OpExecutionContext, config: DatabaseRestoreWish, engine: EngineResource
) -> str:
    with engine_errors():
        settings = engine.settings()
        _check_allowed(settings, config.confirm)
        backup = Repository(settings.repository).find(config.backup_id)
        wish = Wish(
            safety_backup=config.safety_backup, service=config.service, run_id=context.run_id
        )
        journal = DatabaseRestore.begin(settings, backup, wish, now=utc_now()).journal
    context.add_output_metadata({"restore": journal.restore_id, "backup": backup.backup_id})
    return journal.restore_id


def _check_allowed(settings: Settings, confirm: str) -> None:
    if not settings.recovery.allow_from_ui:
        raise Refused(
            "restores from the UI are switched off: it has no login of its own",
            hint="kyb-backup restore database, or recovery.allow_from_ui = true on this machine",
        )
    if confirm != settings.database.name:
        raise Refused(
            f"confirm is {confirm!r}, the database is {settings.database.name!r}",
            hint="type its name to say that it is meant",
        )


def _step_op(name: str) -> dg.OpDefinition:
    @dg.op(name=f"restore_{name}", tags={"kind": "postgres"}, description=_WHAT[name])
    def step(context: dg.OpExecutionContext, engine: EngineResource, restore_id: str) -> str:
        with engine_errors():
            settings = engine.settings()
            restore = DatabaseRestore.resume(settings, restore_id, report=engine.reporter())
            done = restore.step(name)
            metadata: dict[str, Any] = {"seconds": done.seconds or 0.0, "detail": done.detail}
            if name == STEPS[-1]:
                metadata |= _outcome(restore.finish())
        context.add_output_metadata(metadata)
        return restore_id

    return step


def _outcome(journal: Journal) -> dict[str, Any]:
    return {
        "replaced": journal.replaced_name if journal.old_oid is not None else "nothing",
        "safety_backup": journal.safety_backup or "none",
        "interruption_seconds": journal.interruption_seconds or 0.0,
        "notes": dg.MetadataValue.md(bullets(journal.notes) if journal.notes else "none"),
    }


_STEP_OPS = {name: _step_op(name) for name in STEPS}


@dg.job(
    executor_def=dg.in_process_executor,
    tags={"recovery": "database", "dagster/max_retries": "0"},
    description="Bring a full backup back in the place of the live database. Refused unless "
    "recovery.allow_from_ui is set on the machine and confirm is the database's name. The old database "
    "stays: kyb-backup restore rollback, kyb-backup restore replaced.",
)
def restore_database() -> None:
    restore_id = begin_database_restore()
    for op in _STEP_OPS.values():
        restore_id = op(restore_id)
