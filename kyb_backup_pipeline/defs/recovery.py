"""Recovery from the UI: the restores as graphs with one op a step.

The UI has no login of its own, so a run needs two things: ``recovery.allow_from_ui`` in the settings of the
machine, and the database's name in ``confirm``. A restore is one run's work: its locks are held from the first
op to the last, and what is left undone when the run ends, however that was, is settled. An op that is executed
again alone finds in the journal that it is done, or is refused.

Where to look next: ``engine/stepped.py``, and the three that are built on it; without Dagster:
``kyb-backup restore``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from kyb_backup_pipeline.defs.card import bullets
from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine import cluster_restore, database_restore, file_restore
from kyb_backup_pipeline.engine.cluster_journal import ClusterJournal
from kyb_backup_pipeline.engine.cluster_restore import ClusterRestore, ClusterWish
from kyb_backup_pipeline.engine.database_restore import DatabaseRestore
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.file_restore import InPlaceRestore
from kyb_backup_pipeline.engine.file_unpacking import Options
from kyb_backup_pipeline.engine.journal import JournalFolder, StepJournal, journal_folder
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_journal import Journal
from kyb_backup_pipeline.engine.restore_outlook import Wish
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.stepped import Stepped, recorded_step
from kyb_backup_pipeline.engine.store import Repository

_DATABASE_STEPS = {
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
_CLUSTER_STEPS = {
    "check": "What leads to the moment; versions, room, whether the data folders can change places.",
    "collect": "For latest: the service is stopped, and the last of the log brought in.",
    "recover": "A new data folder: base, log, markers; every row is read.",
    "stop": "The service, then the server.",
    "switch": "The data folders change names; the old one stays.",
    "start": "The server, then the service; what does not come up is put back.",
    "health": "The health address and the smoke queries; what fails here is put back.",
}
_FILE_STEPS = {
    "unpack": "Every member compared, beside what runs.",
    "save": "A safety backup of what runs now, and its feature flags.",
    "stop": "The service, only now.",
    "swap": "Renames; what was in place stays beside.",
    "start": "The service.",
    "flags": "The feature flags are posted back.",
}
assert tuple(_DATABASE_STEPS) == database_restore.STEPS
assert tuple(_CLUSTER_STEPS) == cluster_restore.STEPS
assert tuple(_FILE_STEPS) == file_restore.STEPS

_CONFIRM = "The name of the live database, to say that it is meant."


class DatabaseRestoreWish(dg.Config):
    """What is restored, and the word that it is meant."""

    backup_id: str = Field(description="The full backup to restore.")
    confirm: str = Field(description=_CONFIRM)
    safety_backup: bool = Field(default=True, description="Back up first what is there now.")
    service: bool = Field(default=True, description="Stop and start the service.")


class PointInTimeWish(dg.Config):
    """The moment, and the word that it is meant."""

    at: str = Field(description="A time (without a zone it is UTC), a position, or latest.")
    confirm: str = Field(description=_CONFIRM)
    timeline: int | None = Field(default=None, description="Where a promotion left two.")
    service: bool = Field(default=True, description="Stop and start the service.")


class ApplicationRestoreWish(dg.Config):
    """What is restored, and the word that it is meant."""

    backup_id: str = Field(description="The application state (or configuration) to restore.")
    confirm: str = Field(description=_CONFIRM)
    safety_backup: bool = Field(default=True, description="Save first what runs now.")
    service: bool = Field(default=True, description="Stop and start the service.")
    flags: bool = Field(default=True, description="Post the feature flags back.")


class AtWork:
    """The restore that this run is at: its locks, and what it has unpacked, live as long as the run."""

    def __init__(self) -> None:
        self._restore: Stepped[Any] | None = None

    def take(self, restore: Stepped[Any]) -> None:
        self._restore = restore

    def of(self, restore_id: str) -> Stepped[Any] | None:
        """The restore, if it is this run's."""
        restore = self._restore
        return restore if restore and restore.journal.restore_id == restore_id else None

    def close(self) -> None:
        """Settle what was left undone, and let go."""
        if self._restore is not None:
            self._restore.close()


@dg.resource(description="The restore of a run; left undone, cancelled or failed, it is settled.")
def restore_at_work(context: dg.InitResourceContext) -> Iterator[AtWork]:
    room = AtWork()
    try:
        yield room
    finally:
        room.close()


@dg.op(
    tags={"kind": "postgres"},
    description="Is a restore allowed from here, and is this database meant? Opens the journal.",
)
def begin_database_restore(
    context: dg.OpExecutionContext,
    config: DatabaseRestoreWish,
    engine: EngineResource,
    at_work: dg.ResourceParam[AtWork],
) -> str:
    with engine_errors():
        settings = engine.settings()
        _check_allowed(settings, config.confirm)
        backup = Repository(settings.repository).find(config.backup_id)
        wish = Wish(
            safety_backup=config.safety_backup, service=config.service, run_id=context.run_id
        )
        restore = DatabaseRestore.begin(
            settings, backup, wish, now=utc_now(), report=engine.reporter()
        )
        at_work.take(restore)
    return _begun(context, restore.journal)


