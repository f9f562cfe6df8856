"""Single tables of a restored database: everything else goes.

A table stays whole only with what it rests on: the table whose rows a column holds, the parent it inherits
from, the sequence behind a default. So first it is worked out, along pg_depend, what the wanted tables
need; the other tables go; and then everything that was to stay must still be there.
"""

from collections.abc import Iterable

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.errors import InvalidRequest, RestoreFailed
from kyb_backup_pipeline.engine.postgres import Target, connect

_TABLES = """
    SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname NOT LIKE 'pg\\_%'
      AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
"""

_HEIRS = """
    WITH RECURSIVE heir(oid) AS (
        SELECT unnest(%s::oid[])
        UNION SELECT i.inhrelid FROM heir h JOIN pg_inherits i ON i.inhparent = h.oid)
    SELECT oid FROM heir
"""
"""Partitions and children: a query of a table reads their rows too."""

_NEEDED = """
    WITH RECURSIVE needed(classid, objid) AS (
        SELECT 'pg_class'::regclass::oid, unnest(%s::oid[])
        UNION
        SELECT further.classid, further.objid FROM needed n CROSS JOIN LATERAL (
            SELECT refclassid, refobjid FROM pg_depend d
            WHERE d.classid = n.classid AND d.objid = n.objid
            UNION ALL  -- and its parts: defaults, constraints, indexes, triggers, rules, policies
            SELECT d.classid, d.objid FROM pg_depend d
            WHERE d.refclassid = n.classid AND d.refobjid = n.objid
              AND d.deptype IN ('a', 'i', 'S')  -- 'P': an index of a partition, of its parent's
              AND n.classid IN ('pg_class'::regclass, 'pg_type'::regclass)
              AND NOT EXISTS (SELECT FROM pg_class c WHERE d.classid = 'pg_class'::regclass
                              AND c.oid = d.objid AND c.relkind IN ('r', 'p', 'f'))
              AND NOT EXISTS (SELECT FROM pg_constraint k WHERE d.classid = 'pg_constraint'::regclass
                              AND k.oid = d.objid AND k.contype = 'f')
        ) AS further(classid, objid))
    SELECT classid, objid FROM needed
"""
"""What tables rest on. Not along foreign keys, and not from a parent to its other children."""

_LOOKS = """
    SELECT c.oid, pg_relation_filenode(c.oid), array_agg(
        (a.attname, a.atttypid, a.attnotnull, pg_get_expr(f.adbin, f.adrelid))::text ORDER BY a.attnum)
    FROM pg_class c
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef f ON f.adrelid = c.oid AND f.adnum = a.attnum
    WHERE c.oid = ANY (%s) GROUP BY c.oid
"""
"""Columns, defaults, and the very file that holds the rows: what DROP leaves alone keeps its own."""

_KEYS = """
    SELECT quote_ident(k.conname), k.conrelid::regclass::text, k.confrelid::regclass::text
    FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0
      AND k.conrelid = ANY (%s) AND NOT k.confrelid = ANY (%s) ORDER BY 2, 1
"""

_PG_CLASS = 1259
"""The OID of pg_class, the same everywhere."""

_Looks = tuple[set[tuple[int, int]], dict[int, tuple[object, ...]]]


def keep_tables(database: Target, tables: tuple[str, ...]) -> list[str]:
    """Drop every other table, and what depends on it; return notes on what came along or was lost.

    Raises InvalidRequest for a table that is not there, RestoreFailed if one that stays would not be
    whole; then nothing was dropped.
    """
    with connect(database, autocommit=False) as connection:
        names = {oid: (schema, name) for oid, schema, name in connection.execute(_TABLES)}
        wanted = _wanted(names, tables)
        heirs = [oid for (oid,) in connection.execute(_HEIRS, (wanted,))]
        before = _look(connection, heirs)
        kept = [oid for oid in names if oid in before[1]]
        notes = []
        if extra := [oid for oid in kept if oid not in wanted]:
            notes.append(
                f"kept besides, as the wanted tables need them: {_listed(names[o] for o in extra)}"
            )
        notes += [
            f"the foreign key {key} of {table} was left out: {other} was not wanted"
            for key, table, other in connection.execute(_KEYS, (kept, kept))
        ]
        _drop(connection, [names[oid] for oid in names if oid not in before[1]])
        if _look(connection, heirs) != before:
            raise RestoreFailed(
                f"{', '.join(tables)} cannot be had alone: something of them would go with the others",
                hint="restore without --table, and copy from there what you need",
            )
        connection.commit()
    return notes


def _wanted(names: dict[int, tuple[str, str]], tables: tuple[str, ...]) -> list[int]:
    oids = {f"{schema}.{name}": oid for oid, (schema, name) in names.items()}
    wanted = {name if "." in name else f"public.{name}" for name in tables}
    if unknown := sorted(wanted - set(oids)):
        raise InvalidRequest(f"there is no table {', '.join(unknown)} in this backup",
                             hint="with its schema where that is not public")  # fmt: skip
    return [oids[name] for name in wanted]


def _look(connection: psycopg.Connection, tables: list[int]) -> _Looks:
    """All that these tables rest on, and how each relation of it looks."""
    needed = set(connection.execute(_NEEDED, (tables,)).fetchall())
    relations = [oid for catalog, oid in needed if catalog == _PG_CLASS]
    rows = connection.execute(_LOOKS, (relations,))
    return needed, {oid: tuple(looks) for oid, *looks in rows}


def _drop(connection: psycopg.Connection, tables: list[tuple[str, str]]) -> None:
    """CASCADE takes views, keys and functions of what goes; that nothing else went is looked at after."""
    triggers = connection.execute(
        "SELECT evtname, evtenabled::text FROM pg_event_trigger WHERE evtenabled <> 'D' "
        "AND current_setting('event_triggers', true) IS DISTINCT FROM 'off'"
    ).fetchall()
    for name, _ in triggers:  # one of them may forbid what is to be done, and did not mean a copy
        _set_trigger(connection, name, "DISABLE")
    for schema, name in tables:
        connection.execute(
            sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(schema, name))
        )
    for name, state in triggers:
        how = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}[state]
        _set_trigger(connection, name, how)


def _set_trigger(connection: psycopg.Connection, name: str, how: str) -> None:
    connection.execute(
        sql.SQL("ALTER EVENT TRIGGER {} {}").format(sql.Identifier(name), sql.SQL(how))
    )


def _listed(names: Iterable[tuple[str, str]]) -> str:
    return ", ".join(
        sorted(name if schema == "public" else f"{schema}.{name}" for schema, name in names)
    )
