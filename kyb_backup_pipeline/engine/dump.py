"""The dump itself: pg_dump's output, compressed and hashed on its way to the disk.

Plain format is one pass in bounded memory, with pg_dump, the compression, the encryption where it is wanted,
and the hash side by side.
Directory format is pg_dump's own parallel work, with the best compression that this pg_dump can do
(zstd, else gzip); the hashes are a second pass over the files.
"""

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import SUFFIX
from kyb_backup_pipeline.engine.encryption import ending, seal
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.files import no_space_said, write_durably
from kyb_backup_pipeline.engine.manifest import BackupFile
from kyb_backup_pipeline.engine.postgres import Programs, Target
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.settings import BackupSettings, EncryptionSettings
from kyb_backup_pipeline.engine.sink import POLL, silent_child
from kyb_backup_pipeline.engine.snapshot import LockNotGranted, TryAgain
from kyb_backup_pipeline.engine.stream import EDGE, squeeze

GLOBALS_FILE = "globals.sql"
PLAIN_FILE = "database.sql."
"""The beginning of its name: ``database.sql.zst``, ``database.sql.gz``, and ``.age`` or ``.gpg`` behind."""
DIRECTORY = "database.dir"

_COMPLETE = re.compile(
    rb"\n-- PostgreSQL database dump complete\n--\n+(?:\\unrestrict (\w+)\n+)?\Z"
)
_GLOBALS_COMPLETE = b"-- PostgreSQL database cluster dump complete"
_RESTRICT = re.compile(rb"^\\restrict (\w+)$", re.MULTILINE)
_GONE = re.compile(r"could not open relation with OID|cache lookup failed|was concurrently")
_LOCK_ERRORS = re.compile(r"canceling statement due to|could not obtain lock on relation")


@dataclass(frozen=True, kw_only=True)
class Dumped:
    """What a dump left in its folder. Sizes in bytes; ``checksum`` is the procedures' key."""

    name: str
    files: tuple[BackupFile, ...]
    checksum: str
    compression: str
    uncompressed_size: int | None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def is_complete(tail: bytes, head: bytes) -> bool:
    """Whether a plain dump that begins with ``head`` and ends with ``tail`` came to its end.

    Dumps since August 2025 begin with ``\\restrict TOKEN`` and end with ``\\unrestrict`` and the same
    token, after the line that older ones end with.
    """
    end = _COMPLETE.search(tail)
    start = _RESTRICT.search(head)
    return end is not None and end.group(1) == (start.group(1) if start else None)


def dump(
    folder: Path,
    programs: Programs,
    target: Target,
    settings: BackupSettings,
    *,
    encryption: EncryptionSettings | None = None,
    snapshot: str | None,
    options: tuple[str, ...],
    watch: Callable[[], None],
    report: Reporter,
) -> Dumped:
    """Dump ``target`` into ``folder``; ``watch`` is called about once a second and may raise.

    Raises LockNotGranted, BackupFailed and, where the disk is full, NotEnoughSpace.
    """
    argv: list[str | Path] = [
        programs.path("pg_dump"),
        "--no-password",
        f"--lock-wait-timeout={settings.lock_timeout * 1000:.0f}",
        *([f"--snapshot={snapshot}"] if snapshot else []),
        *options,
    ]
    try:
        if settings.format == "directory":
            return _directory(folder, argv, target, settings, watch, report)
        return _plain(folder, argv, target, settings, encryption, watch, report)
    except process.ProcessFailed as error:
        raise _dump_error(error) from error


def _dump_error(error: process.ProcessFailed) -> Exception:
    if _LOCK_ERRORS.search(error.stderr):
        return LockNotGranted(error.stderr.splitlines()[0] if error.stderr else error.message)
    if _GONE.search(error.stderr):
        return TryAgain(error.stderr.splitlines()[0])
    if full := no_space_said(Path("the dump"), error.stderr):
        return full
    hint = None
    if "permission denied" in error.stderr:
        hint = "docs/roles.md has the least rights of the backup's user"
    elif "connection to server" in error.stderr or "server closed" in error.stderr:
        hint = "the server went away: its log says why"
    return BackupFailed(error.message, hint=hint)


