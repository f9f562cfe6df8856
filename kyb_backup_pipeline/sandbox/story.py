"""A story of sixty days: what happened to backups that nobody took, as data.

Steady days with what goes wrong in them, and troubles at the end, so that reports, alerts and retention have
something to tell. The same seed and time tell the same story. Nothing here touches a disk: ``story_shelf``
writes it down. What is told is invented, and each manifest and record says so.

The days: a dump each night (two nights failed), a base backup each Sunday, increments four times a day, an
archive of the configuration each night, an application state at each deployment, a verification of all each
night, a recovery to a moment each Monday. One restore test failed, one could not be made; one prune was made.
The end: half of the rows are gone, a segment of WAL is missing, and increments stopped hours ago.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta

from kyb_backup_pipeline.engine.backup import new_id
from kyb_backup_pipeline.engine.errors import BackupFailed, DatabaseUnreachable, KybError
from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.inventory import Inventory, segments_of
from kyb_backup_pipeline.engine.manifest import (
    EvidenceSummary,
    Finding,
    Kind,
    Manifest,
    Proof,
    SourceDatabase,
    Verdict,
)
from kyb_backup_pipeline.engine.prune import check_clock, gone_of, kept_of
from kyb_backup_pipeline.engine.prune_records import PruneRecord
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.engine.retention import Plan, plan_retention
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.wal import History
from kyb_backup_pipeline.sandbox.invented import Stretch, listed, manifest_of, names, with_wal

LABEL = "story"
NOTE = "invented by kyb-backup demo --story: it holds no data, and nothing was proved"
DAYS = 60
_SETTLED = timedelta(minutes=30)
"""So long after its time all of a night's work is done."""
_SILENCE = timedelta(hours=8)
"""Increments ended so long ago: longer than health.incremental_max_age."""
_DATABASE = SourceDatabase(host="story.invalid", port=5432, name="kyb_story", user="kyb_user")
_MEGA = 1_000_000

# In nights before the last one:
_FAILED_NIGHTS = {33: DatabaseUnreachable("connection to story.invalid refused", hint="DB_HOST"),
                  11: BackupFailed("pg_dump: the server closed the connection unexpectedly",
                                   hint="the server's log says why")}  # fmt: skip
_FAILED_TEST, _UNTESTABLE, _UNOPENED = 38, 16, 12
_HELD, _PRUNED = 45, 18
_SAFETY = (35, 9)
_OLD_SCRIPTS, _OLD_ARCHIVES = 40, (104, 97)
_BASES_SINCE = 49
_DEPLOYMENTS = (58, 54, 50, 47, 43, 39, 34, 30, 26, 21, 17, 12, 7, 2)


@dataclass(kw_only=True)
class Story:
    """What happened. ``backups`` are in the order of their making, without those that the prune took;
    ``lost`` is a segment that an increment lists and the store has no more.
    """

    now: datetime
    backups: list[Manifest] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    failures: list[tuple[Kind, str, KybError, datetime]] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    old_dump: tuple[str, datetime] = ("", datetime.min)
    old_dump_size: int = 0
    old_archives: list[str] = field(default_factory=list)
    lost: str = ""
    leftover: str = ""
    pruned: PruneRecord | None = None

    @property
    def segments(self) -> list[str]:
        """The names of all WAL that the store has."""
        listed_ = (s.name for m in self.backups if m.wal for s in m.wal.segments)
        return [name for name in listed_ if name != self.lost]


def tell(now: datetime, seed: int = 1) -> Story:
    """Tell the story up to ``now`` (aware, UTC)."""
    story = Story(now=now)
    dice = random.Random(seed)
    _nights(story, dice)
    _safety(story, dice)
    _log(story, dice)
    _archives(story, dice)
    _old_scripts(story, dice)
    story.backups.sort(key=lambda m: (m.completed_at, m.backup_id))
    _verify_all(story)
    _recoveries(story, dice)
    story.proofs.sort(key=lambda p: (p.finished_at, p.backup_id, p.proof))
    _prune(story)
    return story


def looked_at(now: datetime) -> datetime:
    """When the off-site copies were looked at last."""
    return _due(now, time(4, 30))[0]


