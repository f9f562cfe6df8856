"""What is wrong: the troubles that a look at the repository finds.

Pure: figures, facts, settings and a time in, troubles out. Each kind of trouble has a key that stays the
same as long as it lasts; what keys begin with stands in ``health.STALE`` and ``health.ELSE``.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.backup import LEFTOVER_AGE
from kyb_backup_pipeline.engine.figures import KindHealth, Space, Surroundings, named
from kyb_backup_pipeline.engine.kept_too_long import kept_too_long
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_findings import off_site
from kyb_backup_pipeline.engine.offsite_standing import standings_of
from kyb_backup_pipeline.engine.settings import HealthSettings, ScheduleSettings, Settings
from kyb_backup_pipeline.engine.survey import Fact, ProofName
from kyb_backup_pipeline.engine.suspicion import out_of_line
from kyb_backup_pipeline.engine.timetable import last_due
from kyb_backup_pipeline.engine.trouble import Trouble, lasting
from kyb_backup_pipeline.engine.wal import ranges

_CLOCKS_DIFFER = timedelta(minutes=10)


def troubles_of(
    settings: Settings,
    kinds: dict[Kind, KindHealth],
    space: Space,
    facts: Sequence[Fact],
    around: Surroundings,
    now: datetime,
) -> Iterator[Trouble]:
    """All that is wrong, in no order."""
    yield from _ages(kinds)
    yield from _schedules(settings, kinds, now)
    yield from _failures(kinds)
    yield from _proofs(settings.health, facts, kinds, now)
    yield from out_of_line(facts, settings.health)
    yield from _log(settings.health, around, kinds["incremental"].newest)
    yield from _room(settings, space)
    yield from _disorder(facts, around, now)
    yield from _retention(settings.health, around, now)
    yield from kept_too_long(around.inventory, settings.retention, now)
    yield from off_site(settings, facts, standings_of(settings.offsite, around.views), now)


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
                made_up_for = _made_up_for(fact, kinds, name)
                yield Trouble(
                    key=f"{name}:{fact.backup_id}", severity="warning" if made_up_for else "critical",
                    title=f"{fact.backup_id} is bad: its {what} failed", text=proof.summary,
                    hint=f"{made_up_for or 'take a new backup now'}; kyb-backup show {fact.backup_id}",
                    backup_id=fact.backup_id,
                )  # fmt: skip
    for kind, health in kinds.items():
        if health.newest is None or health.stale:
            continue
        unsure = health.newest.verification
        watched = settings.verified_max_age > 0  # on a host without the key nothing can be verified
        if watched and unsure is not None and unsure.verdict == "could_not_verify":
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


def _made_up_for(bad: Fact, kinds: dict[Kind, KindHealth], name: ProofName) -> str:
    """What makes a bad backup no emergency any more: a younger one that passed what it failed.

    Of a chain it must be a base: whatever stands on the bad one cannot be reached without it.
    """
    chained = bad.kind in ("base", "incremental")
    proved = kinds["base"].verified if chained else kinds[bad.kind].proved(name)
    if proved is None or proved.at is None or bad.at is None or proved.at <= bad.at:
        return ""
    return f"do not restore it: {proved.backup_id} is younger, and passed"


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


def _retention(settings: HealthSettings, around: Surroundings, now: datetime) -> Iterator[Trouble]:
    """The last prune was refused, failed, was killed, or is long ago. Who never prunes does not want to."""
    if not around.prunes:
        return
    last = around.prunes[0]
    if last.state == "done":
        if settings.pruned_max_age and now - last.began_at > timedelta(
            hours=settings.pruned_max_age
        ):
            yield Trouble(
                key="retention", severity="warning",
                title=f"nothing was pruned for {lasting(now - last.began_at)}",
                hint="is Dagster's daemon running? kyb-backup prune --dry-run",
            )  # fmt: skip
        return
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
