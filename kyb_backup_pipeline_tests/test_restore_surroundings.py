"""What a database and its server may have about them: a restore of it goes through, or says why not."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg import sql

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.database_restore import STEPS, DatabaseRestore
from kyb_backup_pipeline.engine.errors import Refused, RestoreFailed
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.journal import Step
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.quiet_session import quiet
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_outlook import Wish, drop_restoring
from kyb_backup_pipeline.engine.single_tables import keep_tables
from kyb_backup_pipeline.engine.subscriptions import forget_subscriptions
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import create_database, drop_database, execute
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.test_database_restore import Live, alter_dump, change
from kyb_backup_pipeline_tests.test_database_restore import live as live  # the fixture
from kyb_backup_pipeline_tests.wal_clusters import running_cluster

WITHOUT_SAFETY = Wish(safety_backup=False)


def run_in(live: Live, *statements: str) -> None:
    """Run statements in the live database; DB stands for its name."""
    for statement in statements:
        execute(live.target, re.sub(r"\bDB\b", f'"{live.name}"', statement).encode())


# What sets our sessions


def test_a_trigger_that_writes_at_each_login_makes_no_difference(live: Live) -> None:
    run_in(
        live,
        "CREATE TABLE login_log (who text, at timestamptz)",
        "CREATE FUNCTION on_login() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN INSERT INTO public.login_log VALUES (session_user, now()); END $$",
        "CREATE EVENT TRIGGER log_login ON login EXECUTE FUNCTION on_login()",
        "ALTER EVENT TRIGGER log_login ENABLE ALWAYS",
    )
    backup, after = live.backup(), change(live)
    journal = live.restore(backup, WITHOUT_SAFETY)
    assert journal.state == "done"
    assert live.users() == after - 7
    state = execute(live.target, "SELECT evtenabled::text FROM pg_event_trigger")
    assert state == [("A",)]


@pytest.fixture
def small(place: Path, tmp_path: Path, drills: Path) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """A server of its own with a small database, and what a client of it needs."""
    with running_cluster(place, 18) as cluster:
        execute(cluster.target(), "CREATE DATABASE kyb_platform")
        execute(
            cluster.target("kyb_platform"),
            "CREATE TABLE users AS SELECT n FROM generate_series(1, 9) n",
        )
        yield cluster, {
            "DB_HOST": cluster.target().host, "DB_PORT": str(cluster.port), "DB_USER": cluster.target().user,
            "BACKUP_DIR": str(tmp_path / "backups"), "KYB_BACKUP__MINIMUM_FREE": "0",
            "KYB_APPLICATION__STOP_COMMAND": "", "KYB_APPLICATION__START_COMMAND": "",
            "KYB_RESTORE_TEST__DIRECTORY": str(drills),
        }  # fmt: skip


def test_a_server_that_is_read_only_by_its_settings_is_written_to_all_the_same(
    small: tuple[Cluster, dict[str, str]],
) -> None:
    cluster, environment = small
    settings = config.load(environment=environment)
    take_full_backup(settings, Request(backup_id="good"), now=utc_now())
    execute(cluster.target("kyb_platform"), "DELETE FROM users")
    execute(cluster.target(), "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(cluster.target(), "SELECT pg_reload_conf()")
    cli = Cli(None, environment)
    for arguments in (
        ("database", "good", "--yes"),
        ("rollback", "--yes"),
        ("database", "good", "--yes"),
    ):
        run = cli.run("restore", *arguments)
        assert run.returncode == 0, run.stderr
    assert execute(cluster.target("kyb_platform"), "SELECT count(*) FROM users") == [(9,)]


def test_a_standby_is_refused_by_a_dry_run_too(small: tuple[Cluster, dict[str, str]]) -> None:
    cluster, environment = small
    settings = config.load(environment=environment)
    take_full_backup(settings, Request(backup_id="good"), now=utc_now())
    cluster.stop()
    signal_file, data = cluster.folder / "data" / "standby.signal", (cluster.folder / "data").stat()
    signal_file.touch()
    os.chown(signal_file, data.st_uid, data.st_gid)
    cluster.start()
    for option in ("--dry-run", "--yes"):
        run = Cli(None, environment).run("restore", "database", "good", option)
        assert run.returncode == Refused.exit_code, run.stderr
        assert "is a standby" in run.stderr


# Single tables


def columns_of(target: Target, *schemas: str) -> dict[str, str]:
    """Every table with its columns and their defaults."""
    rows = execute(
        target,
        "SELECT c.oid::regclass::text, string_agg(a.attname || coalesce(' = ' || pg_get_expr(d.adbin, "
        "d.adrelid), ''), ', ' ORDER BY attnum) FROM pg_class c "
        "LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped "
        "LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum "
        "WHERE relkind IN ('r', 'p') AND relnamespace::regnamespace::text = ANY (%s) GROUP BY c.oid",
        (list(schemas),),
    )
    return dict(rows)


_WOVEN = (
    "CREATE SCHEMA w",
    "CREATE TABLE w.parent (a int)",
    "CREATE TABLE w.child (b int) INHERITS (w.parent)",
    "INSERT INTO w.child VALUES (1, 2)",
    "CREATE TABLE w.parts (a int PRIMARY KEY) PARTITION BY RANGE (a)",
    "CREATE TABLE w.parts_1 PARTITION OF w.parts FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE w.parts_2 PARTITION OF w.parts FOR VALUES FROM (10) TO (20)",
    "INSERT INTO w.parts VALUES (1), (11)",
    "CREATE TABLE w.row_of (a int)",
    "CREATE TABLE w.holds (k int, r w.row_of, m w.row_of[])",
    "INSERT INTO w.holds VALUES (1, ROW(5), ARRAY[ROW(6)::w.row_of])",
    "CREATE FUNCTION w.next(w.row_of) RETURNS int LANGUAGE sql AS 'SELECT 7'",
    "CREATE TABLE w.calls (a int DEFAULT w.next(NULL), b int)",
    "INSERT INTO w.calls (b) VALUES (1)",
    "CREATE SEQUENCE w.numbers OWNED BY w.row_of.a",
    "CREATE TABLE w.counted (a int DEFAULT nextval('w.numbers'), b int)",
    "INSERT INTO w.counted (b) VALUES (1)",
    "CREATE TABLE w.refers (a int REFERENCES w.parts)",
    "CREATE TABLE w.guarded (a int)",
    "CREATE POLICY few ON w.guarded USING (a IN (SELECT a FROM w.row_of))",
    "INSERT INTO w.guarded VALUES (1)",
    "CREATE VIEW w.seen AS SELECT count(*) FROM w.parent, w.row_of",
)


@pytest.mark.parametrize(
    ("wanted", "besides"),
    [
        ("child", ["parent"]),
        ("parent", ["child"]),
        ("parts_1", ["parts"]),
        ("parts", ["parts_1", "parts_2"]),
        ("holds", ["row_of"]),
        ("calls", ["row_of"]),
        ("counted", ["row_of"]),
        ("guarded", ["row_of"]),
        ("refers", []),
    ],
)
def test_a_single_table_comes_back_whole_with_what_it_rests_on(
    live: Live, wanted: str, besides: list[str]
) -> None:
    run_in(live, *_WOVEN, "INSERT INTO w.refers VALUES (1)")
    into = f"{live.name}_few"
    journal = live.restore(live.backup(), Wish(into=into, tables=(f"w.{wanted}",)))
    source, few = columns_of(live.target, "w"), columns_of(live.server.target(into), "w", "public")
    assert few == {f"w.{name}": source[f"w.{name}"] for name in (wanted, *besides)}
    rows = f"SELECT * FROM w.{wanted} ORDER BY 1"
    assert execute(live.server.target(into), rows) == execute(live.target, rows) != []
    said = "; ".join(journal.notes)
    for name in besides:
        assert f"w.{name}" in said
    assert ("foreign key refers_a_fkey of w.refers was left out" in said) == (wanted == "refers")


def test_single_tables_of_a_database_that_is_read_only_and_forbids_drops(live: Live) -> None:
    run_in(
        live,
        "CREATE FUNCTION never() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no drops'; END $$",
        "CREATE EVENT TRIGGER never ON sql_drop EXECUTE FUNCTION never()",
        "ALTER DATABASE DB SET transaction_timeout = '20ms'",
        "ALTER DATABASE DB SET default_transaction_read_only = on",
    )
    into = f"{live.name}_few"
    journal = live.restore(live.backup(), Wish(into=into, tables=("users",)))
    assert journal.state == "done"
    assert list(columns_of(live.server.target(into), "public", "kyb")) == ["users"]


def test_event_triggers_are_as_they_were_where_a_session_cannot_switch_them_off(
    server_of: Callable[[int], Cluster],
) -> None:
    cluster, name = server_of(16), "woven"
    create_database(cluster.target(), name)
    try:
        for statement in (
            "CREATE TABLE wanted (a int)",
            "CREATE TABLE other (a int)",
            "CREATE FUNCTION never() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'no drops'; END $$",
            "CREATE EVENT TRIGGER never ON sql_drop EXECUTE FUNCTION never()",
            "ALTER EVENT TRIGGER never ENABLE ALWAYS",
        ):
            execute(cluster.target(name), statement)
        keep_tables(quiet(cluster.target(name)), ("wanted",))
        assert list(columns_of(cluster.target(name), "public")) == ["wanted"]
        states = execute(cluster.target(name), "SELECT evtenabled::text FROM pg_event_trigger")
        assert states == [("A",)]
    finally:
        drop_database(cluster.target(), name)


# The role that restores, and where the database lives


@pytest.fixture
def least(live: Live) -> Iterator[tuple[Live, str, str]]:
    """A database of an owner of its own, made as PostgreSQL makes one; that owner, and the least role."""
    owner, role = (f"{name}_{time.monotonic_ns()}" for name in ("kyb_owner", "kyb_restore"))
    server, name = live.server.target(), f"{live.name}_owned"
    execute(server, f"CREATE ROLE {owner}")
    execute(server, f'CREATE DATABASE "{name}" OWNER {owner} TEMPLATE template0')
    owned = replace(live, environment={**live.environment, "DB_NAME": name})
    owned.settings = owned.with_settings()
    run_in(
        owned,
        "CREATE TABLE users (a serial)",
        "INSERT INTO users SELECT FROM generate_series(1, 3)",
        f"ALTER TABLE users OWNER TO {owner}",
    )
    text = (Path(__file__).parent.parent / "docs" / "roles.md").read_text()
    (script,) = re.findall(r"```sql\n(CREATE ROLE kyb_restore .*?)```", text, re.S)
    for statement in (
        script.replace("kyb_owner", owner).replace("kyb_restore", role).split(";")[:-1]
    ):
        execute(server, re.sub(r"--.*", "", statement).encode())
    yield owned, owner, role
    for found in (owned.name, *owned.databases()):
        drop_database(server, found)
    for each in (role, owner):
        execute(server, f"DROP ROLE IF EXISTS {each}")


def test_the_least_role_restores_a_database_as_postgresql_makes_one(
    least: tuple[Live, str, str],
) -> None:
    owned, owner, role = least
    backup = owned.backup()
    execute(owned.target, "DELETE FROM users")
    owned.restore(backup, WITHOUT_SAFETY, RECOVERY__USER=role)
    assert owned.users() == 3
    assert execute(
        owned.target, "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()"
    ) == [(owner,)]  # fmt: skip


def test_the_least_role_makes_the_roles_that_are_missing(least: tuple[Live, str, str]) -> None:
    owned, owner, role = least
    reader, chief = (f"{name}_{time.monotonic_ns()}" for name in ("reader", "chief"))
    server = owned.server.target()
    statements = (
        f"CREATE ROLE {reader} LOGIN PASSWORD ' NOSUPERUSER' CONNECTION LIMIT 3",
        f"GRANT {owner} TO {reader}",
        f"CREATE ROLE {chief} NOINHERIT CREATEDB",
        f"GRANT {chief} TO {reader}",
        f"GRANT SELECT ON users TO {reader}",
    )
    attributes = (
        "SELECT rolcanlogin, rolinherit, rolcreatedb, rolconnlimit, rolsuper, rolreplication, rolbypassrls "
        "FROM pg_roles WHERE rolname = ANY (%s) ORDER BY rolname"
    )
    try:
        run_in(owned, *statements)
        backup = owned.backup()
        before = execute(server, attributes, ([reader, chief],))
        run_in(owned, f"DROP OWNED BY {reader}, {chief}")
        for each in (reader, chief):
            execute(server, f"DROP ROLE {each}")
        journal = owned.restore(backup, WITHOUT_SAFETY, RECOVERY__USER=role)
        assert execute(server, attributes, ([reader, chief],)) == before
        assert execute(server, "SELECT pg_has_role(%s, %s, 'MEMBER')", (reader, chief)) == [(True,)]
        assert [n for n in journal.notes if f"GRANT {owner} TO {reader}" in n]  # no right to that
        # and a whole cluster that is new: the owner is missing too
        for name in (owned.name, *owned.databases()):
            drop_database(server, name)
        for each in (reader, chief, owner):
            execute(server, f"DROP ROLE {each}")
        owned.restore(backup, WITHOUT_SAFETY, RECOVERY__USER=role)
        assert owned.users() == 3
        assert execute(server, "SELECT pg_has_role(%s, %s, 'MEMBER')", (reader, owner)) == [(True,)]
    finally:
        for name in (owned.name, *owned.databases()):
            drop_database(server, name)
        for each in (reader, chief):
            execute(server, f"DROP ROLE IF EXISTS {each}")


def test_a_database_comes_back_into_its_tablespace_or_it_is_said(
    least: tuple[Live, str, str],
) -> None:
    owned, _, role = least
    server, space = owned.server.target(), f"space_{time.monotonic_ns()}"
    lives = "SELECT spcname::text FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = %s"
    execute(server, f"CREATE TABLESPACE {space} LOCATION ''")
    try:
        backup = owned.backup()
        execute(server, f'ALTER DATABASE "{owned.name}" SET TABLESPACE {space}')
        journal = owned.restore(backup, WITHOUT_SAFETY)
        assert execute(server, lives, (owned.name,)) == [(space,)]
        journal = owned.restore(backup, WITHOUT_SAFETY, RECOVERY__USER=role)
        assert execute(server, lives, (owned.name,)) == [("pg_default",)]
        assert f"GRANT CREATE ON TABLESPACE {space}" in "; ".join(journal.notes)
    finally:
        for name in (owned.name, *owned.databases()):
            drop_database(server, name)
        execute(server, f"DROP TABLESPACE {space}")


# Whose a database is


def test_a_database_that_somebody_else_has_under_such_a_name_stays(live: Live) -> None:
    backup, after = live.backup(), change(live)
    restore = DatabaseRestore.begin(live.settings, backup, WITHOUT_SAFETY, now=utc_now())
    others = (restore.journal.new_name, restore.journal.replaced_name)
    for name in others:
        create_database(live.server.target(), name)
        execute(live.server.target(name), "CREATE TABLE precious AS SELECT 1")
    journal = restore.run()
    assert journal.state == "done"
    assert live.users() == after - 7
    assert set(live.databases()) == {*others, journal.replaced_name}


def test_only_what_a_restore_made_is_dropped_after_a_kill_whatever_its_name(live: Live) -> None:
    restore = DatabaseRestore.begin(live.settings, live.backup(), WITHOUT_SAFETY, now=utc_now())
    server, journal = live.server.target(), restore.journal
    name = journal.new_name

    def left(*, table: bool, comment: str | None) -> bool:
        create_database(server, name)
        if table:
            execute(live.server.target(name), "CREATE TABLE precious AS SELECT 1")
        execute(
            server, sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), comment)
        )
        drop_restoring(server, journal)
        found = name in live.databases()
        drop_database(server, name)
        return found

    assert left(table=False, comment=None)  # before it came to the making
    for step in STEPS[: STEPS.index("create")]:
        restore.step(step)
    journal.steps.append(Step(name="create", began_at=utc_now()))
    assert not left(table=False, comment=None)  # killed between the making and the mark
    assert left(table=True, comment=None)
    assert left(table=True, comment="gold")
    assert left(table=False, comment="gold")
    assert not left(table=True, comment=f"being restored by {journal.restore_id}")


def test_a_new_database_is_marked_until_its_comment_is_that_of_the_source(live: Live) -> None:
    comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
    for text in (None, "gold"):
        execute(live.server.target(), sql.SQL("COMMENT ON DATABASE {} IS {}").format(
            sql.Identifier(live.name), text))  # fmt: skip
        backup = live.backup(f"b_{text}")
        restore = DatabaseRestore.begin(live.settings, backup, WITHOUT_SAFETY, now=utc_now())
        for step in STEPS[: STEPS.index("load")]:
            restore.step(step)
        ((said,),) = execute(live.server.target(), comment, (restore.journal.new_name,))
        assert restore.journal.restore_id in said
        restore.run()
        assert execute(live.server.target(), comment, (live.name,)) == [(text,)]


# What must not be replaced, and what must not replace


def test_an_old_scripts_backup_without_a_table_replaces_nothing(live: Live) -> None:
    before, empty = live.users(), f"{live.name}_empty"
    create_database(live.server.target(), empty)
    dump = subprocess.run(
        [live.server.programs.path("pg_dump"), "--format=plain"],
        env={**os.environ, **live.server.target(empty).environment()}, capture_output=True, check=True,
    ).stdout  # fmt: skip
    folder = live.settings.repository / "database" / "full" / "by_script"
    folder.mkdir(parents=True)
    content = gzip.compress(dump)
    (folder / "database.sql.gz").write_bytes(content)
    (folder / "backup_metadata.json").write_text(json.dumps({
        "backup_id": "by_script", "timestamp": "2026-01-31T02:00:00Z", "type": "full",
        "database": {"host": "h", "port": "5432", "name": live.name, "user": "u"},
        "backup_file": "/x/database.sql.gz", "file_size": str(len(content)),
        "checksum": hashlib.sha256(content).hexdigest(),
    }))  # fmt: skip
    with pytest.raises(RestoreFailed, match="holds no table at all") as failed:
        live.restore(live.find("by_script"), WITHOUT_SAFETY)
    assert "--into" in str(failed.value.hint)
    assert (live.users(), live.calls()) == (before, [])
    look = f"{live.name}_look"
    assert live.restore(live.find("by_script"), Wish(into=look)).state == "done"


@pytest.fixture
def subscriber(live: Live) -> Iterator[Live]:
    """A live database with a subscription, which is disabled."""
    run_in(
        live,
        "CREATE SUBSCRIPTION news CONNECTION 'host=/nowhere dbname=x' PUBLICATION p WITH (connect = false)",
    )
    yield live
    for name in (live.name, *live.databases()):
        forget_subscriptions(live.server.target(name))


def test_a_half_restored_database_with_a_subscription_goes(subscriber: Live) -> None:
    backup, after = subscriber.backup(), change(subscriber)
    end = b"\n--\n-- PostgreSQL database dump complete"
    alter_dump(backup, lambda text: text.replace(end, b"\nSELECT 1/0;" + end))
    with pytest.raises(RestoreFailed, match=r"division by zero.*is as it was"):
        subscriber.restore(subscriber.find("good"), WITHOUT_SAFETY)
    assert subscriber.databases() == []
    alter_dump(backup, lambda text: text.replace(b"\nSELECT 1/0;", b""))
    journal = subscriber.restore(subscriber.find("good"), WITHOUT_SAFETY)
    assert subscriber.users() == after - 7
    assert "ALTER SUBSCRIPTION news ENABLE" in "; ".join(journal.notes)
    notes = forget_subscriptions(subscriber.target)
    assert notes == ["the slot news of the subscription news stays on its publisher"]
    assert forget_subscriptions(subscriber.target) == []


def test_a_database_that_subscribes_does_not_change_places(subscriber: Live) -> None:
    backup, after = subscriber.backup(), change(subscriber)
    run_in(subscriber, "ALTER SUBSCRIPTION news ENABLE")
    with pytest.raises(Refused, match=r"subscribes \(news\)") as refused:
        subscriber.restore(backup, WITHOUT_SAFETY)
    assert "DISABLE" in str(refused.value.hint)
    assert (subscriber.users(), subscriber.databases(), subscriber.calls()) == (after, [], [])
    run_in(subscriber, "ALTER SUBSCRIPTION news DISABLE")
    subscriber.restore(backup, WITHOUT_SAFETY)
    assert subscriber.users() == after - 7


def test_what_came_since_the_check_is_found_before_the_service_stops(live: Live) -> None:
    backup, after = live.backup(), change(live)
    restore = DatabaseRestore.begin(live.settings, backup, WITHOUT_SAFETY, now=utc_now())
    for step in STEPS[: STEPS.index("stop")]:
        restore.step(step)
    with connect(live.target, autocommit=False) as connection:
        connection.execute("CREATE TABLE prepared (a int)")
        connection.execute("PREPARE TRANSACTION 'late'")
    try:
        with pytest.raises(Refused, match=r"prepared transactions.*late"):
            restore.run()
    finally:
        execute(live.target, "ROLLBACK PREPARED 'late'")
    assert "stop" not in live.calls()
    assert (live.users(), live.databases()) == (after, [])