def _due(now: datetime, at: time, days: int = DAYS, before: timedelta = _SETTLED) -> list[datetime]:
    """This time of each day, the newest first, as far as all was done then."""
    last = datetime.combine(now.date(), at, now.tzinfo)
    found = (last - timedelta(days=n) for n in range(days + 1))
    return [due for due in found if due <= now - before][:days]


def _nights(story: Story, dice: random.Random) -> None:
    """The full backup of each night, its verification, its restore test."""
    for night, due in reversed(list(enumerate(_due(story.now, time(2))))):
        if night in _FAILED_NIGHTS:
            name, at = new_id("backup", due), due + timedelta(seconds=dice.randint(9, 90))
            story.failures.append(("full", name, _FAILED_NIGHTS[night], at))
            continue
        share = 0.31 if night == 0 else 1.0  # the wrong rows were deleted that day
        backup = _dump("backup", due, _size_at(DAYS - night, due, dice) * share, dice)
        story.backups.append(backup)
        _prove_dump(story, backup, night, dice)
        if night == _HELD:
            story.holds.append(
                Hold(backup_id=backup.backup_id, until=story.now + timedelta(days=60), by=LABEL,
                     why="story: the audit asks for it", placed_at=backup.completed_at)
            )  # fmt: skip


def _size_at(day: int, due: datetime, dice: random.Random) -> float:
    """Bytes of a dump: it grows, is smaller when offices were closed, and never twice the same."""
    closed = {0: 0.985, 6: 0.975}.get(due.weekday(), 1.0)  # the nights after Sunday and Saturday
    return 152 * _MEGA * (1 + 0.007 * day) * closed * dice.uniform(0.994, 1.006)


def _dump(prefix: str, due: datetime, size: float, dice: random.Random, **more: str) -> Manifest:
    began = due + timedelta(seconds=dice.randint(2, 9))
    made = began + timedelta(seconds=12 + size / (9 * _MEGA) * dice.uniform(0.95, 1.1))
    evidence = EvidenceSummary(
        mode="content", tables=18, rows=round(size / 52), objects=143, seconds=6
    )
    return manifest_of(
        "full", new_id(prefix, due), made, label=more.get("label", LABEL), notes=(NOTE,), started_at=began,
        database=_DATABASE, server_version="18.4", compression="zstd", evidence=evidence,
        file_size=round(size),
    )  # fmt: skip


def _prove_dump(story: Story, backup: Manifest, night: int, dice: random.Random) -> None:
    rows = backup.evidence.rows if backup.evidence else 0
    at = backup.completed_at + timedelta(seconds=2)
    story.proofs.append(_verified(backup, at))
    recovery = 11 + backup.file_size / (4.3 * _MEGA) * dice.uniform(0.93, 1.09)
    verdict: Verdict = "passed"
    summary = f"{rows:,} rows in 18 tables equal"
    findings: tuple[Finding, ...] = ()
    if night == _FAILED_TEST:
        verdict, summary = "failed", "table public.documents has 3 rows less"
        findings = (Finding(object="table public.documents", message="has 3 rows less"),)
    elif night == _UNTESTABLE:
        verdict, summary = "could_not_verify", "the extension pg_trgm is not installed here"
    figures = {"tables": 18.0, "rows": float(rows), "objects": 143.0, "differences": float(len(findings)),
               "recovery_seconds": round(recovery, 1)}  # fmt: skip
    steps = {"roles": 0.2, "restore": round(recovery - 0.3, 1), "settings": 0.1, "comparison": 8.4}
    told = verdict != "could_not_verify"
    story.proofs.append(
        _proof(backup, "restore_test", at + timedelta(seconds=5), recovery + 9, verdict, summary,
               figures if told else {}, steps if told else {}, findings)
    )  # fmt: skip


def _safety(story: Story, dice: random.Random) -> None:
    """What was saved before two restores."""
    for night in _SAFETY:
        due = _due(story.now, time(2))[night] + timedelta(hours=12, minutes=20)
        backup = _dump(SAFETY_PREFIX, due, _size_at(DAYS - night, due, dice), dice,
                       label=f"{LABEL}: before a restore")  # fmt: skip
        story.backups.append(backup)
        story.proofs.append(_verified(backup, backup.completed_at + timedelta(seconds=2)))


