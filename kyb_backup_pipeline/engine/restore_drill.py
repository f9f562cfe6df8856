"""The restore test: bring a backup back on a throwaway cluster and compare it with its source.

Never on the production server. The clock that counts for the recovery time runs from the first role
to the last index; the comparison is timed apart. Three verdicts: passed, failed, could not verify (an
extension, a locale, a major version, or room that this machine does not have).
"""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime

import psycopg

from kyb_backup_pipeline.engine.comparison import compare
from kyb_backup_pipeline.engine.compression import BLOCK, CorruptStream, Decompressor
from kyb_backup_pipeline.engine.config import Settings
from kyb_backup_pipeline.engine.course import Course
from kyb_backup_pipeline.engine.database import read_database, settings_sql
from kyb_backup_pipeline.engine.dump import GLOBALS_FILE, PLAIN_FILE
from kyb_backup_pipeline.engine.errors import RestoreFailed
from kyb_backup_pipeline.engine.evidence import (
    EVIDENCE_FILE,
    Evidence,
    read_evidence,
    take_evidence_parallel,
)
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.full_backup import DATABASE_FILE
from kyb_backup_pipeline.engine.manifest import (
    Finding,
    Manifest,
    Proof,
    Requirements,
)
from kyb_backup_pipeline.engine.postgres import FIXED_SETTINGS, Target, connect
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.restore import (
    Source,
    apply_database_settings,
    check_requirements,
    create_database,
    load_dump,
    load_globals,
    mentioned_globals,
    missing_here,
)
from kyb_backup_pipeline.engine.store import Backup, Repository
from kyb_backup_pipeline.engine.throwaway import Cluster, throwaway_cluster
from kyb_backup_pipeline.engine.verify import (
    dump_file,
    examine_file,
    examine_manifest,
    files_of,
    method_of,
)

_log = logging.getLogger(__name__)

_SINGLE_TRANSACTION_OBJECTS = 20_000
"""Above it one transaction would need more locks than the throwaway server has room for."""

_USERS = "SELECT count(*) FROM users"
_USERS_TABLE = """SELECT count(*) > 0 FROM pg_catalog.pg_class
    WHERE oid = pg_catalog.to_regclass('users') AND relkind IN ('r', 'p')"""


@dataclass(frozen=True)
class _Origin:
    major: int
    requirements: Requirements


def drill_full_backup(
    settings: Settings,
    backup: Backup,
    *,
    now: datetime,
    report: Reporter = silent,
    run_id: str | None = None,
) -> Proof:
    """Restore a full backup, compare it, keep the record. A bad backup is a verdict.

    A run that found differences names each of them in ``findings``.
    """
    repository = Repository(settings.repository)
    course = Course()
    with repository.reading(backup), course.judging():
        _drill(settings, backup, course, report)
    proof = course.proof(backup.backup_id, "restore_test", now, run_id)
    repository.records.keep(proof)
    return proof


def _drill(settings: Settings, backup: Backup, course: Course, report: Reporter) -> None:
    with course.step("integrity"):
        manifest = _whole(backup, course, report)
    if manifest is None:
        return
    source = Source(folder=backup.folder, manifest=manifest)
    origin = _origin(source)
    evidence = _evidence(source)
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
    origin: _Origin,
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
        _smoke(settings, database, course)


def _whole(backup: Backup, course: Course, report: Reporter) -> Manifest | None:
    """Everything that is not hashed while it is loaded, hashed now."""
    seen = Examination()
    manifest = examine_manifest(backup, seen)
    if manifest is not None:
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


def _origin(source: Source) -> _Origin:
    """The server a backup needs: pg_dump's major version, where that is newer than the server's."""
    manifest = source.manifest
    if manifest.requirements is not None and manifest.server_version is not None:
        versions = (manifest.server_version, manifest.tool_versions.get("pg_dump", "0"))
        return _Origin(max(int(v.split(".")[0]) for v in versions), manifest.requirements)
    head = _head(source)
    versions = tuple(
        re.findall(r"^-- Dumped (?:from database|by pg_dump) version (\d+)", head, re.M)
    )
    encoding = re.search(r"^SET client_encoding = '(\w+)';", head, re.M)
    if not versions:
        raise RestoreFailed(f"{dump_file(manifest).path} does not begin as a dump of pg_dump does")
    return _Origin(
        max(map(int, versions)),
        Requirements(
            encoding=encoding.group(1) if encoding else "UTF8",
            locale_provider="libc",
            collate="C",
            ctype="C",
            bootstrap_role="postgres",
        ),
    )


def _head(source: Source) -> str:
    file = dump_file(source.manifest)
    try:
        with open(source.folder / file.path, "rb") as compressed:
            pieces = Decompressor(method_of(file)).feed(compressed.read(BLOCK))
            return next(pieces, b"")[:8192].decode(errors="replace")
    except CorruptStream as error:
        raise RestoreFailed(f"{file.path} {error.message}") from error


def _evidence(source: Source) -> Evidence | None:
    if not any(file.path == EVIDENCE_FILE for file in source.manifest.files):
        return None
    try:
        return read_evidence(source.folder / EVIDENCE_FILE)
    except ValueError as error:
        raise RestoreFailed(f"{EVIDENCE_FILE} cannot be read") from error


def _restore(
    settings: Settings,
    source: Source,
    origin: _Origin,
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
        script = source.folder / GLOBALS_FILE
        if source.manifest.legacy or not script.exists():
            course.notes.append("roles were not recorded: those that the dump names were made")
            text = mentioned_globals(source.folder / dump_file(source.manifest).path)
        else:
            text = script.read_text(encoding="utf-8", errors="surrogateescape")
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
    for line in (source.folder / DATABASE_FILE).read_text(encoding="utf-8").splitlines():
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


def _smoke(settings: Settings, database: Target, course: Course) -> None:
    """Ask the restored database what the platform would ask first; ``false`` is a failure too."""
    with connect(database) as connection:
        queries = list(settings.restore_test.smoke_queries)
        (users,) = connection.execute(_USERS_TABLE).fetchone() or (False,)
        if users and _USERS not in queries:
            queries.insert(0, _USERS)
        connection.execute("SET default_transaction_read_only = on")
        timeout = f"{settings.restore_test.smoke_timeout * 1000:.0f}ms"
        connection.execute(
            "SELECT pg_catalog.set_config('statement_timeout', %s, false)", (timeout,)
        )
        for query in queries:
            try:
                row = connection.execute(query).fetchone()
            except psycopg.Error as error:
                message = f"failed: {str(error).splitlines()[0]}"
                course.findings.append(Finding(object=f"smoke query {query!r}", message=message))
                continue
            if row is None or row[0] is False:
                answer = "no row" if row is None else "false"
                course.findings.append(
                    Finding(object=f"smoke query {query!r}", message=f"answered {answer}")
                )
    course.figures["smoke_queries"] = len(queries)
