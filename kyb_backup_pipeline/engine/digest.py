"""One number for the content of a table: the sum of a 64-bit hash of each row.

It depends neither on the order of rows nor on that of columns: columns go by name, because pg_dump
can give the children of an inheritance tree another order. Generated columns are left out; they are
computed again.

The number has two versions. The first hashes the text of the row. The second, for servers from 14
on, takes half the time: a value that PostgreSQL stores in one way only is hashed as it is stored.
Where equal values can have different texts (1.0 and 1.00), or the type's own hash sees less than 64
bits of the value (int8 and times), or more than survives a restore (the object ids of an enum), the
binary or text form is hashed instead. A type not named here goes by its text, as in the first
version. ``hash_record_extended`` adds up the weighted hashes of a row's values, so its result is
hashed once more: else two rows that swap a value would have the same sum as before.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict

from kyb_backup_pipeline.engine.snapshot import Table

DIGEST_VERSION = 2
"""The newest version of the number. Only digests of one version can be compared."""

_TOO_LONG = re.compile("invalid memory alloc request size|string buffer|out of memory")

_STORED = "{}"
_BYTES = '{} COLLATE "C"'
_HASHED_AS: Mapping[str, str] = {
    "bool": _STORED,
    "char": _STORED,
    "int2": _STORED,
    "int4": _STORED,
    "oid": _STORED,
    "uuid": _STORED,
    "bytea": _STORED,
    "text": _BYTES,
    "varchar": _BYTES,
    "int8": "int8send({})",
    "date": "date_send({})",
    "time": "time_send({})",
    "timestamp": "timestamp_send({})",
    "timestamptz": "timestamptz_send({})",
    "numeric": "numeric_send({})",
    "json": 'json_out({})::text COLLATE "C"',
    "jsonb": 'jsonb_out({})::text COLLATE "C"',
    "enum": 'enum_out({})::text COLLATE "C"',
}
"""How a value of a built-in type (or of any enum) enters the hash of its row."""


class TableContent(BaseModel):
    """Rows and content of a table; ``digest`` is None where PostgreSQL cannot give a row's text."""

    model_config = ConfigDict(frozen=True)

    rows: int
    digest: str | None = None


@dataclass(frozen=True)
class Column:
    """A column that is dumped. ``form`` is a key of ``_HASHED_AS``, None for any other type."""

    name: str
    form: str | None


def newest_version(connection: psycopg.Connection) -> int:
    """The newest version of the digest that this server can compute."""
    return DIGEST_VERSION if connection.info.server_version >= 140000 else 1


def read_columns(connection: psycopg.Connection) -> dict[int, list[Column]]:
    """The columns that are dumped, of every table by its object id, in the order of their names."""
    columns: dict[int, list[Column]] = {}
    for oid, name, form in connection.execute(
        """
        WITH RECURSIVE base(oid, typbasetype) AS (  -- what a domain is in the end
            SELECT oid, oid FROM pg_type
            UNION ALL
            SELECT b.oid, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.typbasetype
            WHERE t.typtype = 'd')
        SELECT a.attrelid, a.attname,
            CASE WHEN t.typtype = 'e' AND t.oid = a.atttypid THEN 'enum'  -- a domain of one is none
            WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN t.typname::text END
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN base b ON b.oid = a.atttypid
        JOIN pg_type t ON t.oid = b.typbasetype AND t.typtype <> 'd'
        WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ORDER BY a.attrelid, a.attname COLLATE "C"
        """
    ).fetchall():
        columns.setdefault(oid, []).append(Column(name, form if form in _HASHED_AS else None))
    return columns


def digest_table(
    connection: psycopg.Connection, table: Table, columns: Sequence[Column], version: int
) -> TableContent:
    """Rows and digest of one table; locks that planning takes on its indexes are given back."""
    condition = sql.SQL(table.condition)  # the extension's own WHERE
    query = sql.SQL("SELECT count(*), sum({hash}) FROM ONLY {table} {condition}").format(
        hash=_row_text(columns) if version == 1 else _row_hash(columns),
        table=table.identifier,
        condition=condition,
    )
    try:
        with connection.transaction(force_rollback=True):
            rows, digest = connection.execute(query).fetchone() or (0, None)
            return TableContent(rows=rows, digest=str(digest or 0))
    except (psycopg.errors.ProgramLimitExceeded, psycopg.errors.InternalError_) as error:
        if not _TOO_LONG.search(str(error)):
            raise
        # a row that passes 1 GB: count it at least
        count = sql.SQL("SELECT count(*) FROM ONLY {} {}").format(table.identifier, condition)
        with connection.transaction(force_rollback=True):
            (rows,) = connection.execute(count).fetchone() or (0,)
            return TableContent(rows=rows, digest=None)


def _row_text(columns: Sequence[Column]) -> sql.Composable:
    return sql.SQL('hashtextextended(row({})::text COLLATE "C", 0)').format(_names(columns))


def _row_hash(columns: Sequence[Column]) -> sql.Composable:
    values: list[sql.Composable] = [
        sql.SQL(_HASHED_AS[column.form]).format(sql.Identifier(column.name))
        for column in columns
        if column.form is not None
    ]
    others = [column for column in columns if column.form is None]
    if others:
        values.append(sql.SQL('row({})::text COLLATE "C"').format(_names(others)))
    return sql.SQL(
        "hash_record_extended(row(int8send(hash_record_extended(row({}), 0))), 0)"
    ).format(sql.SQL(", ").join(values))


def _names(columns: Sequence[Column]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
