"""Off-site copies: one for each backup, in its chain after the verification; looked at each day; and pruned.

A copy stands on the verification, so that what is bad is not carried away, and beside the restore test: a place that
is out of sight turns the copy red and the run with it, and neither the backup nor its restore test. Where no place
is set the step says so, and nothing is materialized: green would be a copy that nobody made.

What has no copy yet, since the command line made it, a deployment did or a place was out of sight, is brought by
the daily ``offsite_verification``. What the command line copied appears by ``repository_sensor``.

Where to look next: ``engine/offsite_rounds.py``, ``engine/offsite_push.py``, ``engine/offsite_findings.py``.
"""

import logging
from collections.abc import Iterator
from typing import Any

import dagster as dg

from kyb_backup_pipeline.defs.card import table
from kyb_backup_pipeline.defs.copy_view import (
    CHECK,
    copied_metadata,
    copy_check,
    copy_failure,
    drill_failure,
)
from kyb_backup_pipeline.defs.partitions import (
    APPLICATION,
    BASE,
    CONFIGURATION,
    FAMILIES,
    FULL,
    INCREMENTAL,
    Family,
    partitioned_check,
)
from kyb_backup_pipeline.defs.proof_view import PASSED, engine_errors
from kyb_backup_pipeline.defs.reporting import Reported, report_copies, report_proofs
from kyb_backup_pipeline.defs.resources import EngineResource, schedule_settings
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.offsite_rounds import (
    Pruned,
    catch_up,
    copy_everywhere,
    drill_everywhere,
    prune_everywhere,
    verify_everywhere,
)
from kyb_backup_pipeline.engine.offsite_target import target_settings
from kyb_backup_pipeline.engine.printable import markdown_text
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_OWNERS = ["team:platform"]
_GROUP = "offsite"
_TAGS = {"backup": "offsite"}
_SCHEDULES = schedule_settings()
_RUN_TAGS = {**_TAGS, "dagster/max_runtime": str(12 * 3600)}
_NOWHERE = "no off-site place is set (offsite.url): nothing was done, and what takes this machine takes all"
_MOST = 100


