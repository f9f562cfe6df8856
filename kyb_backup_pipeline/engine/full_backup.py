"""A full backup: one database, dumped in one pass, with the evidence of what it held.

Plain format: pg_dump → pipe → compression → SHA-256 → file, in bounded memory. Directory format:
pg_dump writes its own compressed files in parallel, which are hashed after it. Beside the dump:
``globals.sql`` (roles and tablespaces), ``database_settings.sql`` (settings and grants of the database
itself, which no dump of it carries), ``evidence.json``. With ``encryption.database`` each of them is
encrypted on its way to the disk; the manifest is not, and holds no secret.

What can go wrong, and what then: any failure leaves nothing but an error (``store``); a lock that is
not granted because a ``TRUNCATE`` queues between our locks and pg_dump's is given up and tried again;
a server that goes silent is noticed after ``backup.stall_timeout``.
Where to look next: ``snapshot`` and ``evidence`` for the proof, ``dump`` for the pass itself.
"""

import contextlib
import logging
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime

import psycopg

from kyb_backup_pipeline import __version__
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.catalog import read_objects
from kyb_backup_pipeline.engine.database import Database, read_database, settings_sql
from kyb_backup_pipeline.engine.dump import (
    DIRECTORY,
    GLOBALS_FILE,
    Dumped,
    dump,
    dumping_globals,
    hash_files,
)
from kyb_backup_pipeline.engine.encryption import described, ending, seal
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    DatabaseUnreachable,
    KybError,
    NotEnoughSpace,
)
from kyb_backup_pipeline.engine.evidence import (
    EVIDENCE_FILE,
    Evidence,
    read_sequences,
    settled,
    take_evidence,
)
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.manifest import (
    FORMAT_VERSION,
    BackupFile,
    Encryption,
    EvidenceSummary,
    Manifest,
    SourceDatabase,
    utc_now,
    write_json,
)
from kyb_backup_pipeline.engine.postgres import (
    FIXED_SETTINGS,
    Programs,
    Target,
    abandon,
    client_programs,
    connect,
)
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.request import Request, already_complete
from kyb_backup_pipeline.engine.settings import BackupSettings, EncryptionSettings, Settings
from kyb_backup_pipeline.engine.snapshot import (
    QueueWatch,
    Snapshot,
    TryAgain,
    blocking_sessions,
    held_snapshot,
)
from kyb_backup_pipeline.engine.staging import Staging
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

DATABASE_FILE = "database_settings.sql"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    target: Target
    programs: Programs
    database: Database
    keys: EncryptionSettings | None
    encryption: Encryption | None


def take_full_backup(
    settings: Settings, request: Request, *, now: datetime, report: Reporter = silent
) -> Backup:
    """Take a full backup and publish it. ``now`` names it when the request does not.

    Raises BackupFailed, DatabaseUnreachable, NotEnoughSpace, Locked, InvalidRequest, NoKeys.
    """
    repository = Repository(settings.repository)
    backup_id = request.backup_id or repository.free_id("backup", now)
    adopted = already_complete(repository, backup_id, request)
    if adopted is not None:
        return adopted
    with repository.writing("full", backup_id, now=now) as staging:
        plan = _preflight(settings, repository)
        _log.info("full backup %s of %s begins", backup_id, plan.target)
        try:
            manifest = _write(settings, plan, request, staging, now, report)
        except psycopg.errors.CharacterNotInRepertoire as error:
            raise BackupFailed(
                f"a name in this database ({plan.database.requirements.encoding}) is no UTF-8: "
                f"{str(error).splitlines()[0]}",
                hint='backup.evidence = "none" takes the backup without evidence',
            ) from error
        staging.publish(manifest)
    _log.info("full backup %s is complete: %d bytes", backup_id, manifest.total_size)
    return repository.find(backup_id)


