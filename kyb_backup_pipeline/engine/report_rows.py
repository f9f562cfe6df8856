"""A report in words: what its pages have in common, ready to be set in type."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from kyb_backup_pipeline.engine.figures import KINDS, RESTORE_TESTED, KindHealth, named
from kyb_backup_pipeline.engine.health import Health
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_standing import PlaceStanding
from kyb_backup_pipeline.engine.pictures import amount
from kyb_backup_pipeline.engine.survey import Fact, ProofFact
from kyb_backup_pipeline.engine.trouble import lasting

_TIME = "%Y-%m-%d %H:%M"
_COPIES = ("failed", "could_not_verify", "unproved", "passed")
"""From the worst."""


def headline(health: Health) -> str:
    """The whole report in one line."""
    worst = [t for t in health.troubles if t.severity != "info"]
    if not worst:
        return "All is well: every kind of backup is fresh and proved"
    critical = sum(t.severity == "critical" for t in worst)
    said = f"{critical} critical" if critical else ""
    warnings = len(worst) - critical
    more = f"{warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    return f"{' and '.join(filter(None, (said, more)))}: {worst[0].title}"


def figures(health: Health) -> list[tuple[str, str, str]]:
    """The few figures that are asked for first: (what, figure, more about it)."""
    point, seconds = health.recovery_point, health.recovery_time
    full = health.kinds["full"]
    tested = full.restore_tested
    proof = tested.restore_test if tested else None
    space = health.space
    return [
        ("Recovery point", f"{lasting(health.at - point)} ago" if point else "none",
         f"{point:{_TIME}} UTC" if point else "nothing can be recovered"),
        ("Recovery time", amount(seconds, "s") if seconds else "not known",
         f"restore of {tested.backup_id}" if tested and seconds else "no restore test passed yet"),
        ("Restore-tested", f"{lasting(health.at - proof.at)} ago" if proof else "never",
         f"{tested.backup_id if tested else ''}"),
        ("Room", f"{amount(space.free, 'B')} free" if space.total else "not known", _room(health)),
    ]  # fmt: skip


def _room(health: Health) -> str:
    space = health.space
    if not space.total:
        return ""
    days = space.days_until_full
    until = f", full in {days:,.0f} days at the growth of the last week" if days else ""
    return f"of {amount(space.total, 'B')}{until}"


def short(kind: Kind) -> str:
    """A kind in a table or a picture."""
    return named(kind).replace("backup of the ", "").replace(" backup", "").replace(" archive", "")


def kind_row(one: KindHealth) -> dict[str, Any]:
    """One kind. ``verified`` and ``tested`` are "yes" where it is the newest that was."""
    return {
        "name": short(one.kind),
        "count": one.count,
        "size": amount(one.size, "B"),
        "newest": one.newest.backup_id if one.newest else "none",
        "age": lasting(one.age) if one.age else "-",
        "limit": lasting(one.limit) if one.limit else "not watched",
        "stale": one.stale,
        "verified": _proved(one, one.verified),
        "tested": _proved(one, one.restore_tested) if one.kind in RESTORE_TESTED else ("none", ""),
    }


def _proved(one: KindHealth, fact: Fact | None) -> tuple[str, str]:
    """(class of the cell, words)."""
    if fact is None:
        return "none", "none"
    if one.newest is not None and fact.backup_id == one.newest.backup_id:
        return "passed", "yes"
    return "none", f"last: {fact.backup_id}"


def place_row(place: PlaceStanding, now: datetime) -> dict[str, Any]:
    """One off-site place."""
    view = place.view
    newest = [
        (short(kind), place.newest[kind][0], f"{lasting(now - place.newest[kind][1].finished_at)} old")
        for kind in KINDS if kind in place.newest
    ]  # fmt: skip
    return {
        "name": place.name,
        "url": view.url,
        "copies": len(view.copies) + len(view.damaged),
        "newest": newest,
        "verified": f"{lasting(now - place.verified_at)} ago" if place.verified_at else "never",
        "locked": _locked(place, now),
        "reachable": _reachable(place),
    }


def _locked(place: PlaceStanding, now: datetime) -> tuple[str, str]:
    """(class of the cell, words)."""
    until, deletable = place.view.locked_until, place.deletable(now)
    if deletable is None:
        return "none", "not known"
    if deletable:
        return "none" if place.options.lock == "none" else "stale", "no: it can be deleted"
    ever = until is None or until.year == 9999
    return "passed", "until it is released" if ever or until is None else f"until {stamp(until)}"


def _reachable(place: PlaceStanding) -> tuple[str, str]:
    """(class of the cell, words)."""
    trouble = place.view.trouble
    if trouble is not None:
        return "stale", f"not since {stamp(trouble.since)}"
    return ("passed", "yes") if place.ever_seen else ("none", "never looked at")


def copy_cell(fact: Fact, places: Sequence[PlaceStanding]) -> tuple[str, str]:
    """Where a backup has copies: (class of the cell, words); the worst of them gives the class."""
    states = {place.name: place.state(fact.backup_id) for place in places}
    found = {name: state for name, state in states.items() if state is not None}
    if not found:
        return "none", "none"
    worst = next((s for s in _COPIES if s in found.values()), "none")
    words = (name if state in ("passed", "unproved") else f"{name} {state.replace('_', ' ')}"
             for name, state in found.items())  # fmt: skip
    return "none" if worst == "unproved" else worst, ", ".join(words)


def backup_row(fact: Fact, places: Sequence[PlaceStanding] = ()) -> dict[str, Any]:
    """One backup."""
    return {
        "id": fact.backup_id,
        "kind": short(fact.kind),
        "at": f"{fact.at:{_TIME}}" if fact.at else "damaged",
        "size": amount(fact.size, "B") if fact.at else "",
        "rows": f"{fact.rows:,}" if fact.rows is not None else "",
        "verification": _state(fact.verification),
        "restore_test": _state(fact.restore_test) if _tested(fact) else ("none", ""),
        "offsite": copy_cell(fact, places) if places else ("none", ""),
        "note": fact.problem or ", ".join(filter(None, (fact.deployment, fact.label))),
    }


def _tested(fact: Fact) -> bool:
    """Whether there is a test, or every one of its kind is to have one."""
    return fact.kind == "full" or fact.restore_test is not None


def _state(proof: ProofFact | None) -> tuple[str, str]:
    """(class of the cell, words)."""
    if proof is None:
        return "none", "not yet"
    return proof.verdict, proof.verdict.replace("_", " ")


def stamp(moment: datetime) -> str:
    """A time of the report, to the minute."""
    return f"{moment:{_TIME}}"
