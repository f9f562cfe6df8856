"""Ratios of what was measured, held against their limits, and how they are printed.

Of the rounds' ratios the median counts; the smallest and the largest stand beside it, so that a
reader sees how far the machine's noise reaches.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.measure import Rounds


@dataclass(frozen=True)
class Ratio:
    """One line to be worked out: how many times ``over`` is ``under``, both sums of figures."""

    label: str
    over: tuple[str, ...]
    under: tuple[str, ...]
    limit: float | None = None
    sense: Literal["at most", "at least"] = "at most"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line as measured: the ratio, and the medians of both sides in ``unit``.

    ``met`` is None where there is no limit.
    """

    label: str
    median: float
    smallest: float
    largest: float
    over: float
    under: float
    unit: str
    limit: str = ""
    met: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: its lines, all figures behind them, and what a reader must know besides."""

    title: str
    outcomes: tuple[Outcome, ...]
    rounds: Rounds
    notes: tuple[str, ...] = ()


def judge(ratio: Ratio, rounds: Rounds, *, unit: str = "s") -> Outcome:
    """Work out a line whose limit, if it has one, is for the ratio."""
    over, under = rounds.values(ratio.over), rounds.values(ratio.under)
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    median = statistics.median(ratios)
    met = None
    if ratio.limit is not None:
        met = median <= ratio.limit if ratio.sense == "at most" else median >= ratio.limit
    return Outcome(
        label=ratio.label,
        median=median,
        smallest=min(ratios),
        largest=max(ratios),
        over=statistics.median(over),
        under=statistics.median(under),
        unit=unit,
        limit="" if ratio.limit is None else f"{ratio.sense} {ratio.limit:g}",
        met=met,
    )


def judged(ratios: Iterable[Ratio], rounds: Rounds) -> tuple[Outcome, ...]:
    """Work out all lines whose figures were measured."""
    return tuple(judge(r, rounds) for r in ratios if rounds.has((*r.over, *r.under)))


def within(ratio: Ratio, rounds: Rounds, *, limit: float, unit: str) -> Outcome:
    """Work out a line whose limit is for the upper figure itself, in ``unit``."""
    line = judge(Ratio(ratio.label, over=ratio.over, under=ratio.under), rounds, unit=unit)
    return Outcome(
        label=line.label,
        median=line.median,
        smallest=line.smallest,
        largest=line.largest,
        over=line.over,
        under=line.under,
        unit=unit,
        limit=f"at most {limit:g} {unit}",
        met=line.over <= limit,
    )


_HEAD = ("", "ratio", "min – max", "limit", "", "medians")


def render(table: Table) -> str:
    """The table as Markdown, which reads well on a terminal too."""
    rows = [_HEAD, *map(_row, table.outcomes)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_HEAD))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"- {note}" for note in (*table.notes, _noise(table.rounds))]
    return "\n".join([f"### {table.title}", "", *lines, "", *notes, ""])


def _noise(rounds: Rounds) -> str:
    median, low, high = (100 * f(rounds.others) for f in (statistics.median, min, max))
    return f"noise: others took {median:.0f} % of the machine ({low:.0f} – {high:.0f} %)"


def _row(line: Outcome) -> tuple[str, ...]:
    met = {None: "", True: "met", False: "**NOT met**"}[line.met]
    spread = f"{line.smallest:.2f} – {line.largest:.2f}"
    medians = f"{_figure(line.over)} : {_figure(line.under)} {line.unit}"
    return (line.label, f"{line.median:.2f}", spread, line.limit, met, medians)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)) + " |"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
