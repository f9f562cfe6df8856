"""Base backups, increments and recovery to a moment, on every major version there is."""

import shutil
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.base_archive import Unpacking, read_archives
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.manifest import Finding, utc_now
from kyb_backup_pipeline.engine.point_in_time import recover_into
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.progress import silent
from kyb_backup_pipeline.engine.recovery import Site, recovering, unpack_base
from kyb_backup_pipeline.engine.recovery_plan import (
    Moment,
    coverages,
    parse_moment,
    plan_recovery,
)
from kyb_backup_pipeline.engine.throwaway import throwaway_folder
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.engine.wal import format_lsn, parse_lsn
from kyb_backup_pipeline_tests.conftest import execute, installed_majors
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@pytest.fixture(params=installed_majors())
def primary(
    place: Path, tmp_path: Path, drills: Path, request: pytest.FixtureRequest
) -> Iterator[Primary]:
    """A server of each major version, with one table."""
    with running_cluster(place, request.param) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) AS n")
        yield primary


def rows_at(primary: Primary, moment: Moment) -> int:
    """How many rows the table has when the cluster is recovered to a moment."""
    plan = plan_recovery(primary.repository, moment)
    with throwaway_folder(
        primary.settings, major=primary.cluster.programs.major, needed_bytes=0
    ) as (folder, programs, account):
        site = Site(
            private=folder,
            data=folder / "data",
            tablespaces=folder / "tablespaces",
            programs=programs,
            account=account,
        )
        assert unpack_base(plan, site, silent) == []
        with recovering(
            plan, primary.repository.wal, site, pause=True, patience=60, report=silent
        ) as recovered:
            return int(execute(recovered.target.with_database("postgres"),
                               "SELECT count(*) FROM t")[0][0])  # fmt: skip


def test_a_base_two_increments_and_a_recovery_to_each_moment(primary: Primary) -> None:
    base = primary.base()
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    first = primary.increment()
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 250) AS n")
    second = primary.increment()
    assert (first.require_wal().base, second.require_wal().previous) == (
        base.backup_id, first.backup_id,
    )  # fmt: skip
    for backup in primary.repository.backups(("base", "incremental")):
        proof = verify_backup(primary.repository, backup, settings=primary.settings, now=utc_now())
        assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())
    one, two = first.require_wal().markers[0], second.require_wal().markers[0]
    for at, rows, committed, behind in (
        ("latest", 1750, 2, 0),
        (one.lsn, 1500, 1, 1),
        (one.done_at.isoformat(), 1500, 1, 1),
        (two.lsn, 1750, 2, 0),
        (base.require_wal().end_lsn, 1000, 0, 2),
        (base.require_wal().end_at.isoformat(), 1000, 0, 2),
    ):
        proof = primary.drill(at)
        assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
        assert proof.figures["rows"] == rows, at
        assert (proof.figures["markers_committed"], proof.figures["markers_open"]) == (
            committed, behind,
        )  # fmt: skip
    records = primary.repository.records
    assert records.latest(second.backup_id)["restore_test"].verdict == "passed"
    assert len(records.of(first.backup_id)) >= 3


def test_a_base_without_increments_is_recovered_to_its_own_end(primary: Primary) -> None:
    base = primary.base()
    proof = primary.drill()
    assert (proof.verdict, proof.backup_id) == ("passed", base.backup_id)
    assert proof.figures["rows"] == 1000


