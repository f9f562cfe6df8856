"""Ugly databases stay green: everything legitimate that trips a dump, a restore or a comparison.

Each on majors 15 (where installed), 16 and 18, in both formats, at rest and under write traffic.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import (
    create_database,
    execute,
    installed_majors,
    settings_for,
)

_HERE = Path(__file__).parent / "databases"
_BYSTANDERS = 3


@pytest.fixture(scope="module", params=installed_majors())
def ugly(
    request: pytest.FixtureRequest, server_of: Callable[[int], Cluster], place: Path
) -> Iterator[Target]:
    """The ugly database, with a tablespace of its own and a comment and grants on the database."""
    cluster = server_of(request.param)
    disk = place / f"fast disk of {request.param}"
    disk.mkdir(mode=0o700)
    if cluster.account is not None:
        os.chown(disk, cluster.account.uid, cluster.account.gid)
    execute(cluster.target(), f"CREATE TABLESPACE \"Fast disk\" LOCATION '{disk}'")
    create_database(cluster.target(), "Ugly db")
    target = cluster.target("Ugly db")
    process.run(
        [
            cluster.programs.path("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1",
            f"--file={_HERE / 'ugly.sql'}",
        ],
        env=target.environment(),
        deadline=300,
    )  # fmt: skip
    with quiet_session(target) as connection:
        connection.execute(
            'CREATE TABLE public."in a tablespace" TABLESPACE "Fast disk" AS SELECT 1 AS n'
        )
        connection.execute(
            'CREATE INDEX "index there" ON public."in a tablespace" (n) TABLESPACE "Fast disk"'
        )
    yield target
    with quiet_session(target) as connection:
        for (name,) in connection.execute("SELECT subname FROM pg_subscription").fetchall():
            connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))
    execute(cluster.target(), 'DROP DATABASE "Ugly db" WITH (FORCE)')
    execute(cluster.target(), 'DROP TABLESPACE "Fast disk"')
    disk.rmdir()  # the same worker may make it all once more


@contextmanager
def quiet_session(target: Target) -> Iterator[psycopg.Connection]:
    """A session in which the database's event triggers let DDL pass."""
    with connect(target) as connection:
        connection.execute("SET ugly.permit_ddl = 'on'")
        connection.execute("SET statement_timeout = 0")
        yield connection


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_an_ugly_database_at_rest_is_restored_and_equal(
    ugly: Target, tmp_path: Path, drills: Path, form: str
) -> None:
    prove(ugly, tmp_path, drills, form)


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_an_ugly_database_under_write_traffic_is_restored_and_equal(
    ugly: Target, tmp_path: Path, drills: Path, form: str
) -> None:
    with traffic(ugly, sessions=_BYSTANDERS):
        prove(ugly, tmp_path, drills, form)


def prove(target: Target, tmp_path: Path, drills: Path, form: str) -> None:
    """Back up, verify, restore and compare: all must pass, with nothing found."""
    settings = settings_for(
        target,
        tmp_path / "backups",
        drills,
        KYB_BACKUP__FORMAT=form,
        KYB_BACKUP__LOCK_TIMEOUT="1",
        KYB_BACKUP__LOCK_ATTEMPTS="20",
    )
    backup = take_full_backup(settings, Request(), now=utc_now())
    proof = verify_backup(Repository(settings.repository), backup, settings=settings, now=utc_now())
    assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())
    proof = drill_full_backup(settings, backup, now=utc_now())
    assert (proof.verdict, proof.findings) == ("passed", ()), proof.model_dump_json(indent=1)
    assert proof.figures["objects"] > 300
    assert proof.figures["rows"] > 1000


@contextmanager
def traffic(target: Target, *, sessions: int) -> Iterator[None]:
    """Sessions that write all the time, one of them with a TRUNCATE now and then."""
    text = (_HERE / "traffic.sql").read_text()
    steps = [step.strip() for step in text.split("-- @step")[1:]]
    over = threading.Event()
    failures: list[psycopg.Error] = []
    rounds = [0] * sessions

    def write(number: int) -> None:
        try:
            with quiet_session(target) as connection:
                while not over.is_set():
                    for step in steps:
                        connection.execute(step.encode())
                    rounds[number] += 1
        except psycopg.Error as error:
            failures.append(error)

    def truncate() -> None:
        try:
            with quiet_session(target) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS public.truncated (n int)")
                while not over.wait(0.7):
                    connection.execute("TRUNCATE public.truncated")
                    connection.execute("INSERT INTO public.truncated VALUES (1), (2)")
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(sessions)]
    threads.append(threading.Thread(target=truncate))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert min(rounds) > 0, "the traffic must have gone on"
