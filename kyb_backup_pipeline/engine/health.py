"""How the backups stand at a moment, from the repository alone.

``look_at`` reads it, ``judge`` is pure: facts, settings and a time in, figures and troubles out. What only
the server knows (slot lag, failures of its archiver) stands in the manifests of the increments.

Where to look next: ``survey`` for the facts, ``trouble`` for what alerts carry, ``suspicion`` for sizes
and durations that are out of line.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.attempts import Attempt, Attempts
from kyb_backup_pipeline.engine.errors import CouldNotVerify, NotFound
from kyb_backup_pipeline.engine.inventory import Inventory, surveyed
from kyb_backup_pipeline.engine.journal import all_journals
from kyb_backup_pipeline.engine.kept_too_long import KEPT, kept_too_long
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.prune_records import PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.recovery_plan import Coverage
from kyb_backup_pipeline.engine.settings import HealthSettings, ScheduleSettings, Settings
from kyb_backup_pipeline.engine.store import LEFTOVER_AGE, Leftover
from kyb_backup_pipeline.engine.survey import Fact, ProofName, Survey
from kyb_backup_pipeline.engine.suspicion import out_of_line
from kyb_backup_pipeline.engine.timetable import last_due
from kyb_backup_pipeline.engine.trouble import SEVERITIES, Trouble, lasting
from kyb_backup_pipeline.engine.wal import ranges

KINDS: tuple[Kind, ...] = ("full", "base", "incremental", "configuration", "application_state")
RESTORE_TESTED: tuple[Kind, ...] = ("full", "incremental")
"""Kinds that are restored on throwaway servers; of the others every member is compared."""
STALE = ("stale:",)
ELSE = ("repository", "missed:", "failed:", "verification:", "restore_test:", "unsure:", "unverified:",
        "unrestore_tested:", "anomaly:", "gap:", "slot_lag", "archiver", "space", "unreadable:", "clock",
        "leftovers", "restore:", "retention", KEPT)  # fmt: skip
"""What keys of troubles begin with: of these a look says when they are over."""
_CLOCKS_DIFFER = timedelta(minutes=10)
_WEEK = timedelta(days=7)
_PRUNES = 50


@dataclass(frozen=True, kw_only=True)
class KindHealth:
    """One kind of backup; ``limit`` is None where its age is not watched."""

    kind: Kind
    count: int
    size: int
    newest: Fact | None
    age: timedelta | None
    limit: timedelta | None
    verified: Fact | None
    restore_tested: Fact | None
    failure: Attempt | None

    @property
    def stale(self) -> bool:
        """Whether the newest one is too old, or there is none."""
        return self.limit is not None and (self.age is None or self.age > self.limit)


@dataclass(frozen=True, kw_only=True)
class Space:
    """The file system of the repository, in bytes; ``growth`` is what a day of the last week added."""

    free: int
    total: int
    used_by_backups: int
    growth: float

    @property
    def days_until_full(self) -> float | None:
        return self.free / self.growth if self.growth > 0 else None


@dataclass(frozen=True, kw_only=True)
class Health:
    """How it stands. ``recovery_point`` is the newest moment that can be recovered to, ``recovery_time``
    the seconds of the newest restore test that passed.
    """

    at: datetime
    kinds: dict[Kind, KindHealth]
    space: Space
    recovery_point: datetime | None
    recovery_time: float | None
    slot_lag: int | None
    troubles: tuple[Trouble, ...]

    @property
    def well(self) -> bool:
        """Whether nothing is worse than an information."""
        return all(trouble.severity == "info" for trouble in self.troubles)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a look found beside the backups."""

    failures: dict[Kind, Attempt | None]
    leftovers: tuple[Leftover, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    free: int = 0
    total: int = 0
    killed_restores: tuple[str, ...] = ()
    prunes: tuple[PruneRecord, ...] = ()
    inventory: Inventory | None = None


def look_at(settings: Settings, survey: Survey, *, now: datetime) -> Health:
    """Look at a repository. One that is not there is a trouble, not an error."""
    try:
        facts = survey.look()
        around = _surroundings(settings, survey)
    except (NotFound, CouldNotVerify) as error:
        return _nothing(settings, error.message, now)
    except OSError as error:
        return _nothing(settings, f"{error.filename}: {error.strerror}", now)
    return judge(settings, facts, around, now)


def judge(settings: Settings, facts: Sequence[Fact], around: Surroundings, now: datetime) -> Health:
    """Judge what was found. ``facts`` have the newest first."""
    limits = limits_of(settings.health)
    kinds = {
        kind: _kind(kind, facts, limits[kind], around.failures.get(kind), now) for kind in KINDS
    }
    space = _space(facts, around, now)
    tested = kinds["full"].restore_tested
    newest_increment = kinds["incremental"].newest
    reached = [coverage.until for coverage in around.coverage]
    for fact in facts:
        if fact.kind == "full" and fact.at is not None:
            reached.append(fact.at - timedelta(seconds=fact.seconds or 0))  # its snapshot
    troubles = [
        *_ages(kinds),
        *_schedules(settings, kinds, now),
        *_failures(kinds),
        *_proofs(settings.health, facts, kinds, now),
        *out_of_line(facts, settings.health),
        *_log(settings.health, around, newest_increment),
        *_room(settings, space),
        *_disorder(facts, around, now),
        *_retention(around),
        *kept_too_long(around.inventory, settings.retention, now),
    ]
    worst_first = sorted(troubles, key=lambda t: -SEVERITIES.index(t.severity))
    return Health(
        at=now,
        kinds=kinds,
        space=space,
        recovery_point=max(reached, default=None),
        recovery_time=tested.restore_test.recovery if tested and tested.restore_test else None,
        slot_lag=newest_increment.lag if newest_increment else None,
        troubles=tuple(worst_first),
    )


def limits_of(health: HealthSettings) -> dict[Kind, timedelta | None]:
    """The greatest age of each kind; None where it is not watched."""
    hours: dict[Kind, float] = {
        "full": health.full_max_age,
        "base": health.base_max_age,
        "incremental": health.incremental_max_age,
        "configuration": health.configuration_max_age,
        "application_state": health.application_state_max_age,
    }
    return {kind: timedelta(hours=value) if value else None for kind, value in hours.items()}


def named(kind: Kind) -> str:
    """A kind in a sentence."""
    return {"full": "full backup", "base": "base backup", "incremental": "incremental backup",
            "configuration": "configuration archive",
            "application_state": "backup of the application state"}[kind]  # fmt: skip


def _surroundings(settings: Settings, survey: Survey) -> Surroundings:
    repository = survey.repository
    attempts = Attempts(repository.root)
    status = os.statvfs(repository.root)
    return Surroundings(
        failures={kind: attempts.last(kind) for kind in KINDS},
        leftovers=tuple(repository.leftovers()),
        coverage=survey.coverage(),
        free=status.f_bavail * status.f_frsize,
        total=status.f_blocks * status.f_frsize,
        prunes=tuple(PruneRecords(repository.root).newest(_PRUNES)),
        inventory=surveyed(survey),
        killed_restores=tuple(j.restore_id for j in all_journals(settings) if j.abandoned()),
    )


def _nothing(settings: Settings, why: str, now: datetime) -> Health:
    limits = limits_of(settings.health)
    trouble = Trouble(
        key="repository", severity="critical", title=f"the repository cannot be read: {why}",
        hint="is it mounted? BACKUP_DIR (or repository) names it",
    )  # fmt: skip
    return Health(
        at=now, kinds={kind: _kind(kind, (), limits[kind], None, now) for kind in KINDS},
        space=Space(free=0, total=0, used_by_backups=0, growth=0), recovery_point=None,
        recovery_time=None, slot_lag=None, troubles=(trouble,),
    )  # fmt: skip


def _kind(
    kind: Kind,
    facts: Sequence[Fact],
    limit: timedelta | None,
    failure: Attempt | None,
    now: datetime,
) -> KindHealth:
    own = [f for f in facts if f.kind == kind]
    regular = [f for f in own if f.at is not None and not f.safety]
    newest = regular[0] if regular else None
    return KindHealth(
        kind=kind,
        count=len(own),
        size=sum(f.size for f in own),
        newest=newest,
        age=now - newest.at if newest and newest.at else None,
        limit=limit,
        verified=next((f for f in regular if f.proved("verification")), None),
        restore_tested=next((f for f in regular if f.proved("restore_test")), None),
        failure=failure,
    )


def _space(facts: Sequence[Fact], around: Surroundings, now: datetime) -> Space:
    added = sum(f.size for f in facts if f.at is not None and now - f.at <= _WEEK)
    freed = sum(p.freed for p in around.prunes if p.state == "done" and now - p.began_at <= _WEEK)
    oldest = min((f.at for f in facts if f.at is not None), default=now)
    days = min(max((now - oldest) / timedelta(days=1), 1.0), 7.0)
    return Space(
        free=around.free,
        total=around.total,
        used_by_backups=sum(f.size for f in facts),
        growth=max(added - freed, 0) / days,
    )


def _ages(kinds: dict[Kind, KindHealth]) -> Iterator[Trouble]:
    for kind, health in kinds.items():
        if not health.stale or health.limit is None:
            continue
        command = {"application_state": "application --deployment VERSION"}.get(kind, kind)
        hint = f"kyb-backup backup {command}; look why the schedule did not: kyb-backup status"
        if health.newest is None or health.age is None:
            yield Trouble(
                key=f"stale:{kind}", severity="warning" if kind == "application_state" else "critical",
                title=f"there has never been {'an' if kind == 'incremental' else 'a'} {named(kind)}", hint=hint,
            )  # fmt: skip
        else:
            yield Trouble(
                key=f"stale:{kind}", severity="critical",
                title=f"no {named(kind)} for {lasting(health.age)}",
                text=f"the newest is {health.newest.backup_id}; {lasting(health.limit)} are allowed",
                hint=hint, backup_id=health.newest.backup_id,
            )  # fmt: skip


def _schedules(
    settings: Settings, kinds: dict[Kind, KindHealth], now: datetime
) -> Iterator[Trouble]:
    """A schedule that passed without a backup, said before the age is beyond its limit."""
    for kind, line in _lines(settings.schedules).items():
        due = last_due(line, now - timedelta(seconds=settings.health.schedule_grace))
        health = kinds[kind]
        if due is None or health.stale or health.newest is None or health.newest.at is None:
            continue
        if health.newest.at < due:
            yield Trouble(
                key=f"missed:{kind}", severity="warning",
                title=f"the {named(kind)} of {due:%Y-%m-%d %H:%M} UTC was not made",
                text=f"the newest is {health.newest.backup_id}",
                hint="is Dagster's daemon running? kyb-backup status; kyb-backup backup " + kind,
            )  # fmt: skip


def _lines(schedules: ScheduleSettings) -> dict[Kind, str]:
    return {"full": schedules.full_backup, "base": schedules.base_backup,
            "incremental": schedules.incremental_backup,
            "configuration": schedules.configuration_backup}  # fmt: skip


def _failures(kinds: dict[Kind, KindHealth]) -> Iterator[Trouble]:
    for kind, health in kinds.items():
        failure = health.failure
        newest = health.newest.at if health.newest else None
        if failure is None or (newest is not None and newest >= failure.at):
            continue
        yield Trouble(
            key=f"failed:{kind}", severity="warning",
            title=f"the last {named(kind)} failed: {failure.error}",
            text=f"{failure.backup_id} at {failure.at:%Y-%m-%d %H:%M} UTC; none was made since",
            hint=failure.hint, backup_id=failure.backup_id,
        )  # fmt: skip


def _proofs(
    settings: HealthSettings, facts: Sequence[Fact], kinds: dict[Kind, KindHealth], now: datetime
) -> Iterator[Trouble]:
    names: tuple[ProofName, ...] = ("verification", "restore_test")
    for fact in facts:
        for name in names:
            proof = fact.proof(name)
            if proof is not None and proof.verdict == "failed":
                what = "verification" if name == "verification" else "restore test"
                yield Trouble(
                    key=f"{name}:{fact.backup_id}", severity="critical",
                    title=f"{fact.backup_id} is bad: its {what} failed", text=proof.summary,
                    hint=f"take a new backup now; kyb-backup show {fact.backup_id}",
                    backup_id=fact.backup_id,
                )  # fmt: skip
    for kind, health in kinds.items():
        if health.newest is None or health.stale:
            continue
        unsure = health.newest.verification
        if unsure is not None and unsure.verdict == "could_not_verify":
            yield Trouble(
                key=f"unsure:{kind}", severity="warning",
                title=f"the newest {named(kind)} could not be verified", text=unsure.summary,
                hint=f"kyb-backup verify {health.newest.backup_id}", backup_id=health.newest.backup_id,
            )  # fmt: skip
        elif _older(health.verified, "verification", settings.verified_max_age, now, health):
            yield _unproved(kind, "verified", health.verified, "kyb-backup verify --all")
    full, increments = kinds["full"], kinds["incremental"]
    if _older(full.restore_tested, "restore_test", settings.restore_tested_max_age, now, full):
        yield _unproved("full", "restore-tested", full.restore_tested, "kyb-backup drill")
    limit = settings.point_in_time_tested_max_age
    if _older(increments.restore_tested, "restore_test", limit, now, increments):
        hint = "kyb-backup drill --at latest"
        yield _unproved("incremental", "restore-tested", increments.restore_tested, hint)


def _older(
    proved: Fact | None, name: ProofName, hours: float, now: datetime, health: KindHealth
) -> bool:
    """Whether the newest pass is older than it may be; of none, whether there was the time for one."""
    if not hours or health.newest is None or health.newest.at is None:
        return False
    limit = timedelta(hours=hours)
    if proved is None:
        return now - health.newest.at > limit or health.count > 3
    proof = proved.proof(name)
    return proof is not None and now - proof.at > limit


def _unproved(kind: Kind, how: str, proved: Fact | None, hint: str) -> Trouble:
    last = "none ever was" if proved is None else f"the newest that was is {proved.backup_id}"
    return Trouble(
        key=f"un{how.replace('-', '_')}:{kind}", severity="warning",
        title=f"no {named(kind)} was {how} lately", text=last, hint=hint,
        backup_id=proved.backup_id if proved else None,
    )  # fmt: skip


def _log(settings: HealthSettings, around: Surroundings, newest: Fact | None) -> Iterator[Trouble]:
    for coverage in around.coverage:
        if coverage.missing:
            yield Trouble(
                key=f"gap:{coverage.history.timeline}", severity="critical",
                title=f"a hole in the WAL: {ranges(coverage.missing)} missing",
                text=f"behind {coverage.base.backup_id}; it covers {coverage} only",
                hint="kyb-backup backup incremental fills it while the server has them, else "
                "kyb-backup backup base",
            )  # fmt: skip
    if newest is None:
        return
    if settings.slot_lag and newest.lag is not None and newest.lag > settings.slot_lag:
        yield Trouble(
            key="slot_lag", severity="warning",
            title=f"the slot kept {newest.lag / 2**30:.1f} GiB of WAL on the server",
            text=f"at {newest.backup_id}", hint="more frequent increments, or a look at the disk there",
        )  # fmt: skip
    if newest.archive_failures:
        yield Trouble(
            key="archiver", severity="warning",
            title=f"the server's archiver failed {newest.archive_failures} times",
            text=f"counted at {newest.backup_id}", hint="the server's log says why",
        )  # fmt: skip


def _room(settings: Settings, space: Space) -> Iterator[Trouble]:
    if space.total == 0:
        return
    text = f"{space.free / 2**30:.1f} GiB free of {space.total / 2**30:.1f}"
    if space.free < settings.backup.minimum_free:
        yield Trouble(key="space", severity="critical", title=f"no room for backups: {text}",
                      hint="kyb-backup prune --dry-run; or a larger file system")  # fmt: skip
        return
    days = space.days_until_full
    if days is not None and days < settings.health.days_until_full:
        yield Trouble(
            key="space", severity="warning", title=f"the repository is full in {days:.0f} days",
            text=f"{text}; {space.growth / 2**30:.2f} GiB more each day",
            hint="kyb-backup prune --dry-run; or a larger file system",
        )  # fmt: skip


def _retention(around: Surroundings) -> Iterator[Trouble]:
    """The last prune was refused, failed, or was killed."""
    if not around.prunes or around.prunes[0].state == "done":
        return
    last = around.prunes[0]
    said = {"refused": "was refused", "failed": "failed", "running": "was killed"}[last.state]
    yield Trouble(
        key="retention", severity="critical" if last.state == "refused" else "warning",
        title=f"the last prune {said}", text=last.refusal or f"begun at {last.began_at:%Y-%m-%d %H:%M} UTC",
        hint=last.hint or "kyb-backup prune --dry-run",
    )  # fmt: skip


def _disorder(facts: Sequence[Fact], around: Surroundings, now: datetime) -> Iterator[Trouble]:
    for fact in facts:
        if fact.problem is not None:
            yield Trouble(
                key=f"unreadable:{fact.backup_id}", severity="warning",
                title=f"{fact.backup_id} cannot be read", text=fact.problem,
                hint="it does not count as a backup: look at it", backup_id=fact.backup_id,
            )  # fmt: skip
    ahead = [f for f in facts if f.at is not None and f.at > now + _CLOCKS_DIFFER]
    if ahead:
        yield Trouble(
            key="clock", severity="critical",
            title=f"{len(ahead)} backups are from the future: a clock is wrong",
            text=f"{ahead[0].backup_id} at {ahead[0].at:%Y-%m-%d %H:%M} UTC",
            hint="compare the clocks of this host and of the one that made it",
        )  # fmt: skip
    old = [left for left in around.leftovers if now - left.modified > LEFTOVER_AGE]
    if old:
        more = f" and {len(old) - 1} more" if len(old) > 1 else ""
        yield Trouble(
            key="leftovers", severity="info", title=f"{old[0].folder} is not a backup{more}",
            text="left by a killed run, or without its manifest",
            hint="what killed runs left goes with the next backup; look at the others",
        )  # fmt: skip
    for restore_id in around.killed_restores:
        yield Trouble(key=f"restore:{restore_id}", severity="critical",
                      title=f"{restore_id} was killed", hint="kyb-backup restore repair")  # fmt: skip
