"""Bringing a full backup back into a new database.

Always with ``ON_ERROR_STOP``, always into a database that is created here from ``template0`` with the
source's encoding and locale, never over one that has objects in it. Roles come first, then the dump,
then the settings and grants of the database itself.

What is missing on the target (an extension, a locale) is told apart from a bad backup: the first is
``CouldNotVerify``, the second ``RestoreFailed``.
"""

import contextlib
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.contents import DAMAGED, Content
from kyb_backup_pipeline.engine.dump import DIRECTORY, GLOBALS_FILE, is_complete
from kyb_backup_pipeline.engine.errors import CouldNotVerify, RestoreFailed
from kyb_backup_pipeline.engine.full_backup import DATABASE_FILE
from kyb_backup_pipeline.engine.manifest import BackupFile, Requirements
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged
from kyb_backup_pipeline.engine.postgres import Programs, Target, connect
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.restore_source import Source, part_of
from kyb_backup_pipeline.engine.sql_script import statements
from kyb_backup_pipeline.engine.stream import EDGE
from kyb_backup_pipeline.engine.verify import dump_file

_log = logging.getLogger(__name__)

_MISSING_HERE = (
    (r'extension "(?P<what>[^"]+)" is not available', "the extension {what} is not installed"),
    (r"could not open extension control file .*/(?P<what>[^/]+)\.control",
     "the extension {what} is not installed"),
    (r'could not (?:access file|load library) "(?P<what>[^"]+)"', "the library {what} is missing"),
    (r'collation "(?P<what>[^"]+)" for encoding "[^"]+" does not exist',
     "the collation {what} is missing"),
    (r'invalid (?:LC_COLLATE|LC_CTYPE|locale) (?:locale )?name:? "(?P<what>[^"]*)"',
     "the locale {what} is missing"),
    (r'could not create locale "(?P<what>[^"]+)"', "the locale {what} is missing"),
    (r"(?P<what>ICU|XML|libxml) is not supported", "this build of PostgreSQL lacks {what}"),
    (r"unsupported (?P<what>XML) feature", "this build of PostgreSQL lacks {what}"),
    (r"compression method (?P<what>lz4) not supported", "this build of PostgreSQL lacks {what}"),
    (r"could not .*: (?P<what>No space left on device)", "{what}"),
)  # fmt: skip
"""What PostgreSQL says, from the first word of its message, when it is the server that lacks something.

Only from the first word: the rows of a dump may speak of anything, and messages quote them.
"""
_INSTALL = "install the server packages of that major version with their contrib and locales"


def missing_here(message: str | None) -> CouldNotVerify | None:
    """The error for an environment that lacks something, if PostgreSQL's ``message`` says so."""
    for pattern, explanation in _MISSING_HERE:
        match = re.match(pattern, message or "")
        if match:
            what = explanation.format(what=match["what"])
            return CouldNotVerify(f"the server cannot take this backup: {what}",
                                  hint=_INSTALL)  # fmt: skip
    return None


def _server_message(stderr: str) -> str | None:
    """The first error of the server in what psql or pg_restore wrote."""
    match = re.search(r"(?:ERROR|FATAL|PANIC):\s+(.*)", stderr)
    return match.group(1) if match else None


def check_requirements(target: Target, requirements: Requirements) -> None:
    """Raises CouldNotVerify, naming all extensions and collations the server cannot offer."""
    with connect(target) as connection:
        available = {
            name for (name,) in connection.execute("SELECT name FROM pg_available_extensions")
        }
        collations = {name for (name,) in connection.execute("SELECT collname FROM pg_collation")}
    missing = [f"extension {n}" for n in requirements.extensions if n not in available]
    missing += [f"collation {n}" for n in requirements.collations if n not in collations]
    if missing:
        raise CouldNotVerify("the server cannot offer " + ", ".join(missing), hint=_INSTALL)