def _log(story: Story, dice: random.Random) -> None:
    """Base backups and increments. The newest base is a day old at least, so that a hole is behind it."""
    now, number, base = story.now, 40, ""
    sundays = [d for d in _due(now, time(1), _BASES_SINCE) if d.weekday() == 6]
    slots = [
        d for h in (0, 6, 12, 18) for d in _due(now, time(h, 30), _BASES_SINCE, before=_SILENCE)
    ]
    if now - sundays[0] < timedelta(days=1):
        at = sundays.pop(0) + timedelta(seconds=40)
        error = BackupFailed("pg_basebackup: no room on the server", hint="free some there")
        story.failures.append(("base", new_id("base", at), error, at))
    newest: list[Manifest] = []
    for due in sorted([*sundays, *slots]):
        if due in sundays:
            backup = _base(due, number, dice)
            base, newest = backup.backup_id, []
        elif not base:
            continue
        else:
            numbers = range(number, number + (1 if due.hour < 12 else 2) + dice.randint(0, 1))
            backup, number = _increment(due, numbers, base, dice), numbers.stop
            newest.append(backup)
        story.backups.append(backup)
        story.proofs.append(_verified(backup, backup.completed_at + timedelta(seconds=1)))
    story.lost = newest[-1].require_wal().segments[0].name


def _base(due: datetime, number: int, dice: random.Random) -> Manifest:
    size = 0.42 * 1000 * _MEGA * dice.uniform(0.98, 1.05)
    made = due + timedelta(seconds=20 + size / (11 * _MEGA))
    backup = manifest_of(
        "base", new_id("base", due), made, label=LABEL, notes=(NOTE,), started_at=due, file_size=round(size)
    )  # fmt: skip
    return with_wal(backup, Stretch(numbers=range(number, number)))


def _increment(due: datetime, numbers: range, base: str, dice: random.Random) -> Manifest:
    made = due + timedelta(seconds=dice.uniform(4, 11))
    backup = manifest_of(
        "incremental", new_id("incr", due), made, label=LABEL, notes=(NOTE,), started_at=due
    )
    sizes = {name: dice.randint(180_000, 610_000) for name in names(numbers)}
    with_log = with_wal(backup, Stretch(numbers=numbers, on=base, sizes=sizes))
    return with_log.model_copy(update={"file_size": sum(sizes.values())})


def _archives(story: Story, dice: random.Random) -> None:
    """Configuration each night; the application's state before each deployment."""
    for night, due in enumerate(_due(story.now, time(3))):
        size = 182_000 + dice.randint(-2500, 2500) - night * 300
        backup = _archive("configuration", "config_backup", due, size)
        story.backups.append(backup)
        unsure = night == _UNOPENED
        summary = "checksum passed, content could not be verified: no key"
        story.proofs.append(
            _verified(backup, backup.completed_at + timedelta(seconds=1), summary if unsure else None)
        )  # fmt: skip
    days = _due(story.now, time(14, 10), before=timedelta(0))
    for number, age in enumerate(_DEPLOYMENTS):
        size = 2_400_000 + dice.randint(-90_000, 160_000)
        backup = _archive("application_state", "app_backup", days[age], size, f"v4.{number}.0")
        story.backups.append(backup)
        story.proofs.append(_verified(backup, backup.completed_at + timedelta(seconds=1)))


def _archive(
    kind: Kind, prefix: str, due: datetime, size: int, deployment: str | None = None
) -> Manifest:
    return manifest_of(
        kind, new_id(prefix, due), due + timedelta(seconds=3), label=LABEL, notes=(NOTE,), started_at=due,
        file_size=size, deployment=deployment, compression="zstd",
    )  # fmt: skip


def _old_scripts(story: Story, dice: random.Random) -> None:
    nights = _due(story.now, time(2), max(_OLD_ARCHIVES) + 1)
    made = nights[_OLD_SCRIPTS] - timedelta(hours=5)
    story.old_dump = (f"{LABEL}_old_script_{made:%Y%m%d_%H%M%S}", made)
    story.old_dump_size = round(_size_at(DAYS - _OLD_SCRIPTS, made, dice) * 1.1)  # gzip
    story.old_archives = [f"{LABEL}_config_{nights[age]:%Y%m%d_%H%M%S}" for age in _OLD_ARCHIVES]
    story.leftover = new_id("backup", nights[2] + timedelta(hours=7))


def _verify_all(story: Story) -> None:
    """The last night's verification of everything."""
    at = _due(story.now, time(4))[0]
    unsure = {p.backup_id for p in story.proofs if p.verdict != "passed"}
    for backup in story.backups:
        if backup.completed_at < at and backup.backup_id not in unsure:
            story.proofs.append(_verified(backup, at))


