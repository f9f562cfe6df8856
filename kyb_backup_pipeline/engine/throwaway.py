"""Throwaway clusters: a PostgreSQL of our own for one restore test, gone without a trace after it.

Each has its own folder with data and a Unix socket in it, no TCP, and is tuned for speed since
nothing in it is kept. Where we are root the server runs as an unprivileged account. It dies with us
(``process``); what a kill left behind, the next run sweeps: a folder whose owner's lock can be had
has no owner any more.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import CouldNotVerify, DatabaseUnreachable
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.postgres import (
    Programs,
    Target,
    connect,
    reachable_programs,
    server_account,
    server_programs,
)
from kyb_backup_pipeline.engine.settings import Settings

_log = logging.getLogger(__name__)

PREFIX = "kyb-throwaway-"
_OWNER = "owner.lock"
_START_TIMEOUT = 60.0
_SOCKET_PATH_LIMIT = 107
_MARGIN = 256 * 1024**2

_SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "archive_mode": "off",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "256MB",
    "max_connections": "100",
    "max_locks_per_transaction": "1024",
    "max_logical_replication_workers": "0",
    "allow_in_place_tablespaces": "on",
    "jit": "off",
    "huge_pages": "off",
    "log_min_messages": "fatal",
}

_SUPERUSER = "kyb-throwaway"
"""Who works on a throwaway cluster: not the bootstrap role, since what is restored of that one can
forbid it to log in, or make it another role."""

_SESSION_OPTIONS = {
    "role": "none",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
}
"""What sessions on it set, whatever the restored roles and databases set. Event triggers are off
where that can be said: those on login would write rows, or refuse us."""


def session_options(major: int) -> dict[str, str]:
    """The settings of every session on a restored cluster of this major version."""
    since_17 = {"transaction_timeout": "0", "event_triggers": "off"}
    return _SESSION_OPTIONS | (since_17 if major >= 17 else {})


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running throwaway cluster."""

    programs: Programs
    folder: Path

    def target(self, dbname: str, user: str = _SUPERUSER) -> Target:
        """A superuser's way into one of its databases."""
        return Target(
            host=str(self.folder / "s"),
            port=5432,
            dbname=dbname,
            user=user,
            sslmode="disable",
            options=session_options(self.programs.major),
        )


@contextlib.contextmanager
def throwaway_cluster(
    settings: Settings, *, major: int, superuser: str, needed_bytes: int = 0
) -> Iterator[Cluster]:
    """Run a fresh cluster of this major version for the block.

    ``superuser`` is its bootstrap role, named as the source's so that ownership stays the same.
    Raises CouldNotVerify if this machine has no such programs, no account, or no room.
    """
    with throwaway_folder(settings, major=major, needed_bytes=needed_bytes) as (
        folder, programs, account,
    ):  # fmt: skip
        try:
            _initialise(programs, folder, account, superuser)
        except process.ProcessFailed as error:
            raise CouldNotVerify(f"no throwaway cluster could be made: {error.message}") from error
        with process.start(
            [programs.path("postgres"), "-D", folder / "data", "-k", folder / "s"],
            account=account,
            cwd=folder,
            death_signal=signal.SIGQUIT,
        ) as server:
            cluster = Cluster(programs=programs, folder=folder)
            try:
                _await_start(cluster, server, superuser)
                yield cluster
            finally:
                server.stop(signal.SIGQUIT, deadline=30)


@contextlib.contextmanager
def throwaway_folder(
    settings: Settings, *, major: int, needed_bytes: int
) -> Iterator[tuple[Path, Programs, process.Account | None]]:
    """A folder for the block, with programs of this major version and the account that runs them.

    It holds the folders ``data`` and ``s`` (for the socket), both empty.
    """
    place = settings.restore_test.directory
    sweep(place)
    found = server_programs(settings.postgres, major)
    account = server_account(settings.restore_test.run_as)
    _check_room(place, needed_bytes)
    with _owned_folder(place, account) as folder:
        yield folder, reachable_programs(found, account, folder / "programs"), account


