"""Retention of chains on a real server: behind it every moment of the window is still recovered."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.holds import Hold, Holds
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.prune import PruneWish, prune
from kyb_backup_pipeline.engine.prune_records import PruneRecord
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.running import wait_until
from kyb_backup_pipeline_tests.test_wal_faults import grow, has_table, standby_of
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@pytest.fixture
def primary(place: Path, tmp_path: Path, drills: Path) -> Iterator[Primary]:
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) AS n")
        yield primary


def clock(primary: Primary) -> datetime:
    found = execute(primary.target, "SELECT clock_timestamp()")[0][0]
    assert isinstance(found, datetime)
    return found


def rows(primary: Primary) -> int:
    return int(execute(primary.target, "SELECT count(*) FROM t")[0][0])


def prune_before(primary: Primary, limit: datetime) -> PruneRecord:
    """Prune a day behind ``limit`` with a window of a day, so that the window begins there."""
    settings = RetentionSettings(incremental_days=1)
    now = limit + timedelta(days=1)
    record, _ = prune(primary.repository, settings, PruneWish(), now=now)
    return record


def gone(record: PruneRecord) -> set[str]:
    return {one.id for one in record.deleted if one.kind != "wal"}


def all_verified(primary: Primary) -> bool:
    backups = primary.repository.backups(("base", "incremental"))
    proofs: list[Proof] = [
        verify_backup(primary.repository, b, settings=primary.settings, now=utc_now())
        for b in backups
    ]
    return len(proofs) > 0 and {proof.verdict for proof in proofs} == {"passed"}


def recovered(primary: Primary, at: str) -> float:
    proof = primary.drill(at)
    assert proof.verdict == "passed", proof.summary
    return proof.figures["rows"]


def test_every_moment_of_the_window_is_recovered_behind_a_prune(primary: Primary) -> None:
    old = [primary.base()]
    for _ in range(2):
        grow(primary, 1)
        old.append(primary.increment())
    second = primary.base()
    grow(primary, 1)
    primary.increment()
    grow(primary, 1)
    at_begin, begin = rows(primary), clock(primary)
    grow(primary, 1)
    primary.increment()
    third = primary.base()
    grow(primary, 1)
    at_middle, middle = rows(primary), clock(primary)
    grow(primary, 1)
    last = primary.increment()
    before = len(primary.repository.wal.segments())
    record = prune_before(primary, begin)
    assert gone(record) == {manifest.backup_id for manifest in old}
    deleted = sum(one.count for one in record.deleted if one.kind == "wal")
    assert deleted >= 2
    assert len(primary.repository.wal.segments()) == before - deleted
    assert all_verified(primary)
    assert recovered(primary, begin.isoformat()) == at_begin
    assert recovered(primary, middle.isoformat()) == at_middle
    assert recovered(primary, "latest") == rows(primary)
    grow(primary, 1)
    following = primary.increment()  # the chain goes on
    assert following.require_wal().previous == last.backup_id
    record = prune_before(primary, middle)
    assert second.backup_id in gone(record)
    assert third.backup_id not in gone(record)
    assert all_verified(primary)
    assert recovered(primary, middle.isoformat()) == at_middle
    assert recovered(primary, "latest") == rows(primary)


def test_a_held_increment_is_recovered_when_all_around_it_is_gone(primary: Primary) -> None:
    primary.base()
    grow(primary, 1)
    held = primary.increment()
    then = rows(primary)
    grow(primary, 1)
    primary.base()
    primary.increment()
    primary.base()
    grow(primary, 1)
    primary.increment()
    now = utc_now() + timedelta(days=1)
    Holds(primary.repository.root).place(
        Hold(backup_id=held.backup_id, until=now + timedelta(days=9), why="audit")
    )
    assert len(gone(prune_before(primary, clock(primary)))) == 2
    assert all_verified(primary)
    assert recovered(primary, held.require_wal().markers[0].lsn) == then


def test_behind_a_promotion_the_old_timeline_goes_only_with_the_window(
    primary: Primary, place: Path, tmp_path: Path, drills: Path
) -> None:
    first = primary.base()
    grow(primary, 1)
    primary.increment()
    second = primary.base()
    grow(primary, 1)
    primary.increment()
    with standby_of(primary, place) as standby:
        primary.sql("CREATE TABLE last_words AS SELECT 1 AS n")
        wait_until(lambda: has_table(standby, "last_words"), "the standby follows")
        at_begin, begin = rows(primary) + 1, clock(primary)
        primary.cluster.stop()
        execute(standby.target(), "SELECT pg_promote()")
        promoted = primary_of(standby, tmp_path / "backups", drills)
        grow(promoted, 1)
        assert promoted.increment().require_wal().timeline == 2
        record = prune_before(promoted, begin)
        assert first.backup_id in gone(record)
        assert second.backup_id not in gone(record)
        assert all_verified(promoted)
        assert recovered(promoted, begin.isoformat()) == at_begin
        assert recovered(promoted, "latest") == rows(promoted) + 1
        third = promoted.base()
        grow(promoted, 1)
        promoted.increment()
        later = clock(promoted)
        grow(promoted, 1)
        promoted.increment()
        assert all_verified(promoted)  # until then the newest that was stays
        assert second.backup_id in gone(prune_before(promoted, later))
        left = {segment[:8] for segment in promoted.repository.wal.segments()}
        assert (third.require_wal().timeline, left) == (2, {"00000002"})
        assert all_verified(promoted)
        assert recovered(promoted, "latest") == rows(promoted) + 1
