"""One real PostgreSQL cluster for each major version and session, a fresh database for each test.

Majors 16 and 18 come with the embedded wheel and always run: their absence is a failure. Others run
where they are installed. As root the servers run as an unprivileged account.
"""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from backports import zstd
from psycopg import sql

from kyb_backup_pipeline.engine import config, process
from kyb_backup_pipeline.engine.postgres import (
    Target,
    connect,
    find_programs,
    server_account,
    server_programs,
)
from kyb_backup_pipeline.engine.settings import PostgresSettings, Settings
from kyb_backup_pipeline.sandbox import sample_data
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.offsite_sites import Disk, Machine, machine_in
from kyb_backup_pipeline_tests.platforms import Platform, platform_in
from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server, running_s3_server

_SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "allow_in_place_tablespaces": "on",
    "fsync": "off",
    "max_prepared_transactions": "4",
    "max_slot_wal_keep_size": "1GB",
}
_numbers = itertools.count()

_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30


def pytest_configure() -> None:
    """Work in memory where there is room: servers, repositories and restores are half as dear there."""
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK):
        return
    there = os.statvfs(_MEMORY)
    if there.f_bavail * there.f_frsize > _ROOM and not there.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


SAMPLE_BUSINESSES = 300


def installed_majors() -> list[int]:
    """All majors of which there is a server here; 16 and 18 must be among them."""
    found = {p.major for p in find_programs(PostgresSettings()) if p.has(("postgres", "initdb"))}
    return sorted(found | {16, 18})


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept in the user's state folder is kept in one of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder with a short path that an unprivileged server can reach."""
    folder = Path(tempfile.mkdtemp(prefix="kybt-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def python(place: Path) -> str:
    """A Python that has the zstd module also with ``-I -S``, and that the server's user can run; a copy
    where ours is none.
    """
    account = server_account(None)
    probe = [sys.executable, "-I", "-S", "-c", "from backports import zstd"]
    try:
        process.run(probe, deadline=30, account=account)
        return sys.executable
    except process.ProcessFailed:
        pass
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    copy, library = place / "python", Path(os.__file__).parent
    left_out = shutil.ignore_patterns("test", "site-packages", "__pycache__", "idlelib", "config-*")
    shutil.copytree(library, copy / "lib" / version, ignore=left_out)
    shutil.copytree(Path(zstd.__file__).parent.parent, copy / "lib" / version / "backports")
    (copy / "bin").mkdir()
    shutil.copy(os.path.realpath(sys.executable), copy / "bin" / version)
    return f"{copy}/bin/{version}"


@pytest.fixture(scope="session")
def server_of(place: Path) -> Iterator[Callable[[int], Cluster]]:
    """A running cluster of a major version, made at its first use."""
    running: dict[int, Cluster] = {}

    def get(major: int) -> Cluster:
        if major not in running:
            cluster = Cluster(
                folder=place / str(major),
                programs=server_programs(PostgresSettings(), major),
                account=server_account(None),
                port=free_port(),
            )
            cluster.initialise(settings=_SERVER_SETTINGS)
            cluster.start()
            running[major] = cluster
        return running[major]

    yield get
    for cluster in running.values():
        cluster.stop()


@pytest.fixture(scope="session")
def server(server_of: Callable[[int], Cluster]) -> Cluster:
    """The cluster of major 18."""
    return server_of(18)


@pytest.fixture(scope="session")
def sample(server: Cluster) -> str:
    """A database with the sample platform, to be cloned."""
    create_database(server.target(), "sample_template")
    with connect(server.target("sample_template"), autocommit=False) as connection:
        sample_data.create_schema(connection)
        sample_data.load(connection, businesses=SAMPLE_BUSINESSES)
        connection.commit()
    return "sample_template"


@pytest.fixture
def database(server: Cluster, sample: str) -> Iterator[str]:
    """A fresh database with the sample platform on the server of major 18."""
    name = f"kyb_{os.getpid()}_{next(_numbers)}"
    create_database(server.target(), name, template=sample)
    yield name
    drop_database(server.target(), name)


@pytest.fixture
def settings(server: Cluster, database: str, tmp_path: Path, drills: Path) -> Settings:
    """Settings for that database, with a repository of their own."""
    return settings_for(server.target(database), tmp_path / "backups", drills)


@pytest.fixture
def drills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for throwaway clusters; a test that leaves something there fails."""
    folder = Path(tempfile.mkdtemp(prefix="kybd-"))
    folder.chmod(0o755)
    yield folder
    left = list(folder.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"a throwaway cluster left {left}"


def settings_for(target: Target, repository: Path, drills: Path, **environment: str) -> Settings:
    """Settings for a database; ``environment`` adds variables such as ``KYB_BACKUP__LEVEL``."""
    return config.load(
        environment={
            "DB_HOST": target.host,
            "DB_PORT": str(target.port),
            "DB_NAME": target.dbname,
            "DB_USER": target.user,
            "BACKUP_DIR": str(repository),
            "KYB_RESTORE_TEST__DIRECTORY": str(drills),
            "KYB_BACKUP__MINIMUM_FREE": "0",
            **environment,
        }
    )


def settings_file(settings: Settings, path: Path) -> Path:
    """Write ``settings`` as a TOML file for a process of its own."""
    database, backup, drill = settings.database, settings.backup, settings.restore_test
    lines = [
        f'repository = "{settings.repository}"',
        "[database]",
        f'host = "{database.host}"',
        f"port = {database.port}",
        f'name = "{database.name}"',
        f'user = "{database.user}"',
        "[backup]",
        f"minimum_free = {backup.minimum_free}",
        f'format = "{backup.format}"',
        f'compression = "{backup.compression}"',
        f'evidence = "{backup.evidence}"',
        f"stall_timeout = {backup.stall_timeout}",
        f"lock_timeout = {backup.lock_timeout}",
        "[restore_test]",
        f'directory = "{drill.directory}"',
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def create_database(target: Target, name: str, *, template: str = "template0") -> None:
    """Create a database, UTF8 and locale C."""
    execute(target, sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template)))  # fmt: skip


def drop_database(target: Target, name: str) -> None:
    """Drop a database with all its sessions, subscriptions first."""
    execute(target, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def execute(target: Target, statement: Any, parameters: Any = None) -> list[Any]:
    """Run one statement in a connection of its own and return its rows."""
    with connect(target) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def open_connection(target: Target) -> psycopg.Connection:
    """A connection that the test holds open; close it."""
    return connect(target)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """An application with its folder, its running service, and keys."""
    with platform_in(tmp_path / "platform") as platform:
        yield platform


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    with running_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A folder that stands for another disk."""
    (tmp_path / "disk" / "kyb").mkdir(parents=True)
    return Disk(tmp_path / "disk")


@pytest.fixture
def machine(tmp_path: Path, disk: Disk) -> Machine:
    """A machine whose copies go to that disk."""
    return machine_in(tmp_path / "backups", disk.environment())


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    """A new bucket on it."""
    return s3.bucket()