def sweep(place: Path) -> list[Path]:
    """Remove what killed runs left in ``place``; return the folders."""
    swept = []
    for folder in sorted(place.glob(f"{PREFIX}*")):
        try:
            descriptor = os.open(folder / _OWNER, os.O_RDWR)
        except FileNotFoundError:
            if time.time() - folder.stat().st_mtime < 60:
                continue  # just being made
            descriptor = None
        except OSError:
            continue  # another user's
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _log.warning("removing %s, left by a killed run", folder)
            _stop_orphan(folder / "data")
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            if descriptor is not None:
                os.close(descriptor)
    return swept


def _stop_orphan(data: Path) -> None:
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return
    if str(data) in process.command_line(pid):
        process.stop_pid(pid, signal.SIGQUIT, deadline=10)


def _check_room(place: Path, needed: int) -> None:
    if not place.is_dir():
        raise CouldNotVerify(
            f"the folder for restore tests {place} does not exist",
            hint="set restore_test.directory",
        )
    free = free_bytes(place)
    if needed and free < needed + _MARGIN:
        raise CouldNotVerify(
            f"a restore needs about {(needed + _MARGIN) / 2**30:.2f} GiB, "
            f"{free / 2**30:.2f} GiB are free in {place}",
            hint="set restore_test.directory to a larger file system",
        )


@contextlib.contextmanager
def _owned_folder(place: Path, account: process.Account | None) -> Iterator[Path]:
    with private_folder(place) as folder:
        if len(str(folder / "s" / ".s.PGSQL.5432")) > _SOCKET_PATH_LIMIT:
            raise CouldNotVerify(
                f"{place} is too long a path for a Unix socket",
                hint=f"choose a shorter restore_test.directory (at most {_SOCKET_PATH_LIMIT - 40})",
            )
        (folder / "s").mkdir(mode=0o700)
        (folder / "data").mkdir(mode=0o700)
        if account is not None:
            for path in (folder, folder / "s", folder / "data"):
                os.chown(path, account.uid, account.gid)
        yield folder


@contextlib.contextmanager
def private_folder(place: Path) -> Iterator[Path]:
    """A folder of our own for the block; one that a kill leaves, ``sweep`` takes away. Raises CouldNotVerify."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place.absolute()))
    except OSError as error:
        raise CouldNotVerify(
            f"no folder can be made in {place}: {error.strerror}",
            hint="set restore_test.directory",
        ) from error
    try:
        with open(folder / _OWNER, "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _initialise(
    programs: Programs, folder: Path, account: process.Account | None, superuser: str
) -> None:
    process.run(
        [
            programs.path("initdb"),
            f"--pgdata={folder / 'data'}",
            f"--username={superuser}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            *(["--no-data-checksums"] if programs.major >= 18 else []),
        ],
        deadline=120,
        account=account,
        cwd=folder,
    )
    wanted = {**_SERVER_SETTINGS, "shared_buffers": f"{_shared_buffers() >> 20}MB"}
    lines = [f"{name} = '{value}'\n" for name, value in wanted.items()]
    with open(folder / "data" / "postgresql.auto.conf", "a") as configuration:
        configuration.writelines(lines)


def _shared_buffers() -> int:
    """An eighth of the memory, from 128 MB to 1 GB: enough to restore out of, and others live here too."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // 8, 128 << 20), 1 << 30)


def _await_start(cluster: Cluster, server: process.Child, bootstrap: str) -> None:
    """Wait until it answers, make sure that it is ours, and make the role that works on it."""
    give_up = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            with connect(cluster.target("template1", bootstrap)) as connection:
                (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
                if data != str(cluster.folder / "data"):
                    raise CouldNotVerify(f"another server answers: its data are in {data}")
                connection.execute(
                    sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(sql.Identifier(_SUPERUSER))
                )
            return
        except DatabaseUnreachable as error:
            if not server.running() or time.monotonic() > give_up:
                log = server.stderr_tail().strip() or error.message
                raise CouldNotVerify(f"the throwaway cluster did not start: {log}") from error
            time.sleep(0.03)