@dg.op(
    tags={"kind": "postgres"},
    description="Is a recovery allowed from here, and is this database meant? Opens the journal.",
)
def begin_point_in_time_restore(
    context: dg.OpExecutionContext,
    config: PointInTimeWish,
    engine: EngineResource,
    at_work: dg.ResourceParam[AtWork],
) -> str:
    with engine_errors():
        settings = engine.settings()
        _check_allowed(settings, config.confirm)
        wish = ClusterWish(
            at=config.at, timeline=config.timeline, switch=True, service=config.service,
            run_id=context.run_id,
        )  # fmt: skip
        restore = ClusterRestore.begin(settings, wish, now=utc_now(), report=engine.reporter())
        at_work.take(restore)
    return _begun(context, restore.journal)


@dg.op(
    tags={"kind": "python"},
    description="Is a restore allowed from here, and is this platform meant? Holds its folder.",
)
def begin_application_restore(
    context: dg.OpExecutionContext,
    config: ApplicationRestoreWish,
    engine: EngineResource,
    at_work: dg.ResourceParam[AtWork],
) -> str:
    with engine_errors():
        settings = engine.settings()
        _check_allowed(settings, config.confirm)
        backup = Repository(settings.repository).find(config.backup_id)
        options = Options(
            safety_backup=config.safety_backup, flags=config.flags, service=config.service
        )
        restore = InPlaceRestore(settings, backup, options, now=utc_now(), run_id=context.run_id,
                                 report=engine.reporter())  # fmt: skip
        at_work.take(restore)
    return _begun(context, restore.journal)


def _check_switched_on(settings: Settings) -> None:
    if not settings.recovery.allow_from_ui:
        raise Refused(
            "restores from the UI are switched off: it has no login of its own",
            hint="kyb-backup restore, or recovery.allow_from_ui = true on this machine",
        )


def _check_allowed(settings: Settings, confirm: str) -> None:
    _check_switched_on(settings)
    if confirm != settings.database.name:
        raise Refused(
            f"confirm is {confirm!r}, the database is {settings.database.name!r}",
            hint="type its name to say that it is meant",
        )


def _begun(context: dg.OpExecutionContext, journal: StepJournal) -> str:
    context.add_output_metadata({"restore": journal.restore_id, "backup": journal.backup_id})
    return journal.restore_id


def _step_ops(prefix: str, steps: Mapping[str, str]) -> list[dg.OpDefinition]:
    """One op a step, to be run in this order."""

    def step_op(name: str) -> dg.OpDefinition:
        @dg.op(name=f"{prefix}_{name}", tags={"kind": "postgres"}, description=steps[name])
        def step(
            context: dg.OpExecutionContext,
            engine: EngineResource,
            at_work: dg.ResourceParam[AtWork],
            restore_id: str,
        ) -> str:
            with engine_errors():
                settings = engine.settings()
                _check_switched_on(settings)
                restore = at_work.of(restore_id)
                if restore is None:  # executed alone, or by another run: what is done stays done
                    journal = JournalFolder(journal_folder(settings)).find(restore_id)
                    done = recorded_step(journal, name)
                else:
                    done = restore.step(name)
                metadata: dict[str, Any] = {"seconds": done.seconds or 0.0, "detail": done.detail}
                if restore is not None and name == restore.steps[-1]:
                    metadata |= _outcome(restore.finish())
            context.add_output_metadata(metadata)
            return restore_id

        return step

    return [step_op(name) for name in steps]


def _outcome(journal: StepJournal) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "interruption_seconds": journal.interruption_seconds or 0.0,
        "notes": dg.MetadataValue.md(bullets(journal.notes) if journal.notes else "none"),
    }
    if isinstance(journal, Journal):
        replaced = journal.replaced_name if journal.old_oid is not None else "nothing"
        return {"replaced": replaced, "safety_backup": journal.safety_backup or "none", **outcome}
    if isinstance(journal, ClusterJournal) and journal.replaced and Path(journal.replaced).exists():
        return {"replaced": dg.MetadataValue.path(journal.replaced), **outcome}
    return outcome


def _in_order(restore_id: Any, ops: Sequence[dg.OpDefinition]) -> None:
    for op in ops:
        restore_id = op(restore_id)


_DATABASE_OPS = _step_ops("restore", _DATABASE_STEPS)
_CLUSTER_OPS = _step_ops("point_in_time", _CLUSTER_STEPS)
_FILE_OPS = _step_ops("application", _FILE_STEPS)
_GUARDS = "Refused unless recovery.allow_from_ui is set on the machine and confirm is the database's name."


@dg.job(
    executor_def=dg.in_process_executor,
    tags={"recovery": "database", "dagster/max_retries": "0"},
    description=f"Bring a full backup back in the place of the live database. {_GUARDS} The old database "
    "stays: kyb-backup restore rollback, kyb-backup restore replaced.",
)
def restore_database() -> None:
    _in_order(begin_database_restore(), _DATABASE_OPS)


@dg.job(
    executor_def=dg.in_process_executor,
    tags={"recovery": "point-in-time", "dagster/max_retries": "0"},
    description=f"Bring the whole cluster back to a moment, in the place of the running one. {_GUARDS} "
    "The old data folder stays beside.",
)
def restore_point_in_time() -> None:
    _in_order(begin_point_in_time_restore(), _CLUSTER_OPS)


@dg.job(
    executor_def=dg.in_process_executor,
    tags={"recovery": "application", "dagster/max_retries": "0"},
    description=f"Bring application state or configuration back over what runs now. {_GUARDS} What was in "
    "place stays beside. A cancelled run puts it back.",
)
def restore_application() -> None:
    _in_order(begin_application_restore(), _FILE_OPS)