_NAMED = r'(?:"(?:[^"]|"")+"|\w+)'
_SUBJECT = re.compile(
    rf"(?:(?:(?:CREATE|ALTER) ROLE|COMMENT ON ROLE|GRANT {_NAMED} TO|SECURITY LABEL .*? ON ROLE) "
    rf"(?P<role>{_NAMED})"
    rf"|(?:(?:CREATE|ALTER|COMMENT ON) TABLESPACE|(?:GRANT|REVOKE) .*? ON TABLESPACE) "
    rf"(?P<tablespace>{_NAMED}))",
    re.DOTALL,
)
"""Whom a statement of pg_dumpall would alter: of a membership, the role that becomes a member."""


def _existing(connection: psycopg.Connection) -> set[str]:
    """Roles and tablespaces that are there, as pg_dumpall writes their names."""
    rows = connection.execute(
        "SELECT quote_ident(rolname) FROM pg_roles UNION SELECT quote_ident(spcname) FROM pg_tablespace"
    ).fetchall()
    return {name for (name,) in rows}


def load_globals(target: Target, script: str, *, throwaway: bool) -> list[str]:
    """Create the roles and tablespaces of ``globals.sql``; return notes on what was left out.

    Roles that exist are left as they are. On a throwaway server tablespaces are made inside its own
    folder. Who is no superuser becomes a member of the roles it makes, since it must give them what they
    own. Raises RestoreFailed.
    """
    notes = []
    with connect(target) as connection:
        existing = set() if throwaway else _existing(connection)
        superuser = connection.info.parameter_status("is_superuser") == "on"
        if not superuser and connection.info.server_version >= 160000:
            connection.execute("SET createrole_self_grant = 'set, inherit'")
        for statement in statements(script):
            if statement.startswith("SET client_encoding"):
                continue  # we speak UTF-8, as the script was written
            subject = _SUBJECT.match(statement)
            if subject and (subject["role"] or subject["tablespace"]) in existing:
                continue
            if throwaway and statement.startswith("CREATE TABLESPACE"):
                statement = re.sub(r"LOCATION E?'.*'$", "LOCATION ''", statement, flags=re.DOTALL)
            if not superuser:
                statement = _for_ordinary(statement)
            try:
                connection.execute(statement)
            except psycopg.errors.DuplicateObject:
                continue
            except psycopg.errors.UndefinedObject as error:
                if not statement.startswith("ALTER ROLE") or " SET " not in statement:
                    raise _globals_error(error) from error
                notes.append(f"not taken over: {statement} ({_first_line(error)})")
            except psycopg.errors.InsufficientPrivilege as error:
                if not _MEMBERSHIP.match(statement):
                    raise _globals_error(error) from error
                notes.append(f"not taken over: {statement} ({_first_line(error)})")
            except psycopg.Error as error:
                raise _globals_error(error) from error
    return notes


_MEMBERSHIP = re.compile(rf"GRANT {_NAMED} TO {_NAMED}", re.DOTALL)
_ATTRIBUTES = re.compile(rf"ALTER ROLE {_NAMED} WITH [A-Z ]+")
_DEFAULTS = re.compile(r" (?:NOSUPERUSER|NOREPLICATION|NOBYPASSRLS)\b")


def _for_ordinary(statement: str) -> str:
    """The same without what only a superuser may say, though it says what holds anyway."""
    if match := _ATTRIBUTES.match(statement):
        return _DEFAULTS.sub("", match[0]) + statement[match.end() :]
    if _MEMBERSHIP.match(statement):
        return re.sub(rf" GRANTED BY {_NAMED}$", "", statement)
    return statement


def _globals_error(error: psycopg.Error) -> RestoreFailed:
    return RestoreFailed(f"{GLOBALS_FILE} cannot be loaded: {_first_line(error)}")


