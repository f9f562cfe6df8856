"""The restore test: bring a backup back on a throwaway cluster and compare it with its source.

Never on the production server. The clock that counts for the recovery time runs from the first role
to the last index; the comparison is timed apart. Three verdicts: passed, failed, could not verify (an
extension, a locale, a major version, or room that this machine does not have).
"""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime

import psycopg

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.comparison import compare
from kyb_backup_pipeline.engine.course import Course
from kyb_backup_pipeline.engine.database import read_database, settings_sql
from kyb_backup_pipeline.engine.dump import PLAIN_FILE
from kyb_backup_pipeline.engine.errors import InvalidRequest, RestoreFailed
from kyb_backup_pipeline.engine.evidence import (
    Evidence,
    take_evidence_parallel,
)
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.full_backup import DATABASE_FILE
from kyb_backup_pipeline.engine.manifest import (
    Finding,
    Manifest,
    Proof,
)
from kyb_backup_pipeline.engine.offsite_backup import (
    OffsiteBackup,
    newest_copy,
    note,
    offsite_backup,
)
from kyb_backup_pipeline.engine.offsite_copy import OffsiteCopy
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.postgres import FIXED_SETTINGS, Target, connect
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.restore import (
    apply_database_settings,
    check_requirements,
    create_database,
    load_dump,
    load_globals,
    missing_here,
)
from kyb_backup_pipeline.engine.restore_source import (
    Origin,
    Source,
    check_key,
    evidence_of,
    globals_of,
    origin_of,
    part_of,
    source_of,
)
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.smoke import ask_smoke_queries
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.throwaway import Cluster, throwaway_cluster
from kyb_backup_pipeline.engine.verify import (
    examine_file,
    examine_manifest,
    files_of,
)
from kyb_backup_pipeline.engine.verify_offsite import examine_offsite

_log = logging.getLogger(__name__)

_HINT_OF_COPY = (
    "while the backup is at home and sound: kyb-backup offsite push {id} --again; else keep another copy, and test "
    "that"
)
_SINGLE_TRANSACTION_OBJECTS = 20_000
"""Above it one transaction would need more locks than the throwaway server has room for."""


def drill_full_backup(
    settings: Settings,
    backup: Backup,
    *,
    now: datetime,
    report: Reporter = silent,
    run_id: str | None = None,
) -> Proof:
    """Restore a full backup, compare it, keep the record. A bad backup is a verdict.

    Of a copy it is written down, too, how that one is. A run that found differences names each of them in ``findings``.
    """
    repository = Repository(settings.repository)
    course = Course()
    with repository.reading(backup), course.judging():
        _drill(settings, backup, course, report)
    proof = course.proof(backup.backup_id, "restore_test", now, run_id)
    if isinstance(backup, OffsiteBackup):
        proof = _of_copy(proof, backup.place)
        if proof.verdict != "could_not_verify":
            note(backup.at, backup.copy, proof.verdict, proof.summary)
    repository.records.keep(proof)
    return proof


def drill_copy(
    settings: Settings,
    place: Place,
    copy: OffsiteCopy | None = None,
    *,
    now: datetime,
    report: Reporter = silent,
    run_id: str | None = None,
) -> Proof:
    """The same with a copy (None: the newest of a full backup in ``place``), streamed from where it lies.

    The record is kept at home and names the place: a pass is one of that backup, too, a failure of its copy
    alone. Neither the database nor
    the backup at home is needed. Raises NotFound without any copy, CopyConflict for a copy of another backup than
    the one at home with its id, and what the target raises while it is looked for; a bad copy is a verdict, and a target that goes away *could not verify*.
    """
    copy = newest_copy(place.target) if copy is None else copy
    if copy.kind != "full":
        raise InvalidRequest(f"{copy.backup_id} is a backup of kind {copy.kind}",
                             hint="kyb-backup offsite list --kind full")  # fmt: skip
    with offsite_backup(settings, place, copy) as backup:
        return drill_full_backup(settings, backup, now=now, report=report, run_id=run_id)


def _of_copy(proof: Proof, name: str) -> Proof:
    hint = _HINT_OF_COPY.format(id=proof.backup_id) if proof.verdict == "failed" else proof.hint
    summary = f"from the copy in {name}: {proof.summary}"
    return proof.model_copy(update={"place": name, "summary": summary, "hint": hint})


def _drill(settings: Settings, backup: Backup, course: Course, report: Reporter) -> None:
    with course.step("integrity"):
        manifest = _whole(settings, backup, course, report)
    if manifest is None:
        return
    source = source_of(backup, settings.encryption)
    check_key(source)
    origin = origin_of(source)
    evidence = evidence_of(source)
    with ExitStack() as stack:
        with course.step("cluster"):
            cluster = stack.enter_context(
                throwaway_cluster(
                    settings,
                    major=origin.major,
                    superuser=origin.requirements.bootstrap_role,
                    needed_bytes=round(1.3 * origin.requirements.database_bytes),
                )
            )
        course.server = cluster.programs.version
        try:
            _prove(settings, source, origin, evidence, cluster, course, report)
        except psycopg.Error as error:
            raise missing_here(error.diag.message_primary) or RestoreFailed(
                f"the restored database does not answer: {str(error).strip()}"
            ) from error


