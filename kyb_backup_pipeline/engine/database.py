"""A database as a whole: its encoding and locale, and what no dump of it carries.

``ALTER DATABASE … SET`` and grants on the database are in neither format of a dump. They are written
to ``database_settings.sql`` as SQL for ``psql``, which names the database it is connected to itself
(``:"DBNAME"``): the same file serves the original, a restore under another name, and a person.
"""

import re
from dataclasses import dataclass

import psycopg

from kyb_backup_pipeline.engine.manifest import Requirements

_LIST_SETTINGS = frozenset({
    "local_preload_libraries", "search_path", "session_preload_libraries",
    "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories",
})  # fmt: skip
"""Settings whose stored value is a list of already quoted names (GUC_LIST_QUOTE)."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One grant on the database; an empty ``role`` is PUBLIC."""

    role: str
    privilege: str
    grantable: bool


@dataclass(frozen=True, kw_only=True)
class Database:
    """What was read of a database. ``settings`` are (role or None, name, value)."""

    server_version: str
    requirements: Requirements
    owner: str
    comment: str | None
    connection_limit: int
    settings: tuple[tuple[str | None, str, str], ...]
    grants: tuple[Grant, ...] | None
    reads_passwords: bool
    standby: bool

    @property
    def server_major(self) -> int:
        return int(re.split(r"\D", self.server_version)[0])


def read_database(connection: psycopg.Connection) -> Database:
    """Read the properties of the database that ``connection`` is connected to."""
    row = connection.execute(
        """
        SELECT current_setting('server_version'), pg_encoding_to_char(d.encoding),
               CASE to_jsonb(d)->>'datlocprovider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin'
                    ELSE 'libc' END,
               d.datcollate, d.datctype,
               coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale'),
               to_jsonb(d)->>'daticurules',
               (SELECT reset_val FROM pg_settings WHERE name = 'lc_monetary'),
               (SELECT rolname FROM pg_roles WHERE oid = 10), pg_database_size(d.oid),
               pg_get_userbyid(d.datdba), shobj_description(d.oid, 'pg_database'), d.datconnlimit,
               has_table_privilege('pg_authid', 'SELECT'), pg_is_in_recovery(), d.datacl IS NULL,
               d.oid
        FROM pg_database d WHERE d.datname = current_database()
        """
    ).fetchone()
    assert row is not None
    (version, encoding, provider, collate, ctype, locale, rules, monetary, bootstrap, size, owner,
     comment, limit, reads_passwords, standby, default_grants, oid) = row  # fmt: skip
    return Database(
        server_version=version,
        requirements=Requirements(
            encoding=encoding,
            locale_provider=provider,
            collate=collate,
            ctype=ctype,
            locale=locale,
            icu_rules=rules,
            lc_monetary=monetary or "C",
            bootstrap_role=bootstrap,
            database_bytes=size,
            extensions=_extensions(connection),
            collations=_collations(connection),
        ),
        owner=owner,
        comment=comment,
        connection_limit=limit,
        settings=_settings(connection, oid),
        grants=None if default_grants else _grants(connection, oid),
        reads_passwords=reads_passwords,
        standby=standby,
    )


def _extensions(connection: psycopg.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT extname, extversion FROM pg_extension").fetchall())


def _collations(connection: psycopg.Connection) -> tuple[str, ...]:
    """Collations of the system that columns, indexes or types use by name."""
    rows = connection.execute(
        """
        SELECT DISTINCT c.collname FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
        WHERE n.nspname = 'pg_catalog' AND c.collname NOT IN ('default', 'C', 'POSIX', 'ucs_basic')
          AND (EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid AND a.attrelid >= 16384)
            OR EXISTS (SELECT FROM pg_index i WHERE c.oid = ANY (i.indcollation)
                       AND i.indexrelid >= 16384)
            OR EXISTS (SELECT FROM pg_type t WHERE t.typcollation = c.oid AND t.oid >= 16384)
            OR EXISTS (SELECT FROM pg_range r WHERE r.rngcollation = c.oid AND r.rngtypid >= 16384)
            OR EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_collation'::regclass
                       AND d.refobjid = c.oid AND d.objid >= 16384))
        ORDER BY 1
        """
    ).fetchall()
    return tuple(name for (name,) in rows)


def _settings(connection: psycopg.Connection, oid: int) -> tuple[tuple[str | None, str, str], ...]:
    rows = connection.execute(
        """
        SELECT r.rolname, split_part(s.setting, '=', 1),
               substr(s.setting, strpos(s.setting, '=') + 1)
        FROM pg_db_role_setting g LEFT JOIN pg_roles r ON r.oid = g.setrole,
             unnest(g.setconfig) AS s(setting)
        WHERE g.setdatabase = %s ORDER BY 1 NULLS FIRST, 2
        """,
        (oid,),
    ).fetchall()
    return tuple(rows)


def _grants(connection: psycopg.Connection, oid: int) -> tuple[Grant, ...]:
    rows = connection.execute(
        """
        SELECT DISTINCT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable
        FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE d.oid = %s AND (a.grantee = 0 OR r.oid IS NOT NULL) ORDER BY 1, 2, 3
        """,
        (oid,),
    ).fetchall()
    return tuple(Grant(role=role, privilege=name, grantable=g) for role, name, g in rows)


def settings_sql(database: Database) -> str:
    """The settings, grants, owner and comment of a database as SQL for ``psql``."""
    lines = [
        "-- Settings and grants of the database itself, which its dump does not carry.",
        "-- psql -d DATABASE -f database_settings.sql applies them to the database it connects to.",
        "SET client_encoding = 'UTF8';",
        "SET search_path = '';",
        f'ALTER DATABASE :"DBNAME" OWNER TO {_identifier(database.owner)};',
    ]
    if database.connection_limit != -1:
        lines.append(f'ALTER DATABASE :"DBNAME" CONNECTION LIMIT {database.connection_limit};')
    if database.comment is not None:
        lines.append(f'COMMENT ON DATABASE :"DBNAME" IS {_literal(database.comment)};')
    if database.grants is not None:
        roles = {"", database.owner}
        lines += [f'REVOKE ALL ON DATABASE :"DBNAME" FROM {_role(role)};' for role in sorted(roles)]
        lines += [
            f'GRANT {grant.privilege} ON DATABASE :"DBNAME" TO {_role(grant.role)}'
            + (" WITH GRANT OPTION;" if grant.grantable else ";")
            for grant in database.grants
        ]
    for role, name, value in database.settings:
        subject = (
            f'ROLE {_identifier(role)} IN DATABASE :"DBNAME"' if role else 'DATABASE :"DBNAME"'
        )
        setting = ".".join(map(_identifier, name.split(".")))
        lines.append(f"ALTER {subject} SET {setting} TO {_setting_value(name, value)};")
    return "\n".join(lines) + "\n"


def _setting_value(name: str, value: str) -> str:
    if name.lower() not in _LIST_SETTINGS:
        return _literal(value)
    parts = re.findall(r'"(?:[^"]|"")*"|[^,\s]+', value)
    unquoted = (part[1:-1].replace('""', '"') if part.startswith('"') else part for part in parts)
    return ", ".join(map(_literal, unquoted)) or "''"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _role(name: str) -> str:
    return _identifier(name) if name else "PUBLIC"


def _literal(value: str) -> str:
    """A string constant that is safe whatever standard_conforming_strings says."""
    quoted = "'" + value.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in value else quoted