def _copy_of(family: Family, what: str) -> dg.AssetsDefinition:
    """The asset of a kind's copies. It may yield nothing, which a plain asset with a check may not."""
    name = family.copy.to_user_string()
    spec = dg.AssetSpec(
        family.copy,
        deps=[family.proofs["verification"]],
        group_name=_GROUP,
        owners=_OWNERS,
        kinds={"storage"},
        tags={"backup": family.kind},
        partitions_def=family.partitions,
        skippable=True,
        description=f"{what} at every off-site place: each object under a key that never changes, the commit "
        "object last. Run again it sends what is missing, and nothing twice. Without offsite.url the step says so, "
        "and nothing is materialized.",
    )
    check = partitioned_check(
        CHECK, asset=name, family=family,
        description="Every object of the copy is there, with its size, and is the version that was pushed; at "
        "every place.",
    )  # fmt: skip

    @dg.multi_asset(name=name, specs=[spec], check_specs=[check], can_subset=True)
    def copy(
        context: dg.AssetExecutionContext, engine: EngineResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        yield from _copy(context, engine, family)

    return copy


def _copy(
    context: dg.AssetExecutionContext, engine: EngineResource, family: Family
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    with engine_errors():
        settings = engine.settings()
        if not _somewhere(settings):
            return
        backup = Repository(settings.repository).find(context.partition_key)
        copied, failed = copy_everywhere(
            settings, backup, run_id=context.run.run_id, report=engine.reporter()
        )
    proofs = [one.proof for one in copied]
    bad = copy_failure(proofs, failed)
    if bad is None and family.copy in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=family.copy, metadata=copied_metadata(copied),
                                   data_version=dg.DataVersion(PASSED))  # fmt: skip
    if proofs and context.selected_asset_check_keys:
        yield copy_check(family.copy, proofs)
    if bad is not None:
        raise bad


full_backup_offsite_copy = _copy_of(FULL, "The copy of a full backup")
base_backup_offsite_copy = _copy_of(BASE, "The copy of a base backup")
incremental_backup_offsite_copy = _copy_of(
    INCREMENTAL, "The copy of an increment with the WAL that it names"
)
application_state_offsite_copy = _copy_of(APPLICATION, "The copy of an application state")
configuration_archive_offsite_copy = _copy_of(CONFIGURATION, "The copy of a configuration archive")


@dg.op(
    out=dg.Out(dg.Nothing),
    tags={"kind": "storage"},
    description="Look at every copy of every place, and report what was found to the partitions of the backups "
    "that are at home.",
)
def verify_each_copy(
    context: dg.OpExecutionContext, engine: EngineResource
) -> Iterator[Reported | dg.Output[None]]:
    with engine_errors():
        settings = engine.settings()
        if not _somewhere(settings):
            yield dg.Output(None)
            return
        proofs, lost = verify_everywhere(settings, utc_now(), report=engine.reporter())
        repository = Repository(settings.repository)
        at_home = {b.backup_id for b in repository.backups(tuple(FAMILIES))}
    yield from report_copies(context, proofs, at_home, target_settings(settings.offsite))
    bad = copy_failure(proofs, lost)
    if bad is not None:
        raise bad
    yield dg.Output(None)


@dg.op(
    out=dg.Out(dg.Nothing),
    tags={"kind": "storage"},
    description="Copy to every place what has no copy there yet and would be kept there, and the newer records of "
    "what has.",
)
def copy_what_has_no_copy(
    context: dg.OpExecutionContext, engine: EngineResource
) -> Iterator[dg.Output[None]]:
    with engine_errors():
        settings = engine.settings()
        failed = []
        if _somewhere(settings):
            failed = catch_up(settings, utc_now(), report=engine.reporter())
    bad = copy_failure([], failed)
    if bad is not None:
        raise bad
    yield dg.Output(None)


@dg.job(
    executor_def=dg.in_process_executor,
    tags=_RUN_TAGS,
    description="Copy what has no copy yet, and verify every off-site copy, quickly: sizes, and versions as the "
    "service names them (kyb-backup offsite verify --deep reads it all). The run fails at the end if a "
    "copy is bad or a place cannot be used, and names them.",
)
def offsite_verification() -> None:
    verify_each_copy()
    copy_what_has_no_copy()


offsite_verification_schedule = dg.ScheduleDefinition(
    name="offsite_verification_schedule",
    job=offsite_verification,
    cron_schedule=_SCHEDULES.offsite_verify,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Looks at every off-site copy, each day, and brings what is missing. schedules.offsite_verify sets "
    "the time (UTC).",
)


@dg.op(
    out=dg.Out(dg.Nothing),
    tags={"kind": "restore"},
    description="Restore the newest full backup of every place from its copy, on a throwaway server, and compare it "
    "with what the source held.",
)
def restore_newest_copies(
    context: dg.OpExecutionContext, engine: EngineResource
) -> Iterator[Reported | dg.Output[None]]:
    with engine_errors():
        settings = engine.settings()
        if not _somewhere(settings):
            yield dg.Output(None)
            return
        proofs, lost = drill_everywhere(settings, run_id=context.run_id, report=engine.reporter())
        at_home = {b.backup_id for b in Repository(settings.repository).backups()}
    passed = [p for p in proofs if p.verdict == "passed" and p.backup_id in at_home]
    FULL.register(context.instance, [proof.backup_id for proof in passed])
    yield from report_proofs(context, [(FULL, proof) for proof in passed])
    bad = drill_failure(proofs, lost)
    if bad is not None:
        raise bad
    yield dg.Output(None, metadata={p.place or "": p.summary for p in proofs})


@dg.job(
    executor_def=dg.in_process_executor,
    tags=_RUN_TAGS,
    description="The monthly restore test takes the copy, not the file at home: the newest full backup of every "
    "place, streamed from there. A pass is one of the backup, too; a failure is one of the copy alone.",
)
def offsite_restore_test() -> None:
    restore_newest_copies()


offsite_restore_test_schedule = dg.ScheduleDefinition(
    name="offsite_restore_test_schedule",
    job=offsite_restore_test,
    cron_schedule=_SCHEDULES.offsite_restore_test,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Restores the newest copy of each place, each month. schedules.offsite_restore_test sets the time "
    "(UTC).",
)


@dg.asset(
    group_name=_GROUP,
    owners=_OWNERS,
    kinds={"storage"},
    tags=_TAGS,
    deps=["retention"],
    output_required=False,
    description="Deletes copies that need not be kept, by offsite.retention: the rules are those of home. What is "
    "locked stays, with its date. Its metadata have the reason for every line.",
)
def offsite_retention(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None]]:
    with engine_errors():
        settings = engine.settings()
        if not _somewhere(settings):
            return
        pruned, failed = prune_everywhere(settings, utc_now())
    bad = copy_failure([], failed)
    if bad is not None:
        raise dg.Failure(
            bad.description, metadata={**bad.metadata, **_pruned_metadata(pruned)}, allow_retries=False
        )  # fmt: skip
    yield dg.MaterializeResult(metadata=_pruned_metadata(pruned))


def _pruned_metadata(pruned: list[Pruned]) -> dict[str, Any]:
    """How many copies went at all places, the bytes that are free there, and every decision."""
    done = [(place, one) for place in pruned for one in place.done]
    rows = [("deleted" if one.deleted else "skipped", place.target, one.what, one.why)
            for place, one in done]  # fmt: skip
    rows += [("kept", place.target, d.backup.backup_id, d.why)
             for place in pruned for d in place.plan.decisions if d.keep]  # fmt: skip
    rows += [("left alone", place.target, folder, f"{count} objects that no push wrote")
             for place in pruned for folder, count in sorted(place.plan.leavings.foreign.items())]  # fmt: skip
    shown = [(what, *map(markdown_text, rest)) for what, *rest in rows[:_MOST]]
    more = f"\n\n… and {len(rows) - _MOST} more" if len(rows) > _MOST else ""
    return {
        "deleted": sum(one.deleted for _, one in done),
        "skipped": sum(not one.deleted for _, one in done),
        "kept": sum(d.keep for place in pruned for d in place.plan.decisions),
        "bytes_freed": sum(one.bytes for _, one in done if one.deleted),
        "decisions": dg.MetadataValue.md(table(("", "Place", "Copy", "Why"), shown) + more),
    }


offsite_retention_job = dg.define_asset_job(
    "offsite_retention_job",
    selection=[offsite_retention],
    executor_def=dg.in_process_executor,
    tags={**_TAGS, "dagster/max_runtime": str(6 * 3600)},
    description="Delete off-site copies that need not be kept.",
)

offsite_retention_schedule = dg.ScheduleDefinition(
    name="offsite_retention_schedule",
    job=offsite_retention_job,
    cron_schedule=_SCHEDULES.offsite_retention,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes off-site copies that need not be kept, each day, after the retention of home. "
    "schedules.offsite_retention sets the time (UTC).",
)


def _somewhere(settings: Settings) -> bool:
    """Whether there is a place at all; where there is none it is said."""
    if target_settings(settings.offsite):
        return True
    _log.warning(_NOWHERE)
    return False
