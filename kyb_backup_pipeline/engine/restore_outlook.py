"""What a restore of the database would do, without doing it; and what killed restores have left.

Everything that can be known before the first byte is loaded is looked at here: versions, rights, roles,
room. Where to look next: ``database_restore``.
"""

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.database_mark import oid_of_restoring
from kyb_backup_pipeline.engine.database_swap import database_oid
from kyb_backup_pipeline.engine.encryption import check_own
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    InvalidRequest,
    KybError,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.offsite_backup import OffsiteBackup
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.recovery_journal import Journal, Journals, maintenance
from kyb_backup_pipeline.engine.restore import check_requirements, missing_here
from kyb_backup_pipeline.engine.restore_source import (
    Origin,
    Source,
    check_key,
    globals_of,
    origin_of,
    source_of,
)
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.sql_script import statements
from kyb_backup_pipeline.engine.subscriptions import forget_subscriptions

_ROOM_FACTOR = 1.2


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the caller asks for. ``into``: beside the live database, under that name.

    ``tables`` (with ``into`` only): keep these tables and drop the others. Names as PostgreSQL prints
    them, with their schema where that is not ``public``.
    """

    into: str | None = None
    tables: tuple[str, ...] = ()
    safety_backup: bool = True
    service: bool = True
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a restore would do. Sizes in bytes; ``rows_now`` is the server's estimate.

    ``source`` says for a copy where it lies and what is done with its bytes; None for a backup at home.
    """

    backup_id: str
    target: str
    taken_at: datetime
    age_seconds: float
    rows_then: int | None
    rows_now: int | None
    bytes_then: int | None
    bytes_now: int | None
    server_version: str
    new_roles: tuple[str, ...]
    roles_without_password: tuple[str, ...]
    room: int | None
    needed: int
    leftovers: tuple[str, ...]
    into: str | None
    notes: tuple[str, ...]
    source: str | None = None


def restoring_target(settings: Settings) -> Target:
    """The database that is restored, as the role that restores.

    Its sessions write, also on a server or in a database that is set to be read only.
    """
    target, how = Target.of(settings), settings.recovery
    options = {**target.options, "default_transaction_read_only": "off"}
    target = replace(target, options=options)
    if how.user is None:
        return target
    password = how.password.get_secret_value() if how.password else None
    return replace(target, user=how.user, password=password)


def check_wish(settings: Settings, backup: Backup, wish: Wish) -> None:
    """Raises InvalidRequest for what cannot be meant."""
    if backup.kind != "full":
        raise InvalidRequest(
            f"{backup.backup_id} is a {backup.kind.replace('_', ' ')} backup",
            hint="kyb-backup list --kind full; a base backup is for restore point-in-time",
        )
    if wish.tables and wish.into is None:
        raise InvalidRequest("single tables come back into a database beside the live one",
                             hint="--into NAME, then copy from there what you need")  # fmt: skip
    if wish.into is not None:
        if wish.into == settings.database.name:
            raise InvalidRequest(f"--into {wish.into} is the live database itself",
                                 hint="without --into it is replaced, once the new one is proved")  # fmt: skip
        if not wish.into or len(wish.into.encode()) > 63 or "\0" in wish.into:
            raise InvalidRequest(f"{wish.into!r} is no name of a database")


def check_openable(settings: Settings, backup: Backup, wish: Wish) -> None:
    """Is the key here: for the backup, and for the safety backup of what is there now?

    Raises CouldNotVerify.
    """
    check_key(source_of(backup, settings.encryption))
    if wish.into is None and wish.safety_backup and settings.encryption.at_home:
        try:
            check_own(settings.encryption)
        except CouldNotVerify as error:
            raise CouldNotVerify(
                f"the backup of what is there now could not be verified here: {error.message}",
                hint=f"{error.hint}; or --without-safety-backup",
            ) from error


