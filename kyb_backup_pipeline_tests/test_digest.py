"""The digest of a table: what must change it, and what must not."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

from kyb_backup_pipeline.engine.digest import TableContent, digest_table, read_columns
from kyb_backup_pipeline.engine.postgres import FIXED_SETTINGS, connect
from kyb_backup_pipeline.engine.snapshot import list_tables
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import create_database, drop_database, installed_majors


@pytest.fixture(scope="module", params=installed_majors())
def connection(
    server_of: Callable[[int], Cluster], request: pytest.FixtureRequest
) -> Iterator[psycopg.Connection]:
    """A database with a few types of its own."""
    server = server_of(request.param)
    create_database(server.target(), "digests")
    with connect(server.target("digests"), FIXED_SETTINGS) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("SET search_path = public")
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        connection.execute("CREATE DOMAIN mood_of_day AS mood")
        connection.execute("CREATE DOMAIN code AS char(4)")
        connection.execute("CREATE DOMAIN count AS int8 CHECK (VALUE IS NOT NULL OR VALUE IS NULL)")
        yield connection
    drop_database(server.target(), "digests")


def content(connection: psycopg.Connection, *statements: str, version: int = 2) -> TableContent:
    """The content of table ``t`` after ``statements``."""
    with connection.transaction(force_rollback=True):
        for statement in statements:
            connection.execute(statement)
        (table,) = list_tables(connection)
        columns = read_columns(connection)
        return digest_table(connection, table, columns.get(table.oid, ()), version)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("type_name", "one", "other"),
    [
        ("numeric", "1.0", "1.00"), ("numeric", "NaN", "Infinity"), ("numeric[]", "{1.0}", "{1.00}"),
        ("float8", "0", "-0"), ("float8", "0.1", "0.10000000000000002"), ("real", "1", "1.0000001"),
        ("int8", "5", "4294967300"), ("int8", "-1", "0"), ("count", "5", "4294967300"),
        ("timestamptz", "2000-01-01 00:00:00.000005+00", "2000-01-01 01:11:34.9673+00"),
        ("timestamp", "infinity", "-infinity"), ("date", "2026-01-31", "2026-02-01"),
        ("time", "24:00", "00:00"), ("timetz", "12:00+01", "11:00+00"), ("interval", "1 day", "24:00"),
        ("text", "a", "a "), ("text", "", None), ("char(3)", "a", "b"), ("varchar", "é", "e\u0301"),
        ("code", "a", "b"), ("bytea", "\\x00", "\\x0000"), ("bytea", "\\x", None), ("bool", "t", None),
        ("\"char\"", "a", "b"), ("int2", "1", "-1"), ("int4", "1", "2"), ("oid", "1", "2"),
        ("uuid", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000010"),
        ("json", '{"a":1}', '{"a": 1}'), ("jsonb", '{"a": 1.0}', '{"a": 1.00}'), ("jsonb", "null", None),
        ("mood", "sad", "glad"), ("mood_of_day", "sad", "glad"), ("mood[]", "{sad}", "{glad}"),
        ("inet", "10.0.0.1/8", "10.0.0.1/32"), ("text[]", "{NULL}", "{\"NULL\"}"), ("point", "(0,0)", "(0,-0)"),
        ("numrange", "[1.0,2]", "[1.00,2]"), ("tsvector", "a:1", "a:2"), ("money", "1.00", "1.01"),
    ],
)  # fmt: skip
def test_another_value_is_another_digest(
    connection: psycopg.Connection, type_name: str, one: str, other: str | None, version: int
) -> None:
    table = f"CREATE TABLE t (a int, v {type_name}, z text)"
    digests = set()
    for value in (one, other):
        literal = psycopg.sql.quote(value) if value is not None else "NULL"
        row = f"INSERT INTO t VALUES (1, {literal}, 'same'), (2, NULL, NULL)"
        digests.add(content(connection, table, row, version=version).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("rows", "others"),
    [
        ("(1, 'a', '1', 1), (2, 'b', '2', 2)", "(1, 'b', '1', 1), (2, 'a', '2', 2)"),
        ("(1, 'a', '1', 1), (2, 'b', '2', 2)", "(2, 'a', '1', 1), (1, 'b', '2', 2)"),
        ("(1, 'a', 'b', 1)", "(1, 'b', 'a', 1)"),
        ("(1, NULL, 'b', 1)", "(1, 'b', NULL, 1)"),
        ("(1, 'ab', 'c', 1)", "(1, 'a', 'bc', 1)"),
        ("(1, 'a', 'b', 2)", "(2, 'a', 'b', 1)"),
        ("(1, 'a', 'b', 1), (1, 'a', 'b', 1)", "(1, 'a', 'b', 1)"),
    ],
)
def test_values_that_change_places_change_the_digest(
    connection: psycopg.Connection, rows: str, others: str, version: int
) -> None:
    table = "CREATE TABLE t (a int8, b text, c text, d int8)"
    found = [
        content(connection, table, f"INSERT INTO t VALUES {values}", version=version)
        for values in (rows, others)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("version", [1, 2])
def test_the_order_of_rows_and_columns_and_other_object_ids_change_nothing(
    connection: psycopg.Connection, version: int
) -> None:
    one = content(
        connection,
        "CREATE TABLE t (a int, b mood, c mood[], d code, e numeric, f float8)",
        "INSERT INTO t VALUES (1, 'sad', '{glad}', 'x', 1.0, 'NaN'), (2, 'glad', NULL, 'y', 2, -0)",
        version=version,
    )
    other = content(
        connection,
        "CREATE TYPE sentiment AS ENUM ('glad', 'sad')",
        "CREATE TABLE t (f float8, e numeric, x int, d code, c sentiment[], b sentiment, a int)",
        "ALTER TABLE t DROP COLUMN x",
        """INSERT INTO t VALUES (-0, 2, 'y', NULL, 'glad', 2),
           ('inf'::float8 - 'inf', 1.0, 'x', '{glad}', 'sad', 1)""",
        version=version,
    )
    assert one == other
    assert one.rows == 2


@pytest.mark.parametrize("version", [1, 2])
def test_a_table_without_columns_has_rows(connection: psycopg.Connection, version: int) -> None:
    assert content(connection, "CREATE TABLE t ()", version=version).rows == 0
    filled = content(
        connection, "CREATE TABLE t ()", "INSERT INTO t SELECT FROM generate_series(1, 3)",
        version=version,
    )  # fmt: skip
    assert filled.rows == 3
