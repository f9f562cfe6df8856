"""The card of a restore test: verdict, what was compared, how long each step took, in one picture.

Markdown that Dagster's UI renders inline. Names of tables and the text of smoke queries come from the
database; what would be markup in them is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence

from kyb_backup_pipeline.engine.manifest import Finding, Proof
from kyb_backup_pipeline.engine.printable import markdown_text

_VERDICTS = {
    "passed": "Passed",
    "failed": "FAILED",
    "could_not_verify": "COULD NOT VERIFY",
}
_COMPARED = (
    ("tables", "Tables"),
    ("rows", "Rows"),
    ("objects", "Objects (indexes, functions, grants, …)"),
    ("smoke_queries", "Smoke queries"),
    ("differences", "Differences"),
)
_PROVED = (
    ("markers_committed", "Markers before the target, committed"),
    ("markers_open", "Markers behind it, not committed"),
    ("databases", "Databases"),
    ("tables", "Tables read to the last row"),
    ("rows", "Rows read"),
    ("segments", "WAL segments replayed"),
)
_RECOVERY_STEPS = ("roles", "restore", "settings", "unpack", "replay")
_MOST = 20


def restore_test_card(proof: Proof) -> str:
    """The card, as markdown."""
    parts = [f"## {_VERDICTS[proof.verdict]}: {markdown_text(proof.summary)}"]
    if proof.hint:
        parts.append(f"**What to do:** {markdown_text(proof.hint)}")
    parts.append(_what_was_proved(proof))
    if proof.findings:
        parts += ["### What differs", findings_table(proof.findings)]
    if proof.notes:
        parts += ["### Notes", bullets(proof.notes)]
    parts.append(_time_taken(proof))
    return "\n\n".join(parts)


def _what_was_proved(proof: Proof) -> str:
    in_time = "markers_committed" in proof.figures or "unpack" in proof.steps
    lines = [
        (title, f"{proof.figures[key]:,.0f}")
        for key, title in (_PROVED if in_time else _COMPARED)
        if key in proof.figures
    ]
    if in_time:
        return table(("Proved on the recovered server", ""), lines or [("Nothing", "")])
    if "rows" not in proof.figures:
        lines.append(("Rows and objects", "**not compared**"))
    return table(("Compared with the source", ""), lines)


def findings_table(findings: Sequence[Finding]) -> str:
    """The first twenty findings as a table, and how many more there are."""
    shown = table(
        ("Object", "Finding"),
        [(markdown_text(f.object), markdown_text(f.message)) for f in findings[:_MOST]],
    )
    return shown if len(findings) <= _MOST else f"{shown}\n\n… and {len(findings) - _MOST} more"


def bullets(lines: Sequence[str]) -> str:
    """The first twenty lines as a list, and how many more there are."""
    shown = [f"- {markdown_text(line)}" for line in lines[:_MOST]]
    if len(lines) > _MOST:
        shown.append(f"- … and {len(lines) - _MOST} more")
    return "\n".join(shown)


def _time_taken(proof: Proof) -> str:
    recovery = proof.figures.get("recovery_seconds")
    title = "### Time"
    if recovery is not None:
        title += f": a recovery takes {recovery:,.1f} s (darker: what counts for it)"
    if not proof.steps:
        return f"{title}\n\nNo step was reached."
    picture = base64.b64encode(_bars(proof.steps)).decode()
    numbers = ", ".join(f"{_label(step)} {value:,.2f} s" for step, value in proof.steps.items())
    return f"{title}\n\n![{numbers}](data:image/png;base64,{picture})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are markdown already."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _label(step: str) -> str:
    return step.replace("_", " ").capitalize()


def _bars(steps: Mapping[str, float]) -> bytes:
    """Horizontal bars, one a step, in the order of the steps; a PNG of some 10 kB."""
    from matplotlib.figure import Figure  # half a second, so only where a card is drawn

    figure = Figure(figsize=(6.4, 0.5 + 0.3 * len(steps)), dpi=100, layout="constrained")
    axes = figure.subplots()
    names, seconds = [_label(step) for step in steps], list(steps.values())
    colours = ["#2b5c8a" if step in _RECOVERY_STEPS else "#a9c4de" for step in steps]
    bars = axes.barh(names, seconds, color=colours, height=0.65)
    axes.bar_label(bars, labels=[f"{value:,.2f} s" for value in seconds], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color("#cccccc")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