def _recoveries(story: Story, dice: random.Random) -> None:
    """A recovery to a moment, each Monday, of the newest increment."""
    increments = [m for m in story.backups if m.type == "incremental"]
    for due in _due(story.now, time(5), _BASES_SINCE):
        before = [m for m in increments if m.completed_at < due]
        if due.weekday() == 0 and before:
            recovery = round(dice.uniform(58, 74), 1)
            figures = {"recovery_seconds": recovery, "markers_committed": 1.0, "markers_open": 0.0,
                       "tables": 61.0, "rows": 3_900_000.0}  # fmt: skip
            steps = {"unpack": round(recovery * 0.7, 1), "replay": round(recovery * 0.3, 1)}
            story.proofs.append(
                _proof(before[-1], "restore_test", due, recovery + 20, "passed",
                       "recovered to the last marker, every row read", figures, steps)
            )  # fmt: skip


def _prune(story: Story) -> None:
    """The one prune there was: what it took was never written."""
    now = _due(story.now, time(5, 30))[_PRUNED]
    settings = RetentionSettings()
    before = [m for m in story.backups if m.completed_at < now]
    plan = _planned(before, [p for p in story.proofs if p.finished_at < now], settings, now)
    check_clock(plan)  # no prune is told that would have been refused
    gone = {decision.backup.backup_id for decision in plan.doomed}
    story.backups = [m for m in story.backups if m.backup_id not in gone]
    story.proofs = [p for p in story.proofs if p.backup_id not in gone or p.finished_at < now]
    story.pruned = PruneRecord(
        state="done", began_at=now, finished_at=now + timedelta(seconds=2), by=LABEL,
        settings=settings.model_dump(), kept=kept_of(plan), deleted=tuple(gone_of(plan, _sizes(before))),
    )  # fmt: skip


def _planned(
    backups: Sequence[Manifest], proofs: Sequence[Proof], settings: RetentionSettings, now: datetime
) -> Plan:
    newest_first = sorted(map(listed, backups), key=lambda b: b.require_manifest().completed_at,
                          reverse=True)  # fmt: skip
    inventory = Inventory(
        backups=newest_first, standings=dict(_standings(proofs)), holds={}, histories={1: History(1)},
        listed=segments_of(newest_first), wal=list(_sizes(backups)),
    )  # fmt: skip
    return plan_retention(inventory, settings, now)


def _sizes(backups: Sequence[Manifest]) -> dict[str, int]:
    return {s.name: s.size for m in backups if m.wal for s in m.wal.segments}


def _standings(proofs: Sequence[Proof]) -> Iterator[tuple[str, Standing]]:
    for backup_id in dict.fromkeys(p.backup_id for p in proofs):
        latest = {p.proof: p.verdict for p in proofs if p.backup_id == backup_id}
        bad = "failed" in latest.values()
        yield (
            backup_id,
            Standing(
                verified=latest.get("verification") == "passed" and not bad,
                restore_tested=latest.get("restore_test") == "passed" and not bad,
                trouble="its restore test failed" if bad else None,
            ),
        )


def _verified(backup: Manifest, at: datetime, unsure: str | None = None) -> Proof:
    seconds = 0.4 + backup.file_size / (700 * _MEGA)
    files = 5 if backup.type == "full" else 1
    figures = {"files": float(files), "bytes": float(backup.file_size), "seconds": seconds}
    summary = unsure or f"{files} files, {backup.file_size} bytes read, all as written"
    return _proof(backup, "verification", at, seconds, "could_not_verify" if unsure else "passed",
                  summary, figures, {})  # fmt: skip


def _proof(backup: Manifest, proof: str, at: datetime, seconds: float, verdict: Verdict, summary: str,
           figures: dict[str, float], steps: dict[str, float],
           findings: tuple[Finding, ...] = ()) -> Proof:  # fmt: skip
    return Proof.model_validate({
        "backup_id": backup.backup_id, "proof": proof, "verdict": verdict, "summary": f"{LABEL}: {summary}",
        "started_at": at, "finished_at": at + timedelta(seconds=seconds), "findings": findings,
        "figures": figures, "steps": steps, "notes": (NOTE,),
    })  # fmt: skip
