"""The health report to read: one page of HTML with everything in it, and plain text.

No script, no font and no picture from elsewhere; light and dark as the reader has it; on paper the table's head
stands on each sheet. What comes from a repository (ids, labels, messages) is escaped by the template.
"""

import json
import os
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from kyb_backup_pipeline.engine import pictures
from kyb_backup_pipeline.engine.figures import RESTORE_TESTED, KindHealth, named
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.health import Health
from kyb_backup_pipeline.engine.report import Report, as_document, days_of
from kyb_backup_pipeline.engine.survey import Fact, ProofFact
from kyb_backup_pipeline.engine.trouble import lasting

_ROWS = 2000
"""Of the table of backups: more would make a page that no phone opens."""
_POINTS = 200
_FOLDER = "monitoring/reports"
_KEPT = 60
_PRUNED = 200


def html_page(report: Report) -> str:
    """The page."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (
        files("kyb_backup_pipeline.engine").joinpath("templates/report.html").read_text("utf-8")
    )
    health = report.health
    return environment.from_string(source).render(
        report=report,
        health=health,
        kinds=[_kind_row(one) for one in health.kinds.values()],
        backups=[_backup_row(fact) for fact in report.facts[:_ROWS]],
        pruned=[
            (f"{record.began_at:%Y-%m-%d %H:%M}", gone.id, gone.why)
            for record in report.pruned
            for gone in record.deleted
        ][:_PRUNED],
        left_out=max(len(report.facts) - _ROWS, 0),
        pictures=[(title, _safe(svg)) for title, svg in pictures_of(report)],
        headline=headline(health),
        worst=health.troubles[0].severity if health.troubles else "info",
        recovery_point=_moment(health.recovery_point, health.at),
        recovery_time=pictures.amount(health.recovery_time, "s")
        if health.recovery_time
        else "not known",
        room=_room(health),
    )


def keep_report(repository: Path, report: Report) -> Path:
    """Write page and JSON into the repository, the newest sixty; where the page is. Raises OSError."""
    folder = repository / _FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"health_{report.health.at:%Y%m%d_%H%M%S}"
    page = folder / f"{stem}.html"
    document = json.dumps(as_document(report), indent=2).encode()
    for path, content in ((folder / f"{stem}.json", document), (page, html_page(report).encode())):
        temporary = folder / f".{path.name}.tmp"
        write_durably(temporary, content)
        os.rename(temporary, path)
    flush_folder(folder)
    for suffix in ("html", "json"):
        for old in sorted(folder.glob(f"health_*.{suffix}"))[:-_KEPT]:
            old.unlink(missing_ok=True)
    return page


def text_page(report: Report) -> str:
    """The same in plain text, as the procedures' report was."""
    health = report.health
    lines = [
        "KYB platform: backup health report",
        f"Generated: {health.at:%Y-%m-%d %H:%M:%S} UTC, of {report.repository}",
        "=" * 60,
        headline(health),
    ]
    for trouble in health.troubles:
        lines.append(f"[{trouble.severity}] {trouble.title}")
        lines += [
            f"    {text}"
            for text in (trouble.text, trouble.hint and f"HINT: {trouble.hint}")
            if text
        ]
    lines += ["", "Kinds:"]
    for row in (_kind_row(one) for one in health.kinds.values()):
        lines.append(f"  {row['name']:<34} newest {row['newest']}, {row['age']} old, limit {row['limit']}; "
                     f"verified {row['verified']}; restore-tested {row['tested']}")  # fmt: skip
    lines += [
        "",
        f"Recovery point: {_moment(health.recovery_point, health.at)}",
        f"Recovery time: {pictures.amount(health.recovery_time, 's') if health.recovery_time else 'not known'}",
        f"Room: {_room(health)}",
        "",
        "Backups:",
    ]
    for fact in report.facts:
        row = _backup_row(fact)
        lines.append(f"  {row['id']:<36} {row['kind']:<18} {row['at']:<17} {row['size']:>9}  "
                     f"verification: {row['verification'][1]}, restore test: {row['restore_test'][1]}")  # fmt: skip
    return "\n".join(lines) + "\n"


