"""A base backup: the files of a whole cluster, which WAL can be replayed on.

``pg_basebackup`` writes one tar stream with the WAL that makes it consistent (``-X fetch``) and its
own manifest of SHA-256 checksums: → zstd → age or gpg, where ``encryption.database`` asks for it → SHA-256
→ file, in one pass. A server with tablespaces outside its data folder does not give one stream; it goes
through a staging folder, a file for each, which lie there as they are until they are compressed.

With ``wal.source = "slot"`` the slot is made before the copy begins, so that no segment after its
beginning can be missed. Where to look next: ``base_archive`` for the check of what was written,
``incremental`` for the chain that begins here.
"""

import logging
import re
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline import __version__
from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.compression import BLOCK, compressor
from kyb_backup_pipeline.engine.dump import checksum_of_files
from kyb_backup_pipeline.engine.encryption import described, ending, seal
from kyb_backup_pipeline.engine.errors import BackupFailed, NotEnoughSpace
from kyb_backup_pipeline.engine.files import free_bytes, no_space_said
from kyb_backup_pipeline.engine.manifest import (
    FORMAT_VERSION,
    BackupFile,
    Manifest,
    SourceDatabase,
    Wal,
    utc_now,
)
from kyb_backup_pipeline.engine.postgres import Programs, Target, connect, replication_programs
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent
from kyb_backup_pipeline.engine.replication import Server, ensure_slot, read_server, server_clock
from kyb_backup_pipeline.engine.request import Request, already_complete
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.sink import POLL, silent_child, writing
from kyb_backup_pipeline.engine.staging import Staging
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.stream import squeeze

_log = logging.getLogger(__name__)

BASE_FILE = "base.tar.zst"
MANIFEST_FILE = "backup_manifest"
"""PostgreSQL's own, beside the archives where the server has tablespaces elsewhere; else in the stream.
Encrypted, both names end with ``.age`` or ``.gpg``."""

_RAW = "raw"
_EDGE = 64 * 1024
_START = re.compile(r"write-ahead log start point: (\S+) on timeline (\d+)")
_END = re.compile(r"write-ahead log end point: (\S+)")
_UNREACHABLE = re.compile("connection to server|could not connect|server closed the connection")


def take_base_backup(
    settings: Settings, request: Request, *, now: datetime, report: Reporter = silent
) -> Backup:
    """Take a base backup and publish it. ``now`` names it when the request does not.

    Raises BackupFailed, DatabaseUnreachable, NotEnoughSpace, Locked, InvalidRequest, Refused, NoKeys.
    """
    repository = Repository(settings.repository)
    backup_id = request.backup_id or repository.free_id("base", now)
    adopted = already_complete(repository, backup_id, request)
    if adopted is not None:
        return adopted
    with repository.writing("base", backup_id, now=now) as staging:
        described(settings.encryption.at_home)  # without keys nothing is begun
        target = Target.of(settings)
        server = read_server(target)
        programs = replication_programs(settings.postgres, server.major)
        size = _cluster_bytes(target)
        _check_room(settings, repository, server, size)
        if settings.wal.source == "slot" and not server.standby:
            ensure_slot(target, settings.wal)
        _log.info("base backup %s of %s begins", backup_id, target)
        manifest = _write(settings, request, staging, server, programs, size, now, report)
        staging.publish(manifest)
    _log.info("base backup %s is complete: %d bytes", backup_id, manifest.total_size)
    return repository.find(backup_id)


def _cluster_bytes(target: Target) -> int:
    """The size of all databases, as far as this role may know it."""
    with connect(target) as connection:
        (size,) = connection.execute(
            """SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database
               WHERE has_database_privilege(oid, 'CONNECT')"""
        ).fetchone() or (0,)
    return int(size)