def _first_line(error: psycopg.Error) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def owner_of(source: Source) -> str | None:
    """The owner of the database that was backed up, where that was recorded."""
    text = (part_of(source, DATABASE_FILE) or b"").decode()
    match = re.search(r'^ALTER DATABASE :"DBNAME" OWNER TO "((?:[^"]|"")+)";$', text, re.M)
    return match[1].replace('""', '"') if match else None


def create_database(
    target: Target,
    name: str,
    requirements: Requirements,
    *,
    owner: str | None = None,
    tablespace: str | None = None,
) -> None:
    """Create an empty database as the source's was. Raises CouldNotVerify, RestoreFailed.

    Its owner owns the schema ``public`` too, and what is loaded may need that.
    """
    with connect(target) as connection:
        statement = _create_statement(name, requirements, connection.info.server_version)
        for word, whom in (("OWNER", owner), ("TABLESPACE", tablespace)):
            if whom is not None:
                statement += sql.SQL(f" {word} {{}}").format(sql.Identifier(whom))
        try:
            connection.execute(statement)
        except psycopg.errors.DuplicateDatabase as error:
            raise RestoreFailed(f"a database {name!r} exists already") from error
        except (
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.ObjectInUse,
            psycopg.errors.ReadOnlySqlTransaction,
            psycopg.errors.UndefinedObject,
        ) as error:
            raise missing_here(error.diag.message_primary) or RestoreFailed(
                f"no database can be made here: {_first_line(error)}"
            ) from error
        except psycopg.Error as error:
            raise missing_here(error.diag.message_primary) or CouldNotVerify(
                f"no database like the source's can be made here: {_first_line(error)}",
                hint=_INSTALL,
            ) from error


def _create_statement(name: str, wanted: Requirements, server_version: int) -> sql.Composed:
    parts = [
        sql.SQL(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}"
        ).format(sql.Identifier(name), wanted.encoding, wanted.collate, wanted.ctype)
    ]
    if server_version >= 150000:
        parts.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(wanted.locale_provider)))
        if wanted.locale_provider == "icu" and wanted.locale:
            parts.append(sql.SQL("ICU_LOCALE {}").format(wanted.locale))
        if wanted.locale_provider == "icu" and wanted.icu_rules and server_version >= 160000:
            parts.append(sql.SQL("ICU_RULES {}").format(wanted.icu_rules))
        if wanted.locale_provider == "builtin" and wanted.locale:
            parts.append(sql.SQL("BUILTIN_LOCALE {}").format(wanted.locale))
    return sql.SQL(" ").join(parts)


def load_dump(
    source: Source,
    programs: Programs,
    target: Target,
    *,
    jobs: int,
    stall_timeout: float,
    single_transaction: bool,
    report: Reporter,
) -> None:
    """Load the dump into the (new, empty) database that ``target`` names.

    In plain format the checksum is checked on the way. Raises RestoreFailed, CouldNotVerify.
    """
    requirements = source.manifest.requirements
    options = dict(target.options)
    if requirements is not None:
        options["lc_monetary"] = requirements.lc_monetary  # money is dumped as the source prints it
    if source.manifest.dump_format == "directory" and jobs > 1:
        # the jobs are the parallel work: index builds that each bring workers of their own take a
        # seventh longer on as many cores as jobs
        options["max_parallel_maintenance_workers"] = "0"
    session = replace(target, options=options)
    try:
        if source.manifest.dump_format == "directory":
            _pg_restore(source, programs, session, jobs, stall_timeout, report)
        else:
            _psql(source, programs, session, stall_timeout, single_transaction, report)
    except process.ProcessFailed as error:
        raise missing_here(_server_message(error.stderr)) or RestoreFailed(
            f"the dump does not load: {_error_line(error)}"
        ) from error


def _error_line(error: process.ProcessFailed) -> str:
    lines = error.stderr.splitlines()
    return next((line for line in lines if re.search("ERROR|FATAL|error:", line)), error.message)