def look_ahead(settings: Settings, backup: Backup, wish: Wish, *, now: datetime) -> Outlook:
    """What a restore would do, without doing it.

    Raises Refused and CouldNotVerify for what it cannot do here, DatabaseUnreachable, RestoreFailed.
    """
    check_wish(settings, backup, wish)
    check_openable(settings, backup, wish)
    manifest = backup.require_manifest()
    source = source_of(backup, settings.encryption)
    origin = origin_of(source)
    target = restoring_target(settings)
    server = maintenance(target)
    notes: list[str] = []
    try:
        with connect(server) as connection:
            _check_writable(connection, target)
            version = connection.execute("SHOW server_version").fetchone()
            major = connection.info.server_version // 10000
            _check_version(major, origin)
            _check_rights(connection, target, wish)
            if wish.into is not None and database_oid(server, wish.into) is not None:
                raise Refused(
                    f"there is a database {wish.into!r} already", hint="choose another name"
                )
            now_bytes = connection.execute(
                "SELECT pg_database_size(oid) FROM pg_database WHERE datname = %s", (target.dbname,)
            ).fetchone()
            home = home_of(connection, target)
            room = _room(connection, target, home)
            log = _log_bound(connection)
            existing = {
                n for (n,) in connection.execute("SELECT quote_ident(rolname) FROM pg_roles")
            }
    except psycopg.Error as error:
        raise told(error) from error
    check_requirements(server, origin.requirements)
    rows = None
    if now_bytes is not None:
        with contextlib.suppress(KybError, psycopg.Error), connect(target) as connection:
            rows = connection.execute(
                "SELECT greatest(coalesce(sum(reltuples), 0), 0)::bigint FROM pg_class "
                "WHERE relkind = 'r' AND relnamespace::regnamespace::text NOT LIKE 'pg\\_%' "
                "AND reltuples > 0"
            ).fetchone()
    new_roles, silent_roles = _roles(source, existing)
    data = origin.requirements.database_bytes or 3 * manifest.total_size
    needed = round(_ROOM_FACTOR * data) + (data if log is None else min(data, log))
    needed += settings.recovery.minimum_free
    if room is None:
        notes.append(
            f"the server's free space is not known here: about {needed / 2**30:.2f} GiB is needed"
        )
    if home is not None and not home.allowed:
        notes.append(
            f"{target.dbname!r} lives in the tablespace {home.name}, where {target.user!r} may not create: "
            f"the restored database comes into pg_default (GRANT CREATE ON TABLESPACE {home.name})"
        )
    taken = manifest.started_at or manifest.timestamp
    return Outlook(
        backup_id=backup.backup_id,
        target=str(target),
        taken_at=taken,
        age_seconds=(now - taken).total_seconds(),
        rows_then=manifest.evidence.rows
        if manifest.evidence and manifest.evidence.tables
        else None,
        rows_now=int(rows[0]) if rows else None,
        bytes_then=origin.requirements.database_bytes or None,
        bytes_now=int(now_bytes[0]) if now_bytes else None,
        server_version=str(version[0]) if version else "?",
        new_roles=new_roles,
        roles_without_password=silent_roles,
        room=room,
        needed=needed,
        leftovers=tuple(name for name, _ in leftovers(settings)),
        into=wish.into,
        notes=tuple(notes),
        source=backup.plan if isinstance(backup, OffsiteBackup) else None,
    )


def leftovers(settings: Settings, keep: str = "") -> list[tuple[str, Journal]]:
    """Half-restored databases that killed or failed restores left, by their names.

    Only those that a journal knows, that never came into place, and that were not left for a person.
    """
    target = restoring_target(settings)
    server = maintenance(target)
    found = []
    for journal in Journals.of(settings).all(target):
        if journal.restore_id == keep or journal.kept or journal.rollback:
            continue
        if journal.state == "running" and not journal.abandoned():
            continue
        if oid_of_restoring(server, journal) is not None:
            found.append((journal.new_name, journal))
    return found


def drop_restoring(server: Target, journal: Journal) -> None:
    """Drop the database that a restore was filling, if it has not come into place."""
    if oid_of_restoring(server, journal) is None:
        return
    forget_subscriptions(server.with_database(journal.new_name))
    with connect(server) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                sql.Identifier(journal.new_name)
            )
        )


def _check_writable(connection: psycopg.Connection, target: Target) -> None:
    if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
        raise Refused(
            f"{target.host}:{target.port} is a standby, or still recovering: nothing can be written there",
            hint="restore on the primary (database.host), or promote this server first",
        )


