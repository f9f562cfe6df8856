"""What is kept and what goes: golden tables of the plan, and what holds for any history and any policy."""

from datetime import timedelta

import pytest

from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.wal import History
from kyb_backup_pipeline.sandbox.invented import MB, names
from kyb_backup_pipeline_tests.histories import (
    BAD,
    NOW,
    PROVED,
    TESTED,
    backup,
    base,
    damaged,
    held,
    increment,
    lines,
    plan,
    wal_lines,
)

# One kind


def test_full_backups_go_by_age_but_never_the_newest_nor_the_newest_that_was_proved() -> None:
    backups = [backup("full", f"f{n}", 40 + n) for n in range(7)]
    standings = {"f4": PROVED, "f5": TESTED, "f6": TESTED}
    assert lines(plan(*backups, standings=standings, minimum_kept=2)) == [
        "keep f0: the newest is never deleted",
        "keep f1: one of the newest 2, which are always kept",
        "delete f2: 42 days old, older than 30",
        "delete f3: 43 days old, older than 30",
        "keep f4: the newest whose verification passed is never deleted",
        "keep f5: the newest that was restore-tested is never deleted",
        "delete f6: 46 days old, older than 30",
    ]
    young = [backup("full", "f0", 29.9), backup("full", "f1", 30.1)]
    assert lines(plan(*young)) == [
        "keep f0: 29 days old, not older than 30",
        "delete f1: 30 days old, older than 30",
    ]
    assert lines(plan(*young, full_days=31))[1] == "keep f1: 30 days old, not older than 31"


def test_deployments_are_counted_not_days_and_not_backups() -> None:
    backups = [
        backup("application_state", "a1", 1, "v3"), backup("application_state", "a2", 2, "v3"),
        backup("application_state", "a3", 400, "v2"), backup("application_state", "a4", 500, "v1"),
        backup("application_state", "a5", 600, "v3"), backup("application_state", "a6", 700),
    ]  # fmt: skip
    assert lines(plan(*backups, application_deployments=2)) == [
        "keep a1: deployment v3 is among the newest 2",
        "keep a2: deployment v3 is among the newest 2",
        "keep a3: deployment v2 is among the newest 2",
        "delete a4: deployment v1 is older than the newest 2",
        "keep a5: deployment v3 is among the newest 2",
        "delete a6: deployment a6 is older than the newest 2",
    ]


def test_configuration_goes_by_age_too() -> None:
    backups = [backup("configuration", f"c{n}", 100 + n) for n in range(4)]
    assert lines(plan(*backups, standings={"c2": PROVED, "c3": PROVED})) == [
        "keep c0: the newest is never deleted",
        "delete c1: 101 days old, older than 90",
        "keep c2: the newest whose verification passed is never deleted",
        "delete c3: 103 days old, older than 90",
    ]


def test_what_failed_a_proof_stays_and_stands_for_nothing() -> None:
    states = [backup("application_state", f"a{n}", n, f"v{n}") for n in (1, 2, 3)]
    assert lines(plan(*states, standings={"a1": BAD}, application_deployments=1)) == [
        "keep a1: its verification failed: look at it",
        "keep a2: deployment v2 is among the newest 1",
        "delete a3: deployment v3 is older than the newest 1",
    ]
    dumps = [backup("full", f"f{n}", 100 + n) for n in range(4)]
    standings = {"f0": BAD, "f1": Standing(trouble="its restore test failed")}
    assert lines(plan(*dumps, standings=standings)) == [
        "keep f0: its verification failed: look at it",
        "keep f1: its restore test failed: look at it",
        "keep f2: the newest is never deleted",
        "delete f3: 103 days old, older than 30",
    ]


def test_what_was_taken_before_a_restore_has_a_limit_of_its_own_and_stands_for_no_regular_one() -> (
    None
):
    backups = [
        backup("full", "pre_restore_3", 1), backup("full", "pre_restore_2", 31), backup("full", "f1", 200),
        backup("full", "f0", 210), backup("configuration", "pre_restore_1", 31),
    ]  # fmt: skip
    standings = {"pre_restore_2": TESTED, "f0": PROVED}
    assert lines(plan(*backups, standings=standings)) == [
        "keep pre_restore_3: 1 days old, not older than 30",
        "keep pre_restore_2: the newest that was restore-tested is never deleted",
        "keep f1: the newest is never deleted",
        "keep f0: the newest whose verification passed is never deleted",
        "keep pre_restore_1: the newest is never deleted",
    ]
    assert lines(plan(*backups))[1] == "delete pre_restore_2: 31 days old, older than 30"


def test_what_is_held_stays_until_the_hold_is_over_and_a_hold_that_cannot_be_read_holds() -> None:
    backups = [backup("full", f"f{n}", 100 + n) for n in range(4)]
    unread = Hold(backup_id="f3", why="its hold f3.json cannot be read: look at it")
    assert lines(plan(*backups, holds=[held("f1", 1), held("f2", -1), unread])) == [
        "keep f0: the newest is never deleted",
        "keep f1: held until 2026-06-02 00:00 UTC: the audit",
        "delete f2: 102 days old, older than 30",
        "keep f3: its hold f3.json cannot be read: look at it",
    ]


