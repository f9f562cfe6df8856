"""Surroundings that led a proof astray: environments, settings, encodings, DDL at the wrong moment.

Each was found by attacking the product, and is a false alarm, a crash, or worse, a restore test that
reached another server.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg import sql

from kyb_backup_pipeline.engine import evidence, full_backup
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import (
    create_database,
    drop_database,
    execute,
    settings_file,
    settings_for,
)
from kyb_backup_pipeline_tests.running import Cli


@pytest.fixture
def small(server: Cluster) -> Iterator[Target]:
    """A database with one table."""
    create_database(server.target(), "small")
    target = server.target("small")
    execute(target, "CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
    yield target
    drop_database(server.target(), "small")


@pytest.fixture
def own_settings(small: Target, tmp_path: Path, drills: Path) -> Settings:
    return settings_for(small, tmp_path / "backups", drills)


def proved(settings: Settings) -> Proof:
    """Take a backup and drill it; it must pass with nothing found."""
    backup = take_full_backup(settings, Request(), now=utc_now())
    proof = drill_full_backup(settings, backup, now=utc_now())
    assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
    return proof


def test_a_restore_test_never_reaches_the_server_that_the_environment_names(
    own_settings: Settings, tmp_path: Path, server: Cluster
) -> None:
    before = execute(server.target(), "SELECT datname FROM pg_database ORDER BY 1")
    environment = {
        "PGHOSTADDR": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres",
        "PGSERVICE": "elsewhere", "PGOPTIONS": "-c statement_timeout=1", "PGDATABASE": "postgres",
        "PGCLIENTENCODING": "LATIN1",
    }  # fmt: skip
    cli = Cli(settings_file(own_settings, tmp_path / "kyb.toml"), environment)
    for command in (["backup", "full", "--id", "one"], ["verify", "one"], ["drill", "one"]):
        run = cli.run(*command)
        assert run.returncode == 0, run.stderr
    assert execute(server.target(), "SELECT datname FROM pg_database ORDER BY 1") == before


@pytest.mark.parametrize(
    "setting",
    [
        "transaction_timeout = '100ms'", "idle_session_timeout = '1ms'", "statement_timeout = '1ms'",
        "default_transaction_read_only = on", "role = 'ordinary_role'", "client_encoding = 'LATIN1'",
        "search_path = 'nowhere'", "app.secret = 'a secret'",
    ],
)  # fmt: skip
def test_settings_of_the_database_do_not_disturb_its_restore_test(
    own_settings: Settings, server: Cluster, setting: str
) -> None:
    execute(server.target(), "CREATE ROLE ordinary_role IN ROLE pg_read_all_data")
    try:
        execute(server.target(), sql.SQL("ALTER DATABASE small SET " + setting))
        backup = take_full_backup(own_settings, Request(backup_id="after"), now=utc_now())
    finally:
        execute(server.target(), "ALTER DATABASE small RESET ALL")
        execute(server.target(), "DROP ROLE ordinary_role")
    proof = drill_full_backup(own_settings, backup, now=utc_now())
    assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary


def test_a_bootstrap_role_that_may_not_log_in_or_is_another_does_not_disturb(
    own_settings: Settings, server: Cluster
) -> None:
    other = replace(server.target(), user="second_superuser", options={"role": "none"})
    execute(server.target(), "CREATE ROLE second_superuser SUPERUSER LOGIN")
    database = own_settings.database.model_copy(update={"user": "second_superuser"})
    try:
        execute(other, "CREATE ROLE other_role")
        execute(other, "ALTER ROLE postgres SET role = 'other_role'")
        execute(other, "ALTER ROLE postgres NOLOGIN")
        backup = take_full_backup(
            own_settings.model_copy(update={"database": database}),
            Request(backup_id="odd"),
            now=utc_now(),
        )
    finally:
        execute(other, "ALTER ROLE postgres LOGIN")
        execute(other, "ALTER ROLE postgres RESET ALL")
        execute(server.target(), "DROP ROLE other_role")
        execute(server.target(), "DROP ROLE second_superuser")
    proof = drill_full_backup(own_settings, backup, now=utc_now())
    assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary


def test_an_event_trigger_on_login_adds_no_rows_to_what_is_compared(
    own_settings: Settings, small: Target
) -> None:
    execute(small, "CREATE TABLE logins (at timestamptz DEFAULT now())")
    execute(small, "CREATE FUNCTION note_login() RETURNS event_trigger LANGUAGE plpgsql AS "
                   "'BEGIN INSERT INTO public.logins DEFAULT VALUES; END'")  # fmt: skip
    execute(small, "CREATE EVENT TRIGGER on_login ON login EXECUTE FUNCTION note_login()")
    execute(small, "ALTER EVENT TRIGGER on_login ENABLE ALWAYS")
    proved(own_settings)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_database_in_another_encoding_with_names_beyond_ascii(
    server: Cluster, tmp_path: Path, drills: Path, encoding: str, form: str
) -> None:
    create = sql.SQL("CREATE DATABASE old ENCODING {} TEMPLATE template0")
    execute(server.target(), create.format(sql.Literal(encoding)))
    target = server.target("old")
    try:
        execute(target, 'CREATE TABLE "Größe" AS SELECT \'Straße\'::text AS "Maß"')
        execute(target, 'CREATE INDEX "schön" ON "Größe" ("Maß")')
        execute(target, "ALTER DATABASE old SET app.title TO 'größer'")
        proved(settings_for(target, tmp_path / "r", drills, KYB_BACKUP__FORMAT=form))
    finally:
        drop_database(server.target(), "old")


@pytest.mark.parametrize("name", ["a=b", "it's", "postgresql://x", "back\\slash", 'qu"ote', "100%"])
@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_database_with_a_difficult_name(
    server: Cluster, tmp_path: Path, drills: Path, name: str, form: str
) -> None:
    create_database(server.target(), name)
    try:
        target = server.target(name)
        execute(target, "CREATE TABLE t AS SELECT 1 AS n")
        proved(settings_for(target, tmp_path / "r", drills, KYB_BACKUP__FORMAT=form))
    finally:
        drop_database(server.target(), name)


@pytest.mark.parametrize("name", ["postgres", "template1"])
def test_the_databases_every_cluster_has_can_be_backed_up(
    server: Cluster, tmp_path: Path, drills: Path, name: str
) -> None:
    proved(settings_for(server.target(name), tmp_path / "r", drills))


CHANGES: dict[str, tuple[str, str]] = {
    "a function renamed": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION f() RENAME TO g",
    ),
    "a domain renamed": ("CREATE DOMAIN d AS int", "ALTER DOMAIN d RENAME TO d2"),
    "a collation dropped": ('CREATE COLLATION c FROM "C"', "DROP COLLATION c"),
    "a sequence dropped": ("CREATE SEQUENCE q", "DROP SEQUENCE q"),
    "a function made": ("SELECT 1", "CREATE FUNCTION n() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    "a grant made": ("CREATE VIEW v AS SELECT 1 AS n", "GRANT SELECT ON v TO PUBLIC"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_ddl_between_the_snapshot_and_the_evidence_is_no_alarm(
    own_settings: Settings, small: Target, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first, then = CHANGES[change]
    execute(small, sql.SQL(first))
    read: Callable[..., object] = evidence.read_sequences
    pending = [then]

    def changed_meanwhile(*arguments: object) -> object:
        if pending:
            execute(small, sql.SQL(pending.pop()))
        return read(*arguments)

    monkeypatch.setattr(full_backup, "read_sequences", changed_meanwhile)
    proved(own_settings)
    assert not pending


def test_objects_that_are_not_dumped_are_not_missed(own_settings: Settings, small: Target) -> None:
    with connect(small) as session:
        session.execute("SET allow_system_table_mods = on")
        session.execute("CREATE TEMP TABLE fleeting (a int, b int)")
        session.execute("CREATE STATISTICS public.of_it ON a, b FROM fleeting")
        session.execute('CREATE COLLATION pg_catalog.imported FROM "C"')
        try:
            proved(own_settings)
        finally:
            session.execute("DROP COLLATION pg_catalog.imported")


def test_a_view_called_users_is_not_asked(own_settings: Settings, small: Target) -> None:
    execute(small, "CREATE VIEW users AS SELECT current_setting('app.tenant') AS tenant")
    assert proved(own_settings).figures["smoke_queries"] == 0


@pytest.mark.parametrize("query", ["SELECT false", "SELECT 1 WHERE false", "SELECT * FROM nothing"])
def test_a_smoke_query_that_does_not_answer_fails(
    small: Target, tmp_path: Path, drills: Path, query: str
) -> None:
    settings = settings_for(small, tmp_path / "r", drills)
    asked = settings.restore_test.model_copy(update={"smoke_queries": (query, "SELECT 1")})
    settings = settings.model_copy(update={"restore_test": asked})
    backup = take_full_backup(settings, Request(), now=utc_now())
    proof = drill_full_backup(settings, backup, now=utc_now())
    assert proof.verdict == "failed"
    (finding,) = proof.findings
    assert query in finding.object


def test_secrets_among_database_settings_stay_in_their_file(
    own_settings: Settings, server: Cluster
) -> None:
    execute(server.target(), "ALTER DATABASE small SET app.secret TO 'hunter2-secret'")
    backup = take_full_backup(own_settings, Request(), now=utc_now())
    proof = drill_full_backup(own_settings, backup, now=utc_now())
    assert "hunter2-secret" in (backup.folder / "database_settings.sql").read_text()
    manifest = backup.require_manifest().model_dump_json()
    assert "hunter2-secret" not in manifest + proof.model_dump_json()
    assert "hunter2-secret" not in json.dumps((backup.folder / "evidence.json").read_text())


def test_names_that_are_no_utf_8_are_told_and_can_be_backed_up_without_evidence(
    server: Cluster, tmp_path: Path, drills: Path
) -> None:
    execute(
        server.target(),
        "CREATE DATABASE latin ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
    )
    target = server.target("latin")
    try:
        statement = 'CREATE TABLE "gr\xf6\xdfe" AS SELECT 1 AS n'.encode("latin-1")
        environment = {**target.environment(), "PGCLIENTENCODING": "SQL_ASCII"}
        psql: list[str | Path] = [server.programs.path("psql"), "-X", "-v", "ON_ERROR_STOP=1"]
        subprocess.run(psql, input=statement, env=environment, check=True, capture_output=True)
        settings = settings_for(target, tmp_path / "backups", drills)
        with pytest.raises(BackupFailed, match="no UTF-8") as failed:
            take_full_backup(settings, Request(), now=utc_now())
        assert 'backup.evidence = "none"' in str(failed.value)
        without = settings_for(target, tmp_path / "b", drills, KYB_BACKUP__EVIDENCE="none")
        backup = take_full_backup(without, Request(), now=utc_now())
        proof = drill_full_backup(without, backup, now=utc_now())
        assert proof.verdict == "passed", proof.summary
    finally:
        drop_database(server.target(), "latin")
