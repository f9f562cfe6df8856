"""The health report to read: one page of HTML with everything in it.

No script, no font and no picture from elsewhere; light and dark as the reader has it; on paper the table's head
stands on each sheet. What comes from a repository (ids, labels, messages) is escaped by the template.
"""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from kyb_backup_pipeline.engine import pictures
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.printable import shown
from kyb_backup_pipeline.engine.report import Report, as_document, days_of
from kyb_backup_pipeline.engine.report_rows import (
    backup_row,
    figures,
    headline,
    kind_row,
    place_row,
    short,
    stamp,
)

_ROWS = 2000
"""Of the table of backups: more would make a page that no phone opens."""
_TROUBLES = 200
_POINTS = 200
_FOLDER = "monitoring/reports"
_KEPT = 60
_PRUNED = 200


def html_page(report: Report) -> str:
    """The page."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=shown)
    source = (
        files("kyb_backup_pipeline.engine").joinpath("templates/report.html").read_text("utf-8")
    )
    health = report.health
    return environment.from_string(source).render(
        report=report,
        at=f"{health.at:%Y-%m-%d %H:%M:%S} UTC",
        headline=headline(health),
        worst=health.troubles[0].severity if health.troubles else "info",
        troubles=health.troubles[:_TROUBLES],
        troubles_left=max(len(health.troubles) - _TROUBLES, 0),
        figures=figures(health),
        kinds=[kind_row(one) for one in health.kinds.values()],
        places=[place_row(place, health.at) for place in health.places],
        pictures=[(title, _safe(svg)) for title, svg in pictures_of(report)],
        pruned=_pruned(report),
        backups=[backup_row(fact, health.places) for fact in report.facts[:_ROWS]],
        left_out=max(len(report.facts) - _ROWS, 0),
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


def pictures_of(report: Report) -> list[tuple[str, str]]:
    """(title, SVG) of each picture, in the order of the page."""
    health = report.health
    ages = [
        (
            short(one.kind),
            one.age.total_seconds() / 3600 if one.age else None,
            one.limit.total_seconds() / 3600 if one.limit else None,
        )
        for one in health.kinds.values()
    ]
    full = [f for f in reversed(report.facts) if f.kind == "full" and f.at and not f.safety]
    sizes = [(f.at, float(f.size)) for f in full if f.at][-_POINTS:]
    times = [(f.at, f.seconds) for f in full if f.at and f.seconds is not None][-_POINTS:]
    days = [(day, [t.verdict for t in tests]) for day, tests in days_of(report.tests, health.at)]
    found = [
        ("Age of the newest, against its limit", pictures.ages(ages)),
        ("Restore tests, day by day", pictures.calendar(days)),
        ("Recovery time of full backups", _recovery(report, in_time=False)),
        ("Size of full backups", pictures.series(sizes, "Size of full backups", "B")),
        ("Time that full backups took", pictures.series(times, "Time of full backups", "s")),
    ]
    if any(test.in_time for test in report.tests):
        found.insert(3, ("Recovery time to a moment", _recovery(report, in_time=True)))
    space = health.space
    if space.total:
        other = max(space.total - space.free - space.used_by_backups, 0)
        bar = [("backups", float(space.used_by_backups), pictures.ACCENT), ("other", float(other), pictures.MUTED),
               ("free", float(space.free), pictures.LINE)]  # fmt: skip
        found.append(("Room", pictures.shares(bar, _forecast(report))))
    return found


def _recovery(report: Report, *, in_time: bool) -> str:
    tests = [t for t in report.tests if t.in_time == in_time and t.seconds is not None][-_POINTS:]
    points = [(t.at, t.seconds) for t in tests if t.seconds is not None]
    bad = {t.at for t in tests if t.verdict != "passed"}
    return pictures.series(points, "Recovery time", "s", bad=bad)


def _forecast(report: Report) -> str:
    space = report.health.space
    if space.days_until_full is None:
        return "no growth in the last week"
    growth = pictures.amount(space.growth, "B")
    return f"{growth} more a day: full in {space.days_until_full:,.0f} days"


def _pruned(report: Report) -> list[tuple[str, str, str]]:
    return [
        (stamp(record.began_at), gone.id, gone.why)
        for record in report.pruned
        for gone in record.deleted
    ][:_PRUNED]


def _safe(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # our own: its words are escaped where it is drawn