def test_what_cannot_be_read_stays_and_without_backups_there_is_nothing_to_decide() -> None:
    assert lines(plan(damaged("configuration", "d"), backup("configuration", "c", 900))) == [
        "keep c: the newest is never deleted",
        "keep d: cannot be read: look at it",
    ]
    assert (lines(plan()), wal_lines(plan())) == ([], [])


# Chains


def test_the_newest_base_from_before_the_window_stays_with_all_that_came_since() -> None:
    backups = [
        base("b1", 21, 10), increment("i1", 20, "b1", range(10, 14)), increment("i2", 15, "b1", range(14, 16)),
        base("b2", 14, 16), increment("i3", 13, "b2", range(16, 18)), increment("i4", 8, "b2", range(18, 20)),
        base("b3", 6.9, 20), increment("i5", 6, "b3", range(20, 24)),
    ]  # fmt: skip
    planned = plan(*backups, wal=[*names(range(9, 25)), "00000002.history"])
    since = "2026-05-25 00:00 UTC"
    assert lines(planned) == [
        "keep b3: 6 days old, not older than 7",
        f"keep b2: the newest from which every moment since {since} can be reached",
        "delete b1: 21 days old, older than 7, and nothing needs it",
        "keep i5: 6 days old, not older than 7",
        "keep i4: its base b2 stays",
        "keep i3: its base b2 stays",
        "delete i2: 15 days old, older than 7, and goes with b1",
        "delete i1: 20 days old, older than 7, and goes with b1",
    ]
    assert planned.doomed_wal == names(range(9, 16))
    assert wal_lines(planned)[0].endswith("in front of b2, the oldest that stays")
    assert wal_lines(planned)[7].endswith("needed from b2 on")
    assert wal_lines(planned)[-1] == "keep 00000002.history: says where a timeline comes from"


def test_the_first_increment_of_a_new_chain_keeps_the_wal_that_it_lists_in_front_of_its_base() -> (
    None
):
    """It closes the gap to the chain before; without these segments its verification would fail."""
    backups = [
        base("b1", 30, 5), increment("i1", 29, "b1", range(5, 8)),
        base("b2", 9, 12), increment("i2", 8, "b2", range(8, 14)), increment("i3", 1, "b2", range(14, 15)),
    ]  # fmt: skip
    planned = plan(*backups, wal=names(range(5, 15)))
    assert [d.backup.backup_id for d in planned.doomed] == ["b1", "i1"]
    assert planned.doomed_wal == names(range(5, 8))
    assert wal_lines(planned)[3].endswith("i2 needs it")


def test_a_held_increment_keeps_its_whole_chain_and_the_wal_from_there_on() -> None:
    backups = [
        base("b1", 30, 5), increment("i1", 29, "b1", range(5, 8)), increment("i2", 28, "b1", range(8, 9)),
        base("b2", 20, 9), increment("i3", 19, "b2", range(9, 10)),
        base("b3", 9, 12), increment("i4", 1, "b3", range(12, 14)),
    ]  # fmt: skip
    planned = plan(*backups, holds=[held("i1", 5)], wal=names(range(3, 14)))
    assert [d.backup.backup_id for d in planned.doomed] == ["b2", "i3"]
    assert "keep b1: i1, which stays, is replayed on it" in lines(planned)
    assert "keep i2: its base b1 stays" in lines(planned)
    assert planned.doomed_wal == names(range(3, 5))


def test_a_bad_base_is_no_beginning_and_a_newer_one_that_was_never_verified_stays_too() -> None:
    backups = [
        base("b1", 30, 5), base("b2", 20, 9), base("b3", 10, 12), base("b4", 9, 13),
        increment("i1", 1, "b4", range(13, 14)),
    ]  # fmt: skip
    standings = {"b2": PROVED, "b4": BAD}
    planned = plan(*backups, standings=standings, wal=names(range(5, 14)))
    assert [d.backup.backup_id for d in planned.doomed] == ["b1"]
    assert "keep b4: its verification failed: look at it" in lines(planned)
    assert planned.doomed_wal == names(range(5, 9))


def test_each_timeline_with_a_moment_in_the_window_keeps_a_way_to_it() -> None:
    """The old primary wrote on behind the fork at segment 20; then it ended."""
    backups = [
        base("b1", 30, 5), base("b2", 20, 12), increment("i1", 16, "b2", range(12, 20)),
        increment("old", 3, "b2", range(20, 26)),
        base("b3", 15, 21, timeline=2), increment("i2", 2, "b3", range(21, 24), timeline=2),
    ]  # fmt: skip
    histories = {1: History(1), 2: History(2, ((1, 20 * MB),))}
    wal = [*names(range(5, 26)), *names(range(20, 24), 2)]
    planned = plan(*backups, histories=histories, wal=wal)
    assert [d.backup.backup_id for d in planned.doomed] == ["b1"]
    assert planned.doomed_wal == names(range(5, 12))
    over = plan(*backups, histories=histories, wal=wal, now=NOW + timedelta(days=5))
    assert [d.backup.backup_id for d in over.doomed] == ["b2", "b1", "old", "i1"]
    assert set(over.doomed_wal) == {*names(range(5, 21)), *names(range(20, 21), 2)}


