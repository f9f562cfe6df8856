"""The disaster: a database that is dropped, a data folder that is gone, a Dagster that forgot everything.

Backups come from Dagster's jobs while clients write; every recovery goes by the command line alone, which is
given the repository and the settings, and what comes back equals the evidence.
"""

import contextlib
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kyb_backup_pipeline.defs.partitions import BASE, FULL, INCREMENTAL
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.comparison import compare
from kyb_backup_pipeline.engine.errors import DatabaseUnreachable
from kyb_backup_pipeline.engine.evidence import (
    EVIDENCE_FILE,
    parse_evidence,
    take_evidence_parallel,
)
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.progress import silent
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox import sample_data
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import create_database, execute, settings_file, settings_for
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.test_dagster import new_instance, run, tick
from kyb_backup_pipeline_tests.wal_clusters import running_cluster

_NAME = "kyb_platform"


@contextlib.contextmanager
def traffic(cluster: Cluster) -> Iterator[None]:
    """Clients that write all the time."""
    done = threading.Event()

    def write() -> None:
        with connect(cluster.target(_NAME)) as connection:
            while not done.is_set():
                connection.execute("INSERT INTO traffic DEFAULT VALUES")

    clients = [threading.Thread(target=write) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.join()


def equals_its_evidence(cluster: Cluster, repository: Repository, backup_id: str) -> bool:
    evidence = parse_evidence((repository.find(backup_id).folder / EVIDENCE_FILE).read_bytes())
    there = take_evidence_parallel(cluster.target(_NAME), like=evidence, jobs=2, report=silent)
    return not compare(evidence, there).differences


def test_everything_comes_back_by_the_command_line_alone(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    with running_cluster(place, 18) as cluster, new_instance() as instance:
        create_database(cluster.target(), _NAME)
        with connect(cluster.target(_NAME), autocommit=False) as connection:
            sample_data.create_schema(connection)
            sample_data.load(connection, businesses=100)
            connection.execute("CREATE TABLE traffic (n bigint GENERATED ALWAYS AS IDENTITY)")
            connection.commit()
        settings = settings_for(cluster.target(_NAME), tmp_path / "backups", drills)
        file = settings_file(settings, tmp_path / "kyb_backup.toml")
        text = "[application]\nstop_command = []\nstart_command = []\n[base_backup]\nmax_age = 999999\n"
        file.write_text(file.read_text() + text)
        engine, cli = EngineResource(config_file=str(file)), Cli(file)
        repository = Repository(settings.repository)
        with traffic(cluster):
            assert run(instance, engine, "base_backup_job", "base_1").success
            assert run(instance, engine, "full_backup_job", "full_1").success
            assert run(instance, engine, "incremental_backup_job", "incr_1").success
        # the database is dropped
        execute(cluster.target(), f"DROP DATABASE {_NAME}")
        with pytest.raises(DatabaseUnreachable, match="does not exist"):
            connect(cluster.target(_NAME))
        back = cli.run("restore", "database", "full_1", "--yes")
        assert back.returncode == 0, back.stderr
        assert equals_its_evidence(cluster, repository, "full_1")
        # life goes on, and is backed up
        with traffic(cluster):
            assert run(instance, engine, "base_backup_job", "base_2").success
        rows = int(execute(cluster.target(_NAME), "SELECT count(*) FROM traffic")[0][0])
        taken = cli.run("backup", "incremental", "--id", "incr_2")
        assert taken.returncode == 0, taken.stderr
        # the server dies, and its data folder is gone
        pid = cluster.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shutil.rmtree(cluster.data)
        with pytest.raises(DatabaseUnreachable):
            connect(cluster.target())
        into = place / f"disaster-{cluster.port}"
        back = cli.run("restore", "point-in-time", "--at", "latest", "--into", str(into), "--yes")
        assert back.returncode == 0, back.stderr
        shutil.move(into, cluster.data)
        cluster.start()
        assert execute(cluster.target(_NAME), "SELECT count(*) FROM traffic") == [(rows,)]
    # Dagster has lost its database: the repository tells it everything
    with new_instance() as fresh:
        tick(fresh, engine)
        assert FULL.listed(fresh) == {"full_1"}
        assert BASE.listed(fresh) == {"base_1", "base_2"}
        assert INCREMENTAL.listed(fresh) == {"incr_1", "incr_2"}
    assert cli.run("verify", "--all").returncode == 0


@pytest.mark.parametrize("passwords", [True, False])
def test_a_bare_machine_needs_the_repository_and_the_settings_alone(
    place: Path, tmp_path: Path, drills: Path, passwords: bool
) -> None:
    """Roles come first, with their passwords where those could be read; the others are named."""
    password = "not a real one"
    with running_cluster(place, 18) as old:
        statements = [f"CREATE ROLE owner LOGIN PASSWORD '{password}'", f"CREATE DATABASE {_NAME} OWNER owner",
                      "CREATE ROLE reader LOGIN PASSWORD 'another'", "GRANT reader TO owner",
                      "CREATE ROLE dumper LOGIN"]  # fmt: skip
        for statement in statements:
            execute(old.target(), statement)
        with connect(old.target(_NAME)) as connection:
            connection.execute("CREATE TABLE users AS SELECT generate_series(1, 100) AS n")
            connection.execute("ALTER TABLE users OWNER TO owner")
            connection.execute("GRANT SELECT ON users TO reader, dumper")
        settings = settings_for(old.target(_NAME), tmp_path / "backups", drills,
                                **({} if passwords else {"DB_USER": "dumper"}))  # fmt: skip
        take_full_backup(settings, Request(backup_id="good"), now=utc_now())
    with running_cluster(place, 18) as new:
        settings = settings_for(new.target(_NAME), tmp_path / "backups", drills)
        file = settings_file(settings, tmp_path / "kyb_backup.toml")
        file.write_text(file.read_text() + "[application]\nstop_command = []\nstart_command = []\n")
        run = Cli(file).run("restore", "database", "good", "--yes")
        assert run.returncode == 0, run.stderr
        assert execute(new.target(_NAME), "SELECT count(*) FROM users") == [(100,)]
        owners = "SELECT tableowner, has_table_privilege('reader', 'users', 'SELECT') FROM pg_tables WHERE tablename = 'users'"
        assert execute(new.target(_NAME), owners) == [("owner", True)]
        assert execute(new.target(), "SELECT pg_has_role('owner', 'reader', 'MEMBER')") == [(True,)]
        set_passwords = re.findall(r"^set a password: ALTER ROLE (\w+) PASSWORD", run.stdout, re.M)
        login = replace(new.target(_NAME), host="127.0.0.1", user="owner", password=password)
        if passwords:
            assert set_passwords == []
            connect(login).close()
        else:
            assert {"owner", "reader"} <= set(set_passwords)
            with pytest.raises(DatabaseUnreachable):
                connect(login)