def _preflight(settings: Settings, repository: Repository) -> _Plan:
    """The checks of the procedures: connection, programs, room; and the keys."""
    keys = settings.encryption.at_home
    encryption = described(keys)
    target = Target.of(settings)
    with connect(target, FIXED_SETTINGS) as connection:
        database = read_database(connection)
    programs = client_programs(settings.postgres, database.server_major)
    if programs.major > database.server_major:
        _log.warning(
            "pg_dump %s is newer than the server (%s): restores need PostgreSQL %d",
            programs.version, database.server_version, programs.major,
        )  # fmt: skip
    newest = next((b.manifest for b in repository.backups() if b.manifest), None)
    needed = max(settings.backup.minimum_free, round(1.2 * newest.total_size) if newest else 0)
    free = free_bytes(repository.root)
    if free < needed:
        raise NotEnoughSpace(
            f"{free / 2**30:.2f} GiB free in {repository.root}, {needed / 2**30:.2f} GiB needed",
            hint="free space there, set BACKUP_DIR elsewhere, or lower backup.minimum_free",
        )
    return _Plan(
        target=target, programs=programs, database=database, keys=keys, encryption=encryption
    )


def _write(
    settings: Settings,
    plan: _Plan,
    request: Request,
    staging: Staging,
    now: datetime,
    report: Reporter,
) -> Manifest:
    dumped, evidence = _dump_with_patience(settings, plan, staging, report)
    files = [
        *dumped.files,
        *hash_files(staging.folder, [staging.folder / (GLOBALS_FILE + ending(plan.keys))], 1),
        _part(plan, staging, DATABASE_FILE, settings_sql(plan.database).encode()),
    ]
    if evidence is not None:
        files.append(_part(plan, staging, EVIDENCE_FILE, write_json(evidence)))
    database = settings.database
    return Manifest(
        backup_id=staging.backup_id,
        timestamp=now.replace(microsecond=0),
        type="full",
        database=SourceDatabase(
            host=database.host, port=database.port, name=database.name, user=database.user
        ),
        backup_file=str(staging.final.absolute() / dumped.name),
        file_size=dumped.size,
        checksum=dumped.checksum,
        format_version=FORMAT_VERSION,
        started_at=now,
        finished_at=utc_now(),
        server_version=plan.database.server_version,
        tool_versions={"pg_dump": plan.programs.version, "kyb_backup_pipeline": __version__},
        dump_format=settings.backup.format,
        compression=dumped.compression,
        encryption=plan.encryption,
        uncompressed_size=dumped.uncompressed_size,
        files=tuple(files),
        requirements=plan.database.requirements,
        evidence=_summary(evidence),
        label=request.label,
        run_id=request.run_id,
    )


def _part(plan: _Plan, staging: Staging, name: str, content: bytes) -> BackupFile:
    """A small file beside the dump."""
    sealed = content if plan.keys is None else seal(plan.keys, content)
    return staging.write(name + ending(plan.keys), sealed)


def _summary(evidence: Evidence | None) -> EvidenceSummary:
    if evidence is None:
        return EvidenceSummary(mode="none")
    return EvidenceSummary(
        mode="content",
        tables=len(evidence.tables),
        rows=evidence.rows,
        objects=evidence.object_count,
        seconds=evidence.seconds,
    )