@pytest.mark.parametrize("lost", ["base", "increment", "history"])
def test_what_cannot_be_read_stops_the_chains_since_nobody_knows_what_it_needs(lost: str) -> None:
    backups = [base("b1", 30, 5), base("b2", 20, 9), increment("i1", 1, "b2", range(9, 12))]
    if lost == "base":
        backups.append(damaged("base", "b0"))
    if lost == "increment":
        backups.append(damaged("incremental", "i0"))
    histories = {1: None if lost == "history" else History(1)}
    planned = plan(*backups, histories=histories, wal=names(range(5, 12)))
    assert (planned.doomed, planned.doomed_wal) == ([], [])
    assert "nobody knows what it needs" in wal_lines(planned)[0]
    others = plan(*backups, backup("full", "f0", 1), backup("full", "f1", 31), histories=histories)
    assert [d.backup.backup_id for d in others.doomed] == ["f1"]


def test_wal_without_any_base_stays() -> None:
    planned = plan(increment("i1", 90, "gone", range(5, 9)), increment("i0", 99, "gone", range(4, 5)),
                   wal=names(range(4, 9)))  # fmt: skip
    assert lines(planned) == [
        "keep i1: the newest is never deleted",
        "delete i0: 99 days old, older than 7, and gone is gone",
    ]
    assert planned.doomed_wal == []


def test_an_old_cluster_beside_a_new_one_leaves_with_its_window() -> None:
    backups = [
        base("a1", 30, 500, system="1"), increment("ia", 9, "a1", range(500, 505), system="1"),
        base("b1", 8.5, 600, system="2"), increment("ib", 1, "b1", range(600, 605), system="2"),
    ]  # fmt: skip
    wal = [*names(range(500, 505)), *names(range(600, 605))]
    planned = plan(*backups, wal=wal)
    assert [d.backup.backup_id for d in planned.doomed] == ["a1", "ia"]
    assert planned.doomed_wal == names(range(500, 505))
    earlier = plan(*backups, wal=wal, now=NOW - timedelta(days=3))
    assert (earlier.doomed, earlier.doomed_wal) == ([], [])


# The clock


def test_a_clock_that_jumped_is_not_believed() -> None:
    month = [backup("full", f"f{n:02}", n) for n in range(32)]
    steady = plan(*month, doubting=True)
    assert ([d.backup.backup_id for d in steady.doomed], steady.refusal) == (["f31"], None)
    ahead = plan(*month, doubting=True, now=NOW + timedelta(days=365))
    assert ahead.refusal is not None
    assert ahead.refusal.startswith("the newest backup, f00, is 365 days old")
    since = [*month, backup("full", "after", -365)]
    late = plan(*since, doubting=True, now=NOW + timedelta(days=365))
    assert (
        late.refusal
        == "32 of 33 full backups would go at once, more than retention.largest_share (0.5)"
    )
    behind = plan(*month, doubting=True, full_days=1, now=NOW - timedelta(days=10))
    assert behind.refusal == "f00 is of 2026-06-01 00:00 UTC, and it is 2026-05-22 00:00 UTC now"
    assert (
        plan(*month, doubting=True, now=NOW - timedelta(days=10)).refusal is None
    )  # nothing would go
    assert plan(doubting=True).refusal is None


def test_a_few_go_whatever_share_they_are_and_steady_operation_is_never_refused() -> None:
    few = [backup("full", f"f{n}", age) for n, age in enumerate((1, 40, 41, 42))]
    assert (len(plan(*few, doubting=True).doomed), plan(*few, doubting=True).refusal) == (3, None)
    many = [*few, backup("full", "f4", 43)]
    assert plan(*many, doubting=True).refusal is not None
    backups, number = [], 0
    for hours in range(0, 24 * 90, 6):  # three months of what the schedules do, pruned each day
        now = NOW + timedelta(hours=hours)
        age, number = -hours / 24, number + 2
        if hours % (24 * 7) == 0:
            on = f"base{hours}"
            backups.append(base(on, age, number))
        backups.append(increment(f"incr{hours}", age, on, range(number, number + 2)))
        if hours % 24 == 0:
            backups += [
                backup("full", f"full{hours}", age),
                backup("configuration", f"conf{hours}", age),
            ]
            planned = plan(*backups, now=now, doubting=True)
            assert planned.refusal is None
            backups = [d.backup for d in planned.decisions if d.keep]
    kinds = [b.kind for b in backups]
    assert (kinds.count("full"), kinds.count("configuration"), kinds.count("base")) == (31, 90, 2)
    assert kinds.count("incremental") <= 14 * 4