def _check_room(settings: Settings, repository: Repository, server: Server, size: int) -> None:
    # the stream is compressed; with tablespaces the raw files lie there for a while
    needed = max(settings.backup.minimum_free, size * (2 if server.tablespaces else 1) // 2)
    free = free_bytes(repository.root)
    if free < needed:
        raise NotEnoughSpace(
            f"{free / 2**30:.2f} GiB free in {repository.root}, {needed / 2**30:.2f} GiB needed",
            hint="free space there, set BACKUP_DIR elsewhere, or lower backup.minimum_free",
        )


def _write(
    settings: Settings,
    request: Request,
    staging: Staging,
    server: Server,
    programs: Programs,
    size: int,
    now: datetime,
    report: Reporter,
) -> Manifest:
    how, target = settings.base_backup, Target.of(settings)
    argv: list[str | Path] = [
        programs.path("pg_basebackup"),
        "--format=tar",
        "--wal-method=fetch",
        "--manifest-checksums=SHA256",
        f"--checkpoint={how.checkpoint}",
        f"--label={staging.backup_id}",
        "--no-password",
        "--verbose",
        *([f"--max-rate={how.rate_limit // 1024}k"] if how.rate_limit else []),
    ]
    try:
        if server.tablespaces:
            files, total, messages = _staged(argv, target, settings, staging, size, report)
        else:
            files, total, messages = _streamed(argv, target, settings, staging, size, report)
    except process.ProcessFailed as error:
        raise _error(error) from error
    start, end = _START.search(messages), _END.search(messages)
    if start is None or end is None:
        raise BackupFailed(f"pg_basebackup did not say where its WAL begins and ends: {messages}")
    database = settings.database
    return Manifest(
        backup_id=staging.backup_id,
        timestamp=now.replace(microsecond=0),
        type="base",
        database=SourceDatabase(
            host=database.host, port=database.port, name=database.name, user=database.user
        ),
        backup_file=str(staging.final.absolute() / files[0].path),
        file_size=sum(file.size for file in files),
        checksum=checksum_of_files(files),
        format_version=FORMAT_VERSION,
        started_at=now,
        finished_at=utc_now(),
        server_version=_version(server),
        tool_versions={"pg_basebackup": programs.version, "kyb_backup_pipeline": __version__},
        compression="zstd",
        encryption=described(settings.encryption.at_home),
        uncompressed_size=total,
        files=files,
        wal=Wal(
            system_identifier=server.system_identifier,
            timeline=int(start[2]),
            start_lsn=start[1],
            end_lsn=end[1],
            end_at=server_clock(target),
            segment_bytes=server.segment_bytes,
            tablespaces=server.tablespaces,
            settings=server.settings,
            superusers=server.superusers,
            source=settings.wal.source,
        ),
        label=request.label,
        run_id=request.run_id,
    )


def _version(server: Server) -> str:
    return f"{server.major}.{server.version % 10000}"


def _streamed(
    argv: list[str | Path],
    target: Target,
    settings: Settings,
    staging: Staging,
    size: int,
    report: Reporter,
) -> tuple[tuple[BackupFile, ...], int, str]:
    how, encryption = settings.base_backup, settings.encryption.at_home
    with process.start(
        [*argv, "--pgdata=-"], env=target.environment(), stdout=process.PIPE
    ) as child:
        written = squeeze(
            child,
            staging.folder / (BASE_FILE + ending(encryption)),
            encryption=encryption,
            method="zstd",
            level=how.level,
            threads=how.jobs,
            patience=how.stall_timeout,
            step="base backup",
            watch=lambda: None,
            report=report,
            expected=size or None,
            edge=_EDGE,
        )
        messages = child.stderr_tail()
    if b'"Manifest-Checksum"' not in written.tail:
        raise BackupFailed(
            "pg_basebackup ended with 0, but its stream does not end with a manifest",
            hint="what ran as pg_basebackup? kyb-backup check shows the programs found",
        )
    return (written.file,), written.total, messages


def _staged(
    argv: list[str | Path],
    target: Target,
    settings: Settings,
    staging: Staging,
    size: int,
    report: Reporter,
) -> tuple[tuple[BackupFile, ...], int, str]:
    """Through files: one archive for the cluster and one for each tablespace elsewhere."""
    how, raw = settings.base_backup, staging.folder / _RAW
    with process.start([*argv, f"--pgdata={raw}"], env=target.environment()) as child:
        seen, quiet = -1, 0.0
        while not child.ended_within(POLL):
            now = sum(path.stat().st_size for path in raw.glob("*"))
            quiet = 0.0 if now != seen else quiet + POLL
            seen = now
            if quiet > how.stall_timeout:
                raise silent_child(child, how.stall_timeout)
            report(Progress(step="base backup", done=now, total=size or None))
        messages = child.finish(how.stall_timeout)
    files, total = [], 0
    for archive in sorted(raw.glob("*.tar"), key=lambda path: (path.name != "base.tar", path.name)):
        total += archive.stat().st_size
        files.append(_compress(archive, staging.folder / f"{archive.name}.zst", settings))
        archive.unlink()
    listed, encryption = (raw / MANIFEST_FILE).read_bytes(), settings.encryption.at_home
    sealed = listed if encryption is None else seal(encryption, listed)
    files.append(staging.write(MANIFEST_FILE + ending(encryption), sealed))
    (raw / MANIFEST_FILE).unlink()
    raw.rmdir()
    return tuple(files), total, messages


def _compress(source: Path, destination: Path, settings: Settings) -> BackupFile:
    work = compressor("zstd", level=settings.base_backup.level, threads=settings.base_backup.jobs)
    encryption = settings.encryption.at_home
    with (
        open(source, "rb", buffering=0) as inward,
        writing(destination.with_name(destination.name + ending(encryption)), encryption) as sink,
    ):
        while block := inward.read(BLOCK):
            sink.write(work.compress(block))
        sink.write(work.flush())
        return sink.close()


def _error(error: process.ProcessFailed) -> Exception:
    if full := no_space_said(Path("the base backup"), error.stderr):
        return full
    hint = None
    if _UNREACHABLE.search(error.stderr):
        hint = "the server went away: its log says why"
    elif "already been removed" in error.stderr:
        hint = (
            'the server removed WAL during the copy: set wal.source = "slot", or raise '
            "wal_keep_size in postgresql.conf"
        )
    return BackupFailed(error.message, hint=hint)