def markdown_page(report: Report) -> str:
    """The same for Dagster's UI, with the pictures."""
    import base64

    health = report.health
    parts = [f"## {headline(health)}"]
    if health.troubles:
        rows = "\n".join(
            f"| {t.severity} | {_cell(t.title)} | {_cell(t.text)} | {_cell(t.hint or '')} |"
            for t in health.troubles[:50]
        )
        parts.append(f"| | What | | What to do |\n|---|---|---|---|\n{rows}")
    kinds = "\n".join(
        f"| {row['name']} | {_cell(row['newest'])} | {row['age']} | {row['limit']} | {_cell(row['verified'])} | "
        f"{_cell(row['tested'])} |"
        for row in (_kind_row(one) for one in health.kinds.values())
    )
    parts.append(
        f"| Kind | Newest | Age | Limit | Verified | Restore-tested |\n|---|---|---|---|---|---|\n{kinds}"
    )
    parts.append(
        f"Recovery point: {_moment(health.recovery_point, health.at)}. Room: {_room(health)}."
    )
    for title, svg in pictures_of(report):
        encoded = base64.b64encode(svg.encode()).decode()
        parts.append(f"### {title}\n\n![{title}](data:image/svg+xml;base64,{encoded})")
    return "\n\n".join(parts)


def pictures_of(report: Report) -> list[tuple[str, str]]:
    """(title, SVG) of each picture, in the order of the page."""
    health = report.health
    rows = [
        (
            named(one.kind).replace("backup of the ", ""),
            one.age.total_seconds() / 3600 if one.age else None,
            one.limit.total_seconds() / 3600 if one.limit else None,
        )
        for one in health.kinds.values()
    ]
    full = [f for f in reversed(report.facts) if f.kind == "full" and f.at and not f.safety][
        -_POINTS:
    ]
    sizes = [(f.at, float(f.size)) for f in full if f.at]
    times = [(f.at, f.seconds) for f in full if f.at and f.seconds is not None]
    recoveries = [(t.at, t.seconds) for t in report.tests if t.seconds is not None][-_POINTS:]
    days = [(day, [t.verdict for t in tests]) for day, tests in days_of(report.tests, health.at)]
    found = [
        ("Age against its limit", pictures.ages(rows)),
        ("Restore tests, day by day", pictures.calendar(days)),
        ("Recovery time", pictures.series(recoveries, "Recovery time", "s")),
        ("Size of full backups", pictures.series(sizes, "Size of full backups", "B")),
        ("Time that full backups took", pictures.series(times, "Time of full backups", "s")),
    ]
    space = health.space
    if space.total:
        other = max(space.total - space.free - space.used_by_backups, 0)
        bar = [("backups", float(space.used_by_backups), pictures.ACCENT), ("other", float(other), pictures.MUTED),
               ("free", float(space.free), pictures.LINE)]  # fmt: skip
        found.append(("Room", pictures.shares(bar)))
    return found


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


def _kind_row(one: KindHealth) -> dict[str, Any]:
    return {
        "name": named(one.kind),
        "count": one.count,
        "size": pictures.amount(one.size, "B"),
        "newest": one.newest.backup_id if one.newest else "none",
        "age": lasting(one.age) if one.age else "-",
        "limit": lasting(one.limit) if one.limit else "not watched",
        "stale": one.stale,
        "verified": one.verified.backup_id if one.verified else "none",
        "tested": _tested(one),
    }


def _tested(one: KindHealth) -> str:
    if one.kind not in RESTORE_TESTED:
        return ""
    return one.restore_tested.backup_id if one.restore_tested else "none"


def _backup_row(fact: Fact) -> dict[str, Any]:
    return {
        "id": fact.backup_id,
        "kind": fact.kind.replace("_", " "),
        "at": f"{fact.at:%Y-%m-%d %H:%M}" if fact.at else "damaged",
        "size": pictures.amount(fact.size, "B"),
        "rows": f"{fact.rows:,}" if fact.rows is not None else "",
        "verification": _state(fact.verification),
        "restore_test": _state(fact.restore_test) if fact.kind in RESTORE_TESTED else ("none", ""),
        "note": fact.problem or fact.label or fact.deployment or "",
    }


def _state(proof: ProofFact | None) -> tuple[str, str]:
    """(class of the cell, words)."""
    if proof is None:
        return "none", "not yet"
    return proof.verdict, proof.verdict.replace("_", " ")


def _moment(moment: datetime | None, now: datetime) -> str:
    return (
        f"{moment:%Y-%m-%d %H:%M} UTC, {lasting(now - moment)} ago"
        if moment
        else "nothing can be recovered"
    )


def _room(health: Health) -> str:
    space = health.space
    if not space.total:
        return "not known"
    days = space.days_until_full
    until = f", full in {days:,.0f} days at the growth of the last week" if days else ""
    return f"{pictures.amount(space.free, 'B')} free of {pictures.amount(space.total, 'B')}{until}"


def _safe(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # our own: its words are escaped where it is drawn


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
