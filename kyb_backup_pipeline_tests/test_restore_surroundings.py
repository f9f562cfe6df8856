"""What a database and its server may have about them: a restore of it goes through, or says why not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_outlook import Wish
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.test_database_restore import Live, change
from kyb_backup_pipeline_tests.test_database_restore import live as live  # the fixture
from kyb_backup_pipeline_tests.wal_clusters import running_cluster

WITHOUT_SAFETY = Wish(safety_backup=False)


def run_in(live: Live, *statements: str) -> None:
    """Run statements in the live database; DB stands for its name."""
    for statement in statements:
        execute(live.target, statement.replace("DB", f'"{live.name}"').encode())


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