def _check_version(major: int, origin: Origin) -> None:
    if major < origin.major:
        raise Refused(
            f"the backup is of PostgreSQL {origin.major}, this server is {major}: dumps go forward only",
            hint=f"restore on PostgreSQL {origin.major} or newer",
        )


def _check_rights(connection: psycopg.Connection, target: Target, wish: Wish) -> None:
    row = connection.execute(
        """
        SELECT r.rolsuper, r.rolcreatedb, r.rolcreaterole, r.rolbypassrls,
               pg_has_role('pg_signal_backend', 'USAGE'),
               (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_database d WHERE d.datname = %s)
        FROM pg_roles r WHERE r.rolname = current_user
        """,
        (target.dbname,),
    ).fetchone()
    assert row is not None
    superuser, createdb, createrole, bypass, signal, owner = row
    if superuser:
        return
    missing = []
    if not createdb:
        missing.append("CREATEDB")
    if not createrole:
        missing.append("CREATEROLE")
    if not bypass:
        missing.append("BYPASSRLS")
    if wish.into is None and not signal:
        missing.append("pg_signal_backend")
    if wish.into is None and owner is False:
        missing.append(f"membership in the owner of {target.dbname}")
    if missing:
        raise Refused(
            f"{target.user!r} may not restore: it lacks {', '.join(missing)}",
            hint="recovery.user names another role; docs/roles.md has its rights",
        )


def _roles(source: Source, existing: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Roles that would be made, and those of them that log in but whose password was not recorded.

    Where others' were, a role without one had none (it comes in by its certificate, or as a peer).
    """
    text, _ = globals_of(source)
    recorded = False
    made, silent_ones = [], []
    for statement in statements(text):
        if match := re.fullmatch(r'CREATE ROLE ("(?:[^"]|"")+"|\w+)', statement):
            if match[1] not in existing:
                made.append(match[1])
        elif match := re.match(r'ALTER ROLE ("(?:[^"]|"")+"|\w+) WITH ', statement):
            has_one = " PASSWORD '" in statement
            recorded |= has_one
            if match[1] in made and re.search(r"\bLOGIN\b", statement) and not has_one:
                silent_ones.append(match[1])
    return tuple(made), () if recorded else tuple(silent_ones)


@dataclass(frozen=True)
class Home:
    """A tablespace of its own; ``location`` is empty for one inside the server's folder."""

    name: str
    allowed: bool
    location: str


def home_of(connection: psycopg.Connection, target: Target) -> Home | None:
    """Where the live database lives, if that is not ``pg_default``; no backup records it."""
    row = connection.execute(
        "SELECT t.spcname, has_tablespace_privilege(t.oid, 'CREATE'), pg_tablespace_location(t.oid) "
        "FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace "
        "WHERE d.datname = %s AND t.spcname <> 'pg_default'",
        (target.dbname,),
    ).fetchone()
    return Home(*row) if row else None


def _room(connection: psycopg.Connection, target: Target, home: Home | None) -> int | None:
    """Bytes free where the server keeps its log and the data, if it is here and this role may know."""
    place = server_place(connection, target)
    if place is None:
        return None
    places = [place]
    if home is not None and home.allowed and home.location.startswith("/"):
        places.append(Path(home.location))
    try:
        return min(map(free_bytes, places))
    except OSError:
        return None


def server_place(connection: psycopg.Connection, target: Target) -> Path | None:
    """Where the server keeps its data, if it is this machine and this role may know."""
    if not _is_here(target.host):
        return None
    try:
        (said,) = connection.execute("SHOW data_directory").fetchone() or ("",)
        os.statvfs(said)
    except (psycopg.Error, OSError):
        return None
    return Path(said)


def _log_bound(connection: psycopg.Connection) -> int | None:
    """How much WAL the server lets lie; None where slots or an archiver may keep all of it.

    A server that has no room left for WAL stops, and the live database with it.
    """
    row = connection.execute(
        "SELECT pg_size_bytes(current_setting('max_wal_size')), current_setting('archive_mode') = 'off' "
        "AND NOT EXISTS (SELECT FROM pg_replication_slots)"
    ).fetchone()
    assert row is not None
    return int(row[0]) if row[1] else None


def _is_here(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def told(error: psycopg.Error) -> KybError:
    """The error for what the server said."""
    return missing_here(error.diag.message_primary) or RestoreFailed(
        f"the server said: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    )
