"""What can break a backup while it is taken; each time nothing half-done may be listed.

The backup runs as a process of its own through the command line, and is really killed, starved of
room, cut off or left hanging.
"""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import (
    create_database,
    drop_database,
    execute,
    settings_file,
    settings_for,
)
from kyb_backup_pipeline_tests.running import Cli, children_of, none_alive, wait_until

FILLER = """CREATE TABLE filler AS SELECT n, md5(n::text) || md5((n + 1)::text)
    || md5((n + 2)::text) || md5((n + 3)::text) AS text FROM generate_series(1, 1000000) n"""


@pytest.fixture(scope="module")
def large_template(server: Cluster) -> str:
    create_database(server.target(), "large_template")
    execute(server.target("large_template"), FILLER)
    return "large_template"


@pytest.fixture
def large(server: Cluster, large_template: str) -> Iterator[str]:
    """A database whose dump takes a while: 200 MB that hardly compress."""
    execute(server.target(), f"CREATE DATABASE large TEMPLATE {large_template} STRATEGY file_copy")
    yield "large"
    drop_database(server.target(), "large")


@pytest.fixture
def large_settings(server: Cluster, large: str, tmp_path: Path, drills: Path) -> Settings:
    return settings_for(server.target(large), tmp_path / "backups", drills)


def nothing_half_done(settings: Settings) -> None:
    """No backup is listed, and none but ``.partial`` folders are left."""
    repository = Repository(settings.repository)
    assert repository.backups() == []
    assert [leftover.folder for leftover in repository.leftovers() if not leftover.partial] == []


def next_backup_works(settings: Settings) -> None:
    """The next backup is taken and proved."""
    backup = take_full_backup(settings, Request(), now=utc_now())
    assert drill_full_backup(settings, backup, now=utc_now()).verdict == "passed"


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_kill_9_at_twenty_random_moments_leaves_no_backup_no_orphan_and_no_lock(
    large_settings: Settings, tmp_path: Path, server: Cluster, form: str
) -> None:
    chance = random.Random(form)
    settings = large_settings.model_copy(
        update={"backup": large_settings.backup.model_copy(update={"format": form})}
    )
    cli = Cli(settings_file(settings, tmp_path / "kyb.toml"))
    whole = cli.start("backup", "full", "--id", "whole")
    began = time.monotonic()
    assert whole.wait() == 0
    length = time.monotonic() - began
    complete = {"whole"}
    for n in range(10):
        run = cli.start("backup", "full", "--id", f"killed_{n}")
        time.sleep(chance.uniform(0.05, length))
        children = children_of(run.pid)
        run.kill()
        if run.wait() == 0:
            complete.add(f"killed_{n}")
        wait_until(partial(none_alive, children), "orphans are gone")
        listed = {backup.backup_id for backup in Repository(settings.repository).backups()}
        # one that was killed after its rename is whole
        for backup_id in listed - complete:
            assert cli.run("verify", backup_id).returncode == 0
            complete.add(backup_id)
        assert listed == complete
    wait_until(lambda: sessions_of(server, "large") == 0, "the server's sessions are gone")
    next_backup_works(settings)


