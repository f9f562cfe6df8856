"""The health report as plain text, as the procedures' report was, and as Markdown for Dagster's UI."""

import base64
from collections.abc import Sequence
from itertools import islice

from kyb_backup_pipeline.engine.printable import markdown_text, printable
from kyb_backup_pipeline.engine.report import Report
from kyb_backup_pipeline.engine.report_page import pictures_of
from kyb_backup_pipeline.engine.report_rows import (
    backup_row,
    figures,
    headline,
    kind_row,
    place_row,
    stamp,
)

_TROUBLES = 50
"""Of the Markdown: Dagster keeps it in its database."""


def text_page(report: Report, *, most: int | None = None) -> str:
    """Plain text; ``most`` backups in it."""
    health = report.health
    lines = [
        "KYB platform: backup health report",
        f"Generated: {health.at:%Y-%m-%d %H:%M:%S} UTC, of {report.repository}",
        "=" * 60,
        headline(health),
    ]
    for trouble in health.troubles:
        lines += ["", f"[{trouble.severity}] {trouble.title}"]
        hint = trouble.hint and f"HINT: {trouble.hint}"
        lines += [f"    {text}" for text in (trouble.text, hint) if text]
    lines += ["", "Kinds:"]
    for row in map(kind_row, health.kinds.values()):
        tested = f"; restore-tested {row['tested'][1]}" if row["tested"][1] else ""
        lines.append(f"  {row['name']:<18} newest {row['newest']}, {row['age']} old, limit {row['limit']}; "
                     f"verified {row['verified'][1]}{tested}")  # fmt: skip
    for place in (place_row(place, health.at) for place in health.places):
        lines += ["", f"Off-site {place['name']}: {place['url']}, reachable: {place['reachable'][1]}; "
                  f"{place['copies']} copies, verified {place['verified']}, locked {place['locked'][1]}"]  # fmt: skip
        lines += [f"  {kind:<18} newest {name}, {age}" for kind, name, age in place["newest"]]
    lines.append("")
    lines += [f"{what}: {figure}, {more}".rstrip(", ") for what, figure, more in figures(health)]
    lines += ["", "Backups:"]
    for fact in islice(report.facts, most):
        row = backup_row(fact, health.places)
        proofs = f"verification {row['verification'][1]}"
        proofs += f", restore test {row['restore_test'][1]}" if row["restore_test"][1] else ""
        proofs += f", copy {row['offsite'][1]}" if row["offsite"][1] else ""
        note = f"  ({row['note']})" if row["note"] else ""
        lines.append(
            f"  {row['id']:<36} {row['kind']:<18} {row['at']:<16} {row['size']:>9}  {proofs}{note}"
        )
    if most is not None and len(report.facts) > most:
        lines.append(f"  and {len(report.facts) - most} older ones: kyb-backup list")
    return "".join(f"{_line(line)}\n" for line in lines)


def markdown_page(report: Report) -> str:
    """Markdown, with the pictures in it."""
    health = report.health
    parts = [f"## {markdown_text(headline(health))}"]
    if health.troubles:
        rows = [(t.severity, t.title, t.text, t.hint or "") for t in health.troubles[:_TROUBLES]]
        parts.append(_table(("", "What", "", "What to do"), rows))
        if left := len(health.troubles) - len(rows):
            parts.append(f"and {left} more: kyb-backup status")
    parts.append(_table(("", "", ""), figures(health)))
    kinds = [
        (row["name"], row["newest"], row["age"], row["limit"], row["verified"][1], row["tested"][1])
        for row in map(kind_row, health.kinds.values())
    ]
    parts.append(_table(("Kind", "Newest", "Age", "Limit", "Verified", "Restore-tested"), kinds))
    if health.places:
        rows_of = [(p["name"], p["url"], "; ".join(map(" ".join, p["newest"])), p["verified"], p["locked"][1],
                    p["reachable"][1]) for p in (place_row(x, health.at) for x in health.places)]  # fmt: skip
        head = ("Off-site", "Address", "Newest copies", "Verified", "Locked", "Reachable")
        parts.append(_table(head, rows_of))
    for title, svg in pictures_of(report):
        encoded = base64.b64encode(svg.encode()).decode()
        parts.append(f"### {title}\n\n![{title}](data:image/svg+xml;base64,{encoded})")
    parts.append(f"{len(report.facts)} backups, {stamp(health.at)} UTC")
    return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head)]
    cells = [tuple(map(markdown_text, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (*lines, *cells))


def _line(text: str) -> str:
    """As it is, with its margin and its columns, but nothing in it that a terminal would obey."""
    if text.isprintable():
        return text
    return text[: len(text) - len(text.lstrip(" "))] + printable(text)