def test_what_postgresql_says_of_our_unpacked_base(primary: Primary, tmp_path: Path) -> None:
    base = primary.base()
    folder, findings = tmp_path / "unpacked", list[Finding]()
    backup = primary.repository.find(base.backup_id)

    def found(what: str, message: str) -> None:
        findings.append(Finding(object=what, message=message))

    unpacking = Unpacking(folder, tmp_path / "tablespaces", None, keep_manifest=True)
    folder.mkdir()
    read_archives(backup.folder, base, found, unpack=unpacking, report=silent)
    assert findings == []
    if primary.cluster.programs.major == 18:
        return  # the wheel's pg_verifybackup 18 does not run
    program = primary.cluster.programs.path("pg_verifybackup")
    process.run([program, "--no-parse-wal", folder], deadline=60)
    victim = next(
        path for path in (folder / "base").rglob("*") if path.is_file() and path.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(process.ProcessFailed, match="checksum mismatch"):
        process.run([program, "--no-parse-wal", folder], deadline=60)


def test_a_recovered_cluster_starts_and_goes_on_with_its_own_life(
    primary: Primary, tmp_path: Path, place: Path
) -> None:
    primary.base()
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    increment = primary.increment()
    primary.sql("DELETE FROM t")
    primary.increment()
    marker = increment.require_wal().markers[0]
    into = place / f"recovered-{primary.cluster.port}"
    plan = plan_recovery(primary.repository, parse_moment(marker.lsn))
    outcome = recover_into(primary.settings, plan, into, now=utc_now())
    assert outcome.markers.committed == 1
    cluster = primary.cluster
    primary.cluster.stop()
    shutil.rmtree(cluster.data)
    shutil.move(into, cluster.data)
    cluster.start()
    assert execute(cluster.target(), "SELECT count(*) FROM t") == [(1500,)]
    execute(cluster.target(), "INSERT INTO t VALUES (1)")
    with pytest.raises(Refused, match="exists"):
        recover_into(primary.settings, plan, cluster.data, now=utc_now())


def test_no_committed_transaction_before_a_target_is_missing(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    """Twenty increments while clients write, and a recovery to the end of each."""
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t (n bigint, client int)")
        primary.base()
        stop = threading.Event()
        done = [0, 0, 0]

        def write(client: int) -> None:
            with connect(primary.target) as connection:
                while not stop.is_set():
                    connection.execute("INSERT INTO t VALUES (%s, %s)", (done[client] + 1, client))
                    done[client] += 1  # committed and acknowledged

        writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
        for writer in writers:
            writer.start()
        acknowledged, increments = [], []
        try:
            for _ in range(20):
                acknowledged.append(sum(done))
                increments.append(primary.increment())
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        written = sum(done)
        primary.increment()
        assert acknowledged[-1] > acknowledged[1] > 0
        for before, increment in zip(acknowledged, increments, strict=True):
            marker = increment.require_wal().markers[0]
            rows = rows_at(primary, Moment(position=parse_lsn(marker.lsn)))
            assert before <= rows <= written, increment.backup_id
        assert primary.drill().figures["rows"] == written


def test_a_target_outside_of_what_is_covered_is_refused_with_what_is(primary: Primary) -> None:
    base = primary.base()
    increment = primary.increment()
    wal, last = base.require_wal(), increment.require_wal().markers[0]
    covered = coverages(primary.repository)[0]
    for at in (
        format_lsn(parse_lsn(wal.end_lsn) - 1),
        (wal.end_at - timedelta(seconds=1)).isoformat(),
        format_lsn(parse_lsn(last.lsn) + 1),
        (last.done_at + timedelta(seconds=1)).isoformat(),
        "2099-01-01",
    ):
        with pytest.raises(Refused, match="outside of what the repository covers") as refused:
            plan_recovery(primary.repository, parse_moment(at))
        assert str(covered) in str(refused.value)


def test_no_moment_between_the_last_increment_and_a_new_base_is_lost(primary: Primary) -> None:
    old = primary.base()
    primary.increment()
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n",
                "SELECT pg_switch_wal()")  # fmt: skip
    moment = execute(primary.target, "SELECT clock_timestamp()")[0][0]
    primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 250) AS n",
                "SELECT pg_switch_wal()", "INSERT INTO t VALUES (1)")  # fmt: skip
    new = primary.base()
    increment = primary.increment()
    assert increment.require_wal().base == new.backup_id
    plan = plan_recovery(primary.repository, Moment(time=moment))
    assert plan.base.backup_id == old.backup_id
    proof = primary.drill(moment.isoformat())
    assert (proof.verdict, proof.figures["rows"]) == ("passed", 1500), proof.summary
    assert primary.drill().figures["rows"] == 1751
    backup = primary.repository.find(increment.backup_id)
    verified = verify_backup(primary.repository, backup, settings=primary.settings, now=utc_now())
    assert (verified.verdict, verified.findings) == ("passed", ())


