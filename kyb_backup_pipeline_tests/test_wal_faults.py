"""What can happen to a chain of WAL, done to it for real: each must be told by its name."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.base_backup import take_base_backup
from kyb_backup_pipeline.engine.compression import Decompressor, compressor
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    DatabaseUnreachable,
    KybError,
    Refused,
)
from kyb_backup_pipeline.engine.manifest import Manifest, Proof, utc_now
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery_plan import coverages
from kyb_backup_pipeline.engine.replication import read_slot
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.conftest import execute, settings_file
from kyb_backup_pipeline_tests.running import Cli, wait_until
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@pytest.fixture
def primary(place: Path, tmp_path: Path, drills: Path) -> Iterator[Primary]:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) AS n")
        yield primary


def grow(primary: Primary, megabytes: int = 2) -> None:
    """Write so much WAL, in a table and out of it."""
    for _ in range(megabytes):
        primary.sql(
            "INSERT INTO t SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, 5000) AS n",
            "SELECT pg_switch_wal()",
        )


def chain(primary: Primary) -> tuple[Manifest, Manifest, Manifest]:
    """A base and two increments of several segments each."""
    base = primary.base()
    grow(primary)
    first = primary.increment()
    grow(primary)
    return base, first, primary.increment()


def verified(primary: Primary, manifest: Manifest) -> Proof:
    return verify_backup(
        primary.repository,
        primary.repository.find(manifest.backup_id),
        settings=primary.settings,
        now=utc_now(),
    )


def stored(primary: Primary, name: str) -> Path:
    found = primary.repository.wal.find(name)
    assert found is not None
    return found.path


# What lies in the store


def test_a_segment_missing_in_the_middle_has_its_name_everywhere(primary: Primary) -> None:
    base, first, second = chain(primary)
    victim = first.require_wal().segments[1].name
    stored(primary, victim).unlink()
    assert verified(primary, first).findings[0].object == f"WAL segment {victim}"
    assert victim in verified(primary, second).summary
    assert coverages(primary.repository)[0].missing == (victim,)
    with pytest.raises(Refused, match="outside") as refused:
        primary.drill(second.require_wal().markers[0].lsn)
    assert victim in str(refused.value)
    primary.sql("CHECKPOINT")
    grow(primary)
    primary.sql("CHECKPOINT")
    with pytest.raises(BackupFailed, match="no longer has") as failed:
        primary.increment()
    assert "kyb-backup backup base" in str(failed.value)
    assert primary.base().backup_id != base.backup_id
    grow(primary)
    primary.increment()
    assert primary.drill().verdict == "passed"


def test_a_hole_is_filled_while_the_server_still_has_the_segment(primary: Primary) -> None:
    _, first, _ = chain(primary)
    victim = first.require_wal().segments[1].name
    stored(primary, victim).unlink()
    primary.increment()
    assert verified(primary, first).verdict == "passed"
    assert primary.drill().figures["markers_committed"] == 3


def test_a_damaged_segment_fails_the_verification_and_the_recovery(primary: Primary) -> None:
    _, first, second = chain(primary)
    victim = second.require_wal().segments[0].name
    path = stored(primary, victim)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    assert verified(primary, first).verdict == "passed"
    proof = verified(primary, second)
    assert (proof.verdict, proof.findings[0].object) == ("failed", f"WAL segment {victim}")
    proof = primary.drill()
    assert proof.verdict == "failed"
    assert victim in proof.summary
    assert primary.drill(first.require_wal().markers[0].lsn).verdict == "passed"


def test_every_flipped_byte_of_a_base_and_its_increment_is_found(primary: Primary) -> None:
    base, first, _ = chain(primary)
    place = random.Random(7)
    folder = primary.repository.find(base.backup_id).folder
    files = [
        *((path, base) for path in folder.iterdir()),
        *((stored(primary, s.name), first) for s in first.require_wal().segments),
        *((p, first) for p in primary.repository.find(first.backup_id).folder.iterdir()),
    ]
    for round_ in range(60):
        path, manifest = files[round_ % len(files)]
        content = path.read_bytes()
        at = place.randrange(len(content))
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << place.randrange(8)]) + content[at + 1 :]
        )
        if verified(primary, manifest).verdict == "passed":
            # bits of the compression that say nothing: a segment is what it holds
            assert path.parent.parent == primary.repository.wal.root, (path, at)
            assert decompressed(path.read_bytes()) == decompressed(content), (path, at)
        path.write_bytes(content)
    for manifest in (base, first):
        proof = verified(primary, manifest)
        assert (proof.verdict, proof.findings) == ("passed", ())


def decompressed(content: bytes) -> bytes:
    return b"".join(Decompressor("zstd").feed(content))


def test_a_base_cut_short_or_without_its_archive_is_found(primary: Primary) -> None:
    base = primary.base()
    archive = primary.repository.find(base.backup_id).folder / "base.tar.zst"
    content = archive.read_bytes()
    for length in (0, 1, 1000, len(content) // 2, len(content) - 1):
        archive.write_bytes(content[:length])
        assert verified(primary, base).verdict == "failed", length
        assert primary.drill().verdict == "failed", length
    archive.unlink()
    assert verified(primary, base).findings[0].object == "base.tar.zst"


def test_a_segment_swapped_for_another_of_the_same_chain_is_found(primary: Primary) -> None:
    _, first, _ = chain(primary)
    one, other = (stored(primary, s.name) for s in first.require_wal().segments[:2])
    forged = one.with_name(one.name[:25] + other.name[25:])
    one.unlink()
    shutil.copy(other, forged)
    proof = verified(primary, first)
    assert proof.verdict == "failed"
    assert "another than this increment recorded" in proof.summary
    assert primary.drill().verdict == "failed"


def test_an_increment_whose_base_is_gone_cannot_be_replayed(primary: Primary) -> None:
    base, first, _ = chain(primary)
    shutil.rmtree(primary.repository.find(base.backup_id).folder)
    proof = verified(primary, first)
    assert proof.findings[0].object == f"base backup {base.backup_id}"
    with pytest.raises(KybError, match="no base backup"):
        primary.drill()


# What the server does


def test_a_promoted_standby_is_followed_on_its_new_timeline(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    base = primary.base()
    grow(primary)
    first = primary.increment()
    with standby_of(primary, place) as standby:
        grow(primary, 1)
        primary.sql("CREATE TABLE last_words AS SELECT 1 AS n")
        wait_until(lambda: has_table(standby, "last_words"), "the standby follows")
        primary.cluster.stop()
        execute(standby.target(), "SELECT pg_promote()")
        promoted = primary_of(standby, tmp_path / "backups", drills)
        grow(promoted, 1)
        second = promoted.increment()
        grow(promoted, 1)
        third = promoted.increment()
        assert (second.require_wal().timeline, second.require_wal().base) == (2, base.backup_id)
        for manifest in (first, second, third):
            assert verified(promoted, manifest).verdict == "passed"
        rows = execute(standby.target(), "SELECT count(*) FROM t")[0][0] + 1
        proof = promoted.drill()
        assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
        assert (proof.figures["rows"], proof.figures["markers_committed"]) == (rows, 3)
        earlier = promoted.drill(first.require_wal().markers[0].lsn)
        assert (earlier.verdict, earlier.figures["markers_committed"]) == ("passed", 1)


def test_a_primary_that_comes_back_beside_its_successor_is_no_successor(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    """The old primary wrote on, into the store, behind the point where the standby was promoted."""
    primary.base()
    with standby_of(primary, place) as standby:
        execute(standby.target(), "SELECT pg_promote()")
        wait_until(lambda: not in_recovery(standby), "the standby is promoted")
        grow(primary)
        primary.increment()  # on timeline 1, beyond the fork
        promoted = primary_of(standby, tmp_path / "backups", drills)
        grow(promoted)
        manifest = promoted.increment()
        assert manifest.require_wal().timeline == 2
        proof = promoted.drill()
        rows = execute(standby.target(), "SELECT count(*) FROM t")[0][0]
        assert (proof.verdict, proof.figures["rows"]) == ("passed", rows), proof.summary


def standby_of(primary: Primary, place: Path) -> "_Standby":
    return _Standby(primary, place)


class _Standby:
    """A standby that follows a primary over its socket."""

    def __init__(self, primary: Primary, place: Path) -> None:
        source = primary.cluster
        port = free_port()
        self.cluster = Cluster(
            folder=place / f"standby-{port}",
            programs=source.programs,
            account=source.account,
            port=port,
        )
        for folder in (self.cluster.folder, self.cluster.sockets):
            folder.mkdir(mode=0o700)
        subprocess.run(
            [source.programs.path("pg_basebackup"), "-h", source.sockets, "-p", str(source.port),
             "-U", "postgres", "-D", self.cluster.data, "-R", "-X", "stream", "-c", "fast"],
            check=True, capture_output=True,
        )  # fmt: skip
        if source.account is not None:
            for path in (self.cluster.folder, *self.cluster.folder.rglob("*")):
                os.chown(path, source.account.uid, source.account.gid)

    def __enter__(self) -> Cluster:
        self.cluster.start()
        return self.cluster

    def __exit__(self, *_: object) -> None:
        self.cluster.stop()


def has_table(cluster: Cluster, name: str) -> bool:
    return bool(execute(cluster.target(), "SELECT to_regclass(%s) IS NOT NULL", (name,))[0][0])


def in_recovery(cluster: Cluster) -> bool:
    return bool(execute(cluster.target(), "SELECT pg_is_in_recovery()")[0][0])


def test_a_standby_takes_no_increments_and_says_where_they_are_taken(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    primary.base()
    with standby_of(primary, place) as standby:
        other = primary_of(standby, tmp_path / "backups", drills)
        with pytest.raises(BackupFailed, match="is a standby"):
            other.increment()
        assert other.base().require_wal().timeline == 1


def test_a_slot_that_was_dropped_is_made_anew_and_a_hole_is_told(primary: Primary) -> None:
    primary.base()
    grow(primary)
    primary.sql("SELECT pg_drop_replication_slot('kyb_backup')")
    primary.increment()  # the server still had everything
    assert primary.drill().verdict == "passed"
    primary.sql("SELECT pg_drop_replication_slot('kyb_backup')")
    grow(primary, 6)
    primary.sql("CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT")
    grow(primary, 6)
    primary.sql("CHECKPOINT")
    with pytest.raises(BackupFailed, match=r"no longer has the WAL") as failed:
        primary.increment()
    assert "kyb-backup backup base" in str(failed.value)
    primary.base()
    primary.increment()
    assert primary.drill().verdict == "passed"


def test_a_slot_that_was_invalidated_is_told_and_a_new_base_heals_it(primary: Primary) -> None:
    primary.base()
    primary.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'", "SELECT pg_reload_conf()")
    time.sleep(0.3)
    grow(primary, 8)
    primary.sql("CHECKPOINT")
    slot = read_slot(primary.target, "kyb_backup")
    assert slot is not None
    assert slot.status == "lost"
    with pytest.raises(BackupFailed, match=r"no longer has the WAL"):
        primary.increment()
    primary.base()
    primary.increment()
    assert primary.drill().verdict == "passed"


def test_a_slot_without_a_bound_is_not_made_unless_the_settings_say_so(primary: Primary) -> None:
    primary.sql("ALTER SYSTEM SET max_slot_wal_keep_size = -1", "SELECT pg_reload_conf()")
    wait_until(
        lambda: execute(primary.target, "SHOW max_slot_wal_keep_size") == [("-1",)], "reloaded"
    )
    with pytest.raises(Refused, match="could fill the server's disk"):
        primary.base()
    assert read_slot(primary.target, "kyb_backup") is None
    primary.with_settings(KYB_WAL__ALLOW_UNBOUNDED_SLOT="true").base()
    assert read_slot(primary.target, "kyb_backup") is not None


def test_too_little_wal_is_told_with_the_lines_for_postgresql_conf(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    few = {"wal_level": "minimal", "max_wal_senders": "0"}
    with running_cluster(place, 18, settings=few) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        with pytest.raises(BackupFailed, match="wal_level = minimal") as failed:
            primary.base()
        assert "wal_level = replica" in str(failed.value)


def test_a_role_without_replication_and_one_that_may_not_switch_are_told(primary: Primary) -> None:
    primary.sql("CREATE ROLE plain LOGIN", "CREATE ROLE copier LOGIN REPLICATION")
    plain = primary.with_settings(DB_USER="plain")
    with pytest.raises(DatabaseUnreachable) as refused:
        plain.base()
    assert "ALTER ROLE USER REPLICATION" in str(refused.value)
    copier = primary.with_settings(DB_USER="copier")
    copier.base()
    with pytest.raises(BackupFailed, match="may not close a WAL segment") as failed:
        copier.increment()
    assert "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO copier" in str(failed.value)
    primary.sql("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO copier")
    copier.increment()
    assert copier.drill().verdict == "passed"


def test_a_pg_hba_without_a_replication_line_is_told(primary: Primary) -> None:
    path = primary.cluster.data / "pg_hba.conf"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "replication" not in line))
    primary.sql("SELECT pg_reload_conf()")
    time.sleep(0.3)
    with pytest.raises(DatabaseUnreachable, match="pg_hba") as refused:
        primary.base()
    assert "host  replication" in str(refused.value)


def test_a_server_that_restarts_in_mid_base_backup_leaves_nothing(primary: Primary) -> None:
    grow(primary, 4)
    slow = primary.with_settings(KYB_BASE_BACKUP__RATE_LIMIT=str(1 << 20))
    failures: list[KybError] = []

    def take() -> None:
        try:
            take_base_backup(slow.settings, Request(backup_id="broken"), now=utc_now())
        except KybError as error:
            failures.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    folder = primary.repository.folder("base") / ".broken.partial" / "base.tar.zst"
    wait_until(lambda: folder.exists() and folder.stat().st_size > 0, "the copy has begun")
    primary.cluster.stop(signal.SIGQUIT)
    primary.cluster.start()
    thread.join()
    assert isinstance(failures[0], BackupFailed)
    assert primary.repository.backups(("base",)) == []
    assert list(primary.repository.folder("base").glob(".*")) == []
    primary.base()
    assert primary.drill().verdict == "passed"


def test_another_cluster_is_not_taken_for_the_one_of_the_base(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    primary.base()
    with running_cluster(place, 18) as cluster:
        other = primary_of(cluster, tmp_path / "backups", drills)
        with pytest.raises(BackupFailed, match="no base backup of this cluster"):
            other.increment()
        other.base()
        other.increment()
        assert other.drill().verdict == "passed"


# kill -9


@pytest.mark.parametrize("kind", ["base", "incremental"])
def test_kill_9_at_random_moments_leaves_no_half_backup_and_no_hole(
    primary: Primary, tmp_path: Path, kind: str
) -> None:
    cli = Cli(settings_file(primary.settings, tmp_path / "kyb.toml"))
    primary.base()
    place = random.Random(kind)
    for _ in range(8):
        grow(primary, 3)
        run = cli.start("backup", kind)
        time.sleep(0.25 + place.random() * 0.6)
        run.kill(signal.SIGKILL)
        run.wait()
        for backup in primary.repository.backups(("base", "incremental")):
            assert verified(primary, backup.require_manifest()).verdict == "passed"
    wait_until(lambda: receivers(primary) == [], "what the kills left has ended")
    primary.increment()
    assert list(primary.repository.wal.receiving.iterdir()) == []
    rows = execute(primary.target, "SELECT count(*) FROM t")[0][0]
    proof = primary.drill()
    assert (proof.verdict, proof.figures["rows"]) == ("passed", rows), proof.summary


def receivers(primary: Primary) -> list[tuple[object, ...]]:
    with connect(primary.target) as connection:
        return connection.execute("SELECT pid FROM pg_stat_replication").fetchall()


def test_a_placeholder_of_a_killed_receiver_never_becomes_a_segment(primary: Primary) -> None:
    primary.base()
    store = primary.repository.wal
    store.create()
    size = 1 << 20
    name = f"{1:08X}{0:08X}{0xF0:08X}"
    with open(store.receiving / name, "wb") as file:
        file.truncate(size)
    primary.increment()
    assert store.find(name) is None


def forged(content: bytes) -> bytes:
    work = compressor("zstd", level=None, threads=1)
    return work.compress(content) + work.flush()


def test_a_forged_segment_that_fits_its_own_name_is_not_what_was_recorded(primary: Primary) -> None:
    _, first, _ = chain(primary)
    segment = first.require_wal().segments[0]
    path = stored(primary, segment.name)
    path.unlink()
    content = bytes(1 << 20)
    digest = hashlib.sha256(content).hexdigest()
    (path.parent / f"{segment.name}-{digest}.zst").write_bytes(forged(content))
    assert verified(primary, first).verdict == "failed"
    proof = primary.drill()
    assert proof.verdict == "failed"
    assert segment.name in proof.summary
