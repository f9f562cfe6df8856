"""Can backups and restore tests work here? Looked at before the night, not at 2 a.m.

Each look gives lines of ``ok``, ``warning`` or ``error`` with a hint; one that fails does not keep
the next from being made. Nothing is changed, and nothing is written.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.alert_check import alert_channels
from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.checkup import Level, Line, archives
from kyb_backup_pipeline.engine.database import Database, read_database
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.offsite_check import offsite
from kyb_backup_pipeline.engine.postgres import (
    FIXED_SETTINGS,
    Programs,
    Target,
    client_programs,
    connect,
    replication_programs,
    server_account,
    server_programs,
)
from kyb_backup_pipeline.engine.recovery_plan import coverages
from kyb_backup_pipeline.engine.replication import Server, check_bound, read_server, read_slot
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.snapshot import list_tables
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import ranges
from kyb_backup_pipeline.engine.wal_intake import NEW_BASE, archive_lines, archiver_says


def examine(settings: Settings) -> Iterator[Line]:
    """Look at everything that backups, their restore tests and alerts need."""
    yield from _repository(settings)
    yield from _space(settings.repository, settings.backup.minimum_free)
    yield from archives(settings)
    yield from alert_channels(settings.alerts)
    yield from offsite(settings, utc_now())
    database = None
    try:
        with connect(Target.of(settings), FIXED_SETTINGS) as connection:
            database = read_database(connection)
            yield Line("ok", "database", f"{Target.of(settings)}, {database.server_version}")
            yield from _rights(connection, database)
    except (KybError, psycopg.Error) as error:
        yield _error("database", error)
    if settings.database.password is None and not settings.database.host.startswith("/"):
        yield Line(
            "warning",
            "password",
            "none is set",
            "set DB_PASSWORD or database.password_file, unless a passfile or pg_hba.conf does it",
        )
    if database is not None:
        yield from _programs(settings, database)
        based = bool(Repository(settings.repository).backups(("base",)))
        for line in _wal(settings, database):
            # without a base backup it may be that nobody wants any
            yield replace(line, level="warning") if line.level == "error" and not based else line


def _wal(settings: Settings, database: Database) -> Iterator[Line]:
    """Base backups and increments: the server's settings, the slot or the inbox, gaps in the store."""
    target = Target.of(settings)
    try:
        server = read_server(target)
        yield Line("ok", "wal", f"wal_level {server.wal_level}, timeline {server.timeline}")
        programs = replication_programs(settings.postgres, database.server_major)
        yield Line("ok", "wal", f"pg_basebackup {programs.version} in {programs.bin_dir}")
        with connect(target) as connection:
            (may,) = connection.execute(
                "SELECT has_function_privilege('pg_switch_wal()', 'EXECUTE')"
            ).fetchone() or (False,)
        if not may:
            yield Line("error", "wal", "this role may not close a WAL segment",
                       f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {target.user}")  # fmt: skip
        yield from (
            _slot(settings, target) if settings.wal.source == "slot" else _inbox(settings, server)
        )
    except KybError as error:
        yield _error("wal", error)
    if settings.encryption.at_home:
        yield from _passing_plain(settings, target)
    for n, coverage in enumerate(coverages(Repository(settings.repository))):
        if coverage.missing:
            yield Line("warning" if n else "error", "wal",
                       f"behind {coverage.base.backup_id} {ranges(coverage.missing)} missing: it "
                       f"covers {coverage} only", NEW_BASE)  # fmt: skip


def _passing_plain(settings: Settings, target: Target) -> Iterator[Line]:
    """Where WAL and base backups lie unencrypted on their way."""
    inbox = settings.wal.inbox
    if (
        settings.wal.source == "archive"
        and inbox
        and inbox.exists()
        and inbox.stat().st_mode & 0o007
    ):
        yield Line("warning", "encryption", f"{inbox} is open to others: WAL lies there until it is taken in",
                   f"chmod o= {inbox}")  # fmt: skip
    with contextlib.suppress(KybError, psycopg.Error):
        if tablespaces := read_server(target).tablespaces:
            yield Line("warning", "encryption", f"{len(tablespaces)} tablespaces lie elsewhere: base backups pass "
                       "through unencrypted files in the repository, which are removed at once",
                       "docs/decisions/015-encrypting-database-backups.md")  # fmt: skip


def _slot(settings: Settings, target: Target) -> Iterator[Line]:
    name = settings.wal.slot
    slot = read_slot(target, name)
    if slot is None:
        try:
            check_bound(target, settings.wal)
            yield Line("ok", "slot", f"{name} is made by the first base backup")
        except KybError as error:
            yield _error("slot", error)
    elif slot.status == "lost" or slot.restart is None:
        yield Line("error", "slot", f"{name} has lost WAL that was not fetched (status {slot.status})",
                   NEW_BASE)  # fmt: skip
    else:
        level: Level = "ok" if slot.status == "reserved" else "warning"
        hint = (
            None if level == "ok" else "kyb-backup backup incremental, before the server removes it"
        )
        lag = f"{slot.lag / 1e6:.1f} MB"
        yield Line(level, "slot", f"{name} keeps {lag} on the server ({slot.status})", hint)


def _inbox(settings: Settings, server: Server) -> Iterator[Line]:
    inbox = settings.wal.inbox
    if server.archive_mode == "off":
        yield Line("error", "inbox", "the server does not archive its WAL", archive_lines(inbox))
    if inbox is None or not os.access(inbox, os.R_OK | os.W_OK | os.X_OK):
        yield Line("error", "inbox", f"{inbox or 'wal.inbox'} cannot be read and written by this user",
                   "set wal.inbox to the folder that kyb-wal-push fills; docs/roles.md")  # fmt: skip
    else:
        yield Line("ok", "inbox", f"{inbox}, {len(os.listdir(inbox))} files wait in it")
    trouble = archiver_says(Target.of(settings))
    if trouble:
        yield Line("error", "inbox", trouble.removeprefix("; "),
                   "the server's log says what its archive_command answered")  # fmt: skip


def _error(subject: str, error: Exception) -> Line:
    if isinstance(error, KybError):
        return Line("error", subject, error.message, error.hint)
    return Line("error", subject, str(error).strip())


def _repository(settings: Settings) -> Iterator[Line]:
    root = settings.repository
    if root.name == "database":
        yield Line(
            "warning",
            "repository",
            f"{root} ends in /database: here BACKUP_DIR is the root, backups go to {root}/database",
            f"set BACKUP_DIR={root.parent}",
        )
    existing = root
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Line("error", "repository", f"{existing} cannot be written by this user")
    elif root.exists() and root.stat().st_mode & 0o077:
        yield Line("warning", "repository", f"{root} is open to others", f"chmod 700 {root}")
    else:
        yield Line("ok", "repository", str(root))
    repository = Repository(root)
    for leftover in repository.leftovers():
        what = "was left by a killed run" if leftover.partial else "has no manifest"
        yield Line("warning", "repository", f"{leftover.folder} {what}: it is not a backup")
    for backup in repository.backups(tuple(FOLDERS)):
        if backup.problem:
            yield Line("error", "repository", backup.problem)


def _space(root: Path, minimum: int) -> Iterator[Line]:
    free = free_bytes(root)
    text = f"{free / 2**30:.1f} GiB free in {root}, {minimum / 2**30:.1f} GiB wanted"
    yield Line("ok" if free >= minimum else "error", "space", text)


def _rights(connection: psycopg.Connection, database: Database) -> Iterator[Line]:
    try:
        tables = list_tables(connection)
        yield Line("ok", "rights", f"all {len(tables)} tables can be read in full")
    except KybError as error:
        yield _error("rights", error)
    (superuser,) = connection.execute("SHOW is_superuser").fetchone() or ("off",)
    if superuser == "off":
        (subscriptions,) = connection.execute(
            "SELECT count(*) FROM pg_stat_subscription"
        ).fetchone() or (0,)
        if subscriptions:
            yield Line(
                "warning",
                "rights",
                f"pg_dump leaves out {subscriptions} subscriptions: this user is no superuser",
                "note them elsewhere, or back up as a superuser",
            )
    if not database.reads_passwords:
        yield Line(
            "warning",
            "rights",
            "this user may not read role passwords: globals.sql will have none",
            "after a restore they must be set anew; docs/roles.md",
        )


def _programs(settings: Settings, database: Database) -> Iterator[Line]:
    major = database.server_major
    needed = major
    try:
        client = client_programs(settings.postgres, major)
        needed = max(major, client.major)
        level: Level = "ok" if client.major == major else "warning"
        hint = None if level == "ok" else f"install postgresql-client-{major}"
        yield Line(level, "pg_dump", f"{client.version} in {client.bin_dir}", hint)
    except KybError as error:
        yield _error("pg_dump", error)
    try:
        server = server_programs(settings.postgres, needed)
        account = server_account(settings.restore_test.run_as)
        who = f" as {account.name}" if account else ""
        yield Line("ok", "restore test", f"PostgreSQL {server.version} in {server.bin_dir}{who}")
    except KybError as error:
        yield _error("restore test", error)
        return
    yield from _extensions(server, database)
    place = settings.restore_test.directory
    wanted = round(1.3 * database.requirements.database_bytes)
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield Line("error", "restore test", f"{place} cannot be written",
                   "set restore_test.directory")  # fmt: skip
    else:
        yield from _space(place, wanted)


def _extensions(server: Programs, database: Database) -> Iterator[Line]:
    """Extensions that the throwaway server does not have, by its control files."""
    try:
        share = process.run([server.path("pg_config"), "--sharedir"], deadline=10).stdout.strip()
    except process.ProcessFailed:
        return
    folder = Path(share) / "extension"
    missing = [
        name
        for name in database.requirements.extensions
        if not (folder / f"{name}.control").exists()
    ]
    if missing:
        yield Line(
            "warning",
            "restore test",
            f"cannot be made: {server.bin_dir} lacks the extensions {', '.join(missing)}",
            f"install postgresql-{server.major} and the packages of these extensions",
        )
