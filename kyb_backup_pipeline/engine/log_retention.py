"""Base backups, increments and WAL: what may go so that every moment of the window stays recoverable.

A chain is a base backup and the increments that name it; chains go whole. The window is the last
``retention.incremental_days``. For each timeline that has a moment in it, the newest base from before it
stays (whether verified or not, and the newest that was verified), and with a chain all that was written
since: WAL goes only from in front of the oldest base that stays, and never what an increment lists.

Two clusters may share a repository (before and after an upgrade). What came of which, the names of WAL do
not say, so the oldest base of all counts. A base or an increment that cannot be read, or a history file
that is lost, stops it: nobody knows what that needs. History files stay for ever; they are tiny.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.manifest import Wal
from kyb_backup_pipeline.engine.recovery_plan import in_log_order
from kyb_backup_pipeline.engine.retention_rules import Decision, WalDecision, by_age, newest_of
from kyb_backup_pipeline.engine.wal import Segment, parse_lsn


@dataclass(frozen=True, kw_only=True)
class LogPlan:
    """What is decided on the chains and on the WAL."""

    backups: list[Decision]
    wal: list[WalDecision]


def plan_log(inventory: Inventory, days: int, now: datetime) -> LogPlan:
    """Decide on base backups, increments and WAL."""
    bases = [b for b in inventory.backups if b.kind == "base"]
    increments = [b for b in inventory.backups if b.kind == "incremental"]
    both = (*bases, *increments)
    if unknown := _unknown(both, inventory):
        whys = ((b, inventory.pinned(b, now) or unknown) for b in both)
        return LogPlan(
            backups=[Decision(backup=b, keep=True, why=why) for b, why in whys],
            wal=_all(inventory.wal, unknown),
        )
    kept = _Kept(bases, increments, inventory, days, now)
    reasons = {b.backup_id: kept.why.get(b.backup_id) or kept.gone(b) for b in both}
    decisions = [Decision(backup=b, keep=b.backup_id in kept.why, why=reasons[b.backup_id])
                 for b in both]  # fmt: skip
    return LogPlan(backups=decisions, wal=_plan_wal(inventory.wal, decisions, inventory.listed))


def wal_of(backup: Backup) -> Wal:
    return backup.require_manifest().require_wal()


def since(base: Backup) -> datetime:
    """From when on a base surely leads to a moment; where two clocks differ, the later one."""
    manifest = base.require_manifest()
    return max(manifest.completed_at, wal_of(base).end_at)


def _unknown(backups: Sequence[Backup], inventory: Inventory) -> str | None:
    """What nobody can know the needs of; None if all is known."""
    for backup in backups:
        if backup.manifest is None or backup.manifest.wal is None:
            return f"{backup.backup_id} cannot be read, and nobody knows what it needs"
        if inventory.histories.get(wal_of(backup).timeline) is None:
            timeline = wal_of(backup).timeline
            return f"where timeline {timeline} comes from cannot be read, and nobody knows what it needs"
    return None


class _Kept:
    """Which base backups and increments stay: ``why`` has the reason of each, by its id."""

    def __init__(
        self,
        bases: Sequence[Backup],
        increments: Sequence[Backup],
        inventory: Inventory,
        days: int,
        now: datetime,
    ) -> None:
        self.inventory = inventory
        self.bases = {base.backup_id: base for base in bases}
        self.in_order = in_log_order(bases)
        self.why: dict[str, str] = {}
        limit = now - timedelta(days=days)
        guards = {
            **newest_of(bases, inventory, restore_tested=False),
            **newest_of(increments, inventory, restore_tested=False),
        }  # a test a month would keep WAL of a month; the newest that was verified is younger
        anchors = self._anchors(increments, limit)
        self._age = by_age(days, now)
        for backup in (*bases, *increments):
            stays, age = self._age(backup)
            why = inventory.pinned(backup, now) or (age if stays else None)
            why = why or anchors.get(backup.backup_id) or guards.get(backup.backup_id)
            if why is not None:
                self.why[backup.backup_id] = why
        for increment in [i for i in increments if i.backup_id in self.why]:
            for base in self._needed(increment):
                self.why.setdefault(base, f"{increment.backup_id}, which stays, is replayed on it")
        for increment in increments:
            base = wal_of(increment).base or ""
            if base in self.why and base in self.bases:
                self.why.setdefault(increment.backup_id, f"its base {base} stays")

    def gone(self, backup: Backup) -> str:
        """Why one that does not stay goes."""
        _, age = self._age(backup)
        base = wal_of(backup).base
        if base is None:
            return f"{age}, and nothing needs it"
        return (
            f"{age}, and goes with {base}" if base in self.bases else f"{age}, and {base} is gone"
        )

    def _anchors(self, increments: Sequence[Backup], limit: datetime) -> dict[str, str]:
        """For each timeline with a moment in the window, the newest bases from before it."""
        found: dict[str, str] = {}
        why = f"the newest from which every moment since {limit:%Y-%m-%d %H:%M} UTC can be reached"
        active = {(wal_of(i).system_identifier, wal_of(i).timeline)
                  for i in increments if since(i) > limit}  # fmt: skip
        for system, timeline in active:
            before = [b for b in self._on(system, timeline) if since(b) <= limit]
            verified = [b for b in before if self.inventory.standing(b).verified]
            for base in (*before[-1:], *verified[-1:]):
                found[base.backup_id] = why
        return found

    def _on(self, system: str, timeline: int, end: int | None = None) -> list[Backup]:
        """The sound bases on the way to a timeline, in the order of the log; up to ``end`` of it."""
        history = self.inventory.histories[timeline]
        assert history is not None
        found = []
        for base in self.in_order:
            wal = wal_of(base)
            position = parse_lsn(wal.end_lsn)
            if (
                wal.system_identifier == system
                and history.contains(wal.timeline, position)
                and (end is None or position <= end)
                and self.inventory.sound(base)
            ):
                found.append(base)
        return found

    def _needed(self, increment: Backup) -> list[str]:
        """The base that an increment names; where that is gone or bad, also the one before it."""
        wal = wal_of(increment)
        own = self.bases.get(wal.base or "")
        needed = [own.backup_id] if own is not None else []
        if own is None or not self.inventory.sound(own):
            before = self._on(wal.system_identifier, wal.timeline, parse_lsn(wal.end_lsn))
            needed += [base.backup_id for base in before[-1:]]
        return needed


def _plan_wal(
    stored: Iterable[str], decisions: Sequence[Decision], listed: Mapping[str, str]
) -> list[WalDecision]:
    """Compare each file with the first segment that recovery from a kept base begins with.

    Segments sort by their names behind the timeline, so names are all that is compared.
    """
    kept = [decision.backup for decision in decisions if decision.keep]
    firsts = {_first(b): b.backup_id for b in kept if b.kind == "base"}
    if not firsts:
        return _all(stored, "no base backup says what is needed")
    cut = min(firsts)
    needed = {
        name: f"{b.backup_id} needs it" for b in kept for name in listed.get(b.backup_id, "").split()
        if name[8:] < cut
    }  # fmt: skip
    found: list[WalDecision] = []
    for names in _by_timeline(stored):
        first = bisect_left(names, "0", key=lambda name: name[8:])  # history files come before it
        last = bisect_left(names, cut, key=lambda name: name[8:])
        found += _row(names[:first], True, "says where a timeline comes from")
        gone = f"in front of {firsts[cut]}, the oldest that stays"
        for why, row in groupby(names[first:last], needed.get):
            found += _row(row, why is not None, why or gone)
        found += _row(names[last:], True, f"needed from {firsts[cut]} on")
    return found


def _all(stored: Iterable[str], why: str) -> list[WalDecision]:
    return [row for names in _by_timeline(stored) for row in _row(names, True, why)]


def _by_timeline(stored: Iterable[str]) -> Iterator[list[str]]:
    for _, names in groupby(sorted(stored), lambda name: name[:8]):
        yield list(names)


def _row(names: Iterable[str], keep: bool, why: str) -> Iterator[WalDecision]:
    """One row of neighbours; none of nothing."""
    if row := tuple(names):
        yield WalDecision(names=row, keep=keep, why=why)


def _first(base: Backup) -> str:
    """The first segment that recovery from a base begins with, without its timeline."""
    wal = wal_of(base)
    number = parse_lsn(wal.start_lsn) // wal.segment_bytes
    return Segment(wal.timeline, number, wal.segment_bytes).name[8:]