def _prove(
    settings: Settings,
    source: Source,
    origin: Origin,
    evidence: Evidence | None,
    cluster: Cluster,
    course: Course,
    report: Reporter,
) -> None:
    database = _restore(settings, source, origin, evidence, cluster, course, report)
    recovery = sum(course.steps[step] for step in ("roles", "restore", "settings"))
    course.figures["recovery_seconds"] = round(recovery, 3)
    if evidence is not None:
        with course.step("comparison"):
            _compare(settings, evidence, database, course, report)
    else:
        course.summary = "restored; there is no evidence to compare it with"
    with course.step("smoke_queries"):
        findings, asked = ask_smoke_queries(settings, database)
        course.findings += findings
        course.figures["smoke_queries"] = asked


def _whole(settings: Settings, backup: Backup, course: Course, report: Reporter) -> Manifest | None:
    """Everything that is not hashed while it is loaded, hashed now."""
    seen = Examination()
    if isinstance(backup, OffsiteBackup):
        manifest = examine_offsite(settings, backup, seen, report)
    elif (manifest := examine_manifest(backup, seen)) is not None:
        files = files_of(manifest)
        for done, file in enumerate(files):
            report(Progress(step="integrity", done=done, total=len(files), unit="files"))
            if not file.path.startswith(PLAIN_FILE):
                examine_file(backup.folder, file, seen)
            elif not (backup.folder / file.path).is_file():
                seen.found(file.path, "is missing")
    course.findings += seen.findings
    if not seen.findings and seen.unverifiable is not None:
        raise seen.unverifiable
    return manifest if not seen.findings else None


def _restore(
    settings: Settings,
    source: Source,
    origin: Origin,
    evidence: Evidence | None,
    cluster: Cluster,
    course: Course,
    report: Reporter,
) -> Target:
    """Roles, database, dump, settings; returns the way into the restored database."""
    maintenance = cluster.target("template1")
    database = source.manifest.database
    name = database.name if database else "restored"
    target = cluster.target("restored" if name in ("template0", "template1") else name)
    with course.step("roles"):
        check_requirements(maintenance, origin.requirements)
        text, recorded = globals_of(source)
        if not recorded:
            course.notes.append("roles were not recorded: those that the dump names were made")
        course.notes += load_globals(maintenance, text, throwaway=True)
        if target.dbname == "postgres":
            with connect(maintenance) as connection:
                connection.execute("DROP DATABASE postgres")
        create_database(maintenance, target.dbname, origin.requirements)
    with course.step("restore"):
        load_dump(
            source,
            cluster.programs,
            target,
            jobs=settings.restore_test.jobs,
            stall_timeout=settings.restore_test.stall_timeout,
            single_transaction=evidence is not None
            and evidence.object_count
            + (evidence.large_objects.count if evidence.large_objects else 0)
            < _SINGLE_TRANSACTION_OBJECTS,
            report=report,
        )
    with course.step("settings"):
        if not source.manifest.legacy:
            refused = apply_database_settings(source, cluster.programs, target)
            course.notes += refused
            course.findings += _compare_settings(source, target, all_taken=not refused)
    return target


def _compare_settings(source: Source, target: Target, *, all_taken: bool) -> Iterator[Finding]:
    """Settings, grants, owner and comment of the database itself: written down again, and compared.

    Findings do not repeat values: settings can hold secrets.
    """
    with connect(target, FIXED_SETTINGS) as connection:
        restored = settings_sql(read_database(connection)).splitlines()
    for line in (part_of(source, DATABASE_FILE) or b"").decode().splitlines():
        if line not in restored and (all_taken or " SET " not in line):
            what = re.sub(r"( SET \S+) TO .*|( COMMENT ON DATABASE) .*", r"\1\2", line)
            yield Finding(object=DATABASE_FILE, message=f"has no effect after restore: {what}")


def _compare(
    settings: Settings, evidence: Evidence, database: Target, course: Course, report: Reporter
) -> None:
    restored = take_evidence_parallel(
        database, like=evidence, jobs=settings.restore_test.jobs, report=report
    )
    result = compare(evidence, restored)
    course.findings += result.differences
    course.notes += result.notes
    course.figures |= {
        "tables": result.tables,
        "rows": result.rows,
        "objects": result.objects,
        "differences": len(result.differences),
    }
    course.summary = (
        f"{result.rows} rows in {result.tables} tables and {result.objects} objects "
        "equal the source's"
    )
