"""The database back: beside the live one first, in its place once it is proved, and the way back."""

import contextlib
import gzip
import hashlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from backports import zstd
from psycopg import sql

from kyb_backup_pipeline.engine import config, process
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.database_restore import STEPS, DatabaseRestore
from kyb_backup_pipeline.engine.database_settle import repair_database
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    CouldNotVerify,
    InvalidRequest,
    KybError,
    Locked,
    NotEnoughSpace,
    NotFound,
    ProofFailed,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.recovery_journal import Journal, Journals
from kyb_backup_pipeline.engine.replaced import (
    drop_replaced,
    last_swapped,
    replaced_databases,
)
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_outlook import Wish, look_ahead
from kyb_backup_pipeline.engine.rollback import roll_back
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.stepped import recorded_step
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute, settings_for
from kyb_backup_pipeline_tests.running import Cli, Run, children_of, none_alive, wait_until
from kyb_backup_pipeline_tests.wal_clusters import running_cluster


@dataclass
class Live:
    """A live database with a full backup of it, and a service that only writes down what it is told."""

    settings: Settings
    server: Cluster
    place: Path
    environment: dict[str, str]

    @property
    def name(self) -> str:
        return self.settings.database.name

    @property
    def target(self) -> Target:
        return self.server.target(self.name)

    def with_settings(self, **changes: str) -> Settings:
        added = {f"KYB_{name}": value for name, value in changes.items()}
        return config.load(environment={**self.environment, **added})

    def backup(self, backup_id: str = "good", **changes: str) -> Backup:
        settings = self.with_settings(**changes)
        return take_full_backup(settings, Request(backup_id=backup_id), now=utc_now())

    def find(self, backup_id: str) -> Backup:
        return Repository(self.settings.repository).find(backup_id)

    def restore(self, backup: Backup, wish: Wish | None = None, **changes: str) -> Journal:
        settings = self.with_settings(**changes)
        return DatabaseRestore.begin(settings, backup, wish or Wish(), now=utc_now()).run()

    def users(self, name: str | None = None) -> int:
        target = self.server.target(name or self.name)
        return int(execute(target, "SELECT count(*) FROM users")[0][0])

    def databases(self) -> list[str]:
        """Those that belong to this test, without the live one."""
        rows = execute(self.server.target(), "SELECT datname FROM pg_database ORDER BY 1")
        return [name for (name,) in rows if name.startswith(self.name) and name != self.name]

    def calls(self) -> list[str]:
        path = self.place / "service.log"
        return path.read_text().split() if path.exists() else []

    def cli(self, **changes: str) -> Cli:
        return Cli(None, {**self.environment, **{f"KYB_{k}": v for k, v in changes.items()}})

    def journals(self) -> Journals:
        return Journals.of(self.settings)


@pytest.fixture
def live(settings: Settings, server: Cluster, tmp_path: Path, drills: Path) -> Iterator[Live]:
    with living(settings, server, tmp_path, drills) as live:
        yield live


@contextlib.contextmanager
def living(settings: Settings, server: Cluster, tmp_path: Path, drills: Path) -> Iterator[Live]:
    """The live database for the block; what restores made of it goes afterwards."""
    (tmp_path / "service.sh").write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/service.log\n')
    (tmp_path / "service.sh").chmod(0o755)
    environment = {
        "DB_HOST": settings.database.host,
        "DB_PORT": str(settings.database.port),
        "DB_NAME": settings.database.name,
        "DB_USER": settings.database.user,
        "BACKUP_DIR": str(settings.repository),
        "KYB_RESTORE_TEST__DIRECTORY": str(drills),
        "KYB_BACKUP__MINIMUM_FREE": "0",
        "KYB_APPLICATION__STOP_COMMAND": f"{tmp_path}/service.sh stop",
        "KYB_APPLICATION__START_COMMAND": f"{tmp_path}/service.sh start",
        "KYB_APPLICATION__SERVICE_TIMEOUT": "5",
        "KYB_RECOVERY__HEALTH_TIMEOUT": "1",
    }
    live = Live(config.load(environment=environment), server, tmp_path, environment)
    yield live
    for name in live.databases():
        execute(
            server.target(), sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )


def change(live: Live) -> int:
    """What happens after the backup, to be undone; how many users there are then."""
    execute(live.target, "DELETE FROM audit_log")
    execute(live.target, "UPDATE businesses SET legal_name = 'wrong'")
    execute(
        live.target,
        "INSERT INTO users (email, full_name, password_hash, role) "
        "SELECT 'x' || n || '@x', 'x', 'x', 'customer' FROM generate_series(1, 7) AS n",
    )
    return live.users()