def test_a_quiet_database_says_so_and_is_covered_up_to_now(primary: Primary) -> None:
    primary.base()
    primary.increment()
    before = execute(primary.target, "SELECT clock_timestamp()")[0][0]
    quiet = primary.increment()
    assert quiet.notes == ("nothing was written since the last one; it covers now",)
    assert quiet.require_wal().end_at > before
    assert plan_recovery(primary.repository, Moment(time=before)).increment == quiet


def test_a_tablespace_elsewhere_is_copied_and_recovery_writes_nothing_there(
    primary: Primary, place: Path
) -> None:
    outside = place / f"space-{primary.cluster.port}"
    outside.mkdir()
    if primary.cluster.account is not None:
        shutil.chown(outside, primary.cluster.account.uid, primary.cluster.account.gid)
    primary.sql(
        f"CREATE TABLESPACE elsewhere LOCATION '{outside}'",
        "CREATE TABLE far TABLESPACE elsewhere AS SELECT n FROM generate_series(1, 5000) AS n",
    )
    base = primary.base()
    assert list(base.require_wal().tablespaces.values()) == [str(outside)]
    primary.sql("INSERT INTO far SELECT n FROM generate_series(1, 5000) AS n")
    increment = primary.increment()
    primary.cluster.stop()
    before = sorted((p, p.stat().st_mtime_ns, p.stat().st_size) for p in outside.rglob("*"))
    proof = primary.drill()
    assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
    assert proof.figures["rows"] == 11000
    after = sorted((p, p.stat().st_mtime_ns, p.stat().st_size) for p in outside.rglob("*"))
    assert before == after
    backup = primary.repository.find(base.backup_id)
    verified = verify_backup(primary.repository, backup, settings=primary.settings, now=utc_now())
    assert verified.verdict == "passed"
    assert increment.require_wal().tablespaces == base.require_wal().tablespaces


@pytest.mark.parametrize("dropped", [False, True])
def test_a_tablespace_made_since_the_base_is_not_replayed(
    place: Path, tmp_path: Path, drills: Path, dropped: bool
) -> None:
    with running_cluster(place, 16) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.base()
        outside = place / f"since-{cluster.port}"
        outside.mkdir()
        if cluster.account is not None:
            shutil.chown(outside, cluster.account.uid, cluster.account.gid)
        primary.sql(f"CREATE TABLESPACE since LOCATION '{outside}'")
        if dropped:  # then only the log itself tells
            primary.sql("DROP TABLESPACE since")
        primary.increment()
        before = sorted(outside.rglob("*"))
        proof = primary.drill()
        assert proof.verdict == "could_not_verify"
        assert str(outside) in proof.summary
        assert sorted(outside.rglob("*")) == before


def test_segments_of_the_usual_size_and_amcheck_where_it_is(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    with running_cluster(place, 15 if 15 in installed_majors() else 16,
                         arguments=("--no-locale",)) as cluster:  # fmt: skip
        primary = primary_of(cluster, tmp_path / "backups", drills)
        with connect(primary.target) as connection:
            try:
                connection.execute("CREATE EXTENSION amcheck")
                databases = 1
            except psycopg.errors.FeatureNotSupported:
                databases = 0
        primary.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) AS n",
                    "CREATE INDEX ON t (n)")  # fmt: skip
        primary.base()
        increment = primary.increment()
        assert increment.require_wal().segment_bytes == 16 * 2**20
        proof = primary.drill()
        assert (proof.verdict, proof.findings) == ("passed", ())
        assert proof.figures["databases_checked"] == databases