def _dump_with_patience(
    settings: Settings, plan: _Plan, staging: Staging, report: Reporter
) -> tuple[Dumped, Evidence | None]:
    """Dump; where locks are not granted, or objects come and go, try again a few times.

    The parallel workers of the directory format refuse to queue at all, at any time of the dump:
    after such a refusal the next attempts do without them.
    """
    attempts = settings.backup.lock_attempts
    how = settings.backup
    waiting: list[str] = []
    reason = ""
    for attempt in range(1, attempts + 1):
        try:
            if how.evidence == "none":
                return _dump(how, plan, staging, None, report, watch=lambda: None), None
            with connect(plan.target, FIXED_SETTINGS) as connection:
                before = read_objects(connection)
            with held_snapshot(plan.target, lock_timeout=how.lock_timeout) as snapshot:
                dumped, evidence = _dump_with_evidence(how, plan, staging, snapshot, report)
            with connect(plan.target, FIXED_SETTINGS) as connection:
                return dumped, settled(evidence, before, connection)
        except TryAgain as error:
            reason = error.message
            waiting = blocking_sessions(plan.target) or waiting
            _log.warning("attempt %d of %d: %s; %s", attempt, attempts, reason, waiting)
            shutil.rmtree(staging.folder / DIRECTORY, ignore_errors=True)
            if how.format == "directory" and "could not obtain lock" in reason:
                how = how.model_copy(update={"jobs": 1})
            if attempt < attempts:
                time.sleep(min(2.0**attempt, 20) * random.uniform(0.05, 0.25))
    raise BackupFailed(
        f"given up after {attempts} attempts: {reason}"
        + (": " + "; ".join(waiting) if waiting else ""),
        hint="end that session, or take the backup in a quieter moment",
    )


def _dump(
    how: BackupSettings,
    plan: _Plan,
    staging: Staging,
    snapshot: str | None,
    report: Reporter,
    watch: Callable[[], None],
) -> Dumped:
    options = ("--no-unlogged-table-data",) if plan.database.standby else ()
    with dumping_globals(
        staging.folder,
        plan.programs,
        plan.target,
        encryption=plan.keys,
        passwords=plan.database.reads_passwords,
        deadline=how.stall_timeout,
    ):
        return dump(
            staging.folder,
            plan.programs,
            replace(plan.target, application=_dump_sessions(staging)),
            how,
            encryption=plan.keys,
            snapshot=snapshot,
            options=options,
            watch=watch,
            report=report,
        )


def _dump_sessions(staging: Staging) -> str:
    """What pg_dump's sessions are called, at most 63 bytes."""
    return f"pg_dump {staging.backup_id}"[-63:]


def _dump_with_evidence(
    how: BackupSettings, plan: _Plan, staging: Staging, snapshot: Snapshot, report: Reporter
) -> tuple[Dumped, Evidence]:
    """Dump, and digest the tables beside it; whichever fails ends the other."""
    try:
        before = read_sequences(snapshot.connection)
    except psycopg.Error as error:
        raise _evidence_error(error) from error
    holder = snapshot.connection.info.backend_pid
    with (
        ThreadPoolExecutor(1, thread_name_prefix="evidence") as pool,
        contextlib.closing(QueueWatch(plan.target, holder, _dump_sessions(staging))) as queue,
    ):
        pending = pool.submit(
            take_evidence,
            snapshot.connection,
            snapshot.tables,
            before,
            standby=plan.database.standby,
            report=report,
        )

        def watch() -> None:
            if pending.done():
                pending.result()
            queue.check()

        try:
            dumped = _dump(how, plan, staging, snapshot.name, report, watch)
            evidence = _await(pending, plan.target, how.stall_timeout)
        except psycopg.Error as error:
            raise _evidence_error(error) from error
        finally:
            if not pending.done():
                abandon(snapshot.connection)
    return dumped, evidence


def _evidence_error(error: psycopg.Error) -> KybError:
    gone = (
        psycopg.errors.UndefinedTable,
        psycopg.errors.UndefinedObject,
        psycopg.errors.UndefinedFunction,
        psycopg.errors.InternalError_,
    )
    if isinstance(error, gone):
        return TryAgain(str(error).splitlines()[0])
    return BackupFailed(
        f"the evidence could not be taken: {str(error).strip()}",
        hint='backup.evidence = "none" takes the backup without it',
    )


def _await(pending: "Future[Evidence]", target: Target, patience: float) -> Evidence:
    """Wait for the digests; every ``patience`` seconds ask whether the server still answers."""
    while True:
        wait([pending], timeout=patience)
        if pending.done():
            return pending.result()
        try:
            connect(target).close()
        except DatabaseUnreachable as error:
            raise BackupFailed(f"the server stopped answering: {error.message}") from error
