"""What the database held, table by table, in one snapshot: the measure of every restore.

For each table its number of rows and a digest of their content (``digest``), under session settings
that are fixed (``postgres.FIXED_SETTINGS``); the identity of every object (``catalog``).

Sequences are not transactional: the same snapshot can show 1 and then 3. They are read before and
after the dump, and a restored one passes within that interval (``comparison``).
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field

from kyb_backup_pipeline.engine.catalog import read_objects
from kyb_backup_pipeline.engine.digest import (
    DIGEST_VERSION,
    TableContent,
    digest_table,
    newest_version,
    read_columns,
)
from kyb_backup_pipeline.engine.postgres import FIXED_SETTINGS, Target, connect
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.snapshot import Table, list_tables

EVIDENCE_FILE = "evidence.json"

_LARGE_OBJECT_BATCH = 1000
_SEQUENCE_BATCH = 200


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True)


class SequenceState(_Fact):
    """Where a sequence stood before and after the dump (equal on a restored database).

    ``period`` is the number of values after which a cycling one begins again; None for others.
    """

    before: tuple[int, bool]
    after: tuple[int, bool]
    increment: int
    period: int | None = None


class LargeObjects(_Fact):
    """All large objects together; size in bytes."""

    count: int
    size: int
    digest: str


class Evidence(_Fact):
    """What a database held. Names are quoted as PostgreSQL prints them.

    ``changed`` counts objects that were altered while the dump ran and so prove nothing.
    """

    format_version: int = 1
    digest_version: int = Field(1, ge=1, le=DIGEST_VERSION)
    server_version: str
    tables: dict[str, TableContent]
    sequences: dict[str, SequenceState]
    objects: dict[str, dict[str, str]]
    roles: dict[str, str]
    large_objects: LargeObjects | None = None
    populated: dict[str, bool]
    seconds: float
    changed: int = 0

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    @property
    def object_count(self) -> int:
        return sum(map(len, self.objects.values()))


def take_evidence(
    connection: psycopg.Connection,
    tables: Sequence[Table],
    sequences: dict[str, SequenceState],
    *,
    standby: bool,
    report: Reporter,
) -> Evidence:
    """Read everything through ``connection``, in its open transaction.

    ``sequences`` must have been read before the dump began; complete them with
    ``settled`` once it is done. On a ``standby`` unlogged tables have no rows, neither
    here nor in the dump.
    """
    began = time.monotonic()
    version = newest_version(connection)
    return Evidence(
        server_version=_one(connection, "SHOW server_version"),
        digest_version=version,
        sequences=sequences,
        objects=read_objects(connection),
        roles=read_roles(connection),
        populated=_populated(connection),
        tables=_digest_all(connection, tables, version, standby, report),
        large_objects=read_large_objects(connection),
        seconds=round(time.monotonic() - began, 3),
    )


def take_evidence_parallel(
    target: Target, *, like: Evidence, jobs: int, report: Reporter
) -> Evidence:
    """The same of a database at rest, such as a restored one, over ``jobs`` connections.

    The digests are of the version that the evidence to compare with (``like``) has.
    """
    began = time.monotonic()
    with connect(target, FIXED_SETTINGS) as connection:
        tables = list_tables(connection)
        largest_first = _largest_first(connection, tables)
        with ThreadPoolExecutor(jobs) as pool:
            parts = [
                pool.submit(_digest_share, target, largest_first[n::jobs], like.digest_version)
                for n in range(jobs)
            ]
            sequences = read_sequences(connection)
            objects = read_objects(connection)
            contents: dict[str, TableContent] = {}
            for part in parts:
                contents.update(part.result())
                report(_progress(len(contents), len(tables), "comparing"))
        return Evidence(
            server_version=_one(connection, "SHOW server_version"),
            digest_version=like.digest_version,
            sequences=sequences,
            objects=objects,
            roles=read_roles(connection),
            populated=_populated(connection),
            tables=contents,
            large_objects=read_large_objects(connection),
            seconds=round(time.monotonic() - began, 3),
        )


def parse_evidence(content: bytes) -> Evidence:
    """Read what is in ``evidence.json``. Raises ValueError if it is none."""
    return Evidence.model_validate_json(content)


def settled(
    evidence: Evidence, objects_before: dict[str, dict[str, str]], connection: psycopg.Connection
) -> Evidence:
    """The evidence after a second look, on a new ``connection`` once the dump is done.

    Sequences get the second end of their interval. Names of objects are printed from the catalog as it
    is at that moment, whatever the snapshot, and roles are in no snapshot: what was not the same before
    the snapshot (``objects_before``), in it, and now was altered meanwhile, and is left out.
    """
    during, after = evidence.objects, read_objects(connection)
    objects: dict[str, dict[str, str]] = {}
    changed = 0
    for kind in objects_before.keys() | during.keys() | after.keys():
        looks = [look.get(kind, {}) for look in (objects_before, during, after)]
        names = set().union(*looks)
        same = {n for n in names if len({look.get(n) for look in looks}) == 1}
        objects[kind] = {name: detail for name, detail in looks[1].items() if name in same}
        changed += len(names - same)
    roles_now = read_roles(connection)
    roles = {name: d for name, d in evidence.roles.items() if roles_now.get(name) == d}
    changed += len(evidence.roles) - len(roles)
    return _with_sequences_after(evidence, read_sequences(connection)).model_copy(
        update={"objects": objects, "roles": roles, "changed": changed}
    )


def _with_sequences_after(evidence: Evidence, after: dict[str, SequenceState]) -> Evidence:
    sequences = {
        name: state.model_copy(update={"after": after[name].after}) if name in after else state
        for name, state in evidence.sequences.items()
    }
    return evidence.model_copy(update={"sequences": sequences})


def read_sequences(connection: psycopg.Connection) -> dict[str, SequenceState]:
    """Where every dumped sequence stands now.

    Reading a sequence locks it against being dropped until the transaction ends.
    """
    listed = connection.execute(
        """
        SELECT n.nspname, c.relname, c.oid::regclass::text, s.seqincrement,
               CASE WHEN s.seqcycle THEN (s.seqmax::numeric - s.seqmin) / abs(s.seqincrement) + 1 END
        FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
             AND d.deptype = 'e'
        LEFT JOIN pg_extension x ON x.oid = d.refobjid AND c.oid = ANY (x.extconfig)
        WHERE c.relpersistence <> 't' AND n.nspname !~ '^pg_'
          AND n.nspname <> 'information_schema' AND (d.objid IS NULL OR x.oid IS NOT NULL)
          AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery())
        ORDER BY c.oid
        """
    ).fetchall()
    states: dict[str, SequenceState] = {}
    for start in range(0, len(listed), _SEQUENCE_BATCH):
        batch = listed[start : start + _SEQUENCE_BATCH]
        query = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {}, last_value, is_called FROM {}").format(
                sql.Literal(n), sql.Identifier(schema, name)
            )
            for n, (schema, name, *_) in enumerate(batch)
        )
        for n, value, called in connection.execute(query).fetchall():
            _, _, label, increment, period = batch[n]
            states[label] = SequenceState(
                before=(value, called),
                after=(value, called),
                increment=increment,
                period=None if period is None else int(period),
            )
    return states


def read_roles(connection: psycopg.Connection) -> dict[str, str]:
    """All roles of the cluster but the predefined ones, with attributes and memberships."""
    rows = connection.execute(
        """
        SELECT r.rolname, concat_ws(' ', CASE WHEN r.rolsuper THEN 'superuser' END,
            CASE WHEN r.rolcanlogin THEN 'login' END, CASE WHEN r.rolcreatedb THEN 'createdb' END,
            CASE WHEN r.rolcreaterole THEN 'createrole' END,
            CASE WHEN NOT r.rolinherit THEN 'noinherit' END,
            CASE WHEN r.rolreplication THEN 'replication' END,
            CASE WHEN r.rolbypassrls THEN 'bypassrls' END, 'limit ' || nullif(r.rolconnlimit, -1),
            'in ' || (SELECT string_agg(DISTINCT quote_ident(g.rolname), ',')
                      FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                      WHERE m.member = r.oid))
        FROM pg_roles r WHERE r.rolname !~ '^pg_'
          AND (getdatabaseencoding() = 'UTF8' OR r.rolname !~ '[^ -~]')  -- no encoding of their own
        ORDER BY 1
        """
    )
    return dict(rows.fetchall())


def read_large_objects(connection: psycopg.Connection) -> LargeObjects:
    """Count, size and content of all large objects, whatever their pages look like."""
    oids = [
        oid for (oid,) in connection.execute("SELECT oid FROM pg_largeobject_metadata ORDER BY 1")
    ]
    size = digest = 0
    for start in range(0, len(oids), _LARGE_OBJECT_BATCH):
        with connection.transaction(force_rollback=True):  # closes the descriptors of this batch
            row = connection.execute(
                """
                SELECT sum(bytes), sum((SELECT coalesce(sum(hashtextextended(concat_ws(':', oid, part,
                         encode(lo_get(oid, part * 1048576, 1048576), 'base64')) COLLATE "C", 0)), 0)
                       FROM generate_series(0, greatest(bytes - 1, 0) / 1048576) AS part))
                FROM (SELECT oid, lo_lseek64(lo_open(oid, 262144), 0, 2) AS bytes
                      FROM unnest(%s::oid[]) AS oid OFFSET 0) AS listed
                """,
                (oids[start : start + _LARGE_OBJECT_BATCH],),
            ).fetchone()
        assert row is not None
        size, digest = size + int(row[0]), digest + int(row[1])
    return LargeObjects(count=len(oids), size=size, digest=str(digest))


def _digest_all(
    connection: psycopg.Connection,
    tables: Sequence[Table],
    version: int,
    standby: bool,
    report: Reporter,
) -> dict[str, TableContent]:
    with_data = [table for table in tables if not table.partitioned]
    columns = read_columns(connection)
    contents = {}
    for done, table in enumerate(with_data):
        report(_progress(done, len(with_data), table.label))
        if standby and table.unlogged:
            contents[table.label] = TableContent(rows=0, digest="0")
        else:
            found = digest_table(connection, table, columns.get(table.oid, ()), version)
            contents[table.label] = found
    report(_progress(len(with_data), len(with_data), ""))
    return contents


def _digest_share(target: Target, tables: Sequence[Table], version: int) -> dict[str, TableContent]:
    with connect(target, FIXED_SETTINGS) as connection:
        columns = read_columns(connection)
        return {
            table.label: digest_table(connection, table, columns.get(table.oid, ()), version)
            for table in tables
        }


def _largest_first(connection: psycopg.Connection, tables: Sequence[Table]) -> list[Table]:
    pages: dict[int, int] = dict(
        connection.execute(
            "SELECT oid, pg_table_size(oid) FROM pg_class WHERE relkind = 'r'"
        ).fetchall()
    )
    with_data = [table for table in tables if not table.partitioned]
    return sorted(with_data, key=lambda table: pages.get(table.oid, 0), reverse=True)


def _populated(connection: psycopg.Connection) -> dict[str, bool]:
    rows = connection.execute(
        """
        SELECT c.oid::regclass::text, c.relispopulated FROM pg_class c
        WHERE c.relkind = 'm' AND NOT EXISTS (SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        """
    )
    return dict(rows.fetchall())


def _one(connection: psycopg.Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _progress(done: int, total: int, detail: str) -> Progress:
    return Progress(step="evidence", done=done, total=total, unit="tables", detail=detail)