def sessions_of(server: Cluster, database: str) -> int:
    """How many sessions a database has."""
    rows = execute(
        server.target(), "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (database,)
    )
    return int(rows[0][0])


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_kill_9_of_a_restore_test_leaves_no_server_and_the_next_one_sweeps_its_folder(
    large_settings: Settings, tmp_path: Path, drills: Path, form: str
) -> None:
    settings = large_settings.model_copy(
        update={"backup": large_settings.backup.model_copy(update={"format": form})}
    )
    cli = Cli(settings_file(settings, tmp_path / "kyb.toml"))
    assert cli.run("backup", "full", "--id", "one").returncode == 0
    chance = random.Random(f"drill {form}")
    killed = 0
    while killed < 5:
        run = cli.start("drill", "one")
        wait_until(lambda: any(drills.glob("*/data/postmaster.pid")), "its server runs")
        time.sleep(chance.uniform(0, 0.7))
        children = children_of(run.pid)
        run.kill()
        killed += run.wait() == -signal.SIGKILL  # it may have come to its end before
        wait_until(partial(none_alive, children), "its server is gone")
    assert list(drills.iterdir()), "a kill leaves a folder; without one this test proves nothing"
    assert cli.run("drill", "one").returncode == 0
    assert list(drills.iterdir()) == []


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_disk_that_fills_up_ends_in_a_clear_error_and_leaves_its_room_free(
    large_settings: Settings, tmp_path: Path, form: str
) -> None:
    settings = large_settings.model_copy(
        update={"backup": large_settings.backup.model_copy(update={"format": form})}
    )
    cli = Cli(settings_file(settings, tmp_path / "kyb.toml"))
    limit = 100_000
    run = cli.start(
        "backup", "full",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    code, stderr = run.wait(), run.stderr
    assert code == 11, stderr
    assert stderr.startswith("error: no room left while writing")
    assert "HINT: " in stderr
    assert "Traceback" not in stderr
    nothing_half_done(settings)
    assert Repository(settings.repository).leftovers() == []
    next_backup_works(settings)


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_small_file_system_that_fills_up_ends_in_a_clear_error(
    large_settings: Settings, tmp_path: Path, form: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:  # an ordinary user may not mount: the quota of RLIMIT covers it
        assert os.geteuid() != 0 or b"permission" in mounted.stderr.lower()
        return
    try:
        settings = large_settings.model_copy(
            update={
                "repository": disk / "backups",
                "backup": large_settings.backup.model_copy(update={"format": form}),
            }
        )
        run = Cli(settings_file(settings, tmp_path / "kyb.toml")).run("backup", "full")
        assert run.returncode == 11
        assert "No space left on device" in run.stderr
        nothing_half_done(settings)
        assert Repository(settings.repository).leftovers() == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_too_little_room_is_said_before_the_dump_begins(settings: Settings, tmp_path: Path) -> None:
    wanting = settings.backup.model_copy(update={"minimum_free": 2**60})
    file = settings_file(settings.model_copy(update={"backup": wanting}), tmp_path / "kyb.toml")
    run = Cli(file).run("backup", "full")
    assert run.returncode == 11
    assert re.search(r"error: [\d.]+ GiB free in .*, [\d.]+ GiB needed\nHINT: ", run.stderr)
    nothing_half_done(settings)


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_server_that_is_stopped_in_mid_dump_ends_in_a_clear_error(
    server_of_its_own: Cluster, tmp_path: Path, drills: Path, form: str
) -> None:
    cluster = server_of_its_own
    settings = settings_for(
        cluster.target("large"), tmp_path / "backups", drills, KYB_BACKUP__FORMAT=form
    )
    cli = Cli(settings_file(settings, tmp_path / "kyb.toml"))
    run = cli.start("backup", "full")
    wait_until(lambda: dump_grows(settings), "the dump has begun")
    cluster.stop(signal.SIGQUIT)
    code, stderr = run.wait(), run.stderr
    assert code in (4, 5), stderr
    assert "error: " in stderr
    assert "Traceback" not in stderr
    nothing_half_done(settings)
    cluster.start()
    next_backup_works(settings)


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_server_that_hangs_is_noticed_and_given_up(
    server_of_its_own: Cluster, tmp_path: Path, drills: Path, form: str
) -> None:
    cluster = server_of_its_own
    settings = settings_for(
        cluster.target("large"),
        tmp_path / "backups",
        drills,
        KYB_BACKUP__FORMAT=form,
        KYB_BACKUP__STALL_TIMEOUT="2",
    )
    cli = Cli(settings_file(settings, tmp_path / "kyb.toml"))
    run = cli.start("backup", "full")
    wait_until(lambda: dump_grows(settings), "the dump has begun")
    pid = cluster.pid()
    assert pid is not None
    frozen = [pid, *children_of(pid)]
    for each in frozen:
        os.kill(each, signal.SIGSTOP)
    try:
        code, stderr = run.wait(60), run.stderr
    finally:
        for each in frozen:
            os.kill(each, signal.SIGCONT)
    assert code == 5, stderr
    assert "no progress for 2 s" in stderr or "stopped answering" in stderr
    nothing_half_done(settings)
    wait_until(lambda: sessions_of(cluster, "large") == 0, "the server's sessions are gone")
    next_backup_works(settings)


@pytest.fixture(scope="module")
def server_of_its_own(place: Path, server: Cluster) -> Iterator[Cluster]:
    """A server that a test may stop and freeze, with a large database."""
    cluster = Cluster(
        folder=place / "own", programs=server.programs, account=server.account, port=server.port
    )
    cluster.initialise(settings={"listen_addresses": "", "fsync": "off"})
    cluster.start()
    create_database(cluster.target(), "large")
    execute(cluster.target("large"), FILLER)
    yield cluster
    cluster.stop()


def dump_grows(settings: Settings) -> bool:
    """Whether a dump is being written and has content."""
    partial = settings.repository.glob("database/full/.*.partial/database.*/**/*.dat*")
    plain = settings.repository.glob("database/full/.*.partial/database.sql.*")
    return any(_size(path) > 100_000 for path in (*partial, *plain))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_second_backup_says_who_holds_the_lock(large_settings: Settings, tmp_path: Path) -> None:
    cli = Cli(settings_file(large_settings, tmp_path / "kyb.toml"))
    first = cli.start("backup", "full", "--id", "first")
    wait_until(lambda: dump_grows(large_settings), "the dump has begun")
    first.kill(signal.SIGSTOP)
    second = cli.run("backup", "full", "--id", "second")
    first.kill(signal.SIGCONT)
    assert second.returncode == 8
    assert f"backup first, process {first.pid}" in second.stderr
    assert first.wait() == 0
    assert cli.run("backup", "full", "--id", "third").returncode == 0


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_a_truncate_that_waits_neither_hangs_the_backup_nor_empties_its_evidence(
    server: Cluster, large: str, tmp_path: Path, drills: Path, form: str
) -> None:
    settings = settings_for(
        server.target(large),
        tmp_path / "backups",
        drills,
        KYB_BACKUP__FORMAT=form,
        KYB_BACKUP__LOCK_TIMEOUT="0.5",
        KYB_BACKUP__LOCK_ATTEMPTS="20",
    )
    execute(server.target(large), "CREATE TABLE victim AS SELECT generate_series(1, 1000) n")
    over = threading.Event()

    def truncate() -> None:
        with connect(server.target(large)) as connection:
            while not over.wait(0.5):
                connection.execute("TRUNCATE victim")
                connection.execute("INSERT INTO victim SELECT generate_series(1, 1000)")

    thread = threading.Thread(target=truncate)
    thread.start()
    try:
        backup = take_full_backup(settings, Request(), now=utc_now())
    finally:
        over.set()
        thread.join()
    proof = drill_full_backup(settings, backup, now=utc_now())
    assert (proof.verdict, proof.findings) == ("passed", ())


def test_a_lock_that_is_never_granted_is_an_error_that_names_the_session(
    server: Cluster, large: str, tmp_path: Path, drills: Path
) -> None:
    settings = settings_for(
        server.target(large),
        tmp_path / "backups",
        drills,
        KYB_BACKUP__LOCK_TIMEOUT="0.2",
        KYB_BACKUP__LOCK_ATTEMPTS="2",
    )
    with connect(server.target(large), autocommit=False) as holder:
        holder.execute("LOCK TABLE filler IN ACCESS EXCLUSIVE MODE")
        pid = holder.info.backend_pid
        with pytest.raises(
            BackupFailed, match=rf"process {pid} of postgres holds .* on public.filler"
        ):
            take_full_backup(settings, Request(), now=utc_now())
        holder.rollback()
    nothing_half_done(settings)


def test_a_table_only_a_superuser_may_read_is_named(
    server: Cluster, large: str, tmp_path: Path, drills: Path
) -> None:
    target = server.target(large)
    execute(target, 'CREATE TABLE "Only Root" (n int)')
    execute(target, "CREATE TABLE half (open int, closed int)")
    execute(target, "DROP ROLE IF EXISTS reader")
    execute(target, "CREATE ROLE reader LOGIN")
    execute(target, "GRANT SELECT ON filler TO reader")
    execute(target, "GRANT SELECT (open) ON half TO reader")
    try:
        settings = settings_for(target, tmp_path / "backups", drills, DB_USER="reader")
        with pytest.raises(BackupFailed) as refused:
            take_full_backup(settings, Request(), now=utc_now())
        assert 'may not read public."Only Root", public.half' in refused.value.message
        assert "pg_read_all_data" in (refused.value.hint or "")
        execute(target, "GRANT pg_read_all_data TO reader")
        execute(target, "ALTER TABLE filler ENABLE ROW LEVEL SECURITY")
        with pytest.raises(BackupFailed, match=r"sees only some rows of public\.filler"):
            take_full_backup(settings, Request(), now=utc_now())
        execute(target, "ALTER ROLE reader BYPASSRLS")
        take_full_backup(settings, Request(), now=utc_now())
    finally:
        execute(target, "DROP OWNED BY reader")
        execute(target, "DROP ROLE reader")


def test_a_read_only_repository_is_an_error_before_anything_begins(
    settings: Settings, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    file = settings_file(
        settings.model_copy(update={"repository": blocked / "backups"}), tmp_path / "kyb.toml"
    )
    run = Cli(file).run("backup", "full")
    assert run.returncode == 3
    assert f"the repository {blocked}/backups cannot be written" in run.stderr


def test_what_a_killed_backup_left_is_swept_after_a_day(settings: Settings) -> None:
    repository = Repository(settings.repository)
    repository.create()
    for name, age in ((".old.partial", 25), (".young.partial", 23)):
        folder = repository.folder("full") / name
        folder.mkdir()
        (folder / "database.sql.zst").write_bytes(b"half")
        then = time.time() - age * 3600
        os.utime(folder, (then, then))
    take_full_backup(settings, Request(), now=utc_now())
    assert [leftover.folder.name for leftover in repository.leftovers()] == [".young.partial"]


def test_a_retried_run_adopts_what_it_completed_before(settings: Settings) -> None:
    request = Request(backup_id="mine", run_id="run-1")
    first = take_full_backup(settings, request, now=utc_now())
    again = take_full_backup(settings, request, now=utc_now())
    assert again == first
    with pytest.raises(Exception, match="the id 'mine' is in use"):
        take_full_backup(settings, Request(backup_id="mine", run_id="run-2"), now=utc_now())


def test_sigterm_unwinds_and_leaves_nothing(large_settings: Settings, tmp_path: Path) -> None:
    cli = Cli(settings_file(large_settings, tmp_path / "kyb.toml"))
    run = cli.start("backup", "full")
    wait_until(lambda: dump_grows(large_settings), "the dump has begun")
    run.kill(signal.SIGTERM)
    run.wait()
    assert run.wait() == 128 + signal.SIGTERM
    assert Repository(large_settings.repository).leftovers() == []
    nothing_half_done(large_settings)


def test_a_dump_older_than_the_server_is_refused(
    server: Cluster, large: str, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for program in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        path = old / program
        path.write_text(f'#!/bin/sh\necho "{program} (PostgreSQL) 9.6.24"\n')
        path.chmod(0o755)
    file = tmp_path / "kyb.toml"
    target = server.target(large)
    file.write_text(
        f'repository = "{tmp_path}/backups"\n[database]\nhost = "{target.host}"\n'
        f'port = {target.port}\nname = "{large}"\nuser = "postgres"\n[backup]\nminimum_free = 0\n'
        f'[postgres]\nbin_dirs = ["{old}"]\nuse_system = false\nuse_embedded = false\n'
    )
    run = Cli(file).run("backup", "full")
    assert run.returncode == 5
    assert "the server is PostgreSQL 18, but pg_dump is older (found: 9.6.24)" in run.stderr
    assert "HINT: install postgresql-client-18" in run.stderr


def test_children_die_with_the_thread_that_started_them_and_never_before(tmp_path: Path) -> None:
    """The kernel's signal is tied to the forking thread: ours outlives its children."""
    with process.start(["/bin/sleep", "30"]) as child:
        time.sleep(0.2)
        assert child.running()
    assert not process.alive(child.pid)


def test_a_child_of_another_user_dies_with_its_parent_too(tmp_path: Path) -> None:
    script = (
        "from kyb_backup_pipeline.engine import process, postgres; import time\n"
        "with process.start(['/bin/sleep', '60'], account=postgres.server_account(None)) as c:\n"
        "    print(c.pid, flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    assert process.alive(pid)
    run.kill()
    run.wait()
    run.stdout.close()
    wait_until(lambda: not process.alive(pid), "the child is gone")


def test_the_evidence_cannot_be_emptied_by_an_error_of_the_server(
    server: Cluster, large: str, tmp_path: Path, drills: Path
) -> None:
    """A session that is ended from outside fails the backup; it does not pass without evidence."""
    settings = settings_for(server.target(large), tmp_path / "backups", drills)
    failed: list[BaseException] = []

    def back_up() -> None:
        try:
            take_full_backup(settings, Request(), now=utc_now())
        except BaseException as error:  # noqa: BLE001  (handed to the test)
            failed.append(error)

    thread = threading.Thread(target=back_up)
    thread.start()

    def end_the_digest() -> bool:
        rows = execute(
            server.target(),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND query LIKE '%%hash_record_extended%%' AND state = 'active'",
            (large,),
        )
        return bool(rows)

    wait_until(end_the_digest, "the digest runs")
    thread.join()
    assert len(failed) == 1
    assert isinstance(failed[0], BackupFailed), failed
    nothing_half_done(settings)
