"""What an attack on recovery found: each was a lie, a loss, or an alarm over a good chain."""

import shutil
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.archiver.fetch import fetch
from kyb_backup_pipeline.engine import base_backup, incremental
from kyb_backup_pipeline.engine.errors import CouldNotVerify, Refused
from kyb_backup_pipeline.engine.manifest import MANIFEST, utc_now
from kyb_backup_pipeline.engine.point_in_time import Outcome, recover_into
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery_drill import drill_point_in_time
from kyb_backup_pipeline.engine.recovery_plan import BrokenChain, parse_moment, plan_recovery
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.running import wait_until
from kyb_backup_pipeline_tests.test_wal_faults import grow, in_recovery, standby_of, verified
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@pytest.fixture
def primary(place: Path, tmp_path: Path, drills: Path) -> Iterator[Primary]:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) AS n")
        yield primary


def recovered(primary: Primary, place: Path, at: str = "latest") -> Outcome:
    plan = plan_recovery(primary.repository, parse_moment(at))
    into = place / f"into-{time.monotonic_ns()}"
    try:
        return recover_into(primary.settings, plan, into, now=utc_now())
    finally:
        shutil.rmtree(into, ignore_errors=True)


def test_a_tablespace_made_while_the_base_was_copied_is_not_replayed(
    primary: Primary, place: Path
) -> None:
    outside = place / f"during-{primary.cluster.port}"
    outside.mkdir()
    if primary.cluster.account is not None:
        shutil.chown(outside, primary.cluster.account.uid, primary.cluster.account.gid)
    grow(primary, 4)
    slow = primary.with_settings(KYB_BASE_BACKUP__RATE_LIMIT=str(4 << 20))
    thread = threading.Thread(target=slow.base)
    thread.start()
    place_of_it = primary.repository.folder("base")
    wait_until(lambda: any(place_of_it.glob(".*/base.tar.zst")), "the copy has begun")
    time.sleep(0.5)
    primary.sql(f"CREATE TABLESPACE ts LOCATION '{outside}'",
                "CREATE TABLE far TABLESPACE ts AS SELECT n FROM generate_series(1, 1000) AS n")  # fmt: skip
    thread.join()
    assert primary.repository.backups(("base",))[0].require_manifest().require_wal()
    before = sorted((p, p.stat().st_mtime_ns) for p in outside.rglob("*"))
    proof = primary.drill()
    assert proof.verdict == "could_not_verify", proof.summary
    assert str(outside) in proof.summary
    with pytest.raises(CouldNotVerify, match="would make a tablespace"):
        recovered(primary, place)
    assert sorted((p, p.stat().st_mtime_ns) for p in outside.rglob("*")) == before


@pytest.mark.parametrize("lost", ["segment", "manifest"])
def test_latest_is_never_what_a_hole_or_damage_left_of_it(
    primary: Primary, place: Path, lost: str
) -> None:
    primary.base()
    increments = []
    for _ in range(3):
        grow(primary)
        increments.append(primary.increment())
    if lost == "segment":
        name = increments[1].require_wal().segments[0].name
        stored = primary.repository.wal.find(name)
        assert stored is not None
        stored.path.unlink()
    else:
        name = increments[2].backup_id
        path = primary.repository.find(name).folder / MANIFEST
        path.write_bytes(path.read_bytes()[:100])
    proof = primary.drill()
    assert proof.verdict == "failed"
    assert name in proof.summary
    with pytest.raises(BrokenChain, match=name):
        recovered(primary, place)
    first = increments[0].require_wal().markers[0]
    assert recovered(primary, place, first.lsn).markers.committed == 1


