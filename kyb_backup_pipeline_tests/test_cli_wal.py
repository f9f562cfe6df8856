"""The command line of base backups, increments and recovery, as an operator uses it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyb_backup_pipeline_tests.conftest import execute, settings_file
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@pytest.fixture
def primary(place: Path, tmp_path: Path, drills: Path) -> Iterator[Primary]:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) AS n")
        yield primary


@pytest.fixture
def cli(primary: Primary, tmp_path: Path) -> Cli:
    return Cli(settings_file(primary.settings, tmp_path / "kyb.toml"))


def test_from_a_base_backup_to_a_recovered_folder(cli: Cli, primary: Primary, place: Path) -> None:
    run = cli.run("backup", "incremental")
    assert (run.returncode, "HINT: kyb-backup backup base" in run.stderr) == (5, True)
    run = cli.run("backup", "base", "--id", "the_base", "--label", "first")
    assert run.returncode == 0, run.stderr
    assert "consistent from 0/" in run.stdout
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    run = cli.run("backup", "incremental", "--id", "first", "--json")
    manifest = json.loads(run.stdout)
    assert (manifest["wal"]["base"], manifest["type"]) == ("the_base", "incremental")
    listed = json.loads(cli.run("list", "--json").stdout)
    assert [(line["id"], line["kind"]) for line in listed] == [
        ("first", "incremental"), ("the_base", "base"),
    ]  # fmt: skip
    assert json.loads(cli.run("show", "first", "--json").stdout)["wal"]["markers"]
    assert cli.run("show", "the_base").returncode == 0
    assert cli.run("verify", "--all").returncode == 0
    run = cli.run("drill", "--at", "latest", "--json")
    assert (run.returncode, json.loads(run.stdout)["figures"]["rows"]) == (0, 1500)
    assert "restore test" in cli.run("show", "first").stdout
    into = place / f"into-{primary.cluster.port}"
    plan = ["restore", "point-in-time", "--at", "latest", "--into", str(into)]
    run = cli.run(*plan, "--dry-run")
    assert (run.returncode, into.exists()) == (0, False)
    assert "the_base" in run.stdout
    run = cli.run(*plan, "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["markers_committed"] == 1
    assert (into / "PG_VERSION").exists()
    assert not list(into.parent.glob(f"{into.name}.*"))
    run = cli.run(*plan)
    assert (run.returncode, "exists" in run.stderr) == (12, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["drill", "--at", "yesterday"], 2, "is no moment to recover to"),
        (["drill", "--at", "0/ZZ"], 2, "is no position in the log"),
        (["drill", "the_base", "--at", "latest"], 2, "contradict each other"),
        (["drill", "the_base"], 2, "drill --at latest"),
        (["drill", "--at", "2099-01-01"], 12, "outside of what the repository covers"),
        (["drill", "--at", "0/1"], 12, "it covers the_base"),
        (["restore", "point-in-time", "--at", "2001-01-01", "--into", "/tmp/x"], 12, "covers"),
        (["restore", "point-in-time", "--at", "latest", "--into", "/nowhere/x"], 12, "not there"),
        (["backup", "base", "--id", "the_base"], 2, "in use"),
        (["backup", "base", "--id", "../x"], 2, "not a valid backup id"),
        (["backup", "incremental", "--id", "wal"], 2, "not a valid backup id"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    cli: Cli, primary: Primary, arguments: list[str], code: int, said: str
) -> None:
    primary_base = cli.run("backup", "base", "--id", "the_base")
    assert primary_base.returncode == 0
    run = cli.run(*arguments)
    assert run.returncode == code, run.stderr
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_check_and_list_name_a_hole_and_a_slot_in_trouble(cli: Cli, primary: Primary) -> None:
    cli.run("backup", "base")
    primary.sql("INSERT INTO t SELECT 1", "SELECT pg_switch_wal()", "INSERT INTO t SELECT 2")
    cli.run("backup", "incremental", "--id", "first")
    run = cli.run("check")
    assert run.returncode == 0, run.stdout
    assert "slot: kyb_backup keeps" in run.stdout
    wal = primary.repository.find("first").require_manifest().require_wal()
    victim = primary.repository.wal.find(wal.segments[1].name)
    assert victim is not None
    victim.path.unlink()
    run = cli.run("check")
    assert (run.returncode, victim.name in run.stdout) == (3, True)
    assert victim.name in cli.run("list").stderr
    primary.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'", "SELECT pg_reload_conf()")
    for _ in range(8):
        primary.sql("INSERT INTO t SELECT 1", "SELECT pg_switch_wal()")
    primary.sql("CHECKPOINT")
    run = cli.run("check")
    assert "has lost WAL that was not fetched" in run.stdout
    primary.sql("SELECT pg_drop_replication_slot('kyb_backup')")
    assert "is made by the first base backup" in cli.run("check").stdout


def test_check_names_missing_rights_and_an_archive_that_is_off(
    primary: Primary, tmp_path: Path
) -> None:
    execute(primary.target, "CREATE ROLE weak LOGIN REPLICATION")
    execute(primary.target, "GRANT pg_read_all_data TO weak")
    file = settings_file(primary.settings, tmp_path / "kyb.toml")
    run = Cli(file, {"DB_USER": "weak"}).run("check")
    assert "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO weak" in run.stdout
    archive = {"KYB_WAL__SOURCE": "archive", "KYB_WAL__INBOX": str(tmp_path)}
    run = Cli(file, archive).run("check")
    assert "archive_mode = on" in run.stdout
    assert f"kyb-wal-push --inbox {tmp_path} %p" in run.stdout