def _psql(
    source: Source,
    programs: Programs,
    target: Target,
    stall_timeout: float,
    single_transaction: bool,
    report: Reporter,
) -> None:
    """What came out of the decryption, or from far away, counts only if that ended well: till then psql is
    not told the end.
    """
    file = dump_file(source.manifest)
    head = tail = b""
    with (
        source.files.reading(file.path, source.keys) as content,
        process.start(
            _psql_argv(programs, ["--single-transaction"] if single_transaction else []),
            env=target.environment(),
            stdin=process.PIPE,
        ) as child,
    ):
        process.widen_pipe(child.stdin)
        try:
            for piece in content.pieces:
                head = head or piece[:EDGE]
                tail = (tail + piece[-EDGE:])[-EDGE:]
                process.feed(child, piece, stall_timeout)
                done = min(content.size, file.size)
                report(Progress(step="restore", done=done, total=file.size, detail=file.path))
            _check_dump(file, content, head, tail)
            child.stdin.close()
        except BrokenPipeError:
            content.abandoned = True  # psql stopped at an error: finish() tells it
        except DAMAGED as error:
            raise RestoreFailed(f"{file.path} {error.message}") from error
        except CopyDamaged as error:
            raise RestoreFailed(error.message, hint=error.hint) from error
        child.finish(stall_timeout)
    _check_dump(file, content, head, tail)


def _check_dump(file: BackupFile, content: Content, head: bytes, tail: bytes) -> None:
    if content.abandoned:
        raise RestoreFailed(f"psql ended before the end of {file.path}")
    if not content.complete or content.sha256 != file.sha256:
        raise RestoreFailed(f"{file.path} has another SHA-256 than the manifest says")
    if not is_complete(tail, head):
        raise RestoreFailed(f"{file.path} holds an unfinished dump: pg_dump's last line is missing")


def _psql_argv(programs: Programs, options: list[str]) -> list[str | Path]:
    return [
        programs.path("psql"),
        "--no-psqlrc",
        "--quiet",
        "--no-password",
        "--set=ON_ERROR_STOP=1",
        "--output=/dev/null",
        *options,
        "--file=-",
    ]


def _pg_restore(
    source: Source,
    programs: Programs,
    target: Target,
    jobs: int,
    stall_timeout: float,
    report: Reporter,
) -> None:
    with process.start(
        [
            programs.path("pg_restore"),
            "--no-password",
            "--exit-on-error",
            f"--jobs={jobs}",
            f"--dbname={_conninfo(target.dbname)}",
            source.files.here(DIRECTORY),
        ],
        env=target.environment(),
    ) as child:
        with connect(target) as connection, contextlib.suppress(psycopg.Error):
            while not child.ended_within(0.5):
                (size,) = connection.execute(
                    "SELECT pg_database_size(current_database())"
                ).fetchone() or (0,)
                report(Progress(step="restore", done=size, detail=DIRECTORY))
        child.finish(None)


def _conninfo(dbname: str) -> str:
    """A name of a database where a connection string could be meant, for names with ``=`` in them."""
    escaped = dbname.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"


def apply_database_settings(source: Source, programs: Programs, target: Target) -> list[str]:
    """Apply ``database_settings.sql``; return notes on settings this server does not know."""
    script = part_of(source, DATABASE_FILE)
    if script is None:
        return ["no settings and grants of the database itself were recorded"]
    argv = _psql_argv(programs, ["--set=ON_ERROR_STOP=0"])
    with open(os.memfd_create("settings"), "w+b", buffering=0) as file:
        process.write_all(file.fileno(), script)
        file.seek(0)
        with process.start(argv, env=target.environment(), stdin=file) as child:
            printed = child.finish(60)
    notes = []
    for message in re.findall(r"ERROR:\s+(.*)", printed):
        if not message.startswith("unrecognized configuration parameter"):
            raise RestoreFailed(f"{DATABASE_FILE} cannot be applied: {message}")
        notes.append(f"a setting of the database was not taken over: {message}")
    return notes