@pytest.mark.parametrize("clock", ["incremental", "base"])
def test_clocks_that_were_wrong_hide_no_increment(
    primary: Primary, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    def shifted() -> datetime:
        return utc_now() + (timedelta(hours=3) if clock == "base" else timedelta(hours=-1))

    monkeypatch.setattr(base_backup if clock == "base" else incremental, "utc_now", shifted)
    primary.base()
    grow(primary)
    first = primary.increment()
    grow(primary)
    primary.increment()
    assert primary.drill().figures["markers_committed"] == 2
    assert primary.drill(first.require_wal().markers[0].lsn).verdict == "passed"


def test_where_two_timelines_differ_one_must_be_named(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    primary.base()
    with standby_of(primary, place) as standby:
        primary.increment()
        wait_until(lambda: caught_up(primary.cluster, standby), "the standby follows")
        execute(standby.target(), "SELECT pg_promote()")
        wait_until(lambda: not in_recovery(standby), "the standby is promoted")
        promoted = primary_of(standby, tmp_path / "backups", drills)
        promoted.sql("CREATE TABLE on_two AS SELECT n FROM generate_series(1, 7) AS n")
        grow(promoted)
        two = promoted.increment().require_wal().markers[0]
        grow(primary, 4)
        primary.increment()  # the old primary wrote on, and its clock is the later one
        proof = promoted.drill()
        assert (proof.verdict, proof.figures["tables"]) == ("passed", 2), proof.summary
        with pytest.raises(Refused, match="they differ") as refused:
            promoted.drill(two.lsn)
        assert "--timeline" in str(refused.value)
        for timeline, tables in ((2, 2), (1, 1)):
            moment = parse_moment(two.lsn, timeline)
            chosen = drill_point_in_time(promoted.settings, moment, now=utc_now())
            assert (chosen.verdict, chosen.figures["tables"]) == ("passed", tables), timeline


def test_folders_of_others_beside_the_new_one_are_left_alone(primary: Primary, place: Path) -> None:
    primary.base()
    primary.increment()
    into = place / f"into-{primary.cluster.port}"
    other = Path(f"{into}.partial")
    other.mkdir()
    (other / "precious").write_text("x")
    plan = plan_recovery(primary.repository, parse_moment("latest"))
    recover_into(primary.settings, plan, into, now=utc_now())
    assert (other / "precious").exists()
    assert list(place.glob(f".{into.name}.*")) == []


def test_a_hole_in_the_store_is_no_end_of_the_log_for_wal_fetch(
    primary: Primary, tmp_path: Path
) -> None:
    primary.base()
    grow(primary, 4)
    names = [s.name for s in primary.increment().require_wal().segments]
    store = primary.repository.wal
    hole = store.find(names[1])
    assert hole is not None
    hole.path.unlink()
    destination = str(tmp_path / "fetched")
    with pytest.raises(ValueError, match=f"{names[2]} behind it is there"):
        fetch(str(store.root), names[1], destination)
    assert fetch(str(store.root), names[2], destination) == 0
    assert fetch(str(store.root), "0" * 7 + "1" + "0" * 14 + "FF", destination) == 1


def test_markers_that_the_server_has_forgotten_are_no_alarm(primary: Primary, place: Path) -> None:
    primary.base()
    primary.increment()
    primary.sql(
        "CREATE UNLOGGED TABLE burnt (n int)",
        """DO $$ BEGIN FOR i IN 1..1060000 LOOP
             BEGIN INSERT INTO burnt VALUES (1); EXCEPTION WHEN OTHERS THEN NULL; END;
             IF i % 50000 = 0 THEN COMMIT; TRUNCATE burnt; END IF;
           END LOOP; END $$""",
        "ALTER DATABASE template0 ALLOW_CONNECTIONS true",
    )
    for name in ("postgres", "template1", "template0"):
        execute(primary.cluster.target(name), "VACUUM (FREEZE)")
    primary.sql("CHECKPOINT")
    primary.increment()
    proof = primary.drill()
    assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
    assert proof.figures["markers_committed"] == 1
    assert recovered(primary, place).markers.committed == 1


def test_segments_of_64_megabytes(place: Path, tmp_path: Path, drills: Path) -> None:
    with running_cluster(place, 18, arguments=("--no-locale", "--wal-segsize=64")) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.base()
        primary.increment()
        assert primary.drill().verdict == "passed"


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER ROLE postgres SET default_transaction_isolation = 'serializable'",
        "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'",
        "ALTER DATABASE template1 ALLOW_CONNECTIONS false",
        "ALTER ROLE postgres SET statement_timeout = '1ms'",
    ],
)
def test_settings_of_roles_and_databases_are_no_obstacle(
    primary: Primary, place: Path, statement: str
) -> None:
    primary.sql(statement)
    primary.base()
    primary.increment()
    proof = primary.drill()
    assert (proof.verdict, proof.figures["rows"]) == ("passed", 1000), proof.summary
    assert recovered(primary, place).markers.committed == 1


