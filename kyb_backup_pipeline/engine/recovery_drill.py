"""The point-in-time restore test: recover to a moment on a throwaway server, and prove that it is it.

Proved is what recovery is for: every marker transaction before the target is committed, none of those
behind it is; every table of every database can be read to its last row; indexes are sound where the
source has the extension amcheck. The server stays paused at its target and read-only. The base is
compared with its manifests, byte by byte, as it is unpacked, and once more by PostgreSQL's own
pg_verifybackup; each segment as it is replayed.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime

import psycopg

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.course import Course
from kyb_backup_pipeline.engine.errors import CouldNotVerify, RestoreFailed
from kyb_backup_pipeline.engine.manifest import Finding, Proof
from kyb_backup_pipeline.engine.markers import check_markers
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.reading import LOCK_TIMEOUT, read_everything
from kyb_backup_pipeline.engine.recovery import (
    Recovered,
    Site,
    check_plan_key,
    recovering,
    second_opinion,
    unpack_base,
)
from kyb_backup_pipeline.engine.recovery_plan import (
    BrokenChain,
    Moment,
    RecoveryPlan,
    plan_recovery,
    to_last_marker,
)
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.throwaway import throwaway_folder
from kyb_backup_pipeline.engine.wal import format_lsn


def drill_point_in_time(
    settings: Settings,
    moment: Moment,
    *,
    now: datetime,
    report: Reporter = silent,
    run_id: str | None = None,
) -> Proof:
    """Recover to ``moment`` and prove it; the record is kept with the increment that holds it.

    Without an increment it is kept with the base backup. Raises Refused for a moment outside of what is
    covered, NotFound without a base; a bad backup is a verdict.
    """
    repository = Repository(settings.repository)
    course = Course()
    try:
        plan = to_last_marker(plan_recovery(repository, moment))
    except BrokenChain as error:
        course.findings.append(Finding(object="the chain", message=error.message))
        return _keep(repository, course.proof(error.backup_id, "restore_test", now, run_id))
    except CouldNotVerify as error:
        newest = repository.newest("base")
        course.could_not_verify(error)
        return _keep(repository, course.proof(newest.backup_id, "restore_test", now, run_id))
    about = (plan.increment or plan.base).backup_id
    with repository.reading(plan.coverage.base), course.judging():
        _drill(settings, repository, plan, course, report)
    return _keep(repository, course.proof(about, "restore_test", now, run_id))


def _keep(repository: Repository, proof: Proof) -> Proof:
    repository.records.keep(proof)
    return proof


def _drill(
    settings: Settings,
    repository: Repository,
    plan: RecoveryPlan,
    course: Course,
    report: Reporter,
) -> None:
    check_plan_key(plan, repository.wal, settings.encryption)
    base = plan.base
    needed = round(1.1 * (base.uncompressed_size or 0)) + 64 * base.require_wal().segment_bytes
    with throwaway_folder(settings, major=base.server_major or 0, needed_bytes=needed) as (
        folder, programs, account,
    ):  # fmt: skip
        site = Site(
            private=folder,
            data=folder / "data",
            tablespaces=folder / "tablespaces",
            programs=programs,
            account=account,
            keys=settings.encryption,
        )
        course.server = programs.version
        with course.step("unpack"):
            course.findings += unpack_base(plan, site, report)
        if course.findings:
            return
        with course.step("second_opinion"):
            if unasked := second_opinion(plan, site):
                course.notes.append(unasked)
        with ExitStack() as stack:
            with course.step("replay"):
                patience = settings.restore_test.stall_timeout
                recovered = stack.enter_context(
                    recovering(
                        plan, repository.wal, site, pause=True, patience=patience, report=report
                    )
                )
            try:
                _prove(plan, recovered, site, course, report)
            except psycopg.Error as error:
                raise RestoreFailed(
                    f"the recovered server does not answer: {str(error).strip()}"
                ) from error


def _prove(
    plan: RecoveryPlan, recovered: Recovered, site: Site, course: Course, report: Reporter
) -> None:
    course.figures |= {
        "recovery_seconds": round(course.steps["unpack"] + course.steps["replay"], 3),
        "segments": recovered.segments,
    }
    with course.step("markers"):
        markers = check_markers(plan, recovered)
        course.findings += markers.findings
    with course.step("tables"):
        read = read_everything(recovered.target, report)
        course.findings += read.findings
        course.notes += read.notes
    with course.step("indexes"):
        _check_indexes(recovered.target, read.databases, site, course)
    course.figures |= {
        "markers_committed": markers.committed, "markers_open": markers.still_open,
        "databases": len(read.databases), "tables": read.tables, "rows": read.rows,
    }  # fmt: skip
    course.notes.append(
        f"replay stopped at {format_lsn(recovered.position)} on timeline {plan.timeline}"
    )
    course.summary = (
        f"recovered to {plan.moment} from {plan.base.backup_id}: {markers.committed} markers before it "
        f"are committed, {markers.still_open} behind it are not; {read.rows} rows in {read.tables} tables read to the last"
    )


_AMCHECK = "SELECT 1 FROM pg_extension WHERE extname = 'amcheck'"


def _check_indexes(target: Target, databases: Sequence[str], site: Site, course: Course) -> None:
    """pg_amcheck, where the source has its extension: on a paused server none can be made."""
    program = site.programs.path("pg_amcheck")
    checked = 0
    for database in databases:
        way = target.with_database(database)
        with connect(way) as connection:
            if connection.execute(_AMCHECK).fetchone() is None:
                continue
        patient = replace(way, options={**way.options, "lock_timeout": LOCK_TIMEOUT})
        try:
            process.run([program, "--no-password", database], env=patient.environment(),
                        deadline=None)  # fmt: skip
            checked += 1
        except process.ProcessFailed as error:
            if "lock timeout" in error.stderr:
                course.notes.append(f"pg_amcheck: {database} has tables locked at the target")
                continue
            course.findings.append(
                Finding(object=f"database {database}", message=f"pg_amcheck: {error.message}")
            )
    course.figures["databases_checked"] = checked
    if checked < len(databases):
        course.notes.append(
            f"pg_amcheck: {len(databases) - checked} of {len(databases)} databases have no extension "
            "amcheck on the source"
        )
