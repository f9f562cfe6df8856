"""``kyb-wal-push`` and ``kyb-wal-fetch``, called by a real server and by hand."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.engine.wal import Segment
from kyb_backup_pipeline.engine.wal_store import WalConflict, WalStore
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.running import wait_until
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster

ARCHIVER = Path(__file__).parent.parent / "kyb_backup_pipeline" / "archiver"
PUSH = [sys.executable, "-m", "kyb_backup_pipeline.archiver.push"]
FETCH = [sys.executable, "-m", "kyb_backup_pipeline.archiver.fetch"]
MEGABYTE = 1 << 20

_LIKE_TAR: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
"""Python 3.11 has it from 3.11.4 on."""


def push(source: Path, inbox: Path, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [*PUSH, "--inbox", str(inbox), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def fetch(store: Path, name: str, destination: Path) -> "subprocess.CompletedProcess[str]":
    command = [*FETCH, "--store", str(store), name, str(destination)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def segment(folder: Path, number: int = 1, *, seed: int = 0) -> Path:
    """A file with the name of a segment; its content depends on both numbers."""
    path = folder / Segment(1, number, MEGABYTE).name
    path.write_bytes(random.Random(f"{number} {seed}").randbytes(MEGABYTE))
    return path


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


# The push


def test_a_push_brings_the_file_and_a_second_one_of_the_same_is_fine(
    tmp_path: Path, inbox: Path
) -> None:
    source = segment(tmp_path)
    for _ in range(2):
        done = push(source, inbox)
        assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in inbox.iterdir()] == [source.name]
    assert (inbox / source.name).read_bytes() == source.read_bytes()


def test_other_content_under_the_same_name_is_refused_and_nothing_is_overwritten(
    tmp_path: Path, inbox: Path
) -> None:
    first = segment(tmp_path)
    before = first.read_bytes()
    assert push(first, inbox).returncode == 0
    segment(tmp_path, seed=1)
    done = push(first, inbox)
    assert done.returncode == 1
    assert "other content" in done.stderr
    assert [path.read_bytes() for path in inbox.iterdir()] == [before]


def test_two_pushes_at_once_leave_one_file_and_both_succeed(tmp_path: Path, inbox: Path) -> None:
    source = segment(tmp_path)
    command = [*PUSH, "--inbox", str(inbox), str(source)]
    for _ in range(5):
        running = [subprocess.Popen(command) for _ in range(4)]
        assert [each.wait() for each in running] == [0, 0, 0, 0]
        assert [path.name for path in inbox.iterdir()] == [source.name]


def test_a_full_inbox_is_no_success_and_leaves_nothing(tmp_path: Path, inbox: Path) -> None:
    source = segment(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE // 2, MEGABYTE // 2))

    done = push(source, inbox, preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list(inbox.iterdir()) == []
    assert push(source, inbox).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--inbox"], ["x"], ["--inbox", "a", "b", "c"]])
def test_a_wrong_call_is_no_success(arguments: list[str]) -> None:
    for program in (PUSH, FETCH):
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode not in (0, 1)
        assert "usage: " in done.stderr


def test_a_missing_inbox_and_a_missing_segment_are_no_success(tmp_path: Path, inbox: Path) -> None:
    assert push(segment(tmp_path), tmp_path / "nowhere").returncode == 1
    assert push(tmp_path / Segment(1, 9, MEGABYTE).name, inbox).returncode == 1


def test_kill_9_of_a_push_never_leaves_half_a_segment(tmp_path: Path, inbox: Path) -> None:
    place = random.Random(3)
    for number in range(1, 25):
        source = segment(tmp_path, number)
        running = subprocess.Popen([*PUSH, "--inbox", str(inbox), str(source)])
        time.sleep(place.random() * 0.08)
        running.kill()
        running.wait()
        final = inbox / source.name
        assert not final.exists() or final.read_bytes() == source.read_bytes()
        assert push(source, inbox).returncode == 0  # what the server does next
        assert final.read_bytes() == source.read_bytes()


# The fetch


@pytest.fixture
def store(tmp_path: Path) -> WalStore:
    store = WalStore(tmp_path / "wal")
    store.create()
    return store


def test_a_thousand_segments_go_in_and_come_out_without_loss(
    tmp_path: Path, inbox: Path, store: WalStore
) -> None:
    """Through the functions of the two programs; that the programs call them is shown above."""
    from kyb_backup_pipeline.archiver.fetch import fetch as fetch_one
    from kyb_backup_pipeline.archiver.push import push as push_one

    contents = {}
    for number in range(1, 1001):
        path = tmp_path / Segment(1, number, MEGABYTE).name
        contents[path.name] = random.Random(number).randbytes(5000) + bytes(11384)
        path.write_bytes(contents[path.name])
        push_one(str(path), str(inbox))
        path.unlink()
    for path in sorted(inbox.iterdir()):
        store.add(path, path.name)
        path.unlink()
    destination = tmp_path / "fetched"
    for name, content in contents.items():
        assert fetch_one(str(store.root), name, str(destination)) == 0
        assert destination.read_bytes() == content


def test_what_is_not_there_is_1_and_what_is_damaged_is_no_end_of_the_log(
    tmp_path: Path, store: WalStore
) -> None:
    source = segment(tmp_path)
    added = store.add(source, source.name)
    destination = tmp_path / "fetched"
    assert fetch(store.root, source.name, destination).returncode == 0
    assert destination.read_bytes() == source.read_bytes()
    destination.unlink()
    assert fetch(store.root, Segment(1, 2, MEGABYTE).name, destination).returncode == 1
    assert fetch(store.root, Segment(2, 2, MEGABYTE).name, destination).returncode == 1
    assert fetch(tmp_path / "nowhere", source.name, destination).returncode == 200
    content = added.path.read_bytes()
    for damaged in (content[:-1], content[:100], b"", content[:5000] + b"x" + content[5001:]):
        added.path.write_bytes(damaged)
        done = fetch(store.root, source.name, destination)
        assert done.returncode == 200, done.stderr
        assert not destination.exists()
    added.path.write_bytes(content)
    (added.path.parent / f"{source.name}-{'0' * 64}.zst").write_bytes(content)
    assert fetch(store.root, source.name, destination).returncode == 200


def test_the_store_never_takes_other_content_under_a_known_name(
    tmp_path: Path, store: WalStore
) -> None:
    source = segment(tmp_path)
    store.add(source, source.name)
    assert store.add(source, source.name).name == source.name
    segment(tmp_path, seed=1)
    with pytest.raises(WalConflict, match="other content"):
        store.add(source, source.name)
    assert len(list(store.root.rglob("*.zst"))) == 1
    assert list(store.root.rglob("*.tmp")) == []


def test_kill_9_of_a_fetch_leaves_no_half_segment_in_place(tmp_path: Path, store: WalStore) -> None:
    source = segment(tmp_path)
    store.add(source, source.name)
    destination = tmp_path / "fetched"
    place = random.Random(4)
    for _ in range(15):
        running = subprocess.Popen(
            [*FETCH, "--store", str(store.root), source.name, str(destination)]
        )
        time.sleep(place.random() * 0.08)
        running.kill()
        running.wait()
        assert not destination.exists() or destination.read_bytes() == source.read_bytes()
        destination.unlink(missing_ok=True)


# A server that archives


@pytest.fixture
def archiving(place: Path, tmp_path: Path, drills: Path, python: str) -> Iterator[Primary]:
    """A server with our archive_command; its user reaches a copy of the program and the inbox."""
    folder = Path(f"{place}/archiving-{time.monotonic_ns()}")
    inbox = folder / "inbox"
    inbox.mkdir(parents=True)
    folder.chmod(0o755)
    shutil.copy(ARCHIVER / "push.py", folder)
    settings = {
        "archive_mode": "on",
        "archive_command": f"{python} -I -S {folder}/push.py --inbox {inbox} %p",
    }
    with running_cluster(place, 18, settings=settings) as cluster:
        if cluster.account is not None:
            os.chown(inbox, cluster.account.uid, cluster.account.gid)
        primary = primary_of(
            cluster, tmp_path / "backups", drills,
            KYB_WAL__SOURCE="archive", KYB_WAL__INBOX=str(inbox), KYB_WAL__WAIT="20",
        )  # fmt: skip
        primary.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) AS n")
        yield primary


def archive_failures(cluster: Cluster) -> int:
    return int(execute(cluster.target(), "SELECT failed_count FROM pg_stat_archiver")[0][0])


def test_increments_from_the_inbox_lead_to_every_moment(archiving: Primary) -> None:
    base = archiving.base()
    assert execute(archiving.target, "SELECT count(*) FROM pg_replication_slots") == [(0,)]
    archiving.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    first = archiving.increment()
    archiving.sql("INSERT INTO t SELECT n FROM generate_series(1, 250) AS n")
    second = archiving.increment()
    assert second.require_wal().source == "archive"
    assert second.require_wal().previous == first.backup_id
    inbox = archiving.settings.wal.inbox
    assert inbox is not None
    assert list(inbox.iterdir()) == []
    proof = archiving.drill()
    assert (proof.verdict, proof.figures["rows"]) == ("passed", 1750), proof.summary
    assert archiving.drill(first.require_wal().markers[0].lsn).figures["rows"] == 1500
    for manifest in (base, first, second):
        backup = archiving.repository.find(manifest.backup_id)
        proof = verify_backup(
            archiving.repository, backup, settings=archiving.settings, now=utc_now()
        )
        assert proof.verdict == "passed"


def test_a_full_inbox_makes_the_server_keep_its_segments(archiving: Primary) -> None:
    """A file system of 1.5 MB takes one segment; the next ones wait on the server."""
    inbox = archiving.settings.wal.inbox
    assert inbox is not None
    archiving.base()
    archiving.increment()
    account = archiving.cluster.account
    owner = f",uid={account.uid}" if account else ""
    mount = ["mount", "-t", "tmpfs", "-o", f"size=1536k{owner}", "tmpfs", str(inbox)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        os.chmod(inbox, 0o500)  # no right to mount: a folder that cannot be written says no as well
    before = archive_failures(archiving.cluster)
    try:
        for _ in range(4):
            archiving.sql("INSERT INTO t SELECT 1", "SELECT pg_switch_wal()")
        wait_until(lambda: archive_failures(archiving.cluster) > before, "the server is told no")
        short = archiving.with_settings(
            KYB_WAL__SOURCE="archive", KYB_WAL__INBOX=str(inbox), KYB_WAL__WAIT="0.2"
        )
        with pytest.raises(BackupFailed, match=r"did not come into|no complete"):
            for _ in range(2):
                short.increment()
    finally:
        if os.path.ismount(inbox):
            left = [(path, path.read_bytes()) for path in inbox.iterdir()]
            subprocess.run(["umount", str(inbox)], check=True)
            for path, content in left:
                path.write_bytes(content)
        else:
            os.chmod(inbox, 0o700)
    archiving.increment()
    rows = execute(archiving.target, "SELECT count(*) FROM t")[0][0]
    proof = archiving.drill()
    assert (proof.verdict, proof.figures["rows"]) == ("passed", rows)


def test_a_push_that_was_not_acknowledged_comes_again_and_changes_nothing(
    archiving: Primary,
) -> None:
    inbox = archiving.settings.wal.inbox
    assert inbox is not None
    archiving.base()
    first = archiving.increment()
    name = first.require_wal().segments[-1].name
    segment = archiving.repository.wal.find(name)
    assert segment is not None
    archiving.repository.wal.extract(
        segment, inbox / name
    )  # pushed once more after it was imported
    archiving.increment()
    assert not (inbox / name).exists()
    assert archiving.drill().verdict == "passed"


def test_foreign_and_broken_files_in_the_inbox_are_refused_by_name(archiving: Primary) -> None:
    inbox = archiving.settings.wal.inbox
    assert inbox is not None
    archiving.base()
    first = archiving.increment()
    name = first.require_wal().segments[-1].name
    stored = archiving.repository.wal.find(name)
    assert stored is not None
    archiving.repository.wal.extract(stored, inbox / "whole")
    whole = (inbox / "whole").read_bytes()
    (inbox / "whole").unlink()
    later = Segment(1, 200, MEGABYTE).name
    for content, message in (
        (whole[:1000], "has 1000 bytes"),
        (whole, "holds another segment than its name says"),
        (whole[:24] + b"\x01" * 8 + whole[32:], "comes from another cluster"),
        (bytes(MEGABYTE), "does not begin as a WAL segment does"),
    ):
        (inbox / later).write_bytes(content)
        with pytest.raises(BackupFailed, match=message) as failed:
            archiving.increment()
        assert later in str(failed.value)
        (inbox / later).unlink()
    (inbox / "notes.txt").write_text("not ours")
    archiving.increment()
    assert (inbox / "notes.txt").exists()
    assert archiving.drill().verdict == "passed"


def test_a_server_that_does_not_archive_is_told_with_the_lines_to_add(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(
            cluster, tmp_path / "backups", drills,
            KYB_WAL__SOURCE="archive", KYB_WAL__INBOX=str(tmp_path),
        )  # fmt: skip
        primary.base()
        with pytest.raises(BackupFailed, match="does not archive") as failed:
            primary.increment()
        assert f"kyb-wal-push --inbox {tmp_path} %p" in str(failed.value)


def test_a_server_recovers_with_kyb_wal_fetch_as_its_restore_command(
    archiving: Primary, place: Path, python: str
) -> None:
    """An operator's own recovery, with PostgreSQL's tools and our restore_command alone."""
    archiving.base()
    archiving.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    archiving.increment()
    cluster = archiving.cluster
    wal = archiving.repository.wal.root
    cluster.stop(signal.SIGINT)
    copy = place / f"copy-{cluster.port}"
    shutil.copytree(wal, copy / "wal")
    shutil.rmtree(cluster.data)
    base = archiving.repository.newest("base").folder / "base.tar.zst"
    cluster.data.mkdir(mode=0o700)
    with zstd.open(base, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(cluster.data, **_LIKE_TAR)
    shutil.copy(ARCHIVER / "fetch.py", copy)
    command = f"{python} {copy}/fetch.py --store {copy}/wal %f %p"
    (cluster.data / "recovery.signal").touch()
    with open(cluster.data / "postgresql.auto.conf", "a") as lines:
        lines.write(f"restore_command = '{command}'\narchive_mode = off\n")
    for path in (cluster.data, *cluster.data.rglob("*"), copy, *copy.rglob("*")):
        if cluster.account is not None:
            os.chown(path, cluster.account.uid, cluster.account.gid)
    cluster.start()

    def promoted() -> bool:
        with connect(cluster.target()) as connection:
            return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)

    wait_until(promoted, "recovery has ended")
    assert execute(cluster.target(), "SELECT count(*) FROM t") == [(1500,)]
