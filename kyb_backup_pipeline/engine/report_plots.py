"""Pictures of a report as PNG, for mail: its readers leave SVG out.

The words that stand for a picture where it is not shown come with it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kyb_backup_pipeline.engine.pictures import amount, scale
from kyb_backup_pipeline.engine.report import Report

_MOST = 400


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture; ``words`` say what it shows."""

    title: str
    words: str
    png: bytes


def plots_of(report: Report) -> list[Plot]:
    """What changes over time: the recovery time, the size of full backups. Too few points have no picture."""
    recoveries = [(t.at, t.seconds) for t in report.tests
                  if t.seconds is not None and not t.in_time and t.verdict == "passed"]  # fmt: skip
    sizes = [(f.at, float(f.size)) for f in reversed(report.facts)
             if f.kind == "full" and f.at and not f.safety]  # fmt: skip
    found = (
        ("Recovery time of full backups", recoveries, "s"),
        ("Size of full backups", sizes, "B"),
    )
    return [_plot(title, points[-_MOST:], unit) for title, points, unit in found if len(points) > 1]


def _plot(title: str, points: Sequence[tuple[datetime, float]], unit: str) -> Plot:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # half a second
    from matplotlib.figure import Figure

    most = max(value for _, value in points)
    factor, name = scale(most, unit)
    figure = Figure(figsize=(5.6, 1.9), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot([at for at, _ in points], [value / factor for _, value in points],  # type: ignore[arg-type]
              color="#265a8c", linewidth=1.4)  # fmt: skip
    axes.plot([points[-1][0]], [points[-1][1] / factor], "o", color="#265a8c", markersize=4)  # type: ignore[arg-type]
    axes.set_ylim(bottom=0, top=most / factor * 1.1 or 1)
    axes.set_ylabel(name, color="#58626c", fontsize=8)
    locator = AutoDateLocator(maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set(fontsize=8, color="#58626c")
    axes.tick_params(labelsize=8, colors="#58626c", length=0)
    axes.grid(axis="y", color="#d3d8de", linewidth=0.6)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    words = f"{title}: newest {amount(points[-1][1], unit)}, most {amount(most, unit)}"
    return Plot(title=title, words=words, png=out.getvalue())