def _plain(
    folder: Path,
    argv: list[str | Path],
    target: Target,
    settings: BackupSettings,
    encryption: EncryptionSettings | None,
    watch: Callable[[], None],
    report: Reporter,
) -> Dumped:
    name = PLAIN_FILE + SUFFIX[settings.compression] + ending(encryption)
    with process.start(
        [*argv, "--format=plain"], env=target.environment(), stdout=process.PIPE
    ) as child:
        written = squeeze(
            child,
            folder / name,
            encryption=encryption,
            method=settings.compression,
            level=settings.level,
            threads=settings.jobs,
            patience=settings.stall_timeout,
            step="dump",
            watch=watch,
            report=report,
        )
    if not is_complete(written.tail, written.head):
        raise BackupFailed(
            "pg_dump ended with 0, but its output has no proper end",
            hint="what ran as pg_dump? kyb-backup check shows the programs found",
        )
    return Dumped(
        name=name,
        files=(written.file,),
        checksum=written.file.sha256,
        compression=settings.compression,
        uncompressed_size=written.total,
    )


def _directory(
    folder: Path,
    argv: list[str | Path],
    target: Target,
    settings: BackupSettings,
    watch: Callable[[], None],
    report: Reporter,
) -> Dumped:
    program = Path(argv[0])
    method = "zstd" if settings.compression == "zstd" and writes_zstd(program) else "gzip"
    level = settings.level or 1
    place = folder / DIRECTORY
    with process.start(
        [
            *argv,
            "--format=directory",
            f"--jobs={settings.jobs}",
            f"--compress=zstd:{level}" if method == "zstd" else f"--compress={min(level, 9)}",
            f"--file={place}",
        ],
        env=target.environment(),
    ) as child:
        _await_growth(child, place, settings.stall_timeout, watch, report)
        child.finish(settings.stall_timeout)
    files = hash_files(folder, sorted(place.iterdir()), settings.jobs)
    return Dumped(
        name=DIRECTORY,
        files=files,
        checksum=checksum_of_files(files),
        compression=method,
        uncompressed_size=None,
    )


def _await_growth(
    child: process.Child,
    place: Path,
    patience: float,
    watch: Callable[[], None],
    report: Reporter,
) -> None:
    size, grown = -1, time.monotonic()
    while not child.ended_within(POLL):
        watch()
        now = sum(entry.stat().st_size for entry in _scan(place))
        if now != size:
            size, grown = now, time.monotonic()
            report(Progress(step="dump", done=size))
        elif time.monotonic() - grown > patience:
            raise silent_child(child, patience)


def _scan(place: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def hash_files(folder: Path, paths: list[Path], jobs: int) -> tuple[BackupFile, ...]:
    """Hash and flush files, ``jobs`` at a time; their names are kept relative to ``folder``."""
    with ThreadPoolExecutor(jobs) as pool:
        return tuple(pool.map(functools.partial(_describe, folder), paths))


def _describe(folder: Path, path: Path) -> BackupFile:
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        size = file.tell()
    return BackupFile(path=path.relative_to(folder).as_posix(), size=size, sha256=digest)


def checksum_of_files(files: tuple[BackupFile, ...]) -> str:
    """One checksum over many files: SHA-256 of their ``sha256sum`` lines in the order of names."""
    lines = (f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda f: f.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.cache
def writes_zstd(pg_dump: Path) -> bool:
    """Whether this pg_dump can write zstd: it says so before it connects anywhere."""
    try:
        process.run(
            [pg_dump, "--format=directory", "--compress=zstd", "--file=/dev/null/none",
             "--host=/dev/null/none"],
            deadline=10,
        )  # fmt: skip
    except process.ProcessFailed as error:
        refused = ("not supported by this installation", "does not support", "build does not",
                   "invalid", "unrecognized", "must be in range")  # fmt: skip
        return not any(word in error.stderr for word in refused)
    return False


@contextlib.contextmanager
def dumping_globals(
    folder: Path,
    programs: Programs,
    target: Target,
    *,
    encryption: EncryptionSettings | None,
    passwords: bool,
    deadline: float,
) -> Iterator[None]:
    """Write roles and tablespaces into ``globals.sql`` while the block runs; encrypted, ``….age``.

    Role passwords (their hashes) are left out where this user may not read them.
    """
    argv: list[str | Path] = [
        programs.path("pg_dumpall"),
        "--globals-only",
        "--encoding=UTF8",
        "--no-password",
        *([] if passwords else ["--no-role-passwords"]),
        f"--database={target.dbname}"
        if not re.search("=|://", target.dbname)
        else "--database=postgres",
    ]
    with open(os.memfd_create("globals"), "w+b", buffering=0) as out:
        with process.start(argv, env=target.environment(), stdout=out) as child:
            yield
            try:
                child.finish(deadline)
            except process.ProcessFailed as error:
                raise _dump_error(error) from error
        out.seek(0)
        script = out.read()
    if _GLOBALS_COMPLETE not in script[-EDGE:]:
        raise BackupFailed("pg_dumpall ended with 0, but its output has no proper end")
    content = script if encryption is None else seal(encryption, script)
    write_durably(folder / (GLOBALS_FILE + ending(encryption)), content)
