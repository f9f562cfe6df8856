"""What is wrong with the off-site copies, by what was seen of each place last.

Pure, and without the network: whoever pushes, lists, verifies or prunes writes down what was seen (``offsite_view``),
and here it is held against the backups at home. Keys begin with ``offsite:<place>:``, so that each place has its own
troubles and their ends.

That copies are not encrypted is no trouble here: ``check`` warns of the setting, where it can be changed.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.figures import KINDS, named
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_standing import PlaceStanding
from kyb_backup_pipeline.engine.settings import OffsiteRetentionSettings, Settings
from kyb_backup_pipeline.engine.survey import Fact
from kyb_backup_pipeline.engine.trouble import Severity, Trouble, lasting

OFFSITE = "offsite:"
_OF_THE_DATABASE: tuple[Kind, ...] = ("full", "base", "incremental")
_NOT_COPIED: tuple[Kind, ...] = ("application_state", "configuration")
"""Of these the old scripts wrote no manifest that could be copied."""
_NAMED = 5


def off_site(
    settings: Settings, facts: Sequence[Fact], places: Sequence[PlaceStanding], now: datetime
) -> Iterator[Trouble]:
    """All that is wrong with the copies; ``facts`` have the newest first."""
    for place in places:
        due = [f for f in facts if _copyable(f) and f.at is not None and now - f.at > place.max_age]
        yield from _reached(place, due, now)
        if place.ever_seen:
            yield from _missing(place, due, settings.offsite.retention, now)
            yield from _leading_nowhere(place, facts, now)
        yield from _proofs(place, settings.health.verified_max_age, now)
        yield from _locked(place, now)


def _copyable(fact: Fact) -> bool:
    """Whether there is to be a copy: regular backups, but for what the old scripts made without a manifest."""
    return not fact.safety and not (fact.legacy and fact.kind in _NOT_COPIED)


def _reached(place: PlaceStanding, due: Sequence[Fact], now: datetime) -> Iterator[Trouble]:
    """A place that does not answer, or that nobody has ever looked at."""
    trouble = place.view.trouble
    if trouble is not None:
        lasts = now - trouble.since
        yield Trouble(
            key=f"{OFFSITE}{place.name}:unreachable",
            severity="critical" if lasts > place.max_age else "warning",
            title=f"the off-site place {place.name} cannot be used for {lasting(lasts)}",
            text=trouble.message, hint=trouble.hint or "kyb-backup offsite list",
        )  # fmt: skip
    elif not place.ever_seen:
        yield Trouble(
            key=f"{OFFSITE}{place.name}:unseen", severity="critical" if due else "warning",
            title=f"nothing was ever copied to the off-site place {place.name}",
            text=f"{place.view.url}: it has never been looked at", hint="kyb-backup offsite push --all",
        )  # fmt: skip


def _missing(
    place: PlaceStanding, due: Sequence[Fact], kept: OffsiteRetentionSettings, now: datetime
) -> Iterator[Trouble]:
    """Backups that should have a copy by now: newer than the newest one, and older.

    What is older than every copy is brought in the night, too: so of a new place it is not missing before the place's
    own time is over. What failed its verification is not copied, which is told at home.
    """
    settled = now - _first_seen(place, now) > place.max_age
    for kind in KINDS:
        copies = [c.finished_at for c in place.view.copies.values() if c.kind == kind]
        lacking = [f for f in due if f.kind == kind and place.state(f.backup_id) is None]
        newer = [f for f in lacking if f.at is not None and (not copies or f.at > max(copies))]
        if newer:
            yield _stale(place, kind, newer, now)
        older = [f for f in lacking if f not in newer and not _known_bad(f)
                 and (settled or (f.at is not None and f.at > min(copies)))
                 and _still_kept(f, due, kept, now)]  # fmt: skip
        if older:
            yield _holes(place, kind, older)


def _first_seen(place: PlaceStanding, now: datetime) -> datetime:
    """Since when there is the place, as far as is known."""
    view = place.view
    times = [seen.pushed_at for seen in view.copies.values()]
    times += [view.probe.at] if view.probe is not None else []
    return min(times, default=view.looked_at or now)


def _known_bad(fact: Fact) -> bool:
    return fact.verification is not None and fact.verification.verdict == "failed"


def _leading_nowhere(
    place: PlaceStanding, facts: Sequence[Fact], now: datetime
) -> Iterator[Trouble]:
    """Copies of increments without a copy of their base there: nothing can be recovered from these.

    Where no look noted the base of an increment, it is taken to be the newest before it. A new one may still be on
    its way; of a new place, to which older ones come in the night, it is told less loudly.
    """
    settled = now - _first_seen(place, now) > place.max_age
    copies = place.view.copies
    bases = {i: seen.finished_at for i, seen in copies.items() if seen.kind == "base"}
    bases |= {f.backup_id: f.at for f in facts if f.kind == "base" and f.at is not None}
    bad = {f.backup_id for f in facts if _known_bad(f)}
    alone: dict[str, list[str]] = {}
    for backup_id, seen in copies.items():
        if seen.kind == "incremental":
            before = [i for i, at in bases.items() if at <= seen.finished_at]
            base = seen.base or max(before, key=bases.__getitem__, default="")
            if not base or place.state(base) is None:
                alone.setdefault(base, []).append(backup_id)
    for base, increments in alone.items():
        if base in bases and now - bases[base] <= place.max_age:
            continue
        missing = f"of their base {base}" if base else "of any base before them"
        yield Trouble(
            key=f"{OFFSITE}{place.name}:baseless:{base or increments[0]}",
            severity="critical" if settled else "warning",
            title=f"increments in {place.name} lead nowhere: there is no copy {missing}",
            text=f"{_some(increments)}: nothing can be recovered from these copies",
            hint=f"kyb-backup offsite push {base}" if base in bases and base not in bad else "kyb-backup backup base",
            backup_id=base or increments[0],
        )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _stale(place: PlaceStanding, kind: Kind, newer: Sequence[Fact], now: datetime) -> Trouble:
    copy = place.newest.get(kind)
    if copy is None:
        title = f"no {named(kind)} has a copy in {place.name}"
    else:
        title = f"the newest copy of {_a(kind)} in {place.name} is {lasting(now - copy[1].finished_at)} old"
    count = f"{len(newer)} newer ones have none" if len(newer) > 1 else "a newer one has none"
    return Trouble(
        key=f"{OFFSITE}{place.name}:stale:{kind}",
        severity="critical" if kind in _OF_THE_DATABASE else "warning",
        title=title, text=f"{count}, such as {newer[0].backup_id}; {lasting(place.max_age)} are allowed",
        hint="kyb-backup offsite push --all; look why the schedule did not", backup_id=newer[0].backup_id,
    )  # fmt: skip


def _holes(place: PlaceStanding, kind: Kind, older: Sequence[Fact]) -> Trouble:
    """Without an increment what is behind it leads nowhere, until the next base backup."""
    base = place.newest.get("base")
    broken = kind == "incremental" and base is not None and any(
        f.at is not None and f.at > base[1].finished_at for f in older
    )  # fmt: skip
    severity: Severity = "critical" if broken else "warning"
    return Trouble(
        key=f"{OFFSITE}{place.name}:missing:{kind}", severity=severity,
        title=f"copies are missing in {place.name} ({named(kind)}: {len(older)})",
        text=_some([f.backup_id for f in older]), hint="kyb-backup offsite push --all",
        backup_id=older[0].backup_id,
    )  # fmt: skip


def _still_kept(
    fact: Fact, due: Sequence[Fact], kept: OffsiteRetentionSettings, now: datetime
) -> bool:
    """Whether retention there would keep a copy of it: what it deleted is not missing."""
    if fact.kind == "application_state":
        newest = [f.backup_id for f in due if f.kind == fact.kind]
        return fact.backup_id in newest[: kept.application_deployments]
    days = {"full": kept.full_days, "configuration": kept.configuration_days}.get(
        fact.kind, kept.incremental_days
    )
    return fact.at is not None and now - fact.at <= timedelta(days=days)


def _proofs(place: PlaceStanding, hours: float, now: datetime) -> Iterator[Trouble]:
    """Copies that are not what was pushed; those of which that is not known."""
    view = place.view
    bad = {i: seen.summary for i, seen in view.copies.items() if seen.verdict == "failed"}
    for backup_id, why in {**bad, **view.damaged}.items():
        yield Trouble(
            key=f"{OFFSITE}{place.name}:bad:{backup_id}", severity="critical",
            title=f"the copy of {backup_id} in {place.name} is not what was pushed", text=why,
            hint=f"while it is at home: kyb-backup offsite push {backup_id} --again, then offsite verify {backup_id} "
            "--deep; and ask who has the key",
            backup_id=backup_id,
        )  # fmt: skip
    unsure = [i for i, seen in view.copies.items() if seen.verdict == "could_not_verify"]
    if unsure and view.trouble is None:
        more = f" and {len(unsure) - 1} more" if len(unsure) > 1 else ""
        yield Trouble(
            key=f"{OFFSITE}{place.name}:unsure", severity="warning",
            title=f"the copy of {unsure[0]}{more} in {place.name} could not be verified",
            text=view.copies[unsure[0]].summary, hint="kyb-backup offsite verify", backup_id=unsure[0],
        )  # fmt: skip
    if not hours or not view.copies or unsure:
        return
    since = place.verified_at or min(seen.pushed_at for seen in view.copies.values())
    if now - since > timedelta(hours=hours):
        yield Trouble(
            key=f"{OFFSITE}{place.name}:unverified", severity="warning",
            title=f"no copy in {place.name} was verified for {lasting(now - since)}",
            hint="is Dagster's daemon running? kyb-backup offsite verify",
        )  # fmt: skip


def _locked(place: PlaceStanding, now: datetime) -> Iterator[Trouble]:
    """Whether the newest copy can be deleted today: as it was meant without a lock, and against it with one."""
    if not place.view.copies or not place.deletable(now):
        return
    meant = place.options.lock == "none"
    yield Trouble(
        key=f"{OFFSITE}{place.name}:deletable", severity="info" if meant else "warning",
        title=f"copies in {place.name} can be deleted today, by whoever has the key"
        + ("" if meant else f", though offsite.lock is {place.options.lock}"),
        text="no lock is set" if meant else "the newest copy has no lock, or it is over",
        hint="a bucket with Object Lock, and offsite.lock; docs/runbook.md",
    )  # fmt: skip


def _a(kind: Kind) -> str:
    return f"{'an' if kind == 'incremental' else 'a'} {named(kind)}"