def test_a_lock_that_was_held_at_the_target_is_a_note_and_no_hang(primary: Primary) -> None:
    primary.base()
    with connect(primary.target, autocommit=False) as holder:
        holder.execute("CREATE TABLE zz ()")
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        increment = primary.increment()
        holder.rollback()
    primary.increment()
    proof = primary.drill(increment.require_wal().markers[0].lsn)
    assert (proof.verdict, proof.findings) == ("passed", ())
    assert any("locked at the target: postgres.public.t" in note for note in proof.notes)


def test_a_transaction_too_large_for_hot_standby_is_no_obstacle(primary: Primary) -> None:
    with connect(primary.target, autocommit=False) as large:
        for n in range(100):
            large.execute(f"SAVEPOINT s{n}")
            large.execute("INSERT INTO t VALUES (2)")
        primary.base()
        first = primary.increment()
        primary.increment()
        proof = primary.drill(first.require_wal().markers[0].lsn)
        assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
        assert proof.figures["rows"] == 1000
        large.commit()
    primary.increment()
    assert primary.drill().figures["rows"] == 1100


def test_a_setting_raised_and_lowered_between_two_backups_stops_no_recovery(
    primary: Primary, place: Path
) -> None:
    primary.base()
    for value in ("150", "100"):
        primary.sql(f"ALTER SYSTEM SET max_connections = {value}")
        primary.cluster.stop()
        primary.cluster.start()
    primary.increment()
    assert recovered(primary, place).markers.committed == 1
    assert primary.drill().verdict in ("passed", "could_not_verify")


def test_a_base_of_a_standby_that_ends_between_two_segments(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    with standby_of(primary, place) as standby:
        primary.sql("CHECKPOINT", "SELECT pg_switch_wal()")
        wait_until(lambda: caught_up(primary.cluster, standby), "the standby follows")
        other = primary_of(standby, tmp_path / "backups", drills)
        other.base()
        proof = other.drill()
        assert proof.verdict == "passed", proof.summary
        assert proof.figures["rows"] == 1000


def caught_up(primary: Cluster, standby: Cluster) -> bool:
    (here,) = execute(primary.target(), "SELECT pg_current_wal_lsn()")[0]
    (there,) = execute(standby.target(), "SELECT pg_last_wal_replay_lsn()")[0]
    return bool(here == there)


def test_a_folder_with_blanks_and_quotes_is_no_obstacle(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    blanks = drills / "a b%f'"
    blanks.mkdir(mode=0o755)
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", blanks)
        primary.base()
        primary.increment()
        proof = primary.drill()
        assert proof.verdict == "passed", proof.summary
    blanks.rmdir()


def test_a_damaged_history_is_found_and_healed_by_the_next_increment(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    primary.base()
    with standby_of(primary, place) as standby:
        primary.increment()
        wait_until(lambda: caught_up(primary.cluster, standby), "the standby follows")
        primary.cluster.stop()
        execute(standby.target(), "SELECT pg_promote()")
        wait_until(lambda: not in_recovery(standby), "the standby is promoted")
        promoted = primary_of(standby, tmp_path / "backups", drills)
        increment = promoted.increment()
        history = promoted.repository.wal.find("00000002.history")
        assert history is not None
        content, text = history.path.read_bytes(), promoted.repository.wal.history(2)
        for at in range(len(content)):
            history.path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            proof = verified(promoted, increment)
            if proof.verdict == "passed":  # a bit of the compression's header that says nothing
                assert promoted.repository.wal.history(2) == text
            else:
                assert proof.findings[0].object == "00000002.history", at
        history.path.write_bytes(content[:-9])
        assert verified(promoted, increment).verdict == "failed"
        assert promoted.drill().verdict == "failed"
        promoted.increment()
        assert verified(promoted, increment).verdict == "passed"
        assert promoted.drill().verdict == "passed"


def test_databases_that_take_no_connections_are_named(primary: Primary) -> None:
    primary.sql("CREATE DATABASE closed", "ALTER DATABASE closed ALLOW_CONNECTIONS false",
                "CREATE DATABASE pattern IS_TEMPLATE true")  # fmt: skip
    primary.base()
    primary.increment()
    proof = primary.drill()
    assert proof.verdict == "passed"
    assert "not read, since they take no connections: closed" in proof.notes
    assert proof.figures["databases"] == 2
