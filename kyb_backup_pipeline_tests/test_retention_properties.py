"""For any history and any policy: the guards of retention, written here once more and differently.

The history has dumps, archives, states, chains on two timelines of which either may go on behind the fork,
holes in the WAL, failed and damaged backups, and holds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.manifest import Wal
from kyb_backup_pipeline.engine.retention import Plan, plan_retention
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.wal import History, parse_lsn
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
    inventory,
)

_KINDS = (
    *2 * ["full"],
    "configuration",
    "application_state",
    *3 * ["base"],
    *5 * ["incremental"],
    "fork",
)
_EVENT = st.tuples(
    st.sampled_from(_KINDS),
    st.floats(0.05, 4),  # days behind the one before
    st.sampled_from([Standing(), Standing(), PROVED, PROVED, TESTED, BAD]),
    st.sampled_from([*8 * [""], "held", "over", "safety"]),
    st.integers(0, 3),  # segments
    st.booleans(),  # whether the newer timeline goes on
)
POLICY = st.builds(
    RetentionSettings,
    full_days=st.integers(1, 40), incremental_days=st.integers(1, 20),
    application_deployments=st.integers(1, 4), configuration_days=st.integers(1, 40),
    pre_restore_days=st.integers(1, 40), minimum_kept=st.integers(1, 4),
)  # fmt: skip


@dataclass
class _Story:
    """A history while it is told."""

    backups: list[Backup] = field(default_factory=list)
    standings: dict[str, Standing] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=lambda: {1: 0})
    forks: tuple[tuple[int, int], ...] = ()
    bases: dict[int, list[Backup]] = field(default_factory=lambda: {1: []})
    wal: list[str] = field(default_factory=list)


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    length = draw(st.integers(1, 40))
    events = draw(st.lists(_EVENT, min_size=length, max_size=length))
    unreadable = draw(st.sampled_from([*9 * [""], "full", "base", "incremental"]))
    story, age = _Story(), sum(event[1] for event in events)
    for number, (kind, days, standing, what, segments, newer) in enumerate(events):
        age -= days
        timeline = max(story.ends) if newer else 1
        if kind == unreadable and number % 5 == 0:
            what = "damaged"
        _tell(story, kind, f"{kind[:4]}_{number}", age, what, segments, timeline)
        story.standings[f"{kind[:4]}_{number}"] = standing
    bases = [b.backup_id for b in story.backups if b.kind == "base"]
    lost = draw(st.sets(st.sampled_from(bases), max_size=1)) if bases else set()  # by hand
    holes = draw(st.sets(st.sampled_from(sorted(story.wal)), max_size=2)) if story.wal else set()
    histories: dict[int, History | None] = {1: History(1)}
    if story.forks:
        histories[2] = History(2, story.forks)
    return inventory(
        *(b for b in story.backups if b.backup_id not in lost), standings=story.standings, holds=story.holds, histories=histories,
        wal=[name for name in dict.fromkeys(story.wal) if name not in holes],
    )  # fmt: skip


def _tell(
    story: _Story, kind: str, name: str, age: float, what: str, segments: int, timeline: int
) -> None:
    end = story.ends[timeline]
    if kind == "fork":
        if 2 not in story.ends:
            story.ends[2], story.forks = story.ends[1], ((1, story.ends[1] * MB),)
            story.bases[2] = list(story.bases[1])
        return
    if what == "damaged":
        story.backups.append(damaged(kind, name))  # type: ignore[arg-type]  # one of the kinds
    elif kind == "base":
        made = base(name, age, end, timeline=timeline)
        story.backups.append(made)
        story.bases[timeline].append(made)
    elif kind == "incremental":
        on = story.bases[timeline][-1].backup_id if story.bases[timeline] else "gone"
        numbers = range(end, end + segments + 1)
        story.ends[timeline] = numbers.stop
        story.wal += names(numbers, timeline)
        story.backups.append(increment(name, age, on, numbers, timeline=timeline))
    else:
        prefix = "pre_restore_" if what == "safety" else ""
        story.backups.append(backup(kind, prefix + name, age, f"v{age // 4}"))  # type: ignore[arg-type]
    if what in ("held", "over"):
        story.holds.append(held(name, 1 if what == "held" else -1))


def _kept(planned: Plan) -> list[Backup]:
    return [decision.backup for decision in planned.decisions if decision.keep]


def _wal(one: Backup) -> Wal:
    return one.require_manifest().require_wal()


def _sound(seen: Inventory, backups: Iterable[Backup], kind: str) -> list[Backup]:
    """Those of a kind that can be read and failed nothing, the newest first."""
    found = [b for b in backups if b.kind == kind and b.manifest
             and not seen.standings.get(b.backup_id, PROVED).trouble]  # fmt: skip
    return sorted(found, key=lambda b: b.require_manifest().completed_at, reverse=True)


def _way(seen: Inventory, first: Backup, last: Backup, wal: set[str]) -> bool:
    """Whether replay on a base leads to the end of an increment with these segments."""
    start, end, history = _wal(first), _wal(last), seen.histories[_wal(last).timeline]
    assert history is not None
    if not history.contains(start.timeline, parse_lsn(start.end_lsn)):
        return False
    if parse_lsn(start.end_lsn) > parse_lsn(end.end_lsn):
        return False
    number = parse_lsn(start.start_lsn) // MB
    own = names(range(number, number + 1), start.timeline)
    needed = history.segments(parse_lsn(start.start_lsn), parse_lsn(end.end_lsn), MB)
    return all(segment.name in wal or segment.name in own for segment in needed)


def _spans(
    seen: Inventory, backups: list[Backup], wal: set[str]
) -> list[tuple[datetime, datetime, int]]:
    """From when to when, and on which timeline, these backups and segments lead to every moment."""
    bases, increments = (_sound(seen, backups, kind) for kind in ("base", "incremental"))
    return [
        (b.require_manifest().completed_at, i.require_manifest().completed_at, _wal(i).timeline)
        for b in bases
        for i in increments
        if b.require_manifest().completed_at <= i.require_manifest().completed_at
        and _way(seen, b, i, wal)
    ]


@settings(max_examples=400, deadline=None)
@given(inventories(), POLICY)
def test_the_guards_hold(seen: Inventory, policy: RetentionSettings) -> None:
    planned = plan_retention(seen, policy, NOW)
    kept = _kept(planned)
    ids = {b.backup_id for b in kept}
    assert sorted(d.backup.backup_id for d in planned.decisions) == sorted(
        b.backup_id for b in seen.backups
    )
    assert sorted([*planned.kept_wal, *planned.doomed_wal]) == sorted(seen.wal)
    assert all(d.why for d in planned.decisions) and all(d.why for d in planned.wal)
    for kind in ("full", "configuration", "application_state", "base", "incremental"):
        sound = _sound(seen, seen.backups, kind)
        regular = [b for b in sound if not b.backup_id.startswith("pre_restore")]
        verified = [b for b in regular or sound if seen.standing(b).verified]
        tested = [b for b in regular or sound if seen.standing(b).restore_tested and kind == "full"]
        for first in ((regular or sound)[:1], verified[:1], tested[:1]):
            assert {b.backup_id for b in first} <= ids, kind
        if kind not in ("base", "incremental"):
            assert {b.backup_id for b in regular[: policy.minimum_kept]} <= ids
    for hold in seen.holds.values():
        assert hold.backup_id in ids or hold.until < NOW or not _known(seen, hold.backup_id)  # type: ignore[operator]
    for one in seen.backups:
        if one.manifest is None or seen.standing(one).trouble:
            assert one.backup_id in ids


def _held(seen: Inventory, one: Backup) -> bool:
    hold = seen.holds.get(one.backup_id)
    return hold is not None and hold.in_force(NOW)


def _known(seen: Inventory, name: str) -> bool:
    return any(b.backup_id == name for b in seen.backups)


@settings(max_examples=400, deadline=None)
@given(inventories(), POLICY)
def test_every_moment_of_the_window_stays_recoverable(
    seen: Inventory, policy: RetentionSettings
) -> None:
    planned = plan_retention(seen, policy, NOW)
    left = set(planned.kept_wal)
    limit = NOW - timedelta(days=policy.incremental_days)
    after = _spans(seen, _kept(planned), left)
    for begin, end, timeline in _spans(seen, list(seen.backups), set(seen.wal)):
        for moment in (max(begin, limit), max(begin, limit) + (end - max(begin, limit)) / 2):
            if moment < end:
                assert any(b <= moment < e and t == timeline for b, e, t in after), (
                    moment,
                    timeline,
                )


@settings(max_examples=400, deadline=None)
@given(inventories(), POLICY)
def test_what_stays_has_all_that_it_needs(seen: Inventory, policy: RetentionSettings) -> None:
    planned = plan_retention(seen, policy, NOW)
    kept, before = _kept(planned), set(seen.wal)
    window = timedelta(days=policy.incremental_days)
    left = set(planned.kept_wal)
    bases = [b for b in kept if b.kind == "base"]
    if any(b.manifest is None for b in seen.backups if b.kind in ("base", "incremental")):
        assert left == before
        assert all(d.keep for d in planned.decisions if d.backup.kind in ("base", "incremental"))
        return
    for one in (b for b in kept if b.kind == "incremental"):
        wal = _wal(one)
        there = [b for b in seen.backups if b.backup_id == wal.base]
        assert all(b in kept for b in there)
        assert {s.name for s in wal.segments} & before <= left
        for first in there:
            assert _way(seen, first, one, left) == _way(seen, first, one, before)
        wanted = NOW - one.require_manifest().completed_at <= window or _held(seen, one)
        if wanted and not _sound(seen, there, "base"):  # another that led there must stay
            ways = [b for b in _sound(seen, seen.backups, "base") if _way(seen, b, one, before)]
            assert not ways or any(_way(seen, b, one, left) for b in _sound(seen, kept, "base"))
    for base_id in {b.backup_id for b in bases}:
        chain = [
            b
            for b in seen.backups
            if b.manifest and b.manifest.wal and b.manifest.wal.base == base_id
        ]
        assert all(b in kept for b in chain)
    for name in before - left:
        assert bases
        number = int(name[8:16], 16) * 4096 + int(name[16:24], 16)
        assert all(number < parse_lsn(_wal(b).start_lsn) // MB for b in bases)


@settings(max_examples=100, deadline=None)
@given(inventories(), POLICY, st.integers(60, 4000))
def test_a_clock_that_is_months_ahead_is_never_believed(
    seen: Inventory, policy: RetentionSettings, days: int
) -> None:
    planned = plan_retention(seen, policy, NOW + timedelta(days=days))
    assert planned.refusal is not None or not planned.doomed


@settings(max_examples=100, deadline=None)
@given(inventories(), POLICY)
def test_what_is_left_is_left_by_the_next_plan_too(
    seen: Inventory, policy: RetentionSettings
) -> None:
    planned = plan_retention(seen, policy, NOW)
    kept = _kept(planned)
    again = plan_retention(
        Inventory(
            backups=[b for b in seen.backups if b in kept], standings=seen.standings,
            holds=seen.holds, histories=seen.histories,
            listed=seen.listed, wal=planned.kept_wal,
        ),
        policy, NOW,
    )  # fmt: skip
    assert (again.doomed, again.doomed_wal) == ([], [])