def alter_dump(backup: Backup, edit: Callable[[bytes], bytes]) -> None:
    """Change the dump of a backup, and seal it anew, so that nothing but a restore can tell."""
    path = backup.folder / "database.sql.zst"
    text = zstd.decompress(path.read_bytes())
    changed = edit(text)
    assert changed != text
    path.write_bytes(zstd.compress(changed))
    content = path.read_bytes()
    manifest = json.loads((backup.folder / "backup_metadata.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest |= {"checksum": digest, "file_size": len(content)}
    for file in manifest["files"]:
        if file["path"] == path.name:
            file |= {"size": len(content), "sha256": digest}
    seal(backup, manifest)


def seal(backup: Backup, manifest: dict[str, Any]) -> None:
    content = (json.dumps(manifest, indent=2) + "\n").encode()
    (backup.folder / "backup_metadata.json").write_bytes(content)
    (backup.folder / "backup_metadata.json.sha256").write_bytes(checksum_line(content))


# What it is for


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_the_database_is_restored_proved_and_swapped_and_the_old_one_stays(
    live: Live, form: str
) -> None:
    before = live.users()
    backup = live.backup(BACKUP__FORMAT=form)
    after = change(live)
    journal = live.restore(backup)
    assert live.users() == before
    assert live.users(journal.replaced_name) == after
    assert [step.name for step in journal.steps] == list(STEPS)
    assert all(step.seconds is not None for step in journal.steps)
    assert "rows in 18 tables equal the source's" in journal.steps[6].detail
    assert journal.state == "done"
    assert journal.interruption_seconds is not None
    assert live.calls() == ["stop", "start"]
    saved = live.find(str(journal.safety_backup))
    assert saved.require_manifest().label == "before restoring good"
    assert (
        Repository(live.settings.repository).records.latest(saved.backup_id)["verification"].verdict
        == "passed"
    )
    assert live.databases() == [journal.replaced_name]
    # and back again, with what was written in between
    aside = roll_back(live.settings, last_swapped(live.settings))
    assert (live.users(), live.users(aside)) == (after, before)
    (left,) = replaced_databases(live.settings)
    assert (left.name, left.by_backup) == (aside, "good")
    with pytest.raises(NotFound):
        last_swapped(live.settings)
    with pytest.raises(NotFound, match="no database that a restore replaced"):
        drop_replaced(live.settings, live.name)
    drop_replaced(live.settings, aside)
    assert live.databases() == []


def test_settings_owner_and_grants_of_the_database_come_along(live: Live) -> None:
    name = sql.Identifier(live.name)
    role = f"owner_{os.getpid()}_{time.monotonic_ns()}"
    execute(live.server.target(), sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        for statement in ("ALTER DATABASE {} OWNER TO {}", "GRANT CONNECT ON DATABASE {} TO {}"):
            execute(live.server.target(), sql.SQL(statement).format(name, sql.Identifier(role)))
        execute(
            live.server.target(), sql.SQL("ALTER DATABASE {} SET work_mem TO '7MB'").format(name)
        )
        backup = live.backup()
        execute(live.server.target(), sql.SQL("ALTER DATABASE {} RESET work_mem").format(name))
        live.restore(backup)
        ((owner, value),) = execute(
            live.target,
            "SELECT pg_get_userbyid(datdba), current_setting('work_mem') FROM pg_database "
            "WHERE datname = current_database()",
        )
        assert (owner, value) == (role, "7MB")
    finally:
        for found in (live.name, *live.databases()):
            execute(live.server.target(), sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(
                sql.Identifier(found)))  # fmt: skip
            execute(live.server.target(), sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(
                sql.Identifier(found), sql.Identifier(role)))  # fmt: skip
        execute(live.server.target(), sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_missing_roles_are_made_and_existing_ones_are_not_altered(live: Live) -> None:
    there, gone = (f"r{n}_{os.getpid()}_{time.monotonic_ns()}" for n in range(2))
    server = live.server.target()
    for role in (there, gone):
        execute(
            server, sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'then'").format(sql.Identifier(role))
        )
        execute(live.target, sql.SQL("GRANT SELECT ON users TO {}").format(sql.Identifier(role)))
    try:
        backup = live.backup()
        execute(live.target, sql.SQL("REVOKE ALL ON users FROM {}").format(sql.Identifier(gone)))
        execute(server, sql.SQL("DROP ROLE {}").format(sql.Identifier(gone)))
        execute(
            server, sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD 'now'").format(sql.Identifier(there))
        )
        query = "SELECT rolpassword, rolcanlogin FROM pg_authid WHERE rolname = %s"
        (now,) = execute(server, query, (there,))
        outlook = look_ahead(live.settings, backup, Wish(), now=utc_now())
        assert gone in outlook.new_roles
        assert there not in outlook.new_roles
        live.restore(backup)
        assert execute(server, query, (there,)) == [now]
        ((password, login),) = execute(server, query, (gone,))
        assert login
        assert str(password).startswith("SCRAM")
    finally:
        for found in (live.name, *live.databases()):
            for role in (there, gone):
                with connect(live.server.target(found)) as connection:
                    connection.execute(
                        sql.SQL("DO $$ BEGIN DROP OWNED BY {}; EXCEPTION WHEN undefined_object THEN END $$")
                        .format(sql.Identifier(role))
                    )  # fmt: skip
        for role in (there, gone):
            execute(server, sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def test_a_membership_that_was_taken_away_since_is_not_given_back(live: Live) -> None:
    member, group = (f"m{n}_{os.getpid()}_{time.monotonic_ns()}" for n in range(2))
    server = live.server.target()
    for role in (member, group):
        execute(server, sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(member))
        execute(server, grant)
        backup = live.backup()
        execute(
            server,
            sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), sql.Identifier(member)),
        )
        live.restore(backup)
        assert execute(server, "SELECT pg_has_role(%s, %s, 'MEMBER')", (member, group)) == [
            (False,)
        ]
    finally:
        for role in (member, group):
            execute(server, sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_beside_the_live_database_and_single_tables(live: Live) -> None:
    backup = live.backup()
    after = change(live)
    into = f"{live.name}_look"
    journal = live.restore(backup, Wish(into=into))
    assert (live.users(), live.users(into)) == (after, after - 7)
    assert live.calls() == []
    assert journal.state == "done"
    few = f"{live.name}_few"
    live.restore(backup, Wish(into=few, tables=("users", "public.businesses")))
    tables = execute(live.server.target(few), "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
                     "AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) "
                     "AND relnamespace::regnamespace::text NOT LIKE 'pg_%' ORDER BY 1")  # fmt: skip
    assert tables == [("businesses",), ("users",)]
    assert live.users(few) == after - 7
    with pytest.raises(InvalidRequest, match=r"there is no table public\.nothing"):
        live.restore(backup, Wish(into=f"{live.name}_none", tables=("nothing",)))
    with pytest.raises(Refused, match="already"):
        live.restore(backup, Wish(into=few))
    for wish in (Wish(tables=("users",)), Wish(into=live.name), Wish(into="")):
        with pytest.raises(InvalidRequest):
            live.restore(backup, wish)
    assert live.databases() == [few, into]


def test_a_database_that_is_gone_comes_back(live: Live) -> None:
    before = live.users()
    backup = live.backup()
    execute(live.server.target(), sql.SQL("DROP DATABASE {}").format(sql.Identifier(live.name)))
    journal = live.restore(backup)
    assert live.users() == before
    assert (journal.safety_backup, live.databases()) == (None, [])
    with pytest.raises(NotFound):
        last_swapped(live.settings)


def test_an_old_scripts_backup_comes_back(live: Live, tmp_path: Path) -> None:
    before = live.users()
    folder = live.settings.repository / "database" / "full" / "by_script"
    folder.mkdir(parents=True)
    dump = subprocess.run(
        [live.server.programs.path("pg_dump"), "--format=plain"],
        env={**os.environ, **live.target.environment()}, capture_output=True, check=True,
    ).stdout  # fmt: skip
    (folder / "database.sql.gz").write_bytes(gzip.compress(dump))
    content = (folder / "database.sql.gz").read_bytes()
    (folder / "backup_metadata.json").write_text(json.dumps({
        "backup_id": "by_script", "timestamp": "2026-01-31T02:00:00Z", "type": "full",
        "database": {"host": "h", "port": "5432", "name": live.name, "user": "u"},
        "backup_file": "/x/database.sql.gz", "file_size": str(len(content)),
        "checksum": hashlib.sha256(content).hexdigest(),
    }))  # fmt: skip
    change(live)
    journal = live.restore(live.find("by_script"))
    assert live.users() == before
    assert "no evidence" in journal.steps[6].detail


# Under load


def test_clients_that_reconnect_in_a_loop_wait_for_a_moment_and_find_the_new_one(
    live: Live,
) -> None:
    backup = live.backup()
    change(live)
    target = live.target
    conninfo = f"host={target.host} port={target.port} dbname='{target.dbname}' user={target.user}"
    done = threading.Event()
    seen: list[set[int]] = [set(), set(), set(), set()]
    failures: list[str] = []

    def client(number: int) -> None:
        while not done.is_set():
            try:
                with psycopg.connect(conninfo, autocommit=True) as connection:
                    while not done.is_set():
                        (count,) = connection.execute("SELECT count(*) FROM users").fetchone() or (
                            0,
                        )
                        seen[number].add(int(count))
            except psycopg.OperationalError as error:
                failures.append(str(error).splitlines()[0])

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for each in clients:
        each.start()
    try:
        journal = live.restore(backup)
        time.sleep(0.5)
    finally:
        done.set()
        for each in clients:
            each.join()
    before = live.users()
    assert all(counts == {before, before + 7} for counts in seen)
    swap = next(step for step in journal.steps if step.name == "swap")
    assert swap.seconds is not None
    assert swap.seconds < 5


# What must not be


def test_what_a_rename_must_not_pass_over_is_refused_by_name(live: Live) -> None:
    backup, after = live.backup(), change(live)
    server, name = live.server.target(), sql.Identifier(live.name)
    execute(server, sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(name))
    try:
        with pytest.raises(Refused, match="is a template"):
            live.restore(backup)
    finally:
        execute(server, sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
    slot = f"s{time.monotonic_ns()}"
    execute(live.target, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    try:
        with pytest.raises(Refused, match="1 logical replication slots"):
            live.restore(backup)
    finally:
        execute(live.target, "SELECT pg_drop_replication_slot(%s)", (slot,))
    with connect(live.target, autocommit=False) as connection:
        connection.execute("CREATE TABLE prepared (a int)")
        connection.execute("PREPARE TRANSACTION 'half_done'")
    try:
        with pytest.raises(Refused, match=r"prepared transactions.*half_done"):
            live.restore(backup, Wish(safety_backup=False))
    finally:
        execute(live.target, "ROLLBACK PREPARED 'half_done'")
    assert (live.users(), live.databases(), live.calls()) == (after, [], [])
    live.restore(backup)
    assert live.users() == after - 7


def test_two_restores_of_one_database_are_one(live: Live) -> None:
    backup = live.backup()
    first = DatabaseRestore.begin(live.settings, backup, Wish(), now=utc_now())
    first.step("verify")
    with pytest.raises(Locked, match="is at work"):
        live.restore(backup)
    assert first.run().state == "done"
    assert first.step("swap").finished_at is not None  # what is done is not done again
    with pytest.raises(Refused, match="has ended"):
        recorded_step(first.journal.model_copy(update={"steps": []}), "verify")
    undone = first.journal.model_copy(update={"steps": [], "state": "running"})
    with pytest.raises(Refused, match="went with the run"):
        recorded_step(undone, "verify")


def test_a_newer_major_is_not_restored_into_an_older_one(
    live: Live, server_of: Callable[[int], Cluster]
) -> None:
    backup = live.backup()
    older = server_of(16)
    settings = live.with_settings()
    changes = {"DB_HOST": older.target().host, "DB_PORT": str(older.port)}
    settings = config.load(environment={**live.environment, **changes})
    with pytest.raises(Refused, match="dumps go forward only"):
        DatabaseRestore.begin(settings, backup, Wish(), now=utc_now()).run()


def test_an_ordinary_role_is_told_which_rights_it_lacks(live: Live) -> None:
    backup = live.backup()
    role = f"weak_{time.monotonic_ns()}"
    execute(live.server.target(), sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        with pytest.raises(Refused) as refused:
            live.restore(backup, RECOVERY__USER=role)
        for right in ("CREATEDB", "CREATEROLE", "pg_signal_backend", "membership in the owner"):
            assert right in refused.value.message
    finally:
        execute(live.server.target(), sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_bad_backup_is_found_before_anything_is_made(live: Live) -> None:
    backup, after = live.backup(), change(live)
    path = backup.folder / "database.sql.zst"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ProofFailed, match="is bad"):
        live.restore(backup)
    assert (live.users(), live.databases(), live.calls()) == (after, [], [])


def test_a_dump_that_fails_at_its_last_statement_changes_nothing(
    live: Live, tmp_path: Path
) -> None:
    backup, after = live.backup(), change(live)
    alter_dump(backup, lambda text: text.replace(b"\n--\n-- PostgreSQL database dump complete",
                                                 b"\nSELECT 1/0;\n--\n-- PostgreSQL database dump complete"))  # fmt: skip
    with pytest.raises(RestoreFailed, match=r"division by zero.*is as it was"):
        live.restore(live.find("good"))
    assert (live.users(), live.databases(), live.calls()) == (after, [], [])


def test_data_that_differ_never_come_into_place(live: Live) -> None:
    backup, after = live.backup(), change(live)
    alter_dump(backup, lambda text: text.replace(b"@", b"#", 1))
    with pytest.raises((RestoreFailed, ProofFailed)):
        live.restore(live.find("good"))
    assert (live.users(), live.calls()) == (after, [])


def test_a_missing_extension_is_named_and_nothing_is_made(live: Live) -> None:
    backup = live.backup()
    manifest = json.loads((backup.folder / "backup_metadata.json").read_text())
    manifest["requirements"]["extensions"] = {"nowhere_to_be_found": "1"}
    seal(backup, manifest)
    with pytest.raises(CouldNotVerify, match="extension nowhere_to_be_found"):
        live.restore(live.find("good"))
    assert (live.databases(), live.calls()) == ([], [])


def test_what_cannot_be_saved_is_not_replaced(live: Live) -> None:
    backup, after = live.backup(), change(live)
    with pytest.raises(BackupFailed, match="could not be saved"):
        live.restore(backup, BACKUP__MINIMUM_FREE=str(1 << 60))
    assert (live.users(), live.databases(), live.calls()) == (after, [], [])
    live.restore(backup, Wish(safety_backup=False), BACKUP__MINIMUM_FREE=str(1 << 60))
    assert live.users() == after - 7


def test_a_repository_that_is_mounted_read_only_is_restored_from(
    live: Live, tmp_path: Path
) -> None:
    backup, after = live.backup(), change(live)
    repository = live.settings.repository
    script = (
        f"mount --bind {repository} {repository} && mount -o remount,bind,ro {repository} && "
        f"exec {sys.executable} -m kyb_backup_pipeline restore database {backup.backup_id} --yes"
    )
    unshare = ["unshare", "--mount"] + (["--map-root-user"] if os.geteuid() else [])
    environment = live.environment | {"XDG_STATE_HOME": str(tmp_path / "state")}
    path = {"PATH": os.environ["PATH"]}

    def run(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*unshare, "sh", "-c", line], capture_output=True, text=True,
                              env=environment | path, check=False)  # fmt: skip

    refused = run(script)
    assert refused.returncode == BackupFailed.exit_code, refused.stderr
    assert "--without-safety-backup" in refused.stderr
    assert (live.users(), live.databases()) == (after, [])
    done = run(f"{script} --without-safety-backup")
    assert done.returncode == 0, done.stderr
    assert live.users() == after - 7
    assert list((tmp_path / "state").rglob("restore_*.json"))
    assert not (repository / "database" / "recovery").exists()
    journals = str(next((tmp_path / "state").rglob("recovery-*")))
    live.environment["KYB_RECOVERY__JOURNALS"] = journals
    roll_back(live.with_settings(), last_swapped(live.with_settings()), service=False)


# No room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of its own for a server; None for an ordinary user, who may not mount."""
    disk = Path(tempfile.mkdtemp(prefix="kyb-disk-"))
    disk.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", "size=150m,mode=755", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    try:
        yield disk if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()
        assert mounted.returncode == 0 or os.geteuid() != 0


def test_a_disk_without_room_is_known_before_and_one_that_fills_up_does_no_harm(
    small_disk: Path | None, tmp_path: Path, drills: Path
) -> None:
    if small_disk is None:
        return  # CI is root, and covers it
    bounds = {"max_wal_size": "8MB", "min_wal_size": "4MB"}
    with running_cluster(small_disk, 18, settings=bounds) as cluster:
        name = "kyb_platform"
        execute(cluster.target(), f"CREATE DATABASE {name}")
        execute(cluster.target(name), "CREATE TABLE users AS SELECT n, repeat(md5(n::text), 8) AS t "
                "FROM generate_series(1, 60000) n")  # fmt: skip
        quiet = {"KYB_APPLICATION__STOP_COMMAND": "", "KYB_APPLICATION__START_COMMAND": ""}
        settings = settings_for(cluster.target(name), tmp_path / "backups", drills, **quiet,
                                KYB_RECOVERY__MINIMUM_FREE=str(24 << 20))  # fmt: skip
        backup = take_full_backup(settings, Request(backup_id="good"), now=utc_now())
        execute(cluster.target(name), "DELETE FROM users WHERE n > 10")
        wish = Wish(safety_backup=False)
        filler = small_disk / "filler"

        def leave(megabytes: int) -> None:
            filler.unlink(missing_ok=True)
            status = os.statvfs(small_disk)
            with open(filler, "wb") as file:
                file.write(bytes(max(status.f_bavail * status.f_frsize - (megabytes << 20), 0)))

        leave(20)
        with pytest.raises(NotEnoughSpace, match="second database and its WAL"):
            DatabaseRestore.begin(settings, backup, wish, now=utc_now()).run()
        leave(70)
        restore = DatabaseRestore.begin(settings, backup, wish, now=utc_now())
        for step in ("verify", "check", "save", "create"):
            restore.step(step)
        leave(20)  # somebody else takes the room meanwhile: the load stops before the server must
        with psycopg.connect(f"host={cluster.target().host} port={cluster.port} dbname={name} "
                             f"user={cluster.superuser}", autocommit=True) as witness:  # fmt: skip
            with pytest.raises(NotEnoughSpace, match=r"load was stopped.*is as it was"):
                restore.step("load")
            witness.execute("SELECT 1")
        leave(80)
        greedy = settings_for(cluster.target(name), tmp_path / "backups", drills, **quiet,
                              KYB_RECOVERY__MINIMUM_FREE="0")  # fmt: skip
        restore = DatabaseRestore.begin(greedy, backup, wish, now=utc_now())
        for step in ("verify", "check", "save", "create"):
            restore.step(step)
        leave(6)
        with pytest.raises(NotEnoughSpace, match="No space left"):
            restore.step("load")
        filler.unlink()
        wait_until(partial(_answers_again, cluster, name), "the live database answers", seconds=60)
        assert _users_of(cluster, name) == 10
        repair_database(settings, service=False)  # nothing is owed if the server stayed up
        assert repair_database(settings, service=False) == []
        journal = DatabaseRestore.begin(settings, backup, wish, now=utc_now()).run()
        assert journal.state == "done"
        assert _users_of(cluster, name) == 60000
        left = execute(
            cluster.target(), "SELECT datname FROM pg_database WHERE datname LIKE '%restoring%'"
        )
        assert left == []


def _answers_again(cluster: Cluster, name: str) -> bool:
    """A server that stopped for want of room is started by whoever made some."""
    if cluster.pid() is None:
        cluster.start()
    return _users_of(cluster, name) >= 0


def _users_of(cluster: Cluster, name: str) -> int:
    try:
        return int(execute(cluster.target(name), "SELECT count(*) FROM users")[0][0])
    except (KybError, psycopg.Error):
        return -1


# The service


def test_a_service_that_does_not_stop_keeps_everything_as_it_was(live: Live) -> None:
    backup, after = live.backup(), change(live)
    with pytest.raises(RestoreFailed, match=r"did not stop.*is as it was.*the service runs again"):
        live.restore(backup, APPLICATION__STOP_COMMAND="false")
    assert (live.users(), live.databases(), live.calls()) == (after, [], ["start"])


def test_a_service_that_does_not_start_is_reported_and_the_data_are_kept(live: Live) -> None:
    backup, after = live.backup(), change(live)
    with pytest.raises(RestoreFailed, match=r"did not start.*the restored database is in place"):
        live.restore(backup, APPLICATION__START_COMMAND="false")
    assert live.users() == after - 7
    (old,) = live.databases()
    assert live.users(old) == after
    roll_back(live.settings, last_swapped(live.settings))
    assert live.users() == after


@pytest.mark.parametrize(
    "changes",
    [
        {"RECOVERY__HEALTH_URL": "http://127.0.0.1:1/health"},
        {"RECOVERY__HEALTH_URL": "no address"},
    ],
)
def test_what_is_not_well_behind_the_swap_is_swapped_back(
    live: Live, changes: dict[str, str]
) -> None:
    backup, after = live.backup(), change(live)
    with pytest.raises(RestoreFailed, match=r"is not well.*swapped back"):
        live.restore(backup, None, **changes)
    assert live.users() == after
    assert live.calls() == ["stop", "start", "stop", "start"]
    (kept,) = live.databases()
    assert live.users(kept) == after - 7
    assert [r.name for r in replaced_databases(live.settings)] == [kept]
    live.restore(backup)  # which leaves that one alone
    assert kept in live.databases()


# Killed


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_live_database_is_the_old_one_or_the_new_one(
    live: Live, step: str
) -> None:
    backup, after = live.backup(), change(live)
    chance = random.Random(step)
    for _ in range(2):
        run = live.cli().start(
            "restore", "database", backup.backup_id, "--yes", "--without-safety-backup"
        )
        wait_until(partial(_at_or_over, live, step, run), f"it is at {step}")
        time.sleep(chance.uniform(0, 0.05))
        children = children_of(run.pid)
        run.kill()
        run.wait()
        wait_until(partial(none_alive, children), "its children are gone")
        wait_until(lambda: live.users() in (after, after - 7), "the database answers")
        new = live.users() == after - 7
        again = live.cli().run("restore", "repair")
        assert again.returncode == 0, again.stderr
        assert live.users() == (after - 7 if new else after)
        assert not [name for name in live.databases() if "_restoring_" in name]
        assert live.calls()[-1:] in ([], ["start"])
        journal = live.journals().all(live.target)[0]
        if new:
            assert live.users(journal.replaced_name) == after
            roll_back(live.settings, last_swapped(live.settings), service=False)
        assert not journal.abandoned()
        journal_file = live.journals().folder / f"{journal.restore_id}.json"
        journal_file.unlink()
    assert live.restore(backup).state == "done"


def _at_or_over(live: Live, step: str, run: Run) -> bool:
    return _at(live, step) or run.popen.poll() is not None


def _at(live: Live, step: str) -> bool:
    found = live.journals().all(live.target)
    return bool(found and any(s.name == step for s in found[0].steps))


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_dies_at_any_step_has_the_old_database_or_the_new_one(
    place: Path, tmp_path: Path, drills: Path, step: str
) -> None:
    with running_cluster(place, 18) as cluster:
        execute(cluster.target(), "CREATE DATABASE kyb_platform")
        execute(
            cluster.target("kyb_platform"),
            "CREATE TABLE users AS SELECT n FROM generate_series(1, 300000) n",
        )
        environment = {
            "DB_HOST": cluster.target().host, "DB_PORT": str(cluster.port), "DB_USER": cluster.target().user,
            "BACKUP_DIR": str(tmp_path / "backups"), "KYB_BACKUP__MINIMUM_FREE": "0",
            "KYB_APPLICATION__STOP_COMMAND": "", "KYB_APPLICATION__START_COMMAND": "",
            "KYB_RESTORE_TEST__DIRECTORY": str(drills),
        }  # fmt: skip
        settings = config.load(environment=environment)
        backup = take_full_backup(settings, Request(backup_id="good"), now=utc_now())
        execute(cluster.target("kyb_platform"), "DELETE FROM users WHERE n > 10")
        run = Cli(None, environment).start(
            "restore", "database", "good", "--yes", "--without-safety-backup"
        )
        journals = Journals.of(settings)

        def at() -> bool:
            found = journals.all(Target.of(settings))
            return bool(found and any(s.name == step for s in found[0].steps))

        wait_until(lambda: at() or run.popen.poll() is not None, f"it is at {step}")
        pid = cluster.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        run.wait()
        assert "Traceback" not in run.stderr
        assert "error: unexpected" not in run.stderr
        cluster.start()
        target = cluster.target("kyb_platform")
        repaired = Cli(None, environment).run("restore", "repair")
        assert repaired.returncode == 0, repaired.stderr
        ((rows,),) = execute(target, "SELECT count(*) FROM users")
        assert rows in (10, 300000)
        journal = journals.all(Target.of(settings))[0]
        if not any(
            begun.name == "swap" for begun in journal.steps
        ):  # a step may be over before the kill
            assert rows == 10
        assert journal.state == ("done" if rows == 300000 else "failed")
        if rows == 300000:
            replaced = cluster.target(journal.replaced_name)
            assert execute(replaced, "SELECT count(*) FROM users") == [(10,)]
        DatabaseRestore.begin(settings, backup, Wish(safety_backup=False), now=utc_now()).run()
        assert execute(target, "SELECT count(*) FROM users") == [(300000,)]
        names = [n for (n,) in execute(cluster.target(), "SELECT datname FROM pg_database")]
        assert not [name for name in names if "_restoring_" in name]


@pytest.mark.parametrize(("step", "program"), [("save", "pg_dump"), ("load", "psql")])
def test_a_client_that_is_killed_while_it_loads_or_saves_changes_nothing(
    live: Live, step: str, program: str
) -> None:
    live.backup()
    after = change(live)
    run = live.cli().start("restore", "database", "good", "--yes")
    victims: list[int] = []

    def found() -> bool:
        lines = {pid: process.command_line(pid) for pid in children_of(run.pid)}
        victims[:] = [
            pid for pid, line in lines.items()
            if line and line[0].endswith(f"/{program}") and "--version" not in line
        ]  # fmt: skip
        return bool(victims) or run.popen.poll() is not None

    wait_until(found, f"{program} runs")
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    assert run.wait() == (BackupFailed if step == "save" else RestoreFailed).exit_code, run.stderr
    assert "SIGKILL" in run.stderr
    assert (live.users(), live.databases(), live.calls()) == (after, [], [])
    assert live.journals().all(live.target)[0].state == "failed"


# The command line


def test_the_command_line_from_the_list_to_the_way_back(live: Live) -> None:
    live.backup()
    after = change(live)
    cli = live.cli()
    run = cli.run("restore", "database")
    assert (run.returncode, "good  " in run.stderr, "restore test: not yet" in run.stderr) == (
        2,
        True,
        True,
    )
    run = cli.run("restore", "database", "good", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "what is there now is backed up first" in run.stdout
    run = cli.run("restore", "database", "good")
    assert (run.returncode, "not confirmed" in run.stderr) == (12, True)
    assert cli.run("restore", "database", "nothing").returncode == 9
    assert cli.run("restore", "rollback", "--yes").returncode == 9
    assert (live.users(), live.databases()) == (after, [])
    run = cli.run("restore", "database", "good", "--yes")
    assert run.returncode == 0, run.stderr
    assert "equal the source's" in run.stdout
    assert "interrupted for" in run.stdout
    assert live.users() == after - 7
    listed = json.loads(cli.run("restore", "replaced", "--json").stdout)
    assert [line["backup"] for line in listed] == ["good"]
    run = cli.run("restore", "rollback", "--yes")
    assert run.returncode == 0, run.stderr
    assert live.users() == after
    (name,) = live.databases()
    assert cli.run("restore", "replaced", "--drop", name).returncode == 12
    assert cli.run("restore", "replaced", "--drop", name, "--yes").returncode == 0
    assert cli.run("restore", "replaced").stdout == "no database is left that a restore replaced\n"
    assert "nothing to repair" in cli.run("restore", "repair").stdout


def test_a_wrong_name_changes_nothing(live: Live) -> None:
    live.backup()
    after = change(live)
    ours, theirs = pty.openpty()
    run = live.cli().start("restore", "database", "good", stdin=theirs)
    os.write(ours, b"another_name\n")
    assert run.wait() == 12
    assert "'another_name' is not" in run.stderr
    run = live.cli().start("restore", "database", "good", "--without-safety-backup", stdin=theirs)
    os.write(ours, live.name.encode() + b"\n")
    assert run.wait() == 0, run.stderr
    assert live.users() == after - 7
    os.close(ours)
    os.close(theirs)


def test_the_least_role_of_the_documents_restores(live: Live) -> None:
    """With the very grants of docs/roles.md, and an owner of its own."""
    owner, role = (f"{name}_{time.monotonic_ns()}" for name in ("kyb_owner", "kyb_restore"))
    text = (Path(__file__).parent.parent / "docs" / "roles.md").read_text()
    (script,) = re.findall(r"```sql\n(CREATE ROLE kyb_restore .*?)```", text, re.S)
    server = live.server.target()
    execute(server, sql.SQL("CREATE ROLE {}").format(sql.Identifier(owner)))
    for statement in (
        script.replace("kyb_owner", owner).replace("kyb_restore", role).split(";")[:-1]
    ):
        execute(server, re.sub(r"--.*", "", statement).encode())
    try:
        with connect(live.target) as connection:
            for kind, name in connection.execute(
                "SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, oid::regclass::text "
                "FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace::regnamespace::text "
                "IN ('public', 'kyb')"
            ).fetchall():
                connection.execute(f"ALTER {kind} {name} OWNER TO {owner}".encode())
            connection.execute(f"ALTER SCHEMA kyb OWNER TO {owner}".encode())
            connection.execute(f'ALTER DATABASE "{live.name}" OWNER TO {owner}'.encode())
            for (routine,) in connection.execute(
                "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace::regnamespace::text IN ('public', 'kyb')"
            ).fetchall():
                connection.execute(f"ALTER ROUTINE {routine} OWNER TO {owner}".encode())
            for (name,) in connection.execute(
                "SELECT oid::regtype::text FROM pg_type WHERE typtype IN ('e', 'd') "
                "AND typnamespace::regnamespace::text IN ('public', 'kyb')"
            ).fetchall():
                connection.execute(f"ALTER TYPE {name} OWNER TO {owner}".encode())
            for (name,) in connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' AND relnamespace::regnamespace::text "
                "IN ('public', 'kyb') AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_class.oid "
                "AND d.deptype IN ('a', 'i'))"
            ).fetchall():
                connection.execute(f"ALTER SEQUENCE {name} OWNER TO {owner}".encode())
        before = live.users()
        backup = live.backup()
        change(live)
        live.restore(backup, None, RECOVERY__USER=role)
        assert live.users() == before
    finally:
        for found in (live.name, *live.databases()):
            with connect(live.server.target(found)) as connection:
                connection.execute(f"REASSIGN OWNED BY {owner}, {role} TO CURRENT_USER".encode())
                connection.execute(f"DROP OWNED BY {owner}, {role}".encode())
        for each in (role, owner):
            execute(server, sql.SQL("DROP ROLE {}").format(sql.Identifier(each)))
